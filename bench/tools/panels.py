"""How many rounds and panels the CUDA panel kernel takes, counted without a GPU.

    python -m bench.tools.panels [--tokens 576 2880 16384] [--k 16 64 10%] [--rules MMR] [--inputs flat] [--docs]

Replays in torch what the CTAs of a group choose (csrc/cuda/panel_loop.cuh), for one sample with all its tokens: which
of them are offered, which make a panel, and how far the picks get. Made-up inputs have D = 64. A picture has as many
tokens as the largest square up to N. `--docs` puts the counts into docs/cuda_engine.md.
"""

from __future__ import annotations

import argparse
import functools
import math
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import idsel_kernels as idsel
from bench.tools.sass import replace_between
from idsel_kernels.engines.reference import Batch, DPPState, rule_state
from idsel_kernels.inputs import clustered
from idsel_kernels.picture import bundled_patches
from idsel_kernels.problem import Inputs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cuda_engine.md"
MARKERS = ("<!-- panels:begin -->", "<!-- panels:end -->")

# csrc/cuda/kernel_args.h; tests/test_panels_tool.py compares.
PANEL_ROWS = 64
RUN = 16
GAINS_AT_ONCE = 16
MAX_GROUP = 256

DIM = 64
MULTIPROCESSORS = 132  # of an H100
RULES: dict[str, idsel.Rule] = {
    "IDSelection": idsel.IDSelection(),
    "MMR": idsel.MMR(),
    "MaxMin": idsel.MaxMin(),
    "MaxMin(start=0)": idsel.MaxMin(start=0),
    "HardSuppress": idsel.HardSuppress(),
    "DPP": idsel.DPP(),
    "Coverage": idsel.Coverage(),
}
INPUTS = {
    "clustered": "clusters of features, few high importances",
    "picture": "patches of a photograph and their saliency",
    "flat": "clusters, importances within a thousandth of one another",
    "random": "normal features, uniform importance",
}

# The rank of a token is its priority as an integer, then its index, as in csrc/cuda/order_key.cuh but signed.
NONE = -(2**63)
_LOW = 2**32 - 1


class Counts(NamedTuple):
    """What `panels_made` of the engine counts."""

    rounds: int
    panels: int

    def __str__(self) -> str:
        return f"{self.rounds:,} / {self.panels:,}"


