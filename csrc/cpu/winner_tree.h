// The best token under keys that change one at a time.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace idsel::cpu {

// A tournament: each inner node holds the token that wins among those below, by the larger key, then the lower
// index. Unlike a heap it needs no removal, and ties come out in index order by themselves.
class WinnerTree {
  public:
    static constexpr float kNone = -std::numeric_limits<float>::infinity();

    explicit WinnerTree(int64_t n) : keys_(static_cast<size_t>(n), kNone) {
        while (leaves_ < n) leaves_ *= 2;
        winner_.resize(static_cast<size_t>(leaves_));
    }

    // Sets a key without updating the tree; `build` afterwards.
    void set(int64_t token, float key) { keys_[static_cast<size_t>(token)] = key; }

    void build() {
        for (int64_t node = leaves_ - 1; node > 0; --node) decide(node);
    }

    void update(int64_t token, float key) {
        set(token, key);
        for (int64_t node = (leaves_ + token) / 2; node > 0; node /= 2) decide(node);
    }

    int64_t top() const { return leaves_ == 1 ? 0 : winner_[1]; }
    float top_key() const { return keys_.empty() ? kNone : keys_[static_cast<size_t>(top())]; }
    float key(int64_t token) const { return keys_[static_cast<size_t>(token)]; }

  private:
    int64_t winner_of(int64_t node) const {
        return node >= leaves_ ? node - leaves_ : winner_[static_cast<size_t>(node)];
    }
    void decide(int64_t node) {
        const int64_t left = winner_of(2 * node), right = winner_of(2 * node + 1);
        const auto n = static_cast<int64_t>(keys_.size());
        const bool right_wins = right < n && keys_[static_cast<size_t>(right)] > keys_[static_cast<size_t>(left)];
        winner_[static_cast<size_t>(node)] = static_cast<int32_t>(right_wins ? right : left);
    }

    int64_t leaves_ = 1;
    std::vector<float> keys_;
    std::vector<int32_t> winner_;  // [1, leaves): the winner below each inner node
};

}  // namespace idsel::cpu
