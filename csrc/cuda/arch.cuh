// What device code asks of the machine, named as the instructions. It and arch_sort.cuh alone know of a host build, in
// which one fiber stands for each CUDA thread (tests/emulator).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define IDSEL_GLOBAL __global__
#define IDSEL_DEVICE __device__ __forceinline__
#define IDSEL_DEVICE_CALL __device__ __noinline__

#define IDSEL_GRID_CONSTANT __grid_constant__
#define IDSEL_LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#define IDSEL_UNROLL _Pragma("unroll")
#define IDSEL_PRAGMA(words) _Pragma(#words)
#define IDSEL_UNROLL_BY(times) IDSEL_PRAGMA(unroll times)

#include <cuda_runtime.h>

#include "cuda/sm75_fallback.cuh"
#include "cuda/vector_types.h"

// Compute capability 8.0 has redux and bfloat16 on tensor cores; 9.0 has clusters.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define IDSEL_SM80 1
#else
#define IDSEL_SM80 0
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define IDSEL_SM90 1
#else
#define IDSEL_SM90 0
#endif

namespace idsel::cuda {

namespace arch {

IDSEL_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
// The same, read again: what is computed from it is not kept in registers across what comes before.
IDSEL_DEVICE int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    __builtin_assume(thread >= 0);  // quotients then need no care of a sign
    return thread;
}
IDSEL_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32u); }
IDSEL_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32u); }
IDSEL_DEVICE int64_t block() { return blockIdx.x; }
IDSEL_DEVICE int64_t blocks() { return gridDim.x; }

IDSEL_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

IDSEL_DEVICE float uint_as_float(uint32_t bits) { return __uint_as_float(bits); }
IDSEL_DEVICE uint32_t float_as_uint(float value) { return __float_as_uint(value); }

// --- Synchronisation -------------------------------------------------------------------------------------------------

IDSEL_DEVICE void cta_sync() { __syncthreads(); }

