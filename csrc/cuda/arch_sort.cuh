// A sort by a CTA. Apart from arch.cuh because the headers of CUB take long to read.
#pragma once

#include "cuda/arch.cuh"

#if defined(__CUDACC__)

#include <cub/block/block_radix_sort.cuh>

#include "cuda/kernel_args.h"

namespace idsel::cuda::arch {

template <int kPer>
using CtaSort = cub::BlockRadixSort<uint32_t, kCtaThreads, kPer, int32_t>;

// Sorts the keys of all threads, kPer each, and the values with them; equal keys keep their order.
template <int kPer>
IDSEL_DEVICE void cta_sort_descending(uint32_t (&keys)[kPer], int32_t (&values)[kPer], void* shared) {
    CtaSort<kPer>(*static_cast<typename CtaSort<kPer>::TempStorage*>(shared)).SortDescending(keys, values);
}
template <int kPer>
constexpr int sort_bytes = static_cast<int>(sizeof(typename CtaSort<kPer>::TempStorage));

}  // namespace idsel::cuda::arch

#endif
