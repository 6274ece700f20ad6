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

using Strides = std::vector<std::int64_t>;

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

// A call without its addresses: tensors of one layout, many times. In the order of
// idsel_kernels/engines/library_call.py.
class Call {
  public:
    Call(std::int32_t device, std::int32_t dtype, const std::vector<std::int64_t>& shape, const Strides& features,
         const Strides& importance, const Strides& mask, std::vector<std::int64_t> k, std::int64_t k_max,
         std::int32_t rule, std::vector<double> params, bool sort, std::int64_t given_count, std::int64_t gram_budget,
         bool features_are_similarities)
        : k_(std::move(k)), params_(std::move(params)) {
        if (shape.size() != 3 || features.size() != 3)
            throw py::value_error("shape and strides of features must be (batch, token, dim)");
        if (importance.size() != 2 || mask.size() != 2)
            throw py::value_error("strides of importance and mask must be (batch, token)");
        args_.abi = IDSEL_ABI;
        args_.device = device;
        args_.dtype = dtype;
        args_.rule = rule;
        args_.batch = shape[0];
        args_.tokens = shape[1];
        args_.dim = shape[2];
        args_.features_batch_stride = features[0];
        args_.features_token_stride = features[1];
        args_.features_dim_stride = features[2];
        args_.importance_batch_stride = importance[0];
        args_.importance_token_stride = importance[1];
        args_.mask_batch_stride = mask[0];
        args_.mask_token_stride = mask[1];
        args_.k = k_.data();
        args_.k_count = static_cast<std::int64_t>(k_.size());
        args_.k_max = k_max;
        args_.params = params_.data();
        args_.param_count = static_cast<std::int64_t>(params_.size());
        args_.sort = sort ? 1 : 0;
        args_.given_count = given_count;
        args_.gram_budget = gram_budget;
        args_.features_are_similarities = features_are_similarities ? 1 : 0;
    }
    Call(const Call&) = delete;  // `args_` points into it
    Call& operator=(const Call&) = delete;

    // `counts` of every sample in place of those it was made with, unless there are none.
    py::object on_cpu(std::uintptr_t features, std::uintptr_t importance, std::uintptr_t mask,
                      std::uintptr_t cu_seqlens, std::uintptr_t grids, std::uintptr_t given, std::uintptr_t indices,
                      std::uintptr_t scores, const std::vector<std::int64_t>& counts, std::int32_t threads,
                      std::int32_t isa, std::int32_t loop, bool stats) const {
        idsel_args args = with(features, importance, mask, cu_seqlens, grids, given, indices, scores);
        std::vector<idsel_stats> counted(stats ? static_cast<std::size_t>(args.batch) : 0);
        if (!counts.empty()) {
            args.k = counts.data();
            args.k_count = static_cast<std::int64_t>(counts.size());
        }
        args.threads = threads;
        args.isa = isa;
        args.loop = loop;
        args.stats = stats ? counted.data() : nullptr;
        select(args);
        return stats ? py::object(stats_to_python(counted)) : py::none();
    }

    void on_cuda(std::uintptr_t features, std::uintptr_t importance, std::uintptr_t mask, std::uintptr_t cu_seqlens,
                 std::uintptr_t grids, std::uintptr_t given, std::uintptr_t indices, std::uintptr_t scores,
                 std::uintptr_t counts, std::uintptr_t workspace, std::int64_t workspace_bytes, std::uintptr_t counters,
                 std::uintptr_t stream, std::uintptr_t similarities_read, std::uintptr_t panels_made) const {
        idsel_args args = with(features, importance, mask, cu_seqlens, grids, given, indices, scores);
        args.k_on_device = pointer<const std::int32_t>(counts);
        args.workspace = pointer<void>(workspace);
        args.workspace_bytes = workspace_bytes;
        args.counters = pointer<void>(counters);
        args.stream = pointer<void>(stream);
        args.similarities_read = pointer<std::uint64_t>(similarities_read);
        args.panels_made = pointer<std::uint64_t>(panels_made);
        select(args);
    }

