// Coverage: a priority is a sum over a whole row of the Gram.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/blocked_argmax.h"
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

    float key(int64_t j) const {
        const float priority = rule_.priority(gain_[static_cast<size_t>(j)], saliency_[static_cast<size_t>(j)]);
        return priority > kNoKey ? priority : kNoKey;
    }
    bool eligible(int64_t) const { return true; }
    bool fresh(int64_t j) const { return version_[static_cast<size_t>(j)] == picked_; }

    int64_t progress(int64_t) const { return 0; }
    int64_t advance(const int64_t* tokens, int64_t count);
    bool take(const Pick& pick);
    static constexpr Dense kDense = Dense::kNever;  // advance(), which computes rows, decides on the Gram
    int64_t missing(int64_t) const { return 0; }

  private:
    void advance(int64_t j);
    const float* row(int64_t j) const;
    void provide_row(int64_t j);
    void compute_row(int64_t j);
    bool gram_pays(int64_t j) const;

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
    std::vector<std::unique_ptr<float[]>> rows_;
};

}  // namespace idsel::cpu
