// From a call to launches: how many samples each takes, where their workspace lies, which kernel.
#include <cstring>
#include <type_traits>

#include "common/fail.h"
#include "cuda/instance.cuh"
#include "cuda/select_cuda.h"
#include "rules/dispatch.h"

namespace idsel::cuda {

// Each is defined in its own file under inst/.
template <>
Kernel kernel<float, State::kToken>(bool);
template <>
Kernel kernel<float, State::kHistory>(bool);
template <>
Kernel kernel<float, State::kCoverage>(bool);
template <>
Kernel kernel<Half, State::kToken>(bool);
template <>
Kernel kernel<Half, State::kHistory>(bool);
template <>
Kernel kernel<Half, State::kCoverage>(bool);
template <>
Kernel kernel<BFloat16, State::kToken>(bool);
template <>
Kernel kernel<BFloat16, State::kHistory>(bool);
template <>
Kernel kernel<BFloat16, State::kCoverage>(bool);

namespace {

template <class T>
Kernel kernel_of(State state, bool in_phases) {
    switch (state) {
        case State::kToken:
            return kernel<T, State::kToken>(in_phases);
        case State::kHistory:
            return kernel<T, State::kHistory>(in_phases);
        case State::kCoverage:
            return kernel<T, State::kCoverage>(in_phases);
    }
    return nullptr;
}

Kernel kernel_of(int32_t dtype, State state, bool in_phases) {
    switch (dtype) {
        case IDSEL_FLOAT32:
            return kernel_of<float>(state, in_phases);
        case IDSEL_FLOAT16:
            return kernel_of<Half>(state, in_phases);
        case IDSEL_BFLOAT16:
            return kernel_of<BFloat16>(state, in_phases);
        default:
            return nullptr;
    }
}

// What the launcher has to know of a rule.
struct RuleTraits {
    State state;
    bool needs_similarities;
    bool needs_nearest;
};

RuleTraits traits_of(const idsel_args& args) {
    RuleTraits traits{};
    with_rule(AllRules{}, args.rule, args.params, [&](const auto& rule) {
        using Rule = std::decay_t<decltype(rule)>;
        traits = {Rule::kState, Rule::kNeedsSimilarities, rule.needs_nearest()};
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

// How a call is done, its sizes, and how many samples one launch takes.
struct Plan {
    explicit Plan(const idsel_args& args);

    void carve(Carver& carver, KernelArgs& to) const;
    // Blocks of each of the samples of a launch.
    int64_t crew(int64_t launched) const { return larger(1, smaller(kCrewBlocks / launched, most_items)); }

    bool ragged;
    int64_t tokens;
    RuleTraits rule;
    bool fits;       // the Gram; of all samples together, for a ragged batch
    bool in_phases;  // blocks of a sample share out work between its picks
    int64_t gram_width;
    int64_t history_depth;
    int64_t partial_tiles;  // per sample
    bool adds_parts;        // of D within an item
    int64_t items;          // per sample; at most, for a ragged batch
    int64_t most_items;     // per phase of a sample
    int64_t samples;        // per launch
    int64_t rows;
};

int64_t gram_budget(const idsel_args& args) {
    return args.gram_budget > 0 ? args.gram_budget : IDSEL_GRAM_BUDGET_BYTES;
}

Plan::Plan(const idsel_args& args) : ragged(args.cu_seqlens != nullptr), tokens(args.tokens), rule(traits_of(args)) {
    const int64_t budget = gram_budget(args) / 4;
    const int64_t tiles = tiles_of(tokens, !rule.needs_similarities);
    const int64_t splits = splits_of(tiles, args.dim);
    fits = !rule.needs_similarities || tokens <= budget / larger(1, tokens);
    in_phases = !fits || (rule.state == State::kCoverage && tokens > kGainsAlone);
    gram_width = !rule.needs_similarities ? 0 : fits ? tokens : kTile;
    // Lengths of a ragged batch are unknown here: its shorter samples may well have room for their whole Gram.
    if (!fits && ragged) gram_width = larger(kTile, budget / tokens);
    history_depth = rule.state == State::kHistory ? smaller(args.k_max, tokens) : 0;
    adds_parts = !fits && (ragged ? splits_of(1, args.dim) : splits) > 1;
    if (!fits) {
        partial_tiles = 0;
        items = 0;
    } else if (ragged) {
        // Only samples of fewer than kSplitTarget tiles are split, into fewer than twice as many items.
        partial_tiles = splits_of(1, args.dim) > 1 ? 2 * kSplitTarget : 0;
        items = larger(1, larger(tiles, partial_tiles));
    } else {
        partial_tiles = splits > 1 ? tiles * splits : 0;
        items = larger(1, tiles * splits);
    }
    most_items = larger(items, ceil_div(tokens, kGainTokens));
    const int64_t numbers = gram_width + history_depth + 2 * kTokenNumbers;
    const int64_t of_rows = tokens * numbers * 4, of_parts = partial_tiles * kTileNumbers * 4;
    const int64_t each = ragged ? of_parts : of_rows + of_parts;
    // One launch puts no more into its workspace than the default budget; a batch beyond it takes several.
    const int64_t left = larger(0, IDSEL_GRAM_BUDGET_BYTES - (ragged ? of_rows : 0));
    samples = larger(1, smaller(smaller(args.batch, kMaxSamples), left / larger(1, each)));
    rows = ragged ? tokens : samples * tokens;
}

void Plan::carve(Carver& carver, KernelArgs& to) const {
    const bool outside = in_phases || tokens > kSharedTokens;
    to.rows = rows;
    to.gram_width = gram_width;
    to.history_depth = history_depth;
    to.partial_tiles = partial_tiles;
    to.gram = carver.take<float>(rows * gram_width);
    to.square = carver.take<float>(rows);
    to.numbers = carver.take<float>(outside ? rows * kTokenNumbers : 0);
    to.tier = carver.take<Tier>(outside ? rows : 0);
    to.history = carver.take<float>(rows * history_depth);
    to.partial = carver.take<float>(samples * partial_tiles * kTileNumbers);
    to.scratch = carver.take<float>(adds_parts ? kCrewBlocks * kTileNumbers : 0);
    to.desks = carver.take<Desk>(in_phases ? samples : 0);
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
    Carver carver(args.workspace);
    plan.carve(carver, to);
    return to;
}

static_assert(kMaxSamples * kCountersPerSample * 4 == IDSEL_COUNTERS_BYTES);
static_assert(sizeof(KernelArgs) <= 4096);
static_assert(kMaxSamples <= kCrewBlocks);  // so no launch has more blocks than kCrewBlocks that work in phases

idsel_status check_limits(const idsel_args& args, const Plan& plan) {
    const auto tokens = static_cast<long long>(args.tokens);
    const char* whose = plan.ragged ? " (of all samples together)" : "";
    if (tokens > kMaxTokens) {
        return fail(IDSEL_UNSUPPORTED, "at most %lld tokens%s, got %lld", static_cast<long long>(kMaxTokens), whose,
                    tokens);
    }
    if (plan.fits || plan.rule.state != State::kCoverage) return IDSEL_OK;
    return fail(IDSEL_UNSUPPORTED,
                "its rule reads all similarities after every pick: those of %lld tokens%s exceed %lld MiB", tokens,
                whose, static_cast<long long>(gram_budget(args) >> 20));
}

// What the dot products of a sample cost, with so many panels.
double flops_of(const idsel_args& args, const Plan& plan, int64_t panels) {
    const auto side = static_cast<double>(ceil_div(plan.tokens, kTile));
    const double all = side * (side + 1) / 2;
    double tiles = plan.fits ? all : (1 + static_cast<double>(panels)) * side + (plan.rule.needs_nearest ? all : 0);
    if (!plan.rule.needs_similarities) tiles = side;
    return plan.ragged ? 0 : tiles * 2 * kTileNumbers * static_cast<double>(args.dim) * static_cast<double>(args.batch);
}

}  // namespace

idsel_status plan(const idsel_args& args, idsel_plan* to) {
    const Plan plan(args);
    if (const idsel_status status = check_limits(args, plan)) return status;
    Carver carver(nullptr);
    KernelArgs unused{};
    plan.carve(carver, unused);
    *to = {};
    to->algorithm = !plan.rule.needs_similarities ? IDSEL_NORMS : plan.fits ? IDSEL_GRAM : IDSEL_PANELS;
    to->in_phases = plan.in_phases ? 1 : 0;
    to->panel_rows = kTile;
    to->launches = ceil_div(args.batch, plan.samples);
    to->workspace_bytes = carver.used();
    if (!plan.fits) {
        // The last pick needs no row.
        to->most_panels = larger(0, smaller(args.k_max, args.tokens) - 1);
        to->least_panels = ceil_div(to->most_panels, kTile);
    }
    to->least_flops = flops_of(args, plan, to->least_panels);
    to->most_flops = flops_of(args, plan, to->most_panels);
    return IDSEL_OK;
}

idsel_status status(int32_t device) {
    if (device < 0) return IDSEL_OK;
    const char* reason = port::missing(kernel_of(IDSEL_FLOAT32, State::kToken, false), device);
    return reason == nullptr ? IDSEL_OK : fail(IDSEL_UNSUPPORTED, "%s", reason);
}

idsel_status select(const idsel_args& args) {
    const Plan plan(args);
    const Kernel kernel = kernel_of(args.dtype, plan.rule.state, plan.in_phases);
    KernelArgs to = kernel_args(args, plan);
    for (int64_t first = 0; first < args.batch; first += plan.samples) {
        to.first_sample = first;
        to.samples = static_cast<int32_t>(smaller(plan.samples, args.batch - first));
        to.crew = static_cast<int32_t>(plan.crew(to.samples));
        to.same_k = args.k_count == 1 ? 1 : 0;
        for (int32_t at = 0; at < (to.same_k != 0 ? 1 : to.samples); ++at) {
            to.k[at] = static_cast<int32_t>(smaller(args.k[to.same_k != 0 ? 0 : first + at], args.tokens));
        }
        const int64_t items = to.samples * plan.items;
        const int64_t grid = plan.in_phases ? int64_t{to.samples} * to.crew
                             : plan.ragged  ? smaller(items, kRaggedBlocks)
                                            : items;
        const size_t shared = kTileBytes + (plan.in_phases ? sizeof(CrewState) : sizeof(Control));
        if (const char* error = port::launch(kernel, grid, kBlockThreads, static_cast<int>(shared), args.stream, to)) {
            return fail(IDSEL_DEVICE_ERROR, "launching the kernel failed: %s", error);
        }
    }
    return IDSEL_OK;
}

}  // namespace idsel::cuda
