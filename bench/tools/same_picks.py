"""Do two builds of idsel_kernels pick alike, to the bit?

    python bench/tools/same_picks.py record OUT.npz [--backends cpu torch] [--cases 5000] [--seed 0]
    python bench/tools/same_picks.py compare A.npz B.npz

`record` runs random cases through whatever idsel_kernels Python imports, by its public API alone, and keeps indices,
scores and the text of errors. To record an older commit, run this file, by its path, with the Python of that commit's
checkout: `python -m` would import the package of the current folder. Case i depends on the seed and on i, and on
nothing of the library. The backend "emulated" is the CUDA engine in emulation, built from the checkout that --checkout
names. It is slow, and Triton compiles a kernel for every new kind of case: ask for fewer cases there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import idsel_kernels as idsel

Rng = np.random.Generator
Outcome = tuple[np.ndarray, np.ndarray, str]

DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("cuda", "triton", "cpu", "torch", "emulated")
FEATURES = ("gaussian", "clustered", "signs", "duplicates", "zero rows", "not finite", "lengths")
IMPORTANCE = ("uniform", "skewed", "levels", "flat", "gaussian", "zeros", "not finite")
LAYOUTS = (
    "contiguous", "transposed", "every other row", "some columns", "every other column", "batch last", "expanded",
)  # fmt: skip
RULES = ("IDSelection", "MMR", "MaxMin", "HardSuppress", "DPP", "Coverage", "TopK")
SHOWN = 5
KEPT = ExitStack()  # for the life of the process


class Case(NamedTuple):
    """Arguments of one call, as values; `call` makes tensors of them."""

    rule: str
    params: dict[str, Any]
    k: int | list[int]
    sort: bool
    features: np.ndarray  # (B, N, D), or (T, D) if ragged, float32
    dtype: str
    layout: str
    importance: np.ndarray | None
    importance_dtype: str
    mask: np.ndarray | None
    cu_seqlens: np.ndarray | None
    single: bool  # one sample, given without a batch axis
    kinds: tuple[str, str]

    def checksum(self) -> int:
        """Of all values: two records of one case number must be of one case."""
        total = zlib.crc32(str(self).encode())
        for value in (self.features, self.importance, self.mask, self.cu_seqlens):
            total = zlib.crc32(b"" if value is None else value.tobytes(), total)
        return total

    def __str__(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        offsets = "" if self.cu_seqlens is None else f", cu_seqlens={self.cu_seqlens.tolist()}"
        importance = "none" if self.importance is None else f"{self.kinds[1]} {self.importance_dtype}"
        mask, single = ("" if self.mask is None else "; mask"), ("; without a batch axis" if self.single else "")
        return (
            f"{self.rule}({params}), k={self.k}, sort={self.sort}; features {self.kinds[0]} {self.features.shape} "
            f"{self.dtype}, {self.layout}{offsets}; importance {importance}{mask}{single}"
        )


# --- Drawing a case ---------------------------------------------------------------------------------------------------


def case(seed: int, number: int) -> Case:
    """The case of this number; the same wherever NumPy draws the same."""
    rng = np.random.default_rng([seed, number])
    rule = RULES[number % len(RULES)]
    lengths = _lengths(rng)
    ragged = len(set(lengths)) > 1 or bool(rng.random() < 0.1)
    kind, dtype = _choice(rng, FEATURES), _choice(rng, DTYPES)
    dim = 4 ** int(rng.integers(0, 5)) if kind == "signs" else int(rng.integers(1, 301))
    features = _features(rng, kind, sum(lengths), dim)
    importance_kind = _choice(rng, IMPORTANCE)
    importance = _importance(rng, importance_kind, sum(lengths))
    if (rule in ("MaxMin", "Coverage") and rng.random() < 0.5) or rng.random() < 0.005:
        importance = None
    mask = _mask(rng, sum(lengths)) if rng.random() < 0.25 else None
    single = not ragged and len(lengths) == 1 and bool(rng.random() < 0.3)
    if not ragged:
        features = features.reshape(len(lengths), lengths[0], dim)
        importance, mask = (v if v is None else v.reshape(features.shape[:2]) for v in (importance, mask))
    return Case(
        rule=rule,
        params=_params(rng, rule, lengths),
        k=_k(rng, lengths),
        sort=bool(rng.random() < 0.2),
        features=features,
        dtype=dtype,
        layout=_choice(rng, LAYOUTS) if rng.random() < 0.5 else LAYOUTS[0],
        importance=importance,
        importance_dtype=_choice(rng, (*DTYPES, "float64")) if rng.random() < 0.5 else "float32",
        mask=mask,
        cu_seqlens=np.cumsum([0, *lengths], dtype=np.int32) if ragged else None,
        single=single,
        kinds=(kind, importance_kind),
    )


def _choice(rng: Rng, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _lengths(rng: Rng) -> list[int]:
    """Tokens of each sample: most have at most 130, some up to 700, a few none."""
    batch, most = int(rng.integers(1, 5)), 700 if rng.random() < 0.05 else 130
    if rng.random() < 0.2:
        return [int(n) for n in rng.integers(0, most + 1, batch)]
    return [0 if rng.random() < 0.005 else int(rng.integers(1, most + 1))] * batch


def _features(rng: Rng, kind: str, tokens: int, dim: int) -> np.ndarray:
    """(tokens, dim) float32."""
    x = rng.standard_normal((tokens, dim), dtype=np.float32)
    if kind == "clustered":
        centres = rng.standard_normal((int(rng.integers(1, 12)), dim), dtype=np.float32)
        x = centres[rng.integers(0, len(centres), tokens)] + x * np.float32(rng.uniform(0.01, 0.7))
    elif kind == "signs":
        x = np.where(x < 0, np.float32(-1), np.float32(1))
    elif kind == "duplicates" and tokens:
        x = x[rng.integers(0, int(rng.integers(1, tokens + 1)), tokens)]
    elif kind == "zero rows":
        x[rng.random(tokens) < rng.uniform(0, 1)] = 0
    elif kind == "not finite":
        rows = np.flatnonzero(rng.random(tokens) < rng.uniform(0, 0.5))
        x[rows, rng.integers(0, dim, len(rows))] = rng.choice(np.float32([np.nan, np.inf, -np.inf]), len(rows))
    elif kind == "lengths":
        # Squares of some of them leave float32, values of some float16.
        x *= np.ldexp(np.float32(1), rng.integers(-70, 71, (tokens, 1)))
    return x


def _importance(rng: Rng, kind: str, tokens: int) -> np.ndarray:
    """(tokens,) float64."""
    x = rng.random(tokens)
    if kind == "skewed":
        x = x**8
    elif kind == "levels":
        x = np.floor(x * 4) / 4
    elif kind in ("flat", "zeros"):
        x = np.full(tokens, 0.0 if kind == "zeros" else 0.5)
    elif kind == "gaussian":
        x = rng.standard_normal(tokens)
    elif kind == "not finite":
        some = rng.random(tokens) < rng.uniform(0, 0.6)
        x[some] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-40], int(some.sum()))
    return x


def _mask(rng: Rng, tokens: int) -> np.ndarray:
    return rng.random(tokens) < rng.choice([0.0, 0.1, 0.5, 0.9])


def _params(rng: Rng, rule: str, lengths: list[int]) -> dict[str, Any]:
    """Parameters in words; a few do not fit the sample, so that errors are compared as well."""
    longest = max(lengths)
    if rule == "IDSelection":
        floor = [0.0, None, round(rng.uniform(-0.5, 0.5), 3)][int(rng.integers(3))]
        return {"gamma": _either(rng, 20.0, round(rng.uniform(0, 60), 3)), "floor": floor}
    if rule == "MMR":
        lam, parallel_k = _either(rng, 0.5, round(rng.random(), 3)), _either(rng, 1, int(rng.integers(1, 9)))
        return {"lam": lam, "parallel_k": parallel_k}
    if rule == "MaxMin":
        return {"start": _either(rng, None, int(rng.integers(0, max(longest, 1) + (rng.random() < 0.02))))}
    if rule == "HardSuppress":
        params = {"threshold": _either(rng, 0.8, round(rng.uniform(-1, 1), 3))}
        if rng.random() < 0.5 and longest and (len(set(lengths)) == 1 or rng.random() < 0.05):
            height = int(rng.choice([side for side in range(1, longest + 1) if longest % side == 0]))
            params |= {"grid": (height, longest // height), "radius": int(rng.integers(0, 4))}
        return params
    if rule == "DPP":
        return {"eps": _either(rng, 1e-6, float(f"{10 ** rng.uniform(-6, 0):.3g}"))}
    if rule == "Coverage":
        return {"alpha": _either(rng, 1.0, round(rng.uniform(0, 3), 3)), "combine": _choice(rng, ("mul", "add"))}
    return {}


def _either(rng: Rng, usual: Any, other: Any) -> Any:
    return usual if rng.random() < 0.5 else other


def _k(rng: Rng, lengths: list[int]) -> int | list[int]:
    """One count or one a sample, up to three more than there are tokens; most are small."""

    def count(tokens: int) -> int:
        return int(rng.integers(0, (tokens if rng.random() < 0.3 else min(tokens, 24)) + 4))

    return [count(n) for n in lengths] if rng.random() < 0.25 else count(max(lengths))


# --- Running it -------------------------------------------------------------------------------------------------------


def call(one: Case, backend: str, device: str) -> Outcome:
    """Indices, the bits of the scores and no error, or nothing and the error."""
    try:
        picks = idsel.select(**arguments(one, device), backend=backend)
        return picks.indices.cpu().numpy(), picks.scores.cpu().numpy().view(np.int32), ""
    except Exception as error:
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.int32), f"{type(error).__name__}: {error}"


def arguments(one: Case, device: str) -> dict[str, Any]:
    """The keyword arguments of `idsel.select`."""

    def tensor(values: np.ndarray | None, dtype: str | None = None) -> torch.Tensor | None:
        if values is None:
            return None
        made = torch.from_numpy(values).to(device=device, dtype=dtype and getattr(torch, dtype))
        return made[0] if one.single else made

    ragged = one.cu_seqlens is not None
    values = torch.from_numpy(one.features).to(device=device, dtype=getattr(torch, one.dtype))
    features = arranged(values[None] if ragged else values, one.layout)
    return {
        "features": features[0] if ragged or one.single else features,
        "k": one.k,
        "rule": getattr(idsel, one.rule)(**one.params),
        "importance": tensor(one.importance, one.importance_dtype),
        "mask": tensor(one.mask),
        "cu_seqlens": torch.from_numpy(one.cu_seqlens).to(device) if one.cu_seqlens is not None else None,
        "sort": one.sort,
    }


def arranged(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (B, N, D) as a view with other strides."""
    b, n, d = values.shape
    if layout == "expanded":
        return values[:1].expand(b, n, d)
    views = {
        "contiguous": lambda: values.new_empty(b, n, d),
        "transposed": lambda: values.new_empty(b, d, n).transpose(1, 2),
        "every other row": lambda: values.new_empty(b, 2 * n, d)[:, ::2],
        "some columns": lambda: values.new_empty(b, n, d + 5)[..., 3 : 3 + d],
        "every other column": lambda: values.new_empty(b, n, 2 * d)[..., ::2],
        "batch last": lambda: values.new_empty(n, b, d).transpose(0, 1),
    }
    return views[layout]().copy_(values)


