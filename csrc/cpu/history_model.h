// DPP: one value per token and one per token and earlier pick.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/blocked_argmax.h"
#include "cpu/greedy.h"
#include "rules/rules.h"

namespace idsel::cpu {

class HistoryModel {
  public:
    static constexpr bool kShared = true;

    HistoryModel(const DPP& rule, Run& run) : rule_(rule), run_(run) {
        const int64_t n = run.sample.n;
        width_ = std::min(run.sample.k, n);
        d_.resize(static_cast<size_t>(n));
        seen_.resize(static_cast<size_t>(n));
        quality_.resize(static_cast<size_t>(n));
        for (int64_t j = 0; j < n; ++j)
            quality_[static_cast<size_t>(j)] = rule.quality(run.sample.importance[static_cast<size_t>(j)]);
        history_.reset(new float[static_cast<size_t>(n * width_)]);  // written before it is read
        for (int64_t j = 0; j < n; ++j) d(j) = run.competes(j) ? rule.start(quality(j)) : 0.0f;
        rank_floor_ = rule.rank_floor(largest());
    }

    bool lazy() const { return true; }
    bool begun() const { return true; }
    bool due() const { return false; }
    void begin() {}

    float key(int64_t j) const { return rule_.priority(d(j), rank_floor_); }
    // A zero row has L_jj = 0, which is found out when its norm is.
    bool eligible(int64_t j) { return run_.similarity.nonzero(j); }
    bool fresh(int64_t j) const { return seen(j) >= picked() || key(j) == kNoKey; }

    int64_t progress(int64_t j) const { return seen(j); }

    int64_t advance(const int64_t* tokens, int64_t count) {
        const int64_t first = seen(tokens[0]), picks = std::min(kDotsRows, picked() - first);
        const Pick* unseen = &picks_[static_cast<size_t>(first)];
        int64_t picked[kDotsRows] = {};
        for (int64_t i = 0; i < picks; ++i) picked[i] = unseen[i].token;
        float c[kDotsRows * kDotsStride] = {};
        run_.similarity.tile(tokens, count, picked, picks, c);
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t p = 0; p < picks; ++p) absorb(tokens[i], unseen[p], c[i * kDotsStride + p]);
        }
        return count * picks;
    }

    bool take(const Pick& pick) {
        picks_.push_back({pick.token, pick.priority > kNoKey ? pick.priority : DPP::kNoPriority});
        return true;
    }

    bool settled(int64_t j) const { return key(j) == kNoKey; }
    int64_t missing(int64_t j) const { return fresh(j) ? 0 : picked() - seen(j); }

    static constexpr bool kHistory = true;
    static constexpr bool kWeighs = false;
    static constexpr bool kRows = true;
    int64_t visible() const { return picked(); }
    int64_t pick(int64_t p) const { return picks_[static_cast<size_t>(p)].token; }
    float limit() const { return rank_floor_; }
    float absorb(int64_t p, const Block& block, const float* c) {
        const Pick& pick = picks_[static_cast<size_t>(p)];
        const Kernels& kernels = run_.similarity.kernels();
        const auto at = static_cast<size_t>(block.begin);
        if (!(pick.priority < DPP::kNoPriority)) return absorb_nothing(p, block);
        float overlap[Block::kMost], component[Block::kMost];
        kernels.row[IDSEL_FLOAT32](history(block.begin), width_ * 4, block.count(), history(pick.token), p, overlap);
        HistoryStep step{};
        step.count = block.count();
        step.pick = static_cast<int32_t>(p);
        step.seen = &seen_[at];
        step.c = c;
        step.importance = &quality_[at];
        step.limit = block.limit;
        step.state = &d_[at];
        step.key = block.key;
        step.overlap = overlap;
        step.pick_quality = quality(pick.token);
        step.component = component;
        const float best = kernels.absorb_history(&rule_, step, pick.priority);
        for (int64_t j = block.begin; j < block.end; ++j) {
            if (seen(j) <= p) history(j)[p] = component[j - block.begin];
        }
        return best;
    }
    void set_progress(int64_t begin, int64_t end, int64_t picks) {
        raise_to(static_cast<int32_t>(picks), &seen_[static_cast<size_t>(begin)], end - begin);
    }

  private:
    float& d(int64_t j) { return d_[static_cast<size_t>(j)]; }
    float d(int64_t j) const { return d_[static_cast<size_t>(j)]; }
    int32_t seen(int64_t j) const { return seen_[static_cast<size_t>(j)]; }
    int64_t picked() const { return static_cast<int64_t>(picks_.size()); }
    float quality(int64_t j) const { return quality_[static_cast<size_t>(j)]; }
    float* history(int64_t j) { return history_.get() + j * width_; }

    // Of a pick that had no priority, so that its history may be incomplete.
    float absorb_nothing(int64_t p, const Block& block) {
        for (int64_t j = block.begin; j < block.end; ++j) {
            if (seen(j) <= p) history(j)[p] = 0.0f;
        }
        return *std::max_element(block.key, block.key + block.count());
    }

    void absorb(int64_t j, const Pick& pick, float c) {
        const int64_t step = seen_[static_cast<size_t>(j)]++;
        float e = 0.0f;
        if (pick.priority < DPP::kNoPriority) {  // else its history may be incomplete
            const float overlap = run_.similarity.kernels().dot[IDSEL_FLOAT32](history(pick.token), history(j), step);
            e = rule_.component(quality(pick.token), c, quality(j), overlap, pick.priority);
        }
        history(j)[step] = e;
        d(j) = rule_.absorb(d(j), e);
    }

    // The largest L_jj of a token that takes part: norms are read from the top down until one is positive, most often
    // the first.
    float largest() {
        const int64_t first = std::max_element(d_.begin(), d_.end()) - d_.begin();
        if (d(first) > 0.0f && run_.similarity.nonzero(first)) return d(first);
        std::vector<int64_t> order;
        for (int64_t j = 0; j < run_.sample.n; ++j) {
            if (run_.competes(j)) order.push_back(j);
        }
        const auto less = [this](int64_t a, int64_t b) { return d(a) < d(b); };
        std::make_heap(order.begin(), order.end(), less);
        for (; !order.empty(); order.pop_back()) {
            std::pop_heap(order.begin(), order.end(), less);
            if (run_.similarity.nonzero(order.back())) return d(order.back());
        }
        return 0.0f;
    }

    DPP rule_;
    Run& run_;
    int64_t width_ = 0;
    float rank_floor_ = 0;
    std::vector<float> quality_;
    std::vector<float> d_;
    std::vector<int32_t> seen_;
    std::vector<Pick> picks_;
    std::unique_ptr<float[]> history_;  // (n, width): e of each token along the picks it has seen
};

}  // namespace idsel::cpu
