"""MAML with ProMP's outer objective, and with learned step sizes if wanted.

Finn 2017 (the initialisation), Rothfuss 2019 (ProMP: the clipped outer objective, the low-variance
curvature, the adaptive inner KL), Li 2017 (Meta-SGD: a step size for every parameter).
``inner_steps=0`` is multi-task PPO, the control that shows what meta-learning adds; with revealed
task parameters it is the oracle.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Adapter, Constraint, GradientAdapter
from agent.distributed import mean_gradients, mean_over_processes
from agent.learners.base import (
    Learner,
    Metrics,
    adam_state,
    load_adam,
    refuse_unless_finite,
    under,
)
from agent.losses import clipped_surrogate, mean_over_steps
from agent.policy import DiagonalGaussian, GaussianMlp
from agent.rollout import TaskBatch
from agent.types import Adaptation, Recall, Trajectories

_RATE_RANGE = (0.0, 2.0)
_KL_WEIGHT = 5e-4  # of the inner KL at first, as in ProMP's code; then adapted


@dataclass(kw_only=True, config={"extra": "forbid"})
class Maml(Learner):
    """Second-order MAML on stacked flat parameters."""

    inner_steps: Annotated[int, Field(ge=0, le=10)] = 1
    """Gradient steps that the initialisation is trained for."""
    inner_rate: Annotated[float, Field(ge=0, le=2)] = 0.1
    """alpha, the inner step size; the start of the learned ones."""
    learn_rates: bool = True
    """Learn alpha for each parameter (Meta-SGD)."""
    first_order: bool = False
    """Leave the second derivatives out (FOMAML)."""
    inner_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Nats per step by which an update may change the policies that collected for the inner steps;
    the weight of that KL is adapted to it (ProMP). None: no such term."""
    later_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Steps after the meta-learned ones follow the same rule, its step sizes times this. None: they
    are the task adapter's (PPO)."""
    outer_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's step size for the initialisation and the rates."""
    outer_epochs: Annotated[int, Field(ge=1)] = 8
    """Outer steps per batch of episodes; the inner step is differentiated anew in each."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's clip range in the outer objective."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Largest norm of the initialisation's outer gradient; rates and rules are not clipped."""

    def __post_init__(self) -> None:
        """Refuse what cannot do what it says."""
        if self.inner_kl is not None and self.outer_epochs == 1:
            raise ValueError(
                "inner_kl with outer_epochs=1: before the only step nothing has changed, so there "
                "is no divergence to hold to; give outer_epochs >= 2 or inner_kl=null"
            )

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw the initial policy."""
        super().setup(policy, generator)
        self.theta = policy.init(generator).requires_grad_(True)
        self.rates = torch.full_like(self.theta, self.inner_rate, requires_grad=self.learn_rates)
        self.kl_weight = torch.tensor(_KL_WEIGHT, device=policy.device)
        self._optimizer = self._new_optimizer()

    @property
    def leaves(self) -> list[Tensor]:
        """What the outer step moves; the initialisation first."""
        rates = [self.rates] if self.learn_rates and self.inner_steps else []
        return [self.theta, *rates]

    @property
    def meta_steps(self) -> int:
        """Steps made by the meta-learned rule; the control, trained for none, still takes one."""
        return max(self.inner_steps, 1)

    def rule(self, n: int) -> Adapter:
        """The inner rule of step ``n`` in its present state; here, the same for all steps."""
        return GradientAdapter(self.rates_at(n), self.first_order, self.free)

    def rates_at(self, n: int) -> Tensor:
        """Alpha at step ``n``, ``[P]``."""
        if self.later_rate is None or n < self.meta_steps:
            return self.rates
        return self.rates * self.later_rate

    @property
    def adapter(self) -> Adapter:
        """The inner rule of the first step."""
        return self.rule(0)

    def initial(self, tasks: int) -> Tensor:
        """The meta-initialisation for each of T tasks, ``[T, P]``."""
        return self.theta.expand(tasks, -1)

    def by_rule(self, n: int) -> bool:
        """All steps, if the rule goes on."""
        return super().by_rule(n) or self.later_rate is not None

    def meta_step(
        self,
        params: Tensor,
        episodes: Trajectories,
        n: int,
        recall: Recall | None,
        beta: float,
        constraint: Constraint | None,
    ) -> Tensor:
        """The inner rule, on episodes with advantages."""
        ready = self.advantages(episodes)
        return self.rule(n).step(self.policy, params, ready, recall, beta, constraint)

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """Collect and step ``inner_steps`` times from the initialisation, on all tasks at once."""
        params, support = self.initial(len(batch.tasks)).detach(), []
        for n in range(self.inner_steps):
            episodes = self.advantages(batch.collect(params))
            with torch.no_grad():
                params = self.rule(n).step(self.policy, params, episodes)
            support.append(episodes)
        return Adaptation(params, support)

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """ProMP's outer step: clipped surrogate, differentiated through the adaptation."""
        query = self.advantages(query)
        metrics = self._improve(adaptation.support, query)
        for episodes in (*adaptation.support, query):
            self.policy.normalizer.update(episodes.obs, episodes.mask)
        return metrics | {"train/rate_mean": float(self.rates.detach().mean())}

    def _improve(self, support: list[Trajectories], query: Trajectories) -> Metrics:
        """Adam steps on the clipped objective; the normaliser stands still."""
        acted = self._inner_policies(support) if self.inner_kl is not None else []
        loss, moved = self.theta.new_zeros(()), self.theta.new_zeros(())
        for _ in range(self.outer_epochs):
            loss = self.meta_loss(support, query).mean()
            if acted:
                moved = self._inner_divergence(support, acted).mean()
            self._optimizer.zero_grad()
            (loss + self.kl_weight * moved).backward()
            mean_gradients(self.leaves)
            torch.nn.utils.clip_grad_norm_([self.theta], self.max_grad_norm)
            norm = torch.nn.utils.get_total_norm(
                [x.grad for x in self.leaves if x.grad is not None]
            )
            refuse_unless_finite(
                norm, "a smaller learner.inner_rate or learner.outer_rate may help"
            )
            self._optimizer.step()
            with torch.no_grad():
                self.rates.clamp_(*_RATE_RANGE)
        metrics = {"train/meta_loss": float(mean_over_processes(loss.detach()))}
        if acted:
            gone = float(mean_over_processes(moved.detach()))  # up to the last epoch's start
            self._adapt_kl_weight(gone)
            metrics |= {"train/inner_kl": gone, "train/kl_weight": float(self.kl_weight)}
        return metrics

    def meta_loss(self, support: list[Trajectories], query: Trajectories) -> Tensor:
        """Loss ``[T]`` of the policies that the inner rule makes of the present initialisation."""
        params = self.adapted(support, query.reward.shape[0])
        return clipped_surrogate(self.policy, params, query, self.clip)

    def adapted(
        self, support: list[Trajectories], tasks: int, theta: Tensor | None = None
    ) -> Tensor:
        """The policies ``[T, P]`` that the inner rule makes of ``theta [P]``; None: the present."""
        params = self.initial(tasks) if theta is None else theta.expand(tasks, -1)
        for n, episodes in enumerate(support):
            params = self.rule(n).step(self.policy, params, episodes)
        return params

    def _inner_policies(self, support: list[Trajectories]) -> list[DiagonalGaussian]:
        """What the policies that collected for each inner step did, outside of the graph."""
        out, params = [], self.theta.detach()[None]
        with torch.no_grad():
            for n, episodes in enumerate(support):
                params = params.expand(len(episodes.reward), -1)
                out.append(self.policy(params, episodes.obs))
                params = self.rule(n).step(self.policy, params, episodes)
        return out

    def _inner_divergence(
        self, support: list[Trajectories], acted: list[DiagonalGaussian]
    ) -> Tensor:
        """KL ``[T]`` in nats per step from those to what they would be now, mean over the steps."""
        params = self.initial(support[0].reward.shape[0])
        total = params.new_zeros(len(params))
        for n, (episodes, before) in enumerate(zip(support, acted, strict=True)):
            now = self.policy(params, episodes.obs)
            total = total + mean_over_steps(before.kl(now), episodes.mask) / len(support)
            params = self.rule(n).step(self.policy, params, episodes)
        return total

    def _adapt_kl_weight(self, moved: float) -> None:
        """Half or double the weight where an update moved much less or more than it may."""
        limit = self.inner_kl or 0.0
        if moved > 1.5 * limit:
            self.kl_weight = self.kl_weight * 2
        elif moved < limit / 1.5:
            self.kl_weight = self.kl_weight / 2

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.leaves, lr=self.outer_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Initialisation, step sizes, Adam's moments and the observation normaliser."""
        state = {"theta": self.theta.detach(), "rates": self.rates.detach()}
        if self.inner_kl is not None:
            state["kl_weight"] = self.kl_weight
        state |= adam_state(self._optimizer)
        return state | {f"obs.{k}": v for k, v in self.policy.normalizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        with torch.no_grad():
            self.theta.copy_(state["theta"])
            self.rates.copy_(state["rates"])
        if self.inner_kl is not None:
            self.kl_weight = state["kl_weight"].to(self.theta.device)
        self.policy.normalizer.load_state_dict(under(state, "obs."))
        self._optimizer = self._new_optimizer()
        load_adam(self._optimizer, state)
