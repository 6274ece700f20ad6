// DPP: one number per token, and one per token and earlier pick.
#pragma once

#include "cuda/token_state.cuh"

namespace idsel::cuda {

class HistoryState {
  public:
    // `history` has the components of all tokens along each pick, a row of `pitch` numbers for each.
    IDSEL_DEVICE HistoryState(const Context& context, float* history)
        : rule_(*reinterpret_cast<const DPP*>(context.args.rule)),
          history_(history),
          pitch_(static_cast<int>(round_up(context.n(), 4))) {}

    template <class Tokens, class Nearest>
    IDSEL_DEVICE void start(Context& context, Tokens& tokens, Nearest&&) {
        tokens.for_each([&](int i, int j) {
            if (!tokens.competes(i)) return;
            const bool has_direction = context.args.square[context.sample.row + j] > 0.0f;
            tokens.state(i) = has_direction ? rule_.start(rule_.quality(tokens.importance(i))) : 0.0f;
            tokens.key(i) = order_key(tokens.state(i));
        });
    }

    static constexpr bool kNeedsBest = true;
    static constexpr bool kHasHistory = true;
    template <class Tokens>
    IDSEL_DEVICE void rank(Tokens& tokens, uint32_t largest) {
        rank_floor_ = rule_.rank_floor(largest == 0 ? 0.0f : value_of(largest));
        tokens.for_each([&](int i, int) {
            if (tokens.competes(i)) tokens.key(i) = order_key(rule_.priority(tokens.state(i), rank_floor_));
        });
    }

    template <class Tokens>
    IDSEL_DEVICE Best best(Context&, Tokens& tokens) {
        return best_of_thread(tokens, [&](int slot) { return tokens.key(slot); });
    }
    IDSEL_DEVICE bool has_priority(uint32_t key) const { return key != 0; }

    // Keys are exact.
    template <class Tokens>
    IDSEL_DEVICE void refresh(Context&, Tokens&, int, int) {}
    static constexpr float kNoPriority = DPP::kNoPriority;

    template <class Tokens>
    IDSEL_DEVICE void after_first(Tokens&, float) {}
    IDSEL_DEVICE bool changes(int, float) const { return true; }

    template <class Tokens>
    IDSEL_DEVICE void absorb(Context& context, Tokens& tokens, const Row& row, int picks, int pick, float score) {
        const auto weights = tokens.load(row);
        const float quality = rule_.quality(clamp_importance(importance_of(context.args, context.sample, pick)));
        const int step = picks - 1;
        tokens.extend_history(history_, pitch_, step, pick, [&](int i, int, float overlap) {
            // Without a branch, so that the root of `score` is formed once for all tokens of a thread.
            const float e = rule_.component(quality, weights.v[i], rule_.quality(tokens.importance(i)), overlap, score);
            const float left = rule_.absorb(tokens.state(i), e);
            // Without a priority the picks span it, and for good.
            const bool has_priority = tokens.key(i) != 0 && tokens.competes(i);
            tokens.state(i) = has_priority ? left : tokens.state(i);
            tokens.key(i) = has_priority ? order_key(rule_.priority(left, rank_floor_)) : 0u;
            return e;  // of a token that competes no more, nobody asks for it
        });
    }

    // What it carries from phase to phase.
    IDSEL_DEVICE float kept() const { return rank_floor_; }
    IDSEL_DEVICE void restore(float kept) { rank_floor_ = kept; }

    // What two tokens have in common along so many picks, in the order in which absorb() adds it up.
    IDSEL_DEVICE float overlap(int picks, int i, int j) const {
        float overlap = 0.0f;
        IDSEL_UNROLL_BY(8)
        for (int t = 0; t < picks; ++t) {
            const float* row = history_ + static_cast<int64_t>(t) * pitch_;
            overlap = fmaf(arch::ld_global_cg(row + i), arch::ld_global_cg(row + j), overlap);
        }
        return overlap;
    }

    IDSEL_DEVICE bool raises(int, float, bool) const { return false; }
    template <class Tokens>
    IDSEL_DEVICE bool rises(const Tokens&, int, uint32_t) const {
        return false;
    }

  private:
    DPP rule_;
    float* history_;
    int pitch_;
    float rank_floor_ = 0;
};

}  // namespace idsel::cuda
