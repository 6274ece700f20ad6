// One tile of a sample's Gram: raw dot products. Norms are its diagonal, and are applied where it is read.
#pragma once

#include <math.h>

#include "cuda/sample.cuh"
#include "cuda/ticket.cuh"

namespace idsel::cuda {

template <class T>
constexpr int kPieceLength = kPieceBytes / static_cast<int>(sizeof(T));

// Row and column of a tile.
struct Place {
    int row, column;
};

// The rows of features of a tile: neighbours, or those of a list (in shared memory).
template <class T>
struct Rows {
    const T* base;  // of the tile's first row
    int64_t stride;
    int count;  // of rows that exist
    bool wide;

    IDSEL_DEVICE bool exists(int row) const { return row < count; }
    IDSEL_DEVICE const T* row(int row) const { return base + row * stride; }
};
template <class T>
struct ListedRows {
    const T* base;  // of the sample's first token
    int64_t stride;
    const int32_t* list;  // -1: none
    bool wide;

    IDSEL_DEVICE bool exists(int row) const { return list[row] >= 0; }
    IDSEL_DEVICE const T* row(int row) const { return base + larger(0, list[row]) * stride; }
};

// A piece of D of 64 rows, into shared memory; zeros where there is nothing.
template <class T, class Source>
IDSEL_DEVICE void load_rows(const Source& rows, int64_t begin, int64_t end, unsigned char* to) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    constexpr int kVectors = kPieceBytes / 16;
    for (int at = port::thread(); at < kTile * kVectors; at += kBlockThreads) {
        const int row = at / kVectors, vector = at % kVectors;
        const int64_t d = begin + vector * kVector;
        const T* from = rows.row(row) + d;
        const bool exists = rows.exists(row);
        unsigned char* there = to + row * kPieceStride + vector * 16;
        if (rows.wide && exists && d + kVector <= end) {
            port::copy_async(there, from);
            continue;
        }
        IDSEL_UNROLL
        for (int i = 0; i < kVector; ++i) {
            reinterpret_cast<T*>(there)[i] = exists && d + i < end ? from[i] : T{};
        }
    }
}

// The arithmetic of a tile: `add` adds the products of a piece to the numbers that this thread holds, which lie at
// `place`. A piece is summed by itself first, which keeps rounding errors from growing with D.
template <class T>
struct TileProduct {
    static constexpr int kTilesM = 2, kTilesN = 2;  // of 16 x 8, per warp

    // Warps are laid out 2 x 4, each with 32 rows and 16 columns.
    IDSEL_DEVICE static int first_row() { return port::thread() / 128 * 32 + port::thread() % 32 / 4; }
    IDSEL_DEVICE static int first_column() { return port::thread() / 32 % 4 * 16; }

    IDSEL_DEVICE static Place place(int at) {
        const int number = at % 4, n = at / 4 % kTilesN, m = at / 4 / kTilesN;
        return {first_row() + m * 16 + number / 2 * 8, first_column() + n * 8 + port::thread() % 4 * 2 + number % 2};
    }

    IDSEL_DEVICE static uint32_t pair(const unsigned char* rows, int row, int column) {
        return *reinterpret_cast<const uint32_t*>(rows + row * kPieceStride + column * static_cast<int>(sizeof(T)));
    }

    IDSEL_DEVICE static void add(const unsigned char* rows, const unsigned char* columns, float (&sums)[kPerThread]) {
        float piece[kTilesM][kTilesN][4] = {};
        const int column = port::thread() % 4 * 2;
        const int other = first_column() + port::thread() % 32 / 4;
        IDSEL_UNROLL
        for (int k = 0; k < kPieceLength<T>; k += 16) {
            uint32_t a[kTilesM][4], b[kTilesN][2];
            IDSEL_UNROLL
            for (int m = 0; m < kTilesM; ++m) {
                IDSEL_UNROLL
                for (int i = 0; i < 4; ++i) {
                    a[m][i] = pair(rows, first_row() + m * 16 + i % 2 * 8, k + column + i / 2 * 8);
                }
            }
            IDSEL_UNROLL
            for (int n = 0; n < kTilesN; ++n) {
                IDSEL_UNROLL
                for (int i = 0; i < 2; ++i) b[n][i] = pair(columns, other + n * 8, k + column + i * 8);
            }
            IDSEL_UNROLL
            for (int m = 0; m < kTilesM; ++m) {
                IDSEL_UNROLL
                for (int n = 0; n < kTilesN; ++n) port::multiply_add(T{}, piece[m][n], a[m], b[n]);
            }
        }
        IDSEL_UNROLL
        for (int at = 0; at < kPerThread; ++at) sums[at] += piece[at / 4 / kTilesN][at / 4 % kTilesN][at % 4];
    }
};