def group_size(tokens: int, dim: int, multiprocessors: int) -> int:
    """CTAs of a sample that is alone in its launch. One runs on a multiprocessor at a time."""
    cluster = 2 if dim > 224 else 1
    most = min(MAX_GROUP, (-(-tokens // PANEL_ROWS) + 1) * cluster)
    return max(1, min(multiprocessors, most) // cluster) * cluster


def offers_of(ctas: int) -> int:
    """Tokens that a CTA offers."""
    return max(2, min(-(-2 * PANEL_ROWS // ctas), PANEL_ROWS))


def ranked(priority: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Ranks of all tokens or of these, of equal priorities the lower index first; `NONE` where there is no priority."""
    bits = (priority + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    order = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()
    rank = order << 32 | (_LOW - (torch.arange(len(priority)) if tokens is None else tokens))
    return torch.where(priority > -math.inf, rank, NONE)


def tokens_of(rank: torch.Tensor) -> torch.Tensor:
    """The tokens of ranks."""
    return _LOW - (rank & _LOW)


def token_of(rank: int) -> int:
    """The token of a rank."""
    return _LOW - (rank & _LOW)


def best_of(rank: torch.Tensor) -> int:
    """The largest of ranks."""
    return int(rank.max()) if len(rank) else NONE


# --- What a pick does to the others ----------------------------------------------------------------------------------


class Ranking:
    """How the tokens of a sample rank for the next pick. Steps count from 1.

    Attributes:
        rank: of each token that can be picked, as its owner knows it; else `NONE`.
    """

    rank: torch.Tensor

    def open(self) -> None:
        """The best of all tokens is known; nothing has been picked."""

    def needs_row(self, step: int, token: int) -> bool:
        """Whether picking the token changes what others are worth."""
        raise NotImplementedError

    def take_panel(self, panel: torch.Tensor) -> None:
        """There is a new panel of these tokens."""

    def settle(self, token: int, panel: torch.Tensor) -> bool:
        """False where the best token of the panel had a bound for a rank, which has been replaced."""
        return True

    def absorb(self, step: int, token: int) -> bool:
        """The token is picked, and its row is read. Returns whether others may rank higher than before."""
        raise NotImplementedError


class ByRow(Ranking):
    """By the torch engine's own steps: of rules for which a pick means one row of the Gram."""

    def __init__(self, rule: idsel.Rule, batch: Batch, opening: torch.Tensor, wanted: int) -> None:
        self._rule, self._state, self._wanted = rule, rule_state(rule, batch, wanted), wanted
        self._priority, self._open = opening, batch.takes_part[0].clone()
        self._rises = self._first_pick_may_raise(rule, batch.importance, opening)
        # DPP does not know yet which tokens are below its least priority.
        first = self._state.d if isinstance(self._state, DPPState) else opening
        self.rank = ranked(torch.where(self._open, first[0], -math.inf))

    @staticmethod
    def _first_pick_may_raise(rule: idsel.Rule, importance: torch.Tensor, opening: torch.Tensor) -> bool:
        """Whether a token that is like no pick may be worth more than before the first one."""
        if isinstance(rule, idsel.IDSelection):
            return rule.floor is not None and bool((importance.clamp(min=rule.floor) > opening).any())
        if isinstance(rule, idsel.MMR):
            return bool((rule.lam * importance + (1 - rule.lam) > opening).any())
        return isinstance(rule, idsel.MaxMin) and bool((opening < 2).any())

    def open(self) -> None:
        self.rank = ranked(torch.where(self._open, self._priority[0], -math.inf))

    def needs_row(self, step: int, token: int) -> bool:
        if step >= self._wanted:
            return False
        return step == 1 or not isinstance(self._rule, idsel.IDSelection) or float(self._priority[0, token]) != 0

    def absorb(self, step: int, token: int) -> bool:
        score = self._priority[:, token]
        self._open[token] = False
        self._priority = self._state.update(step - 1, torch.tensor([token]), score, self._priority)
        self.rank = ranked(torch.where(self._open, self._priority[0], -math.inf))
        first_to_count = step == (self._rule.parallel_k if isinstance(self._rule, idsel.MMR) else 1)
        negative = isinstance(self._rule, idsel.IDSelection) and bool(score < 0)
        return (self._rises and first_to_count) or negative


class ByGain(Ranking):
    """Of `Coverage`: gains are summed only of tokens in the panel whose bound could win."""

    def __init__(self, rule: idsel.Coverage, unit: torch.Tensor, saliency: torch.Tensor, gains: torch.Tensor) -> None:
        self._adds, self._unit, self._saliency = rule.combine == "add", unit, saliency
        self._cover = torch.zeros_like(saliency)
        self._falls = torch.tensor(self._adds) | (saliency >= 0)  # with the gain
        self._fresh = torch.zeros(len(saliency), dtype=torch.bool)
        self._rows, self._slot = unit[:0], torch.zeros(len(saliency), dtype=torch.int64)  # of the panel
        self._of_no_gain = ranked(self._priority(torch.zeros_like(gains), saliency))
        self.rank = ranked(self._priority(gains, saliency))

    def _priority(self, gains: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        return gains + saliency if self._adds else gains * saliency

    def needs_row(self, step: int, token: int) -> bool:
        return True  # for its gain

    def take_panel(self, panel: torch.Tensor) -> None:
        self._rows = cosines(self._unit, panel)
        self._slot[panel] = torch.arange(len(panel))
        self._fresh.fill_(False)

    def settle(self, token: int, panel: torch.Tensor) -> bool:
        if self._fresh[token]:
            return True
        stale = panel[~self._fresh[panel] & (self.rank[panel] != NONE)]
        stale = stale[self.rank[stale].argsort(descending=True)[:GAINS_AT_ONCE]]
        gains = (self._rows[self._slot[stale]] - self._cover).clamp_(min=0).sum(1)
        self.rank[stale] = ranked(self._priority(gains, self._saliency[stale]), stale)
        self._fresh[stale] = True
        return False

    def absorb(self, step: int, token: int) -> bool:
        self._cover = torch.maximum(self._cover, self._rows[self._slot[token]])
        self.rank = torch.where(self._falls | (self.rank == NONE), self.rank, self._of_no_gain)
        self.rank[token] = NONE
        self._fresh.fill_(False)
        return not bool(self._falls.all())


def cosines(unit: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Rows of the Gram."""
    rows = (unit[tokens] @ unit.T).clamp_(-1, 1)
    rows[torch.arange(len(tokens)), tokens] = 1
    return rows


def rankings(rule: idsel.Rule, features: torch.Tensor, importance: torch.Tensor) -> Callable[[int], Ranking]:
    """Makes rankings for a number of picks. They share what is known before the first."""
    if isinstance(rule, idsel.Coverage):
        unit = torch.nn.functional.normalize(features.float(), dim=1)
        gains = [
            cosines(unit, tile).clamp_(min=0).sum(1)
            for tile in torch.chunk(torch.arange(len(unit)), -(-len(unit) // 512))
        ]
        saliency = (importance.double() ** rule.alpha).float()
        return lambda wanted: ByGain(rule, unit, saliency, torch.cat(gains))
    batch = Batch(Inputs(features[None], importance[None], None, None), torch.float32, full_gram=False)
    opening = rule_state(rule, batch, 1).start()
    return lambda wanted: ByRow(rule, batch, opening, wanted)


# --- The kernel's choices --------------------------------------------------------------------------------------------


class Offers(NamedTuple):
    """Ranks of what all CTAs offer, and the highest that none does."""

    rank: torch.Tensor
    bound: int


def offers(rank: torch.Tensor, inside: torch.Tensor, ctas: int) -> Offers:
    """Each CTA's best tokens of its own that are not in the panel, `inside`."""
    count = offers_of(ctas)
    each = -(-len(rank) // ctas)
    each = -(-each // RUN) * RUN
    own = torch.full((ctas * max(each, count + 1),), NONE)
    own = own.view(ctas, -1)
    # Those of a CTA, in a row that has room for all it may offer.
    flat = torch.nn.functional.pad(torch.where(inside, NONE, rank), (0, ctas * each - len(rank)), value=NONE)
    own[:, :each] = flat.view(ctas, each)
    top = own.topk(count + 1).values
    return Offers(top[:, :count].flatten(), best_of(top[:, count]))


def replay(ranking: Ranking, importance: torch.Tensor, wanted: int, ctas: int) -> tuple[list[int], Counts]:
    """The picks, and what they took."""
    picks: list[int] = []
    rounds = panels = 0
    panel = torch.empty(0, dtype=torch.int64)
    inside = torch.zeros(len(ranking.rank), dtype=torch.bool)
    while len(picks) < wanted:
        rounds += 1
        offered = offers(ranking.rank, inside, ctas)
        kept, bound = best_of(ranking.rank[panel]), best_of(offered.rank)
        best = max(kept, bound)
        if best == NONE:
            break
        if rounds == 1:
            ranking.open()
        if not ranking.needs_row(len(picks) + 1, token_of(best)):
            tied = (ranking.rank >> 32 == best >> 32).nonzero()[: wanted - len(picks), 0]
            picks += tied.tolist()
            ranking.rank[tied] = NONE
            continue
        if kept <= bound:
            candidates = torch.cat([offered.rank, ranking.rank[panel]]).sort(descending=True).values
            bound = max(offered.bound, best_of(candidates[PANEL_ROWS:]))
            panel = tokens_of(candidates[:PANEL_ROWS][candidates[:PANEL_ROWS] != NONE])
            inside.fill_(False)
            inside[panel] = True
            panels += 1
            ranking.take_panel(panel)
        _pick_in_panel(ranking, panel, bound, picks, wanted)
    left = torch.ones(len(importance), dtype=torch.bool)
    left[picks] = False
    rest = ranked(torch.where(left, importance, -math.inf)).argsort(descending=True)
    return picks + rest[: wanted - len(picks)].tolist(), Counts(rounds, panels)


def _pick_in_panel(ranking: Ranking, panel: torch.Tensor, bound: int, picks: list[int], wanted: int) -> None:
    """Appends the picks of a round."""
    while len(picks) < wanted:
        top = best_of(ranking.rank[panel])
        if top == NONE or top < bound:
            return
        token, step = token_of(top), len(picks) + 1
        if not ranking.settle(token, panel):
            continue
        picks.append(token)
        if not ranking.needs_row(step, token):
            ranking.rank[token] = NONE
        elif ranking.absorb(step, token):
            return


# --- The table -------------------------------------------------------------------------------------------------------


def tokens_and_importance(kind: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) and importance (N,)."""
    if kind == "picture":
        return bundled_patches(math.isqrt(tokens))
    if kind == "random":
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tokens, DIM, generator=generator), torch.rand(tokens, generator=generator)
    case = clustered(1, tokens, DIM, importance="uniform" if kind == "flat" else "skewed")
    return case.features[0], 1 + case.importance[0] / 1000 if kind == "flat" else case.importance[0]


def picks_of(k: str, tokens: int) -> int:
    """The count that an option stands for: a number, or a part of the tokens."""
    return tokens * int(k[:-1]) // 100 if k.endswith("%") else min(tokens, int(k))


class Row(NamedTuple):
    """The counts of one input and rule, for each k."""

    tokens: int
    kind: str
    rule: str
    counts: list[Counts]


def measure(tokens: list[int], ks: list[str], rules: list[str], kinds: list[str], ctas: int) -> Iterator[Row]:
    """Replays everything."""
    for n in tokens:
        for kind in kinds:
            features, importance = tokens_and_importance(kind, n)
            group = group_size(len(features), features.shape[1], ctas)
            for rule in rules:
                ranking = rankings(RULES[rule], features, importance)
                wanted = [picks_of(k, len(features)) for k in ks]
                yield Row(n, kind, rule, [replay(ranking(k), importance, k, group)[1] for k in wanted])


def heading(ks: list[str]) -> str:
    """Of the table that is printed."""
    return "\n".join(
        ["| N | Input | Rule |" + "".join(f" k = {k} |" for k in ks), "|---:|---|---|" + "---:|" * len(ks)]
    )


def line(row: Row) -> str:
    """A row of it."""
    return f"| {row.tokens:,} | {row.kind} | {row.rule} |" + "".join(f" {counts} |" for counts in row.counts)


def markdown(rows: list[Row], ks: list[str], ctas: int) -> str:
    """The table for docs/cuda_engine.md."""
    lengths, kinds = list(dict.fromkeys(row.tokens for row in rows)), dict.fromkeys(row.kind for row in rows)
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(f"{row.kind}, `{row.rule}`", []).extend(map(str, row.counts))
    columns = [f"{n:,}, {k.replace('%', ' %')}" for n in lengths for k in ks]
    table = ["| N, k | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    table += [f"| {name} | " + " | ".join(counts) + " |" for name, counts in cells.items()]
    squares = ", ".join(f"{math.isqrt(n) ** 2:,}" for n in lengths)
    note = (
        f"Rounds / panels of one sample, with up to {ctas} CTAs. A panel is counted where its rows are multiplied. "
        + "; ".join(f"{kind}: {INPUTS[kind]}" for kind in kinds)
        + f". D is {DIM}, but of the picture {tokens_and_importance('picture', 16)[0].shape[1]}; its N is {squares}. "
        "`python -m bench.tools.panels --docs` replayed the kernel's choices in torch."
    )
    return "\n".join([*table, "", *textwrap.wrap(note, 120, break_on_hyphens=False)])


def main(arguments: list[str] | None = None) -> None:
    """Prints the counts as they come, and documents them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[576, 2880, 16384], metavar="N")
    parser.add_argument("--k", nargs="+", default=["16", "64", "10%"], help="counts, or parts of the tokens")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--ctas", type=int, default=MULTIPROCESSORS, help="that run at the same time")
    parser.add_argument("--docs", action="store_true", help="write the table")
    options = parser.parse_args(arguments)
    began, rows = time.monotonic(), []
    show = functools.partial(print, flush=True)
    show(f"rounds / panels, up to {options.ctas} CTAs\n\n{heading(options.k)}")
    for row in measure(options.tokens, options.k, options.rules, options.inputs, options.ctas):
        rows.append(row)
        show(line(row))
    show(f"\n{time.monotonic() - began:.0f} s")
    if options.docs:
        replace_between(PAGE, MARKERS, markdown(rows, options.k, options.ctas))


if __name__ == "__main__":
    main()
