#include "cuda/instances.h"
#include "cuda/panel_kernel.cuh"

IDSEL_PANEL_KERNEL(AllRules)
