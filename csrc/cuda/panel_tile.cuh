// What a CTA group multiplies: norms of all tokens, rows of a panel, and what first priorities need of all pairs.
#pragma once

#include "cuda/cta_group.cuh"
#include "cuda/gram_epilogue.cuh"

namespace idsel::cuda {

// What the CTAs of a group do together.
enum class Phase : int32_t {
    kNorms,    // squared norms of all tokens
    kPanel,    // weights of the panel's tokens with all, and with one another
    kNearest,  // how near each token's nearest other token is
    kGains,    // what each token covers
    kEnd,      // nothing more
};

IDSEL_DEVICE GroupState& group_state(const PickArgs& args, const Sample& sample) {
    return args.group_states[sample.local];
}
IDSEL_DEVICE float* panel_of(const PickArgs& args, const Sample& sample) {
    return args.gram + sample.row * args.gram_width;
}
IDSEL_DEVICE int64_t panel_pitch(const Sample& sample) { return round_up(sample.n, 4); }

// What its first priority needs of all pairs of token j: the largest similarity as an order key, or a gain.
IDSEL_DEVICE float* first_of(const PickArgs& args, const Sample& sample, int64_t j) {
    return args.runs + (sample.row + j) * args.run_depth;
}

// In shared memory.
struct PhaseBuffers {
    TileBuffers tile;
    int32_t rows[kTile], columns[kTile];  // tokens of a tile; -1: none
    TileIndex index;
    float gains[kTile];  // of the rows, so far
    // Here, since in registers they would be in the way of the mainloop.
    Phase phase;
    int64_t number;  // of the tile, in the phase
};

template <class... R>
IDSEL_DEVICE float weight_by_id(const PickArgs& args, float c, RuleList<R...>) {
    float weight = c;
    ((R::kId == args.rule_id ? (weight = weight_of(*reinterpret_cast<const R*>(args.rule), c), true) : false) || ...);
    return weight;
}

// What a tile says of the nearest other token of its rows and of its columns. Maxima do not depend on an order.
struct NearestStore {
    static constexpr bool kKeepsNothing = false;
    static constexpr bool kCounts = true;
    static constexpr bool kKeepsNorms = false;

    const KernelArgs& args;
    const Sample& sample;

    IDSEL_DEVICE float weight(float c) const { return c; }
    IDSEL_DEVICE void store(int i, int j, const Float4& weights, const bool* counts) const {
        const float run = run_of<Pairs::kNearest>(weights, counts, i - j);
        if (i < sample.n && j % kRun == 0) {
            arch::red_max(reinterpret_cast<uint32_t*>(first_of(args, sample, i)), order_of(run));
        }
    }
};

// What becomes of a tile depends on the phase: one function, since each would hold registers of the others.
struct PhaseSink {
    const KernelArgs& args;
    const Sample& sample;
    PhaseBuffers* buffers;
    MirroredSink<NearestStore> nearest;

    // The squared norms are known by now.
    IDSEL_DEVICE void norms(int line, float /*square*/) {
        const int token = line < kTile ? buffers->rows[line] : buffers->columns[line - kTile];
        const float square = token < 0 ? 0.0f : arch::ld_global_cg(args.square + sample.row + token);
        if (buffers->phase == Phase::kNearest) {
            nearest.norms(line, square);
            return;
        }
        buffers->tile.scale[line] = scale_of(square);
        if (buffers->phase == Phase::kGains)
            buffers->tile.counts[line] = token >= 0 && competes(args, sample, token, square);
    }

    IDSEL_DEVICE void quad(int slab, int in_slab, int in_tile, const Float4& dots) {
        if (buffers->phase == Phase::kNearest) {
            nearest.quad(slab, in_slab, in_tile, dots);
            return;
        }
        const int row = slab_row(slab, in_slab);
        const float* scale = buffers->tile.scale;
        Float4 c;
        IDSEL_UNROLL
        for (int e = 0; e < 4; ++e) c.v[e] = similarity(dots.v[e], scale[row], scale[kTile + in_tile + e]);
        if (buffers->phase == Phase::kGains) {
            add_gain(row, in_tile, c);
        } else {
            store_weights(row, in_tile, c);
        }
    }

