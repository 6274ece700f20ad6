// Coverage: a priority is a sum over a row of the Gram, which every pick lowers. So a sum of earlier picks is a bound,
// and only tokens whose bound could still win are summed again (Minoux's accelerated greedy). Sums are formed in the
// order of run_of(), where a smaller term never makes a larger sum, so the bound holds for the rounded sums too.
#pragma once

#include "cuda/row_state.cuh"

namespace idsel::cuda {

// Before the first best_by_gains().
IDSEL_DEVICE void begin_best(Context& context) {
    if (arch::thread() < 2) context.buffers->best_fresh[arch::thread()] = 0;
    arch::cta_sync();
}

// The best of this thread's tokens: each warp sums gains until the best of its own is fresh, or cannot win.
// gain_of(token) is by a warp, priority(gain, slot) the slot's.
template <class Tokens, class GainOf, class Priority>
IDSEL_DEVICE Best best_by_gains(Context& context, Tokens& tokens, GainOf&& gain_of, Priority&& priority) {
    constexpr uint32_t kFresh = 1u << 31, kCannotWin = 1u << 30;  // beside a token
    static_assert(kMaxTokens < kCannotWin);
    uint32_t* best_fresh = &context.buffers->best_fresh[context.turn];
    if (arch::thread() == 0) context.buffers->best_fresh[context.turn ^ 1] = 0;  // the next pick's
    for (;;) {
        const Best mine = best_of_thread(tokens, [&](int slot) { return tokens.key(slot); });
        const WarpTop top = warp_top<Tokens::kLaneOrder>(mine.key, mine.token);
        if (top.key == 0) return mine;
        bool is_fresh = false;
        tokens.at(mine.slot, [&](int slot) { is_fresh = tokens.fresh(slot); });
        // Another warp may be changing it: what one lane has seen counts for all.
        const bool cannot_win = mine.key < arch::ld_volatile(best_fresh);
        const uint32_t flags = (is_fresh ? kFresh : 0u) | (cannot_win ? kCannotWin : 0u);
        const int owner = arch::find_first_set(arch::vote_ballot(top.mine));
        const uint32_t of_owner = arch::shfl(static_cast<uint32_t>(mine.token) | flags, owner);
        if ((of_owner & kFresh) != 0) {
            if (top.mine) arch::red_max(best_fresh, top.key);
            return mine;
        }
        if ((of_owner & kCannotWin) != 0) return mine;
        const float gain = gain_of(static_cast<int>(of_owner));
        if (!top.mine) continue;
        tokens.at(mine.slot, [&](int slot) {
            tokens.key(slot) = order_key(priority(gain, slot));
            tokens.set_fresh(slot);
        });
    }
}

// Sums the gain of one token, if its key is not exact; this thread's slot has it unless that is -1.
template <class Tokens, class GainOf, class Priority>
IDSEL_DEVICE void refresh_gain(Tokens& tokens, int slot, int token, GainOf&& gain_of, Priority&& priority) {
    bool stale = false;
    if (slot >= 0) tokens.at(slot, [&](int own) { stale = tokens.key(own) != 0 && !tokens.fresh(own); });
    if (arch::vote_ballot(stale) == 0) return;
    const float gain = gain_of(token);
    if (!stale) return;
    tokens.at(slot, [&](int own) {
        tokens.key(own) = order_key(priority(gain, own));
        tokens.set_fresh(own);
    });
}

class CoverageState {
  public:
    // `cover`: a number for each token, in shared memory or the workspace; a multiple of four, as rows have.
    IDSEL_DEVICE CoverageState(const Context& context, float* cover)
        : rule_(*reinterpret_cast<const Coverage*>(context.args.rule)), cover_(cover) {}

    template <class Tokens, class Nearest>
    IDSEL_DEVICE void start(Context& context, Tokens& tokens, Nearest&&) {
        const int padded = static_cast<int>(round_up(context.n(), 4));
        tokens.for_each([&](int i, int j) {
            if (j >= padded) return;
            cover_[j] = INFINITY;  // nothing is gained there
            if (!tokens.competes(i)) return;
            cover_[j] = 0.0f;
            tokens.state(i) = rule_.saliency(tokens.importance(i));
            const float gain = join_runs(context, j, 0.0f, [](float a, float b) { return a + b; });
            tokens.key(i) = order_key(rule_.priority(gain, tokens.state(i)));
            tokens.set_fresh(i);
        });
        for (int j = context.n() + arch::thread(); j < padded; j += kCtaThreads) cover_[j] = INFINITY;
        begin_best(context);
    }

