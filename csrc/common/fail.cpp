#include "common/fail.h"

#include <cstdarg>
#include <cstdio>

namespace idsel {

namespace {
thread_local char last_message[256] = "";
}

idsel_status fail(idsel_status status, const char* format, ...) noexcept {
    va_list values;
    va_start(values, format);
    std::vsnprintf(last_message, sizeof last_message, format, values);
    va_end(values);
    return status;
}

const char* last_failure() noexcept { return last_message; }

}  // namespace idsel
