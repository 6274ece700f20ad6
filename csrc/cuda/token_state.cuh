// What the pick loop keeps of the tokens of a sample.
//
// clang-format off
// contract: tokens: cuda/token_state.cuh+cuda/token_state.cuh
//   void read(context)              importance of this thread's tokens, and whether they may be picked
//   for_each(use)                   use(slot, token) of each of this thread's tokens; some tokens may lie beyond n
//   float& state(slot)              the rule's
//   uint32_t& key(slot)             order key of the priority; 0: none
//   float importance(slot)          at most the largest finite number
//   bool competes(slot)             it may be picked for what it is worth
//   bool unusable(slot)             it may be picked when no other is left
//   int slot_of(token)              the slot of this thread that has it; -1: another thread's
//   void take(pick)                 it competes no more
//   void take_unusable(pick)        nor is it there for when no other is left
//   void set_cells(rule)            keeps where the tokens lie
//   Cell cell(slot, rule)           and tells it
//   bool fresh(slot)                set_fresh() since clear_fresh(): Coverage has summed its gain for the present picks
//   Weights load(row)               this thread's part of a row of weights
//   void at(slot, use)              use(slot), with a slot that is a constant where it has to be one
//   void extend_history(history, pitch, picks, pick, use)  stores the history of this thread's tokens for one more pick:
//                                   use(slot, token, sum over `picks` earlier picks of history(pick) * history(token))
//   void begin_records(context)     before the first of
//   void record(context, step, pick, score)  one pick, by all threads
//   void flush(context, picks)      the outputs of the sample, after the last
// clang-format on
#pragma once

#include <math.h>

#include "cuda/gram_epilogue.cuh"

namespace idsel::cuda {

struct Pick {
    int32_t token;
    float score;
};

// The priority at which others absorb a pick of this score. One that is given and has none takes none off them.
template <class Rule>
IDSEL_DEVICE float absorbed_at(float score) {
    return score > -INFINITY ? score : Rule::kNoPriority;
}

// In shared memory, where the tile was.
struct alignas(16) PickBuffers {
    Pick picks[kMaxRegisterTokens];  // by step; by token where they are to be sorted
    float cover[kMaxRegisterTokens];
    uint32_t best_fresh[2];
};

// Where a row of weights begins.
struct Row {
    const float* base;
    uint32_t offset;  // in numbers
};

// Everything the pick loop of one sample works with.
struct Context {
    const PickArgs& args;
    const Sample& sample;
    ReduceBuffers* reduce;
    PickBuffers* buffers;
    // Read once: what is above is in shared memory.
    const float* gram;  // of the sample, where the workspace has all of it
    int32_t gram_width;
    int tokens;
    int wanted;  // picks
    bool sort;
    int turn = 0;  // of cta_max
    uint32_t rows_read = 0;
    uint32_t rows_read_by_warp = 0;

    IDSEL_DEVICE Context(const PickArgs& call, const Sample& of, int k, ReduceBuffers* reduces, PickBuffers* picks)
        : args(call),
          sample(of),
          reduce(reduces),
          buffers(picks),
          gram(call.gram + of.row * call.gram_width),
          gram_width(static_cast<int32_t>(call.gram_width)),
          tokens(of.n),
          wanted(of.n < k ? of.n : k),
          sort(call.sort != 0) {}

