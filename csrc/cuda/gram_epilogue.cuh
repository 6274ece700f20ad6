// What becomes of the dot products of a tile: similarities, and what a rule makes of them once for each pair.
#pragma once

#include "cuda/gram_tile.cuh"
#include "rules/rules.h"
#include "rules/tokens.h"

namespace idsel::cuda {

// 0 for a row that has no direction, or is not finite.
IDSEL_DEVICE float scale_of(float square) { return square > 0.0f && square < INFINITY ? 1.0f / sqrtf(square) : 0.0f; }

// A token's similarity to itself is that to a copy of it, which may be one rounding off 1: so they tie.
IDSEL_DEVICE float similarity(float dot, float scale_i, float scale_j) {
    return scale_i == 0.0f || scale_j == 0.0f ? 0.0f : cosine(dot, scale_i, scale_j);
}

// Whether token j may be picked for what it is worth: it is there, and its importance and features are usable.
IDSEL_DEVICE bool competes(const PickArgs& args, const Sample& sample, int64_t j, float square) {
    return selectable(args, sample, j) && usable_importance(importance_of(args, sample, j)) && square < INFINITY;
}

// What the Gram holds of a pair: of a rule with one number per token, all that does not depend on the pick's priority.
template <class Rule>
IDSEL_DEVICE float weight_of(const Rule& rule, float c) {
    if constexpr (Rule::kState == State::kToken) return rule.weight(c);
    return c;
}

// What the first priorities need of all pairs.
enum class Pairs { kNothing, kNearest, kGains };

template <class Rule>
constexpr Pairs pairs_of() {
    if (Rule::kState == State::kCoverage) return Pairs::kGains;
    return Rule::kMayNeedNearest ? Pairs::kNearest : Pairs::kNothing;
}

// One number for what a line of the Gram has at 16 neighbours, of which this lane and the next three have four each:
// the largest similarity to another token that counts, or their sum. Sums are formed in pairs, so that whoever forms
// one again gets the same bits.
template <Pairs kPairs>
IDSEL_DEVICE float run_of(const Float4& c, const bool* counts, int self) {
    float v[4];
    IDSEL_UNROLL
    for (int e = 0; e < 4; ++e) {
        if constexpr (kPairs == Pairs::kNearest) {
            v[e] = counts[e] && e != self ? c.v[e] : -INFINITY;
        } else {
            v[e] = counts[e] ? fmaxf(0.0f, c.v[e]) : 0.0f;
        }
    }
    const auto join = [](float a, float b) {
        if constexpr (kPairs == Pairs::kNearest) return fmaxf(a, b);
        return a + b;
    };
    float run = join(join(v[0], v[1]), join(v[2], v[3]));
    run = join(run, arch::shfl_xor(run, 1));
    return join(run, arch::shfl_xor(run, 2));
}

// clang-format off
// contract: store: cuda/gram_epilogue.cuh cuda/panel_tile.cuh
// What a tile is for.
//   bool kKeepsNothing            only norms are wanted
//   bool kCounts                  whether store() asks which tokens count
//   bool kKeepsNorms              whether norms are kept
//   float weight(c)               what is stored of a similarity
//   void store(i, j, weights, counts)  token i's with j and its three neighbours, by all lanes of a warp
// clang-format on

// The whole Gram, and the runs that first priorities are made of.
template <class Rule>
struct GramStore {
    static constexpr Pairs kPairs = pairs_of<Rule>();
    static constexpr bool kKeepsNothing = !Rule::kNeedsSimilarities;
    static constexpr bool kCounts = kPairs != Pairs::kNothing;
    static constexpr bool kKeepsNorms = true;

    const KernelArgs& args;
    const Sample& sample;

    IDSEL_DEVICE float weight(float c) const { return weight_of(*reinterpret_cast<const Rule*>(args.rule), c); }
    IDSEL_DEVICE void store(int i, int j, const Float4& weights, const bool* counts) const {
        const bool there = i < sample.n;
        if (there && j < args.gram_width) {
            arch::st_16(reinterpret_cast<Float4*>(args.gram + (sample.row + i) * args.gram_width + j), weights);
        }
        if constexpr (kCounts) {
            // A rule that begins with all pairs has similarities as weights.
            const float run = run_of<kPairs>(weights, counts, i - j);
            if (there && j % kRun == 0 && j / kRun < args.run_depth) {
                args.runs[(sample.row + i) * args.run_depth + j / kRun] = run;
            }
        }
    }
};

// Stores a tile of a sample and its mirror image, by slabs (slab_row()). What is kept for the image is where the slices
// were.
template <class Store>
class MirroredSink {
  public:
    // `tile` is in shared memory.
    IDSEL_DEVICE MirroredSink(const Store& store, const TileIndex& tile, TileBuffers* buffers)
        : store_(store), tile_(tile), buffers_(buffers) {}

