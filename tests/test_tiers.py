"""Space that runs out: the next tier takes over, with one warning, and every row reads the same."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch

from agent.memory.ranking import top_rows
from agent.memory.tiers import Arena, OutOfSpaceError, Pool, Tiers, limited, on_device, on_disk

CPU = torch.device("cpu")


def failing(after: int, error: Exception):
    """An allocator that fails on purpose once it has given ``after`` chunks."""
    given = []

    def allocate(size: int) -> torch.Tensor:
        if len(given) >= after:
            raise error
        given.append(size)
        return torch.empty(size, dtype=torch.uint8)

    return allocate


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda e: type(e).__name__)
def test_spilling_gives_the_same_rows_and_one_warning(error: Exception, tmp_path: Path):
    records = torch.randint(256, (23, 8), generator=torch.Generator().manual_seed(0))
    records = records.to(torch.uint8)
    tiers = Tiers([("device", failing(2, error)), ("disk", on_disk(str(tmp_path)))], CPU)
    pool, other = Pool(tiers, 8, chunk_rows=4), Pool(tiers, 8, chunk_rows=4)
    with pytest.warns(ResourceWarning, match="'device' has no room for 32 more") as caught:
        pool.extend(records[:5])
        pool.extend(records[5:])
    other.extend(records)  # says nothing again
    assert len(caught) == 1 and tiers.name == "disk"
    everything = torch.arange(23)
    for held in (pool, other):
        assert torch.equal(held.get(everything), records)
        order = torch.tensor([22, 0, 9, 9, 1])
        assert torch.equal(held.get(order), records[order])
    assert list(tmp_path.iterdir()) == []  # nothing stays behind, even if the process is killed


def test_other_errors_are_not_taken_for_a_shortage():
    tiers = Tiers([("a", failing(0, RuntimeError("bad device"))), ("b", on_device(CPU))], CPU)
    with pytest.raises(RuntimeError, match="bad device"):
        tiers.allocate(8)
    denied = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(PermissionError):
        Tiers([("a", failing(0, denied)), ("b", on_device(CPU))], CPU).allocate(8)


def test_out_of_space_everywhere():
    with pytest.raises(OutOfSpaceError, match="last tier, 'only'"):
        Tiers([("only", failing(0, MemoryError()))], CPU).allocate(8)
    with pytest.raises(ValueError, match="at least one tier"):
        Tiers([], CPU)


def test_a_tier_may_be_limited():
    allocate = limited(on_device(CPU), 100)
    assert len(allocate(60)) == 60
    with pytest.raises(MemoryError, match="100 bytes are all"):
        allocate(41)
    assert len(allocate(40)) == 40


def test_a_full_disk_is_found_before_it_is_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        on_disk(str(tmp_path))(100)
    assert list(tmp_path.iterdir()) == []


def test_the_usual_tiers():
    tiers = Tiers.named(["device", "host", "disk"], CPU, device_bytes=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chunks = [tiers.allocate(10), tiers.allocate(10)]
    assert [len(chunk) for chunk in chunks] == [10, 10]
    assert tiers.name == "host" and len(caught) == 1


def test_pieces_of_any_length():
    arena = Arena(Tiers([("host", on_device(CPU))], CPU), chunk_bytes=10)
    pieces = [torch.full((n,), n, dtype=torch.uint8) for n in (4, 6, 0, 1, 25, 3)]
    where = [arena.put(piece) for piece in pieces]
    for (chunk, start), piece in zip(where, pieces, strict=True):
        assert torch.equal(arena.get(chunk, start, len(piece)), piece)
    assert [len(chunk) for chunk in arena.chunks] == [10, 10, 25, 10]


def test_nan_is_never_ranked_first():
    nan, inf = torch.nan, torch.inf
    score = torch.tensor([[nan, 1.0, 3.0, -inf, 2.0], [nan, nan, -inf, nan, -5.0]])
    values, index = top_rows(score, 3)
    assert torch.topk(score, 3).indices[0, 0] == 0  # what it must not do
    assert values.tolist() == [[3.0, 2.0, 1.0], [-5.0, -inf, -inf]]
    assert index.tolist() == [[2, 4, 1], [4, -1, -1]]


def test_more_rows_asked_for_than_there_are():
    values, index = top_rows(torch.tensor([5.0, 7.0]), 4)
    assert values.tolist() == [7.0, 5.0, -torch.inf, -torch.inf]
    assert index.tolist() == [1, 0, -1, -1]
    values, index = top_rows(torch.zeros(2, 0), 3)
    assert index.tolist() == [[-1] * 3] * 2 and bool((values == -torch.inf).all())
    assert top_rows(torch.ones(2, 3), 0)[1].shape == (2, 0)
    with pytest.raises(ValueError, match="-1"):
        top_rows(torch.ones(3), -1)
