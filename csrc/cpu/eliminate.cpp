#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/at_once.h"

namespace idsel::cpu {
namespace {

constexpr int64_t kRowsAtOnce = 8;

using Tokens = std::vector<int64_t>;

struct Ranked {
    float similarity;
    int64_t token;
};

// Tokens that take part, by falling importance.
Tokens ranked_tokens(Run& run) {
    Tokens tokens;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j) && !run.similarity.finite(j)) run.demote(j);
        if (run.competes(j)) tokens.push_back(j);
    }
    const std::vector<float>& importance = run.sample.importance;
    std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) {
        return importance[static_cast<size_t>(a)] > importance[static_cast<size_t>(b)];
    });
    return tokens;
}

float nearest(const float* row, const Tokens& others) {
    float best = -std::numeric_limits<float>::infinity();
    for (const int64_t j : others) best = std::max(best, row[j]);
    return best;
}

// Every second token, with its largest similarity to one of the others, by falling similarity.
std::vector<Ranked> rank(const Tokens& even, const Tokens& odd, Run& run) {
    std::vector<Ranked> ranked(even.size());
    run.similarity.pool().parallel_for(static_cast<int64_t>(even.size()), kRowsAtOnce, [&](int64_t begin, int64_t end) {
        for (auto at = static_cast<size_t>(begin); at < static_cast<size_t>(end); ++at) {
            const float similarity = nearest(run.similarity.gram_row(even[at]), odd);
            ranked[at] = {given_similarity(similarity), even[at]};
        }
    });
    std::stable_sort(ranked.begin(), ranked.end(),
                     [](const Ranked& a, const Ranked& b) { return a.similarity > b.similarity; });
    return ranked;
}

// The list after a round that drops so many tokens.
Tokens after_round(const Tokens& list, int64_t drop, bool by_position, Run& run) {
    Tokens halves[2];
    for (size_t at = 0; at < list.size(); ++at) halves[at % 2].push_back(list[at]);
    Tokens left;
    const std::vector<Ranked> ranked = rank(halves[0], halves[1], run);
    for (auto at = static_cast<size_t>(drop); at < ranked.size(); ++at) left.push_back(ranked[at].token);
    left.insert(left.end(), halves[1].begin(), halves[1].end());
    if (by_position) std::sort(left.begin(), left.end());
    return left;
}

}  // namespace

void pick_at_once(const Elimination& rule, Run& run) {
    run.similarity.make_gram();
    run.path = IDSEL_PATH_GRAM;
    const Tokens ranked = ranked_tokens(run);
    const int64_t keep = std::min(run.sample.k, static_cast<int64_t>(ranked.size()));
    const int64_t important = std::min(rule.share_of(keep), keep), aim = keep - important;
    const auto rest = ranked.begin() + important;
    Tokens list = aim > 0 ? Tokens(rest, ranked.end()) : Tokens();
    if (rule.by_position) std::sort(list.begin(), list.end());
    while (static_cast<int64_t>(list.size()) > aim) {
        const int64_t drop = rule.drop_of(static_cast<int64_t>(list.size()), aim);
        list = after_round(list, drop, rule.by_position, run);
    }
    list.insert(list.begin(), ranked.begin(), rest);
    for (const int64_t j : list) run.take(j, run.sample.importance[static_cast<size_t>(j)]);
}

}  // namespace idsel::cpu
