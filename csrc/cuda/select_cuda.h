// The CUDA engine: all samples of a call.
#pragma once

#include <cstdint>

#include "idsel/select.h"

namespace idsel::cuda {

// Whether calls can run on a device; if not, fail() has been told why.
idsel_status status(int32_t device);

// Device memory that a call needs, by its sizes, rule and dtype; -1 where it cannot run, and fail() knows why.
int64_t workspace_bytes(const idsel_args& args);

// Enqueues. `args` has been checked, and has the workspace and counters it needs.
idsel_status select(const idsel_args& args);

}  // namespace idsel::cuda
