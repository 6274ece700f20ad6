// What the loop keeps of each token, and how similar two tokens are.
#pragma once

#include <math.h>

#include "cuda/sample.cuh"

namespace idsel::cuda {

enum Status : uint8_t {
    kAbsent = 0,    // masked
    kExists = 1,    // may be picked, but does not compete: importance or features are not usable
    kCompetes = 2,  // and counts as a neighbour
    kPicked = 3,
};

// Thread t owns the tokens t, t + kBlockThreads, ...; arrays of n numbers.
struct Tokens {
    float* state;       // of the rule
    float* priority;    // and once it is picked, the score
    float* importance;  // at most the largest finite number
    float* scale;       // 1 / norm, 0 for a zero row
    float* extra;
    uint8_t* status;
};

// Everything the greedy loop of one sample works on.
struct Loop {
    const KernelArgs& args;
    const Sample& sample;
    const Tokens& tokens;
    Control* control;
    int turn;  // of block_max

    IDSEL_DEVICE int n() const { return sample.n; }
    IDSEL_DEVICE bool competes(int j) const { return tokens.status[j] == kCompetes; }
    // Dot products of token i with all, where the workspace has the whole Gram.
    IDSEL_DEVICE const float* row(int i) const { return args.gram + (sample.row + i) * args.gram_width; }
    IDSEL_DEVICE Desk& desk() const { return args.desks[sample.local]; }
    IDSEL_DEVICE uint64_t best(uint64_t key) {
        turn ^= 1;
        return block_max(key, control, turn);
    }
};

// MaxMin: the similarity of a token to the nearest other one that competes, as an integer in the order of floats.
IDSEL_DEVICE uint32_t* nearest_of(const Loop& loop) { return reinterpret_cast<uint32_t*>(loop.tokens.extra); }

// c_ij from a dot product and the reciprocal norms. Their product may leave the range where they do not.
IDSEL_DEVICE float cosine(float dot, float scale_i, float scale_j) {
    const float scale = scale_i * scale_j;
    const float c = scale > 0x1p-120f && scale < 0x1p120f ? dot * scale : dot * scale_i * scale_j;
    return c > 1.0f ? 1.0f : c < -1.0f ? -1.0f : c;
}

IDSEL_DEVICE Tokens tokens_of(const KernelArgs& args, const Sample& sample, unsigned char* shared) {
    float* numbers = args.numbers == nullptr ? reinterpret_cast<float*>(shared) : args.numbers + sample.row;
    const int64_t stride = args.numbers == nullptr ? sample.n : args.rows;
    uint8_t* status =
        args.numbers == nullptr ? shared + int64_t{kTokenNumbers} * 4 * sample.n : args.status + sample.row;
    return {numbers, numbers + stride, numbers + 2 * stride, numbers + 3 * stride, numbers + 4 * stride, status};
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
        // Both false for NaN.
        const bool usable = importance > -INFINITY && square < INFINITY;
        loop.tokens.status[j] = !selectable(args, loop.sample, token) ? kAbsent : usable ? kCompetes : kExists;
        loop.tokens.importance[j] = usable ? fminf(importance, 0x1.fffffep127f) : -INFINITY;
        loop.tokens.scale[j] = usable && square > 0.0f ? 1.0f / sqrtf(square) : 0.0f;
    }
}

}  // namespace idsel::cuda
