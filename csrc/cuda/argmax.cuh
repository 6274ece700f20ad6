// Reductions over a block.
#pragma once

#include <math.h>

#include "cuda/kernel_args.h"
#include "cuda/port.cuh"
#include "rules/tier.h"

namespace idsel::cuda {

// Part of shared memory behind the tiles, or behind what the loop keeps of its tokens.
struct Control {
    uint64_t keys[2][kWarps];  // two, so that one barrier a reduction is enough
    int32_t sums[kWarps];
    int32_t flag;
    int32_t found;         // the sample of a block's work
    int64_t items_before;  // and the work of the samples before it
    int32_t rows[kTile];   // tokens of a tile's rows, where they are no neighbours
};

constexpr uint64_t kIndexMask = (uint64_t{1} << 30) - 1;

// Integers in the order of floats that are not NaN; 0 and -0 are one.
IDSEL_DEVICE uint32_t order_of(float value) {
    const uint32_t bits = port::float_bits(value + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
IDSEL_DEVICE float value_of(uint32_t order) {
    return port::bits_float((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order);
}

// How a token ranks, as an integer: the tier from kNotThere up, the value, the index backwards. 0: it is not there.
IDSEL_DEVICE uint64_t key_of(Tier tier, float value, int index) {
    const auto above = static_cast<uint64_t>(static_cast<int>(tier) - static_cast<int>(Tier::kNotThere));
    return above << 62 | static_cast<uint64_t>(order_of(value)) << 30 | (kIndexMask - static_cast<uint64_t>(index));
}
IDSEL_DEVICE Tier tier_of(uint64_t key) {
    return static_cast<Tier>(static_cast<int>(key >> 62) + static_cast<int>(Tier::kNotThere));
}
IDSEL_DEVICE float value_of(uint64_t key) { return value_of(static_cast<uint32_t>(key >> 30)); }
IDSEL_DEVICE int index_of(uint64_t key) { return static_cast<int>(kIndexMask - (key & kIndexMask)); }

// The largest key of the block, to all its threads. `turn` alternates between 0 and 1 from call to call. Orders what
// was written before it before what is read after it.
IDSEL_DEVICE uint64_t block_max(uint64_t key, Control* control, int turn) {
    key = port::warp_max(key);
    if (port::thread() % 32 == 0) control->keys[turn][port::thread() / 32] = key;
    port::barrier();
    uint64_t best = control->keys[turn][0];
    IDSEL_UNROLL
    for (int warp = 1; warp < kWarps; ++warp) {
        const uint64_t other = control->keys[turn][warp];
        best = other > best ? other : best;
    }
    return best;
}

// The sum over the warp, to all its lanes, always in the same order.
IDSEL_DEVICE float warp_sum(float value) {
    IDSEL_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) value += port::shuffle_xor(value, lanes);
    return value;
}

// Sum of `value` over the threads up to and including this one.
IDSEL_DEVICE int32_t block_sum_up_to(int32_t value, Control* control) {
    const int lane = port::thread() % 32, warp = port::thread() / 32;
    IDSEL_UNROLL
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int32_t other = port::shuffle_up(value, lanes);
        if (lane >= lanes) value += other;
    }
    port::barrier();  // nobody reads the sums of an earlier call any more
    if (lane == 31) control->sums[warp] = value;
    port::barrier();
    for (int before = 0; before < warp; ++before) value += control->sums[before];
    return value;
}

}  // namespace idsel::cuda
