#include "cpu/select_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>

#include "cpu/at_once.h"
#include "cpu/channel_model.h"
#include "cpu/coverage_model.h"
#include "cpu/dense_greedy.h"
#include "cpu/history_model.h"
#include "cpu/lazy_greedy.h"
#include "cpu/row_greedy.h"
#include "cpu/row_model.h"
#include "rules/dispatch.h"
#include "rules/tokens.h"

namespace idsel::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Where sample b lies: rows [first, first + count) of a ragged batch, or all of its own.
struct Place {
    int64_t batch_row;  // index into the batch axis
    int64_t first;
    int64_t count;
};

Place place_of(const idsel_args& args, int64_t b) {
    if (args.cu_seqlens == nullptr) return {b, 0, args.tokens};
    return {0, args.cu_seqlens[b], args.cu_seqlens[b + 1] - args.cu_seqlens[b]};
}

Sample sample_of(const idsel_args& args, int64_t b) {
    const Place place = place_of(args, b);
    const int64_t element_bytes = args.dtype == IDSEL_FLOAT32 ? 4 : 2;
    Sample sample;
    sample.row_bytes = args.features_token_stride * element_bytes;
    sample.features = static_cast<const char*>(args.features) +
                      (place.batch_row * args.features_batch_stride * element_bytes + place.first * sample.row_bytes);
    sample.dtype = args.dtype;
    sample.n = place.count;
    sample.similarities = args.features_are_similarities != 0;
    sample.dim = sample.similarities ? 1 : args.dim;
    sample.k = args.k[args.k_count == 1 ? 0 : b];
    sample.loop = args.loop;
    for (int64_t i = 0; args.given != nullptr && i < args.given_count; ++i) {
        const int64_t token = args.given[b * args.given_count + i];
        if (token >= 0 && token < sample.n) sample.given.push_back(token);
    }
    if (args.gram_budget > 0) sample.gram_budget = sample.rows_budget = args.gram_budget;
    const auto size = static_cast<size_t>(place.count);
    sample.tier.assign(size, Tier::kNoPriority);
    if (args.mask != nullptr) {
        const uint8_t* mask =
            args.mask + place.batch_row * args.mask_batch_stride + place.first * args.mask_token_stride;
        for (size_t j = 0; j < size; ++j, mask += args.mask_token_stride) {
            if (*mask == 0) sample.tier[j] = Tier::kNotThere;
        }
    }
    sample.importance.assign(size, 1.0f);
    if (args.importance != nullptr) {
        const float* importance = args.importance + place.batch_row * args.importance_batch_stride +
                                  place.first * args.importance_token_stride;
        for (size_t j = 0; j < size; ++j, importance += args.importance_token_stride)
            sample.importance[j] = *importance;
    }
    for (size_t j = 0; j < size; ++j) {
        float& importance = sample.importance[j];
        const bool usable = usable_importance(importance), there = sample.tier[j] != Tier::kNotThere;
        if (there && !usable) sample.tier[j] = Tier::kUnusable;
        importance = there && usable ? clamp_importance(importance) : kLowest;
    }
    return sample;
}

// The model of a rule, by its state.
template <State state>
struct ModelOf;
template <>
struct ModelOf<State::kToken> {
    template <class Rule>
    using Type = RowModel<Rule>;
};
template <>
struct ModelOf<State::kHistory> {
    template <class Rule>
    using Type = HistoryModel;
};
template <>
struct ModelOf<State::kCoverage> {
    template <class Rule>
    using Type = CoverageModel;
};
template <>
struct ModelOf<State::kChannels> {
    template <class Rule>
    using Type = ChannelModel;
};

template <class Model>
void pick_greedily(Model& model, Run& run) {
    bool rows_next = Model::kRows && run.rows_chosen([&] {
        return cost_model_of<Model>(run).rows_come_first(std::min(run.survey, likely_picks<Model>(run)),
                                                         run.similarity.has_gram());
    });
    for (bool finished = false; !finished; rows_next = false) {
        const auto before = static_cast<int64_t>(run.picks.size());
        finished = model.lazy() && !rows_next && lazy_greedy(model, run);
        run.lazy_picks += static_cast<int64_t>(run.picks.size()) - before;
        if (finished || run.done()) return;
        if constexpr (Model::kRows) {
            finished = RowLoop<Model>(model, run).pick_all();
        } else {
            dense_greedy(model, run);
            finished = true;
        }
    }
}

void write(const idsel_args& args, int64_t b, std::vector<Pick>& picks) {
    if (args.sort != 0) {
        std::sort(picks.begin(), picks.end(), [](const Pick& a, const Pick& c) { return a.token < c.token; });
    }
    int64_t* indices = args.indices + b * args.k_max;
    float* scores = args.scores + b * args.k_max;
    for (int64_t step = 0; step < args.k_max; ++step) {
        const bool there = step < static_cast<int64_t>(picks.size());
        indices[step] = there ? picks[static_cast<size_t>(step)].token : -1;
        scores[step] = there ? picks[static_cast<size_t>(step)].priority : kLowest;
    }
}

void select_sample(const idsel_args& args, int64_t b, ThreadPool& pool) {
    Sample sample = sample_of(args, b);
    const Kernels& table = *kernels(args.isa);
    Similarity similarity(sample, table, pool);
    Run run(sample, similarity);
    if (sample.n > 0 && sample.k > 0) {
        with_rule(AllRules{}, args.rule, args.params, [&](auto rule) {
            using Rule = decltype(rule);
            if constexpr (Rule::kHasCells) {
                if (args.grids != nullptr) rule.set_width(args.grids[2 * b + 1]);
            }
            if constexpr (Rule::kState == State::kAll) {
                pick_at_once(rule, run);
            } else {
                typename ModelOf<Rule::kState>::template Type<Rule> model(rule, run);
                pick_greedily(model, run);
            }
            take_rest(run);
        });
    }
    write(args, b, run.picks);
    if (args.stats != nullptr) {
        args.stats[b] = {similarity.dots(), similarity.norms_known(), run.lazy_picks, run.path, table.isa};
    }
}

}  // namespace

void select(const idsel_args& args) {
    ThreadPool pool(std::max(args.threads, 1));
    if (args.batch < pool.threads()) {
        for (int64_t b = 0; b < args.batch; ++b) select_sample(args, b, pool);
        return;
    }
    // Enough samples to go round: each is one thread's work from beginning to end.
    std::atomic<bool> out_of_memory{false};
    pool.parallel_for(args.batch, 1, [&](int64_t begin, int64_t end) {
        ThreadPool alone(1);
        try {
            for (int64_t b = begin; b < end; ++b) select_sample(args, b, alone);
        } catch (const std::bad_alloc&) {
            out_of_memory.store(true);
        }
    });
    if (out_of_memory.load()) throw std::bad_alloc();
}

}  // namespace idsel::cpu
