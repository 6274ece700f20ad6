// The whole selection as one launch, of samples whose Gram is kept.
#pragma once

#include "cuda/channel_state.cuh"
#include "cuda/history_state.cuh"
#include "cuda/pick_loop.cuh"
#include "cuda/row_state.cuh"
#include "idsel/select.h"

namespace idsel::cuda {

// Shared memory: what the CTA keeps of its work, then what the tile needs or, after it, the loop.
struct CtaState {
    SchedulerBuffers scheduler;
    PickArgs pick_args;
};
constexpr int kStateBytes = static_cast<int>(round_up(sizeof(CtaState), 16));
constexpr int kSharedBytes = static_cast<int>(
    kStateBytes + (sizeof(TileBuffers) > sizeof(PickBuffers) ? sizeof(TileBuffers) : sizeof(PickBuffers)));
// The history of DPP, behind the loop's other buffers.
constexpr int kHistoryOffset = kStateBytes + static_cast<int>(sizeof(PickBuffers));
static_assert(kHistoryOffset % 16 == 0);

IDSEL_DEVICE CtaState& cta_state() { return *reinterpret_cast<CtaState*>(arch::shared_memory()); }
IDSEL_DEVICE unsigned char* after_state() { return arch::shared_memory() + kStateBytes; }

IDSEL_DEVICE Context context_of(int k) {
    CtaState& state = cta_state();
    return {state.pick_args, state.scheduler.work.sample, k, &state.scheduler.reduce,
            reinterpret_cast<PickBuffers*>(after_state())};
}

// --- Pick loops: calls, so that their registers and the tile's do not add up -----------------------------------------

template <class Rule, class Tokens>
IDSEL_DEVICE void pick_with(Context& context, Tokens& tokens, float* cover) {
    if constexpr (Rule::kState == State::kToken) {
        pick_loop(context, tokens, RowState<Rule>(context));
    } else if constexpr (Rule::kState == State::kCoverage) {
        pick_loop(context, tokens, CoverageState(context, cover));
    } else if constexpr (Rule::kState == State::kChannels) {
        if (context.args.dtype == IDSEL_BFLOAT16) {
            pick_loop(context, tokens, ChannelState<BFloat16>(context));
        } else if (context.args.dtype == IDSEL_FLOAT16) {
            pick_loop(context, tokens, ChannelState<Half>(context));
        } else {
            pick_loop(context, tokens, ChannelState<float>(context));
        }
    } else if (round_up(context.n(), 4) * context.wanted <= context.args.shared_history) {
        auto* history = reinterpret_cast<float*>(arch::shared_memory() + kHistoryOffset);
        pick_loop(context, tokens, HistoryState(context, history));
    } else {
        float* history = context.args.history + context.sample.row * context.args.history_depth;
        pick_loop(context, tokens, HistoryState(context, history));
    }
}

// Samples of up to kPer * kCtaThreads tokens.
template <class Rule, int kPer>
IDSEL_DEVICE_CALL void pick_in_registers(int k) {
    Context context = context_of(k);
    // Warps sum gains of their own tokens, each as many as it needs.
    constexpr bool kGains = Rule::kState == State::kCoverage || Rule::kState == State::kChannels;
    RegisterTokens<kPer, kGains> tokens(context);
    pick_with<Rule>(context, tokens, reinterpret_cast<PickBuffers*>(after_state())->cover);
}
template <class Rule>
IDSEL_DEVICE_CALL void pick_in_memory(int k) {
    Context context = context_of(k);
    MemoryTokens tokens(MemoryTokens::in_workspace(context.args, context.sample, 0, context.n()));
    pick_with<Rule>(context, tokens, tokens.cover());
}
// For rules without similarities, in a file of each.
template <class Rule>
IDSEL_DEVICE_CALL void pick_at_once(int k);

template <class Rule>
IDSEL_DEVICE void pick_all(const KernelArgs& args) {
    const Sample& sample = cta_state().scheduler.work.sample;
    const int n = sample.n, k = count_of(args, sample);
    if (n > kMaxRegisterTokens) {
        pick_in_memory<Rule>(k);
    } else if constexpr (Rule::kState == State::kToken && !Rule::kNeedsSimilarities) {
        // A sort cannot bring some tokens before others that are worth more.
        args.given == nullptr ? pick_at_once<Rule>(k) : pick_in_registers<Rule, kMaxTokensPerThread>(k);
    } else if (n <= kCtaThreads) {
        pick_in_registers<Rule, 1>(k);
    } else if (n <= 4 * kCtaThreads) {
        pick_in_registers<Rule, 4>(k);
    } else {
        pick_in_registers<Rule, kMaxTokensPerThread>(k);
    }
}

// A CTA owns one work tile (64, 64) of one sample's Gram at a time, or shares it with the other CTA of its cluster. The
// CTA that completes a sample's Gram runs the pick loop of that sample; nobody waits for it.
// Shared memory: kSharedBytes, 54 KiB; more of it for the history of DPP.
// Synchronises six times per work tile, ten with two groups of D; twice per arrival, once per pick (Coverage: twice).
// Reads, per sample: features N / 64 + 1 times each, then k rows of the Gram, N numbers each. Flops: 1.5 * N * N * D
// (norms are a third of them; in float32 a sixth), then O(k * N); DPP: O(k * k * N).
template <class Rule>
IDSEL_GLOBAL void IDSEL_LAUNCH_BOUNDS(kCtaThreads) gram_kernel(const IDSEL_GRID_CONSTANT KernelArgs args) {
    static_assert(sizeof(Rule) <= kRuleBytes);
    SchedulerBuffers& buffers = cta_state().scheduler;
    TileScheduler scheduler(args, &buffers);
    // For the pick loops, which as calls cannot reach what a kernel has been launched with.
    if (arch::thread() == kCtaThreads - 1) cta_state().pick_args = args;
    const WorkTile& work = buffers.work;
    for (bool some = scheduler.get_first_work(); some; some = scheduler.get_next_work()) {
        const ClusterRole cluster{args.cluster > 1};
        auto* tile_buffers = reinterpret_cast<TileBuffers*>(after_state());
        if (work.sample.n > 0) {
            const GramStore<Rule> store{args, work.sample};
            if (args.dtype == IDSEL_BFLOAT16) {
                store_tile<BFloat16>(store, work.index, cluster, tile_buffers);
            } else if (args.dtype == IDSEL_FLOAT16) {
                store_tile<Half>(store, work.index, cluster, tile_buffers);
            } else if (args.dtype == kGivenSimilarities) {
                store_given_tile(store, work.index, cluster, tile_buffers);
            } else {
                store_tile<float>(store, work.index, cluster, tile_buffers);
            }
        }
        int32_t* arrivals = work.sample.counter(args, kCounterArrivals);
        if (arrive_last(arrivals, work.tiles * args.cluster, &buffers.flag)) pick_all<Rule>(args);
    }
    scheduler.leave();
}

}  // namespace idsel::cuda
