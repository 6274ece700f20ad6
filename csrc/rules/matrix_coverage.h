// Coverage of a matrix that is given: MMTok (ICLR 2026).
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct MatrixCoverage : Rule {
    static constexpr int kId = 7;
    static constexpr const char* kName = "MatrixCoverage";
    static constexpr State kState = State::kChannels;
    static constexpr bool kNeedsSimilarities = false;

    static MatrixCoverage from_params(const double*) { return {}; }

    // What covering a channel up to x would add, given how well it is covered: at least 0, so that less than 0 is none.
    IDSEL_HD float uncovered(float x, float cover) const { return fmaxf(0.0f, x - cover); }
    IDSEL_HD float cover(float cover, float x) const { return fmaxf(cover, x); }
};

}  // namespace idsel
