"""The nearest of many, against all distances worked out one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.memory.nearest import Nearest


@pytest.mark.parametrize("rows", [1, 700, 16383, 16384, 20001])
@pytest.mark.parametrize("queries", [1, 5])
def test_the_same_as_looking_at_every_distance(rows: int, queries: int):
    generator = torch.Generator().manual_seed(rows)
    keys = torch.randn(rows, 7, generator=generator)
    query = torch.randn(queries, 7, generator=generator)
    distance, index = Nearest(keys).search(query, 6)
    every = (query[:, None].double() - keys.double()).square().sum(-1)
    want = every.sort(-1)
    found = min(rows, 6)
    assert torch.equal(index[:, :found], want.indices[:, :found])
    torch.testing.assert_close(distance[:, :found], want.values[:, :found].float())
    assert index[:, found:].eq(-1).all() and distance[:, found:].isinf().all()


@pytest.mark.parametrize("rows", [20, 16500])
def test_neither_unknown_rows_nor_unknown_queries_are_found(rows: int):
    keys = torch.zeros(rows, 2) + torch.arange(rows)[:, None]
    keys[3] = torch.nan
    keys[4, 1] = torch.inf
    query = torch.tensor([[3.2, 3.2], [torch.nan, 0.0], [torch.inf, 0.0]])
    distance, index = Nearest(keys).search(query, 3)
    assert index[0].tolist() == [2, 5, 1]
    assert index[1:].eq(-1).all() and distance[1:].isinf().all()
    assert Nearest(keys).search(query[1:2], 3)[1].tolist() == [[-1, -1, -1]]  # one query alone
    assert Nearest(keys).search(query[:1], 3)[1].tolist() == [[2, 5, 1]]


def test_all_the_best_in_one_block_and_all_unknown():
    keys = torch.full((20000, 1), 100.0)
    keys[512:520, 0] = torch.arange(8.0)
    assert Nearest(keys).search(torch.zeros(1, 1), 8)[1].tolist() == [list(range(512, 520))]
    keys[:] = torch.nan
    assert Nearest(keys).search(torch.zeros(1, 1), 8)[1].tolist() == [[-1] * 8]
    assert Nearest(keys[:0]).search(torch.zeros(1, 1), 2)[1].tolist() == [[-1] * 2]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 9), st.integers(0, 10**6))
def test_what_comes_back_is_sorted_and_of_as_many_as_there_are(n: int, d: int, k: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(3, (n, d), generator=generator).float()  # full of duplicates
    distance, index = Nearest(keys).search(torch.zeros(2, d), k)
    assert index.shape == distance.shape == (2, k)
    assert (index >= 0).sum(-1).tolist() == [min(n, k)] * 2
    for row in index[:, : min(n, k)]:
        assert len(row.unique()) == len(row)
    assert torch.equal(distance, distance.sort(-1).values)
    want = keys.square().sum(-1).sort().values[:k]
    assert torch.equal(distance[0, : len(want)], want)


def test_rounding_does_not_mix_up_the_order():
    """Far from the origin ``2 q.k - |k|^2`` has few digits left; the distances do not."""
    keys = 1000 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    distance, index = Nearest(keys).search(keys[:1], 20)
    every = (keys - keys[0]).square().sum(-1)
    assert torch.equal(index[0], every.argsort()) and torch.equal(distance[0], every[index[0]])
