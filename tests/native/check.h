// What the native tests share: a check that says where it failed, and random numbers without surprises.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (false)

// splitmix64: the same numbers everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
    // Roughly normal.
    float normal() {
        float sum = 0;
        for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits() >> 40) * 0x1p-24f - 0.5f;
        return sum * 1.7f;
    }

  private:
    uint64_t state_;
};

inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);  // truncated: any bfloat16 will do
}
