// What rules compute with, in forms that every compiler turns into vector code.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common/host_device.h"

namespace idsel {

// fmaxf and fminf, which a compiler for CPUs calls as functions. The first operand where the other is NaN.
IDSEL_HD float larger(float a, float b) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
    return fmaxf(a, b);
#else
    return b > a ? b : a;
#endif
}
IDSEL_HD float smaller(float a, float b) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
    return fminf(a, b);
#else
    return b < a ? b : a;
#endif
}

// 2^exponent, of -126 to 127.
IDSEL_HD float power_of_two(int32_t exponent) {
    const int32_t bits = (exponent + 127) * (1 << 23);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// e^x of x <= 0, exact for 0; at most two units in the last place off. The same bits on every CPU.
IDSEL_HD float exponential(float x) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
    return expf(x);
#else
    // x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts of which the first has few bits; e^r by Cephes's
    // polynomial.
    const float bounded = x < -104.0f ? -104.0f : x;  // where the result is 0
    constexpr float kToInteger = 0x1.8p23f;
    const float n = (bounded * 0x1.715476p0f + kToInteger) - kToInteger;
    const float r = (bounded - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
    float sum = 1.9875691500e-4f;
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    const float power = sum * (r * r) + r + 1.0f;
    // In two steps, because 2^n may be no normal number.
    const auto exponent = static_cast<int32_t>(n);
    const int32_t half = exponent >> 1;
    return power * power_of_two(half) * power_of_two(exponent - half);
#endif
}

}  // namespace idsel
