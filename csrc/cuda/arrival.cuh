// The last of several CTAs to arrive goes on alone.
#pragma once

#include "cuda/arch.cuh"

namespace idsel::cuda {

// True in the CTA that is the last of `expected`: it then sees what the others wrote before they arrived. The counter
// is zero again afterwards, for the next launch. `flag` is in shared memory.
IDSEL_DEVICE bool arrive_last(int32_t* counter, int64_t expected, int32_t* flag) {
    arch::cta_sync();  // every thread of this CTA has written
    if (arch::thread() == 0) {
        const bool last = arch::atom_add_acq_rel(counter, 1) == expected - 1;
        if (last) arch::st_relaxed(counter, 0);
        *flag = last ? 1 : 0;
    }
    arch::cta_sync();
    return *flag != 0;
}

}  // namespace idsel::cuda
