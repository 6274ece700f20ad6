// ID-Selection (arXiv 2604.05601): importance, lowered around every pick.
#pragma once

#include <float.h>
#include <math.h>

#include "rules/arithmetic.h"
#include "rules/rule.h"

namespace idsel {

struct IDSelection : TokenRule {
    static constexpr int kId = 0;
    static constexpr const char* kName = "IDSelection";
    static constexpr int kParamCount = 3;
    static constexpr const char* kParams[kParamCount] = {"gamma", "floor", "ties"};

    float gamma;
    float floor;         // where there is none, the least number: a priority stays one
    bool by_importance;  // what lies at the floor

    static IDSelection from_params(const double* params) {
        const float floor = fmaxf(static_cast<float>(params[1]), -FLT_MAX);
        return {{}, static_cast<float>(params[0]), floor, params[2] != 0.0};
    }

    // The floor holds from the first pick on.
    IDSEL_HD float untouched(float importance) const { return larger(floor, importance); }
    IDSEL_HD float weight(float c) const {
        const float distance = larger(0.0f, 1.0f - c);
        return exponential(-gamma * (distance * distance));
    }
    IDSEL_HD float absorb(float state, float weight, float pick_priority) const {
        return larger(floor, state - weight * pick_priority);
    }
    IDSEL_HD float limit() const { return by_importance ? floor : -INFINITY; }
    IDSEL_HD bool settled(float state) const { return state <= floor; }
    IDSEL_HD bool inert(float pick_priority) const { return pick_priority == 0.0f; }
    IDSEL_HD bool raises(float pick_priority) const { return pick_priority < 0.0f; }
};

}  // namespace idsel
