// The kernels, written once over a vector type V of 16 float32 lanes. Each instruction set includes this in its own
// namespace (IDSEL_ISA_NAMESPACE) and uses no library templates: code compiled for one instruction set must never be
// merged by the linker with the same function compiled for another.
#include <stdint.h>
#include <string.h>

#include "cpu/kernels.h"

namespace idsel::cpu::IDSEL_ISA_NAMESPACE {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// The last, incomplete vector: absent elements are zeros, which add nothing.
template <class V, class T>
inline V load_part(const T* from, int64_t count) {
    T part[kLanes] = {};
    memcpy(part, from, static_cast<size_t>(count) * sizeof(T));
    return V::load(part);
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
    return {isa,
            name,
            {dot<V, float>, dot<V, Half>, dot<V, BFloat16>},
            {dots<V, float>, dots<V, Half>, dots<V, BFloat16>},
            {to_lanes<V, float>, to_lanes<V, Half>, to_lanes<V, BFloat16>},
            gram_tile<V>,
            gain<V>};
}

}  // namespace idsel::cpu::IDSEL_ISA_NAMESPACE
