// The call of main.cpp with CUDA pointers. The library allocates nothing and waits for nothing: both is done here.
#include <cuda_runtime.h>
#include <idsel/select.h>

#include <cstdlib>
#include <memory>

namespace {

using Buffer = std::unique_ptr<void, cudaError_t (*)(void*)>;

void check(cudaError_t error) {
    if (error != cudaSuccess) std::exit(EXIT_FAILURE);
}

Buffer zeros(size_t bytes) {
    void* address = nullptr;
    check(cudaMalloc(&address, bytes));
    check(cudaMemset(address, 0, bytes));
    return Buffer(address, cudaFree);
}

Buffer copy_of(const void* host, size_t bytes) {
    Buffer buffer = zeros(bytes);
    check(cudaMemcpy(buffer.get(), host, bytes, cudaMemcpyHostToDevice));
    return buffer;
}

}  // namespace

idsel::Status select_on_gpu(idsel::Args args) {
    // No driver, no GPU, or none that the library has code for; idsel_last_error() says which.
    if (const idsel::Status status = idsel_cuda_status(0)) return status;

    const auto tokens = static_cast<size_t>(args.tokens), kept = static_cast<size_t>(args.k_max);
    const Buffer features = copy_of(args.features, tokens * static_cast<size_t>(args.dim) * sizeof(float));
    const Buffer importance = copy_of(args.importance, tokens * sizeof(float));
    const Buffer indices = zeros(kept * sizeof(int64_t)), scores = zeros(kept * sizeof(float));
    int64_t* const host_indices = args.indices;

    args.device = IDSEL_CUDA;
    args.features = features.get();
    args.importance = static_cast<const float*>(importance.get());
    args.indices = static_cast<int64_t*>(indices.get());
    args.scores = static_cast<float*>(scores.get());
    args.workspace_bytes = idsel::workspace_bytes(args);
    if (args.workspace_bytes < 0) return IDSEL_UNSUPPORTED;
    const Buffer workspace = zeros(static_cast<size_t>(args.workspace_bytes));
    const Buffer counters = zeros(IDSEL_COUNTERS_BYTES);  // keep them for the next call on the same stream
    args.workspace = workspace.get();
    args.counters = counters.get();
    args.stream = nullptr;  // the default stream; `k` and `params` stay on the host

    if (const idsel::Status status = idsel::select(args)) return status;
    check(cudaMemcpy(host_indices, args.indices, kept * sizeof(int64_t), cudaMemcpyDeviceToHost));
    return IDSEL_OK;
}
