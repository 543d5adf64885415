"""Rows for tests of the memory on disk; each is told by one number, so that any bit is checked."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from agent.memory.row import ReturnRecord, Row, Transitions

P, D, H, O, A = 300, 12, 20, 4, 2  # noqa: E741


def row_of(value: int, **changes: Any) -> Row:
    """Always the same row for the same number; the lengths of probes differ."""
    generator = torch.Generator().manual_seed(value)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    steps = 3 + value % 5
    first = torch.arange(steps) % 3 == 0
    obs, after = draw(steps, O), draw(steps, O)
    after[:-1] = torch.where(first[1:, None], after[:-1], obs[1:])  # as in whole episodes
    row = Row(
        key=draw(D),
        encoder="encoder-1",
        params=draw(P),
        lineage="lineage-1",
        record=ReturnRecord(
            mean=float(draw()), sd=float(draw().abs()), n=5, so_far=draw(H), so_far_sd=draw(H).abs()
        ),
        baseline=-float(draw()),
        probe=Transitions(obs, draw(steps, A), draw(steps), after, first),
        visits=1 + value % 7,
        recalls=3,
        accepted=2,
        time=value * 1000,
        info={"value": value, "task": {"label": f"task {value % 3}"}, "note": 'ü "quoted"'},
    )
    return row.with_(**changes)


def same(a: Any, b: Any) -> bool:
    """Whether two rows are equal to the bit, NaN being NaN."""
    if is_dataclass(a):
        pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
        return type(a) is type(b) and all(same(x, y) for x, y in pairs)
    if isinstance(a, Tensor):
        exact = a.dtype == b.dtype and a.shape == b.shape
        return exact and a.numpy().tobytes() == b.numpy().tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))
