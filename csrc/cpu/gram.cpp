#include "cpu/gram.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace idsel::cpu {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::vector<Tile> tiles_of(int64_t first, int64_t last, int64_t n, bool lower) {
    std::vector<Tile> tiles;
    for (int64_t i = first; i < last; i += kTileRows) {
        const int64_t i_end = std::min(i + kTileRows, last);
        for (int64_t j = 0; j < (lower ? i_end : n); j += kTileRows) {
            tiles.push_back({i, i_end, j, std::min(j + kTileRows, n)});
        }
    }
    return tiles;
}

}  // namespace

TiledDots::TiledDots(const Sample& sample, const Kernels& kernels, ThreadPool& pool)
    : sample_(sample),
      kernels_(kernels),
      pool_(pool),
      padded_rows_(round_up(sample.n, kRowMultiple)),
      stride_(std::min(kBlock, round_up(sample.dim, kLanes))),
      blocks_((sample.dim + kBlock - 1) / kBlock),
      packed_(new (kCacheLine) float[static_cast<size_t>(padded_rows_ * stride_)]) {}

void TiledDots::pack(int64_t at) {
    const int64_t length = std::min(stride_, sample_.dim - at * kBlock);
    pool_.parallel_for(padded_rows_, 4 * kTileRows, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* to = packed_.get() + row * stride_;
            const int64_t count = row < sample_.n ? length : 0;
            if (count > 0) kernels_.to_lanes[sample_.dtype](sample_.element(row, at * kBlock), count, to);
            const int64_t filled = round_up(count, kLanes);
            std::memset(to + filled, 0, static_cast<size_t>(stride_ - filled) * sizeof(float));
        }
    });
}

void TiledDots::add_tile(const Tile& tile, int64_t at, float* out) const {
    alignas(64) float dots[kTileRows * kTileRows] = {};
    const int64_t length = std::min(stride_, round_up(sample_.dim - at * kBlock, kLanes));
    const int64_t rows_a = round_up(tile.i_end - tile.i, kRowMultiple);
    const int64_t rows_b = round_up(tile.j_end - tile.j, kRowMultiple);
    kernels_.gram_tile(packed_.get() + tile.i * stride_, packed_.get() + tile.j * stride_, stride_, length, rows_a,
                       rows_b, dots, kTileRows);
    for (int64_t i = tile.i; i < tile.i_end; ++i) {
        float* to = out + i * sample_.n;
        const float* from = dots + (i - tile.i) * kTileRows - tile.j;
        for (int64_t j = tile.j; j < tile.j_end; ++j) to[j] = at == 0 ? from[j] : to[j] + from[j];
    }
}

void TiledDots::compute(int64_t first, int64_t last, bool lower, float* out, const Use& finish) {
    const std::vector<Tile> tiles = tiles_of(first, last, sample_.n, lower);
    float* origin = out - first * sample_.n;
    for (int64_t at = 0; at < blocks_; ++at) {
        pack(at);
        pool_.parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const Tile& tile = tiles[static_cast<size_t>(t)];
                add_tile(tile, at, origin);
                if (at + 1 == blocks_) finish(tile);
            }
        });
    }
}

}  // namespace idsel::cpu
