// Every pick by one row of similarities to it, which all tokens absorb one after the other, without a look at which
// of them could be left out. docs/cpu_engine.md says when.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"

namespace idsel::cpu {

template <class Model>
class RowLoop {
  public:
    RowLoop(Model& model, Run& run) : model_(model), run_(run), argmax_(run.sample.n), cost_model_(cost_model(run)) {}

    // True when no more can be picked by priority, false when the lazy loop had better go on.
    bool pick_all() {
        begin();
        while (!run_.done()) {
            absorb_visible();
            if (before_.empty()) before_.assign(argmax_.keys(0), argmax_.keys(0) + run_.sample.n);
            const int64_t given = run_.given(), token = given >= 0 ? given : argmax_.top();
            const float key = argmax_.key(token);
            if (key == kNoKey && given < 0) return true;
            take(token, key);
            if (++window_ == run_.survey && model_.lazy() && begins_window(key)) {
                model_.all_absorbed(absorbed_);
                return false;
            }
        }
        return true;
    }

  private:
    static constexpr double kOvershoot = 2.0;  // the lazy loop looks at more tokens than it has to

    void begin() {
        Similarity& similarity = run_.similarity;
        similarity.know_all_norms(cost_model_.sharing_row_pays(similarity.pool().started()));
        const int64_t n = run_.sample.n;
        limit_.assign(static_cast<size_t>(n), std::numeric_limits<float>::infinity());
        for (int64_t j = 0; j < n; ++j) {
            if (run_.competes(j) && !similarity.finite(j)) run_.demote(j);
            const bool open = run_.competes(j) && model_.eligible(j);
            if (open) limit_[static_cast<size_t>(j)] = model_.limit();
            argmax_.set(j, open ? model_.key(j) : kNoKey);
            if (run_.competes(j)) absorbed_ = std::min(absorbed_, model_.progress(j));
        }
        argmax_.refresh();
        if (!similarity.has_gram() &&
            cost_model_.gram_beats_rows(static_cast<double>(run_.remaining() + behind(model_, run_)))) {
            similarity.make_gram();
        }
        if (!similarity.has_gram()) {
            run_.path = IDSEL_PATH_LAZY_ROWS;
        } else if (run_.path != IDSEL_PATH_GRAM) {
            run_.path = IDSEL_PATH_LAZY_GRAM;
        }
    }

    void take(int64_t token, float key) {
        run_.take(token, key);
        limit_[static_cast<size_t>(token)] = std::numeric_limits<float>::infinity();
        argmax_.update(token, kNoKey);
        if (!run_.done()) model_.take({token, key});
    }

    // Looks back on a window of picks: whether they could have been found among few tokens, those whose priority before
    // exceeds that of the latest. The next window is twice as long, because what is left out of one may come up in the
    // next and has to absorb all of it then.
    bool begins_window(float key) {
        const auto rivals = std::count_if(before_.begin(), before_.end(), [=](float before) { return before > key; });
        const bool has_gram = run_.similarity.has_gram();
        before_.clear();
        window_ = 0;
        run_.survey *= 2;
        return cost_model_.lazy_cost(kOvershoot * static_cast<double>(rivals), has_gram) <
               cost_model_.row_cost(has_gram);
    }

    // Picks that a token has not absorbed.
    void absorb_visible() {
        if (model_.due()) model_.begin();
        for (absorbed_ = std::min(absorbed_, model_.visible()); absorbed_ < model_.visible(); ++absorbed_)
            absorb(absorbed_);
    }

    void absorb(int64_t p) {
        const int64_t n = run_.sample.n, blocks = (n + Block::kMost - 1) / Block::kMost, pick = model_.pick(p);
        const bool shared = cost_model_.sharing_row_pays(run_.similarity.pool().started());
        const int64_t grain = shared ? std::max<int64_t>(1, blocks / (2 * run_.similarity.pool().threads())) : blocks;
        run_.similarity.pool().parallel_for(blocks, grain, [&](int64_t first, int64_t last) {
            float c[Block::kMost];
            for (int64_t b = first; b < last; ++b) {
                const int64_t begin = b * Block::kMost, end = std::min(begin + Block::kMost, n);
                run_.similarity.row(pick, begin, end, c);
                const float best =
                    model_.absorb(p, {begin, end, &limit_[static_cast<size_t>(begin)], argmax_.keys(b)}, c);
                argmax_.set_largest(b, best);
            }
        });
        run_.similarity.count_dots(n - 1);
    }

    Model& model_;
    Run& run_;
    BlockedArgmax argmax_;
    CostModel cost_model_;
    std::vector<float> limit_;   // (n,) a priority at or below it is none; +inf for a token that cannot be picked
    std::vector<float> before_;  // (n,) keys when the window began
    int64_t window_ = 0;         // picks since
    int64_t absorbed_ = std::numeric_limits<int64_t>::max();  // picks that every token has absorbed
};

}  // namespace idsel::cpu
