// Farthest point sampling in cosine distance: DivPrune (CVPR 2025).
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace idsel {

struct MaxMin {
    static constexpr int kId = 2;
    static constexpr const char* kName = "MaxMin";
    static constexpr int kParamCount = 1;
    static constexpr const char* kParams[kParamCount] = {"start"};
    static constexpr const char* kState = "token";

    long long first;  // -1: the token whose nearest other token is farthest

    static MaxMin from_params(const double* params) { return {static_cast<long long>(params[0])}; }

    // State: the distance 1 - c to the nearest pick. None lies above 2, so 2 stands for "no pick yet".
    IDSEL_HD float start(float /*importance*/) const { return INFINITY; }
    IDSEL_HD float untouched(float /*importance*/) const { return 2.0f; }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const { return fminf(state, 1.0f - c); }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    IDSEL_HD bool settled(float state) const { return state <= 0.0f; }
    IDSEL_HD bool inert(float /*pick_priority*/) const { return false; }
    IDSEL_HD bool raises(float /*pick_priority*/) const { return false; }
    IDSEL_HD long long visible(long long picks) const { return picks; }
};

}  // namespace idsel
