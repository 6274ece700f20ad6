// The last of several blocks to arrive goes on alone.
#pragma once

#include "cuda/port.cuh"

namespace idsel::cuda {

// True in the block that is the last of `expected`: it then sees what the others wrote before they arrived. The
// counter is zero again afterwards, for the next launch. `flag` is in shared memory.
IDSEL_DEVICE bool arrive_last(int32_t* counter, int64_t expected, int32_t* flag) {
    port::barrier();  // every thread of this block has written
    if (port::thread() == 0) {
        const bool last = port::arrive(counter) == expected - 1;
        if (last) port::reset(counter);
        *flag = last ? 1 : 0;
    }
    port::barrier();
    return *flag != 0;
}

}  // namespace idsel::cuda