    template <class Tokens>
    IDSEL_DEVICE Best best(Context& context, Tokens& tokens) {
        return best_by_gains(
            context, tokens, [&](int token) { return gain_of_token(context, token); },
            [&](float gain, int slot) { return rule_.priority(gain, tokens.state(slot)); });
    }
    IDSEL_DEVICE bool has_priority(uint32_t key) const { return key != 0; }

    template <class Tokens>
    IDSEL_DEVICE void refresh(Context& context, Tokens& tokens, int slot, int token) {
        refresh_gain(
            tokens, slot, token, [&](int of) { return gain_of_token(context, of); },
            [&](float gain, int own) { return rule_.priority(gain, tokens.state(own)); });
    }
    static constexpr float kNoPriority = Coverage::kNoPriority;

    template <class Tokens>
    IDSEL_DEVICE void after_first(Tokens&, float) {}
    IDSEL_DEVICE bool changes(int, float) const { return true; }

    template <class Tokens>
    IDSEL_DEVICE void absorb(Context& context, Tokens& tokens, const Row& row, int, int, float) {
        const auto weights = tokens.load(row);
        tokens.clear_fresh();
        tokens.for_each([&](int i, int j) {
            if (j < context.n()) cover_[j] = rule_.cover(cover_[j], weights.v[i]);
            // Less gain may be worth more: then the bound is that of none.
            const uint32_t of_no_gain = order_key(rule_.priority(0.0f, tokens.state(i)));
            const uint32_t bound = rule_.rises_with_gain(tokens.state(i)) ? tokens.key(i) : of_no_gain;
            tokens.key(i) = tokens.competes(i) && tokens.key(i) != 0 ? bound : 0u;
        });
        arch::cta_sync();
    }

    static constexpr bool kNeedsBest = false;
    template <class Tokens>
    IDSEL_DEVICE void rank(Tokens&, uint32_t) {}

  private:
    IDSEL_DEVICE float gain_of_token(Context& context, int token) const {
        const Row row = context.row(token);
        ++context.rows_read_by_warp;
        return gain_of(row.base + row.offset, context.n());
    }

    // What a token would add, given its similarities to all; by a warp, which has 1024 of them on their way.
    IDSEL_DEVICE float gain_of(const float* row, int n) const {
        constexpr int kLoads = 8, kPerLoad = 2 * kTile;  // four numbers a lane
        const int first = arch::lane() * 4;
        float gain = 0.0f;
        IDSEL_UNROLL_BY(1)
        for (int from = first; from < n + first; from += kLoads * kPerLoad) {
            // Zeros where there are none: they cover nothing, and what may be undefined would seem to be in use
            // wherever this is called from.
            Float4 c[kLoads] = {};
            IDSEL_UNROLL
            for (int at = 0; at < kLoads; ++at) {
                const int j = from + at * kPerLoad;
                if (j < n) c[at] = arch::ld_global_cg(reinterpret_cast<const Float4*>(row + j));
            }
            float sums[kLoads];
            IDSEL_UNROLL
            for (int at = 0; at < kLoads; ++at) {
                const int j = from + at * kPerLoad;
                const Float4 cover = arch::ld_any(reinterpret_cast<const Float4*>(cover_ + (j < n ? j : 0)));
                float v[4];
                IDSEL_UNROLL
                for (int e = 0; e < 4; ++e) v[e] = rule_.uncovered(c[at].v[e], cover.v[e]);
                sums[at] = (v[0] + v[1]) + (v[2] + v[3]);
            }
            const float sum = half_warp_sums(sums);
            IDSEL_UNROLL
            for (int run = 0; run < 2 * kLoads; ++run) gain += arch::shfl(sum, run / 2 + run % 2 * 16);
        }
        return gain;
    }

    Coverage rule_;
    float* cover_;
};

}  // namespace idsel::cuda
