// The entry points: memory safety, and the way to the device.
#include "idsel/select.h"

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <new>

#include "common/fail.h"
#include "cpu/kernels.h"
#include "cpu/select_cpu.h"
#include "cuda/select_cuda.h"
#include "rules/rules.h"

namespace idsel {

namespace {

template <class R>
constexpr idsel_rule_info row_of_table() {
    return {R::kId, R::kParamCount, R::kName, R::kParams, name_of(R::kState), R::kNeedsSimilarities ? 1 : 0};
}

template <class... R>
constexpr int32_t table_size(RuleList<R...>) {
    return sizeof...(R);
}

template <class... R>
const idsel_rule_info* table(RuleList<R...>) {
    static constexpr idsel_rule_info kRows[] = {row_of_table<R>()...};
    return kRows;
}

const idsel_rule_info* find_rule(int32_t id) {
    for (int32_t position = 0; const idsel_rule_info* rule = idsel_rule(position); ++position) {
        if (rule->id == id) return rule;
    }
    return nullptr;
}

idsel_status check_sizes(const idsel_args& args) {
    const bool no_dim = args.dim < 1 && args.features_are_similarities == 0;
    if (args.batch < 0 || args.tokens < 0 || no_dim || args.k_max < 0) {
        return fail(IDSEL_INVALID, "need batch, tokens, k_max >= 0 and dim >= 1, got %lld, %lld, %lld and %lld",
                    static_cast<long long>(args.batch), static_cast<long long>(args.tokens),
                    static_cast<long long>(args.k_max), static_cast<long long>(args.dim));
    }
    if (args.tokens > std::numeric_limits<int32_t>::max()) {
        return fail(IDSEL_UNSUPPORTED, "at most 2^31 - 1 tokens, got %lld", static_cast<long long>(args.tokens));
    }
    if (args.dtype < IDSEL_FLOAT32 || args.dtype > IDSEL_BFLOAT16) {
        return fail(IDSEL_INVALID, "dtype must be an idsel_dtype, got %d", args.dtype);
    }
    return IDSEL_OK;
}

idsel_status check_rule(const idsel_args& args) {
    const idsel_rule_info* rule = find_rule(args.rule);
    if (rule == nullptr) return fail(IDSEL_INVALID, "rule must be an id of the rule table, got %d", args.rule);
    if (args.param_count != rule->param_count) {
        return fail(IDSEL_INVALID, "%s has %d parameters, got %lld", rule->name, rule->param_count,
                    static_cast<long long>(args.param_count));
    }
    if (args.param_count > 0 && args.params == nullptr) return fail(IDSEL_INVALID, "params is NULL");
    return IDSEL_OK;
}

idsel_status check_similarities(const idsel_args& args) {
    if (args.features_are_similarities == 0) return IDSEL_OK;
    if (args.dim != args.tokens || args.dtype != IDSEL_FLOAT32 || args.cu_seqlens != nullptr) {
        return fail(IDSEL_INVALID,
                    "similarities must be (B, N, N) in float32 without cu_seqlens, got dim %lld, tokens %lld, dtype %d",
                    static_cast<long long>(args.dim), static_cast<long long>(args.tokens), args.dtype);
    }
    const idsel_rule_info& rule = *find_rule(args.rule);
    if (rule.state == name_of(State::kChannels)) return fail(IDSEL_INVALID, "%s takes no similarities", rule.name);
    return IDSEL_OK;
}

idsel_status check_counts(const idsel_args& args) {
    if (args.k_on_device != nullptr) {
        if (args.device == IDSEL_CUDA) return IDSEL_OK;
        return fail(IDSEL_INVALID, "k_on_device is for the CUDA path");
    }
    if (args.k == nullptr || (args.k_count != 1 && args.k_count != args.batch)) {
        return fail(IDSEL_INVALID, "k must hold 1 or batch = %lld counts, got %lld", static_cast<long long>(args.batch),
                    static_cast<long long>(args.k_count));
    }
    for (int64_t i = 0; i < args.k_count; ++i) {
        if (args.k[i] < 0 || args.k[i] > args.k_max) {
            return fail(IDSEL_INVALID, "k[%lld] must lie in [0, k_max = %lld], got %lld", static_cast<long long>(i),
                        static_cast<long long>(args.k_max), static_cast<long long>(args.k[i]));
        }
    }
    return IDSEL_OK;
}

idsel_status check_given(const idsel_args& args) {
    if (args.given == nullptr) return IDSEL_OK;
    if (args.given_count < 0) {
        return fail(IDSEL_INVALID, "given_count must be >= 0, got %lld", static_cast<long long>(args.given_count));
    }
    const idsel_rule_info& rule = *find_rule(args.rule);
    if (rule.state == name_of(State::kAll)) return fail(IDSEL_INVALID, "%s takes no given tokens", rule.name);
    return IDSEL_OK;
}

idsel_status check_buffers(const idsel_args& args) {
    const bool any_output = args.batch > 0 && args.k_max > 0;
    if (any_output && (args.indices == nullptr || args.scores == nullptr)) {
        return fail(IDSEL_INVALID, "indices and scores must not be NULL");
    }
    if (args.batch > 0 && args.tokens > 0 && args.features == nullptr) {
        return fail(IDSEL_INVALID, "features must not be NULL");
    }
    return IDSEL_OK;
}

idsel_status check_offsets(const idsel_args& args) {
    if (args.cu_seqlens == nullptr) return IDSEL_OK;
    int64_t previous = 0;
    for (int64_t b = 0; b <= args.batch; ++b) {
        if (args.cu_seqlens[b] < previous || args.cu_seqlens[b] > args.tokens) {
            return fail(IDSEL_INVALID, "cu_seqlens must rise from 0 to at most %lld, got %d at %lld",
                        static_cast<long long>(args.tokens), args.cu_seqlens[b], static_cast<long long>(b));
        }
        previous = args.cu_seqlens[b];
    }
    return IDSEL_OK;
}

idsel_status check(const idsel_args& args) {
    if (args.abi != IDSEL_ABI) return fail(IDSEL_INVALID, "abi must be %d, got %u", IDSEL_ABI, args.abi);
    for (auto* step : {check_sizes, check_rule, check_similarities, check_counts, check_given, check_buffers}) {
        if (const idsel_status status = step(args)) return status;
    }
    return IDSEL_OK;
}

idsel_status select_cpu(const idsel_args& args) {
    if (const idsel_status status = check_offsets(args)) return status;
    if (args.features_dim_stride != 1 && args.dim > 1) {
        return fail(IDSEL_UNSUPPORTED, "the CPU path needs features_dim_stride = 1, got %lld",
                    static_cast<long long>(args.features_dim_stride));
    }
    if (args.loop < IDSEL_LOOP_AUTO || args.loop > IDSEL_LOOP_GRAM) {
        return fail(IDSEL_INVALID, "loop has to be an idsel_loop, got %d", args.loop);
    }
    if (cpu::kernels(args.isa) == nullptr) {
        return fail(IDSEL_UNSUPPORTED, "instruction set %d is not in this build or not on this machine", args.isa);
    }
    cpu::select(args);
    return IDSEL_OK;
}

idsel_status check_cuda(const idsel_args& args) {
    if (args.features_dim_stride != 1 && args.dim > 1) {
        return fail(IDSEL_UNSUPPORTED, "the CUDA path needs features_dim_stride = 1, got %lld",
                    static_cast<long long>(args.features_dim_stride));
    }
    return IDSEL_OK;
}

idsel_status select_cuda(const idsel_args& args) {
    if (const idsel_status status = check_cuda(args)) return status;
    const bool any_output = args.batch > 0 && args.k_max > 0;
    if (any_output && (args.counters == nullptr || reinterpret_cast<std::uintptr_t>(args.counters) % 8 != 0)) {
        return fail(IDSEL_INVALID, "counters must not be NULL, and aligned to 8 bytes");
    }
    return cuda::select(args);
}

}  // namespace
}  // namespace idsel

