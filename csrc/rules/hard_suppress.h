// Greedy non-maximum suppression: D2Pruner's second stage (arXiv 2512.19443), TRIO.
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace idsel {

struct HardSuppress {
    static constexpr int kId = 3;
    static constexpr const char* kName = "HardSuppress";
    static constexpr int kParamCount = 4;
    static constexpr const char* kParams[kParamCount] = {"threshold", "height", "width", "radius"};
    static constexpr const char* kState = "token";

    float threshold;
    long long width;  // 0: no grid
    long long radius;

    static HardSuppress from_params(const double* params) {
        return {static_cast<float>(params[0]), static_cast<long long>(params[2]), static_cast<long long>(params[3])};
    }

    IDSEL_HD float start(float importance) const { return importance; }
    IDSEL_HD float untouched(float importance) const { return importance; }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const {
        return c > threshold ? -INFINITY : state;
    }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    IDSEL_HD bool settled(float state) const { return state == -INFINITY; }
    IDSEL_HD bool inert(float /*pick_priority*/) const { return false; }
    IDSEL_HD bool raises(float /*pick_priority*/) const { return false; }
    IDSEL_HD long long visible(long long picks) const { return picks; }

    // Suppression by place on the grid, which needs no similarity.
    IDSEL_HD bool within_radius(long long a, long long b) const {
        if (width == 0) return false;
        const long long rows = a / width - b / width, columns = a % width - b % width;
        return rows <= radius && -rows <= radius && columns <= radius && -columns <= radius;
    }
};

}  // namespace idsel
