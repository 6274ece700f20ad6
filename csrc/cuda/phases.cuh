// Phases: work of one sample that several blocks share out, again and again within one launch.
//
// A sample has a crew of blocks and a 64-bit word: the present phase, how many items it has, how many of them have been
// taken. A block takes an item by adding one to the word, does it, and counts its arrival. Whoever arrives last with
// an item of the phase goes on alone: it runs the loop over picks as far as it comes and publishes the next phase, or
// the end. The others look at the word until it has an item for them.
//
// That cannot lock up, however few blocks of a crew run at once: items of a phase that has begun are held by blocks
// that run, or free for any that does; between two phases the one that goes on runs, and takes items too. A block that
// starts late finds what there is to do, or the end. The last of the crew to leave sets the word back to zero, for the
// next launch: nobody looks at it any more.
#pragma once

#include "cuda/ticket.cuh"
#include "cuda/tokens.cuh"

namespace idsel::cuda {

constexpr int kItemBits = 28;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;
// The most items of a phase are the gains of kMaxTokens tokens. A block that finds all taken may have added one all the
// same: there is room for that.
static_assert((kMaxTokens / kGainTokens + 2) * 2 < int64_t{1} << kItemBits);

IDSEL_DEVICE uint64_t word_of(Phase phase, int64_t items) {
    return static_cast<uint64_t>(phase) << 2 * kItemBits | static_cast<uint64_t>(items) << kItemBits;
}
IDSEL_DEVICE Phase phase_of(uint64_t word) { return static_cast<Phase>(word >> 2 * kItemBits); }

struct Item {
    Phase phase;
    int32_t index;
    int32_t count;  // of the phase
};

// What a block keeps of its sample, in shared memory: in registers it would be in the way of the tiles.
struct CrewState {
    Control control;
    Sample sample;
    Tokens tokens;
    int32_t first_items;  // of the phase that every sample begins with, when its word is zero
    uint64_t taken;       // the word, as this block took an item by it
};

class Crew {
  public:
    IDSEL_DEVICE Crew(const KernelArgs& args, CrewState* state) : args_(args), state_(state) {}

    // Waits for an item of any phase; false at the end. The block then sees what all items of earlier phases wrote.
    IDSEL_DEVICE bool take() {
        if (port::thread() == 0) {
            state_->taken = take_alone();
            port::acquire();
        }
        port::barrier();
        return item().phase != Phase::kEnd;
    }

    // What it has taken. Read where it is used, rather than kept in registers.
    IDSEL_DEVICE Item item() const { return item_of(state_->taken); }

    // True in the block that is the last to arrive with an item of the phase, which sees what all of them wrote.
    IDSEL_DEVICE bool arrive() { return arrive_last(counter(kCounterArrivals), item().count, &state_->control.flag); }

    // By the block that goes on alone, when all its threads have written what the phase needs.
    IDSEL_DEVICE void publish(Phase phase, int64_t items) {
        port::barrier();
        if (port::thread() == 0) port::publish(word(), word_of(phase, items));
    }

    // By every block of the crew, once.
    IDSEL_DEVICE void leave() {
        const bool last = arrive_last(counter(kCounterDepartures), args_.crew, &state_->control.flag);
        if (last && port::thread() == 0) port::publish(word(), 0);
    }

  private:
    IDSEL_DEVICE int32_t* counter(int64_t number) const { return state_->sample.counter(args_, number); }
    IDSEL_DEVICE uint64_t* word() const { return reinterpret_cast<uint64_t*>(counter(kCounterWord)); }

    IDSEL_DEVICE Item item_of(uint64_t word) const {
        const Phase phase = phase_of(word);
        const auto items = static_cast<int32_t>(word >> kItemBits & kItemMask);
        return {phase, static_cast<int32_t>(word & kItemMask), phase == Phase::kFirst ? state_->first_items : items};
    }

    IDSEL_DEVICE uint64_t take_alone() const {
        for (;; port::rest()) {
            uint64_t seen = port::peek(word());
            if (phase_of(seen) == Phase::kEnd) return seen;
            if (!is_free(seen)) continue;
            seen = port::add_one(word());  // which may be of a later phase than the word looked at
            if (phase_of(seen) == Phase::kEnd || is_free(seen)) return seen;
        }
    }
    IDSEL_DEVICE bool is_free(uint64_t word) const {
        const Item item = item_of(word);
        return item.index < item.count;
    }

    const KernelArgs& args_;
    CrewState* state_;
};

}  // namespace idsel::cuda
