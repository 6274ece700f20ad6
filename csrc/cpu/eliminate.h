// Elimination decides on all picks at once, from the whole Gram.
#pragma once

#include "cpu/greedy.h"
#include "rules/rules.h"

namespace idsel::cpu {

// Picks as many tokens as take part and are wanted.
void eliminate(const Elimination& rule, Run& run);

}  // namespace idsel::cpu
