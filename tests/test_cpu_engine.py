"""What is particular to the cpu backend: its paths, its threads, its bits. Parity with the rules in general is in
test_parity.py and its neighbours, which run on every backend."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import torch
from cases import EXACT_RULES, RULE_CASES

import idsel_kernels as idsel
from idsel_kernels import DPP, MMR, Coverage, HardSuppress, IDSelection, MaxMin, Rule, TopK, _native
from idsel_kernels.testing import Case, check_selection, clustered, exact, near_duplicates, picture, ragged

cpu = pytest.importorskip("idsel_kernels.engines.cpu")
pytestmark = pytest.mark.skipif(_native.failure() is not None, reason=str(_native.failure()))

RANDOM_CASES = 250
INF = float("inf")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(case: Case, k: Any, rule: Rule, **more: Any) -> tuple[idsel.Selection, list[Any]]:
    with cpu.record_stats() as calls:
        sel = idsel.select(**case.inputs(), k=k, rule=rule, backend="cpu", **more)
    return sel, calls[0]


def assert_same(a: idsel.Selection, b: idsel.Selection) -> None:
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.scores, b.scores)


# --- Random cases -----------------------------------------------------------------------------------------------------


def _features(g: torch.Generator, batch: int, tokens: int, dim: int) -> torch.Tensor:
    """One of: independent, clustered, duplicated, low rank; with any strides."""
    kind = int(torch.randint(4, (), generator=g))
    x = torch.randn(batch, tokens, dim, generator=g)
    if kind == 1:
        x = clustered(batch, tokens, dim, seed=int(torch.randint(10**6, (), generator=g))).features
    if kind == 2:
        x = x[:, torch.randint(tokens, (tokens,), generator=g)]
    if kind == 3:
        x = torch.randn(batch, tokens, 2, generator=g) @ torch.randn(2, dim, generator=g)
    layout = int(torch.randint(4, (), generator=g))
    if layout == 1:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == 2:
        return torch.cat([x, x], 2)[..., :dim]
    if layout == 3:
        return torch.stack([x, x], 2).flatten(1, 2)[:, ::2]
    return x


def _random_case(seed: int) -> tuple[dict[str, Any], int]:
    g = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    batch, tokens, dim = 1 + below(2), 1 + below(32), 1 + below(40)
    dtype = (torch.float32, torch.float16, torch.bfloat16)[below(3)]
    features = _features(g, batch, tokens, dim).to(dtype)
    importance = torch.rand(batch, tokens, generator=g)
    if below(3) == 0:
        importance = importance.mul(3).round().div(3)
    if below(4) == 0:
        features[below(batch), below(tokens)] = 0.0
    if below(6) == 0:
        features[below(batch), below(tokens), below(dim)] = float("nan")
    if below(4) == 0:
        importance[below(batch), below(tokens)] = (float("nan"), float("-inf"), float("inf"))[below(3)]
    inputs: dict[str, Any] = {"features": features, "importance": importance}
    if below(3) == 0:
        inputs["mask"] = torch.rand(batch, tokens, generator=g) < 0.6
    if below(4) == 0:
        cuts = torch.randint(batch * tokens + 1, (3,), generator=g).sort().values.tolist()
        inputs = {name: value.reshape(batch * tokens, *value.shape[2:]) for name, value in inputs.items()}
        inputs["cu_seqlens"] = torch.tensor([0, *cuts, batch * tokens], dtype=torch.int32)
    return inputs, 1 + below(min(tokens + 3, 14))


RANDOM_RULES: dict[str, Callable[[int], Rule]] = {
    "idselection": lambda seed: IDSelection(gamma=(20.0, 5.0, 0.0)[seed % 3], floor=(0.0, None, 0.3, -0.2)[seed % 4]),
    "mmr": lambda seed: MMR(lam=(0.5, 0.1, 1.0)[seed % 3], parallel_k=1 + seed % 4 // 3 * 2),
    "maxmin": lambda seed: MaxMin(start=None if seed % 2 else 0),
    "hardsuppress": lambda seed: HardSuppress(threshold=(0.8, 0.2, -0.1, 1.0)[seed % 4]),
    "dpp": lambda seed: DPP(eps=(1e-6, 1e-3)[seed % 2]),
    "coverage": lambda seed: Coverage(alpha=(1.0, 0.5, 2.0)[seed % 3], combine=("mul", "add")[seed % 2]),
    "topk": lambda seed: TopK(),
}


@pytest.mark.parametrize("name", RANDOM_RULES)
def test_random_cases_are_right(name: str) -> None:
    for seed in range(RANDOM_CASES):
        inputs, k = _random_case(seed)
        rule = RANDOM_RULES[name](seed)
        if name in ("dpp", "coverage"):  # the square or the sum with the largest float is another in float64
            inputs["importance"] = inputs["importance"].clamp(max=4.0)
        sel = idsel.select(**inputs, k=k, rule=rule, backend="cpu")
        try:
            check_selection(sel, **inputs, rule=rule).assert_ok()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {rule}, k={k}: {error}") from error


@pytest.mark.parametrize("name", EXACT_RULES)
def test_exact_input_gives_the_bits_of_torch(name: str) -> None:
    rule = RULE_CASES[name]
    for seed, dim, dtype in itertools.product(
        range(8), (1, 4, 64, 1024), (torch.float32, torch.float16, torch.bfloat16)
    ):
        tokens = 3 + 29 * seed
        case = exact(2, tokens, dim, seed=seed, dtype=dtype)
        k = min(tokens, 40)
        ours, theirs = (idsel.select(**case.inputs(), k=k, rule=rule, backend=b) for b in ("cpu", "torch"))
        assert_same(ours, theirs)


def test_negative_importance_raises_priorities_and_is_still_exact() -> None:
    for seed, floor in itertools.product(range(3), (0.0, None, -0.5, 0.5)):
        features, importance, _ = clustered(1, 24, 8, seed=seed)
        for shift in (0.5, 1.5):
            inputs = {"features": features, "importance": importance - shift}
            for rule in (IDSelection(floor=floor), Coverage(), MMR(), DPP(), HardSuppress(threshold=0.3)):
                sel = idsel.select(**inputs, k=24, rule=rule, backend="cpu")
                check_selection(sel, **inputs, rule=rule).assert_ok()


def test_hard_suppress_on_a_grid() -> None:
    for seed in range(30):
        case = clustered(1, 48, 8, seed=seed)
        rule = HardSuppress(threshold=0.9, grid=(6, 8), radius=seed % 3)
        sel, _ = run(case, 30, rule)
        check_selection(sel, **case.inputs(), rule=rule).assert_ok()


# --- Paths and threads ------------------------------------------------------------------------------------------------

BIG = {
    "skewed": clustered(1, 300, 96, importance="skewed"),
    "flat": clustered(1, 300, 96, importance="flat"),
    "duplicates": near_duplicates(1, 300, 96),
    "bf16": clustered(1, 300, 1100, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
@pytest.mark.parametrize("case", BIG.values(), ids=BIG)
def test_picks_do_not_depend_on_threads(rule: Rule, case: Case) -> None:
    for k in (5, 40, 300):
        with threads(1):
            one, _ = run(case, k, rule)
        with threads(2):
            two, _ = run(case, k, rule)
        with threads(5):
            five, _ = run(case, k, rule)
        assert_same(one, two)
        assert_same(one, five)


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
def test_picks_do_not_depend_on_the_path(rule: Rule) -> None:
    """The first picks of a long run, which goes dense, are those of a short one, which stays lazy."""
    for case in BIG.values():
        (long, long_stats), (short, _) = run(case, 300, rule), run(case, 6, rule)
        assert torch.equal(long.indices[:, :6], short.indices)
        assert torch.equal(long.scores[:, :6], short.scores)
        assert long_stats[0].similarities <= 2 * 300 * 299  # never far beyond the Gram


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
@pytest.mark.parametrize("dim", [3, 16, 70, 256])
def test_picks_do_not_depend_on_when_loops_take_turns(rule: Rule, dim: int) -> None:
    """How many picks are wanted tells when rows take over from laziness, and back: the first ones stay the same."""
    for importance in ("skewed", "flat"):
        case = clustered(1, 576, dim, seed=dim, importance=importance)
        case.features[0, 5], case.features[0, 6, 0], case.importance[0, 7] = 0.0, float("nan"), float("nan")
        long = run(case, 576, rule)[0]
        for k in (2, 9, 33, 98, 288):
            short = run(case, k, rule)[0]
            assert torch.equal(long.indices[:, :k], short.indices) and torch.equal(long.scores[:, :k], short.scores)


def test_all_paths_are_taken() -> None:
    case = clustered(1, 600, 256, importance="skewed")
    flat = clustered(1, 600, 256, importance="flat")
    # A pick below zero raises its neighbours, which ends laziness, and for few picks the Gram does not pay.
    negative = Case(flat.features, -flat.importance)
    with threads(2):
        assert run(case, 8, IDSelection())[1][0].path is cpu.Path.LAZY
        assert run(negative, 8, IDSelection(floor=None))[1][0].path is cpu.Path.LAZY_ROWS
        # From rows back to laziness, where few tokens can win.
        (by_turns,) = run(picture(24), 64, MMR())[1]
        assert by_turns.path is cpu.Path.LAZY_ROWS and 16 < by_turns.lazy_picks < 64
        assert run(flat, 600, IDSelection())[1][0].path is cpu.Path.LAZY_GRAM
        assert run(case, 300, MaxMin())[1][0].path is cpu.Path.GRAM


def first_of_all_pairs(case: Case, mask: torch.Tensor | None, weighted: bool) -> tuple[int, float]:
    """The first pick of `MaxMin` and its priority in float64, from the whole Gram."""
    x, weight = case.features[0].double(), case.importance[0] if weighted else torch.ones(case.features.shape[1])
    there = x.isfinite().all(-1) if mask is None else mask[0] & x.isfinite().all(-1)
    unit = torch.nn.functional.normalize(x.nan_to_num(), dim=-1)
    others = (unit @ unit.T).masked_fill(~there, -INF).fill_diagonal_(-INF)
    priorities = torch.where(weight > 0, weight * (1 - others.amax(1)), 0.0).masked_fill(~there, -INF)
    return int(priorities.argmax()), float(priorities.max())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dim", [16, 1024])
@pytest.mark.parametrize("tokens", [1, 2, 23, 24, 25, 47, 49, 71, 73, 767, 769, 1900])
def test_the_first_pick_by_bounds_is_that_of_all_pairs(tokens: int, dim: int, weighted: bool) -> None:
    """Where similarities are exact, so that ties are, and some tokens are copies, zero, unusable or masked."""
    case, generator = exact(1, tokens, dim, seed=tokens + dim), torch.Generator().manual_seed(tokens)

    def some(count: int) -> torch.Tensor:
        return torch.randint(tokens, (count,), generator=generator)

    case.features[0, some(tokens // 3)] = case.features[0, tokens // 2].clone()
    case.features[0, some(tokens // 20)] = 0.0
    case.features[0, some(tokens // 30), 0] = float("nan")
    case.features[0, -1] = 1.0
    masks = [None, torch.rand((1, tokens), generator=generator) < 0.7, torch.arange(tokens)[None] >= tokens - 2]
    masks[1][0, -1] = True
    for mask, count in itertools.product(masks, (1, 2)):
        with threads(count):
            sel, stats = run(case, 1, MaxMin(weighted=weighted), mask=mask)
        assert (sel.indices.item(), sel.scores.item()) == first_of_all_pairs(case, mask, weighted)
        assert stats[0].similarities <= tokens * (tokens - 1)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_first_pick_by_bounds_meets_tokens_that_were_given_up_before(weighted: bool) -> None:
    """In few dimensions the nearest token of a late one is often one of those."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        case = Case(torch.randn((1, 60 + 9 * seed, 3), generator=generator), torch.rand((1, 60 + 9 * seed)) + 0.5)
        sel, _ = run(case, 1, MaxMin(weighted=weighted))
        best, priority = first_of_all_pairs(case, None, weighted)
        assert sel.indices.item() == best
        assert sel.scores.item() == pytest.approx(priority, abs=1e-6)