// Float32 in IEEE arithmetic: threads are laid out 16 x 16, each with every 16th row and column.
template <>
struct TileProduct<float> {
    static constexpr int kSide = 4;

    IDSEL_DEVICE static Place place(int at) {
        return {port::thread() / 16 + at / kSide * 16, port::thread() % 16 + at % kSide * 16};
    }

    IDSEL_DEVICE static void add(const unsigned char* rows, const unsigned char* columns, float (&sums)[kPerThread]) {
        float piece[kPerThread] = {};
        IDSEL_UNROLL_BY(1)  // more would hold more of the operands in registers than there are
        for (int k = 0; k < kPieceBytes; k += 16) {
            float a[kSide][4], b[kSide][4];
            IDSEL_UNROLL
            for (int side = 0; side < kSide; ++side) {
                const int row = port::thread() / 16 + side * 16, column = port::thread() % 16 + side * 16;
                IDSEL_UNROLL
                for (int i = 0; i < 4; ++i) {
                    a[side][i] = reinterpret_cast<const float*>(rows + row * kPieceStride + k)[i];
                    b[side][i] = reinterpret_cast<const float*>(columns + column * kPieceStride + k)[i];
                }
            }
            IDSEL_UNROLL
            for (int at = 0; at < kPerThread; ++at) {
                IDSEL_UNROLL
                for (int i = 0; i < 4; ++i) piece[at] = fmaf(a[at / kSide][i], b[at % kSide][i], piece[at]);
            }
        }
        IDSEL_UNROLL
        for (int at = 0; at < kPerThread; ++at) sums[at] += piece[at];
    }
};

// Position of a tile: row by row through the upper triangle, or down the diagonal.
IDSEL_DEVICE Place tile_place(const Sample& sample, int64_t tile, bool diagonal) {
    if (diagonal) return {static_cast<int>(tile), static_cast<int>(tile)};
    const auto side = static_cast<int>(ceil_div(sample.n, kTile));
    int row = 0;
    for (int64_t length = side; tile >= length; --length, ++row) tile -= length;
    return {row, row + static_cast<int>(tile)};
}

// Its first token's features.
template <class T>
IDSEL_DEVICE const T* features_of(const KernelArgs& args, const Sample& sample) {
    const int64_t batch = args.cu_seqlens == nullptr ? sample.index : 0;
    const T* features = static_cast<const T*>(args.features);
    return features + batch * args.features_batch_stride + sample.first * args.features_token_stride;
}

template <class T>
IDSEL_DEVICE Rows<T> rows_of(const KernelArgs& args, const Sample& sample, int tile) {
    const int64_t first = static_cast<int64_t>(tile) * kTile;
    return {features_of<T>(args, sample) + first * args.features_token_stride, args.features_token_stride,
            static_cast<int>(smaller(kTile, sample.n - first)), args.wide_rows != 0};
}

