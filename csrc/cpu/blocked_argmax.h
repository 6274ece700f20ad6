// The best token under keys that change one at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/kernels.h"

namespace idsel::cpu {

constexpr float kNoKey = -std::numeric_limits<float>::infinity();

// The largest key of every block of tokens. A few straight loops, which for thousands of tokens take less time than
// the dependent steps of a heap; equal keys come out in index order by themselves.
class BlockedArgmax {
  public:
    BlockedArgmax(int64_t n, const Kernels& kernels)
        : kernels_(kernels),
          keys_(static_cast<size_t>((n + kBlock - 1) / kBlock * kBlock), kNoKey),
          largest_(keys_.size() / kBlock) {}

    // Sets a key without its block's; `refresh` afterwards.
    void set(int64_t token, float key) { keys_[static_cast<size_t>(token)] = key; }

    void refresh() {
        for (size_t block = 0; block < largest_.size(); ++block) refresh(block);
    }

    void update(int64_t token, float key) {
        set(token, key);
        refresh(static_cast<size_t>(token) / kBlock);
    }

    // The keys of a block, for their owner to set, and the largest of them.
    static constexpr size_t kBlock = 64;
    float* keys(int64_t block) { return &keys_[static_cast<size_t>(block) * kBlock]; }
    int64_t blocks() const { return static_cast<int64_t>(largest_.size()); }
    float largest(int64_t block) const { return largest_[static_cast<size_t>(block)]; }
    void set_largest(int64_t block, float key) { largest_[static_cast<size_t>(block)] = key; }

    float key(int64_t token) const { return keys_[static_cast<size_t>(token)]; }

    int64_t top_block() const { return static_cast<int64_t>(first_largest(largest_.data(), largest_.size())); }

    // The lowest token among those of the largest key.
    int64_t top() const {
        const auto block = static_cast<size_t>(top_block());
        return static_cast<int64_t>(block * kBlock + first_largest(&keys_[block * kBlock], kBlock));
    }

  private:
    void refresh(size_t block) { largest_[block] = kernels_.largest(&keys_[block * kBlock], kBlock); }

    size_t first_largest(const float* keys, size_t count) const {
        const float largest = kernels_.largest(keys, static_cast<int64_t>(count));
        return static_cast<size_t>(std::find(keys, keys + count, largest) - keys);
    }

    const Kernels& kernels_;
    std::vector<float> keys_;
    std::vector<float> largest_;  // (blocks,)
};

}  // namespace idsel::cpu
