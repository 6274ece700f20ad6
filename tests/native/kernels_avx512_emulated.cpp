// csrc/cpu/kernels_avx512.cpp, with the few intrinsics it uses written out lane by lane.
#define IDSEL_EMULATE_AVX512 "avx512_emulated.h"
#define avx512_kernels emulated_avx512_kernels
#define avx512 avx512_emulated
#include "../../csrc/cpu/kernels_avx512.cpp"
