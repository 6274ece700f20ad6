#include "cuda/instance.cuh"

IDSEL_INSTANCE(BFloat16, kCoverage)
