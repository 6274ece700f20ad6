// The loop over picks, for one sample by one block.
//
// A model is a rule with what its loop carries:
//   void start(loop)                     priorities before the first pick
//   row take(loop, pick, score, step)    a pick was made; the Gram row that update wants of it, or null for no update
//   float update(loop, j, dot)           priority of token j, given its dot product with the pick
#pragma once

#include "cuda/tokens.cuh"

namespace idsel::cuda {

IDSEL_DEVICE uint64_t rank_of(const Loop& loop, int j) {
    const uint8_t status = loop.tokens.status[j];
    if (status == kExists) return key_of(kUnusable, 0.0f, j);
    if (status != kCompetes) return 0;
    const float priority = loop.tokens.priority[j];
    // NaN compares false: a priority that is not a number is none.
    return priority > -INFINITY ? key_of(kHasPriority, priority, j) : key_of(kNoPriority, loop.tokens.importance[j], j);
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

// The picks in the order of their indices. Each thread has a run of neighbouring tokens.
IDSEL_DEVICE void write_sorted(const Loop& loop) {
    port::barrier();  // the last pick is marked
    const auto length = static_cast<int>(ceil_div(loop.n(), kBlockThreads));
    const int begin = port::thread() * length;
    const auto end = static_cast<int>(smaller(loop.n(), begin + length));
    int32_t mine = 0;
    for (int j = begin; j < end; ++j) mine += loop.tokens.status[j] == kPicked ? 1 : 0;
    int64_t at = block_sum_up_to(mine, loop.control) - mine;
    for (int j = begin; j < end; ++j) {
        if (loop.tokens.status[j] == kPicked) write_pick(loop, at++, j, loop.tokens.priority[j]);
    }
}

template <class Model>
IDSEL_DEVICE void greedy_loop(Loop& loop, Model model) {
    const KernelArgs& args = loop.args;
    const int64_t wanted = args.k[args.same_k != 0 ? 0 : loop.sample.local];
    read_tokens(loop);
    model.start(loop);
    const float* row = nullptr;
    int64_t picks = 0;
    for (; picks < wanted; ++picks) {
        const uint64_t best = loop.best(update_tokens(loop, model, row));
        const Tier tier = tier_of(best);
        if (tier == kNobody) break;
        const int pick = index_of(best);
        const float score = tier == kHasPriority ? value_of(best) : -INFINITY;
        if (pick % kBlockThreads == port::thread()) {
            loop.tokens.status[pick] = kPicked;
            loop.tokens.priority[pick] = score;
            if (args.sort == 0) write_pick(loop, picks, pick, score);
        }
        // Where nobody has a priority any more, nobody gets one again.
        const bool goes_on = tier == kHasPriority && picks + 1 < wanted;
        row = goes_on ? model.take(loop, pick, score, static_cast<int>(picks)) : nullptr;
    }
    if (args.sort != 0) write_sorted(loop);
    for (int64_t at = picks + port::thread(); at < args.k_max; at += kBlockThreads) write_pick(loop, at, -1, -INFINITY);
}

}  // namespace idsel::cuda
