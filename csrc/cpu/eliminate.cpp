#include <algorithm>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/at_once.h"
#include "cpu/blocked_argmax.h"
#include "cpu/gram_rows.h"

namespace idsel::cpu {
namespace {

using Tokens = std::vector<int64_t>;

// A token, or its place in a list, by a similarity.
struct Ranked {
    float similarity;
    int32_t at;
};
bool before(const Ranked& a, const Ranked& b) {
    return a.similarity > b.similarity || (a.similarity == b.similarity && a.at < b.at);
}
// The first few as if all were sorted.
void sort_first(std::vector<Ranked>& ranked, size_t count) {
    const auto end = ranked.begin() + static_cast<ptrdiff_t>(count);
    if (end != ranked.end()) std::nth_element(ranked.begin(), end, ranked.end(), before);
    std::sort(ranked.begin(), end, before);
}

// What remains of the tokens, and where they stand in a round: each even one looks for the nearest odd one.
struct Round {
    enum Side : uint8_t { kGone, kEven, kOdd };

    Round(const Tokens& list, int64_t n)
        : sides(static_cast<size_t>(n), kGone), gone(sides.size(), kNoKey), not_odd(gone) {
        for (size_t at = 0; at < list.size(); ++at) {
            const auto token = static_cast<size_t>(list[at]);
            gone[token] = 0.0f;
            if (at % 2 == 1) not_odd[token] = 0.0f;
            sides[token] = at % 2 == 0 ? kEven : kOdd;
            (at % 2 == 0 ? even : odd).push_back(list[at]);
        }
    }

    std::vector<Side> sides;           // (n,)
    std::vector<float> gone, not_odd;  // (n,) 0 or -inf, to be added to a similarity
    Tokens even, odd;
};

// The nearest tokens of each one. Among a few of them there most often is one of the other side, so that a round looks
// at a few tokens instead of half of all, and few rows of similarities are read twice. A list with none left is made
// anew, of the tokens that are left.
class Neighbours {
  public:
    explicit Neighbours(Run& run)
        : run_(run), lists_(static_cast<size_t>(run.sample.n)), found_(static_cast<size_t>(run.sample.n)) {
        if (run.similarity.gram_fits_budget()) {
            run.similarity.make_gram();
            run.path = IDSEL_PATH_GRAM;
        } else {
            run.similarity.know_all_norms();
            rows_ = std::make_unique<GramRows>(run.similarity);
        }
    }

    // The places of the even tokens, each by its largest similarity to an odd one.
    std::vector<Ranked> nearest(const Round& round) {
        Tokens unknown;
        for (const int64_t token : round.even) {
            found(token) = by_list(token, round);
            if (found(token) == kUnknown) unknown.push_back(token);
        }
        read_rows(unknown, round);
        std::vector<Ranked> ranked;
        ranked.reserve(round.even.size());
        for (const int64_t token : round.even) ranked.push_back({found(token), static_cast<int32_t>(ranked.size())});
        return ranked;
    }

  private:
    static constexpr size_t kMost = 16;
    // Where the Gram is there, a whole row of so many is searched in less time than a list takes.
    static constexpr int64_t kFewTokens = 1536;
    // Where rows were computed so many times as often as there are tokens, the Gram had been better.
    static constexpr int64_t kMostTimes = 4;
    static constexpr float kUnknown = std::numeric_limits<float>::infinity();  // no similarity exceeds 1
    static constexpr float kLeast = -1.0f;

    struct List {
        std::vector<Ranked> nearest;  // by falling similarity
        size_t first = 0;             // those before are gone
    };
    List& list(int64_t token) { return lists_[static_cast<size_t>(token)]; }
    float& found(int64_t token) { return found_[static_cast<size_t>(token)]; }

    float by_list(int64_t token, const Round& round) {
        List& of = list(token);
        const auto side = [&](size_t at) { return round.sides[static_cast<size_t>(of.nearest[at].at)]; };
        while (of.first < of.nearest.size() && side(of.first) == Round::kGone) ++of.first;
        for (size_t at = of.first; at < of.nearest.size(); ++at) {
            if (side(at) == Round::kOdd) return of.nearest[at].similarity;
        }
        return kUnknown;
    }

    // Whether most of its list is gone. Else it is only that the near ones are on the same side for once.
    bool worn(int64_t token, const Round& round) {
        const std::vector<Ranked>& nearest = list(token).nearest;
        const auto left = std::count_if(nearest.begin(), nearest.end(), [&](const Ranked& other) {
            return round.sides[static_cast<size_t>(other.at)] != Round::kGone;
        });
        return static_cast<size_t>(left) < kMost / 2;
    }

    float by_row(const float* row, const Round& round) const {
        return given_similarity(run_.similarity.kernels().largest_sum(row, round.not_odd.data(), run_.sample.n));
    }

