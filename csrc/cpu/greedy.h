// What the two greedy algorithms share, and what they ask of a model.
//
// A model is a rule together with what its loop carries for every token. Tokens are absorbed into it lazily: a token
// may not have seen all picks yet, and its priority then counts as an upper bound. A model has
//   bool lazy()             whether priorities never rise, as far as is known before the first pick
//   void begin()            the first pick has become visible: priorities are no longer the first ones
//   bool begun(), due()     whether that has happened, whether it has to
//   float key(j)            priority of token j, or the bound on it; WinnerTree::kNone for tier 1
//   bool eligible(j)        false if j turns out never to have a priority; asked when it comes up for a pick
//   bool fresh(j)           whether key(j) is exact
//   int64_t advance(j)      brings it a step nearer and returns the dot products that took; safe in parallel for
//                           different tokens whose norms are known, if kSweeps or there is a Gram
//   kSweeps                 see there
//   bool take(pick)         a pick was made; false if it may raise others, so that laziness is over
//   kDense                  whether the dense path may be less work
//   int64_t missing(j)      picks that j has not absorbed and could
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/planner.h"
#include "cpu/sample.h"
#include "cpu/similarity.h"

namespace idsel::cpu {

// The picks of a sample so far, and the tokens left.
struct Run {
    Run(Sample& of, Similarity& similarities) : sample(of), similarity(similarities), open(of.exists) {}

    bool done() const { return static_cast<int64_t>(picks.size()) >= sample.k; }
    int64_t remaining() const { return sample.k - static_cast<int64_t>(picks.size()); }
    bool competes(int64_t token) const {
        return open[static_cast<size_t>(token)] != 0 && sample.competes[static_cast<size_t>(token)] != 0;
    }
    // A token whose features turned out not to be finite.
    void demote(int64_t token) { sample.competes[static_cast<size_t>(token)] = 0; }
    void take(int64_t token, float priority) {
        picks.push_back({token, priority});
        open[static_cast<size_t>(token)] = 0;
    }

    Sample& sample;
    Similarity& similarity;
    std::vector<uint8_t> open;
    std::vector<Pick> picks;
    int64_t lazy_picks = 0;
    int32_t path = IDSEL_PATH_LAZY;
};

// Picks lazily. Returns true when no more can be picked by priority, false when the dense path should go on.
template <class Model>
bool lazy_greedy(Model& model, Run& run);

// Picks with all priorities exact at every step, until no more can be picked by priority.
template <class Model>
void dense_greedy(Model& model, Run& run);

// The rest: those without a priority by importance, then those that do not take part by index.
void take_rest(Run& run);

// Pairs of a token and a pick it has not absorbed.
template <class Model>
int64_t stale_pairs(const Model& model, const Run& run) {
    int64_t pairs = 0;
    for (int64_t j = 0; j < run.sample.n; ++j) pairs += run.competes(j) ? model.missing(j) : 0;
    return pairs;
}

// All of it for one sample.
template <class Model>
void run_greedy(Model& model, Run& run) {
    const bool finished = model.lazy() && lazy_greedy(model, run);
    run.lazy_picks = static_cast<int64_t>(run.picks.size());
    if (!finished) dense_greedy(model, run);
    take_rest(run);
}

}  // namespace idsel::cpu
