// The whole selection as one launch, where several blocks work on each sample all the time (phases.cuh).
#pragma once

#include "cuda/panel.cuh"
#include "cuda/phases.cuh"
#include "cuda/select_kernel.cuh"

namespace idsel::cuda {

// Of the first phase: tiles of the Gram, and parts of D of them where the workspace has room for parts.
IDSEL_DEVICE int64_t first_items_of(const KernelArgs& args, const Sample& sample) {
    if (!sample.whole) return ceil_div(sample.n, kTile);
    return args.partial_tiles > 0 ? sample.items() : larger(1, sample.tiles);
}

IDSEL_DEVICE void open_sample(const KernelArgs& args, int32_t local, CrewState* state) {
    state->sample = sample_of(args, local);
    state->tokens = tokens_of(args, state->sample, nullptr);
    state->first_items = static_cast<int32_t>(first_items_of(args, state->sample));
}

// A phase of the loop is for all blocks of the sample; the loop goes on in the last of them to arrive.
struct InPhases {
    Crew& crew;
    unsigned char* shared;
    int panel_row_of_pick = 0;  // where choose_panel puts it

    IDSEL_DEVICE Progress progress(const Loop& loop) const {
        if (crew.item().phase == Phase::kFirst) return {Phase::kFirst, 0, 0, 0.0f, 0.0f};
        return loop.desk().progress;
    }

    template <class Model>
    IDSEL_DEVICE bool finish(Loop& loop, Model&, const Progress& progress) {
        const int64_t side = ceil_div(loop.n(), kTile);
        int64_t items = side;
        if (progress.phase == Phase::kPanel) {
            if (loop.sample.whole) return true;
            // The first pick always needs its row, and nobody has made a panel before.
            if (progress.picks > 1) panel_row_of_pick = panel_row(loop.desk(), progress.pick);
            if (progress.picks > 1 && panel_row_of_pick >= 0) return true;
            choose_panel(loop, progress.pick, reinterpret_cast<uint64_t*>(shared));
        } else if (progress.phase == Phase::kNearest) {
            items = smaller(side * (side + 1) / 2, kNearestItems);
        } else {
            items = ceil_div(loop.n(), kGainTokens);
        }
        if (port::thread() == 0) loop.desk().progress = progress;
        crew.publish(progress.phase, larger(1, items));  // somebody has to arrive, even of a sample without tokens
        return false;
    }

    IDSEL_DEVICE const float* row(const Loop& loop, int pick) const {
        if (loop.sample.whole) return loop.row(pick);
        return panel_of(loop.args, loop.sample) + int64_t{panel_row_of_pick} * loop.n();
    }

    IDSEL_DEVICE void end() const { crew.publish(Phase::kEnd, 0); }
};

// An item of the first phase where parts of D are items of their own.
template <class T>
IDSEL_DEVICE void do_part(const Loop& loop, const Crew& crew, unsigned char* shared) {
    const Sample& sample = loop.sample;
    const int64_t tile = crew.item().index / sample.splits, part = crew.item().index % sample.splits;
    const Place place = tile_place(sample, tile, false);
    float sums[kPerThread] = {};
    multiply_rows<T>(loop.args, sample, rows_of<T>(loop.args, sample, place.row),
                     rows_of<T>(loop.args, sample, place.column), place.row == place.column, part, shared, sums);
    if (sample.splits > 1 && !add_parts(loop.args, sample, tile, part, loop.control, sums)) return;
    store_tile<T>(loop.args, sample, place, sums);
}

// Tiles of a phase: on and above the diagonal, or one to 64 tokens.
IDSEL_DEVICE bool in_triangle(const Sample& sample, Phase phase) { return sample.whole || phase == Phase::kNearest; }
IDSEL_DEVICE int64_t tiles_of(const Sample& sample, Phase phase) {
    return in_triangle(sample, phase) ? sample.tiles : ceil_div(sample.n, kTile);
}

// An item that is tiles over all of D: every so-many-th, where there are more of them than items.
template <class T, State kState>
IDSEL_DEVICE void do_tiles(const Loop& loop, const Crew& crew, unsigned char* shared) {
    const Sample& sample = loop.sample;
    for (int64_t tile = crew.item().index; tile < tiles_of(sample, crew.item().phase); tile += crew.item().count) {
        const Place place = tile_place(sample, tile, !in_triangle(sample, crew.item().phase));
        const bool same = crew.item().phase != Phase::kPanel && place.row == place.column;
        if (crew.item().phase == Phase::kPanel) {
            list_panel(loop.desk(), loop.control->rows);
        } else {
            list_tile(sample, place.row, loop.control->rows);
        }
        float sums[kPerThread];
        multiply_listed<T>(loop.args, sample, loop.control, place.column, same, shared, sums);
        if (crew.item().phase == Phase::kPanel) {
            store_panel<T>(loop.args, sample, loop.control->rows, place.column, sums);
        } else if (kState == State::kToken && crew.item().phase == Phase::kNearest) {
            find_nearest_in_tile<T>(loop, place, sums, reinterpret_cast<float*>(shared));
        } else {
            store_tile<T>(loop.args, sample, place, sums);
        }
        port::barrier();  // before the next list and operands
    }
}

IDSEL_DEVICE void do_gains(const Loop& loop, const Crew& crew) {
    const auto begin = static_cast<int>(crew.item().index * kGainTokens);
    const auto end = static_cast<int>(smaller(loop.n(), begin + kGainTokens));
    find_gains(loop, *reinterpret_cast<const Coverage*>(loop.args.rule), begin, end);
}

template <class T, State kState>
IDSEL_DEVICE void do_item(const Loop& loop, const Crew& crew, unsigned char* shared) {
    if constexpr (kState == State::kCoverage) {
        if (crew.item().phase == Phase::kGains) {
            do_gains(loop, crew);
        } else if (loop.sample.tiles > 0) {
            do_part<T>(loop, crew, shared);
        }
    } else {
        do_tiles<T, kState>(loop, crew, shared);
    }
}

// Every sample has `crew` blocks, which take items of its phases: tiles of the Gram or of a panel, gains of some
// tokens. What an item is depends on N and D only, and what it writes on nothing but the item, so neither the size of a
// crew nor who does what changes a bit. Tokens are in the workspace, because the loop goes on in another block after
// each phase. Shared memory: kTileBytes + sizeof(CrewState), 4 * 64 * 144 + 552 bytes. Synchronises once per piece of
// D, three times per item, once per pick. Reads, per panel: features once, and kTile rows of them for each column tile.
// Flops: 2 * kTile * N * D each.
template <class T, State kState>
IDSEL_GLOBAL void IDSEL_LAUNCH_BOUNDS(kBlockThreads) crew_kernel(const IDSEL_GRID_CONSTANT KernelArgs args) {
    unsigned char* shared = port::shared_memory();
    auto* state = reinterpret_cast<CrewState*>(shared + kTileBytes);
    if (port::thread() == 0) open_sample(args, static_cast<int32_t>(port::block() / args.crew), state);
    Loop loop{args, state->sample, state->tokens, &state->control, 0};
    Crew crew(args, state);
    while (crew.take()) {  // it also waits for what thread 0 has opened
        do_item<T, kState>(loop, crew, shared);
        if (crew.arrive()) run_rule<kState>(loop, InPhases{crew, shared}, AllRules{});
    }
    crew.leave();
}

}  // namespace idsel::cuda
