// A panel: the weights of kPanelRows tokens for all. Every CTA of a group chooses the same one from the same offers,
// and makes the same picks among its tokens.
#pragma once

#include "cuda/panel_tile.cuh"
#include "cuda/token_state.cuh"

namespace idsel::cuda {

// In shared memory of every CTA of the group, with the same contents.
struct Panel {
    int32_t token[kPanelRows];  // -1: none
    uint32_t key[kPanelRows];   // 0: picked, or without a priority
    float state[kPanelRows];
    float importance[kPanelRows];
    int32_t since;                 // picks before it
    int32_t moved_to[kPanelRows];  // the slot in the next panel; -1: none
    // The picks of a round, and their slots.
    Pick picks[kPanelRows];
    int32_t slots[kPanelRows];
    int32_t count;
    // Coverage: whether a gain has been summed for the present picks; and of which tokens it is to be next.
    bool fresh[kPanelRows];
    int32_t to_sum[kGainsAtOnce];
    int32_t slot_of_best;
};

// Beside it, where the tile's buffers were.
struct PanelWeights {
    float among[kPanelRows * kPanelRows];
    // DPP: sums over the picks before the panel; and components along those from it, by pick and slot.
    float overlaps[kPanelRows * kPanelRows];
    float components[kPanelRows * kPanelRows];
    uint64_t ranks[kMaxOffers + kPanelRows];
};

// How far the picks of a sample have come: what the loop needs to go on after a phase. In shared memory.
struct Progress {
    int32_t picks, rounds;
    int32_t turn;    // of the offers
    int64_t below;   // picks of lower tokens than this CTA's
    uint64_t bound;  // the highest rank outside of the panel
    uint64_t best;   // the highest rank of all, in the present round
    bool rises;      // the first pick may raise priorities of others; Coverage: any pick may
    int64_t given;   // how many of those that are given have been looked at
    bool of_given;   // the panel's tokens are such, to be picked in the order of its slots
    float kept;      // by the rule
};

// What the loop of a CTA works with.
struct GroupContext {
    Context pick;
    CtaGroup group;
    Panel* panel;
    PanelWeights* weights;
    Progress now;

    IDSEL_DEVICE GroupState& state() const { return group_state(pick.args, pick.sample); }
    IDSEL_DEVICE uint64_t* ranks() const { return weights->ranks; }
    IDSEL_DEVICE Row panel_row(int slot) const {
        return {panel_of(pick.args, pick.sample) + slot * panel_pitch(pick.sample), 0};
    }
};

// The panel's tokens, as the first warp holds them: kPer slots a lane. See "tokens" in token_state.cuh.
class PanelTokens {
  public:
    static constexpr int kPer = kPanelRows / 32;

    struct Weights {
        float v[kPer];
    };

    IDSEL_DEVICE PanelTokens(const Panel& panel, PanelWeights* weights) : weights_(weights), since_(panel.since) {
        for_each([&](int i, int) {
            token_[i] = panel.token[slot_of(i)];
            key_[i] = panel.key[slot_of(i)];
            state_[i] = panel.state[slot_of(i)];
            importance_[i] = panel.importance[slot_of(i)];
        });
    }
    IDSEL_DEVICE void store(Panel* panel) const {
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) {
            panel->token[slot_of(i)] = token_[i];
            panel->key[slot_of(i)] = key_[i];
            panel->state[slot_of(i)] = state_[i];
        }
    }

