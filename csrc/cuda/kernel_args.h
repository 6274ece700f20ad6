// What the kernel is launched with, and how the work and the workspace of a launch are cut up.
#pragma once

#include <cstdint>

#include "common/host_device.h"

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

// The most one launch may put into its workspace for similarities; a batch beyond it takes several launches.
constexpr int64_t kGramBudgetBytes = int64_t{1} << 30;

// Blocks of a launch whose samples have lengths that the host does not know.
constexpr int64_t kRaggedBlocks = 4096;

// Per token: five numbers and a byte, in shared memory while they fit where the tiles were.
constexpr int kTokenNumbers = 5;
constexpr int kTokenBytes = kTokenNumbers * 4 + 1;
constexpr int kSharedTokens = kTileBytes / kTokenBytes;

// 30 bits of the order key are the index.
constexpr int64_t kMaxTokens = (int64_t{1} << 30) - 1;

// What a rule's loop carries; a kernel is compiled for each.
enum class Family : int32_t { kToken, kHistory, kCoverage };

constexpr int kRuleBytes = 32;

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

    // Workspace. `rows` are the tokens of this launch, `tokens` the width of the Gram; a ragged sample has the rows and
    // the history of its own tokens.
    float* gram;      // (rows, tokens) dot products
    float* square;    // (rows,) squared norms
    float* numbers;   // (kTokenNumbers, rows), where a sample does not fit shared memory
    uint8_t* status;  // (rows,), likewise
    float* history;   // (rows, history_depth)
    float* partial;   // (samples, partial_tiles, kTileNumbers) sums of the parts of D
    int64_t rows;
    int64_t history_depth;
    int64_t partial_tiles;

    int32_t* counters;  // (samples, counters_per_sample): arrivals at the sample, then at each tile
    int64_t counters_per_sample;
};

}  // namespace idsel::cuda
