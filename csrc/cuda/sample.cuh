// Which sample a block works for, and on what part of it.
#pragma once

#include "cuda/argmax.cuh"
#include "cuda/kernel_args.h"
#include "cuda/port.cuh"

namespace idsel::cuda {

struct Sample {
    int64_t index;  // in the batch
    int32_t local;  // in the launch
    int32_t n;
    int64_t first;  // its first token among those of a ragged batch
    int64_t row;    // its first row of the workspace
    int64_t tiles;
    int64_t splits;  // parts of D of each
    bool whole;      // the workspace has its whole Gram

    IDSEL_DEVICE int64_t items() const { return larger(1, tiles * splits); }
    IDSEL_DEVICE int32_t* counter(const KernelArgs& args, int64_t number) const {
        return args.counters + local * kCountersPerSample + number;
    }
};

struct Work {
    Sample sample;
    int64_t item;  // of the sample: tile * splits + part of D
};

// Offsets on the device cannot be checked before a launch: whatever they say, no read lies outside the tensors.
IDSEL_DEVICE int64_t offset_of(const KernelArgs& args, int64_t index) {
    return larger(0, smaller(args.cu_seqlens[index], args.tokens));
}

IDSEL_DEVICE Sample sample_of(const KernelArgs& args, int32_t local) {
    Sample sample{};
    sample.local = local;
    sample.index = args.first_sample + local;
    if (args.cu_seqlens == nullptr) {
        sample.n = static_cast<int32_t>(args.tokens);
        sample.row = local * args.tokens;
    } else {
        sample.first = offset_of(args, sample.index);
        sample.n = static_cast<int32_t>(larger(0, offset_of(args, sample.index + 1) - sample.first));
        sample.row = sample.first;
    }
    sample.tiles = tiles_of(sample.n, args.diagonal_only != 0);
    sample.splits = splits_of(sample.tiles, args.dim);
    sample.whole = sample.n <= args.gram_width;
    return sample;
}

// The sample that work `item` of a launch belongs to; false beyond the last. To all threads of the block.
IDSEL_DEVICE bool find_work(const KernelArgs& args, int64_t item, Control* control, Work* work) {
    if (args.cu_seqlens == nullptr) {
        const int64_t items = sample_of(args, 0).items();
        if (item >= items * args.samples) return false;
        *work = {sample_of(args, static_cast<int32_t>(item / items)), item % items};
        return true;
    }
    const int thread = port::thread();
    if (thread == 0) control->found = -1;
    const int32_t mine = thread < args.samples ? static_cast<int32_t>(sample_of(args, thread).items()) : 0;
    const int32_t up_to = block_sum_up_to(mine, control);
    if (item < up_to && item >= up_to - mine) {
        control->found = thread;
        control->items_before = up_to - mine;
    }
    port::barrier();
    if (control->found < 0) return false;
    *work = {sample_of(args, control->found), item - control->items_before};
    return true;
}

}  // namespace idsel::cuda
