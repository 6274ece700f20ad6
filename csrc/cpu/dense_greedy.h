// The dense path: after every pick all priorities are brought up to date, one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"

namespace idsel::cpu {

// Finds out who does not take part, which the parallel loops take as known.
template <class Model>
void settle_who_competes(Model& model, Run& run, std::vector<uint8_t>& eligible) {
    run.similarity.know_all_norms();
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j) && !run.similarity.finite(j)) run.demote(j);
        eligible[static_cast<size_t>(j)] = run.competes(j) && model.eligible(j);
    }
}

template <class Model>
int64_t best_token(const Model& model, const Run& run, const std::vector<uint8_t>& eligible) {
    int64_t best = -1;
    float best_key = kNoKey;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (!eligible[static_cast<size_t>(j)] || !run.competes(j)) continue;
        const float key = model.key(j);
        if (key > best_key) {
            best = j;
            best_key = key;
        }
    }
    return best;
}

// Picks with all priorities exact at every step, until no more can be picked by priority.
template <class Model>
void dense_greedy(Model& model, Run& run) {
    std::vector<uint8_t> eligible(static_cast<size_t>(run.sample.n));
    settle_who_competes(model, run, eligible);
    if (!run.similarity.has_gram()) run.path = IDSEL_PATH_LAZY_ROWS;
    Advance<Model> advance(model, run);
    std::vector<int64_t> tokens;
    while (!run.done()) {
        if (model.due()) model.begin();
        tokens.clear();
        for (int64_t j = 0; j < run.sample.n; ++j) {
            if (eligible[static_cast<size_t>(j)] && run.competes(j) && !model.fresh(j)) tokens.push_back(j);
        }
        advance(tokens, [](int64_t) { return true; }, [](int64_t) { return true; });
        const int64_t given = run.given(), best = given >= 0 ? given : best_token(model, run, eligible);
        if (best < 0) return;
        const Pick pick{best, eligible[static_cast<size_t>(best)] ? model.key(best) : kNoKey};
        run.take(pick.token, pick.priority);
        model.take(pick);
    }
}

}  // namespace idsel::cpu
