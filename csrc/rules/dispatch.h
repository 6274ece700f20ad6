// From run-time values to types.
#pragma once

#include "rules/rules.h"

namespace idsel {

// Calls `use(rule)` with the rule of this id, built from its parameters. False where no rule has the id.
template <class Use, class... R>
bool with_rule(RuleList<R...>, int id, const double* params, Use&& use) {
    return ((R::kId == id ? (use(R::from_params(params)), true) : false) || ...);
}

}  // namespace idsel
