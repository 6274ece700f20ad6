#include "cpu/similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/gram.h"

namespace idsel::cpu {

Similarity::Similarity(const Sample& sample, const Kernels& kernels, ThreadPool& pool)
    : sample_(sample),
      kernels_(kernels),
      pool_(pool),
      norms_(static_cast<size_t>(sample.n), kUnknown),
      scale_(static_cast<size_t>(sample.n)),
      table_(sample.similarities ? static_cast<const float*>(sample.row(0)) : nullptr),
      table_stride_(sample.similarities ? sample.row_bytes / static_cast<int64_t>(sizeof(float)) : sample.n) {}

void Similarity::compute_norm(int64_t token) {
    if (sample_.similarities) {
        set_norm(token, gram_row(token)[token]);
        return;
    }
    const void* row = sample_.row(token);
    set_norm(token, kernels_.dot[sample_.dtype](row, row, sample_.dim));
}

void Similarity::set_norm(int64_t token, float square) {
    const auto at = static_cast<size_t>(token);
    norms_[at] = !std::isfinite(square) ? kNotFinite : square > 0.0f ? kPositive : kZero;
    scale_[at] = norms_[at] == kPositive ? 1.0 / std::sqrt(static_cast<double>(square)) : 0.0;
}

void Similarity::know_norms(const std::vector<int64_t>& tokens) {
    std::vector<int64_t> unknown;
    for (int64_t token : tokens) {
        if (norms_[static_cast<size_t>(token)] == kUnknown) unknown.push_back(token);
    }
    pool_.parallel_for(static_cast<int64_t>(unknown.size()), 16, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) compute_norm(unknown[static_cast<size_t>(at)]);
    });
}

void Similarity::know_all_norms(bool shared) {
    if (std::count(norms_.begin(), norms_.end(), kUnknown) == 0) return;
    if (sample_.similarities) {
        for (int64_t token = 0; token < sample_.n; ++token) compute_norm(token);
        return;
    }
    const int64_t parts = shared ? 2 * pool_.threads() : 1;
    const int64_t grain = (sample_.n / parts / kTogether + 1) * kTogether;
    pool_.parallel_for(sample_.n, grain, [&](int64_t begin, int64_t end) {
        float squares[kTogether];
        for (; begin < end; begin += kTogether) {
            const int64_t count = std::min(kTogether, end - begin);
            kernels_.squares[sample_.dtype](sample_.row(begin), sample_.row_bytes, count, sample_.dim, squares);
            for (int64_t i = 0; i < count; ++i) set_norm(begin + i, squares[i]);
        }
    });
}

std::vector<int64_t> Similarity::all_tokens() const {
    std::vector<int64_t> tokens(static_cast<size_t>(sample_.n));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
}

float Similarity::compute(int64_t i, int64_t j) const {
    const float dot = kernels_.dot[sample_.dtype](sample_.row(i), sample_.row(j), sample_.dim);
    return cosine(dot, scale_[static_cast<size_t>(i)], scale_[static_cast<size_t>(j)]);
}

void Similarity::tile(const int64_t* tokens, int64_t count, const int64_t* others, int64_t other_count, float* c) {
    if (has_gram()) {
        for (int64_t i = 0; i < count; ++i) {
            norm(tokens[i]);
            for (int64_t j = 0; j < other_count; ++j) c[i * kDotsStride + j] = looked_up(others[j], tokens[i]);
        }
        return;
    }
    const void* rows[kDotsRows] = {};
    const void* other_rows[kDotsRows] = {};
    for (int64_t i = 0; i < count; ++i) rows[i] = sample_.row(tokens[i]);
    for (int64_t j = 0; j < other_count; ++j) other_rows[j] = sample_.row(others[j]);
    const bool squares = !norm_known(tokens[0]);
    kernels_.dots[sample_.dtype](rows, count, other_rows, other_count, squares, sample_.dim, c);
    for (int64_t i = 0; i < count; ++i) {
        float* of_token = c + i * kDotsStride;
        if (squares) set_norm(tokens[i], of_token[other_count]);
        const double scale = scale_[static_cast<size_t>(tokens[i])];
        for (int64_t j = 0; j < other_count; ++j) {
            of_token[j] = cosine(of_token[j], scale_[static_cast<size_t>(others[j])], scale);
        }
    }
}

void Similarity::row(int64_t i, int64_t begin, int64_t end, float* c) const {
    if (has_gram()) {
        std::transform(gram_row(i) + begin, gram_row(i) + end, c, [](float value) { return given_similarity(value); });
        if (begin <= i && i < end) c[i - begin] = norms_[static_cast<size_t>(i)] == kPositive ? 1.0f : 0.0f;
        return;
    }
    if (columns_.empty()) {
        kernels_.row[sample_.dtype](sample_.row(begin), sample_.row_bytes, end - begin, sample_.row(i), sample_.dim, c);
    } else {
        const float* with = columns(i / kColumnRows * kColumnRows) + i % kColumnRows;
        for (int64_t j = begin; j < end; j += kColumnRows) {
            kernels_.row_of_columns(columns(j), with, column_count(), c + (j - begin));
        }
    }
    of_dots(i, begin, end, c);
}

void Similarity::expect_rows(bool shared) {
    know_all_norms(shared);
    if (has_gram() || sample_.dim > kFewDims || !columns_.empty()) return;
    columns_.resize(static_cast<size_t>((sample_.n + kColumnRows - 1) / kColumnRows * kColumnRows * kFewDims));
    for (int64_t begin = 0; begin < sample_.n; begin += kColumnRows) {
        const int64_t count = std::min(kColumnRows, sample_.n - begin);
        float* to = &columns_[static_cast<size_t>(begin * kFewDims)];
        kernels_.to_columns[sample_.dtype](sample_.row(begin), sample_.row_bytes, count, sample_.dim, to);
    }
}

const float* Similarity::whole_row(int64_t i, std::vector<float>& buffer) const {
    if (gram_) return gram_row(i);
    buffer.resize(static_cast<size_t>(sample_.n));
    row(i, 0, sample_.n, buffer.data());
    return buffer.data();
}

bool Similarity::gram_fits_budget() const {
    if (sample_.similarities) return true;  // it is there
    return sample_.n * sample_.n <= sample_.gram_budget / static_cast<int64_t>(sizeof(float));
}

void Similarity::make_gram() {
    know_all_norms();
    if (has_gram()) return;
    const int64_t n = sample_.n;
    // Not value-initialised: every element is written below.
    std::unique_ptr<float[]> gram(new float[static_cast<size_t>(n * n)]);
    TiledDots(sample_, kernels_, pool_, n).compute(all_tokens(), lower_tiles(n), gram.get(), n, [&](const Tile& tile) {
        for (int64_t i = tile.i; i < tile.i_end; ++i) {
            const int64_t end = std::min(tile.j_end, i);
            if (tile.j < end) of_dots(i, tile.j, end, &gram[static_cast<size_t>(i * n + tile.j)]);
        }
        for (int64_t j = tile.j; j < tile.j_end; ++j) {
            for (int64_t i = std::max(tile.i, j + 1); i < tile.i_end; ++i) {
                gram[static_cast<size_t>(j * n + i)] = gram[static_cast<size_t>(i * n + j)];
            }
        }
    });
    for (int64_t i = 0; i < n; ++i) gram[static_cast<size_t>(i * n + i)] = nonzero(i) ? 1.0f : 0.0f;
    count_dots(n * (n - 1) / 2);
    gram_ = std::move(gram);
    table_ = gram_.get();
}

}  // namespace idsel::cpu
