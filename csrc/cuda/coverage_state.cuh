// Coverage: a priority is a sum over a row of the Gram, which every pick lowers. So a sum of earlier picks is a bound,
// and only tokens whose bound could still win are summed again (Minoux's accelerated greedy). Sums are formed in the
// order of run_of(), where a smaller term never makes a larger sum, so the bound holds for the rounded sums too.
#pragma once

#include "cuda/row_state.cuh"

namespace idsel::cuda {

class CoverageState {
  public:
    // `cover` of the tokens, and as much as a row of them is read at once; in shared memory or the workspace.
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
        if (arch::thread() < 2) context.buffers->best_fresh[arch::thread()] = 0;
        arch::cta_sync();
    }

    // Each warp sums gains until the best of its own is fresh, or cannot win.
    template <class Tokens>
    IDSEL_DEVICE Best best(Context& context, Tokens& tokens) {
        uint32_t* best_fresh = &context.buffers->best_fresh[context.turn];
        if (arch::thread() == 0) context.buffers->best_fresh[context.turn ^ 1] = 0;  // the next pick's
        for (;;) {
            const Best mine = best_of_thread(tokens, [&](int slot) { return tokens.key(slot); });
            const WarpTop top = warp_top<Tokens::kLaneOrder>(mine.key, mine.token);
            if (top.key == 0) return mine;
            bool is_fresh = false;
            tokens.at(mine.slot, [&](int slot) { is_fresh = tokens.fresh(slot); });
            if (arch::vote_ballot(top.mine && is_fresh) != 0) {
                if (arch::lane() == 0) arch::red_max(best_fresh, top.key);
                return mine;
            }
            // Another warp may be changing it: lanes have to agree.
            if (arch::vote_ballot(top.key < arch::ld_volatile(best_fresh)) != 0) return mine;
            const int owner = arch::find_first_set(arch::vote_ballot(top.mine));
            const int token = static_cast<int>(arch::shfl(static_cast<uint32_t>(mine.token), owner));
            const float gain = gain_of(context.gram + context.row(token).offset, context.n());
            ++context.rows_read_by_warp;
            if (!top.mine) continue;
            tokens.at(mine.slot, [&](int slot) {
                tokens.key(slot) = order_key(rule_.priority(gain, tokens.state(slot)));
                tokens.set_fresh(slot);
            });
        }
    }

    template <class Tokens>
    IDSEL_DEVICE void after_first(Tokens&, float) {}
    IDSEL_DEVICE bool changes(int, float) const { return true; }

    template <class Tokens>
    IDSEL_DEVICE void absorb(Context& context, Tokens& tokens, const Row& row, int, int, float) {
        const auto weights = tokens.load(row);
        tokens.clear_fresh();
        tokens.for_each([&](int i, int j) {
            if (j < context.n() && cover_[j] < INFINITY) cover_[j] = rule_.cover(cover_[j], weights.v[i]);
            if (!tokens.competes(i)) {
                tokens.key(i) = 0;
            } else if (tokens.key(i) != 0 && !rule_.rises_with_gain(tokens.state(i))) {
                tokens.key(i) = order_key(rule_.priority(0.0f, tokens.state(i)));  // no gain is less
            }
        });
        arch::cta_sync();
    }

    IDSEL_DEVICE bool needs_nearest() const { return false; }
    IDSEL_DEVICE float kept() const { return 0.0f; }
    IDSEL_DEVICE void restore(float) {}

  private:
    // What a token would add, given its similarities to all; by a warp.
    IDSEL_DEVICE float gain_of(const float* row, int n) const {
        float gain = 0.0f;
        IDSEL_UNROLL_BY(4)
        for (int from = 0; from < n; from += 2 * kTile) {
            const int j = from + arch::lane() * 4;
            float sum = 0.0f;
            if (j < n) {
                const Float4 c = arch::ld_global_cg(reinterpret_cast<const Float4*>(row + j));
                const Float4 cover = arch::ld_any(reinterpret_cast<const Float4*>(cover_ + j));
                float v[4];
                IDSEL_UNROLL
                for (int e = 0; e < 4; ++e) v[e] = rule_.uncovered(c.v[e], cover.v[e]);
                sum = (v[0] + v[1]) + (v[2] + v[3]);
            }
            IDSEL_UNROLL
            for (int lanes = 1; lanes < 16; lanes *= 2) sum += arch::shfl_xor(sum, lanes);
            gain += arch::shfl(sum, 0);
            gain += arch::shfl(sum, 16);
        }
        return gain;
    }

    Coverage rule_;
    float* cover_;
};

}  // namespace idsel::cuda
