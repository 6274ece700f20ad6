// Greedy MAP of a determinantal point process: CDPruner (NeurIPS 2025).
#pragma once

#include <math.h>

#include "rules/arithmetic.h"
#include "rules/rule.h"

namespace idsel {

struct DPP : Rule {
    static constexpr int kId = 4;
    static constexpr const char* kName = "DPP";
    static constexpr int kParamCount = 1;
    static constexpr const char* kParams[kParamCount] = {"eps"};
    static constexpr State kState = State::kHistory;
    static constexpr float kNoPriority = INFINITY;  // which is divided by

    float eps;

    static DPP from_params(const double* params) { return {{}, static_cast<float>(params[0])}; }

    // Its square stays finite.
    IDSEL_HD float quality(float importance) const { return smaller(larger(importance, -0x1p63f), 0x1p63f); }
    // L_jj of a token with a direction; a zero row has L_jj = 0.
    IDSEL_HD float start(float quality) const { return quality * quality; }
    // What the picks leave of the token along pick i: e_j. `overlap` is the sum over earlier rows r_t[i] * r_t[j].
    IDSEL_HD float component(float pick_quality, float c, float quality, float overlap, float pick_d) const {
        return (pick_quality * c * quality - overlap) / sqrtf(pick_d);
    }
    IDSEL_HD float absorb(float d, float component) const { return d - component * component; }
    // Below or at this the picks span the token.
    IDSEL_HD float rank_floor(float largest_d) const { return eps * largest_d; }
    IDSEL_HD float priority(float d, float rank_floor) const { return d > rank_floor ? d : -INFINITY; }
};

}  // namespace idsel
