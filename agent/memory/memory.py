"""The episodic memory as a whole: a key and what its scores are worth, the bank, the writer.

Reading: evidence of the task at hand -> score against every row -> posterior over the rows and
"none of these" -> candidates, between which a reader (``reader``) decides. Writing: see ``writer``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.bank import Bank, BankConfig, Sizes
from agent.memory.candidates import Candidates, Residual, StepEvidence, corrupt
from agent.memory.codec import spans_of
from agent.memory.decide import Outcome, WriteConfig
from agent.memory.key.base import Key, score_rows
from agent.memory.key.likelihood import Likelihood
from agent.memory.merge import differ, likeness
from agent.memory.posterior import Calibration, Posterior, Prior
from agent.memory.row import Row
from agent.memory.snapshot import Snapshot
from agent.memory.writer import Decision, Measure, Writer
from agent.policy import GaussianMlp

_LEAST = 1e-30


@dataclass(kw_only=True, config={"extra": "forbid"})
class MemoryConfig:
    """Settings of the episodic memory, the key and the reader aside."""

    bank: BankConfig = field(default_factory=BankConfig)
    """How many rows, how they are coded, where they lie."""
    write: WriteConfig = field(default_factory=WriteConfig)
    """When a policy is worth keeping, and which gives way."""
    novelty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """zeta of the recurrence prior: weight of tasks never met, in visits."""
    candidates: Annotated[int, Field(ge=1)] = 8
    """K: rows that a reader may choose between."""
    corrupt_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of reads in which another row is taken for the likeliest, to see what that costs."""
    alternatives_differ: Annotated[float, Field(ge=0)] = 0.1
    """With several rows per task: nats per step by which their policies must differ."""


class EpisodicMemory:
    """Rows around one meta-initialisation, found by content."""

    def __init__(
        self,
        config: MemoryConfig,
        key: Key,
        calibration: Calibration,
        policy: GaussianMlp,
        anchor: Tensor,
        lineage: str,
        horizon: int,
        seed: int = 0,
        free: Tensor | None = None,
    ) -> None:
        """An empty memory around ``anchor [P]``, for episodes of ``horizon`` steps.

        ``free [P]`` bool: parameters that adaptation moves; rows keep no others. None: all.
        """
        self.config, self.key, self.calibration = config, key, calibration
        self.policy, self.lineage = policy, lineage
        sizes = Sizes(
            key=key.size,
            params=policy.num_params,
            horizon=horizon,
            obs=policy.obs_size,
            action=policy.action_size,
            segments=tuple(policy.segments),
            free=spans_of(free),
        )
        self.bank = Bank(config.bank, sizes, anchor, lineage, policy.device, key.version)
        # The calibration may come from a saved state later.
        self._alike = lambda *asked: likeness(self.key, self.calibration)(*asked)
        differs = differ(policy, config.alternatives_differ)
        self.writer = Writer(config.write, self.bank, key, self._alike, differs, seed)
        self._generator = torch.Generator().manual_seed(seed + 2**32)  # not the writer's

    def __len__(self) -> int:
        """Rows held now."""
        return len(self.bank)

    def posterior(self, evidence: Tensor, rows: Snapshot) -> Posterior:
        """Which of the rows the task of ``evidence [T, D]`` is, or none of them.

        A row that was scored at all keeps a weight above 0, however small: it can be tried.
        """
        scores = score_rows(self.key, evidence, rows.keys, rows.encoders)
        prior = Prior.recurrence(rows.visits, self.config.novelty)
        found = self.calibration.posterior(scores, prior)
        weight = torch.where(scores > -torch.inf, found.weight.clamp(min=_LEAST), 0.0)
        return Posterior(weight, found.null)

    def candidates(self, evidence: Tensor, home_so_far: Tensor | None = None) -> Candidates:
        """The likeliest rows for ``evidence [T, D]``.

        ``home_so_far [T, H]`` is the meta-initialisation's mean return so far, from the probe.
        """
        rows = self.bank.snapshot()
        if len(rows) == 0:
            return Candidates.none(len(evidence), self.bank.sizes.horizon, rows.anchor)
        posterior = self.posterior(evidence, rows)
        weight, index = posterior.ranked(self.config.candidates)
        index = torch.where(weight > 0, index, -1)
        at = index.clamp(min=0)
        so_far, so_far_sd = rows.bands(index)
        dtype = rows.anchor.dtype

        def column(values: Tensor) -> Tensor:
            return torch.where(index >= 0, values[at.to(values.device)].to(dtype), 0.0)

        found = Candidates(
            index=index,
            weight=weight.to(dtype),
            null=posterior.null.to(dtype),
            params=rows.params(index),
            mean=column(rows.mean),
            sd=column(rows.sd),
            n=column(rows.n),
            so_far=so_far,
            so_far_sd=so_far_sd,
            affinity=self._affinity(rows, at).to(dtype),
            baseline=column(rows.baseline),
            anchor=rows.anchor,
            home_so_far=home_so_far,
            mixable=rows.mixable[at] | (index < 0),
            residual=self._residual(evidence, rows),
        )
        return corrupt(found, self.config.corrupt_rate, self._generator)

    def take_over(self, rows: Iterable[Row]) -> None:
        """Add the rows of another memory, for whatever key they were made.

        Keys are made anew from the rows' probes where another key made them. Rows of another
        lineage can be tried and jumped to, but not mixed.
        """
        versions = set()
        for row in rows:
            self.bank.append(row.with_(time=0))  # times are of a lifetime
            versions.add(row.encoder)
        if versions - {self.key.version}:
            self.bank.rekey(self.key)

    def calibrate(self, calibration: Calibration) -> None:
        """What the key's scores are worth, as a saved state has it."""
        self.calibration = calibration

    def write(self, outcome: Outcome, measure: Measure | None = None) -> Decision:
        """What a visit leaves behind."""
        return self.writer.write(outcome, measure)

    def state_dict(self) -> dict[str, Tensor]:
        """The rows, and where the random choices stand."""
        state = {f"bank.{n}": v for n, v in self.bank.state_dict().items()}
        state |= {f"writer.{n}": v for n, v in self.writer.state_dict().items()}
        return state | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved rows; they must be of the same lineage."""
        self.bank.load_state_dict(_part(state, "bank."))
        self.writer.load_state_dict(_part(state, "writer."))
        self._generator.set_state(state["generator"].cpu())

    def _residual(self, evidence: Tensor, rows: Snapshot) -> Residual | None:
        """What new steps say against rows of this memory; None if the key's models cannot tell."""
        key = self.key
        if not isinstance(key, Likelihood):
            return None

        def against(index: Tensor) -> StepEvidence:
            known = (index >= 0)[:, None]
            keys = rows.keys[index.clamp(min=0).to(rows.keys.device)][:, : key.size]
            return key.residual(evidence, torch.where(known, keys, torch.nan))

        return against

    def _affinity(self, rows: Snapshot, at: Tensor) -> Tensor:
        """``[T, K, K]``: which of the candidates are probably one task."""
        parts = []
        for index in at:
            keys = rows.keys[index.to(rows.keys.device)]
            same = self._alike(keys, keys, [rows.encoders[i] for i in index.tolist()])
            parts.append(same.nan_to_num(nan=0.0).clamp(0, 1))
        affinity = torch.stack(parts)
        both = torch.maximum(affinity, affinity.mT)
        eye = torch.eye(both.shape[-1], dtype=torch.bool, device=both.device)
        return both.masked_fill(eye, 1.0)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
