// What all rules take from a token: its importance within range, and how similar it is to another.
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace idsel {

// False for NaN.
IDSEL_HD bool usable_importance(float importance) { return importance > -INFINITY; }
// Of a token whose importance is usable: +inf counts as the largest finite number, so that priorities stay finite.
IDSEL_HD float clamp_importance(float importance) {
    constexpr float kLargest = 0x1.fffffep127f;
    return importance < kLargest ? importance : kLargest;
}

IDSEL_HD float clamp_cosine(float c) { return c > 1.0f ? 1.0f : c < -1.0f ? -1.0f : c; }

// c_ij that is given, in place of features: within range like a cosine, and a number.
IDSEL_HD float given_similarity(float c) {
    const float at_least = c > -1.0f ? c : -1.0f;  // NaN compares false
    return at_least < 1.0f ? at_least : 1.0f;
}

// c_ij from a dot product and the reciprocal norms; symmetric in i and j. The product of two reciprocals may leave the
// range of float32 where that of all three does not.
IDSEL_HD float cosine(float dot, float scale_i, float scale_j) {
    const float scale = scale_i * scale_j;
    return clamp_cosine(scale > 0x1p-120f && scale < 0x1p120f ? dot * scale : dot * scale_i * scale_j);
}
IDSEL_HD float cosine(float dot, double scale_i, double scale_j) {
    return clamp_cosine(static_cast<float>(static_cast<double>(dot) * (scale_i * scale_j)));
}

}  // namespace idsel
