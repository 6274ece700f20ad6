// The Python module: pointers come as integers, a status goes back as an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "idsel/select.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// A tensor as (address, stride of the batch axis, stride of the token axis); address 0 for an absent one.
using Companion = std::tuple<std::uintptr_t, std::int64_t, std::int64_t>;

[[noreturn]] void raise(idsel_status status) {
    if (status == IDSEL_OUT_OF_MEMORY) {
        PyErr_SetString(PyExc_MemoryError, idsel_last_error());
        throw py::error_already_set();
    }
    if (status == IDSEL_INTERNAL || status == IDSEL_DEVICE_ERROR) throw std::runtime_error(idsel_last_error());
    throw py::value_error(idsel_last_error());
}

py::list stats_to_python(const std::vector<idsel_stats>& stats) {
    py::list rows;
    for (const idsel_stats& s : stats) {
        rows.append(py::make_tuple(s.similarities, s.norms, s.lazy_picks, s.path, s.isa));
    }
    return rows;
}

// What a call on either device is told, in the order of idsel_kernels/engines/library_call.py. `k` and `params` stay
// the caller's.
idsel_args common_args(std::int32_t device, std::uintptr_t features, const std::vector<std::int64_t>& strides,
                       const Companion& importance, const Companion& mask, std::uintptr_t cu_seqlens,
                       std::uintptr_t indices, std::uintptr_t scores, std::int32_t dtype,
                       const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& k, std::int64_t k_max,
                       std::int32_t rule, const std::vector<double>& params, bool sort) {
    if (shape.size() != 3 || strides.size() != 3)
        throw py::value_error("shape and strides must be (batch, token, dim)");
    idsel_args args{};
    args.abi = IDSEL_ABI;
    args.device = device;
    args.dtype = dtype;
    args.rule = rule;
    args.features = pointer<const void>(features);
    args.batch = shape[0];
    args.tokens = shape[1];
    args.dim = shape[2];
    args.features_batch_stride = strides[0];
    args.features_token_stride = strides[1];
    args.features_dim_stride = strides[2];
    args.importance = pointer<const float>(std::get<0>(importance));
    args.importance_batch_stride = std::get<1>(importance);
    args.importance_token_stride = std::get<2>(importance);
    args.mask = pointer<const std::uint8_t>(std::get<0>(mask));
    args.mask_batch_stride = std::get<1>(mask);
    args.mask_token_stride = std::get<2>(mask);
    args.cu_seqlens = pointer<const std::int32_t>(cu_seqlens);
    args.k = k.data();
    args.k_count = static_cast<std::int64_t>(k.size());
    args.k_max = k_max;
    args.params = params.data();
    args.param_count = static_cast<std::int64_t>(params.size());
    args.indices = pointer<std::int64_t>(indices);
    args.scores = pointer<float>(scores);
    args.sort = sort ? 1 : 0;
    return args;
}

void call(const idsel_args& args) {
    idsel_status status;
    {
        const py::gil_scoped_release release;
        status = idsel_select(&args);
    }
    // The message is this thread's, and nothing has run on it since.
    if (status != IDSEL_OK) raise(status);
}

py::object select_cpu(std::uintptr_t features, const std::vector<std::int64_t>& strides, const Companion& importance,
                      const Companion& mask, std::uintptr_t cu_seqlens, std::uintptr_t indices, std::uintptr_t scores,
                      std::int32_t dtype, const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& k,
                      std::int64_t k_max, std::int32_t rule, const std::vector<double>& params, bool sort,
                      std::int32_t threads, std::int32_t isa, bool stats) {
    idsel_args args = common_args(IDSEL_CPU, features, strides, importance, mask, cu_seqlens, indices, scores, dtype,
                                  shape, k, k_max, rule, params, sort);
    std::vector<idsel_stats> counted(stats ? static_cast<std::size_t>(shape[0]) : 0);
    args.threads = threads;
    args.isa = isa;
    args.stats = stats ? counted.data() : nullptr;
    call(args);
    return stats ? py::object(stats_to_python(counted)) : py::none();
}

