// Picks by rows: a block of tokens after another absorbs the picks, without a look at which of its tokens could be
// left out. docs/cpu_engine.md says when.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"

namespace idsel::cpu {

template <class Model>
class RowLoop {
  public:
    RowLoop(Model& model, Run& run)
        : model_(model),
          run_(run),
          argmax_(run.sample.n, run.similarity.kernels()),
          cost_model_(cost_model_of<Model>(run)),
          absorbed_(argmax_.blocks()) {}

    // True when no more can be picked by priority, false when the lazy loop had better go on.
    bool pick_all() {
        begin();
        const bool finished = pick_many();
        count_similarities();
        return finished;
    }

  private:
    static constexpr double kOvershoot = 2.0;  // the lazy loop looks at more tokens than it has to

    bool pick_many() {
        while (!run_.done()) {
            if (model_.due()) {
                model_.begin();
                set_keys();
            }
            const int64_t given = run_.given(), token = given >= 0 ? up_to_date(given) : best();
            const float key = argmax_.key(token);
            if (key == kNoKey && given < 0) return true;
            take(token, key);
            if (model_.due()) continue;  // priorities before the first pick say nothing of those after it
            if (before_.empty()) before_.assign(argmax_.keys(0), argmax_.keys(0) + run_.sample.n);
            const bool may_change = run_.sample.loop == IDSEL_LOOP_AUTO && model_.lazy();
            if (++window_ == run_.survey && may_change && laziness_pays(key)) {
                for (int64_t b = 0; b < argmax_.blocks(); ++b) model_.set_progress(begin_of(b), end_of(b), absorbed(b));
                return false;
            }
        }
        return true;
    }

    int64_t begin_of(int64_t block) const { return block * Block::kMost; }
    int64_t end_of(int64_t block) const { return std::min(begin_of(block) + Block::kMost, run_.sample.n); }
    int64_t& absorbed(int64_t block) { return absorbed_[static_cast<size_t>(block)]; }
    float& limit(int64_t token) { return limit_[static_cast<size_t>(token)]; }

    void begin() {
        Similarity& similarity = run_.similarity;
        similarity.expect_rows(cost_model_.sharing_rows_pays(1, similarity.pool().started()));
        limit_.assign(static_cast<size_t>(run_.sample.n), std::numeric_limits<float>::infinity());
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            if (run_.competes(j) && !similarity.finite(j)) run_.demote(j);
            if (run_.competes(j) && model_.eligible(j)) limit(j) = model_.limit();
        }
        for (int64_t b = 0; b < argmax_.blocks(); ++b) absorbed(b) = least_progress(b);
        began_at_ = absorbed_;
        set_keys();
        choose_source();
    }

    // Tokens that no pick changes any more may be behind, as long as they need no history.
    int64_t least_progress(int64_t block) const {
        int64_t least = model_.visible();
        for (int64_t j = begin_of(block); j < end_of(block); ++j) {
            const bool waits = Model::kHistory || model_.missing(j) > 0;
            if (run_.competes(j) && waits) least = std::min(least, model_.progress(j));
        }
        return least;
    }

