#include "cpu/similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/gram.h"

namespace idsel::cpu {

Similarity::Similarity(const Sample& sample, const Kernels& kernels, Team& team)
    : sample_(sample),
      kernels_(kernels),
      team_(team),
      norms_(static_cast<size_t>(sample.n), kUnknown),
      scale_(static_cast<size_t>(sample.n)) {}

void Similarity::know_norm(int64_t token) {
    const void* row = sample_.row(token);
    const float square = kernels_.dot[sample_.dtype](row, row, sample_.dim);
    const auto at = static_cast<size_t>(token);
    norms_[at] = !std::isfinite(square) ? kNotFinite : square > 0.0f ? kPositive : kZero;
    scale_[at] = norms_[at] == kPositive ? 1.0 / std::sqrt(static_cast<double>(square)) : 0.0;
}

void Similarity::know_norms(const std::vector<int64_t>& tokens) {
    std::vector<int64_t> unknown;
    for (int64_t token : tokens) {
        if (norms_[static_cast<size_t>(token)] == kUnknown) unknown.push_back(token);
    }
    norm_dots_ += static_cast<int64_t>(unknown.size());
    team_.parallel_for(static_cast<int64_t>(unknown.size()), 16, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) know_norm(unknown[static_cast<size_t>(at)]);
    });
}

void Similarity::know_all_norms() {
    std::vector<int64_t> tokens(static_cast<size_t>(sample_.n));
    std::iota(tokens.begin(), tokens.end(), 0);
    know_norms(tokens);
}

float Similarity::compute(int64_t i, int64_t j) const {
    const float dot = kernels_.dot[sample_.dtype](sample_.row(i), sample_.row(j), sample_.dim);
    return cosine(dot, scale_[static_cast<size_t>(i)], scale_[static_cast<size_t>(j)]);
}

bool Similarity::gram_fits_budget() const {
    return sample_.n * sample_.n * static_cast<int64_t>(sizeof(float)) <= kGramBudgetBytes;
}

void Similarity::make_gram() {
    if (gram_) return;
    know_all_norms();
    const int64_t n = sample_.n;
    // Not value-initialised: every element is written below.
    std::unique_ptr<float[]> gram(new float[static_cast<size_t>(n * n)]);
    TiledDots(sample_, kernels_, team_).compute(0, n, true, gram.get(), [&](const Tile& tile) {
        for (int64_t i = tile.i; i < tile.i_end; ++i) {
            for (int64_t j = tile.j; j < std::min(tile.j_end, i); ++j) {
                float& value = gram[static_cast<size_t>(i * n + j)];
                value = cosine(value, scale_[static_cast<size_t>(i)], scale_[static_cast<size_t>(j)]);
                gram[static_cast<size_t>(j * n + i)] = value;
            }
        }
    });
    for (int64_t i = 0; i < n; ++i) gram[static_cast<size_t>(i * n + i)] = nonzero(i) ? 1.0f : 0.0f;
    count_dots(n * (n - 1) / 2);
    gram_ = std::move(gram);
}

std::vector<float> Similarity::nearest() {
    std::vector<float> best(static_cast<size_t>(sample_.n), -std::numeric_limits<float>::infinity());
    if (gram_fits_budget()) {
        make_gram();
        for (int64_t i = 0; i < sample_.n; ++i) raise_to_row(i, gram_row(i), best);
    } else {
        know_all_norms();
        nearest_by_bands(best);
    }
    return best;
}

void Similarity::nearest_by_bands(std::vector<float>& best) {
    constexpr int64_t kBand = 4 * kTileRows;
    const int64_t n = sample_.n;
    TiledDots dots(sample_, kernels_, team_);
    std::unique_ptr<float[]> band(new float[static_cast<size_t>(kBand * n)]);
    for (int64_t first = 0; first < n; first += kBand) {
        const int64_t last = std::min(first + kBand, n);
        dots.compute(first, last, false, band.get(), [&](const Tile& tile) {
            for (int64_t i = tile.i; i < tile.i_end; ++i) {
                float* row = band.get() + (i - first) * n;
                for (int64_t j = tile.j; j < tile.j_end; ++j) {
                    row[j] = cosine(row[j], scale_[static_cast<size_t>(i)], scale_[static_cast<size_t>(j)]);
                }
            }
        });
        count_dots((last - first) * n);
        for (int64_t i = first; i < last; ++i) raise_to_row(i, band.get() + (i - first) * n, best);
    }
}

void Similarity::raise_to_row(int64_t i, const float* row, std::vector<float>& best) {
    if (!sample_.competes[static_cast<size_t>(i)] || !finite(i)) return;
    const auto raise = [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            float& value = best[static_cast<size_t>(j)];
            value = row[j] > value ? row[j] : value;
        }
    };
    raise(0, i);
    raise(i + 1, sample_.n);
}

}  // namespace idsel::cpu
