// A few important pivots, and the tokens least like each of them: DART (EMNLP 2025).
#pragma once

#include "rules/rule.h"

namespace idsel {

struct DART : Rule {
    static constexpr int kId = 9;
    static constexpr const char* kName = "DART";
    static constexpr State kState = State::kAll;
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"pivots", "text_pivots"};

    int64_t pivots;
    int64_t text_pivots;  // the last rows of a sample, which are no tokens

    static DART from_params(const double* params) {
        return {{}, static_cast<int64_t>(params[0]), static_cast<int64_t>(params[1])};
    }
};

}  // namespace idsel
