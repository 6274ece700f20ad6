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
inline M512 maskz_loadu_ps(uint16_t mask, const float* p) {
    return each([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
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
// In each group: the lower two lanes from a, the upper two from b.
inline M512 shuffle_ps(const M512& a, const M512& b, int control) {
    return each([&](int i) { return (i % 4 < 2 ? a : b).lane[i / 4 * 4 + ((control >> (2 * (i % 4))) & 3)]; });
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
inline M512i castps_si512(const M512& a) {
    M512i result;
    memcpy(result.lane, a.lane, sizeof a.lane);
    return result;
}
// From the last to the first.
inline M512i set_epi64(int64_t a7, int64_t a6, int64_t a5, int64_t a4, int64_t a3, int64_t a2, int64_t a1, int64_t a0) {
    const int64_t numbers[8] = {a0, a1, a2, a3, a4, a5, a6, a7};
    M512i result;
    memcpy(result.lane, numbers, sizeof numbers);
    return result;
}
// Pairs of lanes, wherever the numbers say.
inline M512i permutexvar_epi64(const M512i& places, const M512i& a) {
    M512i result;
    for (int i = 0; i < 8; ++i) memcpy(result.lane + 2 * i, a.lane + 2 * (places.lane[2 * i] & 7), 8);
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
#define __mmask16 uint16_t
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_shuffle_ps emulated::shuffle_ps
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_set_epi64 emulated::set_epi64
#define _mm512_permutexvar_epi64 emulated::permutexvar_epi64
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
