#include "cpu/nearest_search.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/gram.h"

namespace idsel::cpu {
namespace {

using Priority = std::function<float(int64_t, float)>;
using Tokens = std::vector<int64_t>;

constexpr float kNone = -std::numeric_limits<float>::infinity();

Tokens tokens_that_take_part(Run& run) {
    Tokens tokens;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j) && run.similarity.finite(j)) tokens.push_back(j);
    }
    return tokens;
}

// All rows of the Gram, one after the other, take less time than bounds would save.
Nearest best_over_gram(Run& run, const Priority& priority) {
    const Tokens tokens = tokens_that_take_part(run);
    std::vector<float> nearest(static_cast<size_t>(run.sample.n), kNone);
    for (const int64_t i : tokens) {
        const float* row = run.similarity.gram_row(i);
        const float of_itself = nearest[static_cast<size_t>(i)];
        for (size_t j = 0; j < nearest.size(); ++j) nearest[j] = row[j] > nearest[j] ? row[j] : nearest[j];
        nearest[static_cast<size_t>(i)] = of_itself;
    }
    Nearest best{run.sample.n, kNone};
    float best_priority = kNone;
    for (const int64_t j : tokens) {
        const float similarity = nearest[static_cast<size_t>(j)], its_priority = priority(j, similarity);
        if (best.token < run.sample.n && its_priority <= best_priority) continue;
        best = {j, similarity};
        best_priority = its_priority;
    }
    return best;
}

// Calls `use` with the similarities of a token to some others, which are several read together, until it returns false.
template <class Use>
void meet(Run& run, int64_t token, const Tokens& others, const Use& use) {
    float c[kDotsStride];
    const auto count = static_cast<int64_t>(others.size());
    for (int64_t first = 0; first < count; first += kDotsRows) {
        const int64_t some = std::min(kDotsRows, count - first);
        run.similarity.tile(&token, 1, &others[static_cast<size_t>(first)], some, c);
        run.similarity.count_dots(some);
        if (!std::all_of(c, c + some, use)) return;
    }
}

template <class Condition>
void remove_if(Tokens& tokens, const Condition& condition) {
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), condition), tokens.end());
}

// Each round compares the tokens that may still win, the open ones, with a few tokens more, the columns. A column has
// then met all others but those that were closed before its turn and are no columns yet.
class NearestSearch {
  public:
    NearestSearch(Run& run, const Priority& priority, ThreadPool& pool)
        : run_(run),
          priority_(priority),
          open_(tokens_that_take_part(run)),
          nearest_(static_cast<size_t>(run.sample.n), kNone),
          best_{run.sample.n, kNone},
          dots_(run.sample, run.similarity.kernels(), pool, kColumns + most_rows()),
          c_(static_cast<size_t>(most_rows() * kColumns)) {}

    Nearest find() {
        const Tokens order = spread(open_);
        const auto end = static_cast<int64_t>(order.size());
        // The first round meets all tokens, and most of them need no second one.
        int64_t count = kColumns / 2;
        for (int64_t at = 0; at < end && !open_.empty(); at += count, count = kColumns) {
            Tokens columns(order.begin() + at, order.begin() + std::min(at + count, end));
            std::sort(columns.begin(), columns.end());
            compare_open_with(columns);
            settle(columns);
            close_beaten();
        }
        return best_;
    }

  private:
    static constexpr int64_t kColumns = kTileRows;
    static constexpr int64_t kRows = 16 * kTileRows;  // compared at a time, so that their copies stay in a cache

    // In an order that is all over the sample everywhere: neighbours are alike and would tell the same.
    static Tokens spread(const Tokens& tokens) {
        Tokens order;
        const size_t step = (tokens.size() + kColumns / 2 - 1) / (kColumns / 2);
        for (size_t first = 0; first < step; ++first) {
            for (size_t at = first; at < tokens.size(); at += step) order.push_back(tokens[at]);
        }
        return order;
    }

    int64_t most_rows() const { return std::min(kRows, static_cast<int64_t>(open_.size())); }
    float& nearest(int64_t token) { return nearest_[static_cast<size_t>(token)]; }

    void compare_open_with(const Tokens& columns) {
        const auto count = static_cast<int64_t>(open_.size());
        for (int64_t first = 0; first < count; first += kRows) {
            Tokens tokens = columns;
            tokens.insert(tokens.end(), open_.begin() + first, open_.begin() + std::min(first + kRows, count));
            compare(tokens, static_cast<int64_t>(columns.size()));
        }
    }

