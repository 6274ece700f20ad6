// The kernels, written once over a vector type V of 16 float32 lanes. Each instruction set includes this in its own
// namespace (IDSEL_ISA_NAMESPACE) and uses no library templates: code compiled for one instruction set must never be
// merged by the linker with the same function compiled for another.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu/kernels.h"
#include "rules/tokens.h"

namespace idsel::cpu::IDSEL_ISA_NAMESPACE {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// The last, incomplete vector: absent elements are zeros, which add nothing.
template <class V, class T>
inline V copy_part(const T* from, int64_t count) {
    T part[kLanes] = {};
    memcpy(part, from, static_cast<size_t>(count) * sizeof(T));
    return V::load(part);
}
template <class V, class T>
inline V load_part(const T* from, int64_t count) {
    return copy_part<V>(from, count);
}
template <class V>
inline V load_part(const float* from, int64_t count) {
    return V::load_part(from, count);
}

// kStreams whole blocks side by side, so that their sums do not wait for one another.
template <class V, class T, int kStreams>
inline float add_blocks(const T* a, const T* b, float total) {
    V sums[kStreams];
    for (int s = 0; s < kStreams; ++s) sums[s] = V::zero();
    for (int64_t d = 0; d < kBlock; d += kLanes) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
            sums[s] = V::multiply_add(V::load(a + s * kBlock + d), V::load(b + s * kBlock + d), sums[s]);
        }
    }
    for (int s = 0; s < kStreams; ++s) total += sums[s].sum();
    return total;
}

template <class V, class T>
float dot(const void* a_data, const void* b_data, int64_t dim) {
    const T* a = static_cast<const T*>(a_data);
    const T* b = static_cast<const T*>(b_data);
    float total = 0.0f;
    for (; dim >= 4 * kBlock; dim -= 4 * kBlock, a += 4 * kBlock, b += 4 * kBlock) {
        total = add_blocks<V, T, 4>(a, b, total);
    }
    for (; dim >= 2 * kBlock; dim -= 2 * kBlock, a += 2 * kBlock, b += 2 * kBlock) {
        total = add_blocks<V, T, 2>(a, b, total);
    }
    for (; dim >= kBlock; dim -= kBlock, a += kBlock, b += kBlock) total = add_blocks<V, T, 1>(a, b, total);
    if (dim == 0) return total;
    V sums = V::zero();
    for (; dim >= kLanes; dim -= kLanes, a += kLanes, b += kLanes) {
        sums = V::multiply_add(V::load(a), V::load(b), sums);
    }
    if (dim > 0) sums = V::multiply_add(load_part<V>(a, dim), load_part<V>(b, dim), sums);
    return total + sums.sum();
}

// out[i] += the dot product of kBlocks whole blocks of a and b[i]: all the sums side by side.
template <class V, class T, int kCount, int kBlocks>
inline void add_blocks_of(const T* a, const T* const* b, float* out) {
    V sums[kBlocks][kCount];
    for (int s = 0; s < kBlocks; ++s) {
        for (int i = 0; i < kCount; ++i) sums[s][i] = V::zero();
    }
    for (int64_t d = 0; d < kBlock; d += kLanes) {
#pragma GCC unroll 8
        for (int s = 0; s < kBlocks; ++s) {
            const V part = V::load(a + s * kBlock + d);
#pragma GCC unroll 8
            for (int i = 0; i < kCount; ++i) {
                sums[s][i] = V::multiply_add(part, V::load(b[i] + s * kBlock + d), sums[s][i]);
            }
        }
    }
    for (int s = 0; s < kBlocks; ++s) {
        for (int i = 0; i < kCount; ++i) out[i] += sums[s][i].sum();
    }
}

