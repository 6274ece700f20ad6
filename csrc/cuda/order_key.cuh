// The order of tokens as integers.
#pragma once

#include "cuda/arch.cuh"

namespace idsel::cuda {

// In the order of floats that are not NaN; 0 and -0 are one. Never 0, which is the key of a token that has no priority.
IDSEL_DEVICE uint32_t order_of(float value) {
    const uint32_t bits = arch::float_as_uint(value + 0.0f);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
IDSEL_DEVICE float value_of(uint32_t order) {
    return arch::uint_as_float(order ^ (~static_cast<uint32_t>(static_cast<int32_t>(order) >> 31) | 0x80000000u));
}

// NaN compares false: a priority that is not a number is none.
IDSEL_DEVICE uint32_t order_key(float priority) { return priority > -INFINITY ? order_of(priority) : 0; }

// A key with its token: of equal keys the lowest index is the largest.
IDSEL_DEVICE uint64_t ranked(uint32_t key, int index) {
    return static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(index);
}
IDSEL_DEVICE uint32_t key_of(uint64_t ranked) { return static_cast<uint32_t>(ranked >> 32); }
IDSEL_DEVICE int index_of(uint64_t ranked) { return static_cast<int>(~static_cast<uint32_t>(ranked)); }

}  // namespace idsel::cuda
