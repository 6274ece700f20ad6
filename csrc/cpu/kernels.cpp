// Which instruction set this machine has.
#include "cpu/kernels.h"

#include <initializer_list>

namespace idsel::cpu {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

const Kernels* best() {
    static const Kernels* const found = [] {
        for (int32_t isa : {IDSEL_ISA_AVX512, IDSEL_ISA_AVX2, IDSEL_ISA_NEON}) {
            if (const Kernels* table = kernels(isa)) return table;
        }
        return portable_kernels();
    }();
    return found;
}

}  // namespace

const Kernels* kernels(int32_t isa) {
    switch (isa) {
        case IDSEL_ISA_AUTO:
            return best();
        case IDSEL_ISA_PORTABLE:
            return portable_kernels();
        case IDSEL_ISA_AVX2:
            return has_avx2() ? avx2_kernels() : nullptr;
        case IDSEL_ISA_AVX512:
            return has_avx512() ? avx512_kernels() : nullptr;
        case IDSEL_ISA_NEON:
            return neon_kernels();
        default:
            return nullptr;
    }
}

}  // namespace idsel::cpu
