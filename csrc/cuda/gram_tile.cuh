// A work tile of 64 x 64 dot products, and the squared norms of its rows and columns.
#pragma once

#include "cuda/tile_math.cuh"
#include "cuda/tile_scheduler.cuh"
#include "rules/tokens.h"

namespace idsel::cuda {

// The rows of features of a tile: neighbours, or those of a list. A row that does not exist is another one's double,
// whose products nobody uses.
template <class T>
struct NeighbourRows {
    const T* base;  // of the sample's first token
    int64_t stride;
    const int32_t* n;  // tokens; in shared memory, as the next
    const int* tile;   // the row or column of the tile

    IDSEL_DEVICE int token(int row) const {
        const int last = *n - 1, token = *tile * kTile + row;
        return token < last ? token : last;
    }
};
template <class T>
struct ListedRows {
    const T* base;
    int64_t stride;
    const int32_t* list;  // in shared memory; -1: none

    IDSEL_DEVICE int token(int row) const { return list[row] > 0 ? list[row] : 0; }
};

constexpr int kSlabRows = 32;  // of a tile that are reduced, or stored, at once

struct TileBuffers {
    float parts[kSlices][kSlabRows * kPartPitch];  // of the slices; the epilogue's afterwards
    float other_group[2][kSlabRows * kTile];       // sums of the other group, by slab
    float norm_parts[kSlices][2 * kTile];
    float norm_inbox[2 * kTile];
    float scale[2 * kTile];  // 1 / norm of the rows, then of the columns; 0 for a row without a direction
    bool counts[2 * kTile];
};

// Of the slab's rows, the first 16 begin at 16 * slab of the tile, the others 32 later.
IDSEL_DEVICE int slab_row(int slab, int row) { return row / 16 * 32 + slab * 16 + row % 16; }

// Two quads of four neighbours in a row, for each thread, of a slab.
constexpr int kQuads = kSlabRows * kTile / 4 / kCtaThreads;
IDSEL_DEVICE int quad_row(int at, int thread) { return (thread + at * kCtaThreads) / (kTile / 4); }
IDSEL_DEVICE int quad_column(int thread) { return thread % (kTile / 4) * 4; }

IDSEL_DEVICE void add_to(Float4& sum, const Float4& other) {
    IDSEL_UNROLL
    for (int e = 0; e < 4; ++e) sum.v[e] += other.v[e];
}

// Adds up the slices of a slab in their order, for this thread's quads.
IDSEL_DEVICE void sum_slices(const TileBuffers* buffers, int thread, Float4 (&sums)[kQuads]) {
    IDSEL_UNROLL
    for (int at = 0; at < kQuads; ++at) {
        const int where = quad_row(at, thread) * kPartPitch + quad_column(thread);
        sums[at] = arch::ld_any(reinterpret_cast<const Float4*>(buffers->parts[0] + where));
        IDSEL_UNROLL
        for (int slice = 1; slice < kSlices; ++slice) {
            add_to(sums[at], arch::ld_any(reinterpret_cast<const Float4*>(buffers->parts[slice] + where)));
        }
    }
}

// The same of a squared norm.
IDSEL_DEVICE float sum_norms(const TileBuffers* buffers, int line) {
    float sum = buffers->norm_parts[0][line];
    IDSEL_UNROLL
    for (int slice = 1; slice < kSlices; ++slice) sum += buffers->norm_parts[slice][line];
    return sum;
}

// What the CTAs of a cluster have to do with one another: each has one group of D and one slab of the result.
struct ClusterRole {
    bool shares;  // false: this CTA does all groups and slabs

