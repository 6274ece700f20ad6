// Rules with one number per token, for which a pick means one row of the Gram.
#pragma once

#include "cuda/token_state.cuh"

namespace idsel::cuda {

// Joins the runs of token j in pairs, then in their order; see run_of().
template <class Join>
IDSEL_DEVICE float join_runs(const Context& context, int j, float start, Join&& join) {
    const float* runs = context.args.runs + (context.sample.row + j) * context.args.run_depth;
    const int blocks = static_cast<int>(ceil_div(context.n(), kTile));
    float joined = start;
    IDSEL_UNROLL_BY(4)
    for (int block = 0; block < blocks; ++block) {
        const Float4 four = arch::ld_global_cg(reinterpret_cast<const Float4*>(runs + block * 4));
        joined = join(joined, join(join(four.v[0], four.v[1]), join(four.v[2], four.v[3])));
    }
    return joined;
}

// The call's rule, on the grid of the sample.
template <class Rule>
IDSEL_DEVICE Rule rule_of(const Context& context) {
    Rule rule = *reinterpret_cast<const Rule*>(context.args.rule);
    if constexpr (Rule::kHasCells) {
        const int32_t* grids = context.args.grids;
        if (grids != nullptr) rule.set_width(grids[2 * context.sample.index + 1]);
    }
    return rule;
}

template <class Rule>
class RowState {
  public:
    IDSEL_DEVICE explicit RowState(const Context& context) : rule_(rule_of<Rule>(context)) {}

    // Priorities before the first pick. `nearest(j)` is the largest similarity of a token to another.
    template <class Tokens, class Nearest>
    IDSEL_DEVICE void start(Context& context, Tokens& tokens, Nearest&& nearest) {
        tokens.for_each([&](int i, int j) {
            if (!tokens.competes(i)) return;
            const float to_other = needs_nearest() ? nearest(j) : 0.0f;
            tokens.state(i) = rule_.start(tokens.importance(i), to_other);
            tokens.key(i) = order_key(tokens.state(i));
        });
        if (Rule::kHasCells) tokens.set_cells(rule_);
        // Where the given one does not compete, all rank alike: the first that does is picked.
        const long long given = rule_.given_start();
        if (given < 0 || given >= context.n()) return;
        if (!competes(context.args, context.sample, given, context.args.square[context.sample.row + given])) return;
        tokens.for_each([&](int i, int j) {
            if (j != given) tokens.key(i) = 0;
        });
    }

    // Once the best of all is known.
    static constexpr bool kNeedsBest = false;
    static constexpr bool kHasHistory = false;
    template <class Tokens>
    IDSEL_DEVICE void rank(Tokens&, uint32_t) {}

    template <class Tokens>
    IDSEL_DEVICE Best best(Context&, Tokens& tokens) {
        return best_of_thread(tokens, [&](int slot) { return tokens.key(slot); });
    }

    IDSEL_DEVICE bool has_priority(uint32_t key) const { return key > order_key(rule_.limit()); }

    // Keys are exact.
    template <class Tokens>
    IDSEL_DEVICE void refresh(Context&, Tokens&, int, int) {}
    static constexpr float kNoPriority = Rule::kNoPriority;

    // Brings states into the range of the rule, once the first pick is known.
    template <class Tokens>
    IDSEL_DEVICE void after_first(Tokens& tokens, float score) {
        if (rule_.raises(score)) return;
        tokens.for_each([&](int i, int) { tokens.state(i) = rule_.untouched(tokens.importance(i)); });
    }

    // Whether the latest of `picks` picks changes a priority.
    IDSEL_DEVICE bool changes(int picks, float score) const {
        return Rule::kNeedsSimilarities && (picks == 1 || !rule_.inert(score));
    }

    template <class Tokens>
    IDSEL_DEVICE void absorb(Context&, Tokens& tokens, const Row& row, int picks, int pick, float score) {
        const auto weights = tokens.load(row);
        const bool visible = rule_.visible(picks) == picks;
        const auto cell = rule_.cell(pick);
        tokens.for_each([&](int i, int) {
            float state = rule_.absorb(tokens.state(i), weights.v[i], score);
            if (Rule::kHasCells && rule_.suppresses(cell, tokens.cell(i, rule_))) state = -INFINITY;
            tokens.state(i) = state;
            const uint32_t key = visible ? order_key(rule_.priority(state, tokens.importance(i))) : tokens.key(i);
            tokens.key(i) = tokens.competes(i) ? key : 0;
        });
    }

    // Whether the pick of that number may raise priorities of others: for what it is worth, or since it is the first
    // that counts where `rises`, which is that bringing the state of some token into range raises its priority.
    IDSEL_DEVICE bool raises(int step, float score, bool rises) const {
        const bool first_to_count = rule_.visible(step) == step && rule_.visible(step - 1) == 0;
        return (rises && first_to_count) || rule_.raises(score);
    }
    template <class Tokens>
    IDSEL_DEVICE bool rises(const Tokens& tokens, int slot, uint32_t key) const {
        const float importance = tokens.importance(slot);
        return order_key(rule_.priority(rule_.untouched(importance), importance)) > key;
    }

    IDSEL_DEVICE bool needs_nearest() const { return Rule::kMayNeedNearest && rule_.needs_nearest(); }

  private:
    Rule rule_;
};

}  // namespace idsel::cuda
