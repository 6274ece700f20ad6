// Samples whose Gram is too large: a panel is the weights of kPanelRows tokens for all, and the loop stays on it as
// long as the best token has its row there. Its numbers have the bits of the Gram's.
#pragma once

#include "cuda/gram_epilogue.cuh"
#include "cuda/token_state.cuh"

namespace idsel::cuda {

// How many of its best tokens each thread offers for a panel. A panel may therefore lack a token that ranks higher than
// some that it has; picks do not depend on what else is in the panel of a pick.
constexpr int kOffers = 4;

IDSEL_DEVICE GroupState& group_state(const PickArgs& args, const Sample& sample) {
    return args.group_states[sample.local];
}
IDSEL_DEVICE float* panel_of(const PickArgs& args, const Sample& sample) {
    return args.gram + sample.row * args.gram_width;
}
IDSEL_DEVICE int64_t panel_pitch(const Sample& sample) { return round_up(sample.n, 4); }

// The row of a token in the panel, -1 where it has none. By whole warps.
IDSEL_DEVICE int panel_row(const GroupState& state, int token) {
    uint32_t found = 0;
    IDSEL_UNROLL
    for (int row = arch::lane(); row < kPanelRows; row += 32) {
        if (state.panel[row] == token) found = static_cast<uint32_t>(row) + 1;
    }
    return static_cast<int>(arch::redux_max(found)) - 1;
}

// A pick and the tokens that rank highest after it. `offers` are (kOffers * kCtaThreads,), in shared memory.
IDSEL_DEVICE void choose_panel(Context& context, MemoryTokens& tokens, int pick, uint64_t* offers) {
    GroupState& state = group_state(context.args, context.sample);
    uint64_t below = ~uint64_t{0};
    IDSEL_UNROLL_BY(1)
    for (int offer = 0; offer < kOffers; ++offer) {
        uint64_t best = 0;
        tokens.for_each([&](int slot, int j) {
            if (!tokens.competes(slot)) return;
            const uint32_t key = tokens.key(slot);  // one without a priority may get one
            const uint64_t rank = ranked(key == 0 ? 1 : key, j);
            if (rank < below && rank > best) best = rank;
        });
        offers[offer * kCtaThreads + arch::thread()] = below = best;
    }
    arch::cta_sync();  // all offers are there, and nobody looks for a row in the old panel any more
    if (arch::thread() < kPanelRows) state.panel[arch::thread()] = arch::thread() == 0 ? pick : -1;
    arch::cta_sync();
    IDSEL_UNROLL_BY(1)
    for (int offer = 0; offer < kOffers; ++offer) {
        const uint64_t mine = offers[offer * kCtaThreads + arch::thread()];
        int higher = 0;
        for (int other = 0; other < kOffers * kCtaThreads; ++other) higher += offers[other] > mine ? 1 : 0;
        if (mine != 0 && higher + 1 < kPanelRows) state.panel[higher + 1] = index_of(mine);
    }
}

template <class... R>
IDSEL_DEVICE float weight_by_id(const PickArgs& args, float c, RuleList<R...>) {
    float weight = c;
    ((R::kId == args.rule_id ? (weight = weight_of(*reinterpret_cast<const R*>(args.rule), c), true) : false) || ...);
    return weight;
}

// Rows of the panel for a tile of columns.
struct PanelSink {
    const KernelArgs& args;
    const Sample& sample;
    const int32_t* list;  // tokens of the rows, in shared memory
    float* scale;
    const int* column;  // tile, in shared memory

    IDSEL_DEVICE void norms(int line, float square) { scale[line] = scale_of(square); }
    IDSEL_DEVICE void quad(int slab, int slab_place, int in_tile, const Float4& dots) {
        const int row = slab_row(slab, slab_place), j = *column * kTile + in_tile;
        Float4 weights;
        IDSEL_UNROLL
        for (int e = 0; e < 4; ++e) {
            const float c = similarity(dots.v[e], scale[row], scale[kTile + in_tile + e]);
            weights.v[e] = weight_by_id(args, c, AllRules{});
        }
        const int64_t pitch = panel_pitch(sample);
        if (list[row] < 0 || j >= pitch) return;
        arch::st_16(reinterpret_cast<Float4*>(panel_of(args, sample) + row * pitch + j), weights);
    }
};

// What a tile says of the nearest other token of its rows and of its columns. Maxima do not depend on an order.
struct NearestStore {
    static constexpr bool kKeepsNothing = false;
    static constexpr bool kCounts = true;

    const KernelArgs& args;
    const Sample& sample;
    uint32_t* nearest;

    IDSEL_DEVICE float weight(float c) const { return c; }
    IDSEL_DEVICE void store(int i, int j, const Float4& weights, const bool* counts) const {
        const float run = run_of<Pairs::kNearest>(weights, counts, i - j);
        if (i < sample.n && j % kRun == 0) arch::red_max(nearest + i, order_of(run));
    }
};

// What becomes of a tile depends on the phase: one function, since each would hold registers of the others.
struct PhaseSink {
    Phase phase;
    MirroredSink<NearestStore> of_sample;  // norms and nearest others
    PanelSink of_panel;

    IDSEL_DEVICE void norms(int line, float square) {
        if (phase == Phase::kPanel) {
            of_panel.norms(line, square);
        } else {
            of_sample.norms(line, square);
        }
    }
    IDSEL_DEVICE void quad(int slab, int row, int column, const Float4& dots) {
        if (phase == Phase::kPanel) {
            of_panel.quad(slab, row, column, dots);
        } else if (phase == Phase::kNearest) {
            of_sample.quad(slab, row, column, dots);
        }
    }
};

// A tile of a phase; `list` are the tokens of its rows, `index` is where it lies.
template <class T>
IDSEL_DEVICE void phase_tile(const KernelArgs& args, const Sample& sample, Phase phase, const TileIndex& index,
                             const int32_t* list, TileBuffers* buffers) {
    const NearestStore store{args, sample, MemoryTokens(args, sample).nearest()};
    PhaseSink sink{phase, {store, index, buffers}, {args, sample, list, buffers->scale, &index.column}};
    const ListedRows<T> rows{features_of<T>(args, sample), args.features_token_stride, list};
    gram_tile<TileMath<T>>(args, rows, rows_of<T>(args, sample, index.column), ClusterRole{false}, buffers, sink);
    if (phase != Phase::kNearest) return;
    arch::cta_sync();
    for (int slab = 0; slab < 2; ++slab) sink.of_sample.mirror(slab, arch::thread());
}

}  // namespace idsel::cuda