    IDSEL_DEVICE int n() const { return tokens; }
    // Weights of token i with all. A Gram that is kept has fewer than 2^32 numbers.
    IDSEL_DEVICE Row row(int i) const { return {gram, static_cast<uint32_t>(i) * static_cast<uint32_t>(gram_width)}; }
};

template <bool kLaneOrder>
IDSEL_DEVICE uint64_t cta_best(Context& context, uint32_t key, int token) {
    context.turn ^= 1;
    return cta_max<kLaneOrder>(key, token, context.reduce, context.turn);
}

// Writes position `at` of the sample's outputs.
IDSEL_DEVICE void write_pick(const Context& context, int64_t at, int64_t token, float score) {
    const int64_t place = context.sample.index * context.args.k_max + at;
    context.args.indices[place] = token;
    context.args.scores[place] = score;
}
IDSEL_DEVICE void write_padding(const Context& context, int64_t picks) {
    for (int64_t at = picks + arch::thread(); at < context.args.k_max; at += kCtaThreads) {
        write_pick(context, at, -1, -INFINITY);
    }
}

// A token as the inputs describe it.
struct TokenInput {
    float importance;
    bool there, usable;
};
IDSEL_DEVICE TokenInput token_input(const Context& context, int64_t j) {
    const float importance = importance_of(context.args, context.sample, j);
    const float square = context.args.square[context.sample.row + j];
    const bool usable = usable_importance(importance) && square < INFINITY;  // false for NaN
    return {usable ? clamp_importance(importance) : -INFINITY, selectable(context.args, context.sample, j), usable};
}

// Each thread has kPer neighbours, in the order of threads: thread t those from t * kPer on; or, for warps that work by
// themselves, every warp as many.
template <int kPer, bool kEvenWarps = false>
class RegisterTokens {
  public:
    static constexpr bool kLaneOrder = true;  // in a warp, lower lanes have lower tokens

    struct Weights {
        float v[kPer];
    };

    IDSEL_DEVICE explicit RegisterTokens(const Context& context) : n_(context.n()) {
        if constexpr (kEvenWarps) {
            const auto lanes = static_cast<int>(ceil_div(n_, kPer * kWarps));
            first_ = arch::lane() < lanes ? (arch::warp() * lanes + arch::lane()) * kPer : kNowhere;
        }
        IDSEL_UNROLL
        for (int at = 0; at < kLoads; ++at) {
            const int token = first() + at * (kPer / kLoads);
            offsets_[at] = token < n_ ? static_cast<uint32_t>(token) : 0u;  // some weights nobody asks for
        }
    }

    IDSEL_DEVICE void read(const Context& context) {
        for_each([&](int i, int j) {
            if (j >= n_) return;
            const TokenInput token = token_input(context, j);
            importance_[i] = token.importance;
            const uint32_t mine = token.there ? 1u << i : 0u;
            competing_ |= token.usable ? mine : 0u;
            unusable_ |= token.usable ? 0u : mine;
        });
    }

    template <class Use>
    IDSEL_DEVICE void for_each(Use&& use) {
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) use(i, first() + i);
    }

    template <class Use>
    IDSEL_DEVICE void at(int slot, Use&& use) {
        IDSEL_UNROLL
        for (int i = 0; i < kPer; ++i) {
            if (i == slot) use(i);
        }
    }

    IDSEL_DEVICE float& state(int i) { return state_[i]; }
    IDSEL_DEVICE uint32_t& key(int i) { return key_[i]; }
    IDSEL_DEVICE float importance(int i) const { return importance_[i]; }
    IDSEL_DEVICE bool competes(int i) const { return (competing_ >> i & 1u) != 0; }
    IDSEL_DEVICE bool unusable(int i) const { return (unusable_ >> i & 1u) != 0; }
    IDSEL_DEVICE int slot_of(int token) const {
        const auto at = static_cast<uint32_t>(token - first());
        return at < kPer ? static_cast<int>(at) : -1;
    }
    IDSEL_DEVICE void take(int pick) {
        const auto at = static_cast<uint32_t>(pick - first());
        if (at < kPer) competing_ &= ~(1u << at);
    }
    IDSEL_DEVICE void take_unusable(int pick) {
        const auto at = static_cast<uint32_t>(pick - first());
        if (at < kPer) unusable_ &= ~(1u << at);
    }
    template <class Rule>
    IDSEL_DEVICE void set_cells(const Rule& rule) {
        // Asked once and not of each token, so that the divisions share a reciprocal.
        if (rule.has_grid()) for_each([&](int i, int j) { cells_[i] = rule.cell(j); });
    }
    template <class Rule>
    IDSEL_DEVICE Cell cell(int i, const Rule&) const {
        return cells_[i];
    }
    IDSEL_DEVICE bool fresh(int i) const { return (fresh_ >> i & 1u) != 0; }
    IDSEL_DEVICE void set_fresh(int i) { fresh_ |= 1u << i; }
    IDSEL_DEVICE void clear_fresh() { fresh_ = 0; }

