// What a rule is to the engines: traits, by which they choose, and functions, which they call. Both have defaults here;
// a rule states only what differs.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace idsel {

// What the loop over picks carries for a rule.
enum class State : int32_t {
    kToken,     // one number per token; a pick means one row of the Gram
    kHistory,   // and one per token and earlier pick
    kCoverage,  // a sum over the whole Gram, which every pick changes
};

constexpr const char* name_of(State state) {
    switch (state) {
        case State::kToken:
            return "token";
        case State::kHistory:
            return "history";
        case State::kCoverage:
            return "coverage";
    }
    return "";
}

// clang-format off
// Contract of a rule (csrc/rules/*.h), a trivially copyable struct of at most 32 bytes:
//   kId             its number, as `rule_id` in idsel_kernels/rules.py
//   kName           its class there
//   kParamCount     how many numbers `encode()` gives
//   kParams         and their names
//   from_params(p)  the rule with these parameters
// A rule with a default here need not state it:
//   kState               what the loop carries
//   kNeedsSimilarities   false: no pick changes anything, so that no dot product of two tokens is needed
//   needs_nearest()      whether its first priorities need the similarities of all pairs
// clang-format on
struct Rule {
    static constexpr State kState = State::kToken;
    static constexpr bool kNeedsSimilarities = true;
    static constexpr int kParamCount = 0;
    static constexpr const char* const* kParams = nullptr;

    IDSEL_HD bool needs_nearest() const { return false; }
};

// clang-format off
// Contract of a rule with one number per token, its state. How a token's number and priority develop:
//   start(importance, nearest)    number and priority before the first pick; `nearest` is the largest similarity to
//                                 another token, where needs_nearest()
//   given_start()                 the index of the token that has to be picked first; -1: the best one
//   untouched(importance)         number once a pick counts, before that pick is absorbed. It may differ from start():
//                                 the first pick of MMR and MaxMin is ranked by another quantity
//   absorb(number, c, priority)   number after a pick of this priority, to which the token has similarity c
//   priority(number, importance)  from the number, once a pick counts
//   suppresses_place(i, j)        whether picking i takes all priority from j because of where they lie
// What lets an engine leave work out. A wrong answer gives wrong picks, so that each needs a proof
// (docs/cpu_engine.md, "The bound of each rule"); the defaults are always right, except that of raises():
//   settled(number)     no later pick can change this number
//   inert(priority)     a pick of this priority changes no number, so that nobody has to absorb it. Not asked of the
//                       first pick, after which numbers are untouched()
//   raises(priority)    a pick of this priority may raise the priority of a token. The default says that none does:
//                       then the priority of a token that has not seen all picks is an upper bound
//   visible(picks)      how many of the picks made so far the priorities take into account
// clang-format on
struct TokenRule : Rule {
    IDSEL_HD float start(float importance, float /*nearest*/) const { return importance; }
    IDSEL_HD long long given_start() const { return -1; }
    IDSEL_HD float untouched(float importance) const { return importance; }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    IDSEL_HD bool suppresses_place(long long /*i*/, long long /*j*/) const { return false; }

    IDSEL_HD bool settled(float /*state*/) const { return false; }
    IDSEL_HD bool inert(float /*pick_priority*/) const { return false; }
    IDSEL_HD bool raises(float /*pick_priority*/) const { return false; }
    IDSEL_HD long long visible(long long picks) const { return picks; }
};

}  // namespace idsel
