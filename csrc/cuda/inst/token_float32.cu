#include "cuda/instance.cuh"

IDSEL_INSTANCE(float, kToken)
