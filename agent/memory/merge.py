"""Two rows become one, if they are of one task, do the same, and the result is as good on both.

Parameters are only mixed inside one lineage: midpoints of policies of different origins are no
policies at all (measured: -1 where either had 118 and 126). Even inside one, agreement on the
probe's states says little of where the policies go themselves, so a merge needs a certificate: its
return, measured on both tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.bank import Bank, BankFullError
from agent.memory.decide import Differs
from agent.memory.evict import Alike
from agent.memory.key.base import Key, score_rows
from agent.memory.posterior import Calibration, Prior
from agent.memory.records import both_probes, keeps_gain, pooled
from agent.memory.row import Row
from agent.policy import GaussianMlp

MeasureOn = Callable[[Tensor, int], float]
"""Mean return of a policy ``[P]`` on the task of row ``uid``; NaN where that cannot be had."""
_BLOCK = 256  # rows whose likeness to all others is computed at once


@dataclass(kw_only=True, config={"extra": "forbid"})
class MergeConfig:
    """When two rows become one, and how."""

    how: Literal["mean", "changed"] = "mean"
    """``mean``: of the deltas, by visits. ``changed``: the same, but a parameter that only one of
    them has moved keeps that one's move whole."""
    moved: Annotated[float, Field(ge=0, le=1)] = 0.1
    """``changed``: a parameter has moved if by more than this share of the delta's typical size."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability that they are of one task, at least."""
    divergence: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 15.0
    """Symmetric KL between the policies at most, nats per step on both rows' probe states. Measured
    on HalfCheetah: 5-13 between two visits of one task, 24-48 where the directions are opposite."""
    certificate: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of each row's gain that must be left on its own task."""
    paired: bool = True
    """Compare with the row's own policy measured now, not with what its record says: a record is
    of the episodes that it was kept for, and so a little too good."""


@dataclasses.dataclass(frozen=True)
class Merge:
    """What came of trying to merge two rows."""

    uids: tuple[int, int]
    """The rows; if merged, the first holds the result and the second is gone."""
    merged: bool
    """Whether it was done."""
    reason: str
    """In words."""
    divergence: float = float("nan")
    """Between the policies, nats per step."""
    kept: tuple[float, ...] = ()
    """Share of each row's gain that the merged policy keeps."""


def likeness(key: Key, calibration: Calibration) -> Alike:
    """The probability that a query's task is a row's, were there but that row and a new task."""

    def alike(query: Tensor, rows: Tensor, versions: Sequence[str]) -> Tensor:
        score = score_rows(key, query, rows, versions)
        return calibration.posterior(score.reshape(-1, 1), Prior.even(1, 0.5)).weight.view_as(score)

    return alike


def divergence(policy: GaussianMlp, first: Tensor, second: Tensor, obs: Tensor) -> float:
    """Symmetric KL between policies ``[P]``: the mean of both directions and of states ``[M, O]``.

    In nats per step.
    """
    with torch.no_grad():
        one = policy(first[None].to(policy.device), obs[None].to(policy.device))
        two = policy(second[None].to(policy.device), obs[None].to(policy.device))
        return float((one.kl(two) + two.kl(one)).mean() / 2)


def differ(policy: GaussianMlp, least: float) -> Differs:
    """Whether two rows' policies diverge by more than ``least`` nats on their probes' states."""

    def differs(first: Row, second: Row) -> bool:
        return _apart(policy, first, second) > least

    return differs


def mixed(config: MergeConfig, first: Row, second: Row, anchor: Tensor) -> Tensor:
    """The merged policy ``[P]`` of two rows whose deltas are from ``anchor [P]``."""
    deltas = torch.stack([row.params.to(anchor) - anchor for row in (first, second)])
    share = torch.tensor([first.visits, second.visits], dtype=deltas.dtype).clamp(min=1)
    weight = (share / share.sum())[:, None].to(deltas.device).expand_as(deltas)
    if config.how == "changed":
        typical = deltas.square().mean(-1, keepdim=True).sqrt()
        moved = deltas.abs() > config.moved * typical
        only_one = moved.sum(0) == 1
        weight = torch.where(only_one, moved.to(weight.dtype), weight)
    return anchor + (weight * deltas).sum(0)


