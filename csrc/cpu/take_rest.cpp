// The picks after those made by priority.
#include <algorithm>
#include <limits>

#include "cpu/greedy.h"

namespace idsel::cpu {
namespace {

struct Candidate {
    float importance;
    int64_t token;

    bool operator<(const Candidate& other) const {
        return importance < other.importance || (importance == other.importance && token > other.token);
    }
};

}  // namespace

void take_rest(Run& run) {
    constexpr float kNoPriority = -std::numeric_limits<float>::infinity();
    if (run.done()) return;
    std::vector<Candidate> rest;
    rest.reserve(static_cast<size_t>(run.sample.n));
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j)) rest.push_back({run.sample.importance[static_cast<size_t>(j)], j});
    }
    // A heap: most often few of them are asked for.
    std::make_heap(rest.begin(), rest.end());
    for (; !rest.empty(); rest.pop_back()) {
        if (run.done()) return;
        std::pop_heap(rest.begin(), rest.end());
        const int64_t token = rest.back().token;
        if (run.similarity.finite(token)) run.take(token, kNoPriority);
    }
    for (int64_t j = 0; j < run.sample.n && !run.done(); ++j) {
        if (run.open(j)) run.take(j, kNoPriority);
    }
}

}  // namespace idsel::cpu
