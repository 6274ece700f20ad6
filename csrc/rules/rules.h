// All rules, in the order of their ids. Engines instantiate what they need from this list, and nothing else lists
// rules.
#pragma once

#include "rules/coverage.h"
#include "rules/dpp.h"
#include "rules/hard_suppress.h"
#include "rules/id_selection.h"
#include "rules/max_min.h"
#include "rules/mmr.h"
#include "rules/top_k.h"

namespace idsel {

template <class... R>
struct RuleList {};

using AllRules = RuleList<IDSelection, MMR, MaxMin, HardSuppress, DPP, Coverage, TopK>;

}  // namespace idsel
