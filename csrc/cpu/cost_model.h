// When the dense path pays: a comparison of counted work, never of measured time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"

namespace idsel::cpu {

// What a rule adds to the cost of a similarity on demand, and of one in a row.
struct Extra {
    double on_demand = 0, in_row = 0;
};

// Costs in nanoseconds of the machine on which they were fitted (docs/cpu_engine.md). Only their ratios matter, and
// only for speed: every path picks the same tokens.
struct Costs {
    // A look at a token that may win, which no other thread can take over. Where it is looked for alone, it takes
    // longer, and the longer the more tokens there are.
    static constexpr double kLook = 15.0;
    static constexpr double kTop = 35.0;
    static constexpr double kTopOfAll = 0.01;
    // One similarity on demand, a few of a token from one reading of its features, and the rule.
    static double on_demand(int64_t dim) { return 9.0 + 0.023 * static_cast<double>(dim); }
    // One similarity of a row that all tokens absorb one after the other.
    static double row(int64_t dim) {
        if (dim <= kFewDims) return 0.65;
        const double few = static_cast<double>(std::min<int64_t>(dim, 64));  // which caches keep
        return 1.0 + 0.014 * few + 0.0335 * (static_cast<double>(dim) - few);
    }
    // The same where they are looked up.
    static constexpr double kLookUp = 4.0;
    static constexpr double kStep = 0.7;
    // When another loop goes on, for each token.
    static constexpr double kHandOver = 16.0;
    // Of a row that a block of tokens catches up with: several of them read its features once.
    static constexpr double kCatchUp = 0.6;
    // What a weight adds to either, and histories of so many picks.
    static constexpr Extra kWeight{8.0, 0.4};
    static Extra history(double picks) { return {8.0 + 0.03 * picks, 1.8 + 0.04 * picks}; }
    // One of the n * (n - 1) / 2 similarities of a Gram.
    static double gram(int64_t dim) { return 1.5 + 0.0145 * static_cast<double>(dim); }
    // What a row takes more that is kept: its memory is new.
    static constexpr double kOwnRow = 2.0;
    // What a search for the nearest token of each does with one of them.
    static constexpr double kCompare = 2.0;
};

// What the lazy loop does for some picks: looks at tokens, some of them found alone, and similarities that these take
// on demand or look up.
struct Effort {
    double looks = 0, from_top = 0, similarities = 0;

    Effort operator+(const Effort& other) const {
        return {looks + other.looks, from_top + other.from_top, similarities + other.similarities};
    }
    Effort operator*(double factor) const { return {looks * factor, from_top * factor, similarities * factor}; }
};

// What the lazy loop counts, and what it concludes.
class CostModel {
  public:
    // `alone`: work done so far without helpers. `extra`: what the rule does with a similarity.
    CostModel(int64_t n, int64_t dim, int threads, bool gram_fits, double& alone, Extra extra = {})
        : n_(static_cast<double>(n)),
          dim_(dim),
          threads_(threads),
          gram_fits_(gram_fits),
          alone_(alone),
          extra_(extra) {}

    // Whether so many picks can take so long that helpers, which start late, do a good part of it.
    static bool threads_help(int64_t n, int64_t dim, int64_t picks) {
        return static_cast<double>(n * picks) * Costs::row(dim) > 4 * kAlone;
    }

