// The loop over picks of one sample, run by one CTA at a time.
//
// clang-format off
// contract: rule state: cuda/row_state.cuh cuda/history_state.cuh cuda/coverage_state.cuh cuda/channel_state.cuh
// A rule together with what its loop carries besides the tokens.
//   void start(context, tokens, nearest)   the priorities before the first pick; `nearest(j)` is the largest similarity
//                                          of token j to another
//   bool kNeedsBest                        whether these depend on the best of them all, so that what follows is asked
//   void rank(tokens, best)                once it is known, as a key
//   Best best(context, tokens)             the best of this thread's tokens; the CTA's best is then the next pick
//   bool has_priority(key)                 whether it is one by priority
//   void after_first(tokens, score)        once the first pick is known, before it is absorbed
//   bool changes(picks, score)             whether the latest pick changes priorities, so that its row is needed
//   void absorb(context, tokens, row, picks, pick, score)  the latest of so many picks, and its weights for all tokens
// clang-format on
#pragma once

#include "cuda/row_state.cuh"

namespace idsel::cuda {

// How many picks have been made, the last of them, and its score.
struct LastPick {
    int picks, pick;
    float score;
};

// Makes the next pick. False where no token has a priority any more.
template <class Tokens, class Rule>
IDSEL_DEVICE bool choose(Context& context, Tokens& tokens, Rule& rule, LastPick& now) {
    const Best mine = rule.best(context, tokens);
    const uint64_t best = cta_best<Tokens::kLaneOrder>(context, mine.key, mine.token);
    if (!rule.has_priority(key_of(best))) return false;
    now.pick = index_of(best);
    now.score = value_of(key_of(best));
    tokens.take(now.pick);
    tokens.record(context, now.picks++, now.pick, now.score);
    return true;
}

// Tokens without a priority. They get none any more.
template <class Tokens>
IDSEL_DEVICE int take_rest(Context& context, Tokens& tokens, int picks, int wanted) {
    while (picks < wanted) {
        const Best mine = best_of_thread(tokens, [&](int slot) { return key_of_rest(tokens, slot); });
        const uint64_t best = cta_best<Tokens::kLaneOrder>(context, mine.key, mine.token);
        if (key_of(best) == 0) break;
        tokens.take(index_of(best));
        tokens.take_unusable(index_of(best));
        tokens.record(context, picks++, index_of(best), -INFINITY);
    }
    return picks;
}

// Coverage reads rows by warps, other rules by the CTA.
IDSEL_DEVICE void report_rows(const Context& context) {
    if (context.args.similarities_read == nullptr || arch::lane() != 0) return;
    const uint32_t rows = context.rows_read_by_warp + (arch::warp() == 0 ? context.rows_read : 0u);
    const auto read = static_cast<unsigned long long>(rows) * static_cast<unsigned long long>(context.n());
    arch::red_add(context.args.similarities_read + context.sample.index, read);
}

template <class Tokens, class Rule>
IDSEL_DEVICE void pick_loop(Context& context, Tokens& tokens, Rule rule) {
    const int wanted = context.wanted;
    LastPick now{0, 0, 0.0f};
    tokens.read(context);
    tokens.begin_records(context);
    rule.start(context, tokens,
               [&](int j) { return join_runs(context, j, -INFINITY, [](float a, float b) { return fmaxf(a, b); }); });
    if constexpr (Rule::kNeedsBest) {
        const Best mine = rule.best(context, tokens);
        rule.rank(tokens, key_of(cta_best<Tokens::kLaneOrder>(context, mine.key, mine.token)));
    }
    bool more = wanted > 0 && choose(context, tokens, rule, now);
    if (more) rule.after_first(tokens, now.score);
    while (more && now.picks < wanted) {
        if (rule.changes(now.picks, now.score)) {
            rule.absorb(context, tokens, context.row(now.pick), now.picks, now.pick, now.score);
            context.rows_read += 1;
        } else {
            tokens.for_each([&](int i, int) { tokens.key(i) = tokens.competes(i) ? tokens.key(i) : 0; });
        }
        more = choose(context, tokens, rule, now);
    }
    const int picks = take_rest(context, tokens, now.picks, wanted);
    tokens.flush(context, picks);
    write_padding(context, picks);
    report_rows(context);
}

}  // namespace idsel::cuda
