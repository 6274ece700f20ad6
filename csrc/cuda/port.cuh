// What device code asks of the machine. The only file that knows of a host build, in which one fiber stands for each
// CUDA thread (tests/emulator): barrier, warp exchanges, atomics, asynchronous copies, the tensor-core product.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define IDSEL_GLOBAL __global__
#define IDSEL_DEVICE __device__ __forceinline__
#define IDSEL_GRID_CONSTANT __grid_constant__
#define IDSEL_LAUNCH_BOUNDS(threads) __launch_bounds__(threads, IDSEL_BLOCKS_AT_ONCE)
#define IDSEL_UNROLL _Pragma("unroll")
#define IDSEL_PRAGMA(words) _Pragma(#words)
#define IDSEL_UNROLL_BY(times) IDSEL_PRAGMA(unroll times)

#include <cuda_runtime.h>

#include "cuda/older.cuh"

// Whether device code is for compute capability 8.0 or later. Before it, a multiprocessor has shared memory for one
// block.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define IDSEL_RECENT 1
#define IDSEL_BLOCKS_AT_ONCE 2
#else
#define IDSEL_RECENT 0
#define IDSEL_BLOCKS_AT_ONCE 1
#endif

namespace idsel::cuda {

// Elements of the features as bits: only tensor cores compute with them.
struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

namespace port {

IDSEL_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
IDSEL_DEVICE int64_t block() { return blockIdx.x; }
IDSEL_DEVICE int64_t blocks() { return gridDim.x; }

IDSEL_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

IDSEL_DEVICE void barrier() { __syncthreads(); }

// Adds one; everything before it in this block's order is seen by whoever sees the sum.
IDSEL_DEVICE int32_t arrive(int32_t* counter) {
    __threadfence();
    const int32_t before = atomicAdd(counter, 1);
    __threadfence();
    return before;
}

IDSEL_DEVICE void reset(int32_t* counter) { atomicExch(counter, 0); }

// A word that blocks watch while others change it. Reading it and adding one order nothing by themselves.
IDSEL_DEVICE uint64_t peek(const uint64_t* word) { return *reinterpret_cast<const volatile unsigned long long*>(word); }
IDSEL_DEVICE uint64_t add_one(uint64_t* word) { return atomicAdd(reinterpret_cast<unsigned long long*>(word), 1ull); }
// What follows sees what was written before the word was set to what this thread has read there.
IDSEL_DEVICE void acquire() { __threadfence(); }
IDSEL_DEVICE void publish(uint64_t* word, uint64_t value) {
    __threadfence();
    atomicExch(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(value));
}
// Between two looks at a word.
IDSEL_DEVICE void rest() { __nanosleep(100); }

IDSEL_DEVICE void raise(uint32_t* to, uint32_t value) { atomicMax(to, value); }

IDSEL_DEVICE uint64_t warp_max(uint64_t value) {
#if IDSEL_RECENT
    const uint32_t high = static_cast<uint32_t>(value >> 32);
    const uint32_t top = __reduce_max_sync(0xffffffffu, high);
    const uint32_t low = __reduce_max_sync(0xffffffffu, high == top ? static_cast<uint32_t>(value) : 0u);
    return static_cast<uint64_t>(top) << 32 | low;
#else
    return older::warp_max(value, [](uint32_t v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); });
#endif
}

IDSEL_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
IDSEL_DEVICE int32_t shuffle_up(int32_t value, int lanes) { return __shfl_up_sync(0xffffffffu, value, lanes); }

IDSEL_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
IDSEL_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// 16 bytes to shared memory. They are there, for this thread, after copies_done of their group.
IDSEL_DEVICE void copy_async(void* to, const void* from) {
#if IDSEL_RECENT
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
    *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}
IDSEL_DEVICE void copies_commit() {
#if IDSEL_RECENT
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// All groups but the `pending` last ones.
template <int pending>
IDSEL_DEVICE void copies_done() {
#if IDSEL_RECENT
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// d (16, 8) += a (16, 16) * b (16, 8), shared out over the lanes of a warp as PTX lays down for mma.m16n8k16.
IDSEL_DEVICE void multiply_add(Half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if IDSEL_RECENT
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // The halves of its operands along k are laid out as the operands of m16n8k8.
    IDSEL_UNROLL
    for (int half = 0; half < 2; ++half) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}
IDSEL_DEVICE void multiply_add(BFloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if IDSEL_RECENT
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    older::multiply_add(
        d, a, b, thread() % 32, [](uint32_t v, int lane) { return __shfl_sync(0xffffffffu, v, lane); },
        [](uint32_t bits) { return bits_float(bits); });
#endif
}

// Enqueues; null, or what went wrong.
template <class Args>
const char* launch(void (*kernel)(Args), int64_t grid, int threads, int shared_bytes, void* stream, Args args) {
    void* values[] = {&args};
    const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(grid)),
                                               dim3(static_cast<unsigned>(threads)), values,
                                               static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream));
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();  // takes it back: it has been reported
    return cudaGetErrorString(error);
}

// Why `kernel` cannot run on a device; null where it can.
template <class Args>
const char* missing(void (*kernel)(Args), int device) {
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess && (device < 0 || device >= devices)) error = cudaErrorInvalidDevice;
    int before = 0;
    if (error == cudaSuccess) error = cudaGetDevice(&before);
    if (error == cudaSuccess) {
        error = cudaSetDevice(device);
        cudaFuncAttributes attributes;
        if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
        cudaSetDevice(before);
    }
    cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace port
}  // namespace idsel::cuda

#else
#include "port_host.h"
#endif
