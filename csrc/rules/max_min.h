// Farthest point sampling in cosine distance: DivPrune (CVPR 2025); weighted: ADTS of FlashVID (arXiv 2602.08024).
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct MaxMin : TokenRule {
    static constexpr int kId = 2;
    static constexpr const char* kName = "MaxMin";
    static constexpr bool kMayNeedNearest = true;
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"start", "weighted"};

    long long first;  // -1: the token whose nearest other token is farthest
    bool weighted;

    static MaxMin from_params(const double* params) {
        return {{}, static_cast<long long>(params[0]), params[1] != 0.0};
    }

    IDSEL_HD bool needs_nearest() const { return first < 0; }
    // Before a given start no distance constrains anybody.
    IDSEL_HD float start(float importance, float nearest) const {
        return first < 0 ? priority(1.0f - nearest, importance) : INFINITY;
    }
    IDSEL_HD long long given_start() const { return first; }
    // State: the distance 1 - c to the nearest pick. None lies above 2, so 2 stands for "no pick yet".
    IDSEL_HD float untouched(float /*importance*/) const { return 2.0f; }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const { return fminf(state, 1.0f - c); }
    // Bounded, so that the product stays finite; and without a weight it is 0, even where there is no other token.
    IDSEL_HD float priority(float distance, float importance) const {
        if (!weighted) return distance;
        return importance > 0.0f ? fminf(importance, 0x1p100f) * distance : 0.0f;
    }
    IDSEL_HD bool settled(float state) const { return state <= 0.0f; }
};

}  // namespace idsel
