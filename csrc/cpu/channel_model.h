// Coverage of a matrix that is given: a priority is a sum over the token's own row of features.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"
#include "rules/rules.h"

namespace idsel::cpu {

class ChannelModel {
  public:
    static constexpr bool kShared = false;  // a gain is too little work

    ChannelModel(const MatrixCoverage& rule, Run& run);

    bool lazy() const { return true; }
    bool begun() const { return true; }
    bool due() const { return false; }
    void begin() {}

    float key(int64_t j) const { return gain_[static_cast<size_t>(j)]; }
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
    void sum_gain(int64_t j);
    const float* row(int64_t j) const;
    void widen();

    MatrixCoverage rule_;
    Run& run_;
    int32_t picked_ = 0;
    std::vector<float> cover_;
    std::vector<float> gain_;  // of the version below, an upper bound later
    std::vector<int32_t> version_;
    int64_t width_;            // of a row
    std::vector<float> wide_;  // (n, width), of features that are not float32
};

}  // namespace idsel::cpu
