// How tokens rank for the next pick: the higher tier first, then the higher value, then the lower index.
#pragma once

#include <cstdint>

namespace idsel {

// The same names and numbers as `Tier` in idsel_kernels/rules.py and in triton_impl/rules.py; a test compares them.
enum class Tier : int8_t {
    kHasPriority = 1,  // by priority
    kNoPriority = 0,   // the rule has nothing left to say: by importance
    kUnusable = -1,    // importance or features are not usable: by index
    kNotThere = -2,    // masked, or picked
};

}  // namespace idsel
