// From a call to launches: how many samples each takes, where their workspace lies, which kernel.
#include <cstring>
#include <type_traits>

#include "common/check.h"
#include "common/dispatch.h"
#include "cuda/instance.cuh"
#include "cuda/select_cuda.h"

namespace idsel::cuda {

// Each is defined in its own file under inst/.
template <>
Kernel kernel<float, Family::kToken>();
template <>
Kernel kernel<float, Family::kHistory>();
template <>
Kernel kernel<float, Family::kCoverage>();
template <>
Kernel kernel<Half, Family::kToken>();
template <>
Kernel kernel<Half, Family::kHistory>();
template <>
Kernel kernel<Half, Family::kCoverage>();
template <>
Kernel kernel<BFloat16, Family::kToken>();
template <>
Kernel kernel<BFloat16, Family::kHistory>();
template <>
Kernel kernel<BFloat16, Family::kCoverage>();

namespace {

template <class T>
Kernel kernel_of(Family family) {
    switch (family) {
        case Family::kToken:
            return kernel<T, Family::kToken>();
        case Family::kHistory:
            return kernel<T, Family::kHistory>();
        case Family::kCoverage:
            return kernel<T, Family::kCoverage>();
    }
    return nullptr;
}

Kernel kernel_of(int32_t dtype, Family family) {
    switch (dtype) {
        case IDSEL_FLOAT32:
            return kernel_of<float>(family);
        case IDSEL_FLOAT16:
            return kernel_of<Half>(family);
        case IDSEL_BFLOAT16:
            return kernel_of<BFloat16>(family);
        default:
            return nullptr;
    }
}

// What the launcher has to know of a rule.
struct RuleTraits {
    Family family;
    bool needs_similarities;
};

RuleTraits traits_of(int32_t id) {
    RuleTraits traits{};
    const double none[kRuleBytes] = {};
    with_rule(AllRules{}, id, none, [&](const auto& rule) {
        using Rule = std::decay_t<decltype(rule)>;
        traits = {family_of<Rule>(), !std::is_same_v<Rule, TopK>};
    });
    return traits;
}

// Hands out parts of the workspace, or only counts where there is none yet.
class Carver {
  public:
    explicit Carver(void* base) : base_(static_cast<unsigned char*>(base)) {}

    template <class T>
    T* take(int64_t count) {
        constexpr int64_t kAlignment = 256;
        const int64_t at = used_;
        used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
        return count == 0 || base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }
    int64_t used() const { return used_; }

  private:
    unsigned char* base_;
    int64_t used_ = 0;
};

// Sizes of a call, and how many samples one launch takes.
struct Plan {
    explicit Plan(const idsel_args& args);

    void carve(Carver& carver, KernelArgs& to) const;

