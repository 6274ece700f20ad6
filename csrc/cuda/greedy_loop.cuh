// The loop over picks of one sample, run by one CTA at a time.
//
// clang-format off
// contract: model: cuda/row_model.cuh cuda/history_model.cuh cuda/coverage_model.cuh
// A model is a rule together with the state that its loop carries.
//   Phase prepare(loop)                  before the first pick; returns the phase that start() needs, or kNone
//   void start(loop)                     sets the priorities before the first pick
//   Phase take(loop, pick, score, step)  records a pick; returns the phase that must follow: kPanel (for the row that
//                                        update() reads), kGains or kNone
//   float update(loop, j, dot)           returns the priority of token j, given its dot product with the pick
//   void do_alone(loop, phase)           does a whole phase in this CTA; called where the workspace has the whole Gram
//   float kept()                         what the model carries from phase to phase and take() does not set again
//   void restore(kept)                   sets that again, in the CTA in which the loop goes on
//
// contract: Hands: cuda/greedy_loop.cuh cuda/crew_kernel.cuh
// Hands (Alone, InPhases) decide who does a phase: this CTA, or all CTAs of the sample.
//   Progress progress(loop)              where the loop goes on
//   bool finish(loop, model, progress)   false if the phase was only published: the loop may go on in another CTA
//   const float* row(loop, pick)         dot products of the pick with all tokens, once kPanel is finished
//   void end()                           called after the last pick
// clang-format on
#pragma once

#include "cuda/tokens.cuh"

namespace idsel::cuda {

IDSEL_DEVICE uint64_t rank_of(const Loop& loop, int j) {
    const Tier tier = loop.tokens.tier[j];
    if (tier == Tier::kNotThere) return 0;
    if (tier == Tier::kUnusable) return key_of(Tier::kUnusable, 0.0f, j);
    const float priority = loop.tokens.priority[j];
    // NaN compares false: a priority that is not a number is none.
    return priority > -INFINITY ? key_of(Tier::kHasPriority, priority, j)
                                : key_of(Tier::kNoPriority, loop.tokens.importance[j], j);
}

// Brings this thread's tokens up to date and returns the best of them. Some of the row is requested ahead: it comes
// from L2, and waiting for it is most of the time of a pick.
template <class Model>
IDSEL_DEVICE uint64_t update_tokens(Loop& loop, Model& model, const float* row) {
    constexpr int kAhead = 4;
    uint64_t best = 0;
    for (int first = port::thread(); first < loop.n(); first += kAhead * kBlockThreads) {
        float dots[kAhead] = {};
        IDSEL_UNROLL
        for (int at = 0; at < kAhead; ++at) {
            const int j = first + at * kBlockThreads;
            if (row != nullptr && j < loop.n()) dots[at] = row[j];
        }
        IDSEL_UNROLL
        for (int at = 0; at < kAhead; ++at) {
            const int j = first + at * kBlockThreads;
            if (j >= loop.n()) break;
            if (row != nullptr && loop.competes(j)) loop.tokens.priority[j] = model.update(loop, j, dots[at]);
            const uint64_t rank = rank_of(loop, j);
            best = rank > best ? rank : best;
        }
    }
    return best;
}

// Writes position `at` of the sample's outputs.
IDSEL_DEVICE void write_pick(const Loop& loop, int64_t at, int64_t token, float score) {
    const int64_t place = loop.sample.index * loop.args.k_max + at;
    loop.args.indices[place] = token;
    loop.args.scores[place] = score;
}

// A token that is not there is picked or masked.
IDSEL_DEVICE bool is_picked(const Loop& loop, int j) {
    return loop.tokens.tier[j] == Tier::kNotThere && selectable(loop.args, loop.sample, loop.sample.first + j);
}

// The picks in the order of their indices. Each thread has a run of neighbouring tokens.
IDSEL_DEVICE void write_sorted(const Loop& loop) {
    port::barrier();  // the last pick is marked
    const auto length = static_cast<int>(ceil_div(loop.n(), kBlockThreads));
    const int begin = port::thread() * length;
    const auto end = static_cast<int>(smaller(loop.n(), begin + length));
    int32_t mine = 0;
    for (int j = begin; j < end; ++j) mine += is_picked(loop, j) ? 1 : 0;
    int64_t at = block_sum_up_to(mine, loop.control) - mine;
    for (int j = begin; j < end; ++j) {
        if (is_picked(loop, j)) write_pick(loop, at++, j, loop.tokens.priority[j]);
    }
}

// One block does everything.
struct Alone {
    IDSEL_DEVICE Progress progress(const Loop&) const { return {Phase::kFirst, 0, 0, 0.0f, 0.0f}; }
    template <class Model>
    IDSEL_DEVICE bool finish(Loop& loop, Model& model, const Progress& progress) const {
        model.do_alone(loop, progress.phase);
        return true;
    }
    IDSEL_DEVICE const float* row(const Loop& loop, int pick) const { return loop.row(pick); }
    IDSEL_DEVICE void end() const {}
};

template <class Model, class Hands>
IDSEL_DEVICE void greedy_loop(Loop& loop, Model model, Hands hands) {
    const KernelArgs& args = loop.args;
    const int64_t wanted = args.k[args.same_k != 0 ? 0 : loop.sample.local];
    Progress now = hands.progress(loop);
    const float* row = nullptr;
    if (now.phase == Phase::kFirst) {
        read_tokens(loop);
        now.phase = model.prepare(loop);
        if (now.phase != Phase::kNone && !hands.finish(loop, model, now)) return;
    }
    if (now.phase == Phase::kPanel) {
        model.restore(now.kept);
        model.take(loop, now.pick, now.score, now.picks - 1);
        row = hands.row(loop, now.pick);
    } else if (now.picks == 0) {
        model.start(loop);
    }
    while (now.picks < wanted) {
        const uint64_t best = loop.best(update_tokens(loop, model, row));
        const Tier tier = tier_of(best);
        if (tier == Tier::kNotThere) break;
        const int pick = index_of(best);
        const float score = tier == Tier::kHasPriority ? value_of(best) : -INFINITY;
        if (pick % kBlockThreads == port::thread()) {
            loop.tokens.tier[pick] = Tier::kNotThere;
            loop.tokens.priority[pick] = score;
            if (args.sort == 0) write_pick(loop, now.picks, pick, score);
        }
        row = nullptr;
        ++now.picks;
        // Where nobody has a priority any more, nobody gets one again.
        if (tier != Tier::kHasPriority || now.picks == wanted) continue;
        now = {model.take(loop, pick, score, now.picks - 1), now.picks, pick, score, model.kept()};
        if (now.phase == Phase::kNone) continue;
        if (!hands.finish(loop, model, now)) return;
        if (now.phase == Phase::kPanel) row = hands.row(loop, pick);
    }
    if (args.sort != 0) write_sorted(loop);
    for (int64_t at = now.picks + port::thread(); at < args.k_max; at += kBlockThreads) {
        write_pick(loop, at, -1, -INFINITY);
    }
    hands.end();
}

}  // namespace idsel::cuda
