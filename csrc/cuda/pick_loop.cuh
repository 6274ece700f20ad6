// The loop over picks of one sample, run by one CTA at a time.
//
// clang-format off
// contract: rule state: cuda/row_state.cuh cuda/history_state.cuh cuda/coverage_state.cuh
// A rule together with what its loop carries besides the tokens.
//   void start(context, tokens, nearest)   the priorities before the first pick
//   Best best(context, tokens)             the best of this thread's tokens; the CTA's best is then the next pick
//   void after_first(tokens, score)        once the first pick is known, before it is absorbed
//   bool changes(picks, score)             whether the latest pick changes priorities, so that its row is needed
//   void absorb(context, tokens, row, picks, pick, score)  the latest of so many picks, and its weights for all tokens
//   bool needs_nearest()                   whether its start asks for the nearest other token of each
//   float kept()                           what it carries from CTA to CTA
//   void restore(kept)                     sets that again
//
// contract: rows: cuda/pick_loop.cuh cuda/panel_kernel.cuh
// Where the weights of a pick come from.
//   Progress progress(context)             where the loop goes on
//   bool ready(context, tokens, rule, progress)  whether what comes next can be done here; false: the loop goes on in
//                                          another CTA, once the phase that was published is over
//   Row row(context, progress)             of the last pick
//   float nearest(context, tokens, j)      the largest similarity of token j to another, for start()
//   void end(context)                      after the last pick
// clang-format on
#pragma once

#include "cuda/row_state.cuh"

namespace idsel::cuda {

// Makes the next pick. False where no token has a priority any more.
template <class Tokens, class Rule>
IDSEL_DEVICE bool choose(Context& context, Tokens& tokens, Rule& rule, Progress& now) {
    const Best mine = rule.best(context, tokens);
    const uint64_t best = cta_best<Tokens::kLaneOrder>(context, mine.key, mine.token);
    if (key_of(best) == 0) return false;
    now.pick = index_of(best);
    now.score = value_of(key_of(best));
    tokens.take(now.pick);
    tokens.record(context, now.picks++, now.pick, now.score);
    return true;
}

// Tokens without a priority: by importance, then those that are not usable by index. They get none any more.
template <class Tokens>
IDSEL_DEVICE int take_rest(Context& context, Tokens& tokens, int picks, int wanted) {
    while (picks < wanted) {
        const Best mine = best_of_thread(tokens, [&](int slot) {
            return tokens.competes(slot) ? order_of(tokens.importance(slot)) : tokens.unusable(slot) ? 1u : 0u;
        });
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

template <class Tokens, class Rule, class Rows>
IDSEL_DEVICE void pick_loop(Context& context, Tokens& tokens, Rule rule, Rows rows) {
    const int wanted = context.wanted;
    Progress now = rows.progress(context);
    bool more = true;
    if (now.picks == 0) {
        if (now.phase == Phase::kFirst) {
            tokens.read(context);
            if (!rows.ready(context, tokens, rule, now)) return;
        }
        tokens.begin_records(context);
        rule.start(context, tokens, [&](int j) { return rows.nearest(context, tokens, j); });
        more = wanted > 0 && choose(context, tokens, rule, now);
        if (more) rule.after_first(tokens, now.score);
    } else {
        rule.restore(now.kept);
    }
    while (more) {
        if (now.picks >= wanted) break;
        if (rule.changes(now.picks, now.score)) {
            now.kept = rule.kept();
            if (!rows.ready(context, tokens, rule, now)) return;
            rule.absorb(context, tokens, rows.row(context, now), now.picks, now.pick, now.score);
            context.rows_read += 1;
        } else {
            tokens.for_each([&](int i, int) { tokens.key(i) = tokens.competes(i) ? tokens.key(i) : 0; });
        }
        if (!choose(context, tokens, rule, now)) break;
    }
    const int picks = take_rest(context, tokens, now.picks, wanted);
    tokens.flush(context, picks);
    write_padding(context, picks);
    report_rows(context);
    rows.end(context);
}

// Of the whole Gram.
struct GramRows {
    IDSEL_DEVICE Progress progress(const Context&) const { return {Phase::kFirst, 0, 0, 0.0f, 0.0f}; }
    template <class Tokens, class Rule>
    IDSEL_DEVICE bool ready(const Context&, Tokens&, const Rule&, const Progress&) const {
        return true;
    }
    IDSEL_DEVICE Row row(const Context& context, const Progress& now) const { return context.row(now.pick); }
    template <class Tokens>
    IDSEL_DEVICE float nearest(const Context& context, const Tokens&, int j) const {
        return join_runs(context, j, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
    }
    IDSEL_DEVICE void end(const Context&) const {}
};

}  // namespace idsel::cuda
