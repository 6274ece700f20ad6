// Exact lazy greedy (Minoux 1978). Priorities never rise, so a stale one is an upper bound: only the token on top is
// brought up to date, and it is picked if it is still on top when it is exact. docs/cpu_engine.md has the proofs.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/coverage_model.h"
#include "cpu/dpp_model.h"
#include "cpu/greedy.h"
#include "cpu/row_model.h"
#include "cpu/winner_tree.h"

namespace idsel::cpu {
namespace {

template <class Model>
void rebuild(WinnerTree& tree, const Model& model, const Run& run) {
    for (int64_t j = 0; j < run.sample.n; ++j) tree.set(j, run.competes(j) ? model.key(j) : WinnerTree::kNone);
    tree.build();
}

// Brings all tokens whose bound exceeds `exact` a step nearer at once, where that is worth sharing out: nearly all
// of them would come up one by one.
template <class Model>
void sweep(WinnerTree& tree, Model& model, Run& run, float exact) {
    std::vector<int64_t> tokens;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (tree.key(j) > exact && !model.fresh(j)) tokens.push_back(j);
    }
    const auto count = static_cast<int64_t>(tokens.size());
    if (!Planner::sweep_pays(count, run.sample.dim)) return;
    run.similarity.know_norms(tokens);
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), [&](int64_t j) { return !run.similarity.finite(j); }),
                 tokens.end());
    std::atomic<int64_t> dots{0};
    run.similarity.team().parallel_for(static_cast<int64_t>(tokens.size()), 16, [&](int64_t begin, int64_t end) {
        int64_t mine = 0;
        for (int64_t at = begin; at < end; ++at) mine += model.advance(tokens[static_cast<size_t>(at)]);
        dots.fetch_add(mine, std::memory_order_relaxed);
    });
    run.similarity.count_dots(dots.load());
    for (int64_t j : tokens) tree.set(j, model.key(j));
    tree.build();
}

// The lazy loop of one sample.
template <class Model>
class Lazy {
  public:
    Lazy(Model& model, Run& run)
        : model_(model),
          run_(run),
          tree_(run.sample.n),
          planner_(run.sample.n, run.sample.dim, run.similarity.team().threads(), run.similarity.gram_fits_budget()) {}

    bool pick_all() {
        rebuild(tree_, model_, run_);
        begin_round();
        while (!run_.done()) {
            if (model_.due()) {
                model_.begin();
                rebuild(tree_, model_, run_);
                untouched_ = true;
            }
            const int64_t top = tree_.top();
            if (tree_.top_key() == WinnerTree::kNone) return true;
            if (!run_.similarity.finite(top)) {
                run_.demote(top);
                tree_.update(top, WinnerTree::kNone);
            } else if (!model_.eligible(top)) {
                tree_.update(top, WinnerTree::kNone);
            } else if (!model_.fresh(top)) {
                advance(top);
            } else if (!take(top)) {
                return run_.done();
            }
        }
        return true;
    }

  private:
    // While no token has absorbed anything, bounds say little, and for some rules all tokens come up. So once, after so
    // many have come up one by one, those still above the best of them do together. Later a bound says so much that
    // this would more than double the work.
    static constexpr int kProbes = 12;

    void begin_round() {
        counted_ = run_.similarity.dots();
        untouched_ = false;
        exact_ = WinnerTree::kNone;
    }

    void advance(int64_t top) {
        run_.similarity.count_dots(model_.advance(top));
        const float key = model_.key(top);
        tree_.update(top, key);
        if (model_.fresh(top) && key > exact_) exact_ = key;
        if (Model::kSweeps && untouched_ && ++probes_ == kProbes) sweep(tree_, model_, run_, exact_);
    }

    // False when the loop is over: all picked, or the dense path should go on.
    bool take(int64_t top) {
        const Pick pick{top, tree_.top_key()};
        run_.take(pick.token, pick.priority);
        tree_.update(top, WinnerTree::kNone);
        if (run_.done() || !model_.take(pick)) return false;
        planner_.count_pick(run_.similarity.dots() - counted_);
        begin_round();
        return run_.similarity.has_gram() || !dense_pays();
    }

    // Whether the rest is less work on the dense path. Counting pairs is dear, so first as if there were none.
    bool dense_pays() const {
        if (!Model::kDense) return false;
        const auto picks = static_cast<double>(run_.remaining());
        return planner_.dense_pays(picks, 0) &&
               planner_.dense_pays(picks, static_cast<double>(stale_pairs(model_, run_)));
    }

    Model& model_;
    Run& run_;
    WinnerTree tree_;
    Planner planner_;
    int64_t counted_ = 0;     // dot products before this pick
    float exact_ = 0;         // the best exact priority met for this pick
    bool untouched_ = false;  // this is the first pick for which tokens absorb any
    int probes_ = 0;
};

}  // namespace

template <class Model>
bool lazy_greedy(Model& model, Run& run) {
    return Lazy<Model>(model, run).pick_all();
}

template bool lazy_greedy(RowModel<IDSelection>&, Run&);
template bool lazy_greedy(RowModel<MMR>&, Run&);
template bool lazy_greedy(RowModel<MaxMin>&, Run&);
template bool lazy_greedy(RowModel<HardSuppress>&, Run&);
template bool lazy_greedy(RowModel<TopK>&, Run&);
template bool lazy_greedy(DppModel&, Run&);
template bool lazy_greedy(CoverageModel&, Run&);

}  // namespace idsel::cpu
