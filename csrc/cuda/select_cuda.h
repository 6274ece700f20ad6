// The CUDA engine: all samples of a call.
#pragma once

#include <cstdint>

#include "idsel/select.h"

namespace idsel::cuda {

// Whether calls can run on a device; if not, fail() has been told why.
idsel_status status(int32_t device);

// How a call would be done, by its sizes and rule; fails where it cannot run.
idsel_status plan(const idsel_args& args, idsel_plan* to);

// Enqueues. `args` has been checked but for the size of its workspace.
idsel_status select(const idsel_args& args);

}  // namespace idsel::cuda
