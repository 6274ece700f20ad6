// Farthest point sampling in cosine distance: DivPrune (CVPR 2025); weighted: ADTS of FlashVID (arXiv 2602.08024).
#pragma once

#include <math.h>

#include "rules/arithmetic.h"
#include "rules/rule.h"

namespace idsel {

struct MaxMin : TokenRule {
    static constexpr int kId = 2;
    static constexpr const char* kName = "MaxMin";
    static constexpr bool kMayNeedNearest = true;
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"start", "weighted"};

    long long first;    // -1: the token whose nearest other token is farthest
    float least, most;  // weights, bounded so that products stay finite; where nothing is weighted, 1 and 1

    static MaxMin from_params(const double* params) {
        const bool weighted = params[1] != 0.0;
        return {{}, static_cast<long long>(params[0]), weighted ? 0.0f : 1.0f, weighted ? 0x1p100f : 1.0f};
    }

    IDSEL_HD float weight_of(float importance) const { return smaller(larger(importance, least), most); }

    IDSEL_HD bool needs_nearest() const { return first < 0; }
    // Before a given start no distance constrains anybody. What weighs nothing has 0, even without another token.
    IDSEL_HD float start(float importance, float nearest) const {
        const float weight = weight_of(importance);
        return first >= 0 ? INFINITY : weight > 0.0f ? weight * (1.0f - nearest) : 0.0f;
    }
    IDSEL_HD long long given_start() const { return first; }
    // State: the distance 1 - c to the nearest pick. None lies above 2, so 2 stands for "no pick yet".
    IDSEL_HD float untouched(float /*importance*/) const { return 2.0f; }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const { return smaller(state, 1.0f - c); }
    IDSEL_HD float priority(float distance, float importance) const { return weight_of(importance) * distance; }
    IDSEL_HD bool settled(float state) const { return state <= 0.0f; }
};

}  // namespace idsel