// The same of what is left, less than a block.
template <class V, class T, int kCount>
inline void add_rest_of(const T* a, const T* const* b, int64_t length, float* out) {
    V sums[kCount];
    for (int i = 0; i < kCount; ++i) sums[i] = V::zero();
    int64_t d = 0;
    for (; d + kLanes <= length; d += kLanes) {
        const V part = V::load(a + d);
#pragma GCC unroll 8
        for (int i = 0; i < kCount; ++i) sums[i] = V::multiply_add(part, V::load(b[i] + d), sums[i]);
    }
    if (d < length) {
        const V part = load_part<V>(a + d, length - d);
        for (int i = 0; i < kCount; ++i) {
            sums[i] = V::multiply_add(part, load_part<V>(b[i] + d, length - d), sums[i]);
        }
    }
    for (int i = 0; i < kCount; ++i) out[i] += sums[i].sum();
}

// kCount sums for each row of a, the last of them its square if there are `squares`. What is read of b stays in the
// first-level cache while the rows of a pass by.
template <class V, class T, int kCount>
void dots_of(const void* const* a, int64_t rows_a, const void* const* b, bool squares, int64_t dim, float* out) {
    constexpr int kBlocks = kCount > 2 ? 1 : 4 / kCount;  // as many sums as hide the time that one takes
    const T* others[kCount];
    for (int i = 0; i < kCount; ++i) others[i] = static_cast<const T*>(squares && i == kCount - 1 ? a[0] : b[i]);
    const auto step = [&](int64_t at, const auto& add) {
        for (int64_t row = 0; row < rows_a; ++row) {
            const T* of_row = static_cast<const T*>(a[row]) + at;
            const T* of_others[kCount];
            for (int i = 0; i < kCount; ++i) of_others[i] = others[i] + at;
            if (squares) of_others[kCount - 1] = of_row;
            add(of_row, of_others, out + row * kDotsStride);
        }
    };
    int64_t at = 0;
    for (; at + kBlocks * kBlock <= dim; at += kBlocks * kBlock) {
        step(at, [](const T* row, const T* const* from, float* to) {
            add_blocks_of<V, T, kCount, kBlocks>(row, from, to);
        });
    }
    for (; at < dim; at += kBlock) {
        const int64_t length = dim - at < kBlock ? dim - at : kBlock;
        step(at, [length](const T* row, const T* const* from, float* to) {
            add_rest_of<V, T, kCount>(row, from, length, to);
        });
    }
}

template <class V, class T>
void dots_by_count(const void* const* a, int64_t rows_a, const void* const* b, int64_t rows_b, bool squares,
                   int64_t dim, float* out) {
    switch (rows_b + squares) {
        case 1:
            return dots_of<V, T, 1>(a, rows_a, b, squares, dim, out);
        case 2:
            return dots_of<V, T, 2>(a, rows_a, b, squares, dim, out);
        case 3:
            return dots_of<V, T, 3>(a, rows_a, b, squares, dim, out);
        case 4:
            return dots_of<V, T, 4>(a, rows_a, b, squares, dim, out);
        default:
            return dots_of<V, T, 5>(a, rows_a, b, squares, dim, out);
    }
}

template <class V, class T>
void dots(const void* const* a, int64_t rows_a, const void* const* b, int64_t rows_b, bool squares, int64_t dim,
          float* out) {
    for (int64_t i = 0; i < rows_a * kDotsStride; ++i) out[i] = 0.0f;
    if (rows_b > 1 || squares) return dots_by_count<V, T>(a, rows_a, b, rows_b, squares, dim, out);
    // One row of b is better read once than for each of a.
    float transposed[kDotsStride] = {};
    dots_by_count<V, T>(b, 1, a, rows_a, false, dim, transposed);
    for (int64_t i = 0; i < rows_a; ++i) out[i * kDotsStride] = transposed[i];
}

template <class V, class T>
void to_lanes(const void* from_data, int64_t count, float* to) {
    const T* from = static_cast<const T*>(from_data);
    for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) V::load(from).store(to);
    if (count > 0) load_part<V>(from, count).store(to);
}