def prepared(backend: str, checkout: Path) -> str:
    """The name that `select` knows it by; the emulated engine is built and registered first."""
    if backend == "emulated":
        sys.path[:0] = [str(checkout / "tests"), str(checkout / "tests" / "emulator")]
        import emulated

        emulated.build()
        if hasattr(emulated, "register"):  # at 00b9288 and before
            emulated.register()
        else:
            import backends

            KEPT.enter_context(backends.registered(emulated.engine()))
        return str(emulated.NAME)
    if backend not in idsel.available_backends():
        raise SystemExit(f"backend {backend!r} cannot run here; available: {', '.join(idsel.available_backends())}")
    return backend


def record(options: argparse.Namespace) -> int:
    """Writes the outcomes of every case and backend."""
    backends = options.backends or [name for name in ("cpu", "torch") if name in idsel.available_backends()]
    names = {backend: prepared(backend, options.checkout) for backend in backends}
    print(f"{idsel.__file__}, torch {torch.__version__}, numpy {np.__version__}")
    outcomes: dict[str, list[Outcome]] = {backend: [] for backend in backends}
    seconds, checksums = dict.fromkeys(backends, 0.0), []
    for number in range(options.cases):
        one = case(options.seed, number)
        checksums.append(one.checksum())
        for backend, name in names.items():
            begin = time.monotonic()
            device = options.device or ("cuda" if backend in ("cuda", "triton") else "cpu")
            outcomes[backend].append(call(one, name, device))
            seconds[backend] += time.monotonic() - begin
    arrays = {f"{name}.{field}": v for name, found in outcomes.items() for field, v in _packed(found).items()}
    for backend, found in outcomes.items():
        failed = sum(bool(error) for *_, error in found)
        print(f"{backend}: {len(found)} cases, {failed} of them errors, {seconds[backend]:.0f} s")
    about = {"seed": options.seed, "cases": options.cases, "backends": backends, "package": idsel.__file__}
    arrays["about"] = np.array(json.dumps(about))
    arrays["checksums"] = np.array(checksums, np.uint32)
    np.savez_compressed(options.out, **arrays)
    return 0


