// Some rows of a Gram that is too large to be kept, several computed at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/gram.h"
#include "cpu/similarity.h"

namespace idsel::cpu {

// Rows have the bits of `Similarity::gram_row`. With what it takes to compute them they keep to the budget of the
// sample, but at least one row is there.
class GramRows {
  public:
    explicit GramRows(Similarity& similarity);

    // Rows that are computed at a time.
    int64_t most() const { return most_; }
    bool kept(int64_t token) const { return rows_[static_cast<size_t>(token)] != nullptr; }
    // c_i, computed if it is not kept. Valid until the next call that computes or keeps.
    const float* row(int64_t token);

    using Use = std::function<void(int64_t token, const float* row)>;

    // Computes the rows of at most `most()` tokens and hands each to `use`, from any thread.
    void compute(const std::vector<int64_t>& tokens, const Use& use);
    // Keeps the rows that were computed last, of these tokens, and those kept before. Where there is no room for all,
    // it keeps those of the largest worth[token].
    void keep(const std::vector<int64_t>& tokens, const std::vector<float>& worth);

  private:
    using Row = std::unique_ptr<float[]>;

    // Their similarities to the tokens [begin, end).
    void compute_part(TiledDots& dots, const std::vector<int64_t>& tokens, int64_t begin, int64_t end);
    // A row that was given up, or a new one.
    Row one_of(std::vector<Row>& spare) const;

    Similarity& similarity_;
    int64_t n_;
    int64_t most_;
    int64_t most_kept_;
    ThreadPool alone_{1};
    std::vector<TiledDots> dots_;  // for as many threads as there is work for
    Row computed_;                 // (most, n)
    std::vector<Row> rows_;        // (n,) those that are kept
    std::vector<int64_t> kept_;    // their tokens
};

}  // namespace idsel::cpu