// A register tile: kTileA rows of a against kTileB rows of b.
template <class V>
inline void register_tile(const float* a, const float* b, int64_t stride, int64_t length, float* c, int64_t c_stride) {
    V sums[V::kTileA][V::kTileB];
#pragma GCC unroll 16
    for (int i = 0; i < V::kTileA; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < V::kTileB; ++j) sums[i][j] = V::zero();
    }
    for (int64_t d = 0; d < length; d += kLanes) V::template tile_step<V>(a + d, b + d, stride, sums);
#pragma GCC unroll 16
    for (int i = 0; i < V::kTileA; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < V::kTileB; ++j) c[i * c_stride + j] += sums[i][j].sum();
    }
}

template <class V>
void gram_tile(const float* a, const float* b, int64_t stride, int64_t length, int64_t rows_a, int64_t rows_b, float* c,
               int64_t c_stride) {
    // A panel of b stays in the first-level cache while the rows of a pass by.
    constexpr int64_t kPanel = kRowMultiple;
    for (int64_t panel = 0; panel < rows_b; panel += kPanel) {
        for (int64_t i = 0; i < rows_a; i += V::kTileA) {
            for (int64_t j = panel; j < panel + kPanel; j += V::kTileB) {
                register_tile<V>(a + i * stride, b + j * stride, stride, length, c + i * c_stride + j, c_stride);
            }
        }
    }
}

// out[i] = <row i, with>, or <row i, row i>, for V::kRows rows one after the other.
template <class V, class T, bool kSquares>
inline void few_rows(const char* rows, int64_t row_bytes, const T* with, int64_t dim, float* out) {
    const auto row = [=](int r, int64_t d) { return reinterpret_cast<const T*>(rows + r * row_bytes) + d; };
    for (int64_t begin = 0; begin < dim || begin == 0; begin += kBlock) {
        const int64_t length = dim - begin < kBlock ? dim - begin : kBlock;
        V sums[V::kRows];
#pragma GCC unroll 16
        for (int r = 0; r < V::kRows; ++r) sums[r] = V::zero();
        int64_t d = begin;
        for (; d + kLanes <= begin + length; d += kLanes) {
            const V part = V::load(with + d);
#pragma GCC unroll 16
            for (int r = 0; r < V::kRows; ++r) {
                const V of_row = V::load(row(r, d));
                sums[r] = V::multiply_add(of_row, kSquares ? of_row : part, sums[r]);
            }
        }
        if (const int64_t left = begin + length - d; left > 0) {
            const V part = load_part<V>(with + d, left);
#pragma GCC unroll 16
            for (int r = 0; r < V::kRows; ++r) {
                const V of_row = load_part<V>(row(r, d), left);
                sums[r] = V::multiply_add(of_row, kSquares ? of_row : part, sums[r]);
            }
        }
        float of_block[V::kRows];
        V::sums(sums, of_block);
#pragma GCC unroll 16
        for (int r = 0; r < V::kRows; ++r) out[r] = begin == 0 ? of_block[r] : out[r] + of_block[r];
    }
}

template <class V, class T, bool kSquares>
inline void rows_of(const void* rows_data, int64_t row_bytes, int64_t count, const void* with_data, int64_t dim,
                    float* out) {
    const char* rows = static_cast<const char*>(rows_data);
    const T* with = static_cast<const T*>(with_data);
    for (; count >= V::kRows; count -= V::kRows, rows += V::kRows * row_bytes, out += V::kRows) {
        few_rows<V, T, kSquares>(rows, row_bytes, with, dim, out);
    }
    for (; count > 0; --count, rows += row_bytes, ++out) *out = dot<V, T>(rows, kSquares ? rows : with_data, dim);
}

template <class V, class T>
void row(const void* rows, int64_t row_bytes, int64_t count, const void* with, int64_t dim, float* out) {
    rows_of<V, T, false>(rows, row_bytes, count, with, dim, out);
}

