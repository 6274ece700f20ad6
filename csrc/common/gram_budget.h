// How much memory similarities may take.
#pragma once

#include <cstdint>

namespace idsel {

// Of a sample in bytes, unless the caller says otherwise: N = 16384 in float32. Beyond it an engine keeps a part of the
// Gram at a time. idsel_kernels/engines/base.py has the same number; a test compares them.
constexpr int64_t kGramBudgetBytes = int64_t{1} << 30;

}  // namespace idsel
