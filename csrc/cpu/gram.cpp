#include "cpu/gram.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace idsel::cpu {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

std::vector<Tile> lower_tiles(int64_t n) {
    std::vector<Tile> tiles;
    for (int64_t i = 0; i < n; i += kTileRows) {
        const int64_t i_end = std::min(i + kTileRows, n);
        for (int64_t j = 0; j < i_end; j += kTileRows) tiles.push_back({i, i_end, j, std::min(j + kTileRows, n)});
    }
    return tiles;
}

TiledDots::TiledDots(const Sample& sample, const Kernels& kernels, ThreadPool& pool, int64_t most_rows)
    : sample_(sample),
      kernels_(kernels),
      pool_(pool),
      stride_(std::min(kBlock, round_up(sample.dim, kLanes))),
      blocks_((sample.dim + kBlock - 1) / kBlock),
      packed_(new (kCacheLine) float[static_cast<size_t>((most_rows + kRowMultiple) * stride_)]) {}

void TiledDots::pack(const std::vector<int64_t>& rows, int64_t at) {
    const auto count = static_cast<int64_t>(rows.size());
    const int64_t length = std::min(stride_, sample_.dim - at * kBlock);
    // A tile is rounded up to a multiple of rows, so as many behind the last one are zeros.
    pool_.parallel_for(count + kRowMultiple, 4 * kTileRows, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* to = packed_.get() + row * stride_;
            const int64_t there = row < count ? length : 0, filled = round_up(there, kLanes);
            if (there > 0) {
                const void* from = sample_.element(rows[static_cast<size_t>(row)], at * kBlock);
                kernels_.to_lanes[sample_.dtype](from, there, to);
            }
            std::memset(to + filled, 0, static_cast<size_t>(stride_ - filled) * sizeof(float));
        }
    });
}

void TiledDots::add_tile(const Tile& tile, int64_t at, float* out, int64_t out_stride) const {
    alignas(64) float dots[kTileRows * kTileRows] = {};
    const int64_t length = std::min(stride_, round_up(sample_.dim - at * kBlock, kLanes));
    const int64_t rows_a = round_up(tile.i_end - tile.i, kRowMultiple);
    const int64_t rows_b = round_up(tile.j_end - tile.j, kRowMultiple);
    kernels_.gram_tile(packed_.get() + tile.i * stride_, packed_.get() + tile.j * stride_, stride_, length, rows_a,
                       rows_b, dots, kTileRows);
    for (int64_t i = tile.i; i < tile.i_end; ++i) {
        float* to = out + i * out_stride;
        const float* from = dots + (i - tile.i) * kTileRows - tile.j;
        for (int64_t j = tile.j; j < tile.j_end; ++j) to[j] = at == 0 ? from[j] : to[j] + from[j];
    }
}

void TiledDots::compute(const std::vector<int64_t>& rows, const std::vector<Tile>& tiles, float* out,
                        int64_t out_stride, const Use& finish) {
    float* origin = out - tiles.front().i * out_stride;
    for (int64_t at = 0; at < blocks_; ++at) {
        pack(rows, at);
        pool_.parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const Tile& tile = tiles[static_cast<size_t>(t)];
                add_tile(tile, at, origin, out_stride);
                if (at + 1 == blocks_) finish(tile);
            }
        });
    }
}

}  // namespace idsel::cpu