template <class V, class T>
void squares(const void* rows, int64_t row_bytes, int64_t count, int64_t dim, float* out) {
    rows_of<V, T, true>(rows, row_bytes, count, rows, dim, out);
}

// The lane of each column: an order in which adding in halves, as far as there are columns, adds what it does of lanes.
template <class T>
constexpr int64_t lane_of_column(int64_t column) {
    return column;
}
template <>
constexpr int64_t lane_of_column<BFloat16>(int64_t column) {
    return column < kFewDims / 2 ? column : column + (kLanes - kFewDims) / 2;
}

template <class V, class T>
void to_columns(const void* rows_data, int64_t row_bytes, int64_t count, int64_t dim, float* out) {
    const char* rows = static_cast<const char*>(rows_data);
    for (int64_t i = 0; i < count; ++i, rows += row_bytes) {
        float lanes[kLanes];
        load_part<V>(reinterpret_cast<const T*>(rows), dim).store(lanes);
        for (int64_t p = 0; p < kFewDims; ++p) out[p * kColumnRows + i] = lanes[lane_of_column<T>(p)];
    }
}

inline void row_of_columns(const float* rows, const float* with, int64_t columns, float* out) {
    float sums[kFewDims / 2][kColumnRows];
    int64_t half = 1;
    while (2 * half < columns) half *= 2;
    for (int64_t p = 0; p < half; ++p) {
        const float *a = rows + p * kColumnRows, *b = a + half * kColumnRows;
        const float of_a = with[p * kColumnRows], of_b = with[(p + half) * kColumnRows];
        if (p + half < columns) {
            for (int64_t i = 0; i < kColumnRows; ++i) sums[p][i] = a[i] * of_a + b[i] * of_b;
        } else {
            for (int64_t i = 0; i < kColumnRows; ++i) sums[p][i] = a[i] * of_a;
        }
    }
    for (half /= 2; half > 0; half /= 2) {
        for (int64_t p = 0; p < half; ++p) {
            for (int64_t i = 0; i < kColumnRows; ++i) sums[p][i] += sums[p + half][i];
        }
    }
    for (int64_t i = 0; i < kColumnRows; ++i) out[i] = sums[0][i] + 0.0f;  // zero is positive
}

inline void cosines(const double* scales, double scale, int64_t count, float* c) {
    for (int64_t i = 0; i < count; ++i) c[i] = cosine(c[i], scale, scales[i]);
}

// None of them is NaN.
template <class V>
float largest(const float* numbers, int64_t count) {
    if (count < kLanes) {
        float best = numbers[0];
        for (int64_t i = 1; i < count; ++i) best = numbers[i] > best ? numbers[i] : best;
        return best;
    }
    V best = V::load(numbers + count - kLanes);  // which the others may overlap
    for (; count > kLanes; count -= kLanes, numbers += kLanes) best = V::larger(V::load(numbers), best);
    return best.largest();
}

template <class V>
float largest_sum(const float* a, const float* b, int64_t count) {
    constexpr int kStreams = 4;
    float lanes[kLanes], ones[kLanes];
    std::fill(lanes, lanes + kLanes, -INFINITY);
    std::fill(ones, ones + kLanes, 1.0f);
    for (; count % kLanes > 0; --count) lanes[0] = std::max(lanes[0], a[count - 1] + b[count - 1]);
    const V one = V::load(ones);
    V best[kStreams];
    for (V& of_stream : best) of_stream = V::load(lanes);
    const auto add = [&](int streams) {
#pragma GCC unroll 4
        for (int s = 0; s < streams; ++s, a += kLanes, b += kLanes, count -= kLanes) {
            best[s] = V::larger(V::multiply_add(V::load(a), one, V::load(b)), best[s]);
        }
    };
    while (count >= kStreams * kLanes) add(kStreams);
    while (count > 0) add(1);
    return V::larger(V::larger(best[0], best[1]), V::larger(best[2], best[3])).largest();
}

