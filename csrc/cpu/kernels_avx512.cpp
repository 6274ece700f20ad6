// AVX-512F. Compiled with that flag; only called where the machine has it.
#include "cpu/kernels.h"

#if defined(__AVX512F__) || defined(IDSEL_EMULATE_AVX512)

#ifdef IDSEL_EMULATE_AVX512
#include IDSEL_EMULATE_AVX512
#else
#include <immintrin.h>
#endif

#define IDSEL_ISA_NAMESPACE avx512
#include "cpu/kernels_impl.h"

namespace idsel::cpu {
namespace avx512 {

struct Vec {
    static constexpr int kTileA = 4;  // 24 sums, 4 rows of a and 1 of b: 29 of 32 registers
    static constexpr int kTileB = 6;

    static constexpr int kRows = 8;

    __m512 all;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const Half* p) { return {_mm512_cvtph_ps(sixteen(p))}; }
    static Vec load(const BFloat16* p) {
        const __m256i pairs = sixteen(p);
        const __m256i odd = _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
        const __m512i even = _mm512_castsi256_si512(_mm256_slli_epi32(pairs, 16));
        return {_mm512_castsi512_ps(_mm512_inserti64x4(even, odd, 1))};
    }
    static Vec load_part(const float* p, int64_t count) {
        return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
    }
    void store(float* p) const { _mm512_storeu_ps(p, all); }

    static Vec larger(Vec a, Vec b) { return {_mm512_max_ps(a.all, b.all)}; }
    static Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
    static Vec add_excess(Vec a, Vec b, Vec c) {
        return {_mm512_add_ps(c.all, _mm512_max_ps(_mm512_sub_ps(a.all, b.all), _mm512_setzero_ps()))};
    }

    template <class V>
    static void tile_step(const float* a, const float* b, int64_t stride, V (&sums)[4][6]) {
        const Vec rows[4] = {load(a), load(a + stride), load(a + 2 * stride), load(a + 3 * stride)};
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) {
            const Vec bj = load(b + j * stride);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sums[i][j] = multiply_add(rows[i], bj, sums[i][j]);
        }
    }

    float sum() const {
        const __m512 swapped = _mm512_shuffle_f32x4(all, all, 0x4E);  // halves of 8 lanes exchanged
        const __m256 eight = _mm512_castps512_ps256(_mm512_add_ps(all, swapped));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    float largest() const {
        const __m512 eight = _mm512_max_ps(all, _mm512_shuffle_f32x4(all, all, 0x4E));
        const __m256 half = _mm512_castps512_ps256(eight);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    // sum() of each: vectors are added in halves two by two, so that each addition serves all lanes.
    static void sums(const Vec (&v)[kRows], float* out) {
        __m512 half[4], quarter[2];
        // The place of a vector is where the steps below carry it to.
        const auto at = [&v](int place) { return v[2 * (place % 4) + place / 4].all; };
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) half[i] = add_halves<0x44, 0xEE>(at(2 * i), at(2 * i + 1));
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) quarter[i] = add_halves<0x88, 0xDD>(half[2 * i], half[2 * i + 1]);
        const __m512 pair = add_within<0x44, 0xEE>(quarter[0], quarter[1]);
        // Two sums at the beginning of each four lanes.
        const __m512i sums = _mm512_castps_si512(add_within<0x88, 0xDD>(pair, pair));
        const __m512i two_by_two = _mm512_set_epi64(0, 0, 0, 0, 6, 4, 2, 0);
        const __m512i eight = _mm512_permutexvar_epi64(two_by_two, sums);
        _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_castsi512_ps(eight)));
    }

  private:
    // Groups of four lanes, and lanes in each group: those of a, then those of b.
    template <int kFirst, int kSecond>
    static __m512 add_halves(__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, kFirst), _mm512_shuffle_f32x4(a, b, kSecond));
    }
    template <int kFirst, int kSecond>
    static __m512 add_within(__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, kFirst), _mm512_shuffle_ps(a, b, kSecond));
    }
    template <class T>
    static __m256i sixteen(const T* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
};

}  // namespace avx512

const Kernels* avx512_kernels() {
    static constexpr Kernels kTable = avx512::table<avx512::Vec>(IDSEL_ISA_AVX512, "AVX-512");
    return &kTable;
}

}  // namespace idsel::cpu

#else

const idsel::cpu::Kernels* idsel::cpu::avx512_kernels() { return nullptr; }

#endif