def _packed(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    return {
        "shapes": np.array([indices.shape for indices, *_ in outcomes]),
        "indices": np.concatenate([indices.ravel() for indices, *_ in outcomes]),
        "scores": np.concatenate([scores.ravel() for _, scores, _ in outcomes]),
        "errors": np.array([error for *_, error in outcomes]),
    }


def _unpacked(file: Any, backend: str) -> list[Outcome]:
    shapes = file[f"{backend}.shapes"]
    ends = np.cumsum(shapes.prod(1))[:-1]
    flat = (np.split(file[f"{backend}.{field}"], ends) for field in ("indices", "scores"))
    indices, scores = ([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)] for parts in flat)
    return list(zip(indices, scores, map(str, file[f"{backend}.errors"]), strict=True))


# --- Comparing --------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> int:
    """Says what differs; status 1 if anything does, 2 where the files cannot be compared."""
    a, b = np.load(options.a), np.load(options.b)
    first, second = (json.loads(str(file["about"])) for file in (a, b))
    cases = min(first["cases"], second["cases"])
    if first["seed"] != second["seed"] or not np.array_equal(a["checksums"][:cases], b["checksums"][:cases]):
        print("the two files are not of the same cases: another seed, another NumPy or another version of this script")
        return 2
    print(f"A: {first['package']}\nB: {second['package']}")
    different = 0
    for backend in dict.fromkeys([*first["backends"], *second["backends"]]):
        if backend not in first["backends"] or backend not in second["backends"]:
            print(f"{backend}: only in {'A' if backend in first['backends'] else 'B'}")
            different += 1
            continue
        pairs = list(zip(_unpacked(a, backend)[:cases], _unpacked(b, backend)[:cases], strict=True))
        different += _report(backend, first["seed"], pairs)
    return 1 if different else 0


