// What the kernel is launched with, and how the work and the workspace of a launch are cut up.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "rules/tier.h"

namespace idsel::cuda {

constexpr int kBlockThreads = 256;
constexpr int kWarps = kBlockThreads / 32;

// Side of a Gram tile, and the numbers of it that each thread holds.
constexpr int kTile = 64;
constexpr int kTileNumbers = kTile * kTile;
constexpr int kPerThread = kTileNumbers / kBlockThreads;

// The tile is computed from pieces of rows of this many bytes, double-buffered; the padding keeps rows in other banks.
constexpr int kPieceBytes = 128;
constexpr int kPieceStride = kPieceBytes + 16;
constexpr int kOperandBytes = kTile * kPieceStride;
constexpr int kTileBytes = 2 * 2 * kOperandBytes;

// A block looks up its sample with one thread per sample.
constexpr int kMaxSamples = kBlockThreads;

// D is split until a sample has about this many blocks, but never into parts shorter than kShortestPart.
constexpr int64_t kSplitTarget = 128;
constexpr int64_t kShortestPart = 256;

// Blocks of a launch whose samples have lengths that the host does not know.
constexpr int64_t kRaggedBlocks = 4096;

// Blocks of a launch whose samples are worked on in phases, shared out among them: about as many as a GPU runs at once.
constexpr int64_t kCrewBlocks = 256;

// All tiles, looked at for the nearest other tokens, are at most so many items of work: enough to even out.
constexpr int64_t kNearestItems = 4 * kCrewBlocks;

// Coverage finds the gains of so many tokens as one item of work. Up to kGainsAlone tokens one block finds them all.
constexpr int kGainTokens = 16;
constexpr int64_t kGainsAlone = 256;

// Per token: five numbers and a byte, in shared memory while they fit where the tiles were.
constexpr int kTokenNumbers = 5;
constexpr int kTokenBytes = kTokenNumbers * 4 + 1;
constexpr int kSharedTokens = kTileBytes / kTokenBytes;

// 30 bits of the order key are the index.
constexpr int64_t kMaxTokens = (int64_t{1} << 30) - 1;

constexpr int kRuleBytes = 32;

// Counters of a sample: two that hold the word of its phases, arrivals, departures, then one for each tile.
constexpr int kCounterWord = 0;
constexpr int kCounterArrivals = 2;
constexpr int kCounterDepartures = 3;
constexpr int kCounterTiles = 4;
constexpr int64_t kCountersPerSample = kCounterTiles + kSplitTarget;

// What the blocks of a sample do together. Every sample begins with kFirst.
enum class Phase : uint32_t {
    kFirst,    // its Gram, or the norms where the Gram is too large
    kPanel,    // dot products of the tokens of a panel with all
    kNearest,  // MaxMin: how near each token's nearest other token is
    kGains,    // Coverage: what each token would add
    kEnd,      // no more
    kNone,     // (of a pick that calls for none)
};

// How far the picks of a sample have come: what a block needs to go on where another stopped.
struct Progress {
    Phase phase;    // that had to be done first
    int32_t picks;  // so many have been made
    int32_t pick;   // the last of them, which the others have yet to absorb,
    float score;    // and its score
    float kept;     // what the model carries on
};

// What the blocks of a sample tell one another.
struct Desk {
    Progress progress;
    int32_t panel[kTile];  // tokens whose rows are in the panel; -1: none
};

IDSEL_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
IDSEL_HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
IDSEL_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Tiles on and above the diagonal; on it alone for a rule that asks only whether tokens are finite.
IDSEL_HD int64_t tiles_of(int64_t n, bool diagonal_only) {
    const int64_t side = ceil_div(n, kTile);
    return diagonal_only ? side : side * (side + 1) / 2;
}

// Of N and D only: a sample's bits must not depend on its batch mates.
IDSEL_HD int64_t splits_of(int64_t tiles, int64_t dim) {
    const int64_t wanted = tiles > 0 ? ceil_div(kSplitTarget, tiles) : 1;
    return larger(1, smaller(wanted, dim / kShortestPart));
}

struct KernelArgs {
    const void* features;
    int64_t dim;
    int64_t features_batch_stride;
    int64_t features_token_stride;
    int64_t tokens;     // N of every sample, or T
    int32_t wide_rows;  // rows can be read 16 bytes at a time

    const float* importance;
    int64_t importance_batch_stride;
    int64_t importance_token_stride;
    const uint8_t* mask;
    int64_t mask_batch_stride;
    int64_t mask_token_stride;
    const int32_t* cu_seqlens;

    int64_t first_sample;  // of this launch
    int32_t samples;
    int32_t same_k;  // k[0] is everybody's
    int32_t k[kMaxSamples];
    int64_t k_max;
    int64_t* indices;
    float* scores;
    int32_t sort;

    int32_t rule_id;
    int32_t diagonal_only;
    alignas(8) unsigned char rule[kRuleBytes];  // the functor

    // Workspace. `rows` are the tokens of this launch; a ragged sample has the rows and the history of its own tokens.
    float* gram;     // (rows, gram_width) dot products; a sample of more tokens than that has a panel (kTile, n) there
    float* square;   // (rows,) squared norms
    float* numbers;  // (kTokenNumbers, rows), where a sample does not fit shared memory
    Tier* tier;      // (rows,), likewise
    float* history;  // (rows, history_depth)
    float* partial;  // (samples, partial_tiles, kTileNumbers) sums of the parts of D
    float* scratch;  // (kCrewBlocks, kTileNumbers) the same of a block's tile, where parts are no items of their own
    Desk* desks;     // (samples,), where samples are worked on in phases
    int64_t rows;
    int64_t gram_width;
    int64_t history_depth;
    int64_t partial_tiles;

    int32_t* counters;  // (samples, kCountersPerSample)
    int32_t crew;       // blocks of each sample, where it is worked on in phases
};

}  // namespace idsel::cuda
