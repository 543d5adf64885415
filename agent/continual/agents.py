"""Agents of the stream: what they start a visit from is all that tells the simplest apart.

A visit is ``begin`` (choose where to start), ``improve`` until the budget is spent, ``end``. An
agent is any class with these verbs, named by its import path; most extend ``PolicyAgent``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.continual.evaluation import Actor
from agent.continual.life import Hints
from agent.continual.packing import pack, unpack
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner, under
from agent.memory.probes import TrainingProbes
from agent.policy import Policy
from agent.protect import Course, Protection
from agent.run import RunError
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories


class StreamAgent(Protocol):
    """What the lifetime runner needs of an agent."""

    needs: ClassVar[Hints]
    """What it cannot do without being told; an agent that needs the task's id is an oracle where
    ids are hidden, and is marked as one."""

    @property
    def score(self) -> float:
        """Mean return of the episodes that it last acted in."""
        ...

    @property
    def pending(self) -> bool:
        """Whether it has episodes that it has not learned from yet."""
        ...

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Be born: with a meta-initialisation, and probes from which to learn to tell tasks."""
        ...

    def begin(self, visit: Visit) -> dict[str, Any]:
        """A visit begins; ``visit.hint`` says to which task, if that is told.

        Returns what was recalled, as ``life.Recalled``, rows by number.
        """
        ...

    def improve(self, visit: Visit) -> None:
        """Act for some episodes and learn from them."""
        ...

    def end(self) -> dict[str, Any]:
        """The visit is over. Returns what was written, for the record."""
        ...

    @property
    def acting(self) -> Actor:
        """How it acts now."""
        ...

    def actor(self, visit: Visit) -> Actor:
        """How it would act if it met this task now.

        Worked out on a copy, which may act in ``visit`` (nobody is charged): being evaluated
        teaches nothing.
        """
        ...

    def memory_facts(self) -> list[dict[str, float]]:
        """What there is to say of each row of its memory; nothing without one."""
        ...

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """Write the rows to a folder, for other runs, with names (by row) for readers."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that it goes on from, at any moment between two ``improve``."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class PolicyAgent:
    """One policy in flat parameters, adapted in each visit; here, always from ``theta_0``.

    Extensions override ``begin`` (where to start), ``end`` (what to keep), ``constraint`` (what a
    step must respect) and add what they keep to ``state_dict``.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=False)
    """Nothing: it can live in an endless visit too."""
    isolates: ClassVar[bool] = False
    """Whether it promises that what it would do in a task is never changed by other tasks."""
    needs_weights: ClassVar[bool] = False
    """Whether what it adapts must be all of a network's weights, and cannot be a belief."""

    episodes: Annotated[int, Field(ge=1)] = 6
    """Episodes per adaptation step."""
    protect: Protection | None = None
    """Takes steps back that do harm in their visit, without episodes of its own; null: all are
    made. (Its record is of one task: no use where boundaries are neither told nor detected.)"""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation.

        Raises:
            RunError: It needs weights to adapt, and the learner adapts a belief.
        """
        if self.needs_weights:
            refuse_beliefs(self, learner)
        self.learner, self.seed = learner, seed
        self._course: Course | None = None
        self._visit_used = 0
        self.params = self._meta_init()
        """The policy now, ``[1, P]``."""
        self.score = float("nan")
        self._step = 0

    @property
    def policy(self) -> Policy:
        """What turns ``params`` into actions."""
        return self.learner.policy

    @property
    def teacher(self) -> MetaLearner:
        """Whose steps it makes."""
        return self.learner

    @property
    def acting(self) -> Actor:
        """The policy now."""
        return Actor(self.policy, self.params)

    @property
    def pending(self) -> bool:
        """It learns from all episodes at once."""
        return False

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Back to the meta-initialisation."""
        self.params, self._step = self._meta_init(), 0
        return {}

    def improve(self, visit: Visit) -> None:
        """One adaptation step on fresh episodes."""
        if visit.used < self._visit_used:  # another visit: nothing is known of its task
            self._course = None
        self._learn(self._collect(visit), *self._memory_term())
        self._visit_used = visit.used

    def end(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def actor(self, visit: Visit) -> Actor:
        """The policy that a copy of it would begin this visit with."""
        twin = self.twin()
        twin.begin(visit)
        return twin.acting

    def twin(self) -> PolicyAgent:
        """A copy that can live on without this one noticing; what never changes is shared."""
        unchanging = [self.learner, self.teacher, getattr(self, "_fit", None)]
        return copy.deepcopy(self, {id(each): each for each in unchanging if each is not None})

    def constraint(self) -> Constraint | None:
        """What a step must respect besides the episodes."""
        return None

    def memory_facts(self) -> list[dict[str, float]]:
        """No memory, no rows."""
        return []

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """There is nothing to be written."""

    def state_dict(self) -> dict[str, Tensor]:
        """The policy, and the best of the visit if it is protected."""
        state = {
            "policy.params": self.params,
            "step": torch.tensor(self._step),
            "score": torch.tensor(self.score, dtype=torch.float64),
        }
        if self.protect is None:
            return state
        known = {} if self._course is None else vars(self._course)
        packed = pack({"used": self._visit_used, **known})
        return state | {f"protect.{name}": value for name, value in packed.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy, and the best of the visit if it is protected."""
        self.params = state["policy.params"].to(self.params.device)
        self._step = int(state["step"])
        self.score = float(state["score"])
        if self.protect is None:
            return
        known = unpack(under(state, "protect."), self.params.device)
        self._visit_used = known.pop("used")
        self._course = Course(**known) if known else None

    def _meta_init(self) -> Tensor:
        return self.learner.theta.detach()[None].clone()

    def _untrained(self, number: int = 0) -> Tensor:
        """Random weights ``[1, P]`` of its own, the same for the same number."""
        drawn = self.learner.policy.plain.init(torch_generator(self.seed, "init", number))
        return drawn.detach()[None]

    def _collect(self, visit: Visit) -> Trajectories:
        """The episodes of the next adaptation step."""
        own = None if self.policy is self.learner.policy else self.policy
        return visit.collect(self.params, self._batch(visit.remaining), policy=own)

    def _batch(self, left: int) -> int:
        """Episodes of the next step: as set, unless the visit would end with a few left over."""
        return left if left < 2 * self.episodes else self.episodes

    def _memory_term(self) -> tuple[Recall | None, float]:
        """What the rule's last term pulls towards, and how strongly; without memory, nothing."""
        return None, 0.0

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())

        def step(params: Tensor, seen: Trajectories, n: int) -> Tensor:
            return self.teacher.step(params, seen, n, recall, beta, self.constraint())

        if self.protect is None:
            self.params = step(self.params, episodes, self._step)
            self._step += 1
            return
        course = self._course
        if course is None or not torch.equal(course.params, self.params):
            course = Course.begin(self.params, self._step)
        self._course = course = self.protect.step(self.policy, course, episodes, step)
        self.params, self._step = course.params, int(course.number)


def refuse_beliefs(agent: object, learner: MetaLearner) -> None:
    """Raise a RunError unless what the learner adapts are a network's weights."""
    if learner.policy.plain is not learner.policy:
        raise RunError(
            f"the agent {type(agent).__name__} adapts a network's weights, but the run's learner, "
            f"{type(learner).__name__}, adapts a belief. Begin from a gradient learner's run "
            "(init=...), or take agents whom either suits, such as engram, matching, meta_init, "
            "finetune and scratch"
        )


@dataclass(kw_only=True, config={"extra": "forbid"})
class MetaInit(PolicyAgent):
    """The agent without memory: every visit starts from the meta-initialisation."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Finetune(PolicyAgent):
    """One policy, fine-tuned in sequence: every visit starts where the last one ended."""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Go on with the same policy."""
        return {}
