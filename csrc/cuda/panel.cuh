// Samples whose Gram is too large: a panel is the dot products of kTile tokens with all, and the loop stays on it as
// long as the best token has its row there. A panel is made of the tiles of the Gram, so its numbers have the same
// bits.
#pragma once

#include "cuda/gram_tile.cuh"
#include "cuda/greedy_loop.cuh"

namespace idsel::cuda {

// How many of its best tokens each thread offers for a panel. A panel may therefore lack a token that ranks higher than
// some that it has; picks do not depend on what else is in the panel of a pick.
constexpr int kOffers = 4;

IDSEL_DEVICE float* panel_of(const KernelArgs& args, const Sample& sample) {
    return args.gram + sample.row * args.gram_width;
}

// The row of a token in the panel, -1 where it has none. By whole warps.
IDSEL_DEVICE int panel_row(const Desk& desk, int token) {
    uint64_t found = 0;
    IDSEL_UNROLL
    for (int row = port::thread() % 32; row < kTile; row += 32) {
        if (desk.panel[row] == token) found = static_cast<uint64_t>(row) + 1;
    }
    return static_cast<int>(port::warp_max(found)) - 1;
}

// A pick and the tokens that rank highest after it. `keys` are (kOffers * kBlockThreads,), in shared memory.
IDSEL_DEVICE void choose_panel(const Loop& loop, int pick, uint64_t* keys) {
    Desk& desk = loop.desk();
    uint64_t below = ~uint64_t{0};
    IDSEL_UNROLL_BY(1)
    for (int offer = 0; offer < kOffers; ++offer) {
        uint64_t best = 0;
        IDSEL_UNROLL_BY(1)
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            const uint64_t rank = rank_of(loop, j);
            if (rank < below && rank > best) best = rank;
        }
        keys[offer * kBlockThreads + port::thread()] = below = best;
    }
    port::barrier();  // all offers are there, and nobody looks for a row in the panel before
    if (port::thread() < kTile) desk.panel[port::thread()] = port::thread() == 0 ? pick : -1;
    port::barrier();
    IDSEL_UNROLL_BY(1)
    for (int offer = 0; offer < kOffers; ++offer) {
        const uint64_t mine = keys[offer * kBlockThreads + port::thread()];
        int higher = 0;
        for (int other = 0; other < kOffers * kBlockThreads; ++other) higher += keys[other] > mine ? 1 : 0;
        if (mine != 0 && higher + 1 < kTile) desk.panel[higher + 1] = index_of(mine);
    }
}

// Lists the rows of a tile: 64 neighbours, or those of the panel.
IDSEL_DEVICE void list_tile(const Sample& sample, int tile, int32_t* list) {
    if (port::thread() >= kTile) return;
    const int64_t token = static_cast<int64_t>(tile) * kTile + port::thread();
    list[port::thread()] = token < sample.n ? static_cast<int32_t>(token) : -1;
}
IDSEL_DEVICE void list_panel(const Desk& desk, int32_t* list) {
    if (port::thread() < kTile) list[port::thread()] = desk.panel[port::thread()];
}

// The products of the rows listed in Control with a tile of columns, over all of D. Parts of D are added up in their
// order, as add_parts does it: in the workspace, because registers are scarce here and parts are rare.
template <class T>
IDSEL_DEVICE void multiply_listed(const KernelArgs& args, const Sample& sample, Control* control, int column, bool same,
                                  unsigned char* shared, float (&sums)[kPerThread]) {
    const ListedRows<T> rows{features_of<T>(args, sample), args.features_token_stride, control->rows,
                             args.wide_rows != 0};
    const Rows<T> columns = rows_of<T>(args, sample, column);
    for (int part = 0; part < sample.splits; ++part) {
        port::barrier();  // the list is there; nobody uses the operands of an earlier part
        IDSEL_UNROLL
        for (int at = 0; at < kPerThread; ++at) sums[at] = 0.0f;
        multiply_rows<T>(args, sample, rows, columns, same, part, shared, sums);
        if (sample.splits == 1) return;
        float* total = args.scratch + port::block() * kTileNumbers + port::thread();
        IDSEL_UNROLL
        for (int at = 0; at < kPerThread; ++at) {
            sums[at] = (part == 0 ? 0.0f : total[at * kBlockThreads]) + sums[at];
            total[at * kBlockThreads] = sums[at];
        }
    }
}

template <class T>
IDSEL_DEVICE void store_panel(const KernelArgs& args, const Sample& sample, const int32_t* list, int column,
                              const float (&sums)[kPerThread]) {
    float* panel = panel_of(args, sample);
    IDSEL_UNROLL
    for (int at = 0; at < kPerThread; ++at) {
        const Place place = TileProduct<T>::place(at);
        const int64_t j = static_cast<int64_t>(column) * kTile + place.column;
        if (list[place.row] >= 0 && j < sample.n) panel[int64_t{place.row} * sample.n + j] = sums[at];
    }
}

// What a tile says of the nearest other token of its rows and of its columns. Maxima do not depend on an order. Half a
// line each to 256 threads; `tile` is in shared memory, in rows of kTile + 1.
IDSEL_DEVICE void raise_nearest(const Loop& loop, Place place, const float* tile) {
    const int line = port::thread() % kTile, half = port::thread() / (2 * kTile) * (kTile / 2);
    const bool by_column = port::thread() / kTile % 2 != 0, diagonal = place.row == place.column;
    const int mine = (by_column ? place.column : place.row) * kTile + line;
    if (mine >= loop.n() || (diagonal && by_column)) return;
    float nearest = -INFINITY;
    IDSEL_UNROLL_BY(1)
    for (int at = half; at < half + kTile / 2; ++at) {
        const int other = (by_column ? place.row : place.column) * kTile + at;
        if (other >= loop.n() || other == mine || !loop.competes(other)) continue;
        // Of a tile on the diagonal, the half above it, as in the Gram.
        const bool turned = by_column || (diagonal && at < line);
        const float dot = turned ? tile[at * (kTile + 1) + line] : tile[line * (kTile + 1) + at];
        nearest = fmaxf(nearest, cosine(dot, loop.tokens.scale[other], loop.tokens.scale[mine]));
    }
    port::raise(nearest_of(loop) + mine, order_of(nearest));
}

template <class T>
IDSEL_DEVICE void find_nearest_in_tile(const Loop& loop, Place place, const float (&sums)[kPerThread], float* tile) {
    port::barrier();  // nobody uses the operands any more
    IDSEL_UNROLL
    for (int at = 0; at < kPerThread; ++at) {
        const Place here = TileProduct<T>::place(at);
        tile[here.row * (kTile + 1) + here.column] = sums[at];
    }
    port::barrier();
    raise_nearest(loop, place, tile);
}

}  // namespace idsel::cuda
