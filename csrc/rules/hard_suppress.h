// Greedy non-maximum suppression: D2Pruner's second stage (arXiv 2512.19443), TRIO.
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct HardSuppress : TokenRule {
    static constexpr int kId = 3;
    static constexpr const char* kName = "HardSuppress";
    static constexpr int kParamCount = 4;
    static constexpr const char* kParams[kParamCount] = {"threshold", "height", "width", "radius"};

    float threshold;
    long long width;  // 0: no grid
    long long radius;

    static HardSuppress from_params(const double* params) {
        return {
            {}, static_cast<float>(params[0]), static_cast<long long>(params[2]), static_cast<long long>(params[3])};
    }

    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const {
        return c > threshold ? -INFINITY : state;
    }
    IDSEL_HD bool suppresses_place(long long i, long long j) const {
        if (width == 0) return false;
        const long long rows = i / width - j / width, columns = i % width - j % width;
        return rows <= radius && -rows <= radius && columns <= radius && -columns <= radius;
    }
    IDSEL_HD bool settled(float state) const { return state == -INFINITY; }
};

}  // namespace idsel
