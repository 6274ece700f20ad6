// What the kernels are launched with, and the sizes that host and device agree on.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "idsel/select.h"
#include "rules/tier.h"

namespace idsel::cuda {

constexpr int kCtaThreads = 256;
constexpr int kWarps = kCtaThreads / 32;

// Side of a work tile of the Gram.
constexpr int kTile = 64;

// Of D: a k-tile is what a warp loads of it at once for tensor cores, a slice is added up by itself, four slices are
// added up to a group, and groups are added up last. The order depends on D alone.
constexpr int kKTile = 32;
constexpr int kSlices = 4;
constexpr int kMaxGroups = 2;
constexpr int kKTilesOfTwoGroups = 8;

// Sums and maxima over similarities are formed over so many neighbours first, whatever the tile.
constexpr int kRun = 16;

// Rows of a panel, which are those of a tile.
constexpr int kPanelRows = kTile;

// A launch looks up samples with one thread per sample.
constexpr int kMaxSamples = kCtaThreads;

// Samples of up to so many tokens are selected with the state of the tokens in registers.
constexpr int kMaxTokensPerThread = 12;
constexpr int64_t kMaxRegisterTokens = int64_t{kMaxTokensPerThread} * kCtaThreads;

// Per token of a longer sample: six numbers and a byte, in the workspace or in shared memory.
constexpr int kTokenNumbers = 6;

// A CTA group works on one sample: at most so many CTAs.
constexpr int64_t kMaxGroup = 256;

// How many of its best tokens each CTA of a group offers for a panel, of so many CTAs; and one more, which bounds what
// it has not offered. All together offer twice what a panel takes, but no CTA fewer than two or more than a panel.
IDSEL_HD int offers_of(int ctas) {
    const int share = (2 * kPanelRows + ctas - 1) / ctas, most = share < kPanelRows ? share : kPanelRows;
    return most > 2 ? most : 2;
}
constexpr int64_t kMaxOffers = 3 * kMaxGroup;
static_assert(6 * kPanelRows <= kMaxOffers);  // what fewer than 2 * kPanelRows CTAs offer, with their bounds

// Coverage on panels: how many gains are formed at once.
constexpr int kGainsAtOnce = kRun;
// Sums over kRun tokens each, for so many gains: a number a token, and what rounding takes.
constexpr int64_t kSumsSlack = kGainsAtOnce * 4;

constexpr int64_t kMaxTokens = (int64_t{1} << 28) - 1;
constexpr int64_t kMaxDim = (int64_t{1} << 30) - 1;

constexpr int kRuleBytes = 32;

// Beside the types of features: what lies in their place are similarities (N, N) of each sample, in float32.
constexpr int32_t kGivenSimilarities = 3;
static_assert(kGivenSimilarities > IDSEL_BFLOAT16 && kGivenSimilarities > IDSEL_FLOAT16);

// Counters of a launch, then those of each sample: of its CTA group's barrier, arrivals, departures.
constexpr int kCounterTicket = 0;
constexpr int kCounterLaunchDepartures = 1;
constexpr int kLaunchCounters = 4;
constexpr int kCounterBarrier = 0;
constexpr int kCounterArrivals = 1;
constexpr int kCounterDepartures = 2;
constexpr int64_t kCountersPerSample = 4;

// A token for a panel, as its owner knows it.
struct alignas(16) Offer {
    uint64_t rank;  // key and token; 0: none
    float state;
    float importance;
};

// What the CTAs of a group tell one another, in the workspace.
struct alignas(16) GroupState {
    Offer offers[2][kMaxOffers];              // by turns: some may read the last ones while others write the next
    Offer given[2][kPanelRows];               // the next of the tokens that are given, likewise
    float gains[kGainsAtOnce];                // Coverage: of tokens of the panel
    int32_t tied[kMaxGroup];                  // how many of each CTA's tokens are picked together
    float among[kPanelRows * kPanelRows];     // weights of the panel's tokens with one another
    float overlaps[kPanelRows * kPanelRows];  // DPP: sums over the picks before the panel
};

constexpr IDSEL_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr IDSEL_HD int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
IDSEL_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
IDSEL_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Tiles on and above the diagonal; on it alone for a rule that asks only whether tokens are finite.
IDSEL_HD int64_t tiles_of(int64_t n, bool diagonal_only) {
    const int64_t tiles = ceil_div(n, kTile);
    return diagonal_only ? tiles : tiles * (tiles + 1) / 2;
}

IDSEL_HD int k_tiles_of(int dim) { return (dim - 1) / kKTile + 1; }

// Of D alone: a sample's bits depend neither on its batch mates nor on the tiles.
IDSEL_HD int groups_of(int dim) { return k_tiles_of(dim) >= kKTilesOfTwoGroups ? kMaxGroups : 1; }

// What the loop over picks needs of a call.
struct PickArgs {
    const float* importance;
    int64_t importance_batch_stride;
    int64_t importance_token_stride;
    const uint8_t* mask;
    int64_t mask_batch_stride;
    int64_t mask_token_stride;
    const int32_t* cu_seqlens;