class Merger:
    """Merges rows of a bank in place."""

    def __init__(
        self, config: MergeConfig, bank: Bank, key: Key, alike: Alike, policy: GaussianMlp
    ) -> None:
        self.config, self.bank = config, bank
        self._key, self._alike, self._policy = key, alike, policy

    def pairs(self, among: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Names (uids) of rows that overlap, likest first; with one in ``among``, if given."""
        rows = self.bank.snapshot()
        uids = rows.uids.tolist()
        asked = list(range(len(uids))) if among is None else [rows.index_of(u) for u in among]
        found: dict[tuple[int, int], float] = {}
        for start in range(0, len(asked), _BLOCK):
            block = asked[start : start + _BLOCK]
            same = self._alike(rows.keys[block], rows.keys, rows.encoders)
            for line, column in (same >= self.config.overlap).nonzero().tolist():
                i, j = sorted((block[line], column))
                if i != j:
                    found[uids[i], uids[j]] = float(same[line, column])
        return sorted(found, key=lambda pair: -found[pair])

    def merge(self, first: int, second: int, measure: MeasureOn) -> Merge:
        """Merge two rows, or say why not. The bank is changed only if the certificate holds."""
        uids, rows = (first, second), (self.bank.row(first), self.bank.row(second))
        if reason := self._not_comparable(*rows):
            return Merge(uids, False, reason)
        apart = _apart(self._policy, *rows)
        if not apart <= self.config.divergence:
            return Merge(uids, False, "the policies do different things", apart)
        anchor = self.bank.snapshot().anchor
        params = mixed(self.config, *rows, anchor)
        owns = [
            measure(row.params.to(anchor), uid) if self.config.paired else row.record.mean
            for uid, row in zip(uids, rows, strict=True)
        ]

        def measured(policy: Tensor) -> list[float]:
            return [measure(policy, uid) for uid in uids]

        def certified(returns: list[float]) -> bool:
            return all(
                keeps_gain(got, own, row.baseline, self.config.certificate)
                for got, own, row in zip(returns, owns, rows, strict=True)
            )

        returns = measured(params)
        kept = tuple(
            (got - row.baseline) / (own - row.baseline) if own != row.baseline else float("nan")
            for got, own, row in zip(returns, owns, rows, strict=True)
        )
        if not certified(returns):
            return Merge(uids, False, "too much would be lost on one of the tasks", apart, kept)
        row = self._joined(*rows, params)
        try:
            self.bank.replace(first, row, lambda decoded: certified(measured(decoded)))
        except BankFullError:  # only by bytes; to remove the second first would risk it
            return Merge(uids, False, "no room for the result beside both rows", apart, kept)
        self.bank.remove(second)
        return Merge(uids, True, "as good on both tasks", apart, kept)

    def merge_all(self, measure: MeasureOn, among: Sequence[int] | None = None) -> list[Merge]:
        """Try all pairs that overlap, likest first; a row that is gone is not tried again."""
        tried = []
        for first, second in self.pairs(among):
            if first in self.bank and second in self.bank:
                tried.append(self.merge(first, second, measure))
        return tried

    def _not_comparable(self, first: Row, second: Row) -> str | None:
        if first.lineage != second.lineage:
            return (
                f"of different lineages ({first.lineage!r}, {second.lineage!r}): "
                "their parameters mean different things"
            )
        if first.encoder != second.encoder:
            return "their keys are of different versions, which are never compared"
        if first.record.so_far.shape != second.record.so_far.shape:
            return "their episodes are of different lengths"
        one, two = (row.key[None].to(self.bank.device) for row in (first, second))
        same = float(self._alike(one, two, [second.encoder])[0, 0])
        if not same >= self.config.overlap:
            return f"probably not of one task ({same:.2g})"
        return None

    def _joined(self, first: Row, second: Row, params: Tensor) -> Row:
        """One row with all that was known of both."""
        visits = first.visits + second.visits
        total = first.visits * first.baseline + second.visits * second.baseline
        return first.with_(
            key=self._key.joined(*(r.key[None].to(self.bank.device) for r in (first, second)))[0],
            params=params,
            record=pooled(first.record, second.record),
            baseline=total / max(visits, 1),
            probe=both_probes(first.probe, second.probe),
            visits=visits,
            recalls=first.recalls + second.recalls,
            accepted=first.accepted + second.accepted,
            time=max(first.time, second.time),
            info=first.info | {"merged": [*first.info.get("merged", []), second.info]},
        )


def _apart(policy: GaussianMlp, first: Row, second: Row) -> float:
    return divergence(
        policy, first.params, second.params, torch.cat([first.probe.obs, second.probe.obs])
    )
