// ID-Selection (arXiv 2604.05601): importance, lowered around every pick.
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace idsel {

struct IDSelection {
    static constexpr int kId = 0;
    static constexpr const char* kName = "IDSelection";
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"gamma", "floor"};
    static constexpr const char* kState = "token";

    float gamma;
    float floor;  // -inf: none

    static IDSelection from_params(const double* params) {
        return {static_cast<float>(params[0]), static_cast<float>(params[1])};
    }

    IDSEL_HD float start(float importance) const { return importance; }
    // State of a token that no visible pick has touched, given that some pick is visible: the floor holds already.
    IDSEL_HD float untouched(float importance) const { return fmaxf(floor, importance); }
    IDSEL_HD float absorb(float state, float c, float pick_priority) const {
        const float distance = fmaxf(0.0f, 1.0f - c);
        return fmaxf(floor, state - expf(-gamma * (distance * distance)) * pick_priority);
    }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    // No later pick can change it.
    IDSEL_HD bool settled(float state) const { return state <= floor; }
    // Such a pick changes nothing, so that nobody has to absorb it.
    IDSEL_HD bool inert(float pick_priority) const { return pick_priority == 0.0f; }
    // Such a pick may raise others.
    IDSEL_HD bool raises(float pick_priority) const { return pick_priority < 0.0f; }
    // How many of the picks made so far the priorities take into account.
    IDSEL_HD long long visible(long long picks) const { return picks; }
};

}  // namespace idsel
