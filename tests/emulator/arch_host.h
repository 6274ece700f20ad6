// The host build of csrc/cuda/arch.cuh: the same names, on the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda/vector_types.h"
#include "emulator.h"

#define IDSEL_GLOBAL
#define IDSEL_DEVICE inline
#define IDSEL_DEVICE_CALL inline
#define IDSEL_GRID_CONSTANT
#define IDSEL_LAUNCH_BOUNDS(threads)
#define IDSEL_UNROLL
#define IDSEL_UNROLL_BY(times)

namespace idsel::cuda {

namespace arch {

inline int thread() { return emulator::thread(); }
inline int thread_again() { return emulator::thread(); }
inline int lane() { return emulator::thread() % emulator::kLanes; }
inline int warp() { return emulator::thread() / emulator::kLanes; }
inline int64_t block() { return emulator::block(); }
inline int64_t blocks() { return emulator::blocks(); }
inline unsigned char* shared_memory() { return emulator::shared_memory(); }

inline float uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// --- Synchronisation -------------------------------------------------------------------------------------------------

inline void cta_sync(int line = __builtin_LINE()) { emulator::barrier(line); }

// Other CTAs may get in before anything is added or published.
inline int32_t atom_add_acq_rel(int32_t* counter, int32_t value) {
    emulator::yield();
    const int32_t before = *counter;
    *counter += value;
    return before;
}
inline void red_add_release(uint32_t* counter, uint32_t value) {
    emulator::yield();
    *counter += value;
}
inline void st_relaxed(int32_t* word, int32_t value) { *word = value; }
inline uint32_t ld_acquire(const uint32_t* word) { return *word; }
inline void spin() { emulator::rest(); }
inline void warp_sync(int line = __builtin_LINE()) { emulator::exchange("", 1, line); }

inline void red_max(uint32_t* to, uint32_t value) { *to = value > *to ? value : *to; }
inline void red_add(unsigned long long* to, unsigned long long value) { *to += value; }
inline uint32_t ld_volatile(const uint32_t* from) { return *from; }

// --- Clusters of CTAs ------------------------------------------------------------------------------------------------

inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
template <class T>
void st_shared_cluster(T* to, int rank, const T& value) {
    std::memcpy(emulator::shared_of(rank, to), &value, sizeof value);
}

// --- Within a warp ---------------------------------------------------------------------------------------------------

// What all lanes give.
template <class T>
const T* exchanged(const T& mine, int line) {
    return static_cast<const T*>(emulator::exchange(&mine, sizeof mine, line));
}

template <class T>
T shfl(T value, int lane, int line = __builtin_LINE()) {
    return exchanged(value, line)[lane];
}
template <class T>
T shfl_xor(T value, int lanes, int line = __builtin_LINE()) {
    return exchanged(value, line)[lane() ^ lanes];
}
inline int32_t shfl_up(int32_t value, int lanes, int line = __builtin_LINE()) {
    const int32_t* all = exchanged(value, line);
    return lane() >= lanes ? all[lane() - lanes] : value;
}
inline uint32_t vote_ballot(bool mine, int line = __builtin_LINE()) {
    const bool* all = exchanged(mine, line);
    uint32_t bits = 0;
    for (int lane = 0; lane < emulator::kLanes; ++lane) bits |= all[lane] ? 1u << lane : 0u;
    return bits;
}
inline int find_first_set(uint32_t bits) { return bits == 0 ? -1 : __builtin_ctz(bits); }
inline uint32_t redux_max(uint32_t value, int line = __builtin_LINE()) {
    const uint32_t* all = exchanged(value, line);
    return *std::max_element(all, all + emulator::kLanes);
}

// --- Loads -----------------------------------------------------------------------------------------------------------

template <class T>
T loaded(const void* from) {
    if (reinterpret_cast<std::uintptr_t>(from) % alignof(T) != 0) std::abort();  // as the instruction would fail
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class T>
void stored(T* to, const T& value) {
    if (reinterpret_cast<std::uintptr_t>(to) % alignof(T) != 0) std::abort();
    std::memcpy(to, &value, sizeof value);
}

inline Word4 ld_global_nc_16(const void* from) { return loaded<Word4>(from); }
inline Float2 ld_global_nc_8(const void* from) { return loaded<Float2>(from); }
inline uint32_t ld_global_nc_2(const void* from) { return loaded<uint16_t>(from); }
inline float ld_global_cg(const float* from) { return *from; }
inline Float4 ld_global_cg(const Float4* from) { return loaded<Float4>(from); }
inline int32_t ld_global_cg(const int32_t* from) { return *from; }
inline uint64_t ld_global_cg(const uint64_t* from) { return *from; }
inline float ld_any(const float* from) { return *from; }
inline Float4 ld_any(const Float4* from) { return loaded<Float4>(from); }
inline void st_16(Float4* to, const Float4& value) { stored(to, value); }
inline void st_8(Float2* to, const Float2& value) { stored(to, value); }

// --- Elements of the features ----------------------------------------------------------------------------------------

inline float widened(float value) { return value; }
inline float widened(BFloat16 value) { return uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
inline float widened(Half value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16, exponent = value.bits >> 10 & 31u,
                   mantissa = value.bits & 1023u;
    if (exponent == 0) {
        const float size = std::ldexp(static_cast<float>(mantissa), -24);
        return sign != 0 ? -size : size;
    }
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    return uint_as_float(sign | wide << 23 | mantissa << 13);
}

// --- Tensor cores ----------------------------------------------------------------------------------------------------

template <class T>
constexpr bool kTensorCoresTake = false;
template <>
constexpr bool kTensorCoresTake<Half> = true;
template <>
constexpr bool kTensorCoresTake<BFloat16> = true;

// What a lane holds of both operands of mma.m16n8k16: see "Matrix fragments for mma.m16n8k16" in the PTX manual.
struct Fragments {
    uint32_t a[4], b[2];
};

template <class T>
float element(uint32_t pair, int which) {
    return widened(T{static_cast<uint16_t>(pair >> 16 * which)});
}

template <class T>
void mma_m16n8k16(T, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                  int line = __builtin_LINE()) {
    const Fragments mine{{a0, a1, a2, a3}, {b0, b1}};
    const Fragments* all = exchanged(mine, line);
    const int group = lane() / 4, in_group = lane() % 4;
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

// --- Over a CTA ------------------------------------------------------------------------------------------------------

template <int kPer>
constexpr int sort_bytes = kPer * 256 * 8;
// In shared memory lie the keys and values of all threads.
template <int kPer>
void cta_sort_descending(uint32_t (&keys)[kPer], int32_t (&values)[kPer], void* shared, int line = __builtin_LINE()) {
    struct Keyed {
        uint32_t key;
        int32_t value;
    };
    auto* all = static_cast<Keyed*>(shared);
    for (int i = 0; i < kPer; ++i) all[thread() * kPer + i] = {keys[i], values[i]};
    emulator::barrier(line);
    if (thread() == 0) {
        std::stable_sort(all, all + emulator::threads() * kPer,
                         [](const Keyed& a, const Keyed& b) { return a.key > b.key; });
    }
    emulator::barrier(line);
    for (int i = 0; i < kPer; ++i) {
        keys[i] = all[thread() * kPer + i].key;
        values[i] = all[thread() * kPer + i].value;
    }
}

// --- For launchers ---------------------------------------------------------------------------------------------------

struct Launch {
    int64_t grid;
    int threads;
    int shared_bytes;
    int cluster;
    bool cooperative;
    void* stream;
};

inline int number_from(const char* variable, int otherwise) {
    const char* given = std::getenv(variable);
    return given != nullptr ? std::atoi(given) : otherwise;
}

// A cooperative launch has room for IDSEL_EMULATOR_ROOM CTAs; a device that is busy has less than resident() says.
template <class Args>
const char* launch(void (*kernel)(Args), const Launch& how, Args args) {
    if (how.cooperative && how.grid > number_from("IDSEL_EMULATOR_ROOM", 1 << 30))
        return "too many CTAs for a cooperative launch";
    return emulator::launch([kernel, &args] { kernel(args); }, how.grid, how.threads, how.shared_bytes, how.cluster,
                            how.cooperative);
}
template <class Args>
int64_t resident(void (*)(Args), const Launch&, int multiprocessors) {
    return multiprocessors;
}

struct Device {
    int multiprocessors;
    int shared_bytes;
    bool clusters;
};

inline const char* current_device(int* to) {
    *to = -1;  // none to remember: its size may change from call to call
    return nullptr;
}

// IDSEL_EMULATOR_MULTIPROCESSORS decides between clusters and single CTAs.
template <class Args>
const char* device_of(void (*)(Args), Device* to) {
    *to = {number_from("IDSEL_EMULATOR_MULTIPROCESSORS", 6), 227 * 1024, true};
    return nullptr;
}

template <class Args>
const char* missing(void (*)(Args), int) {
    return nullptr;
}

}  // namespace arch
}  // namespace idsel::cuda
