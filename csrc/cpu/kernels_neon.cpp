// NEON, as every 64-bit ARM machine has it.
#include "cpu/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define IDSEL_ISA_NAMESPACE neon
#include "cpu/kernels_impl.h"

namespace idsel::cpu {
namespace neon {

struct Vec {
    static constexpr int kTileA = 2;  // 24 sums, 2 rows of a and 1 of b: 27 of 32 registers
    static constexpr int kTileB = 3;

    static constexpr int kRows = 4;

    float32x4_t part[4];

    static Vec zero() { return {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}}; }
    static Vec load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
    static Vec load(const Half* p) {
        const uint16x8_t low = vld1q_u16(&p->bits), high = vld1q_u16(&p->bits + 8);
        return {
            {half(vget_low_u16(low)), half(vget_high_u16(low)), half(vget_low_u16(high)), half(vget_high_u16(high))}};
    }
    static Vec load(const BFloat16* p) {
        const uint32x4_t low = vreinterpretq_u32_u16(vld1q_u16(&p->bits));
        const uint32x4_t high = vreinterpretq_u32_u16(vld1q_u16(&p->bits + 8));
        return {{even(low), even(high), odd(low), odd(high)}};
    }
    static Vec load_part(const float* p, int64_t count) { return copy_part<Vec>(p, count); }
    void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, part[i]);
    }

    static Vec larger(Vec a, Vec b) {
        for (int i = 0; i < 4; ++i) a.part[i] = vmaxnmq_f32(a.part[i], b.part[i]);
        return a;
    }
    static Vec multiply_add(Vec a, Vec b, Vec c) {
        for (int i = 0; i < 4; ++i) c.part[i] = vfmaq_f32(c.part[i], a.part[i], b.part[i]);
        return c;
    }
    static Vec add_excess(Vec a, Vec b, Vec c) {
        for (int i = 0; i < 4; ++i) {
            c.part[i] = vaddq_f32(c.part[i], vmaxnmq_f32(vsubq_f32(a.part[i], b.part[i]), vdupq_n_f32(0)));
        }
        return c;
    }

    template <class V>
    static void tile_step(const float* a, const float* b, int64_t stride, V (&sums)[2][3]) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            const float32x4_t a0 = vld1q_f32(a + 4 * part), a1 = vld1q_f32(a + stride + 4 * part);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
                const float32x4_t bj = vld1q_f32(b + j * stride + 4 * part);
                sums[0][j].part[part] = vfmaq_f32(sums[0][j].part[part], a0, bj);
                sums[1][j].part[part] = vfmaq_f32(sums[1][j].part[part], a1, bj);
            }
        }
    }

    float largest() const { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(part[0], part[1]), vmaxq_f32(part[2], part[3]))); }
    static void sums(const Vec (&v)[kRows], float* out) {
        for (int r = 0; r < kRows; ++r) out[r] = v[r].sum();
    }
    float sum() const {
        const float32x4_t four = vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }

  private:
    static float32x4_t half(uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }
    static float32x4_t even(uint32x4_t pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
    static float32x4_t odd(uint32x4_t pairs) {
        return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
};

}  // namespace neon

const Kernels* neon_kernels() {
    static constexpr Kernels kTable = neon::table<neon::Vec>(IDSEL_ISA_NEON, "NEON");
    return &kTable;
}

}  // namespace idsel::cpu

#else

const idsel::cpu::Kernels* idsel::cpu::neon_kernels() { return nullptr; }

#endif