// Adds, and orders this thread's accesses, and those it has seen in order before, around it.
IDSEL_DEVICE int32_t atom_add_acq_rel(int32_t* counter, int32_t value) {
    int32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
    return before;
}
IDSEL_DEVICE void red_add_release(uint32_t* counter, uint32_t value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
IDSEL_DEVICE void st_relaxed(int32_t* word, int32_t value) {
    asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
IDSEL_DEVICE uint32_t ld_acquire(const uint32_t* word) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
// In a loop that waits for other CTAs.
IDSEL_DEVICE void spin() {}
IDSEL_DEVICE void warp_sync() { __syncwarp(); }

IDSEL_DEVICE void red_max(uint32_t* to, uint32_t value) { atomicMax(to, value); }
IDSEL_DEVICE void red_add(unsigned long long* to, unsigned long long value) { atomicAdd(to, value); }
// A word of shared memory that another warp may change.
IDSEL_DEVICE uint32_t ld_volatile(const uint32_t* from) { return *static_cast<const volatile uint32_t*>(from); }

// --- Clusters of CTAs ------------------------------------------------------------------------------------------------

// All of one cluster's shared memory is there between two cluster barriers.
IDSEL_DEVICE void cluster_arrive() {
#if IDSEL_SM90
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
IDSEL_DEVICE void cluster_wait() {
#if IDSEL_SM90
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// To the place of `to` in the shared memory of another CTA of the cluster.
IDSEL_DEVICE void st_shared_cluster(Float4* to, int rank, const Float4& value) {
#if IDSEL_SM90
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.v[0]), "f"(value.v[1]),
                 "f"(value.v[2]), "f"(value.v[3])
                 : "memory");
#endif
}
IDSEL_DEVICE void st_shared_cluster(float* to, int rank, float value) {
#if IDSEL_SM90
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#endif
}

// --- Within a warp ---------------------------------------------------------------------------------------------------

IDSEL_DEVICE uint32_t shfl(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
IDSEL_DEVICE float shfl(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
IDSEL_DEVICE float shfl_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
IDSEL_DEVICE int32_t shfl_up(int32_t value, int lanes) { return __shfl_up_sync(0xffffffffu, value, lanes); }
IDSEL_DEVICE uint32_t vote_ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }
IDSEL_DEVICE int find_first_set(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

IDSEL_DEVICE uint32_t redux_max(uint32_t value) {
#if IDSEL_SM80
    return __reduce_max_sync(0xffffffffu, value);
#else
    return sm75::redux_max(value, [](uint32_t v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); });
#endif
}

// --- Loads -----------------------------------------------------------------------------------------------------------

// Of the features, which nobody writes.
IDSEL_DEVICE Word4 ld_global_nc_16(const void* from) {
    const uint4 value = __ldg(static_cast<const uint4*>(from));
    return {value.x, value.y, value.z, value.w};
}
IDSEL_DEVICE Float2 ld_global_nc_8(const void* from) {
    const float2 value = __ldg(static_cast<const float2*>(from));
    return {value.x, value.y};
}
// One element.
IDSEL_DEVICE uint32_t ld_global_nc_2(const void* from) {
    uint16_t value;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(from));
    return value;
}

// From the L2 cache, where other CTAs have written it.
IDSEL_DEVICE float ld_global_cg(const float* from) { return __ldcg(from); }
IDSEL_DEVICE Float4 ld_global_cg(const Float4* from) {
    const float4 value = __ldcg(reinterpret_cast<const float4*>(from));
    return {value.x, value.y, value.z, value.w};
}
IDSEL_DEVICE int32_t ld_global_cg(const int32_t* from) { return __ldcg(from); }
IDSEL_DEVICE uint64_t ld_global_cg(const uint64_t* from) {
    return __ldcg(reinterpret_cast<const unsigned long long*>(from));
}
IDSEL_DEVICE void st_16(Float4* to, const Float4& value) {
    *reinterpret_cast<float4*>(to) = make_float4(value.v[0], value.v[1], value.v[2], value.v[3]);
}
// Of any memory.
IDSEL_DEVICE float ld_any(const float* from) { return *from; }
IDSEL_DEVICE Float4 ld_any(const Float4* from) {
    const float4 value = *reinterpret_cast<const float4*>(from);
    return {value.x, value.y, value.z, value.w};
}
IDSEL_DEVICE void st_8(Float2* to, const Float2& value) {
    *reinterpret_cast<float2*>(to) = make_float2(value.v[0], value.v[1]);
}

// --- Elements of the features ----------------------------------------------------------------------------------------

IDSEL_DEVICE float widened(float value) { return value; }
IDSEL_DEVICE float widened(BFloat16 value) { return uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
IDSEL_DEVICE float widened(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

// --- Tensor cores ----------------------------------------------------------------------------------------------------

// Whether they multiply these elements, exactly and with sums in float32.
template <class T>
constexpr bool kTensorCoresTake = false;
template <>
constexpr bool kTensorCoresTake<Half> = true;
template <>
constexpr bool kTensorCoresTake<BFloat16> = IDSEL_SM80;

// d (16, 8) += a (16, 16) * b (16, 8), shared out over the lanes of a warp as PTX lays down for mma.m16n8k16.
IDSEL_DEVICE void mma_m16n8k16(Half, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                               uint32_t b1) {
#if IDSEL_SM80
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    // The halves of its operands along k are laid out as the operands of m16n8k8.
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a2), "r"(a3), "r"(b1));
#endif
}
IDSEL_DEVICE void mma_m16n8k16(BFloat16, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                               uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// --- For launchers ---------------------------------------------------------------------------------------------------

struct Launch {
    int64_t grid;
    int threads;
    int shared_bytes;
    int cluster;       // CTAs
    bool cooperative;  // all run at the same time, or none does
    void* stream;
};

inline const char* words_of(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();  // takes it back: it is reported
    return cudaGetErrorString(error);
}

template <class Args>
cudaError_t allow_shared(void (*kernel)(Args), int bytes) {
    constexpr int kAlwaysAllowed = 48 * 1024;
    if (bytes <= kAlwaysAllowed) return cudaSuccess;
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                bytes);
}

// A launch as CUDA describes it.
struct LaunchConfig {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    explicit LaunchConfig(const Launch& how) {
        config.gridDim = dim3(static_cast<unsigned>(how.grid));
        config.blockDim = dim3(static_cast<unsigned>(how.threads));
        config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
        config.stream = static_cast<cudaStream_t>(how.stream);
        config.attrs = attributes;
        if (how.cluster > 1) {
            cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim.x = static_cast<unsigned>(how.cluster);
            attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        }
        if (how.cooperative) {
            cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        }
    }
};

// Enqueues; null, or what went wrong.
template <class Args>
const char* launch(void (*kernel)(Args), const Launch& how, Args args) {
    if (const cudaError_t error = allow_shared(kernel, how.shared_bytes)) return words_of(error);
    LaunchConfig described(how);
    void* values[] = {&args};
    return words_of(cudaLaunchKernelExC(&described.config, reinterpret_cast<const void*>(kernel), values));
}

// How many CTAs of a cooperative launch the current device runs at the same time; 0 where it has none such, or does not
// say. `how` is not cooperative: a device is asked about its room.
template <class Args>
int64_t resident(void (*kernel)(Args), const Launch& how, int multiprocessors) {
    int device = 0, cooperative = 0, count = 0;
    const auto* code = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
    if (error == cudaSuccess) error = allow_shared(kernel, how.shared_bytes);
    if (error == cudaSuccess && how.cluster > 1) {
        LaunchConfig described(how);
        error = cudaOccupancyMaxActiveClusters(&count, code, &described.config);
        count *= how.cluster;
    } else if (error == cudaSuccess) {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, code, how.threads,
                                                              static_cast<size_t>(how.shared_bytes));
        count *= multiprocessors;
    }
    if (error != cudaSuccess) cudaGetLastError();  // takes it back: the launch does without
    return error == cudaSuccess && cooperative != 0 ? count : 0;
}

// What a plan asks of a device.
struct Device {
    int multiprocessors;
    int shared_bytes;  // the most that a CTA can have
    bool clusters;
};

// Of the current device. `kernel` is any of ours: the code that runs may be of an older compute capability.
template <class Args>
const char* device_of(void (*kernel)(Args), Device* to) {
    int device = 0, multiprocessors = 0, shared_bytes = 0;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return words_of(error);
    *to = {multiprocessors, shared_bytes, attributes.ptxVersion >= 90};
    return nullptr;
}

// The number of the current device.
inline const char* current_device(int* to) { return words_of(cudaGetDevice(to)); }

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
    return words_of(error);
}

}  // namespace arch
}  // namespace idsel::cuda

#else
#include "arch_host.h"
#endif
