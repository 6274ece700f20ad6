// The rules that decide on all picks at once.
#pragma once

#include "cpu/greedy.h"
#include "rules/rules.h"

namespace idsel::cpu {

// Picks as many tokens as take part and are wanted, from the Gram, or from rows of it where it exceeds the budget.
void pick_at_once(const Elimination& rule, Run& run);

// Picks as many tokens as take part and are wanted, from the rows of the pivots; without a pivot none. Rows that are no
// tokens are not there afterwards.
void pick_at_once(const DART& rule, Run& run);

}  // namespace idsel::cpu