    template <class Use>
    IDSEL_DEVICE void extend_history(float* history, int pitch, int picks, int pick, Use&& use) {
        float overlaps[kPer] = {};
        [[maybe_unused]] constexpr int kAtOnce = kPer > 4 ? 2 : 8;  // more of them would not fit registers
        IDSEL_UNROLL_BY(kAtOnce)
        for (int t = 0; t < picks; ++t, history += pitch) {
            const float of_pick = history[pick];
            const Weights mine = own_part({history, 0}, [](const auto* from) { return arch::ld_any(from); });
            IDSEL_UNROLL
            for (int i = 0; i < kPer; ++i) overlaps[i] = fmaf(of_pick, mine.v[i], overlaps[i]);
        }
        for_each([&](int i, int j) {
            const float component = use(i, j, overlaps[i]);
            if (j < n_) history[j] = component;
        });
    }

    // Rows are padded to a multiple of four.
    IDSEL_DEVICE Weights load(const Row& row) const {
        return own_part(row, [](const auto* from) { return arch::ld_global_cg(from); });
    }

    IDSEL_DEVICE void record(const Context& context, int64_t step, int pick, float score) const {
        const int64_t at = context.sort ? pick : step;
        if (arch::thread() == kCtaThreads - 1) context.buffers->picks[at] = {pick, score};
    }

    // Before the first record.
    IDSEL_DEVICE void begin_records(const Context& context) {
        if (!context.sort) return;
        for_each([&](int, int j) {
            if (j < n_) context.buffers->picks[j] = {-1, 0.0f};
        });
        arch::cta_sync();
    }

    IDSEL_DEVICE void flush(Context& context, int64_t picks) {
        const Pick* made = context.buffers->picks;
        arch::cta_sync();  // all picks are there
        if (!context.sort) {
            for (int64_t at = arch::thread(); at < picks; at += kCtaThreads) {
                write_pick(context, at, made[at].token, made[at].score);
            }
            return;
        }
        int32_t mine = 0;
        const auto is_picked = [&](int j) { return j < n_ && made[j].token >= 0; };
        for_each([&](int, int j) { mine += is_picked(j) ? 1 : 0; });
        int64_t at = cta_sum_up_to(mine, context.reduce) - mine;
        for_each([&](int, int j) {
            if (is_picked(j)) write_pick(context, at++, j, made[j].score);
        });
    }

  private:
    static constexpr int kNowhere = static_cast<int>(kMaxRegisterTokens);

    IDSEL_DEVICE int first() const {
        if constexpr (kEvenWarps) return first_;
        return arch::thread() * kPer;
    }

    // load(from) takes one number, or four.
    template <class Load>
    IDSEL_DEVICE Weights own_part(const Row& row, Load&& load) const {
        Weights part;
        if constexpr (kPer % 4 == 0) {
            IDSEL_UNROLL
            for (int i = 0; i < kPer; i += 4) {
                const Float4 four = load(reinterpret_cast<const Float4*>(row.base + (row.offset + offsets_[i / 4])));
                IDSEL_UNROLL
                for (int e = 0; e < 4; ++e) part.v[i + e] = four.v[e];
            }
        } else {
            static_assert(kPer == 1);
            part.v[0] = load(row.base + (row.offset + offsets_[0]));
        }
        return part;
    }

