"""What several methods are made of: policies in other parameters, steps on them, distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.policy import DiagonalGaussian, Policy
from agent.types import Trajectories


class Reparametrised(Policy):
    """A network whose parameters are a function of those that are learned."""

    def __init__(self, network: Policy, parameters: Callable[[Tensor], Tensor]) -> None:
        self._network, self._parameters = network, parameters

    def __call__(self, params: Tensor, obs: Tensor) -> Any:
        """Each task's action distribution: learned ``params [T, Q]``, raw ``obs [T, ..., O]``."""
        return self._network(self._parameters(params), obs)


def ppo_step(
    learner: MetaLearner,
    policy: Policy,
    params: Tensor,
    episodes: Trajectories,
    constraint: Constraint | None = None,
) -> Tensor:
    """A step of the learner's task adapter in the parameters ``[1, Q]`` of any policy."""
    adapter: Any = learner.task_adapter  # which only calls the policy, whatever its make
    return adapter.step(policy, params, learner.advantages(episodes), None, 0.0, constraint)


def told_task(visit: Visit) -> str:
    """The name of the task.

    Raises:
        ValueError: It was not told.
    """
    if visit.hint is None:
        raise ValueError(
            "this agent must be told which task it is in, and was not: its `needs` say so, "
            "have they been overridden?"
        )
    return visit.hint.task


def visited(episodes: Trajectories) -> Tensor:
    """The raw observations ``[N, O]`` of all valid steps, in order."""
    return episodes.obs[0][episodes.mask[0] > 0]


@dataclass(kw_only=True, config={"extra": "forbid"})
class Distilling:
    """How one policy is taught what another one does: KL(teacher || student), with Adam."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Gradient steps."""
    batch: Annotated[int, Field(ge=1)] = 512
    """Observations per step."""
    rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's step size."""

    def distilled(
        self,
        policy: Policy,
        params: Tensor,
        obs: Tensor,
        teacher: DiagonalGaussian,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The student ``params [1, P]`` after learning from ``teacher`` at ``obs [N, O]``.

        ``teacher`` has mean and log-std ``[N, A]``; ``penalty [1, P] -> [1]`` is added to the loss.
        Batches are interleaved parts of the observations, taken in turn.
        """
        leaf = params.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([leaf], lr=self.rate)
        parts = -(-len(obs) // self.batch)
        for step in range(self.steps):
            part = slice(step % parts, None, parts)
            wanted = DiagonalGaussian(teacher.mean[None, part], teacher.log_std[None, part])
            with torch.enable_grad():
                loss = wanted.kl(policy(leaf, obs[None, part])).mean()
                loss = loss if penalty is None else loss + penalty(leaf).sum()
                (leaf.grad,) = torch.autograd.grad(loss, leaf)
            adam.step()
        return leaf.detach()