    int64_t k_max;
    int64_t* indices;
    float* scores;
    int32_t sort;
    const void* features;
    int32_t dtype;  // idsel_dtype, or kGivenSimilarities
    int32_t dim;
    int64_t features_batch_stride;
    int64_t features_token_stride;

    int32_t rule_id;
    alignas(8) unsigned char rule[kRuleBytes];  // the functor

    // Workspace. `rows` are the tokens of this launch, each sample's padded to a multiple of four; a sample has the
    // rows and the history of its own tokens.
    float* gram;     // (rows, gram_width) weights; a sample of more tokens than that has a panel (kPanelRows, n) there
    float* square;   // (rows,) squared norms
    float* runs;     // (rows, run_depth) sums or maxima over kRun similarities, for rules that begin with one
    float* numbers;  // (kTokenNumbers, rows), for samples that do not fit registers
    Tier* tier;      // (rows,), likewise
    float* history;  // (rows, history_depth)
    GroupState* group_states;  // (samples,), where samples are worked on in panels
    float* sums;               // Coverage on panels: of runs, for kGainsAtOnce gains of each sample
    float* cover;              // (samples, dim rounded up to four): of channels, for a rule that covers them
    int32_t shared_tokens;     // of a CTA of a group whose numbers fit shared memory
    int64_t rows;
    int64_t gram_width;
    int64_t run_depth;
    int64_t history_depth;
    int64_t shared_history;  // numbers of the history that fit shared memory

    unsigned long long* similarities_read;  // (batch,) or null
    unsigned long long* panels_made;        // (batch, 2) or null

    // The last, so that what all rules need is read from shared memory 16 bytes at a time.
    const int32_t* grids;  // (batch, 2) or null
    const int32_t* given;  // (batch, given_count) or null
    int64_t given_count;
};

// Aligned, so that what lies behind it in shared memory is read 16 bytes at a time.
struct alignas(16) KernelArgs : PickArgs {
    int32_t wide_rows;  // rows can be read 16 bytes at a time, by offsets of 32 bits
    int64_t tokens;     // N of every sample, or T
    int32_t diagonal_only;

    int64_t first_sample;  // of this launch
    int32_t samples;
    const int32_t* k_on_device;  // (batch,), or null: k counts
    int32_t same_k;              // k[0] is everybody's
    int32_t k[kMaxSamples];

    // How tiles are shared out.
    int32_t cluster;     // CTAs that share a work tile, one for each group of D; 1: every CTA has work tiles of its own
    int32_t persistent;  // a CTA takes one work tile after another
    int32_t group;       // the most CTAs of a sample that is worked on in panels

    int32_t* counters;
};

}  // namespace idsel::cuda
