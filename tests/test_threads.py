"""Many threads call at once, with other rules and shapes each, and every one gets its own picks.

These tests say the same with and without the GIL. Without it they are the proof that the compiled library may say that
it needs none: there `sys._is_gil_enabled()` must stay False when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

import idsel_kernels as idsel
from idsel_kernels import calls
from idsel_kernels.engines import cpu
from idsel_kernels.engines.streams import StreamCounters
from idsel_kernels.testing import clustered

THREADS = 8
ROUNDS = 60
RULES = (
    idsel.IDSelection(), idsel.MMR(), idsel.MMR(lam=0.3), idsel.MaxMin(), idsel.MaxMin(weighted=True),
    idsel.HardSuppress(), idsel.DPP(), idsel.Coverage(), idsel.TopK(), idsel.Elimination(), idsel.DART(),
)  # fmt: skip
SHAPES = ((1, 60, 16), (2, 33, 8), (3, 90, 24))
needs_library = pytest.mark.skipif(bool(cpu.ENGINE.unavailable_reasons()), reason="the cpu engine is not built")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads take turns as often as Python lets them, and few calls are kept, so that all of them begin anew."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    monkeypatch.setattr(calls, "_MOST", 5)
    calls.forget()
    yield
    sys.setswitchinterval(before)
    calls.forget()


def _at_once(work: Callable[[int], None], threads: int = THREADS) -> None:
    """Runs `work(number)` in threads that begin together, and raises what any of them raised."""
    start, errors = threading.Barrier(threads), []

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def _task(number: int) -> tuple[dict[str, torch.Tensor], int, idsel.Rule]:
    """Tensors, k and rule of a call; neighbours differ in all three."""
    batch, tokens, dim = SHAPES[number % len(SHAPES)]
    case = clustered(batch, tokens, dim, seed=number % 7)
    return case.inputs(), 5 + number % 4, RULES[number % len(RULES)]


def _same(a: idsel.Selection, b: idsel.Selection) -> bool:
    return torch.equal(a.indices, b.indices) and torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("engine", [pytest.param("cpu", marks=needs_library), "torch"])
def test_calls_of_different_rules_and_shapes(engine: str) -> None:
    tasks = [_task(number) for number in range(33)]
    expected = [idsel.select(**inputs, k=k, rule=rule, backend=engine) for inputs, k, rule in tasks]
    rounds = ROUNDS if engine == "cpu" else 1
    calls.forget()

    def work(number: int) -> None:
        for turn in range(rounds * len(tasks)):
            # Each thread goes its own way through them, so that they meet at the same key and at others.
            index = (turn * (2 * number + 1) + number) % len(tasks)
            inputs, k, rule = tasks[index]
            assert _same(idsel.select(**inputs, k=k, rule=rule, backend=engine), expected[index]), rule

    _at_once(work)
    assert len(calls._kept) <= calls._MOST + THREADS


@needs_library
def test_each_thread_records_its_own_calls_and_has_its_own_choices() -> None:
    inputs, k, rule = _task(0)
    with cpu.record_stats() as alone:
        idsel.select(**inputs, k=k, rule=rule, backend="cpu")
    others: list[int] = []

    def work(number: int) -> None:
        with cpu.record_stats() as recorded:
            for turn in range(40):
                with idsel.use_backend("torch" if number % 2 and turn % 20 == 0 else "cpu"):
                    idsel.select(**inputs, k=k, rule=rule)
        assert recorded == alone * (38 if number % 2 else 40)
        others.append(number)

    _at_once(work)
    assert sorted(others) == list(range(THREADS))


@needs_library
def test_plans_of_one_thread_each_and_one_that_all_share() -> None:
    inputs, k, rule = _task(2)
    shared = idsel.plan(**inputs, k=k, rule=rule, backend="cpu")
    expected = idsel.select(**inputs, k=k, rule=rule, backend="cpu")
    # Of other strides, so that threads add to the launchers of the plan while others look there.
    strided = {name: t.repeat_interleave(2, dim=1)[:, ::2] for name, t in inputs.items() if t is not None}

    def work(number: int) -> None:
        own_inputs, own_k, own_rule = _task(number)
        plan = idsel.plan(**own_inputs, k=own_k, rule=own_rule, backend="cpu")
        own = idsel.select(**own_inputs, k=own_k, rule=own_rule, backend="cpu")
        out = idsel.Selection(torch.empty_like(expected.indices), torch.empty_like(expected.scores))
        for turn in range(300):
            assert _same(plan.run(**own_inputs), own)
            assert _same(shared.run(**(strided if (turn + number) % 2 else inputs), out=out), expected)

    _at_once(work)


def test_no_two_graphs_get_the_same_counters() -> None:
    counters = StreamCounters(torch.int32)
    given: list[torch.Tensor] = []

    def work(number: int) -> None:
        for turn in range(2000):
            counters.zeros(8, torch.device("cpu"), number, False)
            for _ in range(1 + turn % 3):
                given.append(counters.zeros(8, torch.device("cpu"), number, True))

    _at_once(work)
    assert len(given) == THREADS * sum(1 + turn % 3 for turn in range(2000))
    assert len({graph.data_ptr() for graph in given}) == len(given)
    assert len(counters.by_stream) == THREADS


def test_engines_are_asked_at_once() -> None:
    """In a new process, where nothing has been asked yet."""
    code = (
        "import threading, torch, idsel_kernels as idsel\n"
        "found, start = [], threading.Barrier(8)\n"
        "def ask():\n"
        "    start.wait()\n"
        "    found.append((idsel.available_backends(), idsel.select(torch.eye(4), 2, 'maxmin').indices))\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(len(found), len({str(one) for one in found}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "8 1\n"), done.stderr


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a Python without the GIL")
@needs_library
def test_the_library_leaves_the_gil_off() -> None:
    code = "import sys, idsel_kernels._core; print(sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
