// Coverage: a priority is a sum over a row of the Gram, which every pick changes.
#pragma once

#include "cuda/tokens.cuh"
#include "rules/rules.h"

namespace idsel::cuda {

IDSEL_DEVICE float stored_similarity(const Loop& loop, int i, int j) {
    const Tokens& tokens = loop.tokens;
    if (i == j) return tokens.scale[i] > 0.0f ? 1.0f : 0.0f;
    return cosine(loop.row(i)[j], tokens.scale[i], tokens.scale[j]);
}

// Priorities of the open ones among the tokens from `begin` to `end`, a warp to each.
IDSEL_DEVICE void find_gains(const Loop& loop, const Coverage& rule, int begin, int end) {
    const Tokens& tokens = loop.tokens;
    for (int j = begin + port::thread() / 32; j < end; j += kWarps) {
        if (!loop.competes(j)) continue;
        float gain = 0.0f;
        for (int i = port::thread() % 32; i < loop.n(); i += 32) {
            if (tokens.state[i] < INFINITY) gain += rule.uncovered(stored_similarity(loop, j, i), tokens.state[i]);
        }
        gain = warp_sum(gain);
        if (port::thread() % 32 == 0) tokens.priority[j] = rule.priority(gain, tokens.extra[j]);
    }
}

class CoverageModel {
  public:
    IDSEL_DEVICE explicit CoverageModel(const Coverage& rule) : rule_(rule) {}

    IDSEL_DEVICE Phase prepare(Loop& loop) {
        const Tokens& tokens = loop.tokens;
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            const bool counts = loop.competes(j);
            tokens.state[j] = counts ? 0.0f : INFINITY;  // nothing is gained there
            tokens.extra[j] = counts ? rule_.saliency(tokens.importance[j]) : 0.0f;
        }
        return Phase::kGains;
    }
    IDSEL_DEVICE void start(Loop&) {}

    IDSEL_DEVICE Phase take(Loop& loop, int pick, float, int) {
        const Tokens& tokens = loop.tokens;
        for (int i = port::thread(); i < loop.n(); i += kBlockThreads) {
            if (tokens.state[i] < INFINITY) {
                tokens.state[i] = rule_.cover(tokens.state[i], stored_similarity(loop, pick, i));
            }
        }
        return Phase::kGains;
    }

    IDSEL_DEVICE void do_alone(Loop& loop, Phase) {
        port::barrier();  // covers and tiers of all tokens are there
        find_gains(loop, rule_, 0, loop.n());
        port::barrier();  // their owners read them
    }

    IDSEL_DEVICE float update(Loop& loop, int j, float) { return loop.tokens.priority[j]; }
    IDSEL_DEVICE float kept() const { return 0.0f; }
    IDSEL_DEVICE void restore(float) {}

  private:
    Coverage rule_;
};

}  // namespace idsel::cuda