    void read_rows(const Tokens& tokens, const Round& round) {
        const auto read = [&](int64_t token, const float* row) {
            if ((rows_ || run_.sample.n > kFewTokens) && worn(token, round)) {
                make_list(token, row, round);
                found(token) = by_list(token, round);
            }
            if (found(token) == kUnknown) found(token) = by_row(row, round);
        };
        const auto count = static_cast<int64_t>(tokens.size());
        rows_computed_ += count;
        // Of copies that alternate, all near ones are on one side, round after round.
        if (rows_ && rows_computed_ > kMostTimes * run_.sample.n) {
            run_.similarity.make_gram();
            run_.path = IDSEL_PATH_LAZY_GRAM;
            rows_.reset();
        }
        if (rows_) {
            for (int64_t begin = 0; begin < count; begin += rows_->most()) {
                const int64_t end = std::min(begin + rows_->most(), count);
                rows_->compute(Tokens(tokens.begin() + begin, tokens.begin() + end), read);
            }
            return;
        }
        run_.similarity.pool().parallel_for(count, 8, [&](int64_t begin, int64_t end) {
            for (const int64_t* token = &tokens[static_cast<size_t>(begin)]; begin < end; ++begin, ++token) {
                read(*token, run_.similarity.gram_row(*token));
            }
        });
    }

    // The kMost-th of the largest of each kLanes tokens is a bound that at least kMost tokens reach. Of equal ones
    // those that follow the token come first: where many are alike, lists of the same few would all run out at once.
    void make_list(int64_t token, const float* row, const Round& round) {
        const int64_t n = run_.sample.n;
        std::vector<float> others(static_cast<size_t>(n)), largest(static_cast<size_t>((n + kLanes - 1) / kLanes));
        for (int64_t j = 0; j < n; ++j) {
            others[static_cast<size_t>(j)] = given_similarity(row[j]) + round.gone[static_cast<size_t>(j)];
        }
        others[static_cast<size_t>(token)] = kNoKey;
        for (int64_t j = 0; j < n; j += kLanes) {
            const float* few = &others[static_cast<size_t>(j)];
            largest[static_cast<size_t>(j / kLanes)] = run_.similarity.kernels().largest(few, std::min(kLanes, n - j));
        }
        const float bound = largest.size() > kMost ? std::max(kLeast, nth_largest(largest, kMost)) : kLeast;
        std::vector<Ranked> near;
        for (int64_t begin = 0; begin < n; begin += kLanes) {
            if (largest[static_cast<size_t>(begin / kLanes)] < bound) continue;
            for (int64_t j = begin; j < std::min(begin + kLanes, n); ++j) {
                const float similarity = others[static_cast<size_t>(j)];
                if (similarity >= bound)
                    near.push_back({similarity, static_cast<int32_t>(j > token ? j - token : j - token + n)});
            }
        }
        const size_t count = std::min(kMost, near.size());
        sort_first(near, count);
        // A copy: where many are alike, far more than kMost reach the bound.
        list(token) = {{near.begin(), near.begin() + static_cast<ptrdiff_t>(count)}, 0};
        for (Ranked& of : list(token).nearest) of.at = static_cast<int32_t>((token + of.at) % n);
    }
    static float nth_largest(std::vector<float> numbers, size_t nth) {
        const auto at = numbers.begin() + static_cast<ptrdiff_t>(nth - 1);
        std::nth_element(numbers.begin(), at, numbers.end(), std::greater<float>());
        return *at;
    }

    Run& run_;
    std::vector<List> lists_;         // (n,)
    std::vector<float> found_;        // (n,)
    std::unique_ptr<GramRows> rows_;  // where the Gram exceeds the budget
    int64_t rows_computed_ = 0;
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

// The list after a round that drops so many tokens.
Tokens after_round(const Tokens& list, size_t drop, bool by_position, Neighbours& neighbours, int64_t n) {
    Round round(list, n);
    std::vector<Ranked> ranked = neighbours.nearest(round);
    const auto token = [&](const Ranked& of) { return round.even[static_cast<size_t>(of.at)]; };
    Tokens left;
    if (by_position) {
        sort_first(ranked, drop);
        for (size_t i = 0; i < drop; ++i) round.sides[static_cast<size_t>(token(ranked[i]))] = Round::kGone;
        const auto stays = [&](int64_t j) { return round.sides[static_cast<size_t>(j)] != Round::kGone; };
        std::copy_if(list.begin(), list.end(), std::back_inserter(left), stays);
    } else {
        std::stable_sort(ranked.begin(), ranked.end(),
                         [](const Ranked& a, const Ranked& b) { return a.similarity > b.similarity; });
        for (size_t i = drop; i < ranked.size(); ++i) left.push_back(token(ranked[i]));
        left.insert(left.end(), round.odd.begin(), round.odd.end());
    }
    return left;
}

}  // namespace

void pick_at_once(const Elimination& rule, Run& run) {
    Neighbours neighbours(run);
    const Tokens ranked = ranked_tokens(run);
    const int64_t keep = std::min(run.sample.k, static_cast<int64_t>(ranked.size()));
    const int64_t important = std::min(rule.share_of(keep), keep), aim = keep - important;
    const auto rest = ranked.begin() + important;
    Tokens list = aim > 0 ? Tokens(rest, ranked.end()) : Tokens();
    if (rule.by_position) std::sort(list.begin(), list.end());
    while (static_cast<int64_t>(list.size()) > aim) {
        const auto drop = static_cast<size_t>(rule.drop_of(static_cast<int64_t>(list.size()), aim));
        list = after_round(list, drop, rule.by_position, neighbours, run.sample.n);
    }
    list.insert(list.begin(), ranked.begin(), rest);
    for (const int64_t j : list) run.take(j, run.sample.importance[static_cast<size_t>(j)]);
}

}  // namespace idsel::cpu
