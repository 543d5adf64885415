"""Fine-tuning that is held back where it matters: EWC, L2 and MAS differ in what matters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.continual.agents import Finetune
from agent.continual.life import Hints
from agent.continual.methods.common import Recording
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import Policy

_AT_ONCE = 64
"""States whose gradients are held at a time."""


def fisher(policy: Policy, params: Tensor, obs: Tensor) -> Tensor:
    """Diagonal ``[P]`` of the Fisher information of log pi at ``params [P]``, mean over states.

    ``obs [n, O]``. The mean over the policy's own actions is taken in closed form, that of a
    diagonal Gaussian: ``sum_a (d mean_a / sd_a)^2 + 2 (d log sd_a)^2``.
    """

    def outputs(theta: Tensor, state: Tensor) -> Tensor:
        acts = policy(theta[None], state[None, None])
        log_std = acts.log_std.reshape(-1)
        return torch.cat([acts.mean.reshape(-1) / log_std.detach().exp(), 2**0.5 * log_std])

    slopes = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))
    parts = [slopes(params, part).detach().square().sum((0, 1)) for part in obs.split(_AT_ONCE)]
    return torch.stack(parts).sum(0) / len(obs)


def sensitivity(policy: Policy, params: Tensor, obs: Tensor) -> Tensor:
    """``[P]`` mean over states ``obs [n, O]`` of ``|d ||mean action||^2 / d theta|`` at ``[P]``."""

    def size(theta: Tensor, state: Tensor) -> Tensor:
        return policy(theta[None], state[None, None]).mean.square().sum()

    slopes = torch.func.vmap(torch.func.grad(size), in_dims=(None, 0))
    parts = [slopes(params, part).detach().abs().sum(0) for part in obs.split(_AT_ONCE)]
    return torch.stack(parts).sum(0) / len(obs)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Regularised(Recording, Finetune, ABC):
    """Fine-tuning with ``strength / 2 * sum_p w_p (theta_p - anchor_p)^2`` added to the loss.

    The anchor is where the last visit ended. Importances w are brought to a mean of 1 at each
    visit, so that a strength means the same on any robot, and are added up over visits.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """lambda. On training tasks of HalfCheetah's faults .1 did better than 1 and 10."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the importances of earlier visits that is left after one more."""
    states: Annotated[int, Field(ge=1)] = 500
    """States of the visit's last episodes, at most, from which importance is found."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation, free to move."""
        super().setup(learner, probes, seed)
        self._anchor, self._weight = self.params.clone(), torch.zeros_like(self.params[0])

    @abstractmethod
    def importance(self, obs: Tensor) -> Tensor:
        """How much each parameter ``[P]`` matters to the policy in the states ``obs [n, O]``."""

    def constraint(self) -> Constraint:
        """The penalty; zero in the first visit."""
        return Constraint(penalty=self.penalty)

    def penalty(self, point: Tensor) -> Tensor:
        """``[T, P] -> [T]``."""
        return self.strength / 2 * (self._weight * (point - self._anchor).square()).sum(-1)

    def end(self) -> dict[str, Any]:
        """From now on, stay near what was just learned."""
        obs = self._visited(self.states)
        if len(obs) > 0:  # else all of it diverged
            found = self.importance(obs)
            unit = found / found.mean().clamp(min=torch.finfo(found.dtype).tiny)
            self._weight = self.decay * self._weight + unit
            self._anchor = self.params.clone()
        return super().end()

    def state_dict(self) -> dict[str, Tensor]:
        """The policy, the anchor and the importances."""
        own = {"importance.anchor": self._anchor, "importance.weight": self._weight}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy, the anchor and the importances."""
        super().load_state_dict(state)
        self._anchor = state["importance.anchor"].to(self.params.device)
        self._weight = state["importance.weight"].to(self.params.device)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Ewc(Regularised):
    """Elastic weight consolidation (Kirkpatrick 2017, eq. 3): w is the Fisher information.

    Online: one anchor and one sum of Fisher diagonals (Schwarz 2018, section 3.2).
    """

    def importance(self, obs: Tensor) -> Tensor:
        """Fisher information of the policy."""
        return fisher(self.policy, self.params[0], obs)


@dataclass(kw_only=True, config={"extra": "forbid"})
class L2(Regularised):
    """All parameters matter alike (the L2 baseline of Kirkpatrick 2017): w is 1."""

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """lambda. On training tasks of HalfCheetah's faults 1 did better than .1 and 10."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the importances of earlier visits that is left after one more."""

    def importance(self, obs: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(self._weight)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Mas(Regularised):
    """Memory-aware synapses (Aljundi 2018, eq. 2 and 3): w is how far the mean action would move.

    The standard deviation of the actions, which the mean does not depend on, is left free.
    """

    def importance(self, obs: Tensor) -> Tensor:
        """Sensitivity of the squared norm of the mean action."""
        return sensitivity(self.policy, self.params[0], obs)
