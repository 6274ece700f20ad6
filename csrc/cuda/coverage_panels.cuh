// Coverage on panels, lazily as in coverage_state.cuh: a gain is a sum over the tokens of all CTAs, and a row of a
// panel is what it needs. Each CTA forms sums over runs of its own tokens; a warp of one of them adds up all of a gain,
// in the order and in the pairs in which it is formed from a row of the Gram.
#pragma once

#include "cuda/coverage_state.cuh"
#include "cuda/panel_loop.cuh"

namespace idsel::cuda {

IDSEL_DEVICE int64_t sums_pitch(const Sample& sample) { return round_up(ceil_div(sample.n, kRun), 4); }
IDSEL_DEVICE float* sums_of(const PickArgs& args, const Sample& sample) {
    return args.sums + sample.row + sample.local * kSumsSlack;
}

class CoveragePanels {
  public:
    IDSEL_DEVICE CoveragePanels(GroupContext& context, OwnTokens& tokens)
        : rule_(*reinterpret_cast<const Coverage*>(context.pick.args.rule)), context_(context), tokens_(tokens) {}

    // The priorities before the first pick.
    IDSEL_DEVICE void start() {
        const Context& context = context_.pick;
        float* cover = tokens_.cover();
        bool rises = false;
        tokens_.for_each([&](int i, int j) {
            cover[i] = INFINITY;  // nothing is gained there
            if (!tokens_.competes(i)) return;
            cover[i] = 0.0f;
            tokens_.state(i) = rule_.saliency(tokens_.importance(i));
            const float gain = arch::ld_global_cg(first_of(context.args, context.sample, j));
            tokens_.key(i) = order_key(rule_.priority(gain, tokens_.state(i)));
            rises = rises || (tokens_.key(i) != 0 && !rule_.rises_with_gain(tokens_.state(i)));
        });
        // Quads are read as a whole.
        const int end = tokens_.count(), padded = static_cast<int>(round_up(end, 4));
        if (arch::thread() < padded - end) cover[end + arch::thread()] = INFINITY;
        context_.now.rises = cta_sum(rises ? 1 : 0, context.reduce) != 0;
    }

    // Picks that have a priority; false where the rows of a panel are needed to go on.
    IDSEL_DEVICE bool pick(bool has_rows) {
        Progress& now = context_.now;
        if (has_rows) read_rows(context_, false);
        for (; now.picks < context_.pick.wanted; has_rows = false) {
            if (!has_rows) {
                const NextGiven next(context_);
                if (next.count > 0) offer_given(context_, tokens_, next);
                Offers offers = collect_offers(context_, tokens_);
                if (now.rounds++ == 0) now.rises = offers.noted();
                if (next.count > 0) {
                    if (turn_to_given(context_, next)) return false;
                    continue;
                }
                const uint64_t kept = best_of_panel(context_);
                if (kept == 0 && offers.best() == 0) break;
                if (!turn_to_panel(context_, tokens_, offers, kept)) return false;
            }
            if (now.of_given) {
                pick_given();
            } else {
                pick_in_panel();
            }
            now.of_given = false;
        }
        return true;
    }

  private:
    // All of a panel of tokens that are given, in their order.
    IDSEL_DEVICE void pick_given() {
        Progress& now = context_.now;
        Panel* panel = context_.panel;
        for (int slot = 0; slot < kPanelRows && now.picks < context_.pick.wanted; ++slot) {
            const int token = panel->token[slot];
            if (token < 0) continue;
            if (panel->key[slot] != 0) {
                if (arch::thread() == 0) panel->to_sum[0] = slot;
                arch::cta_sync();
                sum_gains(1);
            }
            const uint32_t key = panel->key[slot];
            absorb(slot, token, key == 0 ? -INFINITY : value_of(key), now.picks++);
        }
    }

    IDSEL_DEVICE void pick_in_panel() {
        Progress& now = context_.now;
        for (;;) {
            const uint64_t best = best_of_panel(context_);
            if (best == 0 || best < now.bound) return;
            const int slot = slot_of(best);
            if (!context_.panel->fresh[slot]) {
                sum_gains(choose_gains());
                continue;
            }
            absorb(slot, index_of(best), value_of(key_of(best)), now.picks++);
            if (now.rises || now.picks >= context_.pick.wanted) return;
        }
    }

    // The panel's slot of a token, to all threads.
    IDSEL_DEVICE int slot_of(uint64_t rank) {
        Panel* panel = context_.panel;
        const int thread = arch::thread();
        if (thread < kPanelRows && panel->token[thread] == index_of(rank)) panel->slot_of_best = thread;
        arch::cta_sync();
        return panel->slot_of_best;
    }