def test_the_first_pick_by_bounds_needs_few_pairs() -> None:
    for tokens in (576, 2880):
        case = clustered(1, tokens, 64)
        pairs = tokens * (tokens - 1) // 2
        assert run(case, 1, MaxMin())[1][0].similarities < 0.4 * pairs
        assert run(case, 1, MaxMin(weighted=True))[1][0].similarities < 0.2 * pairs


def test_few_picks_need_few_similarities() -> None:
    case = clustered(1, 576, 1024)
    for rule, most in ((IDSelection(), 500), (HardSuppress(), 500), (DPP(), 500), (TopK(), 0), (MMR(), 5000)):
        _, stats = run(case, 16, rule)
        assert stats[0].similarities <= most, rule
        assert stats[0].lazy_picks == 16


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
def test_instruction_sets_agree(rule: Rule) -> None:
    """Bit for bit where both have fused multiply-add; the portable code may lack it."""
    for case in BIG.values():
        best, stats = run(case, 60, rule)
        with cpu.use_isa(cpu.Isa.PORTABLE):
            portable, portable_stats = run(case, 60, rule)
        assert portable_stats[0].isa is cpu.Isa.PORTABLE
        assert stats[0].isa == _native.library().resolve_isa(cpu.Isa.AUTO)
        check_selection(portable, **case.inputs(), rule=rule).assert_ok()
        if stats[0].isa is cpu.Isa.PORTABLE:
            assert_same(best, portable)


