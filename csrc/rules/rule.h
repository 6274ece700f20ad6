// What a rule is to the engines: traits, by which they choose, and functions, which they call. Both have defaults here;
// a rule states only what differs.
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"

namespace idsel {

// What the loop over picks carries for a rule.
enum class State : int32_t {
    kToken,     // one number per token; a pick means one row of the Gram
    kHistory,   // as kToken, and one number per token and earlier pick
    kCoverage,  // a sum over the whole Gram, which every pick changes
    kChannels,  // a number per channel of the features, which are not compared
    kAll,       // nothing: all picks are decided at once
};

constexpr const char* name_of(State state) {
    switch (state) {
        case State::kToken:
            return "token";
        case State::kHistory:
            return "history";
        case State::kCoverage:
            return "coverage";
        case State::kChannels:
            return "channels";
        case State::kAll:
            return "all";
    }
    return "";
}

// clang-format off
// contract: rule: rules/id_selection.h+rules/rule.h
// A rule is a trivially copyable struct of at most 32 bytes.
//   int kId                   its number, as `rule_id` in idsel_kernels/rules.py
//   const char* kName         its class there
//   int kParamCount           how many numbers `encode()` gives
//   const char* kParams       and their names
//   from_params(params)       the rule with these numbers
// Traits, which need not be stated where the default below holds:
//   State kState              what the loop carries
//   bool kNeedsSimilarities   false: no pick changes a priority, so that no two tokens are compared
//   bool kMayNeedNearest      false: needs_nearest() never holds
//   bool kHasCells            false: where tokens lie never matters
//   float kNoPriority         0: the priority at which a pick lowers no other, for picks that are given and have none
//   bool needs_nearest()      whether its first priorities need the similarities of all pairs of tokens
// clang-format on
struct Rule {
    static constexpr State kState = State::kToken;
    static constexpr bool kNeedsSimilarities = true;
    static constexpr bool kMayNeedNearest = false;
    static constexpr bool kHasCells = false;
    static constexpr float kNoPriority = 0.0f;
    static constexpr int kParamCount = 0;
    static constexpr const char* const* kParams = nullptr;

    IDSEL_HD bool needs_nearest() const { return false; }
};

// clang-format off
// contract: token rule: rules/id_selection.h+rules/rule.h
// A rule with one number per token, its state. How state and priority of a token develop:
//   float start(importance, nearest)    both before the first pick; `nearest` is the largest similarity to another
//                                       token, where needs_nearest(), and no larger one gives a larger priority
//   long long given_start()             the index of the token that has to be picked first; -1: the best one
//   float untouched(importance)         the state before the first pick is absorbed, unless that pick raises(). It may
//                                       differ from start(): the first pick of MMR and MaxMin is ranked by another
//                                       quantity. Its priority bounds all that follow
//   float weight(c)                     what a similarity to a pick means, as far as it does not depend on the pick
//   float absorb(state, weight, priority)  the state after a pick of this priority, given the weight of the token's
//                                       similarity to it
//   float priority(state, importance)   from the state, once a pick counts
//   float limit()                       a priority at or below it is none, from the start
//   void set_width(width)               of the grid of the sample, where it has one of its own; <= 0: it has none
//   bool has_grid()                     whether they lie on one; if not, all have the cell {0, 0}
//   Cell cell(j)                        where a token lies
//   bool suppresses(cell, other)        whether a pick takes its priority from another token for where they lie: its state
//                                       is then -inf, which priority() and absorb() have to keep
// What lets an engine leave work out. A wrong answer gives wrong picks: each needs the proof that docs/cpu_engine.md has
// under "The bound of each rule". The defaults are safe for any rule whose priorities never rise:
//   bool settled(state)                 no later pick can change this state, as long as none raises()
//   bool inert(priority)                a pick of this priority changes no state, so that no token has to absorb it. It
//                                       is not asked of the first pick, which brings states from start() to untouched()
//   bool raises(priority)               a pick of this priority may raise the priority of a token: an old one is then no
//                                       upper bound any more. Not together with given_start()
//   int visible(picks)                  how many of the picks made so far the priorities take into account: all, or as
//                                       many as when it last was all. Not together with inert()
// clang-format on
struct Cell {
    int row, column;
};

struct TokenRule : Rule {
    IDSEL_HD float start(float importance, float /*nearest*/) const { return importance; }
    IDSEL_HD long long given_start() const { return -1; }
    IDSEL_HD float untouched(float importance) const { return importance; }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    IDSEL_HD float limit() const { return -INFINITY; }
    IDSEL_HD float weight(float c) const { return c; }
    IDSEL_HD void set_width(int /*width*/) {}
    IDSEL_HD bool has_grid() const { return false; }
    IDSEL_HD Cell cell(int /*j*/) const { return {0, 0}; }
    IDSEL_HD bool suppresses(Cell /*pick*/, Cell /*other*/) const { return false; }

    IDSEL_HD bool settled(float /*state*/) const { return false; }
    IDSEL_HD bool inert(float /*pick_priority*/) const { return false; }
    IDSEL_HD bool raises(float /*pick_priority*/) const { return false; }
    IDSEL_HD int visible(int picks) const { return picks; }
};

// Whether a similarity means something else than itself: the rule then has a function of its own for it.
template <class R>
constexpr bool has_weights() {
    return !std::is_same_v<decltype(&R::weight), decltype(&TokenRule::weight)>;
}

}  // namespace idsel
