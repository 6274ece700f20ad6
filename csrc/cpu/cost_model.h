// When the dense path pays: a comparison of counted work, never of measured time.
#pragma once

#include <algorithm>
#include <cstdint>

namespace idsel::cpu {

// Costs in nanoseconds of the machine on which they were fitted (docs/cpu_engine.md). Only their ratios matter, and
// only for speed: every path picks the same tokens.
struct Costs {
    // One similarity on demand, a few of a token from one reading of its features, and the rule.
    static double on_demand(int64_t dim) { return 8.0 + 0.028 * static_cast<double>(dim); }
    // What goes with it and no other thread can take over: finding the token, and its new place.
    static constexpr double kSearch = 8.0;
    // A token from the top: finding it, and among how many blocks of tokens.
    static constexpr double kTop = 30.0;
    static constexpr double kTopOfAll = 0.01;
    // One similarity of a row that all tokens absorb one after the other.
    static double row(int64_t dim) { return 1.3 + 0.04 * static_cast<double>(dim); }
    // The same where it is looked up.
    static constexpr double kStep = 0.7;
    // What histories add to either.
    static constexpr double kHistory = 20.0;
    static constexpr double kHistoryInRow = 3.0;
    // One of the n * (n - 1) / 2 similarities of a Gram.
    static double gram(int64_t dim) { return 3.5 + 0.0135 * static_cast<double>(dim); }
    // What a search for the nearest token of each does with one of them.
    static constexpr double kCompare = 2.0;
};

// What the lazy loop counts, and what it concludes.
class CostModel {
  public:
    // `history`: whether tokens keep numbers of all picks, and meet a pick by a product of those, too.
    CostModel(int64_t n, int64_t dim, int threads, bool gram_fits, bool history = false)
        : n_(static_cast<double>(n)), dim_(dim), threads_(threads), gram_fits_(gram_fits), history_(history ? 1 : 0) {}

    // Whether so many picks can take so long that helpers, which start late, do a good part of it.
    static bool threads_help(int64_t n, int64_t dim, int64_t picks) {
        return static_cast<double>(n * picks) * Costs::row(dim) > 4 * kAlone;
    }

    // Of a row that all tokens absorb, and of as many evaluations one by one.
    double row_cost(bool has_gram) const {
        return n_ * ((has_gram ? Costs::kStep : Costs::row(dim_)) + history_ * Costs::kHistoryInRow) / threads_;
    }
    double lazy_cost(double evaluations, bool has_gram) const {
        const double each = (has_gram ? Costs::kStep : Costs::on_demand(dim_)) + history_ * Costs::kHistory;
        return evaluations * (Costs::kSearch + each / threads_);
    }
    bool exceeds_rows(double evaluations, double from_top, double rows, bool has_gram) const {
        const double search = from_top * (Costs::kTop + n_ * Costs::kTopOfAll);
        return search + lazy_cost(evaluations, has_gram) > rows * row_cost(has_gram);
    }
    // Whether so many evaluations cost more than so many rows, be these computed or looked up in a Gram.
    bool rows_pay(double evaluations, double rows, bool has_gram) const {
        const double lazy = lazy_cost(evaluations, has_gram);
        return lazy > rows * row_cost(has_gram) ||
               (!has_gram && gram_fits_ && lazy > gram_cost() + rows * row_cost(true));
    }
    double gram_cost() const { return n_ * n_ / 2 * Costs::gram(dim_) / threads_; }
    bool gram_beats_rows(double rows) const {
        return gram_fits_ && gram_cost() + rows * row_cost(true) < rows * row_cost(false);
    }

    // Whether a similarity takes so much longer than finding its token that reading several together saves time.
    static bool reading_dominates(int64_t dim) { return Costs::on_demand(dim) > 5.5 * Costs::kSearch; }

    // Whether computing `dots` similarities on demand should be shared out among threads. Starting them takes a tenth
    // of a millisecond; and right after an operation of torch's, whose own threads go on looking for work for a while,
    // a helper may be kept from its share for milliseconds. So first as much has to be done alone.
    bool sharing_pays(int64_t dots, bool started) {
        const double work = static_cast<double>(dots) * Costs::on_demand(dim_);
        alone_ += work;
        return work > 5e3 && (started || alone_ > kAlone);
    }

    // Whether a row of similarities should be shared out among threads.
    bool sharing_row_pays(bool started) {
        const double work = n_ * Costs::row(dim_);
        alone_ += work;
        return work > 2e4 && (started || alone_ > kAlone);
    }

    // After a pick, for which `evaluations` similarities were computed on demand.
    void count_pick(int64_t evaluations) {
        const auto fresh = static_cast<double>(evaluations);
        rate_ = rate_with(fresh);
        ++picks_;
    }
    double rate() const { return rate_; }
    // With the evaluations of one more pick: a single one may need many, as when most priorities fall to the floor.
    double rate_with(double evaluations) const { return picks_ < 2 ? evaluations / 2 : (3 * rate_ + evaluations) / 4; }
    // Whether `picks` picks that begin with a search for the nearest token of each had better begin with the Gram. By
    // experience a pick then brings half of the tokens up to date.
    bool gram_pays_at_once(double picks) const {
        const double pick = std::min(lazy_cost(n_ / 2, false), row_cost(false));
        return gram_fits_ && nearest_cost() / threads_ + picks * pick > gram_cost() + picks * row_cost(true);
    }
    // Whether such a search should be shared out. Its loops are short, and helpers that are there are used by the picks
    // that follow, too: right after an operation of torch's that costs more than it saves, unless there is much to do.
    bool sharing_nearest_pays() const { return nearest_cost() > 16 * kAlone; }

  private:
    static constexpr double kAlone = 1e6;

    // Of one thread. By experience bounds leave two fifths of the pairs.
    double nearest_cost() const { return 0.4 * n_ * n_ / 2 * (Costs::gram(dim_) + Costs::kCompare); }

    double n_;
    int64_t dim_;
    int threads_;
    bool gram_fits_;
    double history_;
    int64_t picks_ = 0;
    double rate_ = 0;
    double alone_ = 0;
};

}  // namespace idsel::cpu
