"""Counters of launches: each stream has its own, and so has each captured graph."""

from __future__ import annotations

import torch

from idsel_kernels.engines.streams import StreamCounters

CPU = torch.device("cpu")


def test_a_stream_keeps_its_counters() -> None:
    counters = StreamCounters(torch.int32)
    mine = counters.zeros(8, CPU, 1, False)
    assert len(mine) >= 8 and not mine.any()
    assert counters.zeros(8, CPU, 1, False) is mine
    assert counters.zeros(8, CPU, 2, False) is not mine
    larger = counters.zeros(10_000, CPU, 1, False)
    assert len(larger) == 10_000 and counters.zeros(8, CPU, 1, False) is larger


def test_graphs_take_counters_that_were_zeroed_before() -> None:
    counters = StreamCounters(torch.int32)
    counters.zeros(8, CPU, 1, False)
    stock, _ = counters._stocks[None]
    before = len(stock)
    graphs = [counters.zeros(8, CPU, 1, True) for _ in range(before)]
    assert not stock and len({graph.data_ptr() for graph in graphs}) == before
    assert all(len(graph) >= 8 and not graph.any() for graph in graphs)
    assert len(counters.zeros(8, CPU, 1, True)) == 8, "without a stock the graph clears its own"
    counters.zeros(8, CPU, 1, False)
    assert counters.zeros(8, CPU, 1, True).data_ptr() not in {graph.data_ptr() for graph in graphs}


def test_a_stock_too_small_is_left_alone() -> None:
    counters = StreamCounters(torch.int32)
    counters.zeros(8, CPU, 1, False)
    assert len(counters.zeros(10_000, CPU, 1, True)) == 10_000
    counters.zeros(10_000, CPU, 1, False)
    assert len(counters.zeros(10_000, CPU, 1, True)) == 10_000 and len(counters._given) == 1