    IDSEL_DEVICE bool on_diagonal() const { return tile_.row == tile_.column; }

    IDSEL_DEVICE void norms(int line, float square) {
        const int j = line < kTile ? first_row() + line : first_column() + line - kTile;
        const bool there = j < store_.sample.n;
        buffers_->scale[line] = there ? scale_of(square) : 0.0f;
        if (Store::kKeepsNorms && there && on_diagonal() && line < kTile)
            store_.args.square[store_.sample.row + j] = square;
        if constexpr (Store::kCounts) buffers_->counts[line] = there && competes(store_.args, store_.sample, j, square);
    }

    // Four neighbours in a row: stores what a pick of one means to the other, and keeps it for the mirror image.
    IDSEL_DEVICE void quad(int slab, int in_slab, int column, const Float4& dots) {
        if constexpr (!Store::kKeepsNothing) {
            const int row = slab_row(slab, in_slab), i = first_row() + row, j = first_column() + column;
            Float4 weights;
            IDSEL_UNROLL
            for (int e = 0; e < 4; ++e) {
                const float scale = buffers_->scale[kTile + column + e];
                weights.v[e] = store_.weight(similarity(dots.v[e], buffers_->scale[row], scale));
            }
            store_.store(i, j, weights, buffers_->counts + kTile + column);
            if (!on_diagonal())
                arch::st_16(reinterpret_cast<Float4*>(kept(slab) + in_slab * kPartPitch + column), weights);
        }
    }

    // The same of the transposed.
    IDSEL_DEVICE void mirror(int slab, int thread) {
        if constexpr (!Store::kKeepsNothing) {
            if (on_diagonal()) return;
            IDSEL_UNROLL
            for (int at = 0; at < kQuads; ++at) {
                // Four lanes have 16 rows of a column.
                const int in_slab = thread % 4 * 4 + at * 16, column = thread / 4;
                Float4 weights;
                IDSEL_UNROLL
                for (int e = 0; e < 4; ++e) weights.v[e] = kept(slab)[(in_slab + e) * kPartPitch + column];
                const int row = slab_row(slab, in_slab);
                store_.store(first_column() + column, first_row() + row, weights, buffers_->counts + row);
            }
        }
    }

  private:
    IDSEL_DEVICE int first_row() const { return tile_.row * kTile; }
    IDSEL_DEVICE int first_column() const { return tile_.column * kTile; }
    IDSEL_DEVICE float* kept(int slab) const { return buffers_->parts[slab]; }

    Store store_;
    const TileIndex& tile_;
    TileBuffers* buffers_;
};
static_assert(kQuads * 16 == kSlabRows && kCtaThreads == kTile * 4);

template <class T>
IDSEL_DEVICE NeighbourRows<T> rows_of(const KernelArgs& args, const Sample& sample, const int& tile) {
    return {features_of<T>(args, sample), args.features_token_stride, &sample.n, &tile};
}

// One tile of a sample from the features on.
template <class T, class Store>
IDSEL_DEVICE void store_tile(const Store& store, const TileIndex& tile, const ClusterRole& cluster,
                             TileBuffers* buffers) {
    const auto rows = rows_of<T>(store.args, store.sample, tile.row);
    const auto columns = rows_of<T>(store.args, store.sample, tile.column);
    MirroredSink<Store> sink(store, tile, buffers);
    gram_tile<TileMath<T>>(store.args, rows, columns, cluster, buffers, sink);
    arch::cta_sync();
    const int thread = arch::thread_again();
    IDSEL_UNROLL_BY(1)
    for (int slab = 0; slab < 2; ++slab) {
        if (cluster.has_slab(slab)) sink.mirror(slab, thread);
    }
}

// The same from similarities that are given. What would be the mirror image is read too, since what counts of a pick is
// its row.
template <class Store>
IDSEL_DEVICE void store_given_tile(const Store& store, const TileIndex& tile, const ClusterRole& cluster,
                                   TileBuffers* buffers) {
    IDSEL_UNROLL_BY(1)
    for (int image = 0; image < (tile.row == tile.column ? 1 : 2); ++image) {
        const TileIndex index = image == 0 ? tile : TileIndex{tile.column, tile.row};
        const auto rows = rows_of<GivenSimilarity>(store.args, store.sample, index.row);
        const auto columns = rows_of<GivenSimilarity>(store.args, store.sample, index.column);
        MirroredSink<Store> sink(store, index, buffers);
        if (image > 0) arch::cta_sync();  // nobody reads the scales of the first any more
        given_tile(rows, columns, cluster, buffers, sink);
    }
}

}  // namespace idsel::cuda
