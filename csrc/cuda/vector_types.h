// Elements and vectors that device code and its host build have in common.
#pragma once

#include <cstdint>

namespace idsel::cuda {

// Elements of the features as bits.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// 8 and 16 bytes that are loaded and stored at once.
struct alignas(16) Float4 {
    float v[4];
};
struct alignas(8) Float2 {
    float v[2];
};
struct alignas(16) Word4 {
    uint32_t v[4];
};

}  // namespace idsel::cuda
