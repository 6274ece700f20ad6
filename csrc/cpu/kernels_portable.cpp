// Any machine. Same lanes and same order as the others; where the machine has no fused multiply-add the products are
// rounded on their own, so that bits may differ from those of the other instruction sets.
#include <math.h>

#include "cpu/kernels.h"

#define IDSEL_ISA_NAMESPACE portable
#include "cpu/kernels_impl.h"

namespace idsel::cpu {
namespace portable {

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
inline float widen(Half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t rest = value.bits & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);  // infinity, NaN
    // Exponent and fraction in place, then the exponent's bias corrected by a product, which also gets subnormals
    // right.
    return from_bits(sign | rest << 13) * from_bits(0x77800000u);  // 2^112
}

struct Vec {
    static constexpr int kTileA = 1;
    static constexpr int kTileB = 2;

    static constexpr int kRows = 4;

    float lane[kLanes];

    static Vec zero() { return {}; }
    template <class T>
    static Vec load(const T* p) {
        Vec v;
        for (int i = 0; i < kLanes; ++i) v.lane[i] = widen(p[i]);
        return v;
    }
    static Vec load(const BFloat16* p) {
        Vec v;
        for (int i = 0; i < kLanes; ++i) v.lane[i / 2 + i % 2 * kLanes / 2] = widen(p[i]);
        return v;
    }
    static Vec load_part(const float* p, int64_t count) { return copy_part<Vec>(p, count); }
    void store(float* p) const { memcpy(p, lane, sizeof lane); }

    static Vec larger(const Vec& a, Vec b) {
        for (int i = 0; i < kLanes; ++i) b.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
        return b;
    }
    static Vec multiply_add(const Vec& a, const Vec& b, Vec c) {
        for (int i = 0; i < kLanes; ++i) {
#ifdef FP_FAST_FMAF
            c.lane[i] = fmaf(a.lane[i], b.lane[i], c.lane[i]);
#else
            c.lane[i] += a.lane[i] * b.lane[i];
#endif
        }
        return c;
    }
    static Vec add_excess(const Vec& a, const Vec& b, Vec c) {
        for (int i = 0; i < kLanes; ++i) {
            const float excess = a.lane[i] - b.lane[i];
            c.lane[i] += excess > 0.0f ? excess : 0.0f;
        }
        return c;
    }

    template <class V>
    static void tile_step(const float* a, const float* b, int64_t stride, V (&sums)[1][2]) {
        const Vec row = load(a);
        for (int j = 0; j < 2; ++j) sums[0][j] = multiply_add(row, load(b + j * stride), sums[0][j]);
    }

    float largest() const {
        float best = lane[0];
        for (int i = 1; i < kLanes; ++i) best = lane[i] > best ? lane[i] : best;
        return best;
    }
    static void sums(const Vec (&v)[kRows], float* out) {
        for (int r = 0; r < kRows; ++r) out[r] = v[r].sum();
    }
    float sum() const {
        Vec v = *this;
        for (int width = 8; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
        }
        return v.lane[0];
    }
};

}  // namespace portable

const Kernels* portable_kernels() {
    static constexpr Kernels kTable = portable::table<portable::Vec>(IDSEL_ISA_PORTABLE, "portable");
    return &kTable;
}

}  // namespace idsel::cpu
