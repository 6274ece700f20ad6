// What the two greedy algorithms share, and what they ask of a model.
//
// clang-format off
// contract: model: cpu/row_model.h cpu/history_model.h cpu/coverage_model.h cpu/channel_model.h
// A model is a rule together with what its loop carries for every token. Tokens are absorbed into it lazily: a token
// may not have seen all picks yet, and its priority then counts as an upper bound.
//   bool lazy()             whether priorities never rise, as far as is known before the first pick
//   void begin()            the first pick has become visible: priorities are no longer the first ones
//   bool begun()            whether that has happened
//   bool due()              whether it has to
//   float key(j)            priority of token j, or the bound on it; kNoKey for a token without one
//   bool eligible(j)        false if j turns out never to have a priority; asked when it comes up for a pick
//   bool fresh(j)           whether key(j) is exact
//   int64_t progress(j)     how many picks it has absorbed, in the sense of what follows
//   int64_t advance(tokens, count)
//                           lets tokens of the same progress absorb some picks, at most kDotsRows of them, whose
//                           norms are all known or all not, and returns the similarities that took. If one is not
//                           finite, its key means nothing afterwards. Safe in parallel for different tokens, if kShared
//                           or there is a Gram
//   bool kShared            whether threads share out advance() by tokens
//   bool take(pick)         a pick was made; false if it may raise others, so that laziness is over
//   int64_t missing(j)      picks that j has not absorbed and could
//   bool settled(j)         whether no pick changes it any more
//   bool kHistory           whether tokens keep numbers of all picks
//   bool kWeighs            whether the rule weighs similarities
//   bool kRows              whether tokens may absorb a pick one after the other, by a row of similarities. If so:
// clang-format on
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/cost_model.h"
#include "cpu/sample.h"
#include "cpu/similarity.h"

namespace idsel::cpu {

// What those that have kRows do with some tokens that follow one another.
//   int64_t visible()       how many picks there are to be absorbed, in the order in which each token absorbs them
//   int64_t pick(p)         the token of one of them
//   float limit()           a priority at or below it is none
//   float absorb(p, block, c)  tokens that have absorbed all picks before p, but perhaps more, absorb it: c are their
//                           similarities to it. Sets their keys, and returns the largest. Safe in parallel
//   void set_progress(begin, end, picks)  each of these tokens has absorbed so many, or was ahead of them
struct Block {
    static constexpr int64_t kMost = 64;

    int64_t count() const { return end - begin; }

    int64_t begin, end;
    const float* limit;
    float* key;
};

inline void raise_to(int32_t least, int32_t* numbers, int64_t count) {
    std::transform(numbers, numbers + count, numbers, [=](int32_t number) { return std::max(number, least); });
}

// The picks of a sample so far, and the tokens left.
struct Run {
    Run(Sample& of, Similarity& similarities) : sample(of), similarity(similarities) {}

    bool done() const { return static_cast<int64_t>(picks.size()) >= sample.k; }
    int64_t remaining() const { return sample.k - static_cast<int64_t>(picks.size()); }
    bool competes(int64_t token) const { return sample.competes(token); }
    // Whether it may still be picked.
    bool open(int64_t token) const { return sample.tier[static_cast<size_t>(token)] > Tier::kNotThere; }
    // The next of the tokens to begin with, -1 where none is left: each that takes part, once.
    int64_t given() {
        for (; next_given < sample.given.size(); ++next_given) {
            const int64_t token = sample.given[next_given];
            if (!competes(token)) continue;
            if (similarity.finite(token)) return token;
            demote(token);
        }
        return -1;
    }
    // A token whose features turned out not to be finite.
    void demote(int64_t token) { sample.tier[static_cast<size_t>(token)] = Tier::kUnusable; }
    void take(int64_t token, float priority) {
        picks.push_back({token, priority});
        sample.tier[static_cast<size_t>(token)] = Tier::kNotThere;
    }

    // Whether to go by rows, unless the caller says so: as `pays()` does.
    template <class Pays>
    bool rows_chosen(const Pays& pays) const {
        return sample.loop == IDSEL_LOOP_AUTO ? pays() : sample.loop != IDSEL_LOOP_LAZY;
    }
    template <class Pays>
    bool gram_chosen(const Pays& pays) const {
        if (sample.loop == IDSEL_LOOP_AUTO) return pays();
        return sample.loop == IDSEL_LOOP_GRAM && similarity.gram_fits_budget();
    }

