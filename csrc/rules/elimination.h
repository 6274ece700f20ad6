// Important tokens, and what rounds of elimination leave of the others: VisPruner (ICCV 2025); also in AngelSlim.
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct Elimination : Rule {
    static constexpr int kId = 8;
    static constexpr const char* kName = "Elimination";
    static constexpr State kState = State::kAll;
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"important", "order"};

    static constexpr int64_t kPerRound = 8;  // fixed in the official code

    double important;
    bool by_position;

    static Elimination from_params(const double* params) { return {{}, params[0], params[1] != 0.0}; }

    // How many of `keep` tokens are kept for their importance.
    int64_t share_of(int64_t keep) const {
        const double share = static_cast<double>(keep) * important;
        if (!by_position) return static_cast<int64_t>(floor(share));
        const auto rounded = static_cast<int64_t>(rint(share)), most = keep > 2 ? keep - 1 : 1;
        return rounded < most ? rounded : most;
    }
    // Of a list of `left` tokens, of which `aim` are wanted, how many a round drops.
    int64_t drop_of(int64_t left, int64_t aim) const {
        const int64_t most = by_position ? left / 2 : (left + 1) / 2, excess = left - aim;
        const int64_t few = excess < kPerRound ? excess : kPerRound;
        return few < most ? few : most;
    }
};

}  // namespace idsel
