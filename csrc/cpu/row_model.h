// Rules with one value per token, for which a pick means one row of the Gram.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"
#include "cpu/nearest_search.h"
#include "rules/rules.h"

namespace idsel::cpu {

template <class Rule>
class RowModel {
  public:
    static constexpr bool kShared = true;

    RowModel(const Rule& rule, Run& run) : rule_(rule), run_(run) {
        const int64_t n = run.sample.n;
        state_.resize(static_cast<size_t>(n));
        seen_.resize(static_cast<size_t>(n));
        start();
    }

    bool lazy() const { return !raised_; }
    bool begun() const { return begun_; }
    bool due() const { return !begun_ && visible() > 0; }

    void begin() {
        begun_ = true;
        if (raised_) return;
        for (int64_t j = 0; j < run_.sample.n; ++j) state(j) = rule_.untouched(importance(j));
    }

    float key(int64_t j) const {
        const float priority = begun_ ? rule_.priority(state(j), importance(j)) : state(j);
        return priority > rule_.limit() ? priority : kNoKey;  // NaN is none too
    }
    bool eligible(int64_t) const { return true; }
    bool fresh(int64_t j) const { return !Rule::kNeedsSimilarities || seen(j) >= visible() || is_settled(j); }

    int64_t progress(int64_t j) const { return seen(j); }

    int64_t advance(const int64_t* tokens, int64_t count) {
        const int64_t first = seen(tokens[0]), picks = std::min(kDotsRows, visible() - first);
        int64_t picked[kDotsRows] = {}, far[kDotsRows] = {}, far_count = 0;
        for (int64_t i = 0; i < picks; ++i) picked[i] = picks_[static_cast<size_t>(first + i)].token;
        for (int64_t i = 0; i < count; ++i) {
            if (suppressed_by_place(tokens[i], picked, picks)) {
                state(tokens[i]) = kNoKey;
                seen_[static_cast<size_t>(tokens[i])] = static_cast<int32_t>(first + picks);
            } else {
                far[far_count++] = tokens[i];
            }
        }
        if (far_count == 0) return 0;
        float c[kDotsRows * kDotsStride] = {};
        run_.similarity.tile(far, far_count, picked, picks, c);
        if (const auto weigh = run_.similarity.kernels().weigh[Rule::kId]) weigh(&rule_, far_count * kDotsStride, c);
        for (int64_t i = 0; i < far_count; ++i) absorb(far[i], first, picks, c + i * kDotsStride);
        return far_count * picks;
    }

    bool take(const Pick& pick) {
        // Before the first pick is visible there is no such thing: the first update applies the floor, too.
        const float priority = pick.priority > kNoKey ? pick.priority : Rule::kNoPriority;
        if (begun_ && rule_.inert(priority)) return true;
        picks_.push_back({pick.token, priority});
        raised_ = raised_ || rule_.raises(priority);
        return !raised_;
    }

    bool settled(int64_t j) const { return is_settled(j); }
    int64_t missing(int64_t j) const { return fresh(j) ? 0 : visible() - seen(j); }

    static constexpr bool kHistory = false;
    static constexpr bool kWeighs = has_weights<Rule>();
    static constexpr bool kRows = Rule::kNeedsSimilarities;
    int64_t visible() const { return rule_.visible(static_cast<int>(picks_.size())); }
    int64_t pick(int64_t p) const { return picks_[static_cast<size_t>(p)].token; }
    float limit() const { return rule_.limit(); }
    float absorb(int64_t p, const Block& block, const float* c) {
        const auto at = static_cast<size_t>(block.begin);
        const float* importance = &run_.sample.importance[at];
        const RowStep step{block.count(), static_cast<int32_t>(p), &seen_[at], c, importance, block.limit, &state_[at],
                           block.key};
        const float best =
            run_.similarity.kernels().absorb[Rule::kId](&rule_, step, picks_[static_cast<size_t>(p)].priority);
        return rule_.has_grid() ? suppress_by_place(p, block) : best;
    }
    void set_progress(int64_t begin, int64_t end, int64_t picks) {
        raise_to(static_cast<int32_t>(picks), &seen_[static_cast<size_t>(begin)], end - begin);
    }

