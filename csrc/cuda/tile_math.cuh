// What a warp multiplies: 32 rows by 64 columns, over a slice of D, with operands straight from global memory. A dot
// product does not mind the order of its terms, so a lane takes neighbouring elements, 8 or 16 bytes of them, as its
// operands of what would otherwise be scattered ones.
//
// clang-format off
// contract: tile math: cuda/tile_math.cuh
//   bool kNorms                     whether squared norms are wanted
//   Operands                        what a lane holds of one step of D
//   load(operands, from, offsets)   what lies so many bytes behind `from`; aligned to the size of a load
//   multiply(operands)              adds their products
//   multiply_checked(rows, columns, k, dim, thread, staging)  the same of the elements from k on of any rows, zeros beyond dim
//   store_dots(part, slab, thread)  the sums of the rows 16 * slab up to 16 * slab + 15, to (16, 64) numbers
//   store_norms(rows, columns, thread)  the squared norms of all 32 rows, and of 32 of the columns, where there are any
// clang-format on
#pragma once

#include <type_traits>

#include "cuda/arch.cuh"
#include "cuda/kernel_args.h"

namespace idsel::cuda {

// A warp's rows are half of a tile's: those of its warp % 2. Columns begin there too, so that the norms of columns are
// shared out as well.
IDSEL_DEVICE int warp_half(int thread) { return thread / 32 % 2; }
IDSEL_DEVICE int warp_slice(int thread) { return thread / 64; }
IDSEL_DEVICE int rotated(int column, int thread) { return (column + warp_half(thread) * 32) % kTile; }

// Rows of a tile in shared memory: their padding lets few lanes use the same bank.
constexpr int kPartPitch = kTile + 4;

// The first element of a row; in bytes from the base, which fits 32 bits where rows are wide.
template <class Rows>
IDSEL_DEVICE auto row_of(const Rows& rows, int row) {
    return rows.base + rows.token(row) * rows.stride;
}
template <class Rows>
IDSEL_DEVICE uint32_t offset_of_row(const Rows& rows, int row, int element) {
    const auto elements = static_cast<uint32_t>(rows.token(row)) * static_cast<uint32_t>(rows.stride);
    return (elements + static_cast<uint32_t>(element)) * static_cast<uint32_t>(sizeof *rows.base);
}

// Of a lane's rows and columns, in bytes.
struct LaneOffsets {
    uint32_t rows[8];
    uint32_t columns[8];
};

// Two products of 16 rows, with the first 8 of them and with the others. Where 8 rows meet themselves, the diagonal has
// their squared norms; all else is of no use. The two may not share their sums, with zeros in place of the rows that
// are not wanted: zero times infinity is NaN.
template <class T>
IDSEL_DEVICE void add_norms(float (&halves)[2][4], const Word4& top, const Word4& bottom, int half) {
    const auto add = [&](float (&sums)[4], const Word4& by) {
        arch::mma_m16n8k16(T{}, sums, top.v[half], bottom.v[half], top.v[half + 1], bottom.v[half + 1], by.v[half],
                           by.v[half + 1]);
    };
    add(halves[0], top);
    add(halves[1], bottom);
}

// What of a tile is wanted: the squared norms of its rows alone need no columns.
enum class Want { kDotsAndNorms, kDots, kNorms };

// Two elements of 16 bits, of which `left` are there.
template <class T>
IDSEL_DEVICE uint32_t checked_pair(const T* from, int left) {
    const uint32_t low = left > 0 ? arch::ld_global_nc_2(from) : 0u;
    const uint32_t high = left > 1 ? arch::ld_global_nc_2(from + 1) : 0u;
    return low | high << 16;
}

// float16 and bfloat16 on tensor cores. A lane's 8 elements are those of k-fragments 0 and 1 of two products.
template <class T, Want kWant = Want::kDotsAndNorms>
class TensorCoreMath {
  public:
    using Element = T;
    static constexpr bool kNorms = kWant != Want::kDots;
    static constexpr int kRows = 4, kColumns = kWant != Want::kNorms ? 8 : 0;  // of which a lane loads 16 bytes each
    static constexpr int kStep = kKTile;

    struct Operands {
        Word4 rows[kRows], columns[8];
    };