// The products of two times 64 rows over one part of D: two buffers, one being filled while the other is used. `same`
// where columns are the rows. Nobody may be using the buffers.
template <class T, class Source>
IDSEL_DEVICE void multiply_rows(const KernelArgs& args, const Sample& sample, const Source& rows,
                                const Rows<T>& columns, bool same, int64_t part, unsigned char* shared,
                                float (&sums)[kPerThread]) {
    const int64_t pieces = ceil_div(args.dim, kPieceLength<T>);
    const auto begin = static_cast<int>(pieces * part / sample.splits);
    const auto end = static_cast<int>(pieces * (part + 1) / sample.splits);
    const auto load = [&](int piece) {
        unsigned char* to = shared + piece % 2 * (2 * kOperandBytes);
        const int64_t first = int64_t{piece} * kPieceLength<T>;
        load_rows<T>(rows, first, args.dim, to);
        if (!same) load_rows<T>(columns, first, args.dim, to + kOperandBytes);
    };
    load(begin);
    port::copies_commit();
    for (int piece = begin; piece < end; ++piece) {
        port::copies_done<0>();
        port::barrier();  // everybody's part of this piece is there, and nobody uses the piece before it any more
        if (piece + 1 < end) load(piece + 1);
        port::copies_commit();
        const unsigned char* from = shared + piece % 2 * (2 * kOperandBytes);
        TileProduct<T>::add(from, same ? from : from + kOperandBytes, sums);
    }
}

// To the Gram where the sample has one, and to the squared norms.
template <class T>
IDSEL_DEVICE void store_tile(const KernelArgs& args, const Sample& sample, Place tile,
                             const float (&sums)[kPerThread]) {
    float* gram = args.gram + sample.row * args.gram_width;
    IDSEL_UNROLL
    for (int at = 0; at < kPerThread; ++at) {
        const Place place = TileProduct<T>::place(at);
        const int64_t i = static_cast<int64_t>(tile.row) * kTile + place.row;
        const int64_t j = static_cast<int64_t>(tile.column) * kTile + place.column;
        // Of a tile on the diagonal, the half above it: both halves of the Gram have the same bits.
        if (i > j || j >= sample.n) continue;
        if (i == j) args.square[sample.row + i] = sums[at];
        if (!sample.whole) continue;
        gram[i * args.gram_width + j] = sums[at];
        gram[j * args.gram_width + i] = sums[at];
    }
}

// Adds up the parts of D in their order, whoever computed them when. False while some are missing.
IDSEL_DEVICE bool add_parts(const KernelArgs& args, const Sample& sample, int64_t tile, int64_t part, Control* control,
                            float (&sums)[kPerThread]) {
    float* partial = args.partial + (sample.local * args.partial_tiles + tile * sample.splits) * kTileNumbers;
    IDSEL_UNROLL
    for (int at = 0; at < kPerThread; ++at) {
        partial[part * kTileNumbers + at * kBlockThreads + port::thread()] = sums[at];
    }
    if (!arrive_last(sample.counter(args, kCounterTiles + tile), sample.splits, &control->flag)) return false;
    IDSEL_UNROLL
    for (int at = 0; at < kPerThread; ++at) sums[at] = 0.0f;
    for (int64_t from = 0; from < sample.splits; ++from) {
        IDSEL_UNROLL
        for (int at = 0; at < kPerThread; ++at) {
            sums[at] += partial[from * kTileNumbers + at * kBlockThreads + port::thread()];
        }
    }
    return true;
}

// Does one item of a sample's work. True in the block that completes the sample's Gram.
template <class T>
IDSEL_DEVICE bool complete_gram(const KernelArgs& args, const Work& work, unsigned char* shared, Control* control) {
    const Sample& sample = work.sample;
    if (sample.tiles == 0) return true;
    const int64_t tile = work.item / sample.splits, part = work.item % sample.splits;
    const Place place = tile_place(sample, tile, args.diagonal_only != 0);
    float sums[kPerThread] = {};
    multiply_rows<T>(args, sample, rows_of<T>(args, sample, place.row), rows_of<T>(args, sample, place.column),
                     place.row == place.column, part, shared, sums);
    if (sample.splits > 1 && !add_parts(args, sample, tile, part, control, sums)) return false;
    store_tile<T>(args, sample, place, sums);
    return arrive_last(sample.counter(args, kCounterArrivals), sample.tiles, &control->flag);
}

}  // namespace idsel::cuda
