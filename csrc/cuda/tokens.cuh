// What the loop keeps of each token, and how similar two tokens are.
#pragma once

#include <math.h>

#include "cuda/sample.cuh"
#include "rules/tokens.h"

namespace idsel::cuda {

// Thread t owns the tokens t, t + kBlockThreads, ...; arrays of n numbers.
struct Tokens {
    float* state;       // of the rule
    float* priority;    // and once it is picked, the score
    float* importance;  // at most the largest finite number
    float* scale;       // 1 / norm, 0 for a zero row
    float* extra;
    Tier* tier;  // kNoPriority for all that compete: `priority` says whether they have one
};

// Everything the greedy loop of one sample works on.
struct Loop {
    const KernelArgs& args;
    const Sample& sample;
    const Tokens& tokens;
    Control* control;
    int turn;  // of block_max

    IDSEL_DEVICE int n() const { return sample.n; }
    IDSEL_DEVICE bool competes(int j) const { return tokens.tier[j] == Tier::kNoPriority; }
    // Dot products of token i with all, where the workspace has the whole Gram.
    IDSEL_DEVICE const float* row(int i) const { return args.gram + (sample.row + i) * args.gram_width; }
    IDSEL_DEVICE Desk& desk() const { return args.desks[sample.local]; }
    IDSEL_DEVICE uint64_t best(uint64_t key) {
        turn ^= 1;
        return block_max(key, control, turn);
    }
};

// The similarity of a token to the nearest other one that competes, as an integer in the order of floats.
IDSEL_DEVICE uint32_t* nearest_of(const Loop& loop) { return reinterpret_cast<uint32_t*>(loop.tokens.extra); }

IDSEL_DEVICE Tokens tokens_of(const KernelArgs& args, const Sample& sample, unsigned char* shared) {
    float* numbers = args.numbers == nullptr ? reinterpret_cast<float*>(shared) : args.numbers + sample.row;
    const int64_t stride = args.numbers == nullptr ? sample.n : args.rows;
    Tier* tier = args.numbers == nullptr ? reinterpret_cast<Tier*>(shared + int64_t{kTokenNumbers} * 4 * sample.n)
                                         : args.tier + sample.row;
    return {numbers, numbers + stride, numbers + 2 * stride, numbers + 3 * stride, numbers + 4 * stride, tier};
}

IDSEL_DEVICE float importance_of(const KernelArgs& args, const Sample& sample, int64_t token) {
    if (args.importance == nullptr) return 1.0f;
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    return args.importance[batch * args.importance_batch_stride + token * args.importance_token_stride];
}

IDSEL_DEVICE bool selectable(const KernelArgs& args, const Sample& sample, int64_t token) {
    if (args.mask == nullptr) return true;
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    return args.mask[batch * args.mask_batch_stride + token * args.mask_token_stride] != 0;
}

// Fills in what all rules need of this thread's tokens.
IDSEL_DEVICE void read_tokens(Loop& loop) {
    const KernelArgs& args = loop.args;
    for (int j = port::thread(); j < loop.n(); j += kBlockThreads) {
        const int64_t token = loop.sample.first + j;
        const float importance = importance_of(args, loop.sample, token);
        const float square = args.square[loop.sample.row + j];
        const bool usable = usable_importance(importance) && square < INFINITY;  // false for NaN
        const Tier there = usable ? Tier::kNoPriority : Tier::kUnusable;
        loop.tokens.tier[j] = selectable(args, loop.sample, token) ? there : Tier::kNotThere;
        loop.tokens.importance[j] = usable ? clamp_importance(importance) : -INFINITY;
        loop.tokens.scale[j] = usable && square > 0.0f ? 1.0f / sqrtf(square) : 0.0f;
    }
}

}  // namespace idsel::cuda