@pytest.mark.parametrize("rule", RULE_CASES.values(), ids=RULE_CASES)
def test_loops_agree(rule: Rule) -> None:
    few_dimensions = {
        "few dimensions": clustered(1, 300, 3),
        "few in bf16": clustered(1, 300, 5, importance="flat", dtype=torch.bfloat16),
    }
    for case in (BIG | few_dimensions).values():
        for k in (1, 60, 300):
            chosen, _ = run(case, k, rule)
            for loop in cpu.Loop:
                with cpu.use_loop(loop):
                    assert_same(chosen, run(case, k, rule)[0])


def test_a_loop_is_the_one_asked_for() -> None:
    case = clustered(1, 576, 64)
    for rule in (IDSelection(), MMR(), MaxMin(start=0), HardSuppress(), DPP()):
        paths = []
        for loop in (cpu.Loop.LAZY, cpu.Loop.ROWS, cpu.Loop.GRAM):
            with cpu.use_loop(loop):
                paths.append(run(case, 60, rule)[1][0].path)
        assert paths == [cpu.Path.LAZY, cpu.Path.LAZY_ROWS, cpu.Path.LAZY_GRAM], rule


def test_samples_do_not_depend_on_batch_mates() -> None:
    case = clustered(4, 90, 70)
    for rule in RULE_CASES.values():
        batch, _ = run(case, 30, rule)
        for b in range(4):
            alone, _ = run(Case(case.features[b : b + 1], case.importance[b : b + 1]), 30, rule)
            assert_same(alone, idsel.Selection(batch.indices[b : b + 1], batch.scores[b : b + 1]))