    // The first `columns` of some tokens with the others.
    void compare(const Tokens& tokens, int64_t columns) {
        const auto end = static_cast<int64_t>(tokens.size());
        std::vector<Tile> tiles;
        for (int64_t i = columns; i < end; i += kTileRows) {
            tiles.push_back({i, std::min(i + kTileRows, end), 0, columns});
        }
        float* c = c_.data() - columns * kColumns;
        const auto finish = [&](const Tile& tile) {
            for (int64_t i = tile.i; i < tile.i_end; ++i) {
                finish_row(tokens[static_cast<size_t>(i)], tokens.data(), columns, c + i * kColumns);
            }
        };
        dots_.compute(tokens, tiles, c_.data(), kColumns, finish);
        run_.similarity.count_dots(columns * (end - columns));
        float largest[kColumns];
        std::fill_n(largest, kColumns, kNone);
        for (int64_t i = columns; i < end; ++i) {
            const float* row = c + i * kColumns;
            for (int64_t j = 0; j < columns; ++j) largest[j] = row[j] > largest[j] ? row[j] : largest[j];
        }
        for (int64_t j = 0; j < columns; ++j) raise(tokens[static_cast<size_t>(j)], largest[j]);
    }

    // Its dot products with columns become similarities.
    void finish_row(int64_t row, const int64_t* columns, int64_t count, float* c) {
        float largest = kNone;
        run_.similarity.of_dots(row, columns, count, c);
        for (int64_t j = 0; j < count; ++j) {
            c[j] = columns[j] == row ? kNone : c[j];
            largest = c[j] > largest ? c[j] : largest;
        }
        raise(row, largest);
    }

    void raise(int64_t token, float similarity) { nearest(token) = std::max(nearest(token), similarity); }

    bool may_win(int64_t token) {
        const float bound = priority_(token, nearest(token));
        return bound > best_priority_ || (bound == best_priority_ && token < best_.token);
    }

    // Columns that may win meet what they have missed, those of the largest bounds first.
    void settle(const Tokens& columns) {
        const auto is_column = [&](int64_t j) { return std::binary_search(columns.begin(), columns.end(), j); };
        std::vector<std::pair<float, int64_t>> candidates;
        for (const int64_t j : open_) {
            if (is_column(j)) candidates.push_back({-priority_(j, nearest(j)), j});
        }
        std::sort(candidates.begin(), candidates.end());
        run_.similarity.count_dots(-static_cast<int64_t>(candidates.size()));  // with themselves
        remove_if(open_, is_column);
        remove_if(closed_, is_column);
        for (const auto& candidate : candidates) {
            const int64_t token = candidate.second;
            if (!meets_all(token)) continue;
            best_ = {token, nearest(token)};
            best_priority_ = priority_(token, best_.similarity);
        }
    }

    // Whether it may win after that.
    bool meets_all(int64_t token) {
        meet(run_, token, closed_, [&](float similarity) {
            raise(token, similarity);
            return may_win(token);
        });
        return may_win(token);
    }

    void close_beaten() {
        const auto still_open = [this](int64_t j) { return may_win(j); };
        const auto beaten = std::stable_partition(open_.begin(), open_.end(), still_open);
        closed_.insert(closed_.end(), beaten, open_.end());
        open_.erase(beaten, open_.end());
    }

    Run& run_;
    const Priority& priority_;
    Tokens open_;                 // may still win, and have met all columns so far
    Tokens closed_;               // cannot win, and are no columns yet
    std::vector<float> nearest_;  // (n,) the largest similarity met so far
    Nearest best_;                // of the tokens that have met all others
    float best_priority_ = kNone;
    TiledDots dots_;
    std::vector<float> c_;  // (most_rows, kColumns)
};

}  // namespace

Nearest best_by_nearest(Run& run, const std::function<float(int64_t token, float similarity)>& priority) {
    if (run.similarity.has_gram()) return best_over_gram(run, priority);
    ThreadPool alone(1);
    const bool shared = cost_model(run).sharing_nearest_pays();
    return NearestSearch(run, priority, shared ? run.similarity.pool() : alone).find();
}

float nearest_to(Run& run, int64_t token) {
    Tokens others = tokens_that_take_part(run);
    remove_if(others, [token](int64_t j) { return j == token; });
    float nearest = kNone;
    meet(run, token, others, [&](float similarity) {
        nearest = std::max(nearest, similarity);
        return true;
    });
    return nearest;
}

}  // namespace idsel::cpu
