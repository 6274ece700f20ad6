"""Greedy visual-token selection: the similarity matrix and the select-and-suppress loop as one call."""

__version__ = "0.1.0"

try:
    import torch as _torch  # noqa: F401
except Exception as _error:  # a broken install raises OSError and others, not only ImportError
    # So that `python -m idsel_kernels.env_report` can say what is wrong.
    _cause = _error

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"idsel_kernels needs torch >= 2.6, and importing torch failed: {_cause!r}. "
            "`python -m idsel_kernels.env_report` shows what is installed."
        ) from _cause

else:
    from . import budgets, importance, inputs, integrations, testing
    from .api import (
        coverage_select,
        dart_select,
        dpp_select,
        eliminate_select,
        explain,
        id_select,
        matrix_select,
        maxmin_select,
        mmr_select,
        nms_select,
        select,
        topk_select,
    )
    from .dispatch import Explanation, UnsupportedProblem, available_backends, use_backend
    from .merging import Merged, bipartite_pairing, merge
    from .planning import Plan, plan
    from .pruning import Pruned, prune
    from .rules import (
        DART,
        DPP,
        MMR,
        Coverage,
        Elimination,
        HardSuppress,
        IDSelection,
        MatrixCoverage,
        MaxMin,
        Rule,
        TopK,
    )
    from .selection import Selection

__all__ = [
    "DART",
    "DPP",
    "MMR",
    "Coverage",
    "Elimination",
    "Explanation",
    "HardSuppress",
    "IDSelection",
    "MatrixCoverage",
    "MaxMin",
    "Merged",
    "Plan",
    "Pruned",
    "Rule",
    "Selection",
    "TopK",
    "UnsupportedProblem",
    "__version__",
    "available_backends",
    "bipartite_pairing",
    "budgets",
    "coverage_select",
    "dart_select",
    "dpp_select",
    "eliminate_select",
    "explain",
    "id_select",
    "importance",
    "inputs",
    "integrations",
    "matrix_select",
    "maxmin_select",
    "merge",
    "mmr_select",
    "nms_select",
    "plan",
    "prune",
    "select",
    "testing",
    "topk_select",
    "use_backend",
]
