// From a call to launches.
#include <atomic>
#include <cstring>

#include "common/fail.h"
#include "cuda/gram_kernel.cuh"
#include "cuda/instances.h"
#include "cuda/panel_kernel.cuh"
#include "cuda/plan.h"
#include "cuda/select_cuda.h"
#include "rules/dispatch.h"

namespace idsel::cuda {

// Each is defined in its own file under inst/.
template <>
Kernel gram_kernel_of<IDSelection>();
template <>
Kernel gram_kernel_of<MMR>();
template <>
Kernel gram_kernel_of<MaxMin>();
template <>
Kernel gram_kernel_of<HardSuppress>();
template <>
Kernel gram_kernel_of<DPP>();
template <>
Kernel gram_kernel_of<Coverage>();
template <>
Kernel gram_kernel_of<TopK>();
template <>
Kernel gram_kernel_of<MatrixCoverage>();
template <>
Kernel panel_kernel_of<GreedyRules>();

namespace {

constexpr int kKnownDevices = 64;

template <class... R>
Kernel gram_kernel_by_id(int32_t id, RuleList<R...>) {
    Kernel kernel = nullptr;
    ((R::kId == id ? (kernel = gram_kernel_of<R>(), true) : false) || ...);
    return kernel;
}

struct Launch {
    Kernel kernel;
    arch::Launch how;
};

struct KnownDevice : arch::Device {
    int index;  // -1: not remembered

