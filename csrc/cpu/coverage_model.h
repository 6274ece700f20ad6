// Coverage: a priority is a sum over a whole row of the Gram.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/gram_rows.h"
#include "cpu/greedy.h"
#include "rules/rules.h"

namespace idsel::cpu {

class CoverageModel {
  public:
    static constexpr bool kShared = false;  // it shares out a row, not tokens

    CoverageModel(const Coverage& rule, Run& run);

    bool lazy() const { return lazy_; }
    bool begun() const { return true; }
    bool due() const { return false; }
    void begin() {}

    float key(int64_t j) const { return key_of(j, gain_[static_cast<size_t>(j)]); }
    bool eligible(int64_t) const { return true; }
    bool fresh(int64_t j) const { return version_[static_cast<size_t>(j)] == picked_; }

    int64_t progress(int64_t) const { return 0; }
    int64_t advance(const int64_t* tokens, int64_t count);
    bool take(const Pick& pick);
    bool settled(int64_t) const { return false; }
    int64_t missing(int64_t) const { return 0; }
    static constexpr bool kHistory = false;
    static constexpr bool kWeighs = false;
    static constexpr bool kRows = false;  // a pick changes sums, not a number per token

  private:
    float key_of(int64_t j, float gain) const {
        const float priority = rule_.priority(gain, saliency_[static_cast<size_t>(j)]);
        return priority > kNoKey ? priority : kNoKey;
    }
    void advance(int64_t j);
    const float* row(int64_t j);
    float gain_of(const float* row) const;
    void provide_row(int64_t j);
    void compute_row(int64_t j);
    bool gram_pays(int64_t j) const;

    // Where the Gram exceeds the budget. Gains are summed ahead of being asked for, because rows are computed several
    // at a time; a gain that the loop has not asked for stays a bound in its eyes.
    bool summed(int64_t j) const { return summed_at_[static_cast<size_t>(j)] == picked_; }
    void sum_ahead(int64_t j);
    void sum_all();
    void sum(const std::vector<int64_t>& tokens);
    void sum_kept(int64_t j);
    std::vector<int64_t> rivals(int64_t j) const;

    Coverage rule_;
    Run& run_;
    CostModel cost_model_;
    bool lazy_ = true;
    int32_t picked_ = 0;
    int64_t rows_computed_ = 0;
    std::vector<float> cover_;  // +inf where a token does not take part, so that nothing is gained there
    std::vector<float> gain_;   // of the version below, an upper bound later
    std::vector<float> saliency_;
    std::vector<int32_t> version_;  // number of picks that gain_ accounts for, -1: none, not even the rows' own
    std::vector<std::unique_ptr<float[]>> rows_;  // those computed, until the Gram is there
    std::vector<float> row_;                      // one of a Gram that was given

    std::unique_ptr<GramRows> few_rows_;  // in place of rows_ and the Gram where that exceeds the budget
    std::vector<float> gain_ahead_;       // (n,) bounds no worse than gain_
    std::vector<int32_t> summed_at_;      // number of picks that gain_ahead_ accounts for
    std::vector<float> worth_;            // (n,) of keeping a row: the bound on its token's priority
    int64_t summed_for_pick_ = 0;         // gains for which rows were computed for this pick
};

}  // namespace idsel::cpu