    // Which gains are to be summed next, those of the panel's best tokens that are not fresh; returns how many.
    IDSEL_DEVICE int choose_gains() {
        Panel* panel = context_.panel;
        const Context& context = context_.pick;
        const int thread = arch::thread();
        const auto is_stale = [&](int slot) { return panel->key[slot] != 0 && !panel->fresh[slot]; };
        const int stale = cta_sum(thread < kPanelRows && is_stale(thread) ? 1 : 0, context.reduce);
        const int gains = stale < kGainsAtOnce ? stale : kGainsAtOnce;
        if (thread < kPanelRows && is_stale(thread)) {
            const uint64_t mine = ranked(panel->key[thread], panel->token[thread]);
            int higher = 0;
            for (int other = 0; other < kPanelRows; ++other) {
                if (is_stale(other) && ranked(panel->key[other], panel->token[other]) > mine) ++higher;
            }
            if (higher < kGainsAtOnce) panel->to_sum[higher] = thread;
        }
        arch::cta_sync();
        return gains;
    }

    IDSEL_DEVICE void sum_gains(int gains) {
        Panel* panel = context_.panel;
        const Context& context = context_.pick;
        const int thread = arch::thread();
        const int64_t pitch = sums_pitch(context.sample);
        float* sums = sums_of(context.args, context.sample);
        const int runs = static_cast<int>(ceil_div(tokens_.count(), kRun));
        for (int at = thread; at < gains * runs; at += kCtaThreads) {
            const int gain = at / runs, run = at % runs;
            sums[gain * pitch + tokens_.first() / kRun + run] = run_sum(panel->to_sum[gain], run);
        }
        context_.group.sync();
        // The CTAs share the gains too: what all of them go by is in one place.
        float* totals = context_.state().gains;
        for (int gain = context_.group.rank() * kWarps + arch::warp(); gain < gains;
             gain += context_.group.ctas() * kWarps) {
            const float sum = total(sums + gain * pitch);
            if (arch::lane() == 0) totals[gain] = sum;
        }
        context_.group.sync();
        if (thread < gains) {
            const int slot = panel->to_sum[thread];
            panel->key[slot] = order_key(rule_.priority(arch::ld_global_cg(totals + thread), panel->state[slot]));
            panel->fresh[slot] = true;
        }
        arch::cta_sync();
    }

    // Over kRun tokens of this CTA, in the pairs of run_of().
    IDSEL_DEVICE float run_sum(int slot, int run) const {
        const float* row = context_.panel_row(slot).base + tokens_.first();
        float sums[kRun / 4];
        IDSEL_UNROLL
        for (int quad = 0; quad < kRun / 4; ++quad) {
            const int at = run * kRun + quad * 4;
            sums[quad] = 0.0f;
            if (at >= tokens_.count()) continue;
            const Float4 c = arch::ld_global_cg(reinterpret_cast<const Float4*>(row + at));
            const Float4 cover = arch::ld_any(reinterpret_cast<const Float4*>(tokens_.cover() + at));
            float v[4];
            IDSEL_UNROLL
            for (int e = 0; e < 4; ++e) v[e] = rule_.uncovered(c.v[e], cover.v[e]);
            sums[quad] = (v[0] + v[1]) + (v[2] + v[3]);
        }
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    // Over all runs, by a warp: four in pairs, then in their order.
    IDSEL_DEVICE float total(const float* sums) const {
        const auto runs = static_cast<int>(ceil_div(context_.pick.n(), kRun));
        float gain = 0.0f;
        for (int from = 0; from < runs; from += 32 * 4) {
            const int run = from + arch::lane() * 4;
            Float4 four = {};
            if (run < runs) four = arch::ld_global_cg(reinterpret_cast<const Float4*>(sums + run));
            IDSEL_UNROLL
            for (int e = 0; e < 4; ++e) four.v[e] = run + e < runs ? four.v[e] : 0.0f;
            const float block = (four.v[0] + four.v[1]) + (four.v[2] + four.v[3]);
            IDSEL_UNROLL
            for (int lane = 0; lane < 32; ++lane) gain += arch::shfl(block, lane);
        }
        return gain;
    }

    // The pick after `before` others. Every other token's gain is no more than a bound then.
    IDSEL_DEVICE void absorb(int slot, int token, float score, int before) {
        Panel* panel = context_.panel;
        const Row row = context_.panel_row(slot);
        const auto bound = [&](uint32_t key, float state) {
            if (key == 0 || rule_.rises_with_gain(state)) return key;
            return order_key(rule_.priority(0.0f, state));
        };
        tokens_.take(token);
        record(context_, tokens_, before, {token, score});
        const auto weights = tokens_.load(row);
        float* cover = tokens_.cover();
        tokens_.for_each([&](int i, int) {
            cover[i] = rule_.cover(cover[i], weights.v[i]);
            tokens_.key(i) = tokens_.competes(i) ? bound(tokens_.key(i), tokens_.state(i)) : 0;
        });
        arch::cta_sync();  // everybody has seen that the pick's gain is fresh
        const int thread = arch::thread();
        if (thread < kPanelRows) {
            panel->key[thread] = thread == slot ? 0 : bound(panel->key[thread], panel->state[thread]);
            if (thread == slot) panel->token[thread] = -1;
            panel->fresh[thread] = false;
        }
        arch::cta_sync();
    }

    Coverage rule_;
    GroupContext& context_;
    OwnTokens& tokens_;
};

}  // namespace idsel::cuda