    template <class Use>
    IDSEL_DEVICE void for_each(Use&& use) {
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) use(i, token_[i]);
    }
    IDSEL_DEVICE float& state(int i) { return state_[i]; }
    IDSEL_DEVICE uint32_t& key(int i) { return key_[i]; }
    IDSEL_DEVICE float importance(int i) const { return importance_[i]; }
    IDSEL_DEVICE bool competes(int i) const { return token_[i] >= 0; }
    template <class Rule>
    IDSEL_DEVICE Cell cell(int i, const Rule& rule) const {
        return rule.cell(token_[i] < 0 ? 0 : token_[i]);
    }
    IDSEL_DEVICE Weights load(const Row& row) const {
        Weights part;
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) part.v[i] = row.base[row.offset + static_cast<uint32_t>(slot_of(i))];
        return part;
    }

    // The slot of the highest rank, -1 where none has a key; and that rank.
    struct Top {
        uint64_t rank;
        int slot;
    };
    IDSEL_DEVICE Top top() {
        uint64_t mine = 0;
        int slot = 0;
        for_each([&](int i, int token) {
            const uint64_t rank = ranked(key_[i], token);
            if (key_[i] != 0 && rank > mine) mine = rank, slot = slot_of(i);
        });
        const WarpTop best = warp_top<false>(key_of(mine), index_of(mine));
        if (best.key == 0) return {0, -1};
        const int owner = arch::find_first_set(arch::vote_ballot(best.mine));
        const auto index = arch::shfl(static_cast<uint32_t>(mine), owner);
        const auto place = arch::shfl(static_cast<uint32_t>(slot), owner);
        return {static_cast<uint64_t>(best.key) << 32 | index, static_cast<int>(place)};
    }
    IDSEL_DEVICE uint32_t key_of_slot(int slot) const {
        static_assert(kPer == 2);
        return arch::shfl(slot < 32 ? key_[0] : key_[1], slot % 32);
    }
    IDSEL_DEVICE void take(int slot) {
        for_each([&](int i, int) {
            if (slot_of(i) == slot) token_[i] = -1, key_[i] = 0;
        });
        picked_slot_ = slot;
    }

    // Of DPP: use(slot, token, overlap) gives the component along the pick, the `picks`-th, of each of the tokens.
    template <class Use>
    IDSEL_DEVICE void extend_history(float* /*history*/, int64_t /*pitch*/, int picks, int /*pick*/, Use&& use) {
        const int in_panel = picks - since_;
        const float* components = weights_->components;
        float overlaps[kPer];
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) overlaps[i] = weights_->overlaps[picked_slot_ * kPanelRows + slot_of(i)];
        for (int t = 0; t < in_panel; ++t, components += kPanelRows) {
            const float of_pick = components[picked_slot_];
            IDSEL_UNROLL
            for (int i = 0; i < kPer; ++i) overlaps[i] = fmaf(of_pick, components[slot_of(i)], overlaps[i]);
        }
        float* row = weights_->components + in_panel * kPanelRows;
        for_each([&](int i, int token) { row[slot_of(i)] = use(i, token, overlaps[i]); });
        arch::warp_sync();
    }

  private:
    IDSEL_DEVICE static int slot_of(int i) { return arch::lane() + i * 32; }

    int token_[kPer];
    uint32_t key_[kPer];
    float state_[kPer];
    float importance_[kPer];
    PanelWeights* weights_;
    int since_;
    int picked_slot_ = 0;
};

// The tokens that a CTA of a group owns: in shared memory where they fit, else in the workspace.
class OwnTokens : public MemoryTokens {
  public:
    IDSEL_DEVICE OwnTokens(const MemoryTokens::Home& home, const GroupContext& context)
        : MemoryTokens(home), panel_(context.panel), weights_(context.weights) {}

    // Whether it is in the panel, so that it is not offered for the next.
    IDSEL_DEVICE bool in_panel(int slot) const { return fresh(slot); }
    // By any thread: a token that comes into the panel, if it is of this CTA; and one that leaves it, with its key.
    IDSEL_DEVICE void enter_panel(int token) {
        if (is_here(token)) set_fresh(token - first());
    }
    IDSEL_DEVICE void leave_panel(int token, uint32_t with_key) {
        if (is_here(token)) number(kFresh, token - first()) = 0.0f, key(token - first()) = with_key;
    }
    IDSEL_DEVICE void set_slot_of_pick(int slot) { picked_slot_ = slot; }
    IDSEL_DEVICE bool is_here(int token) const { return token >= first() && token < first() + count(); }

    // As that of MemoryTokens. What other CTAs have written since the panel was chosen is not there yet, but what they
    // wrote of its tokens is known.
    template <class Use>
    IDSEL_DEVICE void extend_history(float* history, int64_t pitch, int picks, int pick, Use&& use) {
        const int before = panel_->since < picks ? panel_->since : picks;
        for_each([&](int i, int j) {
            float overlap = 0.0f;
            IDSEL_UNROLL_BY(8)
            for (int t = 0; t < before; ++t) {
                overlap = fmaf(arch::ld_global_cg(history + t * pitch + pick), history[t * pitch + j], overlap);
            }
            IDSEL_UNROLL_BY(4)
            for (int t = before; t < picks; ++t) {
                const float of_pick = weights_->components[(t - before) * kPanelRows + picked_slot_];
                overlap = fmaf(of_pick, history[t * pitch + j], overlap);
            }
            history[picks * pitch + j] = use(i, j, overlap);
        });
    }

  private:
    const Panel* panel_;
    const PanelWeights* weights_;
    int picked_slot_ = 0;
};

