// Dot products of many rows with many rows, in tiles.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/sample.h"
#include "cpu/thread_pool.h"

namespace idsel::cpu {

// Rows of a tile: two panels of kTileRows x kBlock floats stay in a second-level cache.
constexpr int64_t kTileRows = 4 * kRowMultiple;

// A rectangle: rows [i, i_end), columns [j, j_end).
struct Tile {
    int64_t i, i_end, j, j_end;
};

// [0, n) x [0, n), or the tiles of it on and below the diagonal.
std::vector<Tile> lower_tiles(int64_t n);

// One block of D at a time, rows are copied side by side in float32 and multiplied with each other tile by tile. In
// place, rows a power of two apart would compete for the same few lines of the cache.
class TiledDots {
  public:
    // For at most so many rows.
    TiledDots(const Sample& sample, const Kernels& kernels, ThreadPool& pool, int64_t most_rows);

    using Use = std::function<void(const Tile&)>;

    // <x_rows[i], x_rows[j]> for the places (i, j) in these tiles, which are at most kTileRows long and wide, into
    // out[(i - first) * out_stride + j], `first` being where the first tile begins. Calls `finish` from any thread for
    // each tile that is done.
    void compute(const std::vector<int64_t>& rows, const std::vector<Tile>& tiles, float* out, int64_t out_stride,
                 const Use& finish);

  private:
    void pack(const std::vector<int64_t>& rows, int64_t at);
    void add_tile(const Tile& tile, int64_t at, float* out, int64_t out_stride) const;

    const Sample& sample_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    int64_t stride_;  // length of a row of a block
    int64_t blocks_;
    struct Free {
        void operator()(float* array) const { ::operator delete[](array, kCacheLine); }
    };
    static constexpr std::align_val_t kCacheLine{64};
    std::unique_ptr<float[], Free> packed_;  // (rows, stride): one block of each, no vector across two lines
};

}  // namespace idsel::cpu
