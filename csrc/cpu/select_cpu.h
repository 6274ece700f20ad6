// The CPU engine: all samples of a call.
#pragma once

#include "idsel/select.h"

namespace idsel::cpu {

// `args` has been checked. Throws std::bad_alloc only.
void select(const idsel_args& args);

}  // namespace idsel::cpu
