#include "cuda/gram_kernel.cuh"
#include "cuda/instances.h"

IDSEL_GRAM_KERNEL(MatrixCoverage)