    bool ragged;
    int64_t tokens;
    RuleTraits rule;
    int64_t history_depth;
    int64_t partial_tiles;  // per sample
    int64_t items;          // per sample; at most, for a ragged batch
    int64_t samples;        // per launch
    int64_t rows;
};

Plan::Plan(const idsel_args& args)
    : ragged(args.cu_seqlens != nullptr), tokens(args.tokens), rule(traits_of(args.rule)) {
    const int64_t tiles = tiles_of(tokens, !rule.needs_similarities);
    const int64_t splits = splits_of(tiles, args.dim);
    history_depth = rule.family == Family::kHistory ? smaller(args.k_max, tokens) : 0;
    if (ragged) {
        // Only samples of fewer than kSplitTarget tiles are split, into fewer than twice as many items.
        partial_tiles = splits_of(1, args.dim) > 1 ? 2 * kSplitTarget : 0;
        items = larger(1, larger(tiles, partial_tiles));
    } else {
        partial_tiles = splits > 1 ? tiles * splits : 0;
        items = larger(1, tiles * splits);
    }
    const int64_t numbers = (rule.needs_similarities ? tokens : 0) + history_depth + 2 * kTokenNumbers;
    const int64_t of_rows = tokens * numbers * 4, of_parts = partial_tiles * kTileNumbers * 4;
    const int64_t each = ragged ? of_parts : of_rows + of_parts;
    const int64_t left = larger(0, kGramBudgetBytes - (ragged ? of_rows : 0));
    samples = larger(1, smaller(smaller(args.batch, kMaxSamples), left / larger(1, each)));
    rows = ragged ? tokens : samples * tokens;
}

void Plan::carve(Carver& carver, KernelArgs& to) const {
    const bool outside = tokens > kSharedTokens;
    to.rows = rows;
    to.history_depth = history_depth;
    to.partial_tiles = partial_tiles;
    to.gram = carver.take<float>(rule.needs_similarities ? rows * tokens : 0);
    to.square = carver.take<float>(rows);
    to.numbers = carver.take<float>(outside ? rows * kTokenNumbers : 0);
    to.status = carver.take<uint8_t>(outside ? rows : 0);
    to.history = carver.take<float>(rows * history_depth);
    to.partial = carver.take<float>(samples * partial_tiles * kTileNumbers);
}

int64_t element_bytes(const idsel_args& args) { return args.dtype == IDSEL_FLOAT32 ? 4 : 2; }

bool rows_are_wide(const idsel_args& args) {
    const auto address = reinterpret_cast<std::uintptr_t>(args.features);
    const int64_t strides = args.features_token_stride | (args.cu_seqlens == nullptr ? args.features_batch_stride : 0);
    return address % 16 == 0 && strides * element_bytes(args) % 16 == 0;
}

KernelArgs kernel_args(const idsel_args& args, const Plan& plan) {
    KernelArgs to{};
    to.features = args.features;
    to.dim = args.dim;
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
    to.k_max = args.k_max;
    to.indices = args.indices;
    to.scores = args.scores;
    to.sort = args.sort;
    to.rule_id = args.rule;
    to.diagonal_only = plan.rule.needs_similarities ? 0 : 1;
    with_rule(AllRules{}, args.rule, args.params, [&](const auto& rule) { std::memcpy(to.rule, &rule, sizeof rule); });
    to.counters = static_cast<int32_t*>(args.counters);
    to.counters_per_sample = 1 + kSplitTarget;
    Carver carver(args.workspace);
    plan.carve(carver, to);
    return to;
}

static_assert(kMaxSamples * (1 + kSplitTarget) * 4 == IDSEL_COUNTERS_BYTES);
static_assert(sizeof(KernelArgs) <= 4096);

}  // namespace

int64_t workspace_bytes(const idsel_args& args) {
    const Plan plan(args);
    const int64_t limit = plan.rule.needs_similarities ? kGramBudgetBytes / 4 : kMaxTokens;
    const bool too_many = plan.rule.needs_similarities ? args.tokens * args.tokens > limit : args.tokens > limit;
    if (too_many) {
        fail(IDSEL_UNSUPPORTED,
             "the similarities of %lld tokens%s exceed the %lld MiB of workspace that a call may take",
             static_cast<long long>(args.tokens), plan.ragged ? " (of all samples together)" : "",
             static_cast<long long>(kGramBudgetBytes >> 20));
        return -1;
    }
    Carver carver(nullptr);
    KernelArgs unused{};
    plan.carve(carver, unused);
    return carver.used();
}

idsel_status status(int32_t device) {
    if (device < 0) return IDSEL_OK;
    const char* reason = port::missing(kernel_of(IDSEL_FLOAT32, Family::kToken), device);
    return reason == nullptr ? IDSEL_OK : fail(IDSEL_UNSUPPORTED, "%s", reason);
}

idsel_status select(const idsel_args& args) {
    const Plan plan(args);
    const Kernel kernel = kernel_of(args.dtype, plan.rule.family);
    KernelArgs to = kernel_args(args, plan);
    for (int64_t first = 0; first < args.batch; first += plan.samples) {
        to.first_sample = first;
        to.samples = static_cast<int32_t>(smaller(plan.samples, args.batch - first));
        to.same_k = args.k_count == 1 ? 1 : 0;
        for (int32_t at = 0; at < (to.same_k != 0 ? 1 : to.samples); ++at) {
            to.k[at] = static_cast<int32_t>(smaller(args.k[to.same_k != 0 ? 0 : first + at], args.tokens));
        }
        const int64_t items = to.samples * plan.items;
        const int64_t grid = plan.ragged ? smaller(items, kRaggedBlocks) : items;
        constexpr int kSharedBytes = kTileBytes + static_cast<int>(sizeof(Control));
        if (const char* error = port::launch(kernel, grid, kBlockThreads, kSharedBytes, args.stream, to)) {
            return fail(IDSEL_DEVICE_ERROR, "launching the kernel failed: %s", error);
        }
    }
    return IDSEL_OK;
}

}  // namespace idsel::cuda