def _report(backend: str, seed: int, pairs: list[tuple[Outcome, Outcome]]) -> int:
    """Prints the counts and the first differences; how many cases differ."""
    found = {number: difference(*pair) for number, pair in enumerate(pairs)}
    found = {number: what for number, what in found.items() if what}
    counts = {kind: sum(what.startswith(kind) for what in found.values()) for kind in ("indices", "scores", "error")}
    if not found:
        print(f"{backend}: {len(pairs)} cases, all alike")
        return 0
    parts = ", ".join(f"{count} in {kind}" for kind, count in counts.items())
    print(f"{backend}: {len(pairs)} cases, {len(found)} differ: {parts}")
    for number, what in list(found.items())[:SHOWN]:
        print(f"  case({seed}, {number}): {case(seed, number)}\n    {what}")
    return len(found)


def difference(a: Outcome, b: Outcome) -> str:
    """What differs first, or nothing."""
    if a[2] != b[2]:
        return f"error: {a[2] or 'none'} | {b[2] or 'none'}"
    for field, x, y in (("indices", a[0], b[0]), ("scores", a[1], b[1])):
        if x.shape != y.shape:
            return f"{field}: shape {x.shape} | {y.shape}"
        if not np.array_equal(x, y):
            at = tuple(map(int, np.argwhere(x != y)[0]))
            values = (x[at], y[at]) if field == "indices" else (v.view(np.float32)[at] for v in (x, y))
            return f"{field} at {at}: " + " | ".join(str(value) for value in values)
    return ""


def main() -> int:
    """`record` or `compare`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("record", help="run the cases and keep what they give")
    add.set_defaults(run=record)
    add.add_argument("out", type=Path)
    add.add_argument("--backends", nargs="+", choices=BACKENDS, help="default: cpu and torch, if available")
    add.add_argument("--cases", type=int, default=5000)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--device", help="default: cuda for cuda and triton, else cpu")
    add.add_argument("--checkout", type=Path, default=Path(__file__).parents[2], help="whose tests/emulator to build")
    add = commands.add_parser("compare", help="what differs between two files")
    add.set_defaults(run=compare)
    add.add_argument("a", type=Path)
    add.add_argument("b", type=Path)
    options = parser.parse_args()
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
