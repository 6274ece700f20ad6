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

template <class Rule>
class RowState {
  public:
    IDSEL_DEVICE explicit RowState(const Context& context) : rule_(*reinterpret_cast<const Rule*>(context.args.rule)) {}

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
        if (rule_.given_start() < 0) return;
        // Only that one, or the first that competes where it does not.
        const long long given = rule_.given_start();
        uint32_t key = 0;
        int token = 0;
        tokens.for_each([&](int i, int j) {
            const uint32_t mine = !tokens.competes(i) ? 0 : j == given ? 2 : 1;
            if (mine > key) key = mine, token = j;
        });
        const int first = index_of(cta_best<Tokens::kLaneOrder>(context, key, token));
        tokens.for_each([&](int i, int j) {
            if (j != first) tokens.key(i) = 0;
        });
    }

    template <class Tokens>
    IDSEL_DEVICE Best best(Context&, Tokens& tokens) {
        return best_of_thread(tokens, [&](int slot) { return tokens.key(slot); });
    }

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

    IDSEL_DEVICE bool needs_nearest() const { return Rule::kMayNeedNearest && rule_.needs_nearest(); }
    IDSEL_DEVICE float kept() const { return 0.0f; }
    IDSEL_DEVICE void restore(float) {}

  private:
    Rule rule_;
};

}  // namespace idsel::cuda
