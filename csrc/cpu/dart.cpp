#include <algorithm>
#include <vector>

#include "cpu/at_once.h"

namespace idsel::cpu {
namespace {

using Tokens = std::vector<int64_t>;

float importance(int64_t j, const Run& run) { return run.sample.importance[static_cast<size_t>(j)]; }

// Of tokens [begin, end) the most important, at most so many: norms are read from the top down.
Tokens most_important(int64_t begin, int64_t end, int64_t most, Run& run) {
    Tokens heap, best;
    for (int64_t j = begin; j < end; ++j) {
        if (run.competes(j)) heap.push_back(j);
    }
    const auto less = [&run](int64_t a, int64_t b) {
        return importance(a, run) < importance(b, run) || (importance(a, run) == importance(b, run) && a > b);
    };
    std::make_heap(heap.begin(), heap.end(), less);
    for (; !heap.empty() && static_cast<int64_t>(best.size()) < most; heap.pop_back()) {
        std::pop_heap(heap.begin(), heap.end(), less);
        if (run.similarity.finite(heap.back())) {
            best.push_back(heap.back());
        } else {
            run.demote(heap.back());
        }
    }
    return best;
}

// The tokens still free, and their similarities to a few pivots at a time.
class FreeTokens {
  public:
    // Those that compete. Of none or of all of them the norm is known.
    explicit FreeTokens(Run& run) : run_(run), rows_(static_cast<size_t>(kDotsRows * run.sample.n)) {
        for (int64_t j = 0; j < run.sample.n; ++j) {
            if (run.competes(j)) tokens_.push_back(j);
        }
    }

    int64_t count() const { return static_cast<int64_t>(tokens_.size()); }

    // Reads their features once for so many pivots, at most kDotsRows. Those that are not finite are free no longer.
    void compare_with(const int64_t* pivots, int64_t pivot_count) {
        const int64_t dots = count() * pivot_count, tiles = (count() + kDotsRows - 1) / kDotsRows;
        Similarity& similarity = run_.similarity;
        const bool shared = cost_model(run_).sharing_pays(dots, similarity.pool().started());
        similarity.pool().parallel_for(tiles, shared ? 16 : tiles, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin * kDotsRows; at < std::min(end * kDotsRows, count()); at += kDotsRows) {
                compare_tile(&tokens_[static_cast<size_t>(at)], std::min(kDotsRows, count() - at), pivots, pivot_count);
            }
        });
        similarity.count_dots(dots);
        const auto unusable = [&](int64_t j) { return !similarity.finite(j); };
        std::for_each(tokens_.begin(), tokens_.end(), [&](int64_t j) { unusable(j) ? run_.demote(j) : void(); });
        tokens_.erase(std::remove_if(tokens_.begin(), tokens_.end(), unusable), tokens_.end());
    }

    // Picks so many of those least like a pivot, the one at this place of those compared.
    void take_least_like(int64_t pivot, int64_t wanted) {
        const float* row = &rows_[static_cast<size_t>(pivot * run_.sample.n)];
        const auto less = [row](int64_t a, int64_t b) { return row[a] < row[b] || (row[a] == row[b] && a < b); };
        const auto taken = tokens_.begin() + std::min(wanted, count());
        std::partial_sort(tokens_.begin(), taken, tokens_.end(), less);
        std::for_each(tokens_.begin(), taken, [&](int64_t j) { run_.take(j, 0.0f - row[j]); });
        tokens_.erase(tokens_.begin(), taken);
    }

  private:
    void compare_tile(const int64_t* tokens, int64_t token_count, const int64_t* pivots, int64_t pivot_count) {
        float c[kDotsRows * kDotsStride] = {};
        run_.similarity.tile(tokens, token_count, pivots, pivot_count, c);
        for (int64_t i = 0; i < token_count; ++i) {
            for (int64_t p = 0; p < pivot_count; ++p) {
                rows_[static_cast<size_t>(p * run_.sample.n + tokens[i])] = c[i * kDotsStride + p];
            }
        }
    }

    Run& run_;
    Tokens tokens_;
    std::vector<float> rows_;  // (kDotsRows, n)
};

}  // namespace

void pick_at_once(const DART& rule, Run& run) {
    const int64_t n = run.sample.n, tokens = n - std::min(rule.text_pivots, n);
    Tokens pivots = most_important(0, tokens, std::min(rule.pivots, run.sample.k), run);
    for (const int64_t j : pivots) run.take(j, importance(j, run));
    const Tokens text = most_important(tokens, n, n - tokens, run);
    std::fill(run.sample.tier.begin() + tokens, run.sample.tier.end(), Tier::kNotThere);
    pivots.insert(pivots.end(), text.begin(), text.end());

    const auto turns = static_cast<int64_t>(pivots.size());
    FreeTokens free(run);
    int64_t share = 0;
    for (int64_t turn = 0; turn < turns && !run.done(); ++turn) {
        const int64_t place = turn % kDotsRows;
        if (place == 0) free.compare_with(&pivots[static_cast<size_t>(turn)], std::min(kDotsRows, turns - turn));
        if (turn == 0) share = (std::min(run.remaining(), free.count()) + turns - 1) / turns;
        free.take_least_like(place, std::min(share, run.remaining()));
    }
}

}  // namespace idsel::cpu
