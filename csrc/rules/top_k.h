// Importance alone: FastV (arXiv 2403.06764), FasterVLM (arXiv 2412.01818).
#pragma once

#include "rules/rule.h"

namespace idsel {

struct TopK : TokenRule {
    static constexpr int kId = 6;
    static constexpr const char* kName = "TopK";
    static constexpr bool kNeedsSimilarities = false;

    static TopK from_params(const double*) { return {}; }

    IDSEL_HD float absorb(float state, float /*c*/, float /*pick_priority*/) const { return state; }
};

}  // namespace idsel
