// What GPUs of compute capability 7.5 have no instruction for, made of exchanges in a warp. arch.cuh uses it there; a
// test compares it with the instructions' emulation.
#pragma once

#include <math.h>

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

// The product of mma.m16n8k16 in float32, added up in the order of k. The operands are pairs of bfloat16, the upper
// halves of floats; `shfl(value, lane)` gives what a lane has, `as_float` takes bits for a float.
template <class Shuffle, class AsFloat>
IDSEL_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int lane, Shuffle&& shfl,
                               AsFloat&& as_float) {
    const int rows = lane / 4 * 4, columns = lane % 4 * 8;  // the first lanes that have mine
    IDSEL_UNROLL
    for (int k = 0; k < 8; ++k) {  // pairs
        const int half = k / 4, owner = k % 4;
        const uint32_t top = shfl(a[2 * half], rows + owner), bottom = shfl(a[2 * half + 1], rows + owner);
        const uint32_t left = shfl(b[half], columns + owner), right = shfl(b[half], columns + 4 + owner);
        const auto add = [&](auto&& element) {
            d[0] = fmaf(element(top), element(left), d[0]);
            d[1] = fmaf(element(top), element(right), d[1]);
            d[2] = fmaf(element(bottom), element(left), d[2]);
            d[3] = fmaf(element(bottom), element(right), d[3]);
        };
        add([&](uint32_t pair) { return as_float(pair << 16); });
        add([&](uint32_t pair) { return as_float(pair & 0xffff0000u); });
    }
}

}  // namespace idsel::cuda::sm75
