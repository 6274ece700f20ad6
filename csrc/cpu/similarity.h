// Similarities of one sample: one at a time, by rows, or as the whole Gram, with the same bits. Or given by the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/sample.h"
#include "cpu/thread_pool.h"
#include "rules/tokens.h"

namespace idsel::cpu {

class Similarity {
  public:
    Similarity(const Sample& sample, const Kernels& kernels, ThreadPool& pool);

    // Whether the token's features are finite (more exactly: the square of their norm in float32). Here and below the
    // norm is computed if it is not known.
    bool finite(int64_t token) { return norm(token) != kNotFinite; }
    // Whether it has a direction.
    bool nonzero(int64_t token) { return norm(token) == kPositive; }

    // c_ij of two finite tokens whose norms are known, looked up where the Gram is there, else computed: the caller
    // counts that. Safe in parallel.
    float operator()(int64_t i, int64_t j) const { return has_gram() ? looked_up(i, j) : compute(i, j); }

    // The same from dot products: of token i with tokens [begin, end), or with some others.
    void of_dots(int64_t i, int64_t begin, int64_t end, float* c) const {
        kernels_.cosines(&scale_[static_cast<size_t>(begin)], scale_[static_cast<size_t>(i)], end - begin, c);
    }
    void of_dots(int64_t i, const int64_t* others, int64_t count, float* c) const {
        double scales[kTogether];
        for (; count > 0; count -= kTogether, others += kTogether, c += kTogether) {
            const int64_t now = std::min(count, kTogether);
            for (int64_t j = 0; j < now; ++j) scales[j] = scale_[static_cast<size_t>(others[j])];
            kernels_.cosines(scales, scale_[static_cast<size_t>(i)], now, c);
        }
    }

    // c[i * kDotsStride + j] of tokens[i] with others[j], at most kDotsRows of either, which are as above except that
    // no norm of `tokens` need be known if none is. Then they are computed from the same reading; where one turns out
    // not to be finite, its c means nothing. Safe in parallel for different tokens.
    void tile(const int64_t* tokens, int64_t count, const int64_t* others, int64_t other_count, float* c);
    bool norm_known(int64_t token) const { return norms_[static_cast<size_t>(token)] != kUnknown; }

    // c_ij of a token with others that follow one another, all with known norms: into c. The caller counts them. Safe
    // in parallel. After `expect_rows` begin has to be a multiple of kColumnRows, and c gets such a multiple.
    void row(int64_t i, int64_t begin, int64_t end, float* c) const;
    // Makes rows cheaper where there are few dimensions. Afterwards all norms are known.
    void expect_rows(bool shared);

    // Computes the Gram, unless it is there: made before, or given. Afterwards all norms are known.
    void make_gram();
    bool has_gram() const { return table_ != nullptr; }
    // c_i where it lies: of token i with all others, and with itself if it has a direction. Where the Gram is given,
    // values count only after `given_similarity`, and what it has of i with itself not at all.
    const float* gram_row(int64_t i) const { return table_ + i * table_stride_; }
    // c_i with all norms known, in place where it can be, else in `buffer`.
    const float* whole_row(int64_t i, std::vector<float>& buffer) const;

    void know_all_norms(bool shared = true);
    // The norms of some tokens, in parallel.
    void know_norms(const std::vector<int64_t>& tokens);
    bool gram_fits_budget() const;

    int64_t dots() const { return dots_; }
    // Norms that were computed.
    int64_t norms_known() const {
        return sample_.similarities ? 0 : sample_.n - std::count(norms_.begin(), norms_.end(), kUnknown);
    }
    // Similarities that were not looked up.
    void count_dots(int64_t dots) { dots_ += has_gram() ? 0 : dots; }

    ThreadPool& pool() const { return pool_; }
    const Kernels& kernels() const { return kernels_; }
    const Sample& sample() const { return sample_; }

  private:
    static constexpr int64_t kTogether =
        64;  // tokens, where what is between two steps should stay in the nearest cache

    enum Norm : uint8_t { kUnknown, kPositive, kZero, kNotFinite };

    Norm norm(int64_t token) {
        if (norms_[static_cast<size_t>(token)] == kUnknown) compute_norm(token);
        return norms_[static_cast<size_t>(token)];
    }
    void compute_norm(int64_t token);
    void set_norm(int64_t token, float square);
    float compute(int64_t i, int64_t j) const;
    // Those of bfloat16 are not in order.
    int64_t column_count() const { return sample_.dtype == IDSEL_BFLOAT16 && sample_.dim > 1 ? kFewDims : sample_.dim; }
    const float* columns(int64_t begin) const { return &columns_[static_cast<size_t>(begin * kFewDims)]; }
    float looked_up(int64_t i, int64_t j) const { return given_similarity(gram_row(i)[j]); }
    std::vector<int64_t> all_tokens() const;

    const Sample& sample_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    std::vector<Norm> norms_;
    std::vector<double> scale_;   // 1 / norm, 0 for a zero row
    std::vector<float> columns_;  // (n / kColumnRows, kFewDims, kColumnRows) features, where rows are read by columns
    std::unique_ptr<float[]> gram_;
    const float* table_ = nullptr;  // gram_, or that of the caller: rows so many floats apart
    int64_t table_stride_;
    int64_t dots_ = 0;
};

}  // namespace idsel::cpu
