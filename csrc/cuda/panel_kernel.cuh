// The whole selection as one launch, of samples whose Gram is too large to keep.
#pragma once

#include "cuda/cta_group.cuh"
#include "cuda/history_state.cuh"
#include "cuda/panel.cuh"
#include "cuda/pick_loop.cuh"
#include "cuda/row_state.cuh"

namespace idsel::cuda {

struct PanelState {
    TileBuffers tile;  // the offers of the loop
    GroupBuffers group;
    int32_t list[kPanelRows];
};
static_assert(sizeof(TileBuffers) >= kOffers * kCtaThreads * 8);
constexpr int kPanelSharedBytes = static_cast<int>(sizeof(PanelState));

IDSEL_DEVICE PanelState& panel_state() { return *reinterpret_cast<PanelState*>(arch::shared_memory()); }

// A phase is for all CTAs of the sample; the loop goes on in the last of them to arrive.
struct PanelRows {
    CtaGroup& group;
    uint64_t* offers;
    int row_of_pick = 0;  // where choose_panel() puts it

    IDSEL_DEVICE Progress progress(const Context& context) const {
        if (group.tile().phase == Phase::kFirst) return {Phase::kFirst, 0, 0, 0.0f, 0.0f};
        return group_state(context.args, context.sample).progress;
    }

    template <class Rule>
    IDSEL_DEVICE bool ready(Context& context, MemoryTokens& tokens, const Rule& rule, Progress now) {
        GroupState& state = group_state(context.args, context.sample);
        const int64_t side = ceil_div(context.n(), kTile);
        int64_t tiles = side;
        if (now.picks == 0) {
            if (!rule.needs_nearest()) return true;
            tokens.for_each([&](int, int j) { tokens.nearest()[j] = order_of(-INFINITY); });
            now.phase = Phase::kNearest;
            tiles = smaller(side * (side + 1) / 2, kNearestWorkTiles);
        } else {
            if (group.tile().phase == Phase::kPanel) {
                row_of_pick = panel_row(state, now.pick);
                if (row_of_pick >= 0) return true;
            }
            choose_panel(context, tokens, now.pick, offers);
            now.phase = Phase::kPanel;
        }
        if (arch::thread() == 0) state.progress = now;
        group.publish(now.phase, larger(1, tiles));
        return false;
    }

    IDSEL_DEVICE Row row(const Context& context, const Progress&) const {
        return {panel_of(context.args, context.sample) + row_of_pick * panel_pitch(context.sample), 0};
    }
    IDSEL_DEVICE float nearest(const Context&, const MemoryTokens& tokens, int j) const {
        return value_of(tokens.nearest()[j]);
    }
    IDSEL_DEVICE void end(const Context&) const { group.publish(Phase::kEnd, 0); }
};

// The tiles of a phase: every so-many-th of all, where there are more than work tiles.
template <class T>
IDSEL_DEVICE void do_phase_tiles(const KernelArgs& args, GroupBuffers* of_group, const CtaGroup& group,
                                 TileBuffers* buffers, int32_t* list) {
    const Sample& sample = of_group->sample;
    const Phase phase = group.tile().phase;
    const int64_t tiles = tiles_of(sample.n, phase != Phase::kNearest);
    for (int64_t tile = group.tile().index; tile < tiles; tile += group.tile().count) {
        const int thread = arch::thread();
        const TileIndex index = tile_index(sample.n, tile, phase != Phase::kNearest);
        if (thread == 0) of_group->index = index;
        if (thread < kPanelRows) {
            const int row = index.row * kTile + thread;
            list[thread] = phase == Phase::kPanel ? group_state(args, sample).panel[thread] : row < sample.n ? row : -1;
        }
        arch::cta_sync();
        phase_tile<T>(args, sample, phase, of_group->index, list, buffers);
        arch::cta_sync();  // before the next one's buffers
    }
}

// A call, as those of gram_kernel.
template <class Rule>
IDSEL_DEVICE_CALL void pick_on_panels(int k) {
    PanelState& state = panel_state();
    Context context(state.group.pick_args, state.group.sample, k, &state.group.reduce, nullptr);
    MemoryTokens tokens(context.args, context.sample);
    CtaGroup group(&state.group);
    const PanelRows rows{group, reinterpret_cast<uint64_t*>(&state.tile)};
    if constexpr (Rule::kState == State::kToken) {
        pick_loop(context, tokens, RowState<Rule>(context), rows);
    } else {
        float* history = context.args.history + context.sample.row * context.args.history_depth;
        pick_loop(context, tokens, HistoryState(context, history), rows);
    }
}
template <class... R>
IDSEL_DEVICE void pick_by_id(int32_t id, int k, RuleList<R...>) {
    const auto pick_if = [&](auto rule) {
        using Rule = decltype(rule);
        if constexpr (Rule::kState != State::kCoverage && Rule::kNeedsSimilarities) {
            if (Rule::kId == id) pick_on_panels<Rule>(k);
        }
    };
    (pick_if(R{}), ...);
}

// Every sample has `group` CTAs, which take work tiles of its phases: tiles of 64 columns of a panel, of
// norms, or of the nearest other tokens. What a work tile is depends on N only, and what it writes on nothing but
// itself, so neither the size of a group nor who does what changes a bit. Tokens are in the workspace, because the loop
// goes on in another CTA after each phase. Samples of which the workspace has the whole Gram are left to gram_kernel.
// Shared memory: kPanelSharedBytes. Synchronises as gram_kernel. Reads, per panel: features once, and kPanelRows rows
// of them for each column tile. Flops: 3 * kPanelRows * N * D each, a third of them for norms.
template <class T>
IDSEL_GLOBAL void IDSEL_LAUNCH_BOUNDS(kCtaThreads) panel_kernel(const IDSEL_GRID_CONSTANT KernelArgs args) {
    PanelState& state = panel_state();
    if (arch::thread() == 0) {
        state.group.pick_args = args;
        state.group.sample = sample_of(args, static_cast<int32_t>(arch::block() / args.group));
        state.group.counters = state.group.sample.counter(args, 0);
        state.group.ctas = args.group;
    }
    arch::cta_sync();
    const Sample& sample = state.group.sample;
    if (sample.whole) return;
    CtaGroup group(&state.group);
    while (group.take()) {
        do_phase_tiles<T>(args, &state.group, group, &state.tile, state.list);
        if (group.arrive()) pick_by_id(args.rule_id, count_of(args, sample), AllRules{});
    }
    group.leave();
}

}  // namespace idsel::cuda
