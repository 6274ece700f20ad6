// Dot products of many rows with many rows, in tiles.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>

#include "cpu/kernels.h"
#include "cpu/sample.h"
#include "cpu/thread_pool.h"

namespace idsel::cpu {

// Rows of a tile: two panels of kTileRows x kBlock floats stay in a second-level cache.
constexpr int64_t kTileRows = 4 * kRowMultiple;

// A rectangle of the Gram: rows [i, i_end), columns [j, j_end).
struct Tile {
    int64_t i, i_end, j, j_end;
};

// One block of D at a time, the rows are copied side by side in float32 and multiplied with each other tile by tile.
// In place, rows a power of two apart would compete for the same few lines of the cache.
class TiledDots {
  public:
    TiledDots(const Sample& sample, const Kernels& kernels, ThreadPool& pool);

    using Use = std::function<void(const Tile&)>;

    // out[(i - first) * n + j] = <x_i, x_j> for i in [first, last) and all j, or those of the tiles on and below the
    // diagonal. Calls `finish` from any thread for each tile that is done.
    void compute(int64_t first, int64_t last, bool lower, float* out, const Use& finish);

  private:
    void pack(int64_t at);
    void add_tile(const Tile& tile, int64_t at, float* out) const;

    const Sample& sample_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    int64_t padded_rows_;  // n rounded up to kRowMultiple, the rest zeros
    int64_t stride_;       // length of a row of a block
    int64_t blocks_;
    struct Free {
        void operator()(float* array) const { ::operator delete[](array, kCacheLine); }
    };
    static constexpr std::align_val_t kCacheLine{64};
    std::unique_ptr<float[], Free> packed_;  // (padded_rows, stride): one block of all rows, no vector across two lines
};

}  // namespace idsel::cpu
