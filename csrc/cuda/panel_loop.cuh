// The loop over picks where a CTA group works on panels. A round:
//   each CTA offers its best tokens; barrier;
//   all choose the same panel from the offers, unless the best token of all has its row in the present one;
//   for a new panel, its weights with all tokens are computed; barrier;
//   all make the same picks in the panel, for as long as its best token ranks above all that are not in it;
//   each CTA absorbs these picks into its own tokens.
// Where tokens are given, panels of them come first, and all of such a panel is picked.
// Priorities that only fall make what a round knows of the tokens outside of the panel an upper bound. A pick after
// which some may have risen is the last of its round.
//
// clang-format off
// contract: rule state on panels: cuda/row_state.cuh cuda/history_state.cuh
// What is asked of a rule state besides what pick_loop.cuh asks.
//   bool kHasHistory               whether it has overlap(picks, i, j), what two tokens have in common along so many picks,
//                                  and carries kept() from phase to phase, which restore(kept) sets again
//   bool rises(tokens, slot, key)  whether bringing a token's state into range raises its priority above `key`
//   bool raises(step, score, rises)  whether the pick of that number may raise priorities of others
// clang-format on
#pragma once

#include "cuda/panel.cuh"

namespace idsel::cuda {

IDSEL_DEVICE void record(GroupContext& context, OwnTokens& tokens, int64_t step, const Pick& pick) {
    context.now.below += pick.token < tokens.first() ? 1 : 0;
    tokens.record(context.pick, step, pick.token, pick.score);
}

// Counts of rounds, then of panels, of each sample.
IDSEL_DEVICE void add_to_counts(const GroupContext& context, int rounds, int panels) {
    unsigned long long* counts = context.pick.args.panels_made;
    if (counts == nullptr || context.group.rank() != 0 || arch::thread() != 0) return;
    counts += context.pick.sample.index * 2;
    arch::red_add(counts, static_cast<unsigned long long>(rounds));
    arch::red_add(counts + 1, static_cast<unsigned long long>(panels));
}

IDSEL_DEVICE uint64_t best_of_panel(GroupContext& context) {
    const Panel& panel = *context.panel;
    const int slot = arch::thread();
    const bool has_key = slot < kPanelRows && panel.key[slot] != 0;
    return best_rank(context, has_key ? ranked(panel.key[slot], panel.token[slot]) : 0);
}

// DPP: what the panel's tokens have in common along the picks before it. The CTAs share the pairs.
template <class Rule>
IDSEL_DEVICE void sum_overlaps(GroupContext& context, const Rule& rule) {
    const int32_t* token = context.panel->token;
    const int step = context.group.ctas() * kCtaThreads;
    for (int at = context.group.rank() * kCtaThreads + arch::thread(); at < kPanelRows * kPanelRows; at += step) {
        const int a = token[at / kPanelRows], b = token[at % kPanelRows];
        context.state().overlaps[at] = a >= 0 && b >= 0 ? rule.overlap(context.now.picks, a, b) : 0.0f;
    }
}

// Picks all tokens of `key`, by key_of_token(slot), of the group together: none of them changes what is left. CTAs own
// neighbouring tokens, so the lowest index comes first if each counts those of the CTAs before it.
template <class KeyOfToken>
IDSEL_DEVICE void take_tied(GroupContext& context, OwnTokens& tokens, uint32_t key, float score,
                            KeyOfToken&& key_of_token) {
    int32_t* tied = context.state().tied;
    arch::cta_sync();  // what other threads have done to a token is there
    const MemoryTokens::SlotRange run = tokens.run_of_thread();
    int32_t mine = 0;
    for (int i = run.begin; i < run.end; ++i) mine += key_of_token(i) == key ? 1 : 0;
    const int32_t up_to = cta_sum_up_to(mine, context.pick.reduce);
    if (arch::thread() == kCtaThreads - 1) tied[context.group.rank()] = up_to;
    context.group.sync();
    int32_t lower = 0, all = 0;
    for (int cta = arch::thread(); cta < context.group.ctas(); cta += kCtaThreads) {
        const int32_t count = arch::ld_global_cg(tied + cta);
        all += count;
        lower += cta < context.group.rank() ? count : 0;
    }
    lower = cta_sum(lower, context.pick.reduce);
    all = cta_sum(all, context.pick.reduce);
    const int left = context.pick.wanted - context.now.picks;
    int32_t at = lower + up_to - mine;
    for (int i = run.begin; i < run.end && at < left; ++i) {
        if (key_of_token(i) != key) continue;
        tokens.pick(context.pick, i, context.now.picks + at, score);
        ++at;
    }
    arch::cta_sync();  // as above
    context.now.picks += all < left ? all : left;
    context.now.below += lower < left ? lower : left;
    Panel* panel = context.panel;
    const int slot = arch::thread();
    if (slot < kPanelRows && panel->key[slot] == key) panel->token[slot] = -1, panel->key[slot] = 0;
}

// Turns to a panel that has the token which ranks highest of all, and to what ranks highest outside of it. False where
// it is a new one, whose rows are needed.
IDSEL_DEVICE bool turn_to_panel(GroupContext& context, OwnTokens& tokens, Offers& offers, uint64_t kept) {
    context.now.bound = offers.best();
    if (kept > offers.best()) return true;
    context.now.bound = choose_panel(context, tokens, offers);
    return false;
}

// Once all CTAs have computed their part of them.
IDSEL_DEVICE void read_rows(GroupContext& context, bool has_history) {
    const GroupState& state = context.state();
    for (int at = arch::thread(); at < kPanelRows * kPanelRows; at += kCtaThreads) {
        context.weights->among[at] = arch::ld_global_cg(state.among + at);
        if (has_history) context.weights->overlaps[at] = arch::ld_global_cg(state.overlaps + at);
    }
    add_to_counts(context, 0, 1);
    arch::cta_sync();
}

// Takes a slot for the `count`-th pick of a round.
IDSEL_DEVICE void take_slot(Panel* panel, PanelTokens& tokens, int slot, const Pick& pick, int count) {
    tokens.take(slot);
    if (arch::lane() == 0) panel->picks[count] = pick, panel->slots[count] = slot;
}
template <class Rule>
IDSEL_DEVICE void absorb_slot(GroupContext& context, PanelTokens& tokens, Rule& rule, int slot, int step, int token,
                              float score) {
    const Row row{context.weights->among, static_cast<uint32_t>(slot * kPanelRows)};
    rule.absorb(context.pick, tokens, row, step, token, score);
}

// The picks of a round whose panel is of tokens that are given, by the first warp. None ends it: nothing outside of the
// panel is compared with them.
template <class Rule>
IDSEL_DEVICE void pick_given(GroupContext& context, Rule& rule) {
    Panel* panel = context.panel;
    PanelTokens tokens(*panel, context.weights);
    if (context.now.rounds == 1) rule.rank(tokens, key_of(context.now.best));  // as in pick_in_panel()
    const int picks = context.now.picks, wanted = context.pick.wanted;
    int count = 0;
    for (int slot = 0; slot < kPanelRows && picks + count < wanted; ++slot) {
        const int token = panel->token[slot];
        if (token < 0) continue;
        const uint32_t key = tokens.key_of_slot(slot);
        const Pick pick{token, rule.has_priority(key) ? value_of(key) : -INFINITY};
        take_slot(panel, tokens, slot, pick, count++);
        const int step = picks + count;
        const float score = absorbed_at<Rule>(pick.score);
        if (step == 1) rule.after_first(tokens, score);
        if (step == wanted || !rule.changes(step, score)) continue;
        absorb_slot(context, tokens, rule, slot, step, token, score);
    }
    tokens.store(panel);
    if (arch::lane() == 0) panel->count = count;
}

// The picks of a round, by the first warp.
template <class Rule>
IDSEL_DEVICE void pick_in_panel(GroupContext& context, Rule& rule) {
    Panel* panel = context.panel;
    PanelTokens tokens(*panel, context.weights);
    const int picks = context.now.picks;
    // What has been offered was not ranked yet.
    if (context.now.rounds == 1) rule.rank(tokens, key_of(context.now.best));
    const int wanted = context.pick.wanted;
    int count = 0;
    while (picks + count < wanted) {
        const PanelTokens::Top top = tokens.top();
        if (top.slot < 0 || top.rank < context.now.bound || !rule.has_priority(key_of(top.rank))) break;
        const int token = index_of(top.rank), step = picks + count + 1;
        const float score = value_of(key_of(top.rank));
        const bool changes = step < wanted && rule.changes(step, score);
        take_slot(panel, tokens, top.slot, {token, score}, count++);
        if (step == 1) rule.after_first(tokens, score);
        if (!changes) continue;
        absorb_slot(context, tokens, rule, top.slot, step, token, score);
        if (rule.raises(step, score, context.now.rises)) break;
    }
    tokens.store(panel);
    if (arch::lane() == 0) panel->count = count;
}

template <class Rule>
IDSEL_DEVICE void absorb_picks(GroupContext& context, OwnTokens& tokens, Rule& rule) {
    const Panel& panel = *context.panel;
    const int picks = context.now.picks;
    for (int at = 0; at < panel.count; ++at) {
        const Pick pick = panel.picks[at];
        const int step = picks + at + 1;
        tokens.take(pick.token);
        record(context, tokens, step - 1, pick);
        const float score = absorbed_at<Rule>(pick.score);
        if (step == 1) rule.after_first(tokens, score);
        if (step < context.pick.wanted && rule.changes(step, score)) {
            tokens.set_slot_of_pick(panel.slots[at]);
            rule.absorb(context.pick, tokens, context.panel_row(panel.slots[at]), step, pick.token, score);
        } else {
            tokens.for_each([&](int i, int) { tokens.key(i) = tokens.competes(i) ? tokens.key(i) : 0; });
        }
    }
    context.now.picks += panel.count;
}

// The priorities before the first pick.
template <class Rule>
IDSEL_DEVICE void start_on_panels(GroupContext& context, OwnTokens& tokens, Rule& rule) {
    rule.start(context.pick, tokens, [&](int j) {
        const float* first = first_of(context.pick.args, context.pick.sample, j);
        return value_of(arch::float_as_uint(arch::ld_global_cg(first)));
    });
    // Whether bringing states into range after the first pick raises a priority.
    bool rises = false;
    tokens.for_each([&](int i, int) { rises = rises || (tokens.competes(i) && rule.rises(tokens, i, tokens.key(i))); });
    context.now.rises = cta_sum(rises ? 1 : 0, context.pick.reduce) != 0;
}

// Picks that have a priority; false where the rows of a panel are needed to go on.
template <class Rule>
IDSEL_DEVICE bool pick_on_panels(GroupContext& context, OwnTokens& tokens, Rule& rule, bool has_rows) {
    Progress& now = context.now;
    if (has_rows) read_rows(context, Rule::kHasHistory);
    for (; now.picks < context.pick.wanted; has_rows = false) {
        if (!has_rows) {
            const NextGiven next(context);
            if (next.count > 0) offer_given(context, tokens, next);
            Offers offers = collect_offers(context, tokens);
            const uint64_t kept = best_of_panel(context);
            now.best = kept > offers.best() ? kept : offers.best();
            if (now.rounds++ == 0) {
                now.rises = offers.noted();
                rule.rank(tokens, key_of(now.best));
            }
            if (next.count > 0) {
                if (!turn_to_given(context, next)) continue;
                if constexpr (Rule::kHasHistory) sum_overlaps(context, rule);
                return false;
            }
            if (!rule.has_priority(key_of(now.best))) break;
            const uint32_t key = key_of(now.best);
            if (now.picks + 1 == context.pick.wanted || !rule.changes(now.picks + 1, value_of(key))) {
                take_tied(context, tokens, key, value_of(key),
                          [&](int i) { return tokens.competes(i) ? tokens.key(i) : 0; });
                continue;
            }
            if (!turn_to_panel(context, tokens, offers, kept)) {
                if constexpr (Rule::kHasHistory) sum_overlaps(context, rule);
                return false;
            }
        }
        if (arch::warp() == 0) {
            if (now.of_given) {
                pick_given(context, rule);
            } else {
                pick_in_panel(context, rule);
            }
        }
        arch::cta_sync();
        absorb_picks(context, tokens, rule);
        now.of_given = false;
    }
    return true;
}

// Tokens without a priority. They get none any more.
IDSEL_DEVICE void take_rest(GroupContext& context, OwnTokens& tokens) {
    const auto key = [&](int i) { return key_of_rest(tokens, i); };
    int& picks = context.now.picks;
    while (picks < context.pick.wanted) {
        arch::cta_sync();  // nobody reads the last ranks any more
        make_offers(context, tokens, false, key);
        context.group.sync();
        Offers offers(context);
        if (offers.best() == 0) break;
        uint64_t* in_order = context.ranks() + offers.count();
        if (arch::thread() < kPanelRows) in_order[arch::thread()] = 0;
        arch::cta_sync();
        const uint64_t bound = offers.choose(0, [&](int place, int at) { in_order[place] = context.ranks()[at]; });
        if (key_of(bound) == key_of(offers.best())) {  // so many tie that not all are offered
            take_tied(context, tokens, key_of(bound), -INFINITY, key);
            continue;
        }
        for (int at = 0; at < kPanelRows && picks < context.pick.wanted; ++at) {
            const uint64_t rank = in_order[at];
            if (rank == 0 || rank < bound) break;
            tokens.take(index_of(rank));
            record(context, tokens, picks++, {index_of(rank), -INFINITY});
        }
    }
}

}  // namespace idsel::cuda
