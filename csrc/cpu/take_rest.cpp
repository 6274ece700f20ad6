// The picks after those made by priority.
#include <algorithm>
#include <limits>

#include "cpu/greedy.h"

namespace idsel::cpu {

void take_rest(Run& run) {
    constexpr float kNoPriority = -std::numeric_limits<float>::infinity();
    if (run.done()) return;
    std::vector<int64_t> rest;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j)) rest.push_back(j);
    }
    const std::vector<float>& importance = run.sample.importance;
    std::stable_sort(rest.begin(), rest.end(), [&](int64_t a, int64_t b) {
        return importance[static_cast<size_t>(a)] > importance[static_cast<size_t>(b)];
    });
    for (int64_t j : rest) {
        if (run.done()) return;
        if (run.similarity.finite(j)) run.take(j, kNoPriority);
    }
    for (int64_t j = 0; j < run.sample.n && !run.done(); ++j) {
        if (run.open(j)) run.take(j, kNoPriority);
    }
}

}  // namespace idsel::cpu
