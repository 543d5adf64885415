"""What a reader gets to choose from: the K rows likeliest to be the task's, and "none of these"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor


class StepEvidence(Protocol):
    """What a step says against the candidates: for the model residual."""

    def __call__(self, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
        """Log-likelihood ratio ``[T, E]`` of "another task" to "the candidate's task".

        Of one step: ``[T, E, O]``, ``[T, E, A]``, ``[T, E]``, ``[T, E, O]``, raw.
        """
        ...


Residual = Callable[[Tensor], StepEvidence]
"""From rows ``[T]`` of the memory to what a step says against them."""


class LineageError(ValueError):
    """Parameters of different lineages were about to be mixed."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """T tasks x K rows, the likeliest first; a place without a row has weight 0."""

    index: Tensor
    """``[T, K]`` rows of the memory; -1 where there is no row."""
    weight: Tensor
    """``[T, K]`` posterior of each row."""
    null: Tensor
    """``[T]`` posterior of "none of the memory's rows"."""
    params: Tensor
    """``[T, K, P]`` their policies."""
    mean: Tensor
    """``[T, K]`` mean return of each on its own task,"""
    sd: Tensor
    """``[T, K]`` its standard deviation between episodes,"""
    n: Tensor
    """``[T, K]`` and the episodes that both are made of."""
    so_far: Tensor
    """``[T, K, H]`` mean return up to and including each step,"""
    so_far_sd: Tensor
    """``[T, K, H]`` and its standard deviation between episodes."""
    affinity: Tensor
    """``[T, K, K]`` probability that two rows are of one task, in [0, 1]."""
    baseline: Tensor
    """``[T, K]`` mean return of the meta-initialisation on the row's task."""
    anchor: Tensor
    """``[P]`` the meta-initialisation."""
    home_so_far: Tensor | None = None
    """``[T, H]`` mean return so far of the meta-initialisation on the task at hand, from its probe;
    NaN or None where that is not known."""
    mixable: Tensor | None = None
    """``[T, K]`` bool: the row is of the anchor's lineage, so that its parameters may be mixed with
    others'; None if all are."""
    residual: Residual | None = None
    """What new steps say against rows ``[T]`` of the memory, where the key can tell."""

    def __post_init__(self) -> None:
        """Check the shapes once, and that weights are what they say."""
        t, k = self.weight.shape if self.weight.ndim == 2 else (-1, -1)
        want = {
            "index": (t, k),
            "weight": (t, k),
            "null": (t,),
            "params": (t, k, len(self.anchor)),
            "affinity": (t, k, k),
            "so_far": (t, k, self.so_far.shape[-1]),
            "so_far_sd": (t, k, self.so_far.shape[-1]),
            "home_so_far": (t, self.so_far.shape[-1]),
        } | dict.fromkeys(("mean", "sd", "n", "baseline", "mixable"), (t, k))
        for name, shape in want.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"candidates: {name} must be {shape}, got {tuple(value.shape)}")
        for name in ("weight", "null"):
            value = getattr(self, name)
            if not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"candidates: {name} must be finite and not negative")

    @classmethod
    def none(cls, tasks: int, horizon: int, anchor: Tensor, places: int = 1) -> Candidates:
        """What an empty memory offers: nothing, and "none of these" for certain."""
        size = (tasks, places)
        zeros = anchor.new_zeros(size)
        record = anchor.new_zeros(*size, horizon)
        return cls(
            index=torch.full(size, -1, device=anchor.device),
            weight=zeros,
            null=anchor.new_ones(tasks),
            params=anchor.expand(*size, -1),
            mean=zeros,
            sd=zeros,
            n=zeros,
            so_far=record,
            so_far_sd=record,
            affinity=torch.eye(places, device=anchor.device).expand(tasks, -1, -1),
            baseline=zeros,
            anchor=anchor,
        )

    @property
    def size(self) -> tuple[int, int]:
        """T and K."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def known(self) -> Tensor:
        """``[T, K]`` bool: there is a row here."""
        return self.weight > 0

    @property
    def home(self) -> Tensor:
        """``[T]`` mean return of the meta-initialisation on the task at hand; NaN if not known."""
        if self.home_so_far is None:
            return torch.full_like(self.null, torch.nan)
        return self.home_so_far[:, -1]

    @property
    def null_wins(self) -> Tensor:
        """``[T]`` bool: "none of these" is likelier than all the rows together."""
        return self.null > self.weight.sum(-1)

    def at(self, place: Tensor) -> Tensor:
        """The policy at each task's ``place [T]``, ``[T, P]``; the anchor where that is -1."""
        rows = torch.arange(len(place), device=place.device)
        return torch.where((place >= 0)[:, None], self.params[rows, place], self.anchor)

    def row(self, place: Tensor) -> Tensor:
        """The memory's row at each task's ``place [T]``, ``[T]``; -1 where that is -1."""
        rows = torch.arange(len(place), device=place.device)
        return torch.where(place >= 0, self.index[rows, place], -1)

    def refuse_mixing(self, weights: Tensor) -> None:
        """Raise if ``weights [T, K]`` would mix a row of another lineage with anything.

        Hidden units of networks that were not trained from one start do not correspond, so a mean
        of their parameters is the policy of neither.

        Raises:
            LineageError: With the rows concerned.
        """
        if self.mixable is None:
            return
        foreign = (weights > 0) & ~self.mixable
        if bool(foreign.any()):
            rows = sorted({int(row) for row in self.index[foreign]})
            raise LineageError(
                f"rows {rows} are of another lineage than the meta-initialisation: their "
                "parameters cannot be mixed (use a reader that picks one row, and pull 'function')"
            )

    def reordered(self, order: Tensor) -> Candidates:
        """The same candidates in another ``order [T, K]``; null, home and anchor stay."""
        tasks = torch.arange(len(order), device=order.device)[:, None]
        changed = {
            f.name: getattr(self, f.name)[tasks, order]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
            and f.name not in ("null", "home_so_far", "anchor")
        }
        across = changed["affinity"].gather(2, order[:, None].expand(-1, order.shape[1], -1))
        return replace(self, **changed | {"affinity": across})


def corrupt(candidates: Candidates, rate: float, generator: torch.Generator) -> Candidates:
    """Inject wrong matches: in ``rate`` of the tasks another row is taken for the likeliest.

    The best row changes places with another one drawn at random, while the posterior stays where it
    was. A task with fewer than two rows has nothing to be mistaken for, and stays as it is.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of wrong matches is a share, got {rate}")
    t, k = candidates.size
    rows = candidates.known.sum(-1).cpu()
    hit = (torch.rand(t, generator=generator) < rate) & (rows > 1)
    other = 1 + (torch.rand(t, generator=generator) * (rows - 1)).long().clamp(max=max(k - 2, 0))
    order = torch.arange(k).repeat(t, 1)
    for task in hit.nonzero()[:, 0].tolist():
        place = int(candidates.known[task].nonzero()[int(other[task])])
        best = int(candidates.known[task].nonzero()[0])
        order[task, best], order[task, place] = place, best
    moved = candidates.reordered(order.to(candidates.weight.device))
    return replace(moved, weight=candidates.weight)