// Each CTA's best tokens by key(slot), 0 for those that are not offered, to the workspace: offers, and one more as a
// bound, which carries a note.
template <class Key>
IDSEL_DEVICE void make_offers(GroupContext& context, OwnTokens& tokens, bool note, Key&& key) {
    const int offers = offers_of(context.group.ctas());
    Offer* mine = context.state().offers[context.now.turn] + context.group.rank() * (offers + 1);
    uint64_t below = ~uint64_t{0};
    for (int offer = 0; offer <= offers; ++offer) {
        uint64_t best = 0;
        int slot = 0;
        if (below != 0) {
            tokens.for_each([&](int i, int j) {
                const uint32_t of_token = key(i);
                const uint64_t rank = ranked(of_token, j);
                if (of_token != 0 && rank < below && rank > best) best = rank, slot = i;
            });
        }
        const uint64_t top = cta_best<false>(context.pick, key_of(best), index_of(best));
        below = key_of(top) == 0 ? 0 : top;
        const bool none = below == 0, is_bound = offer == offers;
        if (none || is_bound ? arch::thread() == 0 : best == top) {
            const float state = is_bound ? (note ? 1.0f : 0.0f) : none ? 0.0f : tokens.state(slot);
            mine[offer] = {below, state, none || is_bound ? 0.0f : tokens.importance(slot)};
        }
    }
}

// Largest rank over the CTA; 0: none.
IDSEL_DEVICE uint64_t best_rank(GroupContext& context, uint64_t rank) {
    const uint64_t best = cta_best<false>(context.pick, key_of(rank), index_of(rank));
    return key_of(best) == 0 ? 0 : best;
}

// The offers of all CTAs, and what ranks highest among them.
class Offers {
  public:
    // After the group's barrier, by all threads of a CTA.
    IDSEL_DEVICE explicit Offers(GroupContext& context)
        : context_(context), each_(offers_of(context.group.ctas())), count_((each_ + 1) * context.group.ctas()) {
        const Offer* offers = context.state().offers[context.now.turn];
        uint64_t best = 0;
        for (int at = arch::thread(); at < count_; at += kCtaThreads) {
            const uint64_t rank = arch::ld_global_cg(&offers[at].rank);
            const bool is_bound = at % (each_ + 1) == each_;
            context.ranks()[at] = is_bound ? 0 : rank;
            if (is_bound && rank > bound_) bound_ = rank;
            if (rank > best) best = rank;
        }
        context.now.turn ^= 1;
        best_ = best_rank(context, best);
    }

    IDSEL_DEVICE uint64_t best() const { return best_; }

    // Whether a CTA has left a note.
    IDSEL_DEVICE bool noted() const {
        bool found = false;
        for (int cta = arch::thread(); cta < context_.group.ctas(); cta += kCtaThreads) {
            found = found || arch::ld_global_cg(&offer(cta * (each_ + 1) + each_).state) != 0.0f;
        }
        return cta_sum(found ? 1 : 0, context_.pick.reduce) != 0;
    }

    // chosen(place, at) for the kPanelRows that rank highest among the offers and `more` other ranks, which lie behind
    // those of the offers; `at` counts both. Returns what ranks highest of all that was not chosen.
    template <class Chosen>
    IDSEL_DEVICE uint64_t choose(int more, Chosen&& chosen) {
        uint64_t bound = bound_;
        const uint64_t* ranks = context_.ranks();
        const int all = count_ + more;
        for (int at = arch::thread(); at < all; at += kCtaThreads) {
            const uint64_t mine = ranks[at];
            if (mine == 0) continue;
            int higher = 0;
            for (int other = 0; other < all; ++other) higher += ranks[other] > mine ? 1 : 0;
            if (higher < kPanelRows) {
                chosen(higher, at);
            } else if (mine > bound) {
                bound = mine;
            }
        }
        return best_rank(context_, bound);
    }

    // In the workspace.
    IDSEL_DEVICE const Offer& offer(int at) const { return context_.state().offers[context_.now.turn ^ 1][at]; }
    IDSEL_DEVICE int count() const { return count_; }

  private:
    GroupContext& context_;
    int each_;
    int count_;
    uint64_t best_;
    uint64_t bound_ = 0;  // of what has not been offered, as far as this thread has seen it
};

// What all CTAs offer, of tokens that compete and are not in the panel: a new round.
IDSEL_DEVICE Offers collect_offers(GroupContext& context, OwnTokens& tokens) {
    make_offers(context, tokens, context.now.rises,
                [&](int i) { return tokens.competes(i) && !tokens.in_panel(i) ? tokens.key(i) : 0u; });
    context.group.sync();
    return Offers(context);
}

