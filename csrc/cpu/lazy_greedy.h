// Exact lazy greedy (Minoux 1978). Priorities never rise, so a stale one is an upper bound: only tokens on top are
// brought up to date, and the one on top is picked if it is exact. docs/cpu_engine.md has the proofs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"

namespace idsel::cpu {

// The lazy loop of one sample.
template <class Model>
class LazyLoop {
  public:
    LazyLoop(Model& model, Run& run)
        : model_(model),
          run_(run),
          advance_(model, run),
          argmax_(run.sample.n, run.similarity.kernels()),
          cost_model_(cost_model_of<Model>(run)),
          few_(CostModel::reading_dominates(run.sample.dim) ? 2 * kDotsRows : 1) {}

    bool pick_all() {
        rebuild();
        while (!run_.done()) {
            if (model_.due()) {
                model_.begin();
                rebuild();
            }
            if (const int64_t given = run_.given(); given >= 0) {
                if (!take_given(given)) return run_.done();
                continue;
            }
            const int64_t top = argmax_.top();
            if (argmax_.key(top) == kNoKey) return true;
            if (!model_.fresh(top)) {
                if (rows_pay_by_now()) return false;
                tighten_bounds();
                if (unknown_ && looked() >= kSample) {
                    unknown_ = false;
                    if (rivals_make_rows_pay()) return false;
                }
            } else if (!usable(top)) {
                argmax_.update(top, kNoKey);
            } else if (!take({top, argmax_.key(top)})) {
                return run_.done();
            }
        }
        return true;
    }

  private:
    // Tokens taken from the top one by one; each looks through the blocks, so that for more of them all tokens are.
    static constexpr int64_t kMostFromTop = 2048;
    static constexpr int64_t kSample = 32;  // looks after which those to come are foreseen from what they left
    static constexpr int64_t kLatest = 4;   // picks by whose effort that of the next ones is foreseen

    void rebuild() {
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            argmax_.set(j, run_.competes(j) ? model_.key(j) : kNoKey);
        }
        argmax_.refresh();
    }

    bool usable(int64_t token) {
        if (run_.similarity.finite(token)) return model_.eligible(token);
        run_.demote(token);
        return false;
    }

    // Whether a token of this key may be picked before the best exact one known.
    bool may_win(int64_t token, float key) const { return key > exact_ || (key == exact_ && token < exact_token_); }

    // Tightens the bounds of tokens on top, several at a time: what is read of a pick then serves several of them, and
    // threads have something to share. Little is done in vain: half as many as this pick has taken so far, or a few
    // that are alike. Those few have the largest bounds, so that they will come up sooner or later.
    void tighten_bounds() {
        if (portion() > std::min(kMostFromTop, run_.sample.n / 16)) {
            settle_rivals();
        } else {
            take_top_stale();
            for (int64_t token : advance()) argmax_.update(token, argmax_.key(token));
        }
    }

    int64_t portion() const {
        if (!Model::kShared) return 1;
        return std::max((looked() + looked_before_ / 2) / 2, std::min(few_, run_.remaining()));
    }
    Effort& effort() { return latest_[picks_ % kLatest]; }
    int64_t looked() const { return static_cast<int64_t>(latest_[picks_ % kLatest].looks); }

    // tokens_: a portion of the stale tokens from the top, which are above all exact ones; few only if they are alike.
    // They have no key then.
    void take_top_stale() {
        tokens_.clear();
        others_.clear();
        effort().from_top += 1;
        const int64_t most = portion(), progress = model_.progress(argmax_.top());
        for (int64_t tries = most > few_ ? most : 2 * most; tries > 0; --tries) {
            const int64_t top = argmax_.top();
            if (argmax_.key(top) == kNoKey || model_.fresh(top)) break;
            if (most > few_ || model_.progress(top) == progress) {
                tokens_.push_back(top);
            } else {
                others_.push_back(top);
            }
            argmax_.update(top, kNoKey);
            effort().from_top += 1;
            if (static_cast<int64_t>(tokens_.size()) == most) break;
        }
        for (int64_t token : others_) argmax_.update(token, model_.key(token));
    }

