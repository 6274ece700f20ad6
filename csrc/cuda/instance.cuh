// Kernels by type and family, so that each is compiled in a file of its own under inst/.
#pragma once

#include "cuda/crew_kernel.cuh"

namespace idsel::cuda {

using Kernel = void (*)(KernelArgs);

// The kernel of a family; the one that works in phases, or the one whose loops are one block's.
template <class T, Family family>
Kernel kernel(bool in_phases);

}  // namespace idsel::cuda

#define IDSEL_INSTANCE(T, family)                                                             \
    namespace idsel::cuda {                                                                   \
    template <>                                                                               \
    Kernel kernel<T, Family::family>(bool in_phases) {                                        \
        return in_phases ? crew_kernel<T, Family::family> : select_kernel<T, Family::family>; \
    }                                                                                         \
    }
