// Marks functions that CPU and GPU code share.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define IDSEL_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Never a function of its own: compiled for one instruction set, it must not be merged with that of another.
#define IDSEL_HD inline __attribute__((always_inline))
#else
#define IDSEL_HD inline
#endif