    IDSEL_DEVICE int rank() const { return static_cast<int>(arch::block() % kMaxGroups); }
    IDSEL_DEVICE bool has_slab(int slab) const { return !shares || slab == rank(); }
};

// The dot products of a tile, to `sink`: first sink.norms(line, squared norm) of the 2 * 64 rows and columns, by a
// thread each (where only dot products are wanted, with zeros), then, after a barrier, sink.quad(slab, row of it,
// column, dots), by all threads in step. Nobody may be using the buffers.
template <class Math, class Rows, class Columns, class Sink>
IDSEL_DEVICE void gram_tile(const KernelArgs& args, const Rows& rows, const Columns& columns,
                            const ClusterRole& cluster, TileBuffers* buffers, Sink& sink) {
    const int groups = groups_of(args.dim);
    const auto other_sums = [&](int slab, int at, int thread) {
        return reinterpret_cast<Float4*>(buffers->other_group[slab] + (thread + at * kCtaThreads) * 4);
    };
    Float4 sums[2][kQuads] = {};
    float norm = 0.0f;
    if (cluster.shares) arch::cluster_arrive();  // the other CTA is there once it has arrived too
    IDSEL_UNROLL_BY(1)
    for (int group = cluster.shares ? cluster.rank() : 0; group < groups; group += cluster.shares ? kMaxGroups : 1) {
        const bool is_first = cluster.shares || group == 0, is_last = cluster.shares || group == groups - 1;
        if (!is_first) arch::cta_sync();  // nobody reads what the group before left any more
        Math math;
        const int of_group = group * kSlices + warp_slice(arch::thread());
        mainloop(math, rows, columns, slice_range(args.dim, of_group, groups), args.dim, args.wide_rows != 0,
                 reinterpret_cast<Word4*>(buffers->parts[0]));
        // Where elements have been checked, others may still have some of them in the room of the slices.
        if (args.wide_rows == 0 || args.dim % kKTile != 0) arch::cta_sync();
        const int thread = arch::thread_again(), slice = warp_slice(thread), half = warp_half(thread);
        if constexpr (Math::kNorms) {
            float* norms = buffers->norm_parts[slice] + half * 32;
            math.store_norms(norms, norms + kTile, thread);
        }
        if (cluster.shares) arch::cluster_wait();
        IDSEL_UNROLL
        for (int slab = 0; slab < 2; ++slab) {
            if (slab > 0) arch::cta_sync();  // nobody reads the slab before any more
            math.store_dots(buffers->parts[slice] + half * (16 * kPartPitch), slab, thread);
            arch::cta_sync();
            sum_slices(buffers, thread, sums[slab]);
            IDSEL_UNROLL
            for (int at = 0; at < kQuads; ++at) {
                if (!cluster.has_slab(slab))
                    arch::st_shared_cluster(other_sums(slab, at, thread), 1 - cluster.rank(), sums[slab][at]);
                if (!is_first) add_to(sums[slab][at], arch::ld_any(other_sums(slab, at, thread)));
                if (!is_last) arch::st_16(other_sums(slab, at, thread), sums[slab][at]);
            }
        }
        if (Math::kNorms && thread < 2 * kTile) {
            const float sum = sum_norms(buffers, thread);
            norm = is_first ? sum : norm + sum;
            if (cluster.shares) arch::st_shared_cluster(buffers->norm_inbox + thread, 1 - cluster.rank(), sum);
        }
    }
    const int thread = arch::thread_again();
    if (cluster.shares) {
        arch::cluster_arrive();
        arch::cluster_wait();
        if (Math::kNorms && thread < 2 * kTile) norm += buffers->norm_inbox[thread];
    }
    if (thread < 2 * kTile) sink.norms(thread, norm);
    arch::cta_sync();  // scales are there, and nobody reads the slices any more
    IDSEL_UNROLL
    for (int slab = 0; slab < 2; ++slab) {
        if (!cluster.has_slab(slab)) continue;
        IDSEL_UNROLL
        for (int at = 0; at < kQuads; ++at) {
            if (cluster.shares) add_to(sums[slab][at], arch::ld_any(other_sums(slab, at, thread)));
            sink.quad(slab, quad_row(at, thread), quad_column(thread), sums[slab][at]);
        }
    }
}

// The squared norms of 64 rows alone, with the bits that gram_tile() gives them: sink(row, squared norm), by a thread
// each. Nobody may be using the buffers.
template <class Math, class Rows, class Sink>
IDSEL_DEVICE void norm_tile(const KernelArgs& args, const Rows& rows, TileBuffers* buffers, Sink&& sink) {
    const int groups = groups_of(args.dim);
    float norm = 0.0f;
    IDSEL_UNROLL_BY(1)
    for (int group = 0; group < groups; ++group) {
        if (group > 0) arch::cta_sync();  // nobody reads what the group before left any more
        Math math;
        const int of_group = group * kSlices + warp_slice(arch::thread());
        mainloop(math, rows, rows, slice_range(args.dim, of_group, groups), args.dim, args.wide_rows != 0,
                 reinterpret_cast<Word4*>(buffers->parts[0]));
        const int thread = arch::thread_again();
        math.store_norms(buffers->norm_parts[warp_slice(thread)] + warp_half(thread) * 32, nullptr, thread);
        arch::cta_sync();
        if (thread < kTile) {
            const float sum = sum_norms(buffers, thread);
            norm = group == 0 ? sum : norm + sum;
        }
    }
    const int thread = arch::thread_again();
    if (thread < kTile) sink(thread, norm);
}

// What lies in the place of features where similarities are given: row i of them is where the features of token i
// would be.
struct GivenSimilarity {
    float c;
};

// What a token's similarity to itself says of it, as its squared norm.
template <class Rows>
IDSEL_DEVICE float given_square(const Rows& rows, int token) {
    const float c = rows.base[token * (rows.stride + 1)].c;
    if (!(fabsf(c) < INFINITY)) return INFINITY;
    return c > 0.0f ? 1.0f : 0.0f;
}

// Similarities that are given, to the sink of gram_tile(), as the dot products of rows that need no scale. Each is read
// from the row of its row.
template <class Rows, class Columns, class Sink>
IDSEL_DEVICE void given_tile(const Rows& rows, const Columns& columns, const ClusterRole& cluster, TileBuffers* buffers,
                             Sink& sink) {
    const int thread = arch::thread_again(), column = quad_column(thread);
    if (thread < 2 * kTile) {
        sink.norms(thread, given_square(rows, thread < kTile ? rows.token(thread) : columns.token(thread - kTile)));
        buffers->scale[thread] = 1.0f;
    }
    // All loads before any store, which would hold them up.
    Float4 c[2][kQuads] = {};
    IDSEL_UNROLL
    for (int slab = 0; slab < 2; ++slab) {
        if (!cluster.has_slab(slab)) continue;
        IDSEL_UNROLL
        for (int at = 0; at < kQuads; ++at) {
            const int i = rows.token(slab_row(slab, quad_row(at, thread)));
            IDSEL_UNROLL
            for (int e = 0; e < 4; ++e) {
                const int j = columns.token(column + e);
                c[slab][at].v[e] = i == j ? given_square(rows, i) : given_similarity(rows.base[i * rows.stride + j].c);
            }
        }
    }
    arch::cta_sync();  // scales are there
    IDSEL_UNROLL
    for (int slab = 0; slab < 2; ++slab) {
        if (!cluster.has_slab(slab)) continue;
        IDSEL_UNROLL
        for (int at = 0; at < kQuads; ++at) sink.quad(slab, quad_row(at, thread), column, c[slab][at]);
    }
}

}  // namespace idsel::cuda
