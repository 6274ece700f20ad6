// Greedy non-maximum suppression: D2Pruner's second stage (arXiv 2512.19443), TRIO.
#pragma once

#include <math.h>

#include "rules/rule.h"

namespace idsel {

struct HardSuppress : TokenRule {
    static constexpr int kId = 3;
    static constexpr const char* kName = "HardSuppress";
    static constexpr int kParamCount = 4;
    static constexpr bool kHasCells = true;
    static constexpr const char* kParams[kParamCount] = {"threshold", "height", "width", "radius"};

    float threshold;
    int width;   // of the grid; 0: there is none
    int radius;  // -1 where there is no grid: no distance is within it

    static HardSuppress from_params(const double* params) {
        const int width = static_cast<int>(fmin(params[2], 0x1p30));
        return {{}, static_cast<float>(params[0]), width, width == 0 ? -1 : static_cast<int>(fmin(params[3], 0x1p29))};
    }

    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const {
        return c > threshold ? -INFINITY : state;
    }
    IDSEL_HD Cell cell(int j) const {
        if (width == 0) return {0, 0};
        const auto row = static_cast<int>(static_cast<unsigned>(j) / static_cast<unsigned>(width));
        return {row, j - row * width};
    }
    IDSEL_HD bool suppresses(Cell pick, Cell other) const {
        const auto near = [&](int a, int b) {
            return static_cast<unsigned>(a - b + radius) <= 2 * static_cast<unsigned>(radius);
        };
        return near(pick.row, other.row) && near(pick.column, other.column);
    }
    IDSEL_HD bool settled(float state) const { return state == -INFINITY; }
};

}  // namespace idsel
