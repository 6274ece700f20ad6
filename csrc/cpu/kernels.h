// Dot products and what else is worth SIMD, one table of functions per instruction set.
#pragma once

#include <cstdint>

#include "idsel/select.h"
#include "rules/rules.h"

namespace idsel::cpu {

// The dot product that every path of the engine uses is defined to the last bit, so that a similarity does not
// depend on who computed it: the lazy path, a row, a tile of the Gram, whichever thread. Blocks of kBlock elements;
// in a block 16 running sums by fused multiply-add, lane l taking the elements l, l + 16, ... (bfloat16: of each 16 the
// even ones go to the lanes 0 to 7, the odd ones to 8 to 15, because a shift and a mask part them); the lanes added in
// halves (l and l + 8, then 4, 2, 1); the blocks added in order. All in float32, whatever the dtype of the features.
constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 512;

// Rows handed to `gram_tile` come in multiples of this, so that every instruction set's register tile divides it.
constexpr int64_t kRowMultiple = 12;

// Rows that `dots` takes on either side, and what it writes for one of a: a number per row of b and the square.
constexpr int64_t kDotsRows = 4;
constexpr int64_t kDotsStride = kDotsRows + 1;

// Below this a row is better read by columns, of so many rows at a time.
constexpr int64_t kFewDims = 8;
constexpr int64_t kColumnRows = 64;

// One pick, for a few tokens that follow one another: what they know of it, and what becomes of them.
struct RowStep {
    int64_t count;
    int32_t pick;         // how many picks came before it
    const int32_t* seen;  // (count,) how many picks each has absorbed; one that has absorbed this one stays as it is
    const float* c;       // similarities to it
    const float* importance;  // or what the rule makes of it
    const float* limit;       // a priority at or below it is none
    float* state;
    float* key;  // out: the priority, -inf for none
};

// Of a rule that keeps the histories of tokens.
struct HistoryStep : RowStep {
    const float* overlap;
    float pick_quality;
    float* component;  // out
};

struct Kernels {
    idsel_isa isa;
    const char* name;
    // <a, b> over dim elements; by dtype.
    float (*dot[3])(const void* a, const void* b, int64_t dim);
    // out[i * kDotsStride + j] = <a[i], b[j]>, and with `squares` the next of each i is <a[i], a[i]>; at least one and
    // at most kDotsRows rows on either side. Everything is read once; by dtype.
    void (*dots[3])(const void* const* a, int64_t rows_a, const void* const* b, int64_t rows_b, bool squares,
                    int64_t dim, float* out);
    // `count` elements as float32 in the order of the lanes, filled up to whole vectors with zeros; by dtype.
    void (*to_lanes[3])(const void* from, int64_t count, float* to);
    // c[i * c_stride + j] += the block dot product of row i of a and row j of b. Rows are `stride` apart and `length`
    // long, a multiple of kLanes of at most kBlock; `rows_a` and `rows_b` are multiples of kRowMultiple.
    void (*gram_tile)(const float* a, const float* b, int64_t stride, int64_t length, int64_t rows_a, int64_t rows_b,
                      float* c, int64_t c_stride);
    // out[i] = <row i, with> for rows one after the other, and <row i, row i>; by dtype.
    void (*row[3])(const void* rows, int64_t row_bytes, int64_t count, const void* with, int64_t dim, float* out);
    void (*squares[3])(const void* rows, int64_t row_bytes, int64_t count, int64_t dim, float* out);
    // Rows of at most kFewDims elements by columns: out[p * kColumnRows + i] for at most kColumnRows rows; by dtype.
    // And out[i] = <row i, with> of kColumnRows such rows, `with` a row among such, too.
    void (*to_columns[3])(const void* rows, int64_t row_bytes, int64_t count, int64_t dim, float* out);
    void (*row_of_columns)(const float* rows, const float* with, int64_t columns, float* out);
    // Dot products to similarities, from 1 / norm of either.
    void (*cosines)(const double* scales, double scale, int64_t count, float* c);
    // c[i] = the weight that `rule` gives it; by the id of rules that do not take them as they are.
    void (*weigh[kRules])(const void* rule, int64_t count, float* c);
    // `rule` absorbs a pick of this priority; by the id of rules with State::kToken. Returns the largest key.
    float (*absorb[kRules])(const void* rule, const RowStep& step, float priority);
    float (*absorb_history)(const void* rule, const HistoryStep& step, float priority);
    // Of at least one number, none of them NaN.
    float (*largest)(const float* numbers, int64_t count);
    // The largest a[i] + b[i], or -inf. A NaN counts as -inf.
    float (*largest_sum)(const float* a, const float* b, int64_t count);
    // Sum over i < n of max(0, row[i] - cover[i]), in lanes like a dot product. A NaN counts as 0.
    float (*gain)(const float* row, const float* cover, int64_t n);
};

// The table of an instruction set, or nullptr where this build or machine has none. AUTO gives the best there is.
const Kernels* kernels(int32_t isa);

// One per instruction set; nullptr where it was not built.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();

}  // namespace idsel::cpu
