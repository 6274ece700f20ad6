// AVX2 with FMA and F16C. Compiled with those flags; only called where the machine has them.
#include "cpu/kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#define IDSEL_ISA_NAMESPACE avx2
#include "cpu/kernels_impl.h"

namespace idsel::cpu {
namespace avx2 {

struct Vec {
    static constexpr int kTileA = 2;  // 12 sums, 2 rows of a and 1 of b: 15 of 16 registers
    static constexpr int kTileB = 3;

    static constexpr int kRows = 4;

    __m256 low, high;

    static Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Vec load(const Half* p) { return {half(p), half(p + 8)}; }
    static Vec load(const BFloat16* p) {
        const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        const __m256i odd = _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(odd)};
    }
    static Vec load_part(const float* p, int64_t count) {
        // -1 for each of the first `count` of 16.
        static constexpr int32_t kFirst[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
        const auto* masks = reinterpret_cast<const __m256i*>(kFirst + kLanes - count);
        return {_mm256_maskload_ps(p, _mm256_loadu_si256(masks)),
                _mm256_maskload_ps(p + 8, _mm256_loadu_si256(masks + 1))};
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, low);
        _mm256_storeu_ps(p + 8, high);
    }

    static Vec larger(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static Vec multiply_add(Vec a, Vec b, Vec c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static Vec add_excess(Vec a, Vec b, Vec c) {
        const __m256 zero = _mm256_setzero_ps();
        return {_mm256_add_ps(c.low, _mm256_max_ps(_mm256_sub_ps(a.low, b.low), zero)),
                _mm256_add_ps(c.high, _mm256_max_ps(_mm256_sub_ps(a.high, b.high), zero))};
    }

    // One half after the other, so that the operands of only one are alive.
    template <class V>
    static void tile_step(const float* a, const float* b, int64_t stride, V (&sums)[2][3]) {
        {
            const __m256 a0 = _mm256_loadu_ps(a), a1 = _mm256_loadu_ps(a + stride);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
                const __m256 bj = once(b + j * stride);
                sums[0][j].low = _mm256_fmadd_ps(a0, bj, sums[0][j].low);
                sums[1][j].low = _mm256_fmadd_ps(a1, bj, sums[1][j].low);
            }
        }
        const __m256 a0 = _mm256_loadu_ps(a + 8), a1 = _mm256_loadu_ps(a + stride + 8);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
            const __m256 bj = once(b + j * stride + 8);
            sums[0][j].high = _mm256_fmadd_ps(a0, bj, sums[0][j].high);
            sums[1][j].high = _mm256_fmadd_ps(a1, bj, sums[1][j].high);
        }
    }

    float sum() const {
        const __m256 eight = _mm256_add_ps(low, high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    float largest() const {
        const __m256 eight = _mm256_max_ps(low, high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    // sum() of each: vectors are added in halves two by two, so that each addition serves all lanes.
    static void sums(const Vec (&v)[kRows], float* out) {
        __m256 pair[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const __m256 a = _mm256_add_ps(v[2 * i].low, v[2 * i].high),
                         b = _mm256_add_ps(v[2 * i + 1].low, v[2 * i + 1].high);
            pair[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        }
        // The rows 0 and 2 in the lower half, 1 and 3 in the upper one: two lanes of each.
        const __m256 two =
            _mm256_add_ps(_mm256_shuffle_ps(pair[0], pair[1], 0x44), _mm256_shuffle_ps(pair[0], pair[1], 0xEE));
        const __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xDD));
        _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
    }

  private:
    // Loaded once: the compiler would rather load it anew for each product, and loads are what limits the tile.
    static __m256 once(const float* p) {
        __m256 value = _mm256_loadu_ps(p);
        asm("" : "+x"(value));
        return value;
    }
    static __m256 half(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
};

}  // namespace avx2

const Kernels* avx2_kernels() {
    static constexpr Kernels kTable = avx2::table<avx2::Vec>(IDSEL_ISA_AVX2, "AVX2");
    return &kTable;
}

}  // namespace idsel::cpu

#else

const idsel::cpu::Kernels* idsel::cpu::avx2_kernels() { return nullptr; }

#endif
