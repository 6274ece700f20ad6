// Which sample a CTA works for, and on which work tile of it.
#pragma once

#include "cuda/arrival.cuh"
#include "cuda/cta_reduce.cuh"

namespace idsel::cuda {

struct Sample {
    int64_t index;  // in the batch
    int32_t local;  // in the launch
    int32_t n;
    int64_t first;  // its first token among those of a ragged batch
    int64_t row;    // its first row of the workspace, a multiple of four
    bool whole;     // the workspace has its whole Gram

    IDSEL_DEVICE int32_t* counter(const KernelArgs& args, int64_t number) const {
        return args.counters + kLaunchCounters + local * kCountersPerSample + number;
    }
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
        sample.row = local * round_up(args.tokens, 4);
    } else {
        sample.first = offset_of(args, sample.index);
        sample.n = static_cast<int32_t>(larger(0, offset_of(args, sample.index + 1) - sample.first));
        // At least n rounded up to a multiple of four before the next one's.
        sample.row = (sample.first + 6 * sample.index) / 4 * 4;
    }
    sample.whole = sample.n <= args.gram_width || args.diagonal_only != 0;
    return sample;
}

// How many picks a sample is asked for.
IDSEL_DEVICE int count_of(const KernelArgs& args, const Sample& sample) {
    if (args.k_on_device == nullptr) return args.k[args.same_k != 0 ? 0 : sample.local];
    const int64_t most = smaller(args.k_max, args.tokens);
    return static_cast<int>(larger(0, smaller(args.k_on_device[sample.index], most)));
}

// Row and column of a tile, in tiles.
struct TileIndex {
    int row, column;
};

// Row by row through the upper triangle, or down the diagonal. A sample without tokens has one all the same.
IDSEL_DEVICE TileIndex tile_index(int64_t n, int64_t tile, bool diagonal) {
    if (diagonal || n == 0) return {static_cast<int>(tile), static_cast<int>(tile)};
    // Counted from the last tile, row r begins at r * (r + 1) / 2: a root, and what rounding has left of it.
    const int64_t rows = ceil_div(n, kTile), back = rows * (rows + 1) / 2 - 1 - tile;
    auto row = static_cast<int64_t>((sqrtf(static_cast<float>(8 * back + 1)) - 1.0f) * 0.5f);
    while (row * (row + 1) / 2 > back) --row;
    while ((row + 1) * (row + 2) / 2 <= back) ++row;
    const int64_t column = back - row * (row + 1) / 2;
    return {static_cast<int>(rows - 1 - row), static_cast<int>(rows - 1 - column)};
}

// Kept in shared memory: in registers it would be in the way of the mainloop.
struct WorkTile {
    Sample sample;
    int64_t tiles;    // of the sample
    TileIndex index;  // of this one
};

// What a CTA keeps of its work, in shared memory.
struct SchedulerBuffers {
    ReduceBuffers reduce;
    WorkTile work;
    int32_t flag;
    int32_t ticket;
    int32_t found;  // whether there is work for it
};

// A sample without tokens, too, needs a CTA that writes its outputs. One that has no whole Gram is left to another
// launch.
IDSEL_DEVICE int64_t work_tiles_of(const KernelArgs& args, const Sample& sample) {
    if (!sample.whole) return 0;
    return larger(1, tiles_of(sample.n, args.diagonal_only != 0));
}

IDSEL_DEVICE WorkTile work_tile(const KernelArgs& args, const Sample& sample, int64_t tiles, int64_t tile) {
    return {sample, tiles, tile_index(sample.n, tile, args.diagonal_only != 0)};
}

// Dense batches: a CTA, or a cluster, has one work tile. Ragged ones, whose lengths only the device knows: CTAs take
// tickets, so that one that runs a pick loop holds up no tiles.
class TileScheduler {
  public:
    IDSEL_DEVICE TileScheduler(const KernelArgs& args, SchedulerBuffers* buffers) : args_(args), buffers_(buffers) {}

    IDSEL_DEVICE const WorkTile& work() const { return buffers_->work; }

    // False beyond the last work tile. To all threads of the CTA.
    IDSEL_DEVICE bool get_first_work() {
        if (args_.persistent != 0) return get_next_work();
        if (arch::thread() == 0) {
            const auto tiles = static_cast<uint32_t>(work_tiles_of(args_, sample_of(args_, 0)));
            const auto tile = static_cast<uint32_t>(arch::block()) / static_cast<uint32_t>(args_.cluster);
            const Sample sample = sample_of(args_, static_cast<int32_t>(tile / tiles));
            buffers_->work = work_tile(args_, sample, tiles, tile % tiles);
        }
        arch::cta_sync();
        return true;
    }

    IDSEL_DEVICE bool get_next_work() {
        if (args_.persistent == 0) return false;
        arch::cta_sync();  // nobody reads the last ticket any more
        const int thread = arch::thread();
        if (thread == 0) {
            buffers_->ticket = arch::atom_add_acq_rel(args_.counters + kCounterTicket, 1);
            buffers_->found = 0;
        }
        // Offsets that nobody has checked may give more tiles in all than 32 bits count; lengths that fit do not.
        constexpr int64_t kMost = INT32_MAX / kMaxSamples;
        static_assert(kMaxTokens / kTile < kMost);
        const auto mine = static_cast<int32_t>(
            thread < args_.samples ? smaller(work_tiles_of(args_, sample_of(args_, thread)), kMost) : 0);
        const int32_t up_to = cta_sum_up_to(mine, &buffers_->reduce);
        const int32_t before = up_to - mine, ticket = buffers_->ticket;
        if (ticket >= before && ticket < up_to) {
            buffers_->work = work_tile(args_, sample_of(args_, thread), mine, ticket - before);
            buffers_->found = 1;
        }
        arch::cta_sync();
        return buffers_->found != 0;
    }

    // The last CTA to leave brings the tickets back to zero, for the next launch.
    IDSEL_DEVICE void leave() {
        if (args_.persistent == 0) return;
        int32_t* departures = args_.counters + kCounterLaunchDepartures;
        const bool last = arrive_last(departures, arch::blocks(), &buffers_->flag);
        if (last && arch::thread() == 0) arch::st_relaxed(args_.counters + kCounterTicket, 0);
    }

  private:
    const KernelArgs& args_;
    SchedulerBuffers* buffers_;
};

// --- Inputs of a sample ----------------------------------------------------------------------------------------------

// Its first token's features.
template <class T>
IDSEL_DEVICE const T* features_of(const PickArgs& args, const Sample& sample) {
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    const T* features = static_cast<const T*>(args.features);
    return features + batch * args.features_batch_stride + sample.first * args.features_token_stride;
}

IDSEL_DEVICE float importance_of(const PickArgs& args, const Sample& sample, int64_t j) {
    if (args.importance == nullptr) return 1.0f;
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    return args.importance[batch * args.importance_batch_stride + (sample.first + j) * args.importance_token_stride];
}

IDSEL_DEVICE bool selectable(const PickArgs& args, const Sample& sample, int64_t j) {
    if (args.mask == nullptr) return true;
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    return args.mask[batch * args.mask_batch_stride + (sample.first + j) * args.mask_token_stride] != 0;
}

}  // namespace idsel::cuda