    // Tightens the bounds of all stale tokens that may win, in portions, until none is left. From the top one by one,
    // so many would take longer.
    void settle_rivals() {
        rivals_.clear();
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            if (may_win(j, argmax_.key(j)) && !model_.fresh(j)) rivals_.push_back(j);
        }
        while (!rivals_.empty() && !rows_pay_by_now()) {
            take_largest_rivals();
            advance();
            const auto beaten = [this](int64_t j) { return !may_win(j, argmax_.key(j)) || model_.fresh(j); };
            rivals_.erase(std::remove_if(rivals_.begin(), rivals_.end(), beaten), rivals_.end());
        }
        argmax_.refresh();
    }

    // tokens_: a portion of rivals_, those of the largest keys.
    void take_largest_rivals() {
        const int64_t most = std::min(portion(), static_cast<int64_t>(rivals_.size()));
        const auto larger = [this](int64_t a, int64_t b) { return argmax_.key(a) > argmax_.key(b); };
        std::nth_element(rivals_.begin(), rivals_.begin() + (most - 1), rivals_.end(), larger);
        tokens_.assign(rivals_.begin(), rivals_.begin() + most);
    }

    // Lets each of tokens_ absorb picks until it is exact or cannot win, and sets its key without its block's maximum.
    const std::vector<int64_t>& advance() {
        effort().similarities += static_cast<double>(advance_(
            tokens_, [this](int64_t j) { return may_win(j, model_.key(j)); },
            [this](int64_t dots) { return cost_model_.sharing_pays(dots, run_.similarity.pool().started()); }));
        for (int64_t token : tokens_) {
            float key = model_.key(token);
            if (key > kNoKey && !usable(token)) key = kNoKey;
            if (model_.fresh(token) && may_win(token, key)) {
                exact_ = key;
                exact_token_ = token;
            }
            argmax_.set(token, key);
        }
        effort().looks += static_cast<double>(tokens_.size());
        return tokens_;
    }

    // As take(), at whatever priority it has by now.
    bool take_given(int64_t token) {
        tokens_.assign(model_.fresh(token) ? 0 : 1, token);
        advance_(tokens_, [](int64_t) { return true; }, [](int64_t) { return false; });
        return take({token, model_.eligible(token) ? model_.key(token) : kNoKey});
    }

    // False when the loop is over: all picked, or another should go on.
    bool take(const Pick& pick) {
        run_.take(pick.token, pick.priority);
        argmax_.update(pick.token, kNoKey);
        if (run_.done() || !model_.take(pick)) return false;
        rows_behind_ = -1;
        const bool go_on = !others_pay(rate());
        looked_before_ = looked();
        ++picks_;
        effort() = {};
        exact_ = kNoKey;
        exact_token_ = 0;
        return go_on;
    }

    // Whether this pick alone has cost as much as the rows by which all tokens would catch up, and those that are left
    // would cost more than rows.
    bool rows_pay_by_now() {
        if (!Model::kRows) return false;
        const auto exceeds = [&](int64_t rows) {
            return cost_model_.exceeds_rows(effort(), static_cast<double>(rows), run_.similarity.has_gram());
        };
        return exceeds(1) && exceeds(1 + rows_behind()) && others_pay(rate());
    }

    // Of late, on average, but for the one that took most: a single pick may need much, as when most priorities fall to
    // the floor, and the next ones the less.
    Effort rate() const {
        const int64_t count = std::min<int64_t>(picks_ + 1, kLatest);
        const Effort* end = latest_ + count;
        if (count == 1) return latest_[0] * 0.5;
        const Effort* dearest = std::max_element(latest_, end, [this](const Effort& a, const Effort& b) {
            const bool has_gram = run_.similarity.has_gram();
            return cost_model_.lazy_cost(a, has_gram) < cost_model_.lazy_cost(b, has_gram);
        });
        return (std::accumulate(latest_, end, Effort{}) + *dearest * -1) * (1 / static_cast<double>(count - 1));
    }

    // The same as soon as some tokens have been looked at: by experience half of those that may still win come up
    // for each pick.
    bool rivals_make_rows_pay() {
        if (!Model::kRows) return false;
        double rivals = 0;
        for (int64_t j = 0; j < run_.sample.n; ++j) rivals += may_win(j, argmax_.key(j)) && !model_.fresh(j);
        const Effort effort{rivals / 2, 0, rivals / 2};
        return cost_model_.exceeds_rows(effort, 1, run_.similarity.has_gram()) && others_pay(effort);
    }

    // Whether the picks that are left, with so much for each, cost more than rows, or than rows of the Gram.
    bool others_pay(Effort rate) {
        if (!Model::kRows || run_.sample.loop != IDSEL_LOOP_AUTO) return false;
        const int64_t picks = likely_remaining<Model>(run_);
        const auto pays = [&](Effort effort, int64_t behind) {
            return cost_model_.rows_pay(effort, static_cast<double>(picks), static_cast<double>(behind),
                                        run_.similarity.has_gram());
        };
        // Most often the first tells, without a look at all tokens.
        if (!pays(rate, 0)) return false;
        const double all = rate.similarities * static_cast<double>(picks);
        const auto most = static_cast<double>(most_evaluations(model_, run_, picks));
        return pays(most < all ? rate * (most / all) : rate, rows_behind());
    }

    // As of the latest pick: a look at all tokens.
    int64_t rows_behind() {
        if (rows_behind_ < 0) rows_behind_ = behind(model_, run_);
        return rows_behind_;
    }

    Model& model_;
    Run& run_;
    Advance<Model> advance_;
    BlockedArgmax argmax_;
    CostModel cost_model_;
    int64_t few_;                  // how many bounds are worth tightening at once when nothing is known of their number
    std::vector<int64_t> tokens_;  // whose bounds are tightened next
    std::vector<int64_t> others_;  // met among them, not alike
    std::vector<int64_t> rivals_;  // stale tokens that may win
    Effort latest_[kLatest];       // for the latest picks, this one among them
    int64_t picks_ = 0;            // made here
    bool unknown_ = true;          // nothing is known yet of how many tokens may win a pick
    int64_t looked_before_ = 0;    // bounds tightened for the pick before
    int64_t rows_behind_ = -1;     // -1: not looked
    // The best exact priority met for this pick, and its token.
    float exact_ = kNoKey;
    int64_t exact_token_ = 0;
};

// Picks lazily. Returns true when no more can be picked by priority, false when another loop should go on.
template <class Model>
bool lazy_greedy(Model& model, Run& run) {
    return LazyLoop<Model>(model, run).pick_all();
}

}  // namespace idsel::cpu
