#include "cuda/instances.h"
#include "cuda/panel_kernel.cuh"

namespace idsel::cuda {

template <>
Kernel panel_kernel_of<GreedyRules>() {
    return panel_kernel<GreedyRules>;
}

}  // namespace idsel::cuda
