// Facility location times saliency: SCOPE.
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct Coverage : Rule {
    static constexpr int kId = 5;
    static constexpr const char* kName = "Coverage";
    static constexpr int kParamCount = 2;
    static constexpr const char* kParams[kParamCount] = {"alpha", "combine"};
    static constexpr State kState = State::kCoverage;

    double alpha;
    bool add;

    static Coverage from_params(const double* params) { return {{}, params[0], params[1] != 0.0}; }

    // Bounded, so that its product with a gain stays finite. The power is rounded once, from double.
    IDSEL_HD float saliency(float importance) const {
        const double power = alpha == 1.0 ? importance : pow(static_cast<double>(importance), alpha);
        const double below = power > 0x1p100 ? 0x1p100 : power;
        return static_cast<float>(below < -0x1p100 ? -0x1p100 : below);  // NaN stays
    }
    // What covering token i up to c would add, given how well it is covered.
    IDSEL_HD float uncovered(float c, float cover) const { return fmaxf(0.0f, c - cover); }
    IDSEL_HD float cover(float cover, float c) const { return fmaxf(cover, c); }
    IDSEL_HD float priority(float gain, float saliency) const { return add ? gain + saliency : gain * saliency; }
    // A smaller gain must not mean a higher priority.
    IDSEL_HD bool rises_with_gain(float saliency) const { return add || saliency >= 0.0f; }
};

}  // namespace idsel
