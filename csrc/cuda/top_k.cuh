// TopK: no pick changes a priority, so all picks are one sort.
#pragma once

#include "cuda/arch_sort.cuh"
#include "cuda/gram_kernel.cuh"

namespace idsel::cuda {

template <int kPer>
IDSEL_DEVICE void sort_and_pick(Context& context) {
    RegisterTokens<kPer> tokens(context);
    tokens.read(context);
    uint32_t keys[kPer];
    int32_t order[kPer];
    tokens.for_each([&](int i, int j) {
        // The same ranks as in take_rest(): unusable tokens last, by index.
        keys[i] = key_of_rest(tokens, i);
        order[i] = j;
    });
    static_assert(arch::sort_bytes<kPer> <= kSharedBytes - kStateBytes);
    arch::cta_sort_descending(keys, order, after_state());
    arch::cta_sync();  // what the sort used is free
    tokens.begin_records(context);
    const int wanted = context.wanted;
    int32_t mine = 0;
    tokens.for_each([&](int i, int rank) {
        if (rank >= wanted || keys[i] == 0) return;
        const int64_t at = context.sort ? order[i] : rank;
        context.buffers->picks[at] = {order[i], keys[i] == 1u ? -INFINITY : value_of(keys[i])};
        ++mine;
    });
    const int64_t picks = cta_sum(mine, context.reduce);
    tokens.flush(context, picks);
    write_padding(context, picks);
}

template <>
IDSEL_DEVICE_CALL void pick_at_once<TopK>(int k) {
    Context context = context_of(k);
    if (context.n() <= 4 * kCtaThreads) {
        sort_and_pick<4>(context);
    } else {
        sort_and_pick<kMaxTokensPerThread>(context);
    }
}

}  // namespace idsel::cuda
