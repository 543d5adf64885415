"""Measuring an agent without teaching it: the matrix R, on simulators of the harness's own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from agent.continual.life import Evaluation, Purpose
from agent.continual.visit import Hint, Segment, Visit
from agent.memory.guard import Guard
from agent.policy import GaussianMlp, Policy
from agent.rollout import TaskBatch
from agent.seeding import generator
from agent.types import Trajectories
from envs.task import Task, TaskDistribution

_MANY = 10_000
_KEPT = 4
"""Policies whose episodes are kept, for each task."""


@dataclasses.dataclass(frozen=True)
class Actor:
    """Somebody who acts and does not learn."""

    policy: Policy
    params: Tensor
    """``[1, P]``."""
    deterministic: bool = True


class Evaluated(Protocol):
    """What is needed of an agent to be evaluated."""

    def actor(self, visit: Visit) -> Actor:
        """How it would act if it met this task now; it may look at the task, and must forget it."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that outlives a visit."""
        ...


class ImpureEvaluationError(RuntimeError):
    """An agent was changed by being evaluated."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Content hash of tensors by name."""
    out = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        out.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        out.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


class Evaluator:
    """Entries of R for one lifetime.

    Starts and noise depend on the lifetime and the task alone, so all agents and checkpoints are
    compared on the same episodes; and so what has been measured once, or a probe that has been
    made once by the same policy, need not be simulated again.
    """

    def __init__(
        self, family: TaskDistribution, policy: GaussianMlp, episodes: int, seed: int
    ) -> None:
        self.family, self.policy = family, policy
        self._episodes, self._seed = episodes, seed
        self._batches: dict[tuple[str, int], TaskBatch] = {}
        self._known: dict[tuple[str, int, int], dict[object, tuple[Policy, Trajectories]]] = {}

    def __enter__(self) -> Self:
        """Use the evaluator in a ``with`` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the simulators."""
        for batch in self._batches.values():
            batch.simulators.close()

    def evaluate(
        self, agent: Evaluated, name: str, task: Task, checkpoint: int, hint: Hint | None
    ) -> Evaluation:
        """The agent as it is, on one task.

        Raises:
            ImpureEvaluationError: It was not the same afterwards.
        """
        before, steps = digest(agent.state_dict()), self.env_steps
        preview = _Preview(self, name, task, hint)
        actor = agent.actor(preview)
        acted = self.measure(task, actor)
        if digest(agent.state_dict()) != before:
            raise ImpureEvaluationError(
                f"being evaluated on {name!r} changed the agent: its actor() must work on a copy"
            )
        return Evaluation(
            checkpoint=checkpoint,
            task=name,
            returns=acted.returns()[0].tolist(),
            success=None if acted.success is None else acted.success[0].tolist(),
            env_steps=self.env_steps - steps,
        )

    def measure(self, task: Task, actor: Actor) -> Trajectories:
        """The episodes by which policies are compared on a task, ``[1, E]``."""
        return self.act(task, self._episodes, 0, actor)

    def act(
        self, task: Task, episodes: int, number: int, actor: Actor, guard: Guard | None = None
    ) -> Trajectories:
        """The ``number``-th episodes of a task: the same for the same actor, whenever asked."""
        known = self._known.setdefault((task.id, episodes, number), {})
        bounds = {} if guard is None else {"lowest": guard.lowest, "fallback": guard.fallback}
        what = digest({"params": actor.params} | bounds)
        key = what, id(actor.policy), actor.deterministic
        if key not in known or (guard is not None and guard.evidence is not None):
            rng = generator(self._seed, "evaluation", int(task.id, 16), number)
            batch = self._batch(task, episodes)
            acted = batch.collect(actor.params, actor.deterministic, guard, actor.policy, rng)
            # Holding the policy keeps its id from being given to another one.
            known[key] = actor.policy, acted
            for oldest in list(known)[:-_KEPT]:
                del known[oldest]
        return known[key][1]

    def _batch(self, task: Task, episodes: int) -> TaskBatch:
        key = task.id, episodes
        if key not in self._batches:
            rng = generator(self._seed, "evaluation", int(task.id, 16))
            self._batches[key] = TaskBatch(self.family, [task], episodes, self.policy, rng)
        return self._batches[key]

    @property
    def env_steps(self) -> int:
        """Taken so far; what was known already costs nothing."""
        return sum(batch.steps_used for batch in self._batches.values())


class _Preview(Visit):
    """A visit that is charged to nobody and that nobody may learn from."""

    def __init__(self, evaluator: Evaluator, name: str, task: Task, hint: Hint | None) -> None:
        segment = Segment(0, name, task, _MANY)
        own = evaluator.family, [segment], evaluator.policy
        super().__init__(*own, np.random.default_rng(0), hint)
        self._evaluator, self._calls = evaluator, 0

    def _act(
        self,
        now: Segment,
        params: Tensor,
        episodes: int,
        guard: Guard | None,
        purpose: Purpose,
        policy: Policy | None,
    ) -> Trajectories:
        self._calls += 1
        now.spend(episodes)
        actor = Actor(policy or self._policy, params, deterministic=False)
        return self._evaluator.act(now.task, episodes, self._calls, actor, guard)

    def lend(self, episodes: int, purpose: Purpose = "learn") -> NoReturn:
        """Refused: what nobody counts, nobody may act in.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("an evaluation lends no simulators; use visit.collect, or nothing")
