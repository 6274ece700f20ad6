// The whole selection as one launch, of samples whose Gram is not kept.
#pragma once

#include "cuda/coverage_panels.cuh"
#include "cuda/history_state.cuh"
#include "cuda/panel_loop.cuh"
#include "cuda/row_state.cuh"
#include "idsel/select.h"

namespace idsel::cuda {

struct PanelShared {
    union alignas(16) {
        PhaseBuffers phase;
        PanelWeights weights;
    };
    KernelArgs args;
    GroupBuffers group;
    Panel panel;
    Progress progress;
};
constexpr int kPanelSharedBytes = static_cast<int>(round_up(sizeof(PanelShared), 16));
// Behind it the numbers of the CTA's own tokens, where they fit; more of them would be at the cost of the L1 cache.
constexpr int kTokenBytes = kTokenNumbers * 4 + 1;
constexpr int kMostSharedTokens = 1024;

IDSEL_DEVICE PanelShared& panel_shared() { return *reinterpret_cast<PanelShared*>(arch::shared_memory()); }

// A range of the sample for each CTA of a group, of whole runs.
IDSEL_DEVICE MemoryTokens::Home home_of_own(const KernelArgs& args, const CtaGroup& group) {
    const int n = group.sample().n;
    const int64_t each = round_up(ceil_div(n, group.ctas()), kRun);
    const auto first = static_cast<int>(smaller(n, each * group.rank()));
    const auto count = static_cast<int>(smaller(each, n - first));
    if (count > args.shared_tokens) return MemoryTokens::in_workspace(args, group.sample(), first, count);
    auto* numbers = reinterpret_cast<float*>(arch::shared_memory() + kPanelSharedBytes);
    const int64_t stride = args.shared_tokens;
    return {numbers, stride, reinterpret_cast<Tier*>(numbers + kTokenNumbers * stride), first, count};
}

// What a rule does after a phase; returns the next one.
template <class Rule>
IDSEL_DEVICE Phase after_phase(GroupContext& context, OwnTokens& tokens, Phase done) {
    const PickArgs& args = context.pick.args;
    if constexpr (Rule::kState == State::kCoverage) {
        CoveragePanels coverage(context, tokens);
        if (done == Phase::kNorms) return Phase::kGains;
        if (done == Phase::kGains) coverage.start();
        return coverage.pick(done == Phase::kPanel) ? Phase::kEnd : Phase::kPanel;
    } else if constexpr (Rule::kState == State::kHistory) {
        HistoryState rule(context.pick, args.history + context.pick.sample.row * args.history_depth);
        if (done == Phase::kNorms) start_on_panels(context, tokens, rule);
        rule.restore(context.now.kept);
        const bool ended = pick_on_panels(context, tokens, rule, done == Phase::kPanel);
        context.now.kept = rule.kept();
        return ended ? Phase::kEnd : Phase::kPanel;
    } else {
        RowState<Rule> rule(context.pick);
        if (done == Phase::kNorms && rule.needs_nearest()) return Phase::kNearest;
        if (done != Phase::kPanel) start_on_panels(context, tokens, rule);
        return pick_on_panels(context, tokens, rule, done == Phase::kPanel) ? Phase::kEnd : Phase::kPanel;
    }
}

// The loop over picks, as far as it comes after a phase; returns the next one. A call, so that its registers and the
// tiles' do not add up.
template <class Rule>
IDSEL_DEVICE_CALL Phase go_on(Phase done) {
    PanelShared& shared = panel_shared();
    const CtaGroup group(&shared.group);
    const Context pick(shared.args, group.sample(), count_of(shared.args, group.sample()), &shared.group.reduce,
                       nullptr);
    GroupContext context{pick, group, &shared.panel, &shared.weights, {}};
    OwnTokens tokens(home_of_own(shared.args, group), context);
    context.group.sync();
    if (done != Phase::kNorms) {
        context.now = shared.progress;
    } else {
        tokens.read(context.pick);
        if (arch::thread() < kPanelRows) shared.panel.token[arch::thread()] = -1, shared.panel.key[arch::thread()] = 0;
    }
    const Phase next = after_phase<Rule>(context, tokens, done);
    if (next != Phase::kEnd) {
        if (arch::thread() == 0) shared.progress = context.now;  // all have read the last one, and sync before the next
        return next;
    }
    add_to_counts(context, context.now.rounds, 0);
    take_rest(context, tokens);
    tokens.flush(context.pick, context.now.picks, context.now.below);
    if (context.group.rank() == 0) write_padding(context.pick, context.now.picks);
    return next;
}

template <class... R>
IDSEL_DEVICE Phase go_on_by_id(int32_t id, Phase done, RuleList<R...>) {
    Phase next = Phase::kEnd;
    const auto go_on_if = [&](auto rule) {
        using Rule = decltype(rule);
        if constexpr (Rule::kNeedsSimilarities) {
            if (Rule::kId == id) next = go_on<Rule>(done);
        }
    };
    (go_on_if(R{}), ...);
    return next;
}

// The CTAs of the launch are shared out among the samples whose Gram is not kept; a group of them owns the tokens of a
// sample. Others are left to gram_kernel.
// Shared memory: kPanelSharedBytes, 58 KiB, and kTokenBytes for each of `shared_tokens`.
// Synchronises the group once per round, and once per panel; Coverage twice more for each kGainsAtOnce gains, tied
// picks once more. Reads: features once for norms; per panel once, and kPanelRows rows of them for each 64 tokens.
// Flops: 2 * kPanelRows
// * N * D per panel; for the first priorities of MaxMin N * N * D, of Coverage twice that.
template <class Rules>
IDSEL_GLOBAL void IDSEL_LAUNCH_BOUNDS(kCtaThreads) panel_kernel(const IDSEL_GRID_CONSTANT KernelArgs args) {
    PanelShared& shared = panel_shared();
    if (arch::thread() == 0) shared.args = args;
    CtaGroup group(&shared.group);
    if (!group.join(args)) return;
    for (int number = group.first(); group.turn_to(args, number); number += group.step()) {
        const PhaseCall call{&args, &shared.group, &shared.phase, shared.panel.token};
        for (Phase phase = Phase::kNorms; phase != Phase::kEnd;) {
            if (args.dtype == IDSEL_BFLOAT16) {
                do_phase<BFloat16>(call, phase);
            } else if (args.dtype == IDSEL_FLOAT16) {
                do_phase<Half>(call, phase);
            } else if (args.dtype == kGivenSimilarities) {
                do_phase<GivenSimilarity>(call, phase);
            } else {
                do_phase<float>(call, phase);
            }
            phase = go_on_by_id(args.rule_id, phase, Rules{});
        }
        group.leave();
    }
}

}  // namespace idsel::cuda