  private:
    IDSEL_DEVICE void store_weights(int row, int in_tile, Float4 weights) {
        if (buffers->rows[row] < 0) return;
        IDSEL_UNROLL
        for (int e = 0; e < 4; ++e) weights.v[e] = weight_by_id(args, weights.v[e], GreedyRules{});
        const int64_t pitch = panel_pitch(sample), j = int64_t{buffers->index.column} * kTile + in_tile;
        if (buffers->index.column < 0) {  // the panel's own tokens
            float* among = group_state(args, sample).among;
            arch::st_16(reinterpret_cast<Float4*>(among + row * kPanelRows + in_tile), weights);
        } else if (j < pitch) {
            arch::st_16(reinterpret_cast<Float4*>(panel_of(args, sample) + row * pitch + j), weights);
        }
    }

    // A sum over the tile's columns, formed as those of CoverageState; tiles come in their order.
    IDSEL_DEVICE void add_gain(int row, int in_tile, const Float4& c) {
        float run = run_of<Pairs::kGains>(c, buffers->tile.counts + kTile + in_tile, 0);
        run += arch::shfl_xor(run, 4);
        run += arch::shfl_xor(run, 8);
        if (in_tile == 0) buffers->gains[row] += run;
    }
};

// Everything a tile function needs, in shared memory.
struct PhaseCall {
    const KernelArgs* args;
    GroupBuffers* group;
    PhaseBuffers* buffers;
    const int32_t* panel;  // tokens of its rows
};

IDSEL_DEVICE void list_tile(const Sample& sample, int tile, int32_t* list) {
    const int token = tile * kTile + arch::thread();
    if (arch::thread() < kTile) list[arch::thread()] = token < sample.n ? token : -1;
}

template <class T>
IDSEL_DEVICE void norms_phase(const PhaseCall& call) {
    const KernelArgs& args = *call.args;
    const CtaGroup group(call.group);
    const Sample& sample = group.sample();
    const auto tiles = static_cast<int>(ceil_div(sample.n, kTile));
    for (int tile = group.rank(); tile < tiles; tile += group.ctas()) {
        arch::cta_sync();  // nobody uses the last one's buffers any more
        list_tile(sample, tile, call.buffers->rows);
        arch::cta_sync();
        const ListedRows<T> rows{features_of<T>(args, sample), args.features_token_stride, call.buffers->rows};
        const auto sink = [&](int row, float square) {
            const int token = call.buffers->rows[row];
            if (token < 0) return;
            args.square[sample.row + token] = square;
            if (args.run_depth > 0) {
                *reinterpret_cast<uint32_t*>(first_of(args, sample, token)) = order_of(-INFINITY);
            }
        };
        if constexpr (std::is_same_v<T, GivenSimilarity>) {
            const int row = arch::thread();
            if (row < kTile) sink(row, given_square(rows, rows.token(row)));
        } else {
            norm_tile<TileMath<T, Want::kNorms>>(args, rows, &call.buffers->tile, sink);
        }
    }
}

// A tile of 64 rows by 64 columns, whose tokens are listed.
template <class T>
IDSEL_DEVICE void phase_tile(const PhaseCall& call) {
    const KernelArgs& args = *call.args;
    const Sample& sample = call.group->sample;
    PhaseBuffers* buffers = call.buffers;
    const ClusterRole cluster{args.cluster > 1};
    const ListedRows<T> rows{features_of<T>(args, sample), args.features_token_stride, buffers->rows};
    const ListedRows<T> columns{features_of<T>(args, sample), args.features_token_stride, buffers->columns};
    PhaseSink sink{args, sample, buffers, {NearestStore{args, sample}, buffers->index, &buffers->tile}};
    if constexpr (std::is_same_v<T, GivenSimilarity>) {
        given_tile(rows, columns, cluster, &buffers->tile, sink);
    } else {
        gram_tile<TileMath<T, Want::kDots>>(args, rows, columns, cluster, &buffers->tile, sink);
    }
    if (buffers->phase != Phase::kNearest) return;
    arch::cta_sync();
    for (int slab = 0; slab < 2; ++slab) {
        if (cluster.has_slab(slab)) sink.nearest.mirror(slab, arch::thread());
    }
}

// Rows of the panel, -1 as `row`, or a tile of rows; its tokens again, -1 as `column`, or a tile of columns.
template <class T>
IDSEL_DEVICE void listed_tile(const PhaseCall& call, int row, int column) {
    arch::cta_sync();  // nobody uses the last one's buffers any more
    PhaseBuffers* buffers = call.buffers;
    const int thread = arch::thread();
    const Sample& sample = call.group->sample;
    if (row >= 0) list_tile(sample, row, buffers->rows);
    if (column >= 0) list_tile(sample, column, buffers->columns);
    if (row < 0 && thread < kTile) buffers->rows[thread] = call.panel[thread];
    if (column < 0 && thread < kTile) buffers->columns[thread] = call.panel[thread];
    if (thread == 0) buffers->index = {row, column};
    arch::cta_sync();
    phase_tile<T>(call);
}

// The tiles of a phase, and where each lies: of the panel, of pairs of tokens, or row after row.
IDSEL_DEVICE int64_t tiles_of_phase(Phase phase, int n) {
    const int64_t side = ceil_div(n, kTile);
    if (phase == Phase::kPanel) return side + 1;
    return phase == Phase::kNearest ? tiles_of(n, false) : side * side;
}
IDSEL_DEVICE TileIndex index_in_phase(Phase phase, int n, int64_t tile) {
    const int64_t side = ceil_div(n, kTile);
    if (phase == Phase::kPanel) return {-1, tile < side ? static_cast<int>(tile) : -1};
    if (phase == Phase::kNearest) return tile_index(n, tile, false);
    return {static_cast<int>(tile / side), static_cast<int>(tile % side)};
}

// Gains are of a row of tiles, all of which one CTA, or cluster, goes through.
IDSEL_DEVICE void begin_gains(const PhaseCall& call) {
    arch::cta_sync();  // those of the row before have been stored
    if (arch::thread() < kTile) call.buffers->gains[arch::thread()] = 0.0f;
}
IDSEL_DEVICE void end_gains(const PhaseCall& call) {
    arch::cta_sync();
    const int row = arch::thread(), token = row < kTile ? call.buffers->rows[row] : -1;
    if (token >= 0 && ClusterRole{call.args->cluster > 1}.has_slab(row / 16 % 2)) {
        *first_of(*call.args, call.group->sample, token) = call.buffers->gains[row];
    }
}

// To the next tile that is this CTA's, when all threads have read the number of the last one.
IDSEL_DEVICE void advance(const PhaseCall& call) {
    PhaseBuffers* buffers = call.buffers;
    const int64_t step = call.group->ctas / call.args->cluster;
    const int64_t side = ceil_div(call.group->sample.n, kTile);
    const bool gains = buffers->phase == Phase::kGains, row_ends = buffers->index.column + 1 == side;
    if (gains && row_ends) end_gains(call);
    if (arch::thread() == 0) buffers->number += !gains ? step : row_ends ? (step - 1) * side + 1 : 1;
}

// A CTA, or a cluster, takes every so-many-th tile; of gains, every so-many-th row of tiles.
template <class T>
IDSEL_DEVICE void do_phase(const PhaseCall& call, Phase phase) {
    if (phase == Phase::kNorms) {
        norms_phase<T>(call);
        return;
    }
    PhaseBuffers* buffers = call.buffers;
    const int n = call.group->sample.n;
    if (arch::thread() == 0) {
        const int64_t first = call.group->rank / call.args->cluster;
        buffers->phase = phase;
        buffers->number = phase == Phase::kGains ? first * ceil_div(n, kTile) : first;
    }
    for (;;) {
        arch::cta_sync();  // the number of the tile is there
        if (buffers->number >= tiles_of_phase(buffers->phase, n)) return;
        const TileIndex index = index_in_phase(buffers->phase, n, buffers->number);
        const bool gains = buffers->phase == Phase::kGains;
        if (gains && index.column == 0) begin_gains(call);
        listed_tile<T>(call, index.row, index.column);
        advance(call);
    }
}

}  // namespace idsel::cuda
