"""A visit: a task as an agent meets it, which can act until its budget is spent, and no more."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from agent.continual.life import Episode, Purpose
from agent.continual.loan import Loan
from agent.memory.guard import Guard
from agent.policy import GaussianMlp, Policy
from agent.rollout import TaskBatch
from agent.types import Trajectories
from envs.task import Task, TaskDistribution


@dataclasses.dataclass(frozen=True)
class Hint:
    """What an agent is told of the task, if it is told it."""

    task: str
    """Its name: the same at every visit."""


@dataclasses.dataclass
class Segment:
    """One planned visit and what is left of it."""

    number: int
    """Of the visit."""
    name: str
    task: Task
    episodes: int
    """Left."""
    used: int = 0
    """Acted in."""

    def spend(self, episodes: int) -> None:
        """Take off what was acted in."""
        self.episodes -= episodes
        self.used += episodes


class Visit:
    """Budgeted access to a task, or, where boundaries are hidden, to one task after another.

    The harness owns the counter: probes, trials and training are charged alike.
    """

    def __init__(
        self,
        family: TaskDistribution,
        segments: Sequence[Segment],
        policy: GaussianMlp,
        rng: np.random.Generator,
        hint: Hint | None = None,
    ) -> None:
        self._family, self._policy, self._rng = family, policy, rng
        self._segments, self._at = list(segments), 0
        self._batches: dict[int, TaskBatch] = {}
        self.hint = hint
        """Who the task is, if the agent may know it."""
        self.episodes: list[Episode] = []
        """All that were acted in, in order."""
        self._steps: dict[int, dict[Purpose, int]] = {}
        self.physics_s = 0.0
        """Wall seconds spent inside the simulator."""
        self.act_s: list[float] = []
        """Wall seconds of each decision."""

    def __enter__(self) -> Self:
        """Use the visit in a ``with`` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the simulators."""
        self._close()

    @property
    def remaining(self) -> int:
        """Episodes left to act in."""
        return sum(segment.episodes for segment in self._segments[self._at :])

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return self._family.horizon

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action ``[A]`` in the simulator's units."""
        return self._family.action_range

    @property
    def told(self) -> Tensor:
        """Descriptor ``[1, d]`` of the task: for oracles alone."""
        described = self._family.describe([self._now.task])
        return torch.as_tensor(described, dtype=torch.float32, device=self._policy.device)

    @property
    def used(self) -> int:
        """Episodes acted in."""
        return sum(segment.used for segment in self._segments)

    @property
    def steps_used(self) -> int:
        """Env steps taken in this visit."""
        return sum(self.env_steps.values())

    @property
    def env_steps(self) -> dict[Purpose, int]:
        """Taken and not yet settled, by purpose."""
        total: Counter[Purpose] = Counter()
        for steps in self._steps.values():
            total.update(steps)
        return dict(total)

    def settle(self, number: int) -> dict[Purpose, int]:
        """Env steps of a planned visit that is over, by purpose; they are counted no more."""
        return self._steps.pop(number, {})

    @property
    def segment(self) -> int:
        """Planned visit that the next episode belongs to; their number if all are over."""
        return self._now.number if self.remaining else self._segments[-1].number + 1

    def collect(
        self,
        params: Tensor,
        episodes: int,
        guard: Guard | None = None,
        purpose: Purpose = "learn",
        policy: Policy | None = None,
    ) -> Trajectories:
        """Act in ``episodes`` episodes with ``params [1, P]`` (T = 1), taken off the budget.

        ``policy`` turns the parameters into actions; without one, the learner's network does.
        """
        self._check(episodes)
        parts: list[Trajectories] = []
        while episodes > 0:
            now = self._now
            n = min(episodes, now.episodes)
            acted = self._act(now, params, n, guard, purpose, policy)
            parts.append(acted)
            episodes -= n
        first, *more = parts
        for part in more:  # only where a hidden boundary was crossed
            first = first.joined(part)
        return first

    def state_dict(self) -> dict[str, Any]:
        """Where the visit is, as JSON's own types: the same visit goes on from it exactly."""
        return {
            "used": [segment.used for segment in self._segments],
            "rng": self._rng.bit_generator.state,
            "env_steps": [[number, dict(steps)] for number, steps in self._steps.items()],
            "physics_s": self.physics_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for segment, used in zip(self._segments, state["used"], strict=True):
            segment.spend(used)
        self._rng.bit_generator.state = state["rng"]
        self._steps = {number: dict(steps) for number, steps in state["env_steps"]}
        self.physics_s = state["physics_s"]
        self._advance()

    @contextmanager
    def lend(self, episodes: int, purpose: Purpose = "learn") -> Iterator[Loan]:
        """Simulators for agents that step for themselves, taken off the budget when all is over.

        They run ``episodes`` side by side; each that is begun must be acted to its end.
        """
        self._check(episodes)
        batch = functools.partial(
            TaskBatch, self._family, episodes=1, policy=self._policy, rng=self._rng
        )
        with Loan(batch, self._upcoming(), episodes, self._rng, purpose) as loan:
            yield loan
        segments = {segment.number: segment for segment in self._segments}
        for episode in loan.finished:
            segments[episode.visit].spend(1)
        self.episodes += sorted(loan.finished, key=lambda episode: (episode.visit, episode.episode))
        for number, steps in loan.steps_of.items():
            self._charge(number, purpose, steps)
        self.physics_s += loan.physics_s
        self._advance()

    def _charge(self, number: int, purpose: Purpose, env_steps: int) -> None:
        spent = self._steps.setdefault(number, {})
        spent[purpose] = spent.get(purpose, 0) + env_steps

    def _upcoming(self) -> Iterator[tuple[Segment, int]]:
        """The episodes that are left: the planned visit of each, and its number within it."""
        for segment in self._segments[self._at :]:
            for number in range(segment.used, segment.used + segment.episodes):
                yield segment, number

    def _check(self, episodes: int) -> None:
        if not 0 < episodes <= self.remaining:
            raise ValueError(
                f"asked for {episodes} episodes, but the visit has {self.remaining} left"
            )

    @property
    def _now(self) -> Segment:
        return self._segments[min(self._at, len(self._segments) - 1)]

    def _act(
        self,
        now: Segment,
        params: Tensor,
        episodes: int,
        guard: Guard | None,
        purpose: Purpose,
        policy: Policy | None,
    ) -> Trajectories:
        if episodes not in self._batches:
            self._batches[episodes] = TaskBatch(
                self._family, [now.task], episodes, self._policy, self._rng
            )
        batch = self._batches[episodes]
        steps, physics, decisions = batch.steps_used, batch.physics_s, len(batch.act_s)
        acted = batch.collect(params, guard=guard, policy=policy)
        self.physics_s += batch.physics_s - physics
        self.act_s += batch.act_s[decisions:]
        self._charge(now.number, purpose, batch.steps_used - steps)
        self.episodes += told(acted, now.number, now.name, purpose, now.used)
        now.spend(episodes)
        self._advance()
        return acted

    def _advance(self) -> None:
        """Go on to the next segment with something left."""
        before = self._at
        while self._at < len(self._segments) and self._segments[self._at].episodes == 0:
            self._at += 1
        if self._at != before:
            self._close()

    def _close(self) -> None:
        for batch in self._batches.values():
            batch.simulators.close()
        self._batches = {}


def told(acted: Trajectories, visit: int, task: str, purpose: Purpose, first: int) -> list[Episode]:
    """The episodes ``[1, E]`` as they are written down."""
    success = [None] * acted.reward.shape[1] if acted.success is None else acted.success[0].tolist()
    # The reward of a diverged episode is void, its length is not known any more.
    facts = zip(
        acted.returns()[0].tolist(),
        acted.mask[0].sum(-1).int().tolist(),
        success,
        acted.diverged[0].tolist(),
        acted.terminated[0].tolist(),
        strict=True,
    )
    return [
        Episode.model_validate(
            {
                "visit": visit,
                "task": task,
                "purpose": purpose,
                "episode": first + i,
                "return": value,
                "length": length,
                "success": reached,
                "diverged": diverged,
                "terminated": terminated,
            }
        )
        for i, (value, length, reached, diverged, terminated) in enumerate(facts)
    ]