using idsel::fail;

idsel_status idsel_select(const idsel_args* args) {
    if (args == nullptr) return fail(IDSEL_INVALID, "args must not be NULL");
    try {
        if (const idsel_status status = idsel::check(*args)) return status;
        if (args->device == IDSEL_CPU) return idsel::select_cpu(*args);
        if (args->device == IDSEL_CUDA) return idsel::select_cuda(*args);
        return fail(IDSEL_INVALID, "device must be an idsel_device, got %d", args->device);
    } catch (const std::bad_alloc&) {
        return fail(IDSEL_OUT_OF_MEMORY, "out of host memory");
    } catch (const std::exception& error) {
        return fail(IDSEL_INTERNAL, "%s", error.what());
    } catch (...) {
        return fail(IDSEL_INTERNAL, "unknown exception");
    }
}

int64_t idsel_workspace_bytes(const idsel_args* args) {
    if (args == nullptr) {
        fail(IDSEL_INVALID, "args must not be NULL");
        return -1;
    }
    if (idsel::check_sizes(*args) != IDSEL_OK || idsel::check_rule(*args) != IDSEL_OK) return -1;
    if (args->device != IDSEL_CUDA) return 0;
    idsel_plan plan;
    return idsel::cuda::plan(*args, &plan) == IDSEL_OK ? plan.workspace_bytes : -1;
}

idsel_status idsel_cuda_plan(const idsel_args* args, idsel_plan* plan) {
    if (args == nullptr || plan == nullptr) return fail(IDSEL_INVALID, "args and plan must not be NULL");
    if (const idsel_status status = idsel::check_sizes(*args)) return status;
    if (const idsel_status status = idsel::check_rule(*args)) return status;
    return idsel::cuda::plan(*args, plan);
}

idsel_status idsel_cuda_status(int32_t device) { return idsel::cuda::status(device); }

const char* idsel_last_error(void) { return idsel::last_failure(); }

uint32_t idsel_abi(void) { return IDSEL_ABI; }

const idsel_rule_info* idsel_rule(int32_t position) {
    const bool inside = position >= 0 && position < idsel::table_size(idsel::AllRules{});
    return inside ? idsel::table(idsel::AllRules{}) + position : nullptr;
}

int32_t idsel_resolve_isa(int32_t isa) {
    const idsel::cpu::Kernels* table = idsel::cpu::kernels(isa);
    return table == nullptr ? -1 : static_cast<int32_t>(table->isa);
}
