// Reductions over a CTA.
#pragma once

#include <math.h>

#include "cuda/kernel_args.h"
#include "cuda/order_key.cuh"

namespace idsel::cuda {

struct ReduceBuffers {
    uint64_t keys[2][kWarps];  // two, so that one barrier a reduction is enough
    int32_t sums[kWarps];
};

// The largest key of a warp; and whether it is this lane's, the one of the lowest index among equal ones.
struct WarpTop {
    uint32_t key;
    bool mine;
};
// kLaneOrder: a lower lane has a lower index.
template <bool kLaneOrder>
IDSEL_DEVICE WarpTop warp_top(uint32_t key, int index) {
    const uint32_t top = arch::redux_max(key);
    if constexpr (kLaneOrder) {
        const uint32_t lower_lanes = (1u << arch::lane()) - 1;
        const uint32_t lower_equal = arch::vote_ballot(key == top) & lower_lanes;
        return {top, key == top && lower_equal == 0};
    }
    const uint32_t backwards = key == top ? ~static_cast<uint32_t>(index) : 0u;
    const uint32_t lowest = arch::redux_max(backwards);
    return {top, key == top && backwards == lowest};
}

// Sums of several values, each over the lanes of a half warp: of neighbours, then of neighbouring pairs, and so on.
// Lane i gets that of value i % kCount, so that lanes share the additions.
template <int kCount>
IDSEL_DEVICE float half_warp_sums(float (&values)[kCount]) {
    int lanes = 1;
    IDSEL_UNROLL
    for (int count = kCount; count > 1; count /= 2, lanes *= 2) {
        const bool upper = (arch::lane() & lanes) != 0;
        IDSEL_UNROLL
        for (int i = 0; i < count / 2; ++i) {
            const float even = values[2 * i], odd = values[2 * i + 1];
            values[i] = (upper ? odd : even) + arch::shfl_xor(upper ? even : odd, lanes);
        }
    }
    IDSEL_UNROLL
    for (; lanes < 16; lanes *= 2) values[0] += arch::shfl_xor(values[0], lanes);
    return values[0];
}

// The largest of the CTA's keys, and of equal ones that of the lowest index, to all its threads. `turn` alternates
// between 0 and 1 from call to call. Orders what was written before it before what is read after it.
template <bool kLaneOrder>
IDSEL_DEVICE uint64_t cta_max(uint32_t key, int index, ReduceBuffers* buffers, int turn) {
    uint64_t* keys = buffers->keys[turn];
    if (warp_top<kLaneOrder>(key, index).mine) keys[arch::warp()] = ranked(key, index);
    arch::cta_sync();
    uint64_t best[kWarps];
    IDSEL_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) best[warp] = keys[warp];
    IDSEL_UNROLL
    for (int step = kWarps / 2; step > 0; step /= 2) {
        IDSEL_UNROLL
        for (int warp = 0; warp < step; ++warp) {
            best[warp] = best[warp] < best[warp + step] ? best[warp + step] : best[warp];
        }
    }
    return best[0];
}

// Sum of `value` over the threads up to and including this one.
IDSEL_DEVICE int32_t cta_sum_up_to(int32_t value, ReduceBuffers* buffers) {
    const int lane = arch::lane(), warp = arch::warp();
    IDSEL_UNROLL
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int32_t other = arch::shfl_up(value, lanes);
        if (lane >= lanes) value += other;
    }
    arch::cta_sync();  // nobody reads the sums of an earlier call any more
    if (lane == 31) buffers->sums[warp] = value;
    arch::cta_sync();
    for (int before = 0; before < warp; ++before) value += buffers->sums[before];
    return value;
}

// Sum over all threads.
IDSEL_DEVICE int32_t cta_sum(int32_t value, ReduceBuffers* buffers) {
    cta_sum_up_to(value, buffers);
    int32_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += buffers->sums[warp];
    return sum;
}

}  // namespace idsel::cuda
