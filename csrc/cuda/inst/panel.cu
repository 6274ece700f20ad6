#include "cuda/instances.h"
#include "cuda/panel_kernel.cuh"

namespace idsel::cuda {

template <>
Kernel panel_kernel_of<AllRules>() {
    return panel_kernel<AllRules>;
}

}  // namespace idsel::cuda