    int n_;
    int first_ = 0;
    float state_[kPer] = {};
    uint32_t key_[kPer] = {};
    float importance_[kPer] = {};
    Cell cells_[kPer] = {};
    static constexpr int kLoads = (kPer + 3) / 4;

    uint32_t competing_ = 0, unusable_ = 0, fresh_ = 0;
    uint32_t offsets_[kLoads];  // of what a thread loads of a row
};

// Thread t has the tokens t, t + kCtaThreads, ... of those that are its CTA's: of a whole sample, or a range of it.
// Slots count from the first of them. Their numbers are in the workspace or in shared memory.
class MemoryTokens {
  public:
    static constexpr bool kLaneOrder = false;

    struct Home {
        float* numbers;  // (kTokenNumbers, stride)
        int64_t stride;
        Tier* tier;
        int first, count;
    };

    // Read when it is used.
    struct Weights {
        const float* v;
    };

    IDSEL_DEVICE explicit MemoryTokens(const Home& home)
        : first_(home.first), count_(home.count), stride_(home.stride), numbers_(home.numbers), tier_(home.tier) {}
    IDSEL_DEVICE static Home in_workspace(const PickArgs& args, const Sample& sample, int first, int count) {
        const int64_t row = sample.row + first;
        return {args.numbers + row, args.rows, args.tier + row, first, count};
    }

    IDSEL_DEVICE void read(const Context& context) {
        for_each([&](int i, int j) {
            const TokenInput token = token_input(context, j);
            // Whether it has a priority is the key's to say.
            const Tier there = token.usable ? Tier::kNoPriority : Tier::kUnusable;
            tier_[i] = token.there ? there : Tier::kNotThere;
            number(kImportance, i) = token.importance;
            number(kFresh, i) = 0.0f;
            key(i) = 0;
        });
    }

    template <class Use>
    IDSEL_DEVICE void for_each(Use&& use) {
        IDSEL_UNROLL_BY(4)
        for (int i = arch::thread(); i < count_; i += kCtaThreads) use(i, first_ + i);
    }

    template <class Use>
    IDSEL_DEVICE void at(int slot, Use&& use) {
        use(slot);
    }
    template <class Use>
    IDSEL_DEVICE void extend_history(float* history, int64_t pitch, int picks, int pick, Use&& use) {
        for_each([&](int i, int j) {
            float overlap = 0.0f;
            IDSEL_UNROLL_BY(4)
            for (int t = 0; t < picks; ++t) overlap = fmaf(history[t * pitch + pick], history[t * pitch + j], overlap);
            history[picks * pitch + j] = use(i, j, overlap);
        });
    }

    IDSEL_DEVICE float& state(int j) { return number(kState, j); }
    IDSEL_DEVICE uint32_t& key(int j) { return reinterpret_cast<uint32_t&>(number(kKey, j)); }
    IDSEL_DEVICE float importance(int j) const { return number(kImportance, j); }
    IDSEL_DEVICE bool competes(int j) const { return tier_[j] == Tier::kNoPriority; }
    IDSEL_DEVICE bool unusable(int j) const { return tier_[j] == Tier::kUnusable; }
    IDSEL_DEVICE int slot_of(int token) const { return is_mine(token) ? token - first_ : -1; }
    IDSEL_DEVICE void take(int pick) {
        if (is_mine(pick)) tier_[pick - first_] = Tier::kNotThere;
    }
    IDSEL_DEVICE void take_unusable(int pick) { take(pick); }
    template <class Rule>
    IDSEL_DEVICE void set_cells(const Rule&) const {}
    template <class Rule>
    IDSEL_DEVICE Cell cell(int i, const Rule& rule) const {
        return rule.cell(first_ + i);
    }
    IDSEL_DEVICE bool fresh(int j) const { return number(kFresh, j) != 0.0f; }
    IDSEL_DEVICE void set_fresh(int j) { number(kFresh, j) = 1.0f; }
    IDSEL_DEVICE void clear_fresh() {
        for_each([&](int j, int) { number(kFresh, j) = 0.0f; });
    }
    IDSEL_DEVICE float* cover() const { return &number(kCover, 0); }

