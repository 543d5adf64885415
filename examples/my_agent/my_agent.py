"""An agent of one's own: it tries a random change of its controller, and keeps it if it was better.

Hill climbing on a linear controller. It knows nothing of Engram but the form in which it is asked:
``agent.continual.step_agent.StepAgent``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.continual.step_agent import Array, Body, Transition


@dataclass(kw_only=True, config={"extra": "forbid"})
class HillClimber:
    """Actions are linear in the observation; the best weights so far are changed at random."""

    spread: Annotated[float, Field(gt=0)] = 0.3
    """Standard deviation of a change, of each weight."""
    trust: Annotated[float, Field(ge=0, le=1)] = 0.9
    """What is left of the best return after each batch, so that a lucky one is forgotten."""

    def setup(self, body: Body) -> None:
        """Start with weights of zero."""
        self._middle = (body.action_high + body.action_low) / 2
        self._scale = (body.action_high - body.action_low) / 2
        self._seed, self._batches = body.seed, 0
        self._best = np.zeros((len(self._scale), body.obs_size + 1))
        self._best_return = -np.inf
        self._propose()

    def begin(self, hint: str | None) -> None:
        """What was best may not be so here."""
        self._best_return = -np.inf

    def act(self, obs: np.ndarray, deterministic: bool) -> np.ndarray:
        """With the best weights, or with those that are being tried."""
        weights = self._best if deterministic else self._tried
        seen = np.concatenate([obs, np.ones((len(obs), 1))], axis=1)
        return self._middle + self._scale * np.tanh(seen @ weights.T)

    def observe(self, transition: Transition) -> None:
        """Add up the rewards; when all episodes are over, keep the weights or not."""
        self._running |= set(transition.row.tolist())
        self._sum += float(transition.reward.sum())
        over = transition.terminated | transition.truncated
        self._episodes += int(over.sum())
        self._running -= set(transition.row[over].tolist())
        if not self._running:
            self._judge(self._sum / self._episodes)

    def end(self) -> None:
        """Nothing to be done."""

    def state_dict(self) -> Mapping[str, Array]:
        """The best weights; the change that comes next follows from the number of batches."""
        return {
            "policy.weights": self._best.copy(),
            "policy.return": np.array(self._best_return),
            "batches": np.array(self._batches),
        }

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on."""
        self._best = np.array(state["policy.weights"])
        self._best_return = float(state["policy.return"])
        self._batches = int(state["batches"])
        self._propose()

    def _judge(self, mean_return: float) -> None:
        self._best_return -= (1 - self.trust) * abs(self._best_return)
        if mean_return > self._best_return:
            self._best, self._best_return = self._tried, mean_return
        self._batches += 1
        self._propose()

    def _propose(self) -> None:
        rng = np.random.default_rng([self._seed, self._batches])
        self._tried = self._best + self.spread * rng.standard_normal(self._best.shape)
        self._running: set[int] = set()
        self._sum, self._episodes = 0.0, 0