    // Whether the lazy loop need not be tried first: to find out by `picks` rows whether it would do with less takes
    // less than one similarity of each token on demand.
    bool rows_come_first(int64_t picks, bool has_gram) const {
        return static_cast<double>(picks) * row_cost(has_gram) < lazy_cost({0, 0, n_}, has_gram);
    }
    // Of a row that all tokens absorb, and of what the lazy loop does for a pick.
    double row_cost(bool has_gram) const {
        const double work = n_ * ((has_gram ? Costs::kStep : Costs::row(dim_)) + extra_.in_row);
        return work > kSharedRows ? work / threads_ : work;
    }
    double lazy_cost(Effort effort, bool has_gram) const {
        const double each = (has_gram ? Costs::kLookUp : Costs::on_demand(dim_)) + extra_.on_demand;
        const double work = effort.similarities * each;
        // Tokens are taken in portions, each half as large as all before.
        const double shared = work > 4 * kSharedSome ? work / threads_ : work;
        return effort.looks * Costs::kLook + effort.from_top * (Costs::kTop + n_ * Costs::kTopOfAll) + shared;
    }
    bool exceeds_rows(Effort effort, double rows, bool has_gram) const {
        return lazy_cost(effort, has_gram) > rows * row_cost(has_gram);
    }
    // Whether so many picks cost more lazily, with so much for each, than by rows, be these computed or looked up in a
    // Gram, with `behind` more to catch up with.
    bool rows_pay(Effort effort, double picks, double behind, bool has_gram) const {
        const double lazy = picks * lazy_cost(effort, has_gram) / margin(), rows = picks + behind * Costs::kCatchUp;
        return lazy > hand_over() + rows * row_cost(has_gram) ||
               (!has_gram && gram_fits_ && lazy > hand_over() + gram_cost() + rows * row_cost(true));
    }
    // Whether so many picks cost more by rows than lazily, with so much for each.
    bool laziness_pays(Effort effort, double picks, bool has_gram) const {
        return hand_over() + picks * lazy_cost(effort, has_gram) < picks * row_cost(has_gram);
    }
    double own_row_cost() const { return row_cost(false) + n_ * Costs::kOwnRow; }
    double gram_cost() const { return n_ * n_ / 2 * Costs::gram(dim_) / threads_; }
    bool gram_beats_rows(double rows) const {
        return gram_fits_ && gram_cost() + rows * row_cost(true) < rows * row_cost(false);
    }

    // Whether a similarity takes so much longer than finding its token that reading several together saves time.
    static bool reading_dominates(int64_t dim) { return dim > 1285; }

    // Whether computing `dots` similarities on demand should be shared out among threads. Starting them takes a tenth
    // of a millisecond; and right after an operation of torch's, whose own threads go on looking for work for a while,
    // a helper may be kept from its share for milliseconds. So first as much has to be done alone.
    bool sharing_pays(int64_t dots, bool started) {
        const double work = static_cast<double>(dots) * Costs::on_demand(dim_);
        alone_ += work;
        return work > kSharedSome && (started || alone_ > kAlone);
    }

    // The same of a row of similarities, where blocks of tokens have so many to catch up with, on average.
    bool sharing_rows_pays(double rows, bool started) {
        const double row = n_ * Costs::row(dim_);
        alone_ += row;
        return rows * row > kSharedRows && (started || alone_ > kAlone);
    }

    // Whether `picks` picks that begin with a search for the nearest token of each had better begin with the Gram. By
    // experience a pick then brings half of the tokens up to date.
    bool gram_pays_at_once(double picks) const {
        const double pick = std::min(lazy_cost({n_ / 2, 0, n_ / 2}, false), row_cost(false));
        return gram_fits_ && nearest_cost() / threads_ + picks * pick > gram_cost() + picks * row_cost(true);
    }
    // Whether such a search should be shared out. Its loops are short, and helpers that are there are used by the picks
    // that follow, too: right after an operation of torch's that costs more than it saves, unless there is much to do.
    bool sharing_nearest_pays() const { return nearest_cost() > 16 * kAlone; }

  private:
    double hand_over() const { return n_ * Costs::kHandOver; }
    // Where a row saves nothing per similarity, the lazy loop cannot lose much, and what it does for a pick it need not
    // do for the next.
    double margin() const { return Costs::row(dim_) < Costs::on_demand(dim_) ? 1.0 : 1.3; }

    static constexpr double kAlone = 1e6;
    static constexpr double kSharedSome = 5e3;
    static constexpr double kSharedRows = 2e4;

    // Of one thread. By experience bounds leave two fifths of the pairs.
    double nearest_cost() const { return 0.4 * n_ * n_ / 2 * (Costs::gram(dim_) + Costs::kCompare); }

    double n_;
    int64_t dim_;
    int threads_;
    bool gram_fits_;
    double& alone_;
    Extra extra_;
};

}  // namespace idsel::cpu
