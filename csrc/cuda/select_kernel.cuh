// The whole selection as one launch.
#pragma once

#include <type_traits>

#include "cuda/coverage_model.cuh"
#include "cuda/gram_tile.cuh"
#include "cuda/greedy_loop.cuh"
#include "cuda/history_model.cuh"
#include "cuda/row_model.cuh"

namespace idsel::cuda {

template <class Rule>
IDSEL_DEVICE auto model_of(const Rule& rule) {
    if constexpr (Rule::kState == State::kToken) {
        return RowModel<Rule>(rule);
    } else if constexpr (Rule::kState == State::kHistory) {
        return HistoryModel(rule);
    } else {
        return CoverageModel(rule);
    }
}

template <State kState, class Rule, class Hands>
IDSEL_DEVICE void run_if(Loop& loop, const Hands& hands) {
    // Without similarities one block is enough.
    if constexpr (Rule::kState == kState && (Rule::kNeedsSimilarities || std::is_same_v<Hands, Alone>)) {
        if (loop.args.rule_id != Rule::kId) return;
        static_assert(sizeof(Rule) <= kRuleBytes);
        greedy_loop(loop, model_of(*reinterpret_cast<const Rule*>(loop.args.rule)), hands);
    }
}

template <State kState, class Hands, class... R>
IDSEL_DEVICE void run_rule(Loop& loop, const Hands& hands, RuleList<R...>) {
    (run_if<kState, R>(loop, hands), ...);
}

// A block owns one item of work at a time: a tile (64, 64) of one sample's Gram, or a part of D of it. Of a dense batch
// there are as many blocks as items; blocks of a ragged one take every so-many-th, because only the device knows how
// many there are. The block that completes a sample's Gram runs the greedy loop of that sample; nobody waits for it.
// Shared memory: kTileBytes + sizeof(Control), 4 * 64 * 144 + 432 bytes: two buffers of two operands, later the tokens.
// Synchronises once per piece of D, twice per arrival, once per pick (three times in Coverage).
// Reads, per sample: features side + 1 times each (side = N / 64), then k rows of the Gram, N numbers each (Coverage:
// k times all N * N). Flops: N * N * D, then O(k * N) (DPP: O(k * k * N), Coverage: O(k * N * N)).
template <class T, State kState>
IDSEL_GLOBAL void IDSEL_LAUNCH_BOUNDS(kBlockThreads) select_kernel(const IDSEL_GRID_CONSTANT KernelArgs args) {
    unsigned char* shared = port::shared_memory();
    auto* control = reinterpret_cast<Control*>(shared + kTileBytes);
    Work work;
    for (int64_t item = port::block(); find_work(args, item, control, &work); item += port::blocks()) {
        if (!complete_gram<T>(args, work, shared, control)) continue;
        const Tokens tokens = tokens_of(args, work.sample, shared);
        Loop loop{args, work.sample, tokens, control, 0};
        run_rule<kState>(loop, Alone{}, AllRules{});
        port::barrier();  // before the next tile overwrites the tokens
    }
}

}  // namespace idsel::cuda
