// One sample of a call, as the rules see it.
#pragma once

#include <cstdint>
#include <vector>

#include "idsel/select.h"
#include "rules/tier.h"

namespace idsel::cpu {

struct Sample {
    const char* features = nullptr;  // (n, dim), rows `row_bytes` apart
    int64_t row_bytes = 0;
    int32_t dtype = IDSEL_FLOAT32;
    int64_t n = 0;
    int64_t dim = 0;            // 1 where similarities are given: to look one up, no features are read
    bool similarities = false;  // `features` are the similarities of the tokens, (n, n)
    int64_t k = 0;              // picks wanted
    // The most bytes that all its similarities may take, and rows of them where they are more. A Gram within it is
    // worth its memory: rows that are computed again take several times as long. Rows within a few are as good as of
    // more.
    int64_t gram_budget = int64_t{256} << 20;
    int64_t rows_budget = int64_t{64} << 20;

    // (n,) each. Tier::kNoPriority stands for every token that competes: whether it has a priority is the model's to
    // say. Features that are not finite are found out when first read. `importance` is clamped, -inf where a token does
    // not compete.
    std::vector<Tier> tier;
    std::vector<float> importance;

    int32_t loop = IDSEL_LOOP_AUTO;
    std::vector<int64_t> given;  // what to begin with, some of them perhaps not to be picked

    bool competes(int64_t token) const { return tier[static_cast<size_t>(token)] >= Tier::kNoPriority; }
    const void* row(int64_t token) const { return features + token * row_bytes; }
    const void* element(int64_t token, int64_t d) const {
        return features + token * row_bytes + d * (dtype == IDSEL_FLOAT32 ? 4 : 2);
    }
};

// One pick: the token and the priority at which it was taken.
struct Pick {
    int64_t token;
    float priority;
};

}  // namespace idsel::cpu
