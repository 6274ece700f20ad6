// Every instruction set computes the same bits; the portable code at least nearly.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

namespace idsel::cpu {
#ifdef IDSEL_TEST_AVX512_EMULATED
const Kernels* emulated_avx512_kernels();
#endif
}  // namespace idsel::cpu

using idsel::cpu::kColumnRows;
using idsel::cpu::kDotsRows;
using idsel::cpu::kDotsStride;
using idsel::cpu::Kernels;
using idsel::cpu::kFewDims;
using idsel::cpu::kLanes;

namespace {

const int64_t kDims[] = {1, 2, 15, 16, 17, 64, 100, 511, 512, 513, 1024, 1040, 1536, 2048, 2049, 3584, 4096};

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Bit patterns of finite float16 or bfloat16 numbers of moderate size, or of float32 ones.
std::vector<unsigned char> random_row(Random& random, int dtype, int64_t dim) {
    std::vector<unsigned char> row(static_cast<size_t>(dim) * (dtype == 0 ? 4 : 2));
    for (int64_t d = 0; d < dim; ++d) {
        const float value = random.normal();
        const auto half =
            static_cast<uint16_t>((random.bits() & 0x83ff) | static_cast<uint64_t>(random.below(17)) << 10);
        const uint16_t brain = to_bfloat16(value);
        if (dtype == 0) std::memcpy(&row[static_cast<size_t>(4 * d)], &value, 4);
        if (dtype == 1) std::memcpy(&row[static_cast<size_t>(2 * d)], &half, 2);
        if (dtype == 2) std::memcpy(&row[static_cast<size_t>(2 * d)], &brain, 2);
    }
    return row;
}

// Several at once must have the bits of one at a time.
void check_dots(const Kernels& k, int dtype, int64_t dim, Random& random) {
    std::vector<std::vector<unsigned char>> rows;
    for (int64_t i = 0; i < 2 * kDotsRows; ++i) rows.push_back(random_row(random, dtype, dim));
    const void* a[kDotsRows];
    const void* b[kDotsRows];
    for (int64_t i = 0; i < kDotsRows; ++i) {
        a[i] = rows[static_cast<size_t>(i)].data();
        b[i] = rows[static_cast<size_t>(kDotsRows + i)].data();
    }
    for (int64_t rows_a = 1; rows_a <= kDotsRows; ++rows_a) {
        for (int64_t rows_b = 1; rows_b <= kDotsRows; ++rows_b) {
            for (bool squares : {false, true}) {
                float found[kDotsRows * kDotsStride];
                k.dots[dtype](a, rows_a, b, rows_b, squares, dim, found);
                for (int64_t i = 0; i < rows_a; ++i) {
                    const float* row = found + i * kDotsStride;
                    for (int64_t j = 0; j < rows_b; ++j) CHECK(same_bits(row[j], k.dot[dtype](a[i], b[j], dim)));
                    if (squares) CHECK(same_bits(row[rows_b], k.dot[dtype](a[i], a[i], dim)));
                }
            }
        }
    }
}

void compare_dots(const Kernels& a, const Kernels& b, bool exactly) {
    Random random(1);
    for (int dtype = 0; dtype < 3; ++dtype) {
        for (int64_t dim : kDims) {
            const auto x = random_row(random, dtype, dim), y = random_row(random, dtype, dim);
            const float first = a.dot[dtype](x.data(), y.data(), dim), second = b.dot[dtype](x.data(), y.data(), dim);
            CHECK(exactly
                      ? same_bits(first, second)
                      : std::fabs(first - second) <= 1e-5f * (1 + std::sqrt(a.dot[dtype](x.data(), x.data(), dim) *
                                                                            a.dot[dtype](y.data(), y.data(), dim))));
            CHECK(same_bits(a.dot[dtype](y.data(), x.data(), dim), first));
            check_dots(a, dtype, dim, random);
            const auto padded = static_cast<size_t>((dim + kLanes - 1) / kLanes * kLanes);
            std::vector<float> wide_a(padded, -1.0f), wide_b(padded, -2.0f);
            a.to_lanes[dtype](x.data(), dim, wide_a.data());
            b.to_lanes[dtype](x.data(), dim, wide_b.data());
            CHECK(std::memcmp(wide_a.data(), wide_b.data(), wide_a.size() * 4) == 0);
        }
    }
}

// Rows one after the other must have the bits of one at a time, wherever they begin.
void check_rows(const Kernels& k) {
    Random random(4);
    for (int dtype = 0; dtype < 3; ++dtype) {
        for (int64_t dim : kDims) {
            const int64_t rows = 21, bytes = (dim + 1) * (dtype == 0 ? 4 : 2);
            const auto data = random_row(random, dtype, rows * (dim + 1)), with = random_row(random, dtype, dim);
            const unsigned char* first = data.data() + (dtype == 0 ? 4 : 2);
            for (int64_t count : {int64_t{1}, int64_t{8}, rows - 1}) {
                float found[21], squares[21];
                k.row[dtype](first, bytes, count, with.data(), dim, found);
                k.squares[dtype](first, bytes, count, dim, squares);
                for (int64_t i = 0; i < count; ++i) {
                    const unsigned char* row = first + i * bytes;
                    CHECK(same_bits(found[i], k.dot[dtype](row, with.data(), dim)));
                    CHECK(same_bits(squares[i], k.dot[dtype](row, row, dim)));
                }
            }
        }
    }
}

// By columns, too, whose number no zero row or odd order may change.
void check_columns(const Kernels& k) {
    Random random(5);
    for (int dtype = 0; dtype < 3; ++dtype) {
        for (int64_t dim = 1; dim <= kFewDims; ++dim) {
            const int64_t bytes = (dim + 1) * (dtype == 0 ? 4 : 2), count = kColumnRows - 3;
            auto data = random_row(random, dtype, count * (dim + 1));
            std::fill_n(data.begin() + 7 * bytes, bytes, static_cast<unsigned char>(0));
            std::vector<float> columns(static_cast<size_t>(kFewDims * kColumnRows));
            k.to_columns[dtype](data.data(), bytes, count, dim, columns.data());
            const int64_t lanes = dtype == IDSEL_BFLOAT16 && dim > 1 ? kFewDims : dim;
            for (int64_t with : {int64_t{0}, int64_t{7}, count - 1}) {
                float found[kColumnRows];
                k.row_of_columns(columns.data(), columns.data() + with, lanes, found);
                for (int64_t i = 0; i < count; ++i) {
                    const unsigned char* rows = data.data();
                    CHECK(same_bits(found[i], k.dot[dtype](rows + i * bytes, rows + with * bytes, dim)));
                }
            }
        }
    }
}

// What some tokens make of a pick.
struct Absorbed {
    std::vector<float> state, key, component;
    float best;
};

constexpr int64_t kSomeTokens = 37;

std::vector<float> some_numbers(Random& random, float from, float to) {
    std::vector<float> numbers(kSomeTokens);
    for (float& number : numbers) number = from + (to - from) * static_cast<float>(random.below(1 << 20)) / (1 << 20);
    return numbers;
}

// The same input for every instruction set.
template <class Absorb>
Absorbed absorbed(const Absorb& absorb) {
    Random random(5);
    Absorbed result{some_numbers(random, 0, 1), std::vector<float>(kSomeTokens), std::vector<float>(kSomeTokens), 0};
    const auto c = some_numbers(random, -1, 1), importance = some_numbers(random, -1, 2);
    const auto overlap = some_numbers(random, -1, 1);
    std::vector<float> limit(kSomeTokens, -std::numeric_limits<float>::infinity());
    std::vector<int32_t> seen(kSomeTokens, 3);
    for (size_t j = 0; j < kSomeTokens; j += 5) limit[j] = std::numeric_limits<float>::infinity();
    for (size_t j = 0; j < kSomeTokens; j += 7) seen[j] = 4;
    idsel::cpu::HistoryStep step{};
    step.count = kSomeTokens;
    step.pick = 3;
    step.seen = seen.data();
    step.c = c.data();
    step.importance = importance.data();
    step.limit = limit.data();
    step.state = result.state.data();
    step.key = result.key.data();
    step.overlap = overlap.data();
    step.pick_quality = 0.7f;
    step.component = result.component.data();
    const auto before = result.state;
    result.best = absorb(step);
    for (size_t j = 0; j < kSomeTokens; j += 7) CHECK(result.state[j] == before[j]);  // had absorbed it
    for (size_t j = 0; j < kSomeTokens; j += 5) CHECK(result.key[j] == -std::numeric_limits<float>::infinity());
    CHECK(result.best == *std::max_element(result.key.begin(), result.key.end()));
    return result;
}

template <class Rule>
void compare_absorb(const Kernels& a, const Kernels& b) {
    if constexpr (Rule::kState == idsel::State::kToken && Rule::kNeedsSimilarities) {
        const double params[8] = {0.5, 0.25, 0, 0, 0, 0, 0, 0};
        const Rule rule = Rule::from_params(params);
        const auto first = absorbed([&](const auto& step) { return a.absorb[Rule::kId](&rule, step, 0.6f); });
        const auto second = absorbed([&](const auto& step) { return b.absorb[Rule::kId](&rule, step, 0.6f); });
        CHECK(first.state == second.state && first.key == second.key && first.best == second.best);
        CHECK((a.weigh[Rule::kId] == nullptr) == (Rule::kId != idsel::IDSelection::kId));
        if (a.weigh[Rule::kId] != nullptr) {
            Random random(6);
            auto here = some_numbers(random, -1, 1), there = here;
            const auto c = here;
            a.weigh[Rule::kId](&rule, kSomeTokens, here.data());
            b.weigh[Rule::kId](&rule, kSomeTokens, there.data());
            CHECK(here == there);
            for (size_t j = 0; j < kSomeTokens; ++j) CHECK(here[j] == rule.weight(c[j]));
        }
    }
}

template <class... R>
void compare_absorb_all(const Kernels& a, const Kernels& b, idsel::RuleList<R...>) {
    (compare_absorb<R>(a, b), ...);
    const double params[1] = {1e-6};
    const auto rule = idsel::DPP::from_params(params);
    const auto first = absorbed([&](const auto& step) { return a.absorb_history(&rule, step, 0.6f); });
    const auto second = absorbed([&](const auto& step) { return b.absorb_history(&rule, step, 0.6f); });
    CHECK(first.state == second.state && first.component == second.component && first.best == second.best);
}

void compare_cosines(const Kernels& a, const Kernels& b) {
    Random random(7);
    auto here = some_numbers(random, -9, 9), there = here;
    std::vector<double> scales(kSomeTokens);
    for (double& scale : scales) scale = std::exp(random.normal());
    a.cosines(scales.data(), 0.3, kSomeTokens, here.data());
    b.cosines(scales.data(), 0.3, kSomeTokens, there.data());
    CHECK(here == there);
    for (float c : here) CHECK(std::fabs(c) <= 1.0f);
}

// A tile must have the bits of the dot products.
void check_tile(const Kernels& k) {
    Random random(2);
    const int64_t rows_a = 24, rows_b = 36, stride = idsel::cpu::kBlock;
    for (int64_t length : {int64_t{16}, int64_t{48}, stride}) {
        std::vector<float> a(static_cast<size_t>(rows_a * stride)), b(static_cast<size_t>(rows_b * stride));
        for (float& value : a) value = random.normal();
        for (float& value : b) value = random.normal();
        std::vector<float> c(static_cast<size_t>(rows_a * rows_b));
        k.gram_tile(a.data(), b.data(), stride, length, rows_a, rows_b, c.data(), rows_b);
        for (int64_t i = 0; i < rows_a; ++i) {
            for (int64_t j = 0; j < rows_b; ++j) {
                const float dot =
                    k.dot[0](&a[static_cast<size_t>(i * stride)], &b[static_cast<size_t>(j * stride)], length);
                CHECK(same_bits(dot, c[static_cast<size_t>(i * rows_b + j)]));
            }
        }
    }
}

void compare_gains(const Kernels& a, const Kernels& b) {
    Random random(3);
    for (int64_t n : kDims) {
        std::vector<float> row(static_cast<size_t>(n)), cover(static_cast<size_t>(n));
        for (float& value : row) value = random.normal();
        for (float& value : cover) value = std::fabs(random.normal());
        cover[static_cast<size_t>(n / 2)] = std::numeric_limits<float>::infinity();
        row[static_cast<size_t>(n / 3)] = std::numeric_limits<float>::quiet_NaN();
        CHECK(same_bits(a.gain(row.data(), cover.data(), n), b.gain(row.data(), cover.data(), n)));
    }
}

void check_largest_sums(const Kernels& k) {
    Random random(4);
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (int64_t n : kDims) {
        for (int missing : {0, 1, 2, 3}) {  // of every three tokens
            std::vector<float> row(static_cast<size_t>(n)), mask(row.size());
            float best = -infinity;
            for (size_t i = 0; i < row.size(); ++i) {
                row[i] = i % 5 == 4 ? nan : i % 11 == 7 ? infinity : random.normal();
                mask[i] = static_cast<int>(i % 3) < missing || (row[i] == infinity && n % 2 == 0) ? -infinity : 0.5f;
                if (row[i] + mask[i] > best) best = row[i] + mask[i];
            }
            CHECK(same_bits(best, k.largest_sum(row.data(), mask.data(), n)));
        }
    }
}

// All 65536 patterns, against arithmetic on the fields.
void check_half(const Kernels& k) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto pattern = static_cast<uint16_t>(bits);
        float lanes[kLanes];
        k.to_lanes[1](&pattern, 1, lanes);
        const float value = lanes[0];
        const int exponent = static_cast<int>(bits >> 10 & 31);
        const auto fraction = static_cast<float>(bits & 1023);
        const float sign = bits & 0x8000 ? -1.0f : 1.0f;
        if (exponent == 31) {
            CHECK(fraction != 0 ? std::isnan(value) : value == sign * std::numeric_limits<float>::infinity());
        } else {
            CHECK(value ==
                  sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25)));
        }
    }
}

void check_all(const Kernels& k) {
    check_tile(k);
    check_rows(k);
    check_columns(k);
    check_largest_sums(k);
    check_half(k);
    std::printf("checked %s\n", k.name);
}

}  // namespace

int main() {
    const Kernels& portable = *idsel::cpu::portable_kernels();
    check_all(portable);
    std::vector<const Kernels*> exact;
    for (int32_t isa : {IDSEL_ISA_AVX2, IDSEL_ISA_AVX512, IDSEL_ISA_NEON}) {
        if (const Kernels* k = idsel::cpu::kernels(isa)) exact.push_back(k);
    }
#ifdef IDSEL_TEST_AVX512_EMULATED
    if (!exact.empty()) exact.push_back(idsel::cpu::emulated_avx512_kernels());  // its halves use F16C
#endif
    for (const Kernels* k : exact) {
        check_all(*k);
        compare_dots(portable, *k, false);
        compare_gains(portable, *k);
        compare_cosines(portable, *k);
        compare_absorb_all(portable, *k, idsel::AllRules{});
        compare_dots(*exact.front(), *k, true);
    }
    return 0;
}
