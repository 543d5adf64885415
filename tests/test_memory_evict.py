"""Who gives way when the memory is full."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from agent.memory.evict import EvictConfig, Ledger, leaving, worth
from agent.memory.row import Row
from tests.memory_rows import alike, bank, row


def ledger(*rows: Row) -> Ledger:
    return Ledger(
        key=torch.stack([r.key for r in rows]),
        encoder=[r.encoder for r in rows],
        gain=torch.tensor([r.gain for r in rows], dtype=torch.float64),
        visits=torch.tensor([r.visits for r in rows]),
        time=torch.tensor([r.time for r in rows]),
        uid=torch.arange(len(rows)),
    )


def test_worth_by_hand():
    rows = ledger(row(0, 10, visits=3), row(100, 4, visits=1), row(0, 6, visits=1), row(50, -5))
    alone = [3 / 7 * 10, 1 / 7 * 4, 1 / 7 * 6, 0.0]
    torch.testing.assert_close(worth(rows, None), torch.tensor(alone, dtype=torch.float64))
    same = float(torch.sigmoid(torch.tensor(4.0)))
    shared = [3 / 7 * (10 - same * 6), 1 / 7 * 4, 1 / 7 * 6 * (1 - same), 0.0]
    torch.testing.assert_close(worth(rows, alike), torch.tensor(shared, dtype=torch.float64))


def test_worth_looks_at_gains_only_and_compares_no_versions():
    here = ledger(row(0, 10), row(0, 10, encoder="v0"), row(3, 5))
    low = ledger(*(row(t, m - 1e3, baseline=-1e3, encoder=e) for t, m, e in
                   ((0, 10, "v1"), (0, 10, "v0"), (3, 5, "v1"))))  # fmt: skip
    torch.testing.assert_close(worth(here, alike), worth(low, alike))
    torch.testing.assert_close(worth(here, alike)[:2], worth(here, None)[:2])
    nan = ledger(row(0, 10), row(5, math.nan), row(9, 1, key=torch.tensor([math.nan, 1.0])))
    values = worth(nan, alike)
    assert bool(torch.isfinite(values).all()) and values.argmin() == 1


def test_the_ledger_of_a_bank():
    store = bank(row(0, 10, visits=3), row(5, 4, baseline=1.0, time=7), row(9, 2))
    store.remove(0)
    of = Ledger.of(store.snapshot(), row(7, 6, visits=2), instead_of=2)
    assert of.key[:, 0].tolist() == [5, 7] and of.uid.tolist() == [1, 3]
    assert (
        of.gain.tolist() == [3, 6] and of.visits.tolist() == [1, 2] and of.time.tolist() == [7, 0]
    )
    # a newcomer whose key is of another version, and of another size, is like nothing
    other = row(5, 6, key=torch.zeros(3), encoder="v0")
    strange = Ledger.of(store.snapshot(), other)
    assert bool(strange.key[-1].isnan().all())
    torch.testing.assert_close(worth(strange, alike), worth(strange, None))
    assert len(Ledger.of(bank().snapshot(), row())) == 1


def test_redundancy_of_the_least_worth_is_enough_to_find_who_goes():
    g = torch.Generator().manual_seed(0)
    rows = [row(float(i), float(torch.rand((), generator=g)) + 1) for i in range(40)]
    entries = ledger(*rows, row(7, 1.0))  # a duplicate, and worse than row 7
    for shortlist in (8, 64):
        config = EvictConfig(shortlist=shortlist)
        assert leaving(config, entries, alike, g, 41) == 40


def test_first_in_first_out_and_least_recently_used():
    entries = ledger(row(time=5), row(time=1), row(time=9), row(time=0))
    g = torch.Generator()
    assert leaving(EvictConfig(kind="fifo"), entries, None, g, 4) == 0
    assert leaving(EvictConfig(kind="lru"), entries, None, g, 4) == 1


@pytest.mark.parametrize(("kind", "share"), [("reservoir", [0.3] * 10), ("random", None)])
def test_a_reservoir_is_an_even_sample_of_all_that_was_offered(
    kind: Any, share: list[float] | None
):
    g, counts, runs = torch.Generator().manual_seed(1), Counter(), 1500
    for _ in range(runs):
        held = list(range(3))
        for offered in range(3, 10):
            entries = ledger(*(row() for _ in range(4)))
            place = leaving(EvictConfig(kind=kind), entries, None, g, offered + 1)
            held = ([*held, offered])[:place] + ([*held, offered])[place + 1 :]
        counts.update(held)
    expected = share or [(2 / 3) ** 7] * 3 + [(2 / 3) ** (9 - i) for i in range(3, 10)]
    for offered, each in enumerate(expected):
        # four standard deviations of the count
        assert abs(counts[offered] / runs - each) < 4 * math.sqrt(each * (1 - each) / runs) + 1e-9