    IDSEL_DEVICE Weights load(const Row& row) const { return {row.base + row.offset + first_}; }

    IDSEL_DEVICE void begin_records(const Context&) const {}
    IDSEL_DEVICE void record(const Context& context, int64_t step, int pick, float score) const {
        if (!is_mine(pick)) return;
        if (!context.sort) {
            write_pick(context, step, pick, score);
        } else {
            number(kScore, pick - first_) = score;
        }
    }

    // The same of a slot, by any thread, which takes the token too.
    IDSEL_DEVICE void pick(const Context& context, int i, int64_t step, float score) {
        tier_[i] = Tier::kNotThere;
        key(i) = 0;
        if (context.sort) {
            number(kScore, i) = score;
        } else {
            write_pick(context, step, first_ + i, score);
        }
    }

    // Sorted, each thread has a run of neighbouring tokens. One that is not there is picked or masked. `before`: picks
    // of lower tokens than those of this CTA.
    IDSEL_DEVICE void flush(Context& context, int64_t /*picks*/, int64_t before = 0) const {
        if (!context.sort) return;
        arch::cta_sync();  // the last pick is marked
        const SlotRange run = run_of_thread();
        const auto is_picked = [&](int i) {
            return tier_[i] == Tier::kNotThere && selectable(context.args, context.sample, first_ + i);
        };
        int32_t mine = 0;
        for (int i = run.begin; i < run.end; ++i) mine += is_picked(i) ? 1 : 0;
        int64_t at = before + cta_sum_up_to(mine, context.reduce) - mine;
        for (int i = run.begin; i < run.end; ++i) {
            if (is_picked(i)) write_pick(context, at++, first_ + i, number(kScore, i));
        }
    }

    IDSEL_DEVICE int first() const { return first_; }
    IDSEL_DEVICE int count() const { return count_; }

    // Slots of neighbours, a share of the CTA's for each thread, in the order of threads.
    struct SlotRange {
        int begin, end;
    };
    IDSEL_DEVICE SlotRange run_of_thread() const {
        const int64_t length = ceil_div(count_, kCtaThreads), begin = length * arch::thread();
        return {static_cast<int>(smaller(count_, begin)), static_cast<int>(smaller(count_, begin + length))};
    }

  protected:
    enum Number { kState, kKey, kImportance, kScore, kFresh, kCover };
    static_assert(kCover + 1 == kTokenNumbers);

    IDSEL_DEVICE float& number(Number which, int i) const { return numbers_[which * stride_ + i]; }
    IDSEL_DEVICE bool is_mine(int token) const {
        const int at = token - first_;
        return at >= 0 && at < count_ && at % kCtaThreads == arch::thread();
    }

  private:
    int first_, count_;
    int64_t stride_;
    float* numbers_;
    Tier* tier_;
};

// The order of tokens without a priority: by importance, then those that are not usable by index. 0: not there.
template <class Tokens>
IDSEL_DEVICE uint32_t key_of_rest(const Tokens& tokens, int slot) {
    return tokens.competes(slot) ? order_of(tokens.importance(slot)) : tokens.unusable(slot) ? 1u : 0u;
}

// The best of this thread's tokens by key, which is the one of the lowest index among equal ones.
struct Best {
    uint32_t key;
    int slot, token;
};
template <class Tokens, class Key>
IDSEL_DEVICE Best best_of_thread(Tokens& tokens, Key&& key) {
    Best best = {0, 0, 0};
    tokens.for_each([&](int slot, int j) {
        const uint32_t mine = key(slot);
        if (mine > best.key) best = {mine, slot, j};
    });
    return best;
}

}  // namespace idsel::cuda
