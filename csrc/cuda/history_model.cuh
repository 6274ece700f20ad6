// DPP: one number per token, and one per token and earlier pick.
#pragma once

#include "cuda/tokens.cuh"
#include "rules/rules.h"

namespace idsel::cuda {

class HistoryModel {
  public:
    IDSEL_DEVICE explicit HistoryModel(const DPP& rule) : rule_(rule) {}

    IDSEL_DEVICE Phase prepare(Loop&) { return Phase::kNone; }
    IDSEL_DEVICE void do_alone(Loop&, Phase) {}

    IDSEL_DEVICE void start(Loop& loop) {
        const Tokens& tokens = loop.tokens;
        uint64_t largest = 0;
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            const bool counts = loop.competes(j) && tokens.scale[j] > 0.0f;
            tokens.state[j] = counts ? rule_.start(quality(loop, j)) : 0.0f;
            const uint64_t key = counts ? key_of(Tier::kHasPriority, tokens.state[j], j) : 0;
            largest = key > largest ? key : largest;
        }
        largest = loop.best(largest);
        rank_floor_ = rule_.rank_floor(largest == 0 ? 0.0f : value_of(largest));
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            tokens.priority[j] = rule_.priority(tokens.state[j], rank_floor_);
        }
    }

    IDSEL_DEVICE Phase take(Loop& loop, int pick, float score, int step) {
        history_ = loop.args.history + loop.sample.row * loop.args.history_depth;
        pick_ = pick;
        step_ = step;
        d_ = score;
        quality_ = quality(loop, pick);
        scale_ = loop.tokens.scale[pick];
        return Phase::kPanel;
    }

    IDSEL_DEVICE float kept() const { return rank_floor_; }
    IDSEL_DEVICE void restore(float kept) { rank_floor_ = kept; }

    IDSEL_DEVICE float update(Loop& loop, int j, float dot) {
        const Tokens& tokens = loop.tokens;
        if (!(tokens.priority[j] > -INFINITY)) return tokens.priority[j];  // spanned, and for good
        const int64_t n = loop.n();
        float overlap = 0.0f;
        IDSEL_UNROLL_BY(4)
        for (int64_t t = 0; t < step_; ++t) overlap = fmaf(history_[t * n + pick_], history_[t * n + j], overlap);
        const float c = cosine(dot, scale_, tokens.scale[j]);
        const float e = rule_.component(quality_, c, quality(loop, j), overlap, d_);
        history_[step_ * n + j] = e;
        tokens.state[j] = rule_.absorb(tokens.state[j], e);
        return rule_.priority(tokens.state[j], rank_floor_);
    }

  private:
    IDSEL_DEVICE float quality(const Loop& loop, int j) const { return rule_.quality(loop.tokens.importance[j]); }

    DPP rule_;
    float* history_ = nullptr;  // (picks, n): e of each token along each pick
    float rank_floor_ = 0;
    int pick_ = 0;
    int64_t step_ = 0;
    float d_ = 0;
    float quality_ = 0;
    float scale_ = 0;
};

}  // namespace idsel::cuda
