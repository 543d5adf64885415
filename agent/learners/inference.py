"""What learners share that adapt by inference: a belief is read off episodes, by what was trained.

Of the parts of a step only the memory's pull applies to a belief; there is no gradient that a
penalty could be added to.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.adapter import Constraint, pulled
from agent.belief import BeliefPolicy
from agent.distributed import mean_gradients
from agent.learners.base import Learner, adam_state, load_adam, refuse_unless_finite, under
from agent.policy import GaussianMlp
from agent.types import Recall, Trajectories

_Make = TypeVar("_Make", bound=GaussianMlp)


def own_make(learner: Learner, policy: GaussianMlp, make: type[_Make]) -> _Make:
    """The policy, which must be of the make that the learner trains.

    Raises:
        TypeError: It is of another one.
    """
    if not isinstance(policy, make):
        raise TypeError(
            f"{type(learner).__name__} trains a {make.__name__}, got a {type(policy).__name__}: "
            "make the policy with learner.make_policy"
        )
    return policy


@dataclass(kw_only=True, config={"extra": "forbid"})
class BeliefLearner(Learner):
    """The prior belief is where every task starts; the shared weights are what is trained."""

    deltas: bool = False
    """After the inference, task adaptation may also change the weights (and memory keeps that)."""
    inference_steps: Annotated[int, Field(ge=1)] = 1
    """Adaptation steps that read their episodes, before PPO moves the belief instead. What is read
    should be acted as in training: later episodes are another policy's."""
    outer_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's step size for the shared weights."""
    outer_epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the episodes of an iteration."""
    minibatches: Annotated[int, Field(ge=1)] = 3
    """Parts that the episodes are divided into, each one outer step."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's clip range."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Largest norm of the outer gradient."""

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the shared weights."""
        super().setup(policy, generator)
        self.policy = policy = own_make(self, policy, BeliefPolicy)
        policy.draw(generator)
        self.theta = policy.init(generator)
        self.heads = self.make_heads(generator).to(policy.device)
        """What is needed in training only: predictors, decoders."""
        self._optimizer = self._new_optimizer()

    def make_heads(self, generator: torch.Generator) -> nn.Module:
        """Fresh networks that only training needs."""
        return nn.Module()

    @property
    def leaves(self) -> list[Tensor]:
        """What the outer step moves."""
        return [self.policy.weights, *self.policy.encoder.parameters(), *self.heads.parameters()]

    @property
    def meta_steps(self) -> int:
        """Steps that are inference."""
        return self.inference_steps

    def prior(self, tasks: int) -> Tensor:
        """The belief about T tasks of which nothing has been seen, ``[T, P]``."""
        return self.theta.expand(tasks, -1)

    def meta_step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None,
        beta: float,
        constraint: Constraint | None,
    ) -> Tensor:
        """Read the episodes; a penalty has no gradient here to be added to.

        A constraint's ``free`` does not apply either: a belief is read as a whole.
        """
        return pulled(params, self.infer(params, episodes), recall, beta)

    def infer(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """The beliefs ``[T, P]`` after these episodes; extensions may read less than all."""
        return self.policy.read(params, episodes)

    def descend(self, loss: Tensor) -> None:
        """One outer step.

        Raises:
            FloatingPointError: The gradient is not finite.
        """
        self._optimizer.zero_grad()
        loss.backward()
        mean_gradients(self.leaves)
        norm = nn.utils.clip_grad_norm_(self.leaves, self.max_grad_norm)
        refuse_unless_finite(norm, "a smaller learner.outer_rate may help")
        self._optimizer.step()

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.leaves, lr=self.outer_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """The prior, what the policy shares, the heads and Adam's moments."""
        state = {"theta": self.theta} | adam_state(self._optimizer)
        state |= {f"heads.{name}": value for name, value in self.heads.state_dict().items()}
        return state | {f"shared.{name}": value for name, value in self.policy.shared().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        self.theta = state["theta"].to(self.policy.device, copy=True)
        self.policy.load_shared(under(state, "shared."))
        self.heads.load_state_dict(under(state, "heads."))
        self._optimizer = self._new_optimizer()
        load_adam(self._optimizer, state)