void select_cuda(std::uintptr_t features, const std::vector<std::int64_t>& strides, const Companion& importance,
                 const Companion& mask, std::uintptr_t cu_seqlens, std::uintptr_t indices, std::uintptr_t scores,
                 std::int32_t dtype, const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& k,
                 std::int64_t k_max, std::int32_t rule, const std::vector<double>& params, bool sort,
                 std::uintptr_t workspace, std::int64_t workspace_bytes, std::uintptr_t counters, std::uintptr_t stream,
                 std::uintptr_t k_on_device, std::int64_t gram_budget, std::uintptr_t similarities_read,
                 std::uintptr_t panels_made) {
    idsel_args args = common_args(IDSEL_CUDA, features, strides, importance, mask, cu_seqlens, indices, scores, dtype,
                                  shape, k, k_max, rule, params, sort);
    args.workspace = pointer<void>(workspace);
    args.workspace_bytes = workspace_bytes;
    args.counters = pointer<void>(counters);
    args.stream = pointer<void>(stream);
    args.k_on_device = pointer<const std::int32_t>(k_on_device);
    args.gram_budget = gram_budget;
    args.similarities_read = pointer<std::uint64_t>(similarities_read);
    args.panels_made = pointer<std::uint64_t>(panels_made);
    call(args);
}

// How such a call would be done, or why it cannot run.
py::object cuda_plan(const std::vector<std::int64_t>& shape, std::int64_t k_max, std::int32_t rule,
                     const std::vector<double>& params, bool ragged, std::int64_t gram_budget) {
    const std::vector<std::int64_t> strides = {0, 0, 1}, k;
    const std::int32_t offsets = 0;  // only its presence counts
    idsel_args args =
        common_args(IDSEL_CUDA, 0, strides, {}, {}, 0, 0, 0, IDSEL_FLOAT32, shape, k, k_max, rule, params, false);
    args.cu_seqlens = ragged ? &offsets : nullptr;
    args.gram_budget = gram_budget;
    idsel_plan plan;
    if (idsel_cuda_plan(&args, &plan) != IDSEL_OK) return py::str(idsel_last_error());
    static const char* const kAlgorithms[] = {"norms", "gram", "panels"};
    using namespace pybind11::literals;
    return py::dict("algorithm"_a = kAlgorithms[plan.algorithm], "panel_rows"_a = plan.panel_rows,
                    "launches"_a = plan.launches, "workspace_bytes"_a = plan.workspace_bytes,
                    "panels"_a = py::make_tuple(plan.least_panels, plan.most_panels),
                    "flops"_a = py::make_tuple(plan.least_flops, plan.most_flops));
}

// Why a CUDA device cannot be used; None where it can.
py::object cuda_failure(std::int32_t device) {
    return idsel_cuda_status(device) == IDSEL_OK ? py::object(py::none()) : py::object(py::str(idsel_last_error()));
}

py::list rules() {
    py::list rows;
    for (std::int32_t position = 0; const idsel_rule_info* rule = idsel_rule(position); ++position) {
        py::list names;
        for (std::int32_t i = 0; i < rule->param_count; ++i) names.append(rule->param_names[i]);
        rows.append(py::make_tuple(rule->id, rule->name, names, rule->state, rule->needs_similarities != 0));
    }
    return rows;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled library behind idsel_kernels; use it through the package.";
    m.attr("ABI") = idsel_abi();
    // By position: matching two dozen names would take microseconds of every call.
    m.def("select_cpu", &select_cpu);
    m.def("select_cuda", &select_cuda);
    m.def("cuda_plan", &cuda_plan, py::arg("shape"), py::arg("k_max"), py::arg("rule"), py::arg("params"),
          py::arg("ragged"), py::arg("gram_budget") = 0,
          "How a call would be done, as a dict; or a string that says why there is no such call.");
    m.def("cuda_failure", &cuda_failure, py::arg("device"), "Why a device cannot be used; None where it can.");
    m.attr("CUDA_COUNTERS_BYTES") = IDSEL_COUNTERS_BYTES;
    m.attr("GRAM_BUDGET_BYTES") = IDSEL_GRAM_BUDGET_BYTES;
    m.def("rules", &rules,
          "The rule table: (id, name, parameter names, state, whether it needs similarities) of each.");
    m.def("resolve_isa", &idsel_resolve_isa, py::arg("isa"));
}
