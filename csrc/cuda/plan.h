// How a call is done: which kernels, how many samples each launch takes, where their workspace lies.
#pragma once

#include <cstdint>

#include "cuda/kernel_args.h"
#include "idsel/select.h"
#include "rules/rules.h"

namespace idsel::cuda {

// What the planner has to know of a rule.
struct RuleTraits {
    State state;
    bool needs_similarities;
    bool needs_runs;  // of all pairs, before the first pick
};
RuleTraits traits_of(const idsel_args& args);

// By sizes and rule alone; what a device changes comes later and takes no more workspace.
struct Plan {
    explicit Plan(const idsel_args& args);

    // Fills in the workspace of `to`, from `base` on; returns its bytes.
    int64_t lay_out(void* base, KernelArgs& to) const;

    bool ragged;
    int64_t tokens;
    int64_t dim;
    RuleTraits rule;
    bool keeps_gram;   // of every sample
    bool keeps_short;  // of samples of a ragged batch that are short enough
    int64_t gram_width;
    int64_t history_depth;
    int64_t most_tiles;  // columns of a sample that is worked on in panels
    int64_t samples;     // per launch
    int64_t rows;
};

}  // namespace idsel::cuda