// A new panel from the offers and what is left of the old one. Returns the highest rank outside of it.
IDSEL_DEVICE uint64_t choose_panel(GroupContext& context, OwnTokens& tokens, Offers& offers) {
    Panel* panel = context.panel;
    const int thread = arch::thread();
    uint64_t* ranks = context.ranks();
    int32_t token = -1;
    uint32_t key = 0;
    float state = 0.0f, importance = 0.0f;
    if (thread < kPanelRows) {
        token = panel->token[thread], key = panel->key[thread];
        state = panel->state[thread], importance = panel->importance[thread];
        ranks[offers.count() + thread] = key == 0 ? 0 : ranked(key, token);
        tokens.leave_panel(token, key);
    }
    arch::cta_sync();  // what the old one had is in registers, and its ranks are among the others
    if (thread < kPanelRows) panel->token[thread] = panel->moved_to[thread] = -1, panel->key[thread] = 0;
    arch::cta_sync();
    const uint64_t bound = offers.choose(kPanelRows, [&](int place, int at) {
        const uint64_t rank = ranks[at];
        panel->token[place] = index_of(rank);
        panel->key[place] = key_of(rank);
        if (at < offers.count()) {
            panel->state[place] = arch::ld_global_cg(&offers.offer(at).state);
            panel->importance[place] = arch::ld_global_cg(&offers.offer(at).importance);
        } else {
            panel->moved_to[at - offers.count()] = place;
        }
    });
    if (thread < kPanelRows) {
        const int place = panel->moved_to[thread];
        if (place >= 0) panel->state[place] = state, panel->importance[place] = importance;
    }
    if (thread == 0) panel->since = context.now.picks;
    if (thread < kPanelRows) {
        panel->fresh[thread] = false;
        tokens.enter_panel(panel->token[thread]);
    }
    arch::cta_sync();
    return bound;
}

// --- Tokens that are given -------------------------------------------------------------------------------------------

// The next of them, as many as a panel has rows.
struct NextGiven {
    const int32_t* tokens;
    int count;  // 0: all have been looked at

    IDSEL_DEVICE explicit NextGiven(const GroupContext& context) : tokens(nullptr), count(0) {
        const PickArgs& args = context.pick.args;
        if (args.given == nullptr) return;
        tokens = args.given + context.pick.sample.index * args.given_count + context.now.given;
        count = static_cast<int>(smaller(kPanelRows, args.given_count - context.now.given));
    }
};

// To the workspace, before the barrier of a round: those that this CTA has, each once; those that do not take part as
// none.
IDSEL_DEVICE void offer_given(GroupContext& context, OwnTokens& tokens, const NextGiven& next) {
    arch::cta_sync();  // what other threads have done to a token is there
    const int place = arch::thread();
    if (place >= next.count || !tokens.is_here(next.tokens[place])) return;
    const int token = next.tokens[place], slot = token - tokens.first();
    bool takes_part = tokens.competes(slot);
    for (int before = 0; before < place; ++before) takes_part = takes_part && next.tokens[before] != token;
    Offer& offer = context.state().given[context.now.turn][place];
    offer = {0, 0.0f, 0.0f};
    // A rank is not 0, even that of a token without a priority.
    if (takes_part) offer = {ranked(tokens.key(slot), token), tokens.state(slot), tokens.importance(slot)};
}

// After the barrier: the next panel is of them, in their order. False where none of them takes part. The panel before
// is empty: it was of given tokens too, or there was none.
IDSEL_DEVICE bool turn_to_given(GroupContext& context, const NextGiven& next) {
    Panel* panel = context.panel;
    const int place = arch::thread();
    int takes_part = 0;
    if (place < kPanelRows) {
        const Offer& offer = context.state().given[context.now.turn ^ 1][place];
        const int token = place < next.count ? next.tokens[place] : -1;
        const bool there = token >= 0 && token < context.pick.n();  // else no CTA has offered it
        const uint64_t rank = there ? arch::ld_global_cg(&offer.rank) : 0;
        takes_part = rank == 0 ? 0 : 1;
        panel->token[place] = rank == 0 ? -1 : token;
        panel->key[place] = key_of(rank);
        panel->state[place] = rank == 0 ? 0.0f : arch::ld_global_cg(&offer.state);
        panel->importance[place] = rank == 0 ? 0.0f : arch::ld_global_cg(&offer.importance);
        panel->fresh[place] = false;
    }
    if (place == 0) panel->since = context.now.picks;
    context.now.given += next.count;
    context.now.of_given = cta_sum(takes_part, context.pick.reduce) != 0;
    return context.now.of_given;
}

}  // namespace idsel::cuda
