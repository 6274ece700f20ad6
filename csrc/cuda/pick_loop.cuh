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
//   void refresh(context, tokens, slot, token)  makes the key of one token exact, which is this thread's slot unless that
//                                          is -1; by all threads
//   float kNoPriority                      the rule's
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

// Brings the tokens that are left up to date with the latest pick.
template <class Tokens, class Rule>
IDSEL_DEVICE void absorb_last(Context& context, Tokens& tokens, Rule& rule, const LastPick& now) {
    if (rule.changes(now.picks, now.score)) {
        rule.absorb(context, tokens, context.row(now.pick), now.picks, now.pick, now.score);
        context.rows_read += 1;
    } else {
        tokens.for_each([&](int i, int) { tokens.key(i) = tokens.competes(i) ? tokens.key(i) : 0; });
    }
}

// The key of a token that is given, to all threads: 0 if it does not take part, kKeyOfNone if it has no priority.
constexpr uint32_t kKeyOfNone = 1;  // no priority has it
template <class Tokens, class Rule>
IDSEL_DEVICE uint32_t key_of_given(Context& context, Tokens& tokens, Rule& rule, int token) {
    const int slot = tokens.slot_of(token);
    rule.refresh(context, tokens, slot, token);
    context.turn ^= 1;
    uint64_t* told = context.reduce->keys[context.turn];
    // One thread has it, and tells the others.
    if (slot >= 0) {
        tokens.at(slot, [&](int own) {
            const uint32_t key = rule.has_priority(tokens.key(own)) ? tokens.key(own) : kKeyOfNone;
            *told = tokens.competes(own) ? key : 0;
        });
    }
    arch::cta_sync();
    return static_cast<uint32_t>(*told);
}

// The tokens that are given, in their order and whatever they are worth. A loop of its own, so that other calls' picks
// do not pay for it.
template <class Tokens, class Rule>
IDSEL_DEVICE void take_given(Context& context, Tokens& tokens, Rule& rule, LastPick& now) {
    const int64_t count = context.args.given_count;
    const int32_t* given = context.args.given + context.sample.index * count;
    for (int64_t at = 0; at < count && now.picks < context.wanted; ++at) {
        // The same in all lanes, which the compiler would not know of a load: it then took warps of the loop over picks
        // to be divided.
        const auto token = static_cast<int>(arch::shfl(static_cast<uint32_t>(given[at]), 0));
        if (token < 0 || token >= context.n()) continue;
        const uint32_t key = key_of_given(context, tokens, rule, token);
        if (key == 0) continue;
        const float score = key == kKeyOfNone ? -INFINITY : value_of(key);
        now.pick = token;
        now.score = absorbed_at<Rule>(score);
        tokens.take(token);
        tokens.record(context, now.picks++, token, score);
        if (now.picks == 1) rule.after_first(tokens, now.score);
        if (now.picks < context.wanted) absorb_last(context, tokens, rule, now);
    }
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
    if (context.args.given != nullptr) take_given(context, tokens, rule, now);
    bool more = now.picks < wanted && choose(context, tokens, rule, now);
    if (more && now.picks == 1) rule.after_first(tokens, now.score);
    while (more && now.picks < wanted) {
        absorb_last(context, tokens, rule, now);
        more = choose(context, tokens, rule, now);
    }
    const int picks = take_rest(context, tokens, now.picks, wanted);
    tokens.flush(context, picks);
    write_padding(context, picks);
    report_rows(context);
}

}  // namespace idsel::cuda