  private:
    // A copy, so that threads may share a call.
    idsel_args with(std::uintptr_t features, std::uintptr_t importance, std::uintptr_t mask, std::uintptr_t cu_seqlens,
                    std::uintptr_t grids, std::uintptr_t given, std::uintptr_t indices, std::uintptr_t scores) const {
        idsel_args args = args_;
        args.features = pointer<const void>(features);
        args.importance = pointer<const float>(importance);
        args.mask = pointer<const std::uint8_t>(mask);
        args.cu_seqlens = pointer<const std::int32_t>(cu_seqlens);
        args.grids = pointer<const std::int32_t>(grids);
        args.given = pointer<const std::int32_t>(given);
        args.indices = pointer<std::int64_t>(indices);
        args.scores = pointer<float>(scores);
        return args;
    }

    static void select(const idsel_args& args) {
        idsel_status status;
        {
            const py::gil_scoped_release release;
            status = idsel_select(&args);
        }
        // The message is this thread's, and nothing has run on it since.
        if (status != IDSEL_OK) raise(status);
    }

    std::vector<std::int64_t> k_;
    std::vector<double> params_;
    idsel_args args_{};
};

// How such a call would be done, or why it cannot run.
py::object cuda_plan(const std::vector<std::int64_t>& shape, std::int64_t k_max, std::int32_t rule,
                     const std::vector<double>& params, bool ragged, std::int64_t gram_budget,
                     bool features_are_similarities) {
    if (shape.size() != 3) throw py::value_error("shape must be (batch, token, dim)");
    const std::int32_t offsets = 0;  // only its presence counts
    idsel_args args{};
    args.abi = IDSEL_ABI;
    args.device = IDSEL_CUDA;
    args.rule = rule;
    args.batch = shape[0];
    args.tokens = shape[1];
    args.dim = shape[2];
    args.features_dim_stride = 1;
    args.k_max = k_max;
    args.params = params.data();
    args.param_count = static_cast<std::int64_t>(params.size());
    args.cu_seqlens = ragged ? &offsets : nullptr;
    args.gram_budget = gram_budget;
    args.features_are_similarities = features_are_similarities ? 1 : 0;
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

// Nothing here needs the GIL: a `Call` does not change once it is made, all else belongs to the thread that calls
// (tests/test_threads.py).
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "The compiled library behind idsel_kernels; use it through the package.";
    m.attr("ABI") = idsel_abi();
    // By position: matching a dozen names would take microseconds of every call.
    py::class_<Call>(m, "Call", "A call without its addresses, for tensors of one layout.")
        .def(py::init<std::int32_t, std::int32_t, const std::vector<std::int64_t>&, const Strides&, const Strides&,
                      const Strides&, std::vector<std::int64_t>, std::int64_t, std::int32_t, std::vector<double>, bool,
                      std::int64_t, std::int64_t, bool>())
        .def("on_cpu", &Call::on_cpu)
        .def("on_cuda", &Call::on_cuda);
    m.def("cuda_plan", &cuda_plan, py::arg("shape"), py::arg("k_max"), py::arg("rule"), py::arg("params"),
          py::arg("ragged"), py::arg("gram_budget") = 0, py::arg("features_are_similarities") = false,
          "How a call would be done, as a dict; or a string that says why there is no such call.");
    m.def("cuda_failure", &cuda_failure, py::arg("device"), "Why a device cannot be used; None where it can.");
    m.attr("CUDA_COUNTERS_BYTES") = IDSEL_COUNTERS_BYTES;
    m.attr("GRAM_BUDGET_BYTES") = IDSEL_GRAM_BUDGET_BYTES;
    m.def("rules", &rules,
          "The rule table: (id, name, parameter names, state, whether it needs similarities) of each.");
    m.def("resolve_isa", &idsel_resolve_isa, py::arg("isa"));
}
