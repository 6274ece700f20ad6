// The AVX-512 intrinsics that csrc/cpu/kernels_avx512.cpp uses, as the instruction reference defines them.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace emulated {

struct M512 {
    float lane[16];
};
struct M512i {
    uint32_t lane[16];
};

template <class F>
M512 each(F&& of_lane) {
    M512 result;
    for (int i = 0; i < 16; ++i) result.lane[i] = of_lane(i);
    return result;
}

inline M512 setzero_ps() {
    return each([](int) { return 0.0f; });
}
inline M512 loadu_ps(const float* p) {
    return each([&](int i) { return p[i]; });
}
inline void storeu_ps(float* p, const M512& a) { memcpy(p, a.lane, sizeof a.lane); }
inline M512 add_ps(const M512& a, const M512& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline M512 sub_ps(const M512& a, const M512& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
// The second operand where either is NaN.
inline M512 max_ps(const M512& a, const M512& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline M512 fmadd_ps(const M512& a, const M512& b, const M512& c) {
    return each([&](int i) { return fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
// Four lanes at a time: the lower two groups from a, the upper two from b.
inline M512 shuffle_f32x4(const M512& a, const M512& b, int control) {
    return each([&](int i) {
        const int group = (control >> (2 * (i / 4))) & 3;
        return (i < 8 ? a : b).lane[4 * group + i % 4];
    });
}
inline __m256 castps512_ps256(const M512& a) { return _mm256_loadu_ps(a.lane); }
inline M512i castsi256_si512(__m256i a) {
    M512i result;
    memset(result.lane, 0xa5, sizeof result.lane);  // the upper half is undefined
    memcpy(result.lane, &a, sizeof a);
    return result;
}
inline M512i inserti64x4(M512i a, __m256i b, int half) {
    memcpy(a.lane + 8 * half, &b, sizeof b);
    return a;
}
inline M512 castsi512_ps(const M512i& a) {
    M512 result;
    memcpy(result.lane, a.lane, sizeof a.lane);
    return result;
}
inline M512 cvtph_ps(__m256i a) {
    M512 result;
    _mm256_storeu_ps(result.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(a)));
    _mm256_storeu_ps(result.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
    return result;
}

}  // namespace emulated

#define __m512 emulated::M512
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_add_ps emulated::add_ps
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_shuffle_f32x4 emulated::shuffle_f32x4
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define __m512i emulated::M512i
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_inserti64x4 emulated::inserti64x4
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cvtph_ps emulated::cvtph_ps
