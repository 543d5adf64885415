"""Small rows, a bank of them, and a key that is a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agent.memory.bank import Bank, BankConfig, Sizes
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.policy import ObsNormalizer
from agent.types import Trajectories

H = 4


class SumKey:
    """Evidence is (sum, count) of a number; two of one mean are of one task."""

    size, version = 2, "v1"

    def fit(self, probes: Sequence[Trajectories], normalizer: ObsNormalizer, given: Any = None):
        """There is nothing to learn."""

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """The sum and count of all rewards."""
        return torch.stack([episodes.reward.sum((1, 2)), episodes.mask.sum((1, 2))], -1)

    def joined(self, first: Tensor, more: Tensor) -> Tensor:
        """Sums and counts add up."""
        return first + more

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """4 for the same mean, -4 from 1 apart."""
        apart = query[:, None, 0] / query[:, None, 1] - rows[None, :, 0] / rows[None, :, 1]
        return (4 - 8 * apart.abs()).nan_to_num(nan=-torch.inf)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


def alike(query: Tensor, rows: Tensor, versions: Sequence[str]) -> Tensor:
    """98 % for the same number, 2 % from 1 apart."""
    return torch.sigmoid(SumKey().score(query, rows))


def record(mean: float, sd: float = 0.0, n: int = 4) -> ReturnRecord:
    """A record of ``n`` episodes whose return grows evenly."""
    so_far = torch.linspace(mean / H, mean, H)
    return ReturnRecord(mean, sd, n, so_far, torch.full((H,), sd))


def probe(steps: int = 6, seed: int = 0) -> Transitions:
    """Random steps of one episode."""
    g = torch.Generator().manual_seed(seed)
    first = torch.zeros(steps, dtype=torch.bool)
    first[0] = True
    obs, after = torch.randn(2, steps, 3, generator=g)
    return Transitions(obs, torch.randn(steps, 2, generator=g), torch.ones(steps), after, first)


def row(task: float = 0.0, mean: float = 10.0, params: Tensor | None = None, **more: Any) -> Row:
    """A row of the task with that number; its policy is ``mean`` everywhere."""
    fields: dict[str, Any] = {
        "key": torch.tensor([task, 1.0]),
        "encoder": "v1",
        "params": torch.full((5,), mean) if params is None else params,
        "lineage": "a",
        "record": record(mean),
        "baseline": 0.0,
        "probe": probe(),
    }
    return Row(**fields | more)


def bank(*rows: Row, capacity: int = 8, codec: str = "float32", **config: Any) -> Bank:
    """A bank around the zero policy that holds these rows, uid by uid."""
    params = rows[0].params if rows else torch.zeros(5)
    sizes = Sizes(key=2, params=len(params), horizon=H, obs=3, action=2)
    settings = BankConfig(rows=capacity, codec=codec, **config)  # pyright: ignore[reportArgumentType]
    made = Bank(settings, sizes, torch.zeros(len(params)), "a", encoder="v1")
    for i, each in enumerate(rows):
        assert made.append(each) == i
    return made
