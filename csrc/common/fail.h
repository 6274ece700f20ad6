// Failure without exceptions: a status, and words kept per thread.
#pragma once

#include "idsel/select.h"

namespace idsel {

// Remembers the message, printf style, and returns `status`.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
idsel_status fail(idsel_status status, const char* format, ...) noexcept;

// What fail() remembered last on this thread.
const char* last_failure() noexcept;

}  // namespace idsel
