"""Probes of training tasks: all that a key is fitted and calibrated on, kept with the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from agent.memory.key.base import Key, known, same_task
from agent.memory.posterior import Calibration
from agent.policy import ObsNormalizer
from agent.types import Trajectories


@dataclass(frozen=True)
class TrainingProbes:
    """Two or more independent probes of the same M training tasks by the meta-initialisation."""

    probes: tuple[Trajectories, ...]
    """Each ``[M, E, H]``."""
    given: Tensor
    """Descriptors ``[M, d]`` of the tasks; for oracles, and to see which tasks are the same."""
    normalizer: ObsNormalizer
    """Of the meta-initialisation, frozen."""

    def fit(self, key: Key) -> Calibration:
        """Fit ``key`` and find what its scores are worth as probabilities.

        Raises:
            IndistinguishableTasksError: The key cannot tell the training tasks apart.
        """
        key.fit(self.probes, self.normalizer, self.given)
        told = torch.stack([known(p) for p in self.probes]).all(0)
        evidence = [key.encode(p, self.given)[told] for p in self.probes]
        pairs = [(i, j) for i in range(len(evidence)) for j in range(len(evidence)) if i != j]
        scores = [key.score(evidence[i], evidence[j]) for i, j in pairs]
        return Calibration.fit(scores, same_task(self.given, told))

    def state_dict(self) -> dict[str, Tensor]:
        """All but the normaliser, which is the policy's."""
        state = {"given": self.given}
        for i, probe in enumerate(self.probes):
            values = {f.name: getattr(probe, f.name) for f in fields(probe)}
            state |= {f"{i}.{n}": v.contiguous() for n, v in values.items() if v is not None}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], normalizer: ObsNormalizer) -> TrainingProbes:
        """The inverse of ``state_dict``, on the normaliser's device."""
        device, columns = normalizer.mean.device, {}
        for name, value in state.items():
            number, _, column = name.partition(".")
            if column:
                columns.setdefault(int(number), {})[column] = value.to(device)
        probes = tuple(Trajectories(**columns[i]) for i in sorted(columns))
        return cls(probes, state["given"].to(device), normalizer)
