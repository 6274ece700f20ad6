// The best token where priorities need the nearest other token of each.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/greedy.h"

namespace idsel::cpu {

struct Nearest {
    int64_t token;     // n where none takes part
    float similarity;  // the largest one to another token that takes part, -inf where there is none
};

// The token of the largest `priority(token, similarity)`, the lowest of several, which must not rise with the
// similarity. What is known of the largest similarity of a token then bounds its priority, so that few tokens have to
// be compared with all others.
Nearest best_by_nearest(Run& run, const std::function<float(int64_t token, float similarity)>& priority);

// The largest similarity of a token to another that takes part, -inf where there is none.
float nearest_to(Run& run, int64_t token);

}  // namespace idsel::cpu
