// Marks functions that CPU and GPU code share.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define IDSEL_HD __host__ __device__ __forceinline__
#else
#define IDSEL_HD inline
#endif