    Sample& sample;
    Similarity& similarity;
    std::vector<Pick> picks;
    size_t next_given = 0;
    int64_t lazy_picks = 0;
    double alone = 0;    // work done so far without helpers, as CostModel counts
    int64_t survey = 8;  // how many picks by rows are enough to tell whether the lazy loop would do with less
    int32_t path = IDSEL_PATH_LAZY;
};

// Picks that are likely to be made by priority. Where tokens keep histories, as many as there are dimensions span the
// others.
template <class Model>
int64_t likely_picks(const Run& run) {
    return Model::kHistory && !run.sample.similarities ? std::min(run.sample.k, run.sample.dim) : run.sample.k;
}
template <class Model>
int64_t likely_remaining(const Run& run) {
    return std::max<int64_t>(run.remaining() - (run.sample.k - likely_picks<Model>(run)), 1);
}

inline CostModel cost_model(Run& run, Extra extra = {}) {
    const Sample& sample = run.sample;
    const int threads = CostModel::threads_help(sample.n, sample.dim, sample.k) ? run.similarity.pool().threads() : 1;
    return {sample.n, sample.dim, threads, run.similarity.gram_fits_budget(), run.alone, extra};
}
template <class Model>
CostModel cost_model_of(Run& run) {
    if (Model::kHistory) return cost_model(run, Costs::history(static_cast<double>(likely_picks<Model>(run)) / 2));
    return cost_model(run, Model::kWeighs ? Costs::kWeight : Extra{});
}

// The rest: those without a priority by importance, then those that do not take part by index.
void take_rest(Run& run);

// Rows by which blocks of tokens would catch up with all picks, on average.
template <class Model>
int64_t behind(const Model& model, const Run& run) {
    int64_t rows = 0;
    for (int64_t begin = 0; begin < run.sample.n; begin += Block::kMost) {
        int64_t most = 0;
        for (int64_t j = begin; j < std::min(begin + Block::kMost, run.sample.n); ++j) {
            most = std::max(most, run.competes(j) ? model.missing(j) : 0);
        }
        rows += most;
    }
    return rows / ((run.sample.n + Block::kMost - 1) / Block::kMost);
}

// The most similarities that so many more picks can take, one by one.
template <class Model>
int64_t most_evaluations(const Model& model, const Run& run, int64_t picks) {
    int64_t most = 0;
    for (int64_t j = 0; j < run.sample.n; ++j) {
        if (run.competes(j)) most += model.missing(j) + (model.settled(j) ? 0 : picks);
    }
    return most;
}

// Lets tokens absorb picks: those that are alike in what they have absorbed together, so that what is read of a pick
// serves several of them.
template <class Model>
class Advance {
  public:
    Advance(Model& model, Run& run) : model_(model), run_(run) {}

    // Until each is exact or not `open(token)` any more; by several threads if `share(similarities)`, given how many
    // there are at most. Returns how many it took.
    template <class Open, class Share>
    int64_t operator()(const std::vector<int64_t>& tokens, const Open& open, const Share& share) {
        if (run_.similarity.has_gram()) {  // nothing to read together
            int64_t dots = 0;
            for (int64_t j : tokens) dots += finish({&j, 1}, open);
            return dots;
        }
        make_tiles(tokens);
        const auto count = static_cast<int64_t>(tiles_.size());
        const bool shared = count > 1 && share(most_similarities());
        // Not so few that taking the next ones costs more than they do.
        const int64_t grain = shared ? std::clamp<int64_t>(count / 16, 1, 16) : count;
        std::atomic<int64_t> dots{0};
        run_.similarity.pool().parallel_for(count, grain, [&](int64_t begin, int64_t end) {
            int64_t mine = 0;
            for (int64_t at = begin; at < end; ++at) mine += finish(tiles_[static_cast<size_t>(at)], open);
            dots.fetch_add(mine, std::memory_order_relaxed);
        });
        run_.similarity.count_dots(dots.load());
        return dots.load();
    }

  private:
    struct Tile {
        int64_t* tokens;
        int64_t count;
    };

    // Sorts tokens by class, in which they keep their order, and parts each class.
    void make_tiles(const std::vector<int64_t>& tokens) {
        sort_by_class(tokens);
        tiles_.clear();
        int64_t* const end = tokens_.data() + tokens_.size();
        for (int64_t* at = tokens_.data(); at < end;) {
            int64_t count = 1;
            while (count < kDotsRows && at + count < end && class_of(at[count]) == class_of(*at)) ++count;
            tiles_.push_back({at, count});
            at += count;
        }
    }

    void sort_by_class(const std::vector<int64_t>& tokens) {
        starts_.assign(2 * run_.picks.size() + 4, 0);
        for (int64_t j : tokens) ++starts_[class_of(j) + 1];
        std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
        tokens_.resize(tokens.size());
        for (int64_t j : tokens) tokens_[starts_[class_of(j)]++] = j;
    }

    size_t class_of(int64_t j) const {
        return 2 * static_cast<size_t>(model_.progress(j)) + run_.similarity.norm_known(j);
    }

    int64_t most_similarities() const {
        int64_t most = 0;
        for (const Tile& tile : tiles_) most += tile.count * model_.missing(tile.tokens[0]);
        return most;
    }

    // They stay alike, as long as they stay.
    template <class Open>
    int64_t finish(Tile tile, const Open& open) {
        const auto done = [&](int64_t j) { return model_.fresh(j) || !open(j); };
        int64_t dots = 0;
        while (tile.count > 0) {
            dots += model_.advance(tile.tokens, tile.count);
            tile.count = std::remove_if(tile.tokens, tile.tokens + tile.count, done) - tile.tokens;
        }
        return dots;
    }

    Model& model_;
    Run& run_;
    std::vector<int64_t> tokens_;
    std::vector<size_t> starts_;
    std::vector<Tile> tiles_;
};

}  // namespace idsel::cpu
