// Rules with one number per token, for which a pick means one row of the Gram.
#pragma once

#include "cuda/tokens.cuh"
#include "rules/rules.h"

namespace idsel::cuda {

// All of the phase, where the whole Gram is there.
IDSEL_DEVICE void find_nearest(Loop& loop) {
    const Tokens& tokens = loop.tokens;
    port::barrier();  // scales and tiers of all tokens are there
    for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
        float nearest = -INFINITY;
        for (int i = 0; i < loop.n(); ++i) {
            if (i == j || !loop.competes(i)) continue;
            nearest = fmaxf(nearest, cosine(loop.row(i)[j], tokens.scale[i], tokens.scale[j]));
        }
        nearest_of(loop)[j] = order_of(nearest);
    }
}

// Leaves a priority only to the given token, or to the first that competes where it cannot be.
IDSEL_DEVICE void keep_only(Loop& loop, long long given) {
    const Tokens& tokens = loop.tokens;
    uint64_t key = 0;
    for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
        const Tier tier = j == given ? Tier::kHasPriority : Tier::kNoPriority;
        const uint64_t mine = loop.competes(j) ? key_of(tier, 0.0f, j) : 0;
        key = mine > key ? mine : key;
    }
    key = loop.best(key);
    const int first = key == 0 ? -1 : index_of(key);
    for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
        if (j != first) tokens.priority[j] = -INFINITY;
    }
}

template <class Rule>
class RowModel {
  public:
    IDSEL_DEVICE explicit RowModel(const Rule& rule) : rule_(rule) {}

    IDSEL_DEVICE Phase prepare(Loop& loop) {
        if (!rule_.needs_nearest()) return Phase::kNone;
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) nearest_of(loop)[j] = order_of(-INFINITY);
        return Phase::kNearest;
    }

    IDSEL_DEVICE void start(Loop& loop) {
        const Tokens& tokens = loop.tokens;
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            const float nearest = rule_.needs_nearest() ? value_of(nearest_of(loop)[j]) : 0.0f;
            tokens.state[j] = rule_.start(tokens.importance[j], nearest);
            tokens.priority[j] = tokens.state[j];
        }
        if (rule_.given_start() >= 0) keep_only(loop, rule_.given_start());
    }

    IDSEL_DEVICE void do_alone(Loop& loop, Phase phase) {
        if (phase == Phase::kNearest) find_nearest(loop);
    }

    IDSEL_DEVICE Phase take(Loop& loop, int pick, float score, int step) {
        begun_ = step > 0;
        // The first update also brings the state into the range of the rule.
        if (loop.args.diagonal_only != 0 || (begun_ && rule_.inert(score))) return Phase::kNone;
        pick_ = pick;
        score_ = score;
        scale_ = loop.tokens.scale[pick];
        visible_ = rule_.visible(step + 1) == step + 1;
        return Phase::kPanel;
    }

    IDSEL_DEVICE float kept() const { return 0.0f; }
    IDSEL_DEVICE void restore(float) {}

    // The priority of a token that competes, after the pick that gave the row.
    IDSEL_DEVICE float update(Loop& loop, int j, float dot) {
        const Tokens& tokens = loop.tokens;
        float state = tokens.state[j];
        if (!begun_ && !rule_.raises(score_)) state = rule_.untouched(tokens.importance[j]);
        const float c = cosine(dot, scale_, tokens.scale[j]);
        state = rule_.suppresses_place(pick_, j) ? -INFINITY : rule_.absorb(state, c, score_);
        tokens.state[j] = state;
        return visible_ ? rule_.priority(state, tokens.importance[j]) : tokens.priority[j];
    }

  private:
    Rule rule_;
    int pick_ = 0;
    float score_ = 0;
    float scale_ = 0;
    bool begun_ = false;    // an earlier pick has been absorbed
    bool visible_ = false;  // priorities take the pick into account
};

}  // namespace idsel::cuda