    // Rows and columns whose elements this lane loads, and the first of these elements.
    IDSEL_DEVICE static int row(int at, int thread) { return warp_half(thread) * 32 + at * 8 + thread % 32 / 4; }
    IDSEL_DEVICE static int column(int at, int thread) { return rotated(at * 8, thread) + thread % 32 / 4; }
    IDSEL_DEVICE static int first_element(int thread) { return thread % 4 * 8; }

    IDSEL_DEVICE static void load(Operands& to, const unsigned char* from, const LaneOffsets& offsets) {
        IDSEL_UNROLL
        for (int at = 0; at < kRows; ++at) to.rows[at] = arch::ld_global_nc_16(from + offsets.rows[at]);
        IDSEL_UNROLL
        for (int at = 0; at < kColumns; ++at) to.columns[at] = arch::ld_global_nc_16(from + offsets.columns[at]);
    }
    IDSEL_DEVICE void multiply(const Operands& by) {
        IDSEL_UNROLL
        for (int half = 0; half < 4; half += 2) {
            IDSEL_UNROLL
            for (int m = 0; m < 2; ++m) {
                const Word4 &top = by.rows[2 * m], &bottom = by.rows[2 * m + 1];
                IDSEL_UNROLL
                for (int n = 0; n < kColumns; ++n) {
                    arch::mma_m16n8k16(T{}, dots_[m][n], top.v[half], bottom.v[half], top.v[half + 1],
                                       bottom.v[half + 1], by.columns[n].v[half], by.columns[n].v[half + 1]);
                }
                if constexpr (kNorms) add_norms<T>(row_norms_[m], top, bottom, half);
                if constexpr (kWant == Want::kDotsAndNorms) {
                    add_norms<T>(column_norms_[m], by.columns[2 * m], by.columns[2 * m + 1], half);
                }
            }
        }
    }

    // By way of shared memory, four operands at a time: in registers all elements would be on their way at once.
    template <class Rows, class Columns>
    IDSEL_DEVICE void multiply_checked(const Rows& rows, const Columns& columns, int k, int dim, int thread,
                                       Word4* staging) {
        const int first = k + first_element(thread), left = dim - first;
        Operands by;
        const auto stage = [&](auto&& row) {
            IDSEL_UNROLL_BY(1)
            for (int at = 0; at < 4; ++at) staging[at * kCtaThreads + thread] = checked(row(at) + first, left);
        };
        stage([&](int at) { return row_of(rows, row(at, thread)); });
        IDSEL_UNROLL
        for (int at = 0; at < 4; ++at) by.rows[at] = staging[at * kCtaThreads + thread];
        IDSEL_UNROLL
        for (int half = 0; half < kColumns; half += 4) {
            stage([&](int at) { return row_of(columns, column(half + at, thread)); });
            IDSEL_UNROLL
            for (int at = 0; at < 4; ++at) by.columns[half + at] = staging[at * kCtaThreads + thread];
        }
        multiply(by);
    }

    IDSEL_DEVICE void store_dots(float* part, int slab, int thread) const {
        const int lane = thread % 32;
        IDSEL_UNROLL
        for (int m = 0; m < 2; ++m) {
            if (m != slab) continue;
            IDSEL_UNROLL
            for (int n = 0; n < kColumns; ++n) {
                IDSEL_UNROLL
                for (int u = 0; u < 2; ++u) {
                    const int at = (lane / 4 + u * 8) * kPartPitch + rotated(n * 8, thread) + lane % 4 * 2;
                    arch::st_8(reinterpret_cast<Float2*>(part + at), {dots_[m][n][2 * u], dots_[m][n][2 * u + 1]});
                }
            }
        }
    }
    IDSEL_DEVICE void store_norms(float* rows, float* columns, int thread) const {
        const int lane = thread % 32, of_group = lane / 4;
        if (lane % 4 != of_group / 2) return;  // the lanes on the diagonal
        IDSEL_UNROLL
        for (int m = 0; m < 2; ++m) {
            IDSEL_UNROLL
            for (int u = 0; u < 2; ++u) {
                const int at = m * 16 + u * 8 + of_group;
                rows[at] = of_group % 2 != 0 ? row_norms_[m][u][2 * u + 1] : row_norms_[m][u][2 * u];
                if (kColumns > 0)
                    columns[at] = of_group % 2 != 0 ? column_norms_[m][u][2 * u + 1] : column_norms_[m][u][2 * u];
            }
        }
    }

