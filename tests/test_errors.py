"""Bad input: the exception and its exact words, raised before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import idsel_kernels as idsel

X, S = torch.randn(2, 6, 4), torch.rand(2, 6)
T, OFFSETS = torch.randn(12, 4), torch.tensor([0, 6, 12], dtype=torch.int32)
NAN = float("nan")
NMS, GRIDS = {"rule": idsel.HardSuppress(radius=1)}, torch.tensor([[2, 3], [1, 6]])


def _with(value: torch.Tensor, place: tuple[int, ...], entry: float) -> torch.Tensor:
    changed = value.clone()
    changed[place] = entry
    return changed


def _offsets(*values: int) -> dict[str, torch.Tensor]:
    return {"features": T, "importance": torch.rand(12), "cu_seqlens": torch.tensor(values, dtype=torch.int32)}


# Arguments on top of select(features=X, k=3, importance=S), the exception and its message.
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "features-list": ({"features": [[1.0]]}, TypeError, "features must be a torch.Tensor, got list"),
    "features-numpy": (
        {"features": np.zeros((2, 6, 4), np.float32)},
        TypeError,
        "features must be a torch.Tensor, got ndarray",
    ),
    "features-int": (
        {"features": X.long()},
        TypeError,
        "features must be float32, float16 or bfloat16, got torch.int64",
    ),
    "features-float64": (
        {"features": X.double()},
        TypeError,
        "features must be float32, float16 or bfloat16, got torch.float64; pass .float()",
    ),
    "features-complex": (
        {"features": X.to(torch.complex64)},
        TypeError,
        "features must be float32, float16 or bfloat16, got torch.complex64",
    ),
    "features-sparse": (
        {"features": X.to_sparse()},
        TypeError,
        "features must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    "features-1d": ({"features": X[0, 0]}, ValueError, "features must be (B, N, D) or (N, D), got shape (4,)"),
    "features-4d": ({"features": X[None]}, ValueError, "features must be (B, N, D) or (N, D), got shape (1, 2, 6, 4)"),
    "features-no-dim": ({"features": X[..., :0]}, ValueError, "features must have D >= 1, got shape (2, 6, 0)"),
    "features-no-dim-unbatched": (
        {"features": X[0, :, :0], "importance": S[0]},
        ValueError,
        "features must have D >= 1, got shape (6, 0)",
    ),
    "features-3d-ragged": (
        {"cu_seqlens": OFFSETS},
        ValueError,
        "features must be (T, D) with cu_seqlens, got shape (2, 6, 4)",
    ),
    "k-float": ({"k": 3.0}, TypeError, "k must be an int, got float; for a fraction of the tokens pass keep_ratio="),
    "k-bool": ({"k": True}, TypeError, "k must be an int, got bool"),
    "k-none": ({"k": None}, TypeError, "either k or keep_ratio must be given, got neither"),
    "k-list-of-tensors": (
        {"k": [torch.tensor(3), 2]},
        TypeError,
        "k[0] must be an int, got Tensor; .item() or .tolist() makes one",
    ),
    "k-negative": ({"k": -1}, ValueError, "k must be >= 0, got -1"),
    "k-list-length": ({"k": [1, 2, 3]}, ValueError, "k must be an int or a list of B = 2 ints, got a list of 3"),
    "k-list-negative": ({"k": [1, -2]}, ValueError, "k[1] must be >= 0, got -2"),
    "k-list-float": (
        {"k": [1, 2.5]},
        TypeError,
        "k[1] must be an int, got float; for a fraction of the tokens pass keep_ratio=",
    ),
    "rule-unknown": (
        {"rule": "fps"},
        ValueError,
        "rule must be one of id, mmr, maxmin, nms, dpp, coverage, topk, matrix, elimination, dart or a class name, "
        "got 'fps'",
    ),
    "rule-tensor": (
        {"rule": S, "importance": None},
        TypeError,
        "rule must be a rule such as IDSelection(), got a tensor; did you mean importance=?",
    ),
    "rule-class": ({"rule": idsel.MMR}, TypeError, "rule must be an instance, got the class MMR; write MMR(...)"),
    "rule-base": (
        {"rule": idsel.Rule()},
        TypeError,
        "rule must be a rule such as IDSelection() or the name of one, got Rule()",
    ),
    "features-nested": (
        {"features": torch.nested.nested_tensor([X[0], X[1, :3]], layout=torch.jagged)},
        TypeError,
        "features must not be a nested tensor; pass its values with cu_seqlens",
    ),
    "features-mkldnn": (
        {"features": X[0].to_mkldnn(), "importance": S[0]},
        TypeError,
        "features must be a dense (strided) tensor, got layout torch._mkldnn",
    ),
    "rule-none": (
        {"rule": None},
        TypeError,
        "rule must be a rule such as IDSelection() or the name of one, got None",
    ),
    "importance-missing": (
        {"importance": None},
        ValueError,
        "importance is required by IDSelection, got None (MaxMin, Coverage and MatrixCoverage run without)",
    ),
    "importance-missing-dpp": (
        {"importance": None, "rule": idsel.DPP()},
        ValueError,
        "importance is required by DPP, got None (MaxMin, Coverage and MatrixCoverage run without)",
    ),
    "importance-list": ({"importance": [0.5] * 6}, TypeError, "importance must be a torch.Tensor, got list"),
    "importance-int": (
        {"importance": S.long()},
        TypeError,
        "importance must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "importance-short": (
        {"importance": S[:, :5]},
        ValueError,
        "importance must be (B, N) = (2, 6) to match features, got (2, 5)",
    ),
    "importance-unbatched": (
        {"importance": S[0]},
        ValueError,
        "importance must be (B, N) = (2, 6) to match features, got (6,)",
    ),
    "importance-batched-for-single": (
        {"features": X[0]},
        ValueError,
        "importance must be (N,) = (6,) to match features, got (2, 6)",
    ),
    "importance-ragged": (
        {"features": T, "cu_seqlens": OFFSETS},
        ValueError,
        "importance must be (T,) = (12,) to match features, got (2, 6)",
    ),
    "importance-device": (
        {"importance": S.to("meta")},
        ValueError,
        "importance must be on the device of features (cpu), got meta",
    ),
    "importance-sparse": (
        {"importance": S.to_sparse()},
        TypeError,
        "importance must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    "mask-list": ({"mask": [True] * 6}, TypeError, "mask must be a torch.Tensor, got list"),
    "mask-int": (
        {"mask": torch.ones(2, 6, dtype=torch.int64)},
        TypeError,
        "mask must be torch.bool (False = not selectable), got torch.int64",
    ),
    "mask-shape": (
        {"mask": torch.ones(6, dtype=torch.bool)},
        ValueError,
        "mask must be (B, N) = (2, 6) to match features, got (6,)",
    ),
    "mask-device": (
        {"mask": torch.ones(2, 6, dtype=torch.bool, device="meta")},
        ValueError,
        "mask must be on the device of features (cpu), got meta",
    ),
    "cu_seqlens-list": (
        {"features": T, "cu_seqlens": [0, 12]},
        TypeError,
        "cu_seqlens must be a torch.Tensor, got list",
    ),
    "cu_seqlens-int16": (
        {"features": T, "cu_seqlens": OFFSETS.short()},
        TypeError,
        "cu_seqlens must be torch.int32 or torch.int64, got torch.int16",
    ),
    "cu_seqlens-2d": (
        {"features": T, "cu_seqlens": OFFSETS[None]},
        ValueError,
        "cu_seqlens must be (B+1,), got shape (1, 3)",
    ),
    "cu_seqlens-empty": (
        {"features": T, "cu_seqlens": OFFSETS[:0]},
        ValueError,
        "cu_seqlens must be (B+1,), got shape (0,)",
    ),
    "cu_seqlens-device": (
        {"features": T, "cu_seqlens": OFFSETS.to("meta")},
        ValueError,
        "cu_seqlens must be on the device of features (cpu), got meta",
    ),
    "cu_seqlens-start": (_offsets(1, 6, 12), ValueError, "cu_seqlens must start at 0, got 1"),
    "cu_seqlens-end": (_offsets(0, 6, 13), ValueError, "cu_seqlens must end at T = 12, got 13"),
    "cu_seqlens-decreasing": (
        _offsets(0, 9, 6, 12),
        ValueError,
        "cu_seqlens must not decrease, got 9 then 6 at positions 1 and 2",
    ),
    "cu_seqlens-k-list": (
        {**_offsets(0, 6, 12), "k": [3]},
        ValueError,
        "k must be an int or a list of B = 2 ints, got a list of 1",
    ),
    "maxmin-start": ({"rule": idsel.MaxMin(start=6)}, ValueError, "MaxMin: start must be < N = 6, got 6"),
    "grid-cells": (
        {"rule": idsel.HardSuppress(grid=(2, 4), radius=1)},
        ValueError,
        "HardSuppress: grid must have N = 6 cells, got 2 x 4",
    ),
    "grid-cells-ragged": (
        {**_offsets(0, 6, 12), "rule": idsel.HardSuppress(grid=(2, 4), radius=1)},
        ValueError,
        "HardSuppress: grid must have N = 6 cells, got 2 x 4",
    ),
    "radius-without-grid": (
        {"rule": idsel.HardSuppress(radius=1)},
        ValueError,
        "HardSuppress: radius=1 needs grid=(height, width) or grids=, got neither",
    ),
    "grids-and-grid": (
        {"rule": idsel.HardSuppress(grid=(2, 3)), "grids": GRIDS},
        ValueError,
        "HardSuppress: either grid= or grids= may be given, got grid=(2, 3) and grids=",
    ),
    "grids-of-another-rule": (
        {"rule": idsel.MMR(), "grids": GRIDS},
        ValueError,
        "grids goes with HardSuppress, got it with MMR",
    ),
    "grids-list": ({**NMS, "grids": [[2, 3]]}, TypeError, "grids must be a torch.Tensor, got list"),
    "grids-int16": (
        {**NMS, "grids": GRIDS.short()},
        TypeError,
        "grids must be torch.int32 or torch.int64, got torch.int16",
    ),
    "grids-shape": ({**NMS, "grids": GRIDS[:1]}, ValueError, "grids must be (B, 2) = (2, 2), got shape (1, 2)"),
    "grids-unbatched": (
        {**NMS, "features": X[0], "importance": S[0], "grids": GRIDS[0]},
        ValueError,
        "grids must be (B, 2) = (1, 2), got shape (2,)",
    ),
    "grids-shape-ragged": (
        {**NMS, **_offsets(0, 6, 6, 12), "grids": GRIDS},
        ValueError,
        "grids must be (B, 2) = (3, 2), got shape (2, 2)",
    ),
    "grids-device": (
        {**NMS, "grids": GRIDS.to("meta")},
        ValueError,
        "grids must be on the device of features (cpu), got meta",
    ),
    "grids-cells": (
        {**NMS, "grids": torch.tensor([[2, 3], [2, 4]])},
        ValueError,
        "grids[1] must have N = 6 cells, got 2 x 4",
    ),
    "grids-cells-ragged": (
        {**NMS, **_offsets(0, 4, 4, 12), "grids": torch.tensor([[2, 2], [7, 9], [3, 4]])},
        ValueError,
        "grids[2] must have N = 8 cells, got 3 x 4",
    ),
    "grids-negative": (
        {**NMS, "grids": torch.tensor([[-2, -3], [2, 3]])},
        ValueError,
        "grids[0] must be >= 0, got -2 x -3",
    ),
    "grids-negative-of-nothing": (
        {**NMS, **_offsets(0, 0, 12), "grids": torch.tensor([[0, -1], [3, 4]])},
        ValueError,
        "grids[0] must be >= 0, got 0 x -1",
    ),
    "sort-string": ({"sort": "yes"}, TypeError, "sort must be True or False, got 'yes'"),
    "validate-int": ({"validate": 1}, TypeError, "validate must be True or False, got 1"),
    "backend-unknown": (
        {"backend": "cudnn"},
        ValueError,
        "backend must be one of cuda, triton, cpu, torch, got 'cudnn'",
    ),
    "backend-type": (
        {"backend": torch.device("cpu")},
        TypeError,
        "backend must be a string, one of cuda, triton, cpu, torch, got device(type='cpu')",
    ),
    "validate-features-nan": (
        {"features": _with(X, (1, 3, 0), NAN), "validate": True},
        ValueError,
        "features must be finite, got a NaN or infinity in row 3 of sample 1",
    ),
    "validate-features-inf-ragged": (
        {**_offsets(0, 6, 12), "features": _with(T, (7, 2), float("inf")), "validate": True},
        ValueError,
        "features must be finite, got a NaN or infinity in row 7",
    ),
    "validate-importance-nan": (
        {"importance": _with(S, (0, 5), NAN), "validate": True},
        ValueError,
        "importance must be finite, got a NaN or infinity in token 5 of sample 0",
    ),
    "validate-importance-inf": (
        {"importance": _with(S, (1, 2), float("-inf")), "validate": True},
        ValueError,
        "importance must be finite, got a NaN or infinity in token 2 of sample 1",
    ),
    "validate-coverage-negative": (
        {"importance": _with(S, (1, 2), -0.5), "rule": idsel.Coverage(), "validate": True},
        ValueError,
        "importance must be >= 0 for Coverage, got a negative one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_the_exact_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from idsel_kernels.engines import reference

    arguments, exception, message = BAD[name]
    ran: list[object] = []
    monkeypatch.setattr(reference._TorchEngine, "run", lambda *args: ran.append(args))
    with pytest.raises(exception) as caught:
        idsel.select(**{"features": X, "k": 3, "importance": S, "backend": "torch", **arguments})
    assert str(caught.value) == message
    assert not ran


@pytest.mark.parametrize("name", [name for name, (arguments, _, _) in BAD.items() if "validate" not in arguments])
def test_explain_refuses_what_select_refuses(name: str) -> None:
    arguments, exception, message = BAD[name]
    values_only = {
        "cu_seqlens-start", "cu_seqlens-end", "cu_seqlens-decreasing", "grid-cells-ragged", "grids-cells",
        "grids-cells-ragged", "grids-negative", "grids-negative-of-nothing",
    }  # fmt: skip
    call: Callable[[], Any] = lambda: idsel.explain(**{"features": X, "k": 3, "importance": S, **arguments})  # noqa: E731
    if name in values_only:
        call()  # explain reads no values
        return
    with pytest.raises(exception) as caught:
        call()
    assert str(caught.value) == message


def test_a_named_backend_that_cannot_run_says_why_and_never_falls_back() -> None:
    # With a GPU or without, it does not run on tensors of the CPU.
    with pytest.raises(idsel.UnsupportedProblem, match=r"^backend 'cuda' \(by argument\) cannot run this: "):
        idsel.select(X, 3, importance=S, backend="cuda")


def test_a_distributed_tensor_is_refused_with_a_sentence() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        features = torch.distributed.tensor.distribute_tensor(X, mesh)
        with pytest.raises(TypeError, match=r"^features must not be a DTensor; pass the tensors of this rank"):
            idsel.select(features, 3, importance=S)
        assert idsel.select(features.to_local(), 3, importance=S).indices.shape == (2, 3)
    finally:
        torch.distributed.destroy_process_group()


def test_a_rule_by_its_name_is_the_published_one() -> None:
    for name, rule in (("id", idsel.IDSelection()), ("NMS", idsel.HardSuppress()), ("MaxMin", idsel.MaxMin())):
        named, made = (idsel.select(X, 4, given, S) for given in (name, rule))
        assert torch.equal(named.indices, made.indices)
        assert idsel.explain(X, 4, name, S).problem.rule == rule
        idsel.testing.check_selection(named, X, name, S).assert_ok()


def test_numpy_integers_are_accepted_for_k() -> None:
    assert idsel.select(X, np.int64(3), importance=S).indices.shape == (2, 3)
    assert idsel.select(X, [np.int32(1), 2], importance=S).indices.shape == (2, 2)


def test_errors_are_the_same_through_the_operator() -> None:
    rule_id, params = idsel.IDSelection().encode()
    for arguments, message in (
        (
            (X.double(), [3], rule_id, params, S),
            "features must be float32, float16 or bfloat16, got torch.float64; pass .float()",
        ),
        ((X, [3], rule_id, params, S[:, :5]), "importance must be (B, N) = (2, 6) to match features, got (2, 5)"),
        (
            (X, [3], rule_id, params),
            "importance is required by IDSelection, got None (MaxMin, Coverage and MatrixCoverage run without)",
        ),
        ((X, [3], 99, params, S), "rule_id must be one of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], got 99"),
        ((X, [-1], rule_id, params, S), "k must be >= 0, got -1"),
        ((X, [], rule_id, params, S), "k must be an int or a list of B = 2 ints, got a list of 0"),
        ((X, [1, 2, 3], rule_id, params, S), "k must be an int or a list of B = 2 ints, got a list of 3"),
        ((X[0], [3], rule_id, params, S[0]), "features must be (B, N, D), got shape (6, 4)"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            torch.ops.idsel.select(*arguments)
        assert str(caught.value) == message


def test_validate_ignores_what_is_masked() -> None:
    features, importance = _with(X, (1, 3, 0), NAN), _with(S, (1, 3), -1.0)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 3] = False
    sel = idsel.select(features, 3, idsel.Coverage(), importance, mask=mask, validate=True)
    assert 3 not in sel.indices[1]


def test_validate_passes_good_input() -> None:
    plain = idsel.select(X, 3, importance=S)
    checked = idsel.select(X, 3, importance=S, validate=True)
    assert torch.equal(plain.indices, checked.indices)
