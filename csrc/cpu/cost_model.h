// When the dense path pays: a comparison of counted work, never of measured time.
#pragma once

#include <algorithm>
#include <cstdint>

namespace idsel::cpu {

// Costs in nanoseconds of the machine on which they were fitted (docs/cpu_engine.md). Only their ratios matter, and
// only for speed: every path picks the same tokens.
struct Costs {
    // One similarity on demand, a few of a token from one reading of its features, and the rule.
    static double on_demand(int64_t dim) { return 20.0 + 0.08 * static_cast<double>(dim); }
    // One similarity of a row, all tokens in turn, and the rule.
    static double row(int64_t dim) { return 20.0 + 0.10 * static_cast<double>(dim); }
    // What goes with either and no other thread can take over: finding the token, and its new place.
    static constexpr double kSearch = 30.0;
    // One of the n * (n - 1) / 2 similarities of a Gram.
    static double gram(int64_t dim) { return 8.0 + 0.042 * static_cast<double>(dim); }
    // What a search for the nearest token of each does with one of them.
    static constexpr double kCompare = 2.0;
    // One token in a step of a loop over a Gram.
    static constexpr double kStep = 8.0;
};

// What the lazy loop counts, and what it concludes.
class CostModel {
  public:
    CostModel(int64_t n, int64_t dim, int threads, bool gram_fits)
        : n_(static_cast<double>(n)), dim_(dim), threads_(threads), gram_fits_(gram_fits) {}

    // Cost of going on densely for `picks` more picks, `stale` pairs of token and pick being open.
    double rows_cost(double picks, double stale) const {
        return (picks * n_ + stale) * (Costs::kSearch + Costs::row(dim_) / threads_);
    }
    double gram_cost() const { return n_ * n_ / 2 * Costs::gram(dim_) / threads_; }
    bool gram_beats_rows(double picks, double stale) const {
        return gram_fits_ && gram_cost() + picks * n_ * Costs::kStep < rows_cost(picks, stale);
    }

    // Whether a similarity takes so much longer than finding its token that reading several together saves time.
    static bool reading_dominates(int64_t dim) { return Costs::on_demand(dim) > 4 * Costs::kSearch; }

    // Whether computing `dots` similarities on demand should be shared out among threads. Starting them takes a tenth
    // of a millisecond; and right after an operation of torch's, whose own threads go on looking for work for a while,
    // a helper may be kept from its share for milliseconds. So first as much has to be done alone.
    bool sharing_pays(int64_t dots, bool started) {
        const double work = static_cast<double>(dots) * Costs::on_demand(dim_);
        alone_ += work;
        return work > 5e3 && (started || alone_ > kAlone);
    }

    // After a pick, for which `evaluations` similarities were computed on demand.
    void count_pick(int64_t evaluations) {
        const auto fresh = static_cast<double>(evaluations);
        rate_ = picks_++ == 0 ? fresh : (3 * rate_ + fresh) / 4;
    }
    // Whether `picks` picks that begin with a search for the nearest token of each had better begin with the Gram. By
    // experience a pick then brings half of the tokens up to date.
    bool gram_pays_at_once(double picks) const {
        const double pick = n_ / 2 * (Costs::kSearch + Costs::on_demand(dim_) / threads_);
        return gram_fits_ && nearest_cost() / threads_ + picks * pick > gram_cost() + picks * n_ / 2 * Costs::kStep;
    }
    // Whether such a search should be shared out. Its loops are short, and helpers that are there are used by the picks
    // that follow, too: right after an operation of torch's that costs more than it saves, unless there is much to do.
    bool sharing_nearest_pays() const { return nearest_cost() > 16 * kAlone; }
    // Whether `picks` more picks at the present rate cost more than the Gram and its look-ups. Rows of it never cost
    // less than laziness, which computes some of the same similarities.
    bool gram_pays(double picks) const {
        const double lazy = picks * rate_ * (Costs::kSearch + Costs::on_demand(dim_) / threads_);
        return gram_fits_ && lazy > gram_cost() + picks * n_ * Costs::kStep;
    }

  private:
    static constexpr double kAlone = 2e6;

    // Of one thread. By experience bounds leave two fifths of the pairs.
    double nearest_cost() const { return 0.4 * n_ * n_ / 2 * (Costs::gram(dim_) + Costs::kCompare); }

    double n_;
    int64_t dim_;
    int threads_;
    bool gram_fits_;
    int64_t picks_ = 0;
    double rate_ = 0;
    double alone_ = 0;
};

}  // namespace idsel::cpu
