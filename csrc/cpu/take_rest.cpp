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
    // A heap: most often few of them are asked for.
    const std::vector<float>& importance = run.sample.importance;
    const auto less = [&](int64_t a, int64_t b) {
        const float of_a = importance[static_cast<size_t>(a)], of_b = importance[static_cast<size_t>(b)];
        return of_a < of_b || (of_a == of_b && a > b);
    };
    std::make_heap(rest.begin(), rest.end(), less);
    for (; !rest.empty(); rest.pop_back()) {
        if (run.done()) return;
        std::pop_heap(rest.begin(), rest.end(), less);
        if (run.similarity.finite(rest.back())) run.take(rest.back(), kNoPriority);
    }
    for (int64_t j = 0; j < run.sample.n && !run.done(); ++j) {
        if (run.open(j)) run.take(j, kNoPriority);
    }
}

}  // namespace idsel::cpu
