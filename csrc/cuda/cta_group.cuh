// Several CTAs work on one sample again and again within one launch, in phases.
//
// A sample has a group of CTAs and a 64-bit word: the present phase, how many work tiles it has, how many of them have
// been taken. A CTA takes one by adding one to the word, does it, and counts its arrival. Whoever arrives last with a
// work tile of the phase goes on alone: it runs the loop over picks as far as it comes and publishes the next phase, or
// the end. The others look at the word until it has a work tile for them.
//
// That cannot lock up, however few CTAs of a group run at once: work tiles of a phase that has begun are held by CTAs
// that run, or free for any that does; between two phases the one that goes on runs, and takes work tiles too. A CTA
// that starts late finds what there is to do, or the end. The last of the group to leave sets the word back to zero,
// for the next launch: nobody looks at it any more.
#pragma once

#include "cuda/tile_scheduler.cuh"

namespace idsel::cuda {

constexpr int kTileBits = 28;
constexpr uint64_t kTileMask = (uint64_t{1} << kTileBits) - 1;
// A phase has at most a work tile for each 64 of kMaxTokens tokens. A CTA that finds all taken has added one all the
// same: there is room for that.
static_assert((kMaxTokens / kTile + 2) * 2 < int64_t{1} << kTileBits);

IDSEL_DEVICE uint64_t word_of(Phase phase, int64_t tiles) {
    return static_cast<uint64_t>(phase) << 2 * kTileBits | static_cast<uint64_t>(tiles) << kTileBits;
}
IDSEL_DEVICE Phase phase_of(uint64_t word) { return static_cast<Phase>(word >> 2 * kTileBits); }

struct GroupTile {
    Phase phase;
    int32_t index;
    int32_t count;  // of the phase
};

// What a CTA keeps of its sample, in shared memory: in registers it would be in the way of the tiles.
struct GroupBuffers {
    ReduceBuffers reduce;
    int32_t flag;
    PickArgs pick_args;
    Sample sample;
    int32_t* counters;  // of the sample
    int32_t ctas;       // of the group
    TileIndex index;    // of a tile
    uint64_t taken;     // the word, as this CTA took a work tile by it
};

class CtaGroup {
  public:
    IDSEL_DEVICE explicit CtaGroup(GroupBuffers* buffers) : buffers_(buffers) {}

    // Waits for a work tile of any phase; false at the end. The CTA then sees what all of earlier phases wrote.
    IDSEL_DEVICE bool take() {
        if (arch::thread() == 0) {
            buffers_->taken = take_alone();
            arch::fence_acq_rel();
        }
        arch::cta_sync();
        return tile().phase != Phase::kEnd;
    }

    // What it has taken. Read where it is used, rather than kept in registers.
    IDSEL_DEVICE GroupTile tile() const { return tile_of(buffers_->taken); }

    // True in the CTA that is the last to arrive with a work tile of the phase, which sees what all of them wrote.
    IDSEL_DEVICE bool arrive() { return arrive_last(counter(kCounterArrivals), tile().count, &buffers_->flag); }

    // By the CTA that goes on alone, when all its threads have written what the phase needs.
    IDSEL_DEVICE void publish(Phase phase, int64_t tiles) {
        arch::cta_sync();
        if (arch::thread() == 0) arch::st_release(word(), word_of(phase, tiles));
    }

    // By every CTA of the group, once.
    IDSEL_DEVICE void leave() {
        const bool last = arrive_last(counter(kCounterDepartures), buffers_->ctas, &buffers_->flag);
        if (last && arch::thread() == 0) arch::st_release(word(), 0);
    }

  private:
    IDSEL_DEVICE int32_t* counter(int64_t number) const { return buffers_->counters + number; }
    IDSEL_DEVICE uint64_t* word() const { return reinterpret_cast<uint64_t*>(counter(kCounterWord)); }

    // Every sample begins with kFirst, when its word is zero: a work tile for each tile on the diagonal.
    IDSEL_DEVICE GroupTile tile_of(uint64_t word) const {
        const Phase phase = phase_of(word);
        const auto first = static_cast<int32_t>(ceil_div(buffers_->sample.n, kTile));
        const auto tiles = static_cast<int32_t>(word >> kTileBits & kTileMask);
        return {phase, static_cast<int32_t>(word & kTileMask), phase == Phase::kFirst ? first : tiles};
    }

    IDSEL_DEVICE uint64_t take_alone() const {
        for (;; arch::nanosleep()) {
            uint64_t seen = arch::ld_relaxed(word());
            if (phase_of(seen) == Phase::kEnd) return seen;
            if (!is_free(seen)) continue;
            seen = arch::atom_add_relaxed(word(), 1);  // which may be of a later phase than the word looked at
            if (phase_of(seen) == Phase::kEnd || is_free(seen)) return seen;
        }
    }
    IDSEL_DEVICE bool is_free(uint64_t word) const {
        const GroupTile tile = tile_of(word);
        return tile.index < tile.count;
    }

    GroupBuffers* buffers_;
};

}  // namespace idsel::cuda
