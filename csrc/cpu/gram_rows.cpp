#include "cpu/gram_rows.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace idsel::cpu {
namespace {

// So many rows take much longer to multiply than all tokens to copy.
constexpr int64_t kMostRows = 8 * kTileRows;
// So many tokens at a time meet them, whose copies then stay in a second-level cache.
constexpr int64_t kPart = 4 * kTileRows;
constexpr int64_t kMostThreads = 16;

int64_t rows_of_budget(const Sample& sample) {
    return sample.rows_budget / static_cast<int64_t>(sizeof(float)) / sample.n;
}

}  // namespace

GramRows::GramRows(Similarity& similarity)
    : similarity_(similarity),
      n_(similarity.sample().n),
      most_(std::clamp<int64_t>(rows_of_budget(similarity.sample()) / 8, 1, kMostRows)),
      most_kept_(rows_of_budget(similarity.sample()) * 5 / 8),
      computed_(new float[static_cast<size_t>(most_ * n_)]),
      rows_(static_cast<size_t>(n_)) {
    const int64_t threads = std::min<int64_t>({similarity.pool().threads(), kMostThreads, (n_ + kPart - 1) / kPart});
    for (int64_t i = 0; i < threads; ++i) {
        dots_.emplace_back(similarity.sample(), similarity.kernels(), alone_, kPart + most_);
    }
}

const float* GramRows::row(int64_t token) {
    if (kept(token)) return rows_[static_cast<size_t>(token)].get();
    compute({token}, [](int64_t, const float*) {});
    return computed_.get();
}

void GramRows::compute(const std::vector<int64_t>& tokens, const Use& use) {
    const auto count = static_cast<int64_t>(tokens.size()), threads = static_cast<int64_t>(dots_.size());
    similarity_.pool().parallel_for(threads, 1, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) {
            for (int64_t begin = first * kPart; begin < n_; begin += threads * kPart) {
                compute_part(dots_[static_cast<size_t>(first)], tokens, begin, std::min(begin + kPart, n_));
            }
        }
    });
    similarity_.count_dots(count * (n_ - 1));
    similarity_.pool().parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) use(tokens[static_cast<size_t>(i)], computed_.get() + i * n_);
    });
}

void GramRows::compute_part(TiledDots& dots, const std::vector<int64_t>& tokens, int64_t begin, int64_t end) {
    const int64_t width = end - begin, height = static_cast<int64_t>(tokens.size());
    std::vector<int64_t> rows(static_cast<size_t>(width));
    std::iota(rows.begin(), rows.end(), begin);
    rows.insert(rows.end(), tokens.begin(), tokens.end());
    std::vector<Tile> tiles;
    for (int64_t i = width; i < width + height; i += kTileRows) {
        for (int64_t j = 0; j < width; j += kTileRows) {
            tiles.push_back({i, std::min(i + kTileRows, width + height), j, std::min(j + kTileRows, width)});
        }
    }
    dots.compute(rows, tiles, computed_.get() + begin, n_, [&](const Tile& tile) {
        for (int64_t i = tile.i; i < tile.i_end; ++i) {
            const int64_t token = tokens[static_cast<size_t>(i - width)];
            float* row = computed_.get() + (i - width) * n_;
            similarity_.of_dots(token, begin + tile.j, begin + tile.j_end, row + begin + tile.j);
            if (begin + tile.j <= token && token < begin + tile.j_end)
                row[token] = similarity_.nonzero(token) ? 1.0f : 0.0f;
        }
    });
}

void GramRows::keep(const std::vector<int64_t>& tokens, const std::vector<float>& worth) {
    std::vector<int64_t> all = kept_;
    all.insert(all.end(), tokens.begin(), tokens.end());
    const int64_t room = std::min(most_kept_, static_cast<int64_t>(all.size()));
    const auto larger = [&](int64_t a, int64_t b) {
        const float of_a = worth[static_cast<size_t>(a)], of_b = worth[static_cast<size_t>(b)];
        return of_a > of_b || (of_a == of_b && a < b);
    };
    std::nth_element(all.begin(), all.begin() + room, all.end(), larger);
    std::vector<Row> spare;
    for (auto token = all.begin() + room; token != all.end(); ++token) {
        if (kept(*token)) spare.push_back(std::move(rows_[static_cast<size_t>(*token)]));
    }
    all.resize(static_cast<size_t>(room));
    kept_ = std::move(all);
    for (const int64_t token : kept_) {
        if (!kept(token)) rows_[static_cast<size_t>(token)] = one_of(spare);
    }
    similarity_.pool().parallel_for(static_cast<int64_t>(tokens.size()), 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float* row = rows_[static_cast<size_t>(tokens[static_cast<size_t>(i)])].get();
            if (row != nullptr) std::copy_n(computed_.get() + i * n_, n_, row);
        }
    });
}

GramRows::Row GramRows::one_of(std::vector<Row>& spare) const {
    if (spare.empty()) return Row(new float[static_cast<size_t>(n_)]);
    Row row = std::move(spare.back());
    spare.pop_back();
    return row;
}

}  // namespace idsel::cpu
