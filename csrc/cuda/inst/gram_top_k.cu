#include "cuda/instances.h"
#include "cuda/top_k.cuh"

IDSEL_GRAM_KERNEL(TopK)
