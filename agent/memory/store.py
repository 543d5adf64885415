"""The store: rows of (key, policy as a delta from the meta-initialisation, score), read by content.

Rows live in preallocated tensors on the device, are read through a gate ("none of these" is an
answer) and are written by merit.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.types import Recall


@dataclass(kw_only=True, config={"extra": "forbid"})
class MemoryConfig:
    """Settings of the episodic memory."""

    capacity: Annotated[int, Field(ge=1)] = 256
    """N at most; when full, the row that gained least over the meta-initialisation gives way."""
    gate: Annotated[float, Field(gt=0)] = 2.0
    """Novelty gate: a row further off is another task (95 % of two probes of one are within 1)."""
    same_task: Annotated[float, Field(gt=0)] = 2.0
    """What is written nearer than this to a row is that row's task, and updates it."""
    topk: Annotated[int, Field(ge=1)] = 1
    """K: rows recalled; their weights are softmax(-distance^2 / 2). 1 is the nearest row alone."""


class EpisodicMemory:
    """N rows on a device.

    Row i holds ``keys[i] [D]``, ``deltas[i] [P]``, ``scores[i]``, ``gains[i]``, ``visits[i]``.
    """

    def __init__(self, config: MemoryConfig, key_size: int, anchor: Tensor) -> None:
        """Reserve ``config.capacity`` rows around the meta-initialisation ``anchor [P]``."""
        self.config, self.anchor = config, anchor
        n, device = config.capacity, anchor.device
        self.keys = torch.zeros(n, key_size, dtype=torch.float64, device=device)
        self.deltas = torch.zeros(n, len(anchor), dtype=anchor.dtype, device=device)
        self.scores = torch.zeros(n, dtype=torch.float64, device=device)
        self.gains = torch.zeros(n, dtype=torch.float64, device=device)
        self.visits = torch.zeros(n, dtype=torch.int64, device=device)
        self.size = 0
        """N: rows in use."""

    def distances(self, query: Tensor) -> Tensor:
        """Distance of ``query [T, D]`` to each row, ``[T, N]``."""
        return torch.cdist(query.double(), self.keys[: self.size])

    def read(self, query: Tensor) -> Recall:
        """The nearest rows within the gate, for each query ``[T, D]``.

        An empty memory, rows beyond the gate and a query that is not finite all answer the same:
        nothing recalled, all weights 0.
        """
        k = self.config.topk
        distance = torch.full(
            (len(query), k), torch.inf, dtype=torch.float64, device=self.keys.device
        )
        index = torch.zeros(len(query), k, dtype=torch.int64, device=self.keys.device)
        if self.size > 0:
            # Whatever topk makes of NaN, infinitely far is what it means here.
            found = self.distances(query).nan_to_num(nan=torch.inf, posinf=torch.inf)
            nearest = found.topk(min(k, self.size), dim=-1, largest=False)
            distance[:, : nearest.values.shape[1]] = nearest.values
            index[:, : nearest.indices.shape[1]] = nearest.indices
        inside = (distance <= self.config.gate) & distance.isfinite()
        logits = (-0.5 * distance.square()).masked_fill(~inside, -torch.inf)
        best = logits.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        unnormalised = torch.exp(logits - best)
        weights = unnormalised / unnormalised.sum(-1, keepdim=True).clamp(min=1e-30)
        params = self.anchor + self.deltas[index]
        return Recall(index, distance, weights.to(params.dtype), params)

    def write(self, key: Tensor, params: Tensor, score: float, baseline: float) -> int | None:
        """Keep a policy ``params [P]`` that scored ``score``, the meta-initialisation ``baseline``.

        Returns the row written, or None where it was not worth it: it must beat the
        meta-initialisation, and a row of the same task (within ``config.same_task``) is only
        replaced by something better.
        """
        if not (torch.isfinite(key).all() and torch.isfinite(params).all()):
            return None
        row = self._row_of(key)
        if row is not None:
            self.visits[row] += 1
        if not score > (baseline if row is None else max(baseline, float(self.scores[row]))):
            return None
        if row is None:
            row = self._free_row(score - baseline)
            if row is None:
                return None
            self.visits[row] = 1
            self.size = max(self.size, row + 1)
        self.keys[row], self.deltas[row] = key.double(), params - self.anchor
        self.scores[row], self.gains[row] = score, score - baseline
        return row

    def _row_of(self, key: Tensor) -> int | None:
        """The row of the same task, if there is one."""
        if self.size == 0:
            return None
        distance, row = self.distances(key[None])[0].min(0)
        return int(row) if float(distance) <= self.config.same_task else None

    def _free_row(self, gain: float) -> int | None:
        """A row for something new: the next unused one, or that of the policy that gained least."""
        if self.size < self.config.capacity:
            return self.size
        worst_gain, worst = self.gains.min(0)
        return int(worst) if gain > float(worst_gain) else None

    def state_dict(self) -> dict[str, Tensor]:
        """The rows in use and what they are relative to."""
        rows = slice(0, self.size)
        return {
            "anchor": self.anchor,
            "keys": self.keys[rows],
            "deltas": self.deltas[rows],
            "scores": self.scores[rows],
            "gains": self.gains[rows],
            "visits": self.visits[rows],
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved rows; they must be relative to the same meta-initialisation."""
        if not torch.equal(state["anchor"].to(self.anchor.device), self.anchor):
            raise ValueError(
                "this memory belongs to another meta-initialisation: "
                "its deltas would be added to the wrong policy"
            )
        n = len(state["keys"])
        if n > self.config.capacity:
            raise ValueError(
                f"the saved memory has {n} rows but memory.capacity={self.config.capacity}"
            )
        self.size = n
        for name in ("keys", "deltas", "scores", "gains", "visits"):
            getattr(self, name)[:n] = state[name]
