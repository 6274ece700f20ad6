// Maximal marginal relevance: IDPruner (arXiv 2602.13315).
#pragma once

#include <math.h>

#include "rules/arithmetic.h"
#include "rules/rule.h"

namespace idsel {

struct MMR : TokenRule {
    static constexpr int kId = 1;
    static constexpr const char* kName = "MMR";
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"lam", "parallel_k"};

    float lam;
    float one_minus_lam;
    int parallel_k;  // at least 1

    static MMR from_params(const double* params) {
        return {{},
                static_cast<float>(params[0]),
                static_cast<float>(1.0 - params[0]),
                static_cast<int>(fmin(params[1], 0x1p30))};
    }

    // State: the largest similarity to a pick. None lies below -1, so -1 stands for "no pick yet".
    IDSEL_HD float untouched(float /*importance*/) const { return -1.0f; }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const { return larger(state, c); }
    IDSEL_HD float priority(float state, float importance) const { return lam * importance - one_minus_lam * state; }
    IDSEL_HD bool settled(float state) const { return state >= 1.0f; }
    IDSEL_HD int visible(int picks) const {
        return picks - static_cast<int>(static_cast<unsigned>(picks) % static_cast<unsigned>(parallel_k));
    }
};

}  // namespace idsel