  private:
    IDSEL_DEVICE static Word4 checked(const T* from, int left) {
        Word4 value;
        IDSEL_UNROLL
        for (int pair = 0; pair < 4; ++pair) value.v[pair] = checked_pair(from + 2 * pair, left - 2 * pair);
        return value;
    }

    float dots_[2][8][4] = {};
    float row_norms_[2][2][4] = {};
    float column_norms_[2][2][4] = {};
};

// One of the elements in 8 bytes, as float32.
IDSEL_DEVICE float widened(float, const Float2& elements, int at) { return elements.v[at]; }
IDSEL_DEVICE float widened(BFloat16, const Float2& elements, int at) {
    const uint32_t pair = arch::float_as_uint(elements.v[at / 2]);
    return arch::uint_as_float(at % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
}

// In IEEE float32 arithmetic: float32, and bfloat16 where tensor cores do not take it. Lanes are laid out 4 x 8, each
// with every fourth row and every eighth column.
template <class T, Want kWant = Want::kDotsAndNorms>
class FmaMath {
  public:
    using Element = T;
    static constexpr bool kNorms = kWant != Want::kDots;
    static constexpr int kRows = 8, kColumns = kWant != Want::kNorms ? 8 : 0;
    static constexpr int kStep = static_cast<int>(sizeof(Float2) / sizeof(T));

    struct Operands {
        Float2 rows[kRows], columns[8];
    };

    IDSEL_DEVICE static int row(int at, int thread) { return warp_half(thread) * 32 + at * 4 + thread % 32 / 8; }
    IDSEL_DEVICE static int column(int at, int thread) { return rotated(at * 8, thread) + thread % 8; }
    IDSEL_DEVICE static int first_element(int /*thread*/) { return 0; }

    IDSEL_DEVICE static void load(Operands& to, const unsigned char* from, const LaneOffsets& offsets) {
        IDSEL_UNROLL
        for (int at = 0; at < kRows; ++at) to.rows[at] = arch::ld_global_nc_8(from + offsets.rows[at]);
        IDSEL_UNROLL
        for (int at = 0; at < kColumns; ++at) to.columns[at] = arch::ld_global_nc_8(from + offsets.columns[at]);
    }
    template <class Rows, class Columns>
    IDSEL_DEVICE void multiply_checked(const Rows& rows, const Columns& columns, int k, int dim, int thread,
                                       Word4* /*staging*/) {
        Operands by;
        IDSEL_UNROLL
        for (int at = 0; at < kRows; ++at) by.rows[at] = checked(row_of(rows, row(at, thread)) + k, dim - k);
        IDSEL_UNROLL
        for (int at = 0; at < kColumns; ++at) {
            by.columns[at] = checked(row_of(columns, column(at, thread)) + k, dim - k);
        }
        multiply(by);
    }

    IDSEL_DEVICE void multiply(const Operands& by) {
        IDSEL_UNROLL
        for (int element = 0; element < kStep; ++element) {
            IDSEL_UNROLL
            for (int m = 0; m < kRows; ++m) {
                const float x = widened(T{}, by.rows[m], element);
                if constexpr (kNorms) row_norms_[m] = fmaf(x, x, row_norms_[m]);
                IDSEL_UNROLL
                for (int n = 0; n < kColumns; ++n) {
                    dots_[m][n] = fmaf(x, widened(T{}, by.columns[n], element), dots_[m][n]);
                }
            }
            IDSEL_UNROLL
            for (int n = 0; n < kColumns / 2; ++n) {
                const float y = widened(T{}, by.columns[n], element);
                if constexpr (kNorms) column_norms_[n] = fmaf(y, y, column_norms_[n]);
            }
        }
    }

    IDSEL_DEVICE void store_dots(float* part, int slab, int thread) const {
        const int lane = thread % 32;
        IDSEL_UNROLL
        for (int m = 0; m < kRows; ++m) {
            if (m / 4 != slab) continue;
            IDSEL_UNROLL
            for (int n = 0; n < kColumns; ++n) {
                part[(m % 4 * 4 + lane / 8) * kPartPitch + rotated(n * 8, thread) + lane % 8] = dots_[m][n];
            }
        }
    }
    IDSEL_DEVICE void store_norms(float* rows, float* columns, int thread) const {
        const int lane = thread % 32;
        IDSEL_UNROLL
        for (int m = 0; m < kRows; ++m) {
            if (lane % 8 == 0) rows[m * 4 + lane / 8] = row_norms_[m];
        }
        IDSEL_UNROLL
        for (int n = 0; n < kColumns / 2; ++n) {
            if (lane < 8) columns[n * 8 + lane] = column_norms_[n];
        }
    }

  private:
    IDSEL_DEVICE static Float2 checked(const float* from, int left) { return {from[0], left > 1 ? from[1] : 0.0f}; }
    IDSEL_DEVICE static Float2 checked(const BFloat16* from, int left) {
        const uint32_t low = checked_pair(from, left), high = checked_pair(from + 2, left - 2);
        return {arch::uint_as_float(low), arch::uint_as_float(high)};
    }

    float dots_[kRows][8] = {};
    float row_norms_[kRows] = {};
    float column_norms_[4] = {};
};

// How elements are multiplied on this architecture.
template <class T, Want kWant = Want::kDotsAndNorms>
using TileMath = std::conditional_t<arch::kTensorCoresTake<T>, TensorCoreMath<T, kWant>, FmaMath<T, kWant>>;

// The first k-tile of a slice, of those of all groups: a share of them, without a division.
IDSEL_DEVICE int first_k_tile(int k_tiles, int slice, int groups) {
    static_assert(kSlices == 4 && kMaxGroups == 2);
    return static_cast<int>(int64_t{k_tiles} * slice >> (groups + 1));
}

// The elements of a slice.
struct SliceRange {
    int begin, end;
};
IDSEL_DEVICE SliceRange slice_range(int dim, int slice, int groups) {
    const int k_tiles = k_tiles_of(dim), end = first_k_tile(k_tiles, slice + 1, groups) * kKTile;
    return {first_k_tile(k_tiles, slice, groups) * kKTile, end < dim ? end : dim};
}

// Multiplies over a slice. The operands of a step are requested while those of the step before are multiplied.
// `staging` is in shared memory, (4, kCtaThreads).
template <class Math, class Rows, class Columns>
IDSEL_DEVICE void mainloop(Math& math, const Rows& rows, const Columns& columns, SliceRange range, int dim, bool wide,
                           Word4* staging) {
    constexpr int kStep = Math::kStep, kStepBytes = kStep * static_cast<int>(sizeof(typename Math::Element));
    const int unchecked = wide ? (range.end - range.begin) / kStep : 0;
    if (unchecked > 0) {
        // Without the zeros `odd`, which some path may leave undefined, would take registers wherever this is called.
        typename Math::Operands even, odd = {};
        const int thread = arch::thread_again();
        LaneOffsets offsets;
        IDSEL_UNROLL
        for (int at = 0; at < Math::kRows; ++at) {
            offsets.rows[at] = offset_of_row(rows, Math::row(at, thread), Math::first_element(thread));
        }
        IDSEL_UNROLL
        for (int at = 0; at < Math::kColumns; ++at) {
            offsets.columns[at] = offset_of_row(columns, Math::column(at, thread), Math::first_element(thread));
        }
        const auto* from = reinterpret_cast<const unsigned char*>(rows.base + range.begin);
        Math::load(even, from, offsets);
        IDSEL_UNROLL_BY(1)
        for (int left = unchecked; left > 0; left -= 2, from += 2 * kStepBytes) {
            if (left > 1) Math::load(odd, from + kStepBytes, offsets);
            math.multiply(even);
            if (left > 2) Math::load(even, from + 2 * kStepBytes, offsets);
            if (left > 1) math.multiply(odd);
        }
    }
    IDSEL_UNROLL_BY(1)
    for (int k = range.begin + unchecked * kStep; k < range.end; k += kStep) {
        math.multiply_checked(rows, columns, k, dim, arch::thread_again(), staging);
    }
}

}  // namespace idsel::cuda
