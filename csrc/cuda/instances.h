// The kernels, compiled in a file for each rule under inst/, and in one for panels, of all rules.
#pragma once

#include "cuda/kernel_args.h"

namespace idsel::cuda {

using Kernel = void (*)(KernelArgs);

template <class Rule>
Kernel gram_kernel_of();
template <class Rules>
Kernel panel_kernel_of();

}  // namespace idsel::cuda

#define IDSEL_GRAM_KERNEL(Rule)     \
    namespace idsel::cuda {         \
    template <>                     \
    Kernel gram_kernel_of<Rule>() { \
        return gram_kernel<Rule>;   \
    }                               \
    }
