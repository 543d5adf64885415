"""The default key: how likely the query is under each row's own linear models of the task.

For the reward and for the one-step dynamics, each a Bayesian linear model with a prior learned on
the training tasks, the score is the Bayes factor ``log p(query | row) - log p(query | new task)``,
in closed form from sums over steps. Real robots are not linear, so that steps say less than the
model believes: each head's factor is tempered by a weight fitted on the training tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.evidence import Head
from agent.memory.guard import StepEvidence
from agent.memory.key.base import (
    FEWEST_TASKS,
    IndistinguishableTasksError,
    known,
    same_task,
)
from agent.memory.key.handmade import Features, HandMade
from agent.memory.key.summed import Seen, SummedKey, part, stack
from agent.memory.posterior import fit_weights, log_loss, loss_of_chance
from agent.memory.sums import Sums
from agent.policy import ObsNormalizer
from agent.types import Trajectories

HEADS = ("reward", "dynamics")
_PAIRS_AT_ONCE = 1024
# How often a step counts in the model before the factor is tempered.
_SHARPNESS = (1.0, 3.0, 10.0)
# A log-loss above this share of that of chance tells hardly anything apart.
_HARDLY = 0.95


@dataclass(kw_only=True, config={"extra": "forbid", "arbitrary_types_allowed": True})
class Likelihood(SummedKey):
    """Bayes factors of two linear models, see the module."""

    KIND = "likelihood"
    READING = ("shortlist", "exact_up_to")

    features: Features = field(default_factory=HandMade)
    """What reward and dynamics are linear in."""
    noise_floor: Annotated[float, Field(gt=0)] = 1e-4
    """Least variance of a step that is not the model's, as a share of the target's."""
    sketch: Annotated[int, Field(ge=1)] = 32
    """Numbers by which the nearest rows are found where there are many."""
    shortlist: Annotated[int, Field(ge=1)] = 64
    """Rows that are scored exactly where there are more than ``exact_up_to``; others score -inf."""
    exact_up_to: Annotated[int, Field(ge=1)] = 128
    """N up to which every row is scored exactly."""

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: priors, noise, weights of the heads, and the sketch.

        ``given`` only says which training tasks are one and the same, in a family of few tasks.
        """
        told = torch.stack([known(p) for p in probes]).all(0) if probes else torch.zeros(0)
        if len(probes) < 2 or int(told.sum()) < FEWEST_TASKS:
            raise IndistinguishableTasksError(
                f"need two probes of at least {FEWEST_TASKS} tasks that did not all diverge, "
                f"got {len(probes)} of {int(told.sum())}"
            )
        self._use(normalizer.state_dict())
        self.features.fit(probes, normalizer)
        seen = stack([Seen.of(p, self.normalizer) for p in probes])
        seen = Seen(**{name: column[:, told] for name, column in vars(seen).items()})
        inputs = self._inputs(seen)
        plain = {
            name: Head.fit(x, y, seen.mask, self.noise_floor) for name, (x, y) in inputs.items()
        }
        sums = {name: head.sums(*inputs[name], seen.mask) for name, head in plain.items()}
        self._temper(plain, sums, same_task(given, told))
        self._fit_sketch(sums)
        self._finish()

    def _inputs(self, seen: Seen) -> dict[str, tuple[Tensor, Tensor]]:
        """Features and targets of each head."""
        reward = self.features.reward(seen.obs, seen.action, seen.change)
        dynamics = self.features.dynamics(seen.obs, seen.action)
        return {"reward": (reward, seen.reward), "dynamics": (dynamics, seen.change)}

    def _temper(self, plain: dict[str, Head], sums: dict[str, Sums], same: Tensor) -> None:
        """Choose how sharp the models are, and what each head's factor weighs."""
        best = torch.inf
        for sharpness in _SHARPNESS:
            heads = {name: head.sharpened(sharpness) for name, head in plain.items()}
            parts = torch.stack([_factors(heads[name], sums[name]) for name in HEADS], -1)
            weight, offset = fit_weights(parts, same)
            loss = float(log_loss((parts * weight).sum(-1) + offset, same))
            if loss < best:
                best, self._heads, self._weight = loss, heads, weight
        if bool(same.all()) or best > _HARDLY * loss_of_chance(len(same), same):
            raise IndistinguishableTasksError(
                "two probes of one training task are hardly more alike than probes of two, so the "
                "memory would not know one from the other (is there only one task, or does nothing "
                "that is observed or rewarded depend on the parameters?)"
            )

    def _fit_sketch(self, sums: dict[str, Sums]) -> None:
        """The directions in which tasks differ most, in units of what a probe tells of them."""
        self._metric = {
            name: torch.linalg.cholesky(
                sums[name].gram.mean((0, 1)) + torch.diag(head.precision)
            ).mT.contiguous()
            for name, head in self._heads.items()
        }
        told = self._told(sums)  # [R, M, C]
        tasks, apart = told.mean(0), told[1:] - told[:-1]
        noise = apart.square().mean((0, 1)) / 2 + 1e-12
        scale = noise.rsqrt()
        scale = scale / scale.max()
        centred = (tasks - tasks.mean(0)) * scale
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        self._project = (directions[: self.sketch] * scale).mT.contiguous()  # [C, K]

    def _told(self, sums: dict[str, Sums]) -> Tensor:
        """Both heads' coefficients ``[..., C]``, in units of how well a probe tells them."""
        parts = []
        for (name, head), weight in zip(self._heads.items(), self._weight, strict=True):
            told = self._metric[name] @ head.coefficients(sums[name])
            parts.append((told * (weight / head.noise).sqrt()).flatten(-2))
        return torch.cat(parts, -1)

    @property
    def sizes(self) -> tuple[int, int]:
        """View (sketch, and each head's evidence) and sums."""
        sums = sum(Sums.packed_size(*head.sizes) for head in self._heads.values())
        return self._project.shape[1] + len(HEADS), sums

    def sums(self, episodes: Trajectories) -> Tensor:
        """Packed sums of both heads."""
        seen = Seen.of(episodes, self.normalizer)
        inputs = self._inputs(seen)
        packed = [head.sums(*inputs[n], seen.mask).packed() for n, head in self._heads.items()]
        return torch.cat(packed, -1)

    def view(self, sums: Tensor) -> Tensor:
        """The sketch, and the evidence of each head."""
        unpacked = self._unpacked(sums)
        alone = [head.log_evidence(unpacked[n]) for n, head in self._heads.items()]
        sketch = self._told(unpacked) @ self._project
        return torch.cat([sketch, torch.stack(alone, -1)], -1)

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``; beyond ``exact_up_to`` rows, only the shortlist has a score."""
        return self._scored(query, rows, self._weight)

    def reward_score(self, query: Tensor, rows: Tensor) -> Tensor:
        """The part of the score that the reward contributes: low, the reward has changed."""
        return self._scored(query, rows, self._weight * torch.tensor([1.0, 0.0]).to(self._weight))

    def dynamics_score(self, query: Tensor, rows: Tensor) -> Tensor:
        """The part of the score that the dynamics contribute: low, the robot has changed."""
        return self._scored(query, rows, self._weight * torch.tensor([0.0, 1.0]).to(self._weight))

    def residual(self, query: Tensor, rows: Tensor) -> StepEvidence:
        """What new steps say against row t being the task of query t, both ``[T, D]``.

        A step counts by how much worse the row's models explain it than the query's own do, in the
        units of the score. Where either says nothing, steps say nothing (NaN).
        """
        start, _ = self.sizes
        models = []
        for evidence in (rows, query):
            sums = self._unpacked(evidence[:, start:].double())
            models.append({n: head.coefficients(sums[n]) for n, head in self._heads.items()})

        def said(obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
            total = torch.zeros(reward.shape, dtype=torch.float64, device=reward.device)
            inputs = self._inputs(Seen.at(obs, action, reward, after, self.normalizer))
            for weight, (name, head) in zip(self._weight, self._heads.items(), strict=True):
                scaled = (inputs[name][0] - head.middle) / head.spread
                target = head.targets(*inputs[name])
                row, own = ((target - scaled @ model[name]).square() for model in models)
                total += weight * ((row - own) / (2 * head.noise)).sum(-1)
            return total

        return said

    def _scored(self, query: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        self._check_fitted()
        if len(rows) <= self.exact_up_to:
            every = torch.arange(len(rows), device=rows.device).expand(len(query), -1)
            score = self._exact(query, rows, every, weight)
        else:
            near = self._nearest(query, rows)
            score = torch.full(
                (len(query), len(rows)), -torch.inf, dtype=torch.float64, device=query.device
            )
            score.scatter_(1, near, self._exact(query, rows, near, weight))
        # What is not known is NaN in every number of its evidence, so that its score is, too.
        return score.masked_fill(~torch.isfinite(score), -torch.inf)

    def _nearest(self, query: Tensor, rows: Tensor) -> Tensor:
        """The shortlist ``[T, K]``; rows of which nothing is known come last."""
        sketch = self._project.shape[1]
        near, away = query[:, :sketch], rows[:, :sketch]
        # Squared distance less what is the query's alone. Where the sketch is not finite: infinite.
        apart = away.square().sum(-1) - 2 * near @ away.mT
        apart = apart.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
        return apart.topk(min(self.shortlist, len(rows)), dim=-1, largest=False).indices

    def _exact(self, query: Tensor, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Scores ``[T, K]`` of the rows ``index [T, K]``."""
        start, _ = self.sizes
        at_once = max(1, _PAIRS_AT_ONCE // max(index.shape[1], 1))
        found = []
        for q, i in zip(query.split(at_once), index.split(at_once), strict=True):
            row = rows[i]
            both = self._unpacked(row[..., start:].double() + q[:, None, start:].double())
            alone = q[:, None, start - len(HEADS) : start] + row[..., start - len(HEADS) : start]
            joint = [head.log_evidence(both[name]) for name, head in self._heads.items()]
            found.append((torch.stack(joint, -1) - alone.double()) @ weight)
        return torch.cat(found) if found else index.new_zeros(index.shape, dtype=torch.float64)

    def _unpacked(self, sums: Tensor) -> dict[str, Sums]:
        sizes = {name: head.sizes for name, head in self._heads.items()}
        parts = sums.split([Sums.packed_size(*s) for s in sizes.values()], -1)
        return {
            name: Sums.unpacked(p, *s) for p, (name, s) in zip(parts, sizes.items(), strict=True)
        }

    def _fitted(self) -> dict[str, Tensor]:
        state = {f"features.{k}": v for k, v in self.features.state_dict().items()}
        for name in HEADS:
            state |= {f"{name}.{k}": v for k, v in self._heads[name].state_dict().items()}
            state[f"metric.{name}"] = self._metric[name]
        return state | {"weight": self._weight, "project": self._project}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        self.features.load_state_dict(part(state, "features."))
        self._heads = {name: Head.from_state(part(state, f"{name}.")) for name in HEADS}
        self._metric = part(state, "metric.")
        self._weight, self._project = state["weight"], state["project"]


def _factors(head: Head, sums: Sums) -> Tensor:
    """Untempered ``[2, M, M]`` of every task's first probe with every task's second, both ways."""
    alone = head.log_evidence(sums)
    second = Sums(sums.gram[1], sums.cross[1])
    first = zip(sums.gram[0], sums.cross[0], strict=True)
    joint = torch.stack([head.log_evidence(Sums(*one) + second) for one in first])
    found = joint - alone[0][:, None] - alone[1]
    return torch.stack([found, found.mT])