def test_picks_among_many_tokens_are_those_of_the_reference() -> None:
    """More than 32 times as many as are taken from the top of the bounds one by one."""
    case = exact(1, 70_000, 16)
    for rule in (MaxMin(start=0), MMR()):
        sel, _ = run(case, 6, rule)
        assert torch.equal(sel.indices, idsel.select(**case.inputs(), k=6, rule=rule, backend="torch").indices)


def test_stats_have_a_row_per_sample() -> None:
    _, stats = run(ragged((7, 0, 33)), 5, MMR())
    assert len(stats) == 3
    assert stats[1].similarities == stats[1].norms == 0


def test_calls_from_several_threads_agree() -> None:
    case = clustered(2, 200, 64)
    expected, _ = run(case, 60, IDSelection())
    found: list[idsel.Selection] = []
    workers = [
        Thread(target=lambda: found.append(idsel.select(**case.inputs(), k=60, backend="cpu"))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for sel in found:
        assert_same(sel, expected)


def test_helpers_round_as_the_caller_does() -> None:
    """The caller may change how small numbers are treated between calls. Helpers compute parts of the Gram here."""
    generator = torch.Generator().manual_seed(0)
    exponents = -(18 + 2 * torch.rand((1, 400, 600), generator=generator))
    case = Case(torch.randn((1, 400, 600), generator=generator) * 10**exponents, torch.rand(1, 400))
    with threads(2):
        run(case, 60, MaxMin())
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormal numbers")
        try:
            shared, _ = run(case, 60, MaxMin())
            with threads(1):
                alone, _ = run(case, 60, MaxMin())
        finally:
            torch.set_flush_denormal(False)
        assert_same(shared, alone)


def test_a_forked_process_can_select() -> None:
    """Threads of the parent do not exist in it."""
    case = clustered(1, 600, 256, importance="flat")
    with threads(2):
        expected, _ = run(case, 60, MaxMin())
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = torch.equal(run(case, 60, MaxMin())[0].indices, expected.indices)
            finally:
                os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert_same(run(case, 60, MaxMin())[0], expected)


def test_it_is_the_default_on_cpu_tensors() -> None:
    why = idsel.explain(torch.eye(3), 2, rule=MaxMin())
    assert why.backend == "cpu"
    assert "lazy" in why.algorithm


def test_unknown_instruction_set_is_refused() -> None:
    missing = cpu.Isa.NEON if _native.library().resolve_isa(cpu.Isa.AUTO) != cpu.Isa.NEON else cpu.Isa.AVX2
    with cpu.use_isa(missing), pytest.raises(ValueError, match="instruction set"):
        idsel.select(torch.eye(3), 2, rule=MaxMin(), backend="cpu")
