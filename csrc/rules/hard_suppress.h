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
    int radius;  // on a grid
    int width;   // of the grid; <= 0: there is none
    int reach;   // the radius; -1 where there is no grid: no distance is within it

    static HardSuppress from_params(const double* params) {
        HardSuppress rule{{}, static_cast<float>(params[0]), static_cast<int>(fmin(params[3], 0x1p29)), 0, -1};
        rule.set_width(static_cast<int>(fmin(params[2], 0x1p30)));
        return rule;
    }

    IDSEL_HD void set_width(int of_grid) {
        width = of_grid;
        reach = has_grid() ? radius : -1;
    }
    IDSEL_HD float absorb(float state, float c, float /*pick_priority*/) const {
        return c > threshold ? -INFINITY : state;
    }
    IDSEL_HD bool has_grid() const { return width > 0; }
    IDSEL_HD Cell cell(int j) const {
        if (!has_grid()) return {0, 0};
        const auto row = static_cast<int>(static_cast<unsigned>(j) / static_cast<unsigned>(width));
        return {row, j - row * width};
    }
    IDSEL_HD bool suppresses(Cell pick, Cell other) const {
        const auto near = [&](int a, int b) {
            return static_cast<unsigned>(a - b + reach) <= 2 * static_cast<unsigned>(reach);
        };
        return near(pick.row, other.row) && near(pick.column, other.column);
    }
    IDSEL_HD bool settled(float state) const { return state == -INFINITY; }
};

}  // namespace idsel
