// Kernels by type and state, so that each is compiled in a file of its own under inst/.
#pragma once

#include "cuda/crew_kernel.cuh"

namespace idsel::cuda {

using Kernel = void (*)(KernelArgs);

// The kernel of a state; the one that works in phases, or the one whose loops are one block's.
template <class T, State kState>
Kernel kernel(bool in_phases);

}  // namespace idsel::cuda

#define IDSEL_INSTANCE(T, state)                                                          \
    namespace idsel::cuda {                                                               \
    template <>                                                                           \
    Kernel kernel<T, State::state>(bool in_phases) {                                      \
        return in_phases ? crew_kernel<T, State::state> : select_kernel<T, State::state>; \
    }                                                                                     \
    }
