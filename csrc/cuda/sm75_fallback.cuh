// What GPUs of compute capability 7.5 have no instruction for. arch.cuh uses it there; a test compares it with the
// instruction's emulation.
#pragma once

#include <cstdint>

namespace idsel::cuda::sm75 {

// `shfl_xor(value, lanes)` exchanges 32 bits.
template <class Shuffle>
IDSEL_DEVICE uint32_t redux_max(uint32_t value, Shuffle&& shfl_xor) {
    IDSEL_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const uint32_t other = shfl_xor(value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

}  // namespace idsel::cuda::sm75
