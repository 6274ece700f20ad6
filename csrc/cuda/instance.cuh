// Kernels by type and family, so that each is compiled in a file of its own under inst/.
#pragma once

#include "cuda/select_kernel.cuh"

namespace idsel::cuda {

using Kernel = void (*)(KernelArgs);

template <class T, Family family>
Kernel kernel();

}  // namespace idsel::cuda

#define IDSEL_INSTANCE(T, family)                \
    namespace idsel::cuda {                      \
    template <>                                  \
    Kernel kernel<T, Family::family>() {         \
        return select_kernel<T, Family::family>; \
    }                                            \
    }
