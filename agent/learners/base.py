"""What a meta-learner is: ``adapt``, ``update``, ``consolidate``, and a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint, PpoAdapter
from agent.advantage import estimate
from agent.memory.bank import Bank
from agent.memory.consolidate import ConsolidateConfig
from agent.memory.consolidate import consolidate as consolidated
from agent.policy import GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories

Metrics = dict[str, float]


class MetaLearner(Protocol):
    """Learns, across tasks, how to start and how to adapt.

    Hyper-parameters are fields; state is in ``state_dict``. What adapts to a task is a row of
    parameters ``[P]``: weights for those that adapt by gradients, a belief about the task for those
    that adapt by inference. Memory, evaluation and stream only ever see rows.
    """

    theta: Tensor
    """Where every task starts, ``[P]``: the meta-initialisation, or the prior belief."""
    task_adapter: PpoAdapter
    """Adaptation after the meta-learned steps."""
    gamma: float
    gae_lambda: float
    sees_task: bool
    """Whether the task's parameters are among its inputs (an oracle)."""
    one_at_a_time: ClassVar[bool]
    """Whether it learns from trials of one episode after the other: training then opens a
    simulator with one episode for each of T * E trials."""

    @property
    def policy(self) -> GaussianMlp:
        """Turns parameters into actions; carries the normalisers."""
        ...

    @property
    def meta_steps(self) -> int:
        """How many steps the meta-learned rule makes before plain task adaptation takes over."""
        ...

    @property
    def free(self) -> Tensor | None:
        """``[P]`` bool, the parameters that adaptation moves, and memory has to keep; None: all."""
        ...

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> GaussianMlp:
        """A policy of the make that this learner trains."""
        ...

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Make the initial state."""
        ...

    def step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Adaptation step ``n`` (from 0), ``params [T, P] -> [T, P]``, with any pull of memory."""
        ...

    def advantages(self, episodes: Trajectories) -> Trajectories:
        """The episodes with advantages under this learner's discount."""
        ...

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """Adapt to the tasks of the batch as in training."""
        ...

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """One outer step from the episodes ``query`` of the adapted policies."""
        ...

    def consolidate(
        self,
        bank: Bank,
        config: ConsolidateConfig | None = None,
        measure: Callable[[Tensor], float] | None = None,
    ) -> Metrics:
        """Move the start towards what a memory's frequent rows hold; they stay what they are."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that learning goes on from."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class Learner:
    """What all learners share: the discount, the task adapter, a plain policy, consolidation."""

    one_at_a_time: ClassVar[bool] = False

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda."""
    task_adapter: PpoAdapter = field(default_factory=PpoAdapter)
    """Adaptation after the meta-learned steps."""
    sees_task: bool = False
    """Append the task's parameters to the observation: an oracle, not an agent."""

    def make_policy(
        self, obs_size: int, action_size: int, config: PolicyConfig, device: torch.device | str
    ) -> GaussianMlp:
        """A network whose weights are the parameters that adapt."""
        return GaussianMlp(obs_size, action_size, config, device)

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Learn for this policy from now on; extensions draw their initial state."""
        self.policy = policy
        self.theta = torch.zeros(policy.num_params, device=policy.device)
        """Where every task starts; extensions draw it."""

    @property
    def free(self) -> Tensor | None:
        """Adaptation may move everything."""
        return None

    def advantages(self, episodes: Trajectories) -> Trajectories:
        """The episodes with advantages under this learner's discount."""
        return estimate(episodes, self.policy.normalizer, self.gamma, self.gae_lambda)

    def consolidate(
        self,
        bank: Bank,
        config: ConsolidateConfig | None = None,
        measure: Callable[[Tensor], float] | None = None,
    ) -> Metrics:
        """Move the start ``theta`` towards what the bank's frequent rows hold (``consolidate``).

        The rows are re-based on it and do what they did. ``measure`` says how good a start
        ``[P]`` is, for instance its return after adaptation; a move that makes it worse is not
        made.

        Raises:
            ValueError: The rows are around another start than this learner's.
        """
        if not torch.equal(bank.anchor.to(self.theta), self.theta.detach()):
            raise ValueError(
                "the memory's rows are around another start than this learner's: consolidate the "
                "learner that the agent was born from, or one whose theta is set to bank.anchor"
            )
        done = consolidated(config or ConsolidateConfig(), bank, self.policy, measure)
        before = self.theta.detach().clone()
        with torch.no_grad():
            self.theta.copy_(done.anchor)  # in place: the optimiser knows it by identity
        return {
            "consolidate/share": done.share,
            "consolidate/teachers": float(len(done.teachers)),
            "consolidate/moved": float((self.theta.detach() - before).norm()),
        }

    @property
    def meta_steps(self) -> int:
        """None, unless a learner has a rule of its own."""
        return 0

    def step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None = None,
        beta: float = 0.0,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Step ``n`` at deployment: the meta-learned rule first, then PPO on what is ``free``."""
        if self.by_rule(n):
            with torch.no_grad():
                return self.meta_step(params, episodes, n, recall, beta, constraint)
        if self.free is not None:
            constraint = (constraint or Constraint()).within(self.free)
        ready = self.advantages(episodes)
        return self.task_adapter.step(self.policy, params, ready, recall, beta, constraint)

    def by_rule(self, n: int) -> bool:
        """Whether step ``n`` is made by the meta-learned rule."""
        return n < self.meta_steps

    def meta_step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None,
        beta: float,
        constraint: Constraint | None,
    ) -> Tensor:
        """Step ``n`` by the meta-learned rule, outside of any graph."""
        raise NotImplementedError


def adam_state(optimizer: torch.optim.Optimizer, name: str = "adam") -> dict[str, Tensor]:
    """Adam's moments as tensors ``NAME.INDEX.MOMENT``."""
    return {
        f"{name}.{i}.{moment}": value
        for i, slot in optimizer.state_dict()["state"].items()
        for moment, value in slot.items()
    }


def load_adam(
    optimizer: torch.optim.Optimizer, state: dict[str, Tensor], name: str = "adam"
) -> None:
    """Put back what ``adam_state`` gave; the optimizer's parameters must be the same."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in under(state, f"{name}.").items():
        index, _, moment = key.partition(".")
        slots.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose name starts with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def refuse_unless_finite(norm: Tensor, hint: str) -> None:
    """An outer gradient that is not finite stops training before it spoils the learner.

    Raises:
        FloatingPointError: It is not finite.
    """
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"the meta-gradient is not finite; {hint}")
