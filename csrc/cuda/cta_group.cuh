// A CTA group: several CTAs that work on one sample for as long as the launch lasts, with a barrier over all of them.
//
// They wait for one another, so all have to run at the same time: the launch is cooperative, which a device refuses
// where it cannot keep that promise, or groups have one CTA. What a group makes of a sample does not depend on how many
// CTAs it has.
#pragma once

#include "cuda/tile_scheduler.cuh"

namespace idsel::cuda {

// What a CTA keeps of its group, in shared memory.
struct GroupBuffers {
    ReduceBuffers reduce;
    Sample sample;
    int32_t* counters;  // of the sample
    int32_t first;      // the group's first sample, counting those that are worked on in panels
    int32_t step;       // how many groups there are
    int32_t rank;       // of this CTA
    int32_t ctas;       // of the group
    int32_t flag;
    int32_t found;
    uint32_t arrived;  // CTAs at all of the sample's barriers so far
};

class CtaGroup {
  public:
    IDSEL_DEVICE explicit CtaGroup(GroupBuffers* buffers) : buffers_(buffers) {}

    IDSEL_DEVICE const Sample& sample() const { return buffers_->sample; }
    IDSEL_DEVICE int rank() const { return buffers_->rank; }
    IDSEL_DEVICE int ctas() const { return buffers_->ctas; }

    // Shares out the CTAs among the samples whose whole Gram is not kept. False where there are none.
    IDSEL_DEVICE bool join(const KernelArgs& args) {
        const int thread = arch::thread();
        const int long_samples = cta_sum(is_long(args, thread) ? 1 : 0, &buffers_->reduce);
        if (long_samples == 0) return false;
        if (thread == 0) {
            // By clusters, so that none is divided.
            const auto clusters = static_cast<int32_t>(arch::blocks()) / args.cluster;
            const auto most = static_cast<int32_t>(larger(1, args.group / args.cluster));
            const auto size = static_cast<int32_t>(larger(1, smaller(most, clusters / long_samples)));
            const int32_t mine = static_cast<int32_t>(arch::block()) / args.cluster;
            buffers_->step = clusters / size;
            buffers_->first = mine / size;
            buffers_->ctas = size * args.cluster;
            buffers_->rank = static_cast<int32_t>(arch::block()) - buffers_->first * buffers_->ctas;
        }
        arch::cta_sync();
        return buffers_->first < buffers_->step;  // else it is one of those that are left over
    }

    // Turns to the sample of that number among those that are worked on in panels. False where there is none.
    IDSEL_DEVICE bool turn_to(const KernelArgs& args, int number) {
        const int thread = arch::thread();
        arch::cta_sync();  // nobody looks at the last one any more
        if (thread == 0) buffers_->found = 0;
        const bool mine = is_long(args, thread);
        const int32_t up_to = cta_sum_up_to(mine ? 1 : 0, &buffers_->reduce);
        if (mine && up_to == number + 1) {
            buffers_->sample = sample_of(args, thread);
            buffers_->counters = buffers_->sample.counter(args, 0);
            buffers_->arrived = 0;
            buffers_->found = 1;
        }
        arch::cta_sync();
        return buffers_->found != 0;
    }
    IDSEL_DEVICE int first() const { return buffers_->first; }
    IDSEL_DEVICE int step() const { return buffers_->step; }

    // Every CTA of the group comes here. Each then sees what all wrote before.
    IDSEL_DEVICE void sync() {
        arch::cta_sync();
        if (arch::thread() == 0 && buffers_->ctas > 1) {
            buffers_->arrived += static_cast<uint32_t>(buffers_->ctas);
            arch::red_add_release(counter(kCounterBarrier), 1);
            // The difference, since the count may pass the range.
            while (static_cast<int32_t>(arch::ld_acquire(counter(kCounterBarrier)) - buffers_->arrived) < 0) {
                arch::spin();
            }
        }
        arch::cta_sync();
    }

    // By every CTA of the group, after its last barrier: the counters are zero again.
    IDSEL_DEVICE void leave() {
        if (buffers_->ctas == 1) return;
        const bool last =
            arrive_last(reinterpret_cast<int32_t*>(counter(kCounterDepartures)), buffers_->ctas, &buffers_->flag);
        if (last && arch::thread() == 0) arch::st_relaxed(buffers_->counters + kCounterBarrier, 0);
    }

  private:
    IDSEL_DEVICE uint32_t* counter(int number) const {
        return reinterpret_cast<uint32_t*>(buffers_->counters + number);
    }
    IDSEL_DEVICE static bool is_long(const KernelArgs& args, int sample) {
        return sample < args.samples && !sample_of(args, sample).whole;
    }

    GroupBuffers* buffers_;
};

}  // namespace idsel::cuda
