// All rules, in the order of their ids. Engines instantiate what they need from these lists; csrc/cuda/launch.cu
// declares a kernel for each of the greedy ones.
#pragma once

#include "rules/coverage.h"
#include "rules/dart.h"
#include "rules/dpp.h"
#include "rules/elimination.h"
#include "rules/hard_suppress.h"
#include "rules/id_selection.h"
#include "rules/matrix_coverage.h"
#include "rules/max_min.h"
#include "rules/mmr.h"
#include "rules/top_k.h"

namespace idsel {

template <class... R>
struct RuleList {};

template <class... R, class... More>
constexpr RuleList<R..., More...> joined(RuleList<R...>, RuleList<More...>) {
    return {};
}

// Those that pick one by one, and all.
using GreedyRules = RuleList<IDSelection, MMR, MaxMin, HardSuppress, DPP, Coverage, TopK, MatrixCoverage>;
using AllRules = decltype(joined(GreedyRules{}, RuleList<Elimination, DART>{}));

template <class... R>
constexpr int count_of(RuleList<R...>) {
    return sizeof...(R);
}
constexpr int kRules = count_of(AllRules{});  // whose ids are 0, 1, ...

template <class... R>
constexpr int rules_with(State state, RuleList<R...>) {
    return ((R::kState == state ? 1 : 0) + ...);
}
static_assert(rules_with(State::kHistory, AllRules{}) == 1, "the models of this state are those of DPP");
static_assert(rules_with(State::kCoverage, AllRules{}) == 1, "the models of this state are those of Coverage");
static_assert(rules_with(State::kChannels, AllRules{}) == 1, "the models of this state are those of MatrixCoverage");

}  // namespace idsel
