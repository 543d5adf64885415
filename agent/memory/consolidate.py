"""What often comes back moves into the meta-initialisation; the rows stay what they were.

Frequent rows pull the meta-initialisation a little towards their parameters (a Reptile step, Nichol
2018), and it then learns to act as they do on the states of their probes (the KL between actions,
so that rows of another lineage can teach too), held back by a KL to what it did before. Deltas are
then taken from the new anchor. A prior belief makes the first step only: how it is acted upon is in
weights that are not the memory's to change.

What probes the tasks must not move with it: keys are of one fixed behaviour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.bank import Bank
from agent.memory.row import Row
from agent.policy import GaussianMlp


@dataclass(kw_only=True, config={"extra": "forbid"})
class ConsolidateConfig:
    """How frequent rows change the meta-initialisation."""

    frequent: Annotated[int, Field(ge=1)] = 3
    """Visits from which a row teaches."""
    rows: Annotated[int, Field(ge=1)] = 32
    """Rows that teach at most, the most visited ones."""
    reptile: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the way to the teachers' mean (by visits, own lineage) that the first step goes."""
    steps: Annotated[int, Field(ge=0)] = 50
    """Adam steps of distillation."""
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Their size."""
    trust: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """Weight of the KL to the old meta-initialisation; that to the teachers weighs 1. Measured on
    HalfCheetah, return after one adaptation step: 303 before, 314 at 10, 277 at 1."""
    halvings: Annotated[int, Field(ge=0)] = 2
    """How often the move is halved, where it can be measured and does harm, before it is given up.
    """


@dataclasses.dataclass(frozen=True)
class Consolidation:
    """What came of it."""

    anchor: Tensor
    """The meta-initialisation from now on, ``[P]``."""
    share: float
    """Share of the planned move that was made; 0: nothing changed."""
    reason: str
    """In words."""
    teachers: tuple[int, ...] = ()
    """uids of the rows that taught."""


def consolidate(
    config: ConsolidateConfig,
    bank: Bank,
    policy: GaussianMlp,
    measure: Callable[[Tensor], float] | None = None,
) -> Consolidation:
    """Move the bank's anchor towards what its frequent rows do, and re-base all rows on it.

    With ``measure``, how good a meta-initialisation is (its return after adaptation, say), a move
    that makes it worse is halved, and in the end not made.
    """
    rows = bank.snapshot()
    anchor = rows.anchor
    frequent = [i for i, visits in enumerate(rows.visits.tolist()) if visits >= config.frequent]
    frequent = [i for i in frequent if float(rows.mean[i]) > float(rows.baseline[i])]
    frequent = sorted(frequent, key=lambda i: -int(rows.visits[i]))[: config.rows]
    teachers = [rows.row(i) for i in frequent]
    uids = tuple(int(rows.uids[i]) for i in frequent)
    if policy.plain is not policy:
        kept = [i for i, row in enumerate(teachers) if row.lineage == rows.lineage]
        teachers, uids = [teachers[i] for i in kept], tuple(uids[i] for i in kept)
    if not teachers:
        return Consolidation(anchor, 0.0, f"no row was visited {config.frequent} times")
    if policy.plain is policy:
        move = taught(config, policy, anchor, rows.lineage, teachers) - anchor
    else:
        move = pulled_by(config, anchor, rows.lineage, teachers) - anchor
    share, reason = 1.0, "not measured"
    if measure is not None:
        share, reason = _harmless(config, anchor, move, measure)
    if share > 0:
        anchor = anchor + share * move
        bank.rebase(anchor, rows.lineage)
    return Consolidation(anchor, share, reason, uids)


def taught(
    config: ConsolidateConfig,
    policy: GaussianMlp,
    anchor: Tensor,
    lineage: str,
    teachers: Sequence[Row],
) -> Tensor:
    """The meta-initialisation ``[P]`` after the Reptile step and the distillation."""
    theta = pulled_by(config, anchor, lineage, teachers)
    params, weight = _stacked(teachers, anchor)
    obs, mask = _padded([row.probe.obs.to(anchor) for row in teachers])
    mask = mask * (weight / weight.sum() / mask.sum(-1))[:, None]  # sums to 1 over all states
    with torch.no_grad():
        wanted, before = policy(params, obs), policy(anchor.expand(len(obs), -1), obs)
    theta = theta.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theta], lr=config.rate)
    with torch.enable_grad():
        for _ in range(config.steps):
            now = policy(theta.expand(len(obs), -1), obs)
            loss = ((wanted.kl(now) + config.trust * before.kl(now)) * mask).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return theta.detach()


def pulled_by(
    config: ConsolidateConfig, anchor: Tensor, lineage: str, teachers: Sequence[Row]
) -> Tensor:
    """The start ``[P]`` after the Reptile step: a share of the way to the mean of its own rows."""
    params, weight = _stacked(teachers, anchor)
    own = torch.tensor([row.lineage == lineage for row in teachers], device=anchor.device)
    if not bool(own.any()):
        return anchor
    target = (weight * own) @ params / (weight * own).sum()
    return anchor + config.reptile * (target - anchor)


def _stacked(teachers: Sequence[Row], anchor: Tensor) -> tuple[Tensor, Tensor]:
    """Their parameters ``[R, P]`` and visits ``[R]``."""
    params = torch.stack([row.params.to(anchor) for row in teachers])
    return params, torch.tensor([float(row.visits) for row in teachers], device=anchor.device)


def _harmless(
    config: ConsolidateConfig, anchor: Tensor, move: Tensor, measure: Callable[[Tensor], float]
) -> tuple[float, str]:
    """The largest tried share of the move that does no harm."""
    before, share = measure(anchor), 1.0
    for _ in range(config.halvings + 1):
        after = measure(anchor + share * move)
        if after >= before:
            return share, f"{before:.4g} before, {after:.4g} after"
        share /= 2
    return 0.0, f"every move did harm: {before:.4g} before"


def _padded(obs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Probes ``[M_i, O]`` as ``[R, M, O]``, with a mask ``[R, M]`` of the states there are."""
    out = torch.nn.utils.rnn.pad_sequence(list(obs), batch_first=True)
    count = torch.tensor([len(o) for o in obs], device=out.device)
    return out, (torch.arange(out.shape[1], device=out.device) < count[:, None]).to(out.dtype)