template <class Rule>
void weigh(const void* of_rule, int64_t count, float* c) {
    const Rule rule = *static_cast<const Rule*>(of_rule);
    for (int64_t i = 0; i < count; ++i) c[i] = rule.weight(c[i]);
}

template <class V, class Rule>
float absorb(const void* of_rule, const RowStep& of_step, float priority) {
    const Rule rule = *static_cast<const Rule*>(of_rule);
    const RowStep step = of_step;  // a copy, which what is written below cannot change
    float* __restrict states = step.state;
    float* __restrict keys = step.key;
    for (int64_t j = 0; j < step.count; ++j) {
        const float before = states[j], absorbed = rule.absorb(before, rule.weight(step.c[j]), priority);
        const float state = step.seen[j] > step.pick ? before : absorbed;
        const float found = rule.priority(state, step.importance[j]);
        states[j] = state;
        keys[j] = found > step.limit[j] ? found : -INFINITY;
    }
    return largest<V>(keys, step.count);
}

template <class V, class Rule>
float absorb_history(const void* of_rule, const HistoryStep& of_step, float priority) {
    const Rule rule = *static_cast<const Rule*>(of_rule);
    const HistoryStep step = of_step;
    float* __restrict states = step.state;
    float* __restrict keys = step.key;
    float* __restrict components = step.component;
    for (int64_t j = 0; j < step.count; ++j) {
        components[j] = rule.component(step.pick_quality, step.c[j], step.importance[j], step.overlap[j], priority);
    }
    for (int64_t j = 0; j < step.count; ++j) {
        const float before = states[j], absorbed = rule.absorb(before, components[j]);
        const float state = step.seen[j] > step.pick ? before : absorbed;
        states[j] = state;
        keys[j] = state > step.limit[j] ? state : -INFINITY;
    }
    return largest<V>(keys, step.count);
}

template <class V, class Rule>
constexpr void enter(Kernels& table) {
    if constexpr (Rule::kState == State::kToken && Rule::kNeedsSimilarities) {
        table.absorb[Rule::kId] = absorb<V, Rule>;
        if constexpr (has_weights<Rule>()) table.weigh[Rule::kId] = weigh<Rule>;
    }
}

template <class V, class... R>
constexpr void enter_all(Kernels& table, RuleList<R...>) {
    (enter<V, R>(table), ...);
}

template <class V>
float gain(const float* row, const float* cover, int64_t n) {
    V sums = V::zero();
    for (; n >= kLanes; n -= kLanes, row += kLanes, cover += kLanes) {
        sums = V::add_excess(V::load(row), V::load(cover), sums);
    }
    if (n > 0) sums = V::add_excess(load_part<V>(row, n), load_part<V>(cover, n), sums);
    return sums.sum();
}

template <class V>
constexpr Kernels table(idsel_isa isa, const char* name) {
    Kernels table{isa,
                  name,
                  {dot<V, float>, dot<V, Half>, dot<V, BFloat16>},
                  {dots<V, float>, dots<V, Half>, dots<V, BFloat16>},
                  {to_lanes<V, float>, to_lanes<V, Half>, to_lanes<V, BFloat16>},
                  gram_tile<V>,
                  {row<V, float>, row<V, Half>, row<V, BFloat16>},
                  {squares<V, float>, squares<V, Half>, squares<V, BFloat16>},
                  {to_columns<V, float>, to_columns<V, Half>, to_columns<V, BFloat16>},
                  row_of_columns,
                  cosines,
                  {},
                  {},
                  absorb_history<V, DPP>,
                  largest<V>,
                  largest_sum<V>,
                  gain<V>};
    enter_all<V>(table, AllRules{});
    return table;
}

}  // namespace idsel::cpu::IDSEL_ISA_NAMESPACE
