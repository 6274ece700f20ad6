// Coverage: a priority is a sum over a row of the Gram, which every pick changes.
#pragma once

#include "cuda/tokens.cuh"
#include "rules/rules.h"

namespace idsel::cuda {

class CoverageModel {
  public:
    IDSEL_DEVICE explicit CoverageModel(const Coverage& rule) : rule_(rule) {}

    IDSEL_DEVICE void start(Loop& loop) {
        const Tokens& tokens = loop.tokens;
        for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
            const bool counts = loop.competes(j);
            tokens.state[j] = counts ? 0.0f : INFINITY;  // nothing is gained there
            tokens.extra[j] = counts ? rule_.saliency(tokens.importance[j]) : 0.0f;
        }
        find_gains(loop);
    }

    IDSEL_DEVICE const float* take(Loop& loop, int pick, float, int) {
        const Tokens& tokens = loop.tokens;
        for (int i = port::thread(); i < loop.n(); i += kBlockThreads) {
            if (tokens.state[i] < INFINITY) {
                tokens.state[i] = rule_.cover(tokens.state[i], similarity(loop, pick, i));
            }
        }
        find_gains(loop);
        return nullptr;
    }

    IDSEL_DEVICE float update(Loop& loop, int j, float) { return loop.tokens.priority[j]; }

  private:
    IDSEL_DEVICE float similarity(const Loop& loop, int i, int j) const {
        const Tokens& tokens = loop.tokens;
        if (i == j) return tokens.scale[i] > 0.0f ? 1.0f : 0.0f;
        return cosine(loop.row(i)[j], tokens.scale[i], tokens.scale[j]);
    }

    // Priorities of all open tokens, a warp to each.
    IDSEL_DEVICE void find_gains(Loop& loop) {
        const Tokens& tokens = loop.tokens;
        port::barrier();  // covers and statuses of all tokens are there
        for (int j = port::thread() / 32; j < loop.n(); j += kWarps) {
            if (!loop.competes(j)) continue;
            float gain = 0.0f;
            for (int i = port::thread() % 32; i < loop.n(); i += 32) {
                if (tokens.state[i] < INFINITY) gain += rule_.uncovered(similarity(loop, j, i), tokens.state[i]);
            }
            gain = warp_sum(gain);
            if (port::thread() % 32 == 0) tokens.priority[j] = rule_.priority(gain, tokens.extra[j]);
        }
        port::barrier();  // their owners read them
    }

    Coverage rule_;
};

}  // namespace idsel::cuda