    void set_keys() {
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            argmax_.set(j, limit(j) < std::numeric_limits<float>::infinity() ? model_.key(j) : kNoKey);
        }
        argmax_.refresh();
    }

    void choose_source() {
        const auto gram_pays = [this](int64_t rows) { return cost_model_.gram_beats_rows(static_cast<double>(rows)); };
        // At most all picks have to be caught up with: most often the first tells, without a look at all tokens.
        const auto pays = [&] {
            return gram_pays(run_.sample.k) && gram_pays(run_.remaining() + behind(model_, run_));
        };
        if (!run_.similarity.has_gram() && run_.gram_chosen(pays)) run_.similarity.make_gram();
        if (!run_.similarity.has_gram()) {
            run_.path = IDSEL_PATH_LAZY_ROWS;
        } else if (run_.path != IDSEL_PATH_GRAM) {
            run_.path = IDSEL_PATH_LAZY_GRAM;
        }
    }

    void take(int64_t token, float key) {
        run_.take(token, key);
        limit(token) = std::numeric_limits<float>::infinity();
        argmax_.update(token, kNoKey);
        if (!run_.done()) model_.take({token, key});
    }

    // Looks back on a window of picks: whether they could have been found among few tokens, those whose priority before
    // exceeds that of the latest. The next window is twice as long, because what is left out of one may come up in the
    // next and has to absorb all of it then.
    bool laziness_pays(float key) {
        const auto rivals = static_cast<double>(
            std::count_if(before_.begin(), before_.end(), [=](float before) { return before > key; }));
        const bool has_gram = run_.similarity.has_gram();
        // Each would have been met at least once, and then had to absorb what it had missed.
        const double looks = rivals / static_cast<double>(window_);
        const double missed = std::max(static_cast<double>(window_), static_cast<double>(run_.remaining()) / 2);
        const Effort effort = Effort{looks, looks, looks * missed} * kOvershoot;
        before_.clear();
        window_ = 0;
        run_.survey *= 2;
        return cost_model_.laziness_pays(effort, static_cast<double>(likely_remaining<Model>(run_)), has_gram);
    }

    // What blocks have absorbed here, but for picks among themselves.
    void count_similarities() {
        int64_t dots = 0;
        for (int64_t b = 0; b < argmax_.blocks(); ++b) dots += picks_here(b) * (end_of(b) - begin_of(b));
        for (int64_t p = 0; p < model_.visible(); ++p) {
            const auto own = static_cast<size_t>(model_.pick(p) / Block::kMost);
            dots -= began_at_[own] <= p && p < absorbed_[own] ? 1 : 0;
        }
        run_.similarity.count_dots(dots);
    }
    int64_t picks_here(int64_t block) { return absorbed(block) - began_at_[static_cast<size_t>(block)]; }

    int64_t up_to_date(int64_t token) {
        catch_up(token / Block::kMost);
        return token;
    }

    // The token of the next pick: blocks whose bound is below a priority that is exact are left behind, as long as no
    // pick may raise any. What they then have to absorb of several picks they read once.
    int64_t best() {
        const int64_t first = argmax_.top_block();
        catch_up(first);
        const bool bounded = model_.lazy();
        const float of_first = argmax_.largest(first);
        const int64_t blocks = argmax_.blocks();
        const int64_t behind =
            blocks * model_.visible() - std::accumulate(absorbed_.begin(), absorbed_.end(), int64_t{0});
        const bool shared = cost_model_.sharing_rows_pays(static_cast<double>(behind) / static_cast<double>(blocks),
                                                          run_.similarity.pool().started());
        const int64_t grain = shared ? std::max<int64_t>(1, blocks / (2 * run_.similarity.pool().threads())) : blocks;
        run_.similarity.pool().parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
            float exact = of_first;
            for (int64_t b = begin; b < end; ++b) {
                if (bounded && argmax_.largest(b) < exact) continue;
                catch_up(b);
                exact = std::max(exact, argmax_.largest(b));
            }
        });
        return argmax_.top();
    }

    void catch_up(int64_t block) {
        const int64_t begin = begin_of(block), end = end_of(block);
        float c[Block::kMost];
        for (int64_t& p = absorbed(block); p < model_.visible(); ++p) {
            run_.similarity.row(model_.pick(p), begin, end, c);
            const Block tokens{begin, end, &limit(begin), argmax_.keys(block)};
            argmax_.set_largest(block, model_.absorb(p, tokens, c));
        }
    }

    Model& model_;
    Run& run_;
    BlockedArgmax argmax_;  // of bounds, in blocks that are behind
    CostModel cost_model_;
    std::vector<int64_t> absorbed_;  // (blocks,) picks that all of its tokens have absorbed
    std::vector<int64_t> began_at_;  // (blocks,) how many of them before this loop
    std::vector<float> limit_;       // (n,) a priority at or below it is none; +inf for a token that cannot be picked
    std::vector<float> before_;      // (n,) keys when the window began
    int64_t window_ = 0;             // picks since
};

}  // namespace idsel::cpu