    // How many CTAs of such a launch of panel_kernel run at the same time; asked until the device says so.
    int64_t resident(const Launch& launch) const {
        static std::atomic<int64_t> known[kKnownDevices][kMaxGroups];
        if (index < 0) return arch::resident(launch.kernel, launch.how, multiprocessors);
        std::atomic<int64_t>& count = known[index][launch.how.cluster - 1];
        if (count.load(std::memory_order_relaxed) == 0) {
            count.store(arch::resident(launch.kernel, launch.how, multiprocessors), std::memory_order_relaxed);
        }
        return count.load(std::memory_order_relaxed);
    }
};

// The current device, looked at once.
const char* current_device(KnownDevice* to) {
    static arch::Device devices[kKnownDevices];
    static std::atomic<bool> known[kKnownDevices];
    int index = 0;
    if (const char* error = arch::current_device(&index)) return error;
    const bool remembers = index >= 0 && index < kKnownDevices;
    to->index = remembers ? index : -1;
    if (remembers && known[index].load(std::memory_order_acquire)) {
        static_cast<arch::Device&>(*to) = devices[index];
        return nullptr;
    }
    if (const char* error = arch::device_of(gram_kernel_of<TopK>(), to)) return error;
    static std::atomic_flag busy = ATOMIC_FLAG_INIT;
    if (remembers && !busy.test_and_set(std::memory_order_acquire)) {
        devices[index] = *to;
        known[index].store(true, std::memory_order_release);
        busy.clear(std::memory_order_release);
    }
    return nullptr;
}

bool rows_are_wide(const idsel_args& args) {
    const int64_t element_bytes = args.dtype == IDSEL_FLOAT32 ? 4 : 2;
    const auto address = reinterpret_cast<std::uintptr_t>(args.features);
    const int64_t strides = args.features_token_stride | (args.cu_seqlens == nullptr ? args.features_batch_stride : 0);
    const bool near = args.tokens * args.features_token_stride * element_bytes < int64_t{1} << 32;
    return address % 16 == 0 && strides * element_bytes % 16 == 0 && near;
}

KernelArgs kernel_args(const idsel_args& args, const Plan& plan) {
    KernelArgs to{};
    to.features = args.features;
    to.dtype = args.features_are_similarities != 0 ? kGivenSimilarities : args.dtype;
    to.dim = static_cast<int32_t>(args.dim);
    to.features_batch_stride = args.features_batch_stride;
    to.features_token_stride = args.features_token_stride;
    to.tokens = args.tokens;
    to.wide_rows = rows_are_wide(args) ? 1 : 0;
    to.importance = args.importance;
    to.importance_batch_stride = args.importance_batch_stride;
    to.importance_token_stride = args.importance_token_stride;
    to.mask = args.mask;
    to.mask_batch_stride = args.mask_batch_stride;
    to.mask_token_stride = args.mask_token_stride;
    to.cu_seqlens = args.cu_seqlens;
    to.grids = args.grids;
    to.given = args.given;
    to.given_count = args.given_count;
    to.k_max = args.k_max;
    to.k_on_device = args.k_on_device;
    to.indices = args.indices;
    to.scores = args.scores;
    to.sort = args.sort;
    to.diagonal_only = plan.rule.needs_similarities ? 0 : 1;
    to.rule_id = args.rule;
    with_rule(GreedyRules{}, args.rule, args.params,
              [&](const auto& rule) { std::memcpy(to.rule, &rule, sizeof rule); });
    to.counters = static_cast<int32_t*>(args.counters);
    to.similarities_read = reinterpret_cast<unsigned long long*>(args.similarities_read);
    to.panels_made = reinterpret_cast<unsigned long long*>(args.panels_made);
    return to;
}

static_assert((kLaunchCounters + kMaxSamples * kCountersPerSample) * 4 == IDSEL_COUNTERS_BYTES);
static_assert(sizeof(KernelArgs) <= 4096);

// A launch of the samples whose Gram is kept. How tiles are shared out changes no bit.
Launch gram_launch(const idsel_args& args, const Plan& plan, const arch::Device& device, KernelArgs& to) {
    const int64_t tiles = to.samples * larger(1, tiles_of(plan.tokens, !plan.rule.needs_similarities));
    const bool shares = device.clusters && !plan.ragged && groups_of(to.dim) == kMaxGroups &&
                        kMaxGroups * tiles <= device.multiprocessors;
    to.cluster = shares ? kMaxGroups : 1;
    to.persistent = plan.ragged ? 1 : 0;
    // Tiles of a ragged batch are at most as many as if all tokens were of one sample.
    const int64_t grid = plan.ragged ? smaller(tiles, device.multiprocessors) : tiles * to.cluster;
    int64_t shared_bytes = kSharedBytes;
    to.shared_history = 0;
    if (plan.rule.state == State::kHistory) {
        const int64_t room = (device.shared_bytes - kHistoryOffset) / 4;
        const int64_t wanted = plan.history_depth * round_up(plan.tokens, 4);
        // What does not fit is in the workspace; of a ragged batch, that of the samples that do not.
        if (wanted <= room || plan.ragged) to.shared_history = smaller(wanted, room);
        shared_bytes = larger(shared_bytes, kHistoryOffset + to.shared_history * 4);
    }
    const arch::Launch how{grid, kCtaThreads, static_cast<int>(shared_bytes), to.cluster, false, args.stream};
    return {gram_kernel_by_id(args.rule, GreedyRules{}), how};
}

// A launch of the samples that are worked on in panels: cooperative, with as many CTAs as help and run at the same
// time.
Launch panel_launch(const idsel_args& args, const Plan& plan, const KnownDevice& device, KernelArgs& to) {
    const int64_t room = (device.shared_bytes - kPanelSharedBytes) / kTokenBytes;
    to.shared_tokens = static_cast<int32_t>(larger(0, smaller(room, kMostSharedTokens)) / kRun * kRun);
    to.cluster = device.clusters && groups_of(to.dim) == kMaxGroups ? kMaxGroups : 1;
    const int shared_bytes = kPanelSharedBytes + to.shared_tokens * kTokenBytes;
    Launch launch{panel_kernel_of<GreedyRules>(),
                  {to.cluster, kCtaThreads, shared_bytes, to.cluster, false, args.stream}};
    const int64_t resident = device.resident(launch);
    // The panel's tokens with one another are a tile too.
    to.group = static_cast<int32_t>(smaller(kMaxGroup, (plan.most_tiles + 1) * to.cluster));
    launch.how.grid = smaller(resident, int64_t{to.samples} * to.group) / to.cluster * to.cluster;
    return launch;
}

idsel_status enqueue(const Launch& launch, const KernelArgs& args) {
    const char* error = arch::launch(launch.kernel, launch.how, args);
    return error == nullptr ? IDSEL_OK : fail(IDSEL_DEVICE_ERROR, "launching the kernel failed: %s", error);
}

// A device may refuse it, for want of room where others use a part of it too: then with fewer CTAs. In the end each
// sample has one, which waits for nobody.
idsel_status enqueue_panels(Launch launch, KernelArgs args) {
    launch.how.cooperative = true;
    for (; launch.how.grid > 0; launch.how.grid = launch.how.grid / 2 / args.cluster * args.cluster) {
        if (arch::launch(launch.kernel, launch.how, args) == nullptr) return IDSEL_OK;
    }
    args.group = args.cluster = 1;
    launch.how.grid = args.samples;
    launch.how.cluster = 1;
    launch.how.cooperative = false;
    return enqueue(launch, args);
}

idsel_status check_limits(const idsel_args& args, const Plan& plan) {
    const auto tokens = static_cast<long long>(args.tokens);
    const char* whose = plan.ragged ? " (of all samples together)" : "";
    if (gram_kernel_by_id(args.rule, GreedyRules{}) == nullptr) {
        return fail(IDSEL_UNSUPPORTED, "rules that decide on all picks at once have no kernel");
    }
    if (tokens > kMaxTokens) {
        return fail(IDSEL_UNSUPPORTED, "at most %lld tokens%s, got %lld", static_cast<long long>(kMaxTokens), whose,
                    tokens);
    }
    if (args.dim > kMaxDim) {
        return fail(IDSEL_UNSUPPORTED, "at most %lld features of a token, got %lld", static_cast<long long>(kMaxDim),
                    static_cast<long long>(args.dim));
    }
    return IDSEL_OK;
}

// What the dot products of a batch cost, with so many panels of each sample.
double flops_of(const idsel_args& args, const Plan& plan, int64_t panels) {
    if (plan.ragged || args.features_are_similarities != 0) return 0;
    const auto side = static_cast<double>(ceil_div(plan.tokens, kTile));
    const double all = side * (side + 1) / 2;
    double tiles = all;
    if (!plan.rule.needs_similarities) {
        tiles = side;
    } else if (!plan.keeps_gram) {
        tiles = static_cast<double>(panels) * (side + 1);  // the panel's tokens with one another are a tile too
        if (plan.rule.needs_runs) tiles += plan.rule.state == State::kCoverage ? side * side : all;
    }
    return tiles * 2 * kTile * kTile * static_cast<double>(args.dim) * static_cast<double>(args.batch);
}

}  // namespace

idsel_status plan(const idsel_args& args, idsel_plan* to) {
    const Plan plan(args);
    if (const idsel_status status = check_limits(args, plan)) return status;
    KernelArgs unused{};
    *to = {};
    to->algorithm = !plan.rule.needs_similarities ? IDSEL_NORMS : plan.keeps_gram ? IDSEL_GRAM : IDSEL_PANELS;
    to->panel_rows = kPanelRows;
    to->launches = ceil_div(args.batch, plan.samples) * (plan.keeps_short ? 2 : 1);
    to->workspace_bytes = plan.lay_out(nullptr, unused);
    if (!plan.keeps_gram) {
        // The last pick needs no row, except for a gain. A panel may have gains of which none wins.
        const int64_t picks = smaller(args.k_max, args.tokens);
        const bool gains = plan.rule.state == State::kCoverage;
        to->least_panels = ceil_div(gains ? picks : larger(0, picks - 1), kPanelRows);
        to->most_panels = gains ? picks * args.tokens : larger(0, picks - 1);
    }
    to->least_flops = flops_of(args, plan, to->least_panels);
    to->most_flops = flops_of(args, plan, to->most_panels);
    return IDSEL_OK;
}

idsel_status status(int32_t device) {
    if (device < 0) return IDSEL_OK;
    const char* reason = arch::missing(gram_kernel_of<TopK>(), device);
    return reason == nullptr ? IDSEL_OK : fail(IDSEL_UNSUPPORTED, "%s", reason);
}

idsel_status select(const idsel_args& args) {
    const Plan plan(args);
    if (const idsel_status status = check_limits(args, plan)) return status;
    if (args.batch == 0 || args.k_max == 0) return IDSEL_OK;
    KernelArgs to = kernel_args(args, plan);
    const int64_t bytes = plan.lay_out(args.workspace, to);
    if (args.workspace_bytes < bytes || (bytes > 0 && args.workspace == nullptr)) {
        return fail(IDSEL_INVALID, "workspace must have %lld bytes, got %lld", static_cast<long long>(bytes),
                    static_cast<long long>(args.workspace_bytes));
    }
    KnownDevice device{};
    if (const char* error = current_device(&device)) return fail(IDSEL_DEVICE_ERROR, "no device: %s", error);
    for (int64_t first = 0; first < args.batch; first += plan.samples) {
        to.first_sample = first;
        to.samples = static_cast<int32_t>(smaller(plan.samples, args.batch - first));
        if (args.k_on_device == nullptr) {
            to.same_k = args.k_count == 1 ? 1 : 0;
            for (int32_t at = 0; at < (to.same_k != 0 ? 1 : to.samples); ++at) {
                to.k[at] = static_cast<int32_t>(smaller(args.k[to.same_k != 0 ? 0 : first + at], args.tokens));
            }
        }
        if (plan.keeps_gram || plan.keeps_short) {
            const Launch launch = gram_launch(args, plan, device, to);
            if (const idsel_status status = enqueue(launch, to)) return status;
        }
        if (!plan.keeps_gram) {
            const Launch launch = panel_launch(args, plan, device, to);
            if (const idsel_status status = enqueue_panels(launch, to)) return status;
        }
    }
    return IDSEL_OK;
}

}  // namespace idsel::cuda
