#include "cuda/instance.cuh"

IDSEL_INSTANCE(Half, kHistory)