  private:
    // Those near a pick, once they have absorbed it. Returns the largest key.
    float suppress_by_place(int64_t p, const Block& block) {
        const Cell cell = rule_.cell(static_cast<int>(pick(p)));
        for (int64_t j = block.begin; j < block.end; ++j) {
            if (rule_.suppresses(cell, rule_.cell(static_cast<int>(j)))) state(j) = block.key[j - block.begin] = kNoKey;
        }
        return *std::max_element(block.key, block.key + block.count());
    }

    float& state(int64_t j) { return state_[static_cast<size_t>(j)]; }
    float state(int64_t j) const { return state_[static_cast<size_t>(j)]; }
    int32_t seen(int64_t j) const { return seen_[static_cast<size_t>(j)]; }
    float importance(int64_t j) const { return run_.sample.importance[static_cast<size_t>(j)]; }
    bool is_settled(int64_t j) const { return !raised_ && begun_ && rule_.settled(state(j)); }

    void absorb(int64_t j, int64_t first, int64_t picks, const float* weights) {
        float value = state(j);
        for (int64_t i = 0; i < picks; ++i) {
            value = rule_.absorb(value, weights[i], picks_[static_cast<size_t>(first + i)].priority);
        }
        state(j) = value;
        seen_[static_cast<size_t>(j)] = static_cast<int32_t>(first + picks);
    }

    bool suppressed_by_place(int64_t j, const int64_t* picked, int64_t picks) const {
        const Cell other = rule_.cell(static_cast<int>(j));
        return std::any_of(picked, picked + picks,
                           [&](int64_t i) { return rule_.suppresses(rule_.cell(static_cast<int>(i)), other); });
    }

    void start() {
        for (int64_t j = 0; j < run_.sample.n; ++j) state(j) = rule_.start(importance(j), 0.0f);
        if (rule_.given_start() >= 0) keep_only(first_pick());
        if (rule_.needs_nearest()) keep_only(most_distant());
    }

    // The first pick, with its state, where that depends on the nearest token.
    int64_t most_distant() {
        const auto priority = [this](int64_t j, float similarity) { return rule_.start(importance(j), similarity); };
        if (const int64_t given = run_.given(); given >= 0) {
            state(given) = priority(given, nearest_to(run_, given));
            return given;
        }
        const auto pays = [this] { return cost_model(run_).gram_pays_at_once(static_cast<double>(run_.remaining())); };
        if (run_.gram_chosen(pays)) {
            run_.similarity.make_gram();
            run_.path = IDSEL_PATH_GRAM;
        }
        const auto [token, nearest] = best_by_nearest(run_, priority);
        if (token < run_.sample.n) state(token) = priority(token, nearest);
        return token;
    }

    // The given start; where it cannot be picked all rank alike, and it is the first that is given, or the lowest token
    // that can be picked; n where there is none.
    int64_t first_pick() {
        const auto usable = [this](int64_t j) { return run_.competes(j) && run_.similarity.finite(j); };
        int64_t first = rule_.given_start();
        if (first < run_.sample.n && usable(first)) return first;
        if (const int64_t given = run_.given(); given >= 0) return given;
        for (first = 0; first < run_.sample.n && !usable(first);) ++first;
        return first;
    }
    void keep_only(int64_t token) {
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            if (j != token) state(j) = kNoKey;
        }
    }

    Rule rule_;
    Run& run_;
    std::vector<float> state_;
    std::vector<int32_t> seen_;  // how many of picks_ a token has absorbed
    std::vector<Pick> picks_;    // those that change anything
    bool begun_ = false;
    bool raised_ = false;  // a pick raised priorities
};

}  // namespace idsel::cpu
