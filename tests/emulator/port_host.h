// The host build of csrc/cuda/port.cuh: the same names, on the emulator.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define IDSEL_GLOBAL
#define IDSEL_DEVICE inline
#define IDSEL_GRID_CONSTANT
#define IDSEL_LAUNCH_BOUNDS(threads)
#define IDSEL_UNROLL
#define IDSEL_UNROLL_BY(times)

namespace idsel::cuda {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

namespace port {

inline int thread() { return emulator::thread(); }
inline int64_t block() { return emulator::block(); }
inline int64_t blocks() { return emulator::blocks(); }
inline unsigned char* shared_memory() { return emulator::shared_memory(); }
inline void barrier(int line = __builtin_LINE()) { emulator::barrier(line); }

// Other blocks may get in before anything is added or published.
inline int32_t arrive(int32_t* counter) {
    emulator::yield();
    return (*counter)++;
}
inline void reset(int32_t* counter) { *counter = 0; }
inline uint64_t peek(const uint64_t* word) { return *word; }
inline uint64_t add_one(uint64_t* word) {
    emulator::yield();
    return (*word)++;
}
inline void acquire() {}
inline void publish(uint64_t* word, uint64_t value) {
    emulator::yield();
    *word = value;
}
inline void rest() { emulator::rest(); }
inline void raise(uint32_t* to, uint32_t value) { *to = value > *to ? value : *to; }

inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline uint64_t warp_max(uint64_t value, int line = __builtin_LINE()) {
    const auto* all = static_cast<const uint64_t*>(emulator::exchange(&value, sizeof value, line));
    uint64_t best = 0;
    for (int lane = 0; lane < emulator::kLanes; ++lane) best = all[lane] > best ? all[lane] : best;
    return best;
}

inline float shuffle_xor(float value, int lanes, int line = __builtin_LINE()) {
    const auto* all = static_cast<const float*>(emulator::exchange(&value, sizeof value, line));
    return all[emulator::thread() % emulator::kLanes ^ lanes];
}
inline int32_t shuffle_up(int32_t value, int lanes, int line = __builtin_LINE()) {
    const auto* all = static_cast<const int32_t*>(emulator::exchange(&value, sizeof value, line));
    const int lane = emulator::thread() % emulator::kLanes;
    return lane >= lanes ? all[lane - lanes] : value;
}

// Of any 32 bits, from a lane and from the lane that many away; only tests use them.
inline uint32_t shuffle(uint32_t value, int lane, int line = __builtin_LINE()) {
    return static_cast<const uint32_t*>(emulator::exchange(&value, sizeof value, line))[lane];
}
inline uint32_t shuffle_xor(uint32_t value, int lanes, int line = __builtin_LINE()) {
    return shuffle(value, emulator::thread() % emulator::kLanes ^ lanes, line);
}

inline void copy_async(void* to, const void* from) { emulator::copy_async(to, from); }
inline void copies_commit() { emulator::copies_commit(); }
template <int pending>
void copies_done() {
    emulator::copies_done(pending);
}

inline float widened(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }
inline float widened(Half value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16, exponent = value.bits >> 10 & 31u,
                   mantissa = value.bits & 1023u;
    if (exponent == 0) {
        const float size = std::ldexp(static_cast<float>(mantissa), -24);
        return sign != 0 ? -size : size;
    }
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    return bits_float(sign | wide << 23 | mantissa << 13);
}

// What a lane holds of both operands of mma.m16n8k16: see "Matrix fragments for mma.m16n8k16" in the PTX manual.
struct Fragments {
    uint32_t a[4], b[2];
};

template <class T>
float element(uint32_t pair, int which) {
    return widened(T{static_cast<uint16_t>(pair >> 16 * which)});
}

template <class T>
void multiply_add(T, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line = __builtin_LINE()) {
    Fragments mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const auto* all = static_cast<const Fragments*>(emulator::exchange(&mine, sizeof mine, line));
    const int lane = emulator::thread() % emulator::kLanes, group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const int row_half = i / 2, column = in_group * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int owner = k % 8 / 2, k_half = k / 8;
            const float x = element<T>(all[group * 4 + owner].a[row_half + 2 * k_half], k % 2);
            const float y = element<T>(all[column * 4 + owner].b[k_half], k % 2);
            d[i] = std::fma(x, y, d[i]);
        }
    }
}

template <class Args>
const char* launch(void (*kernel)(Args), int64_t grid, int threads, int shared_bytes, void*, Args args) {
    return emulator::launch([kernel, &args] { kernel(args); }, grid, threads, shared_bytes);
}

template <class Args>
const char* missing(void (*)(Args), int) {
    return nullptr;
}

}  // namespace port
}  // namespace idsel::cuda
