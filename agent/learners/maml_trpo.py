"""MAML as it was published: a policy-gradient inner step, a trust-region outer step (Finn 2017).

The reference implementation, since there are published numbers for it. Departures in training: the
inner gradient is that of the likelihood ratio, whose second derivative has less variance (Rothfuss
2019); advantages come from GAE with the settings of the other learners; observations are
normalised. In evaluation, protection is on unless turned off, and actions are the means.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.distributed import mean_over_processes
from agent.learners.base import Metrics
from agent.learners.maml import Maml
from agent.losses import mean_over_steps, surrogate
from agent.trust_region import TrustRegion, trust_region_step
from agent.types import Trajectories

_REPLACED = ("inner_kl", "outer_rate", "outer_epochs", "clip", "max_grad_norm")


@dataclass(kw_only=True, config={"extra": "forbid"})
class MamlTrpo(Maml):
    """MAML-TRPO. The fields of Maml's outer step have no place in it."""

    learn_rates: bool = False
    """The published inner step size is fixed."""
    later_rate: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    """As published: later steps are the same rule's, at half its rate. None: PPO."""
    region: TrustRegion = field(default_factory=TrustRegion)
    """The outer step."""

    def __post_init__(self) -> None:
        """Refuse settings that would do nothing."""
        usual = {f.name: f.default for f in fields(Maml)}
        for name in _REPLACED:
            if getattr(self, name) != usual[name]:
                raise ValueError(
                    f"{name}: the trust region (region.*) takes its place here; learner=maml or "
                    "meta_sgd use it"
                )
        if self.learn_rates:
            raise ValueError(
                "learn_rates: the trust region moves the initialisation alone; take "
                "learner=meta_sgd"
            )

    def _improve(self, support: list[Trajectories], query: Trajectories) -> Metrics:
        tasks = query.reward.shape[0]
        with torch.no_grad():
            before = self.policy(self.adapted(support, tasks, self.theta.detach()), query.obs)

        def loss(theta: Tensor) -> Tensor:
            params = self.adapted(support, tasks, theta)
            return surrogate(self.policy, params, query).mean()

        def divergence(theta: Tensor) -> Tensor:
            now = self.policy(self.adapted(support, tasks, theta), query.obs)
            moved = before.kl(now)
            return mean_over_steps(moved, query.mask).mean()

        stepped = trust_region_step(self.theta, loss, divergence, self.region, mean_over_processes)
        with torch.no_grad():
            self.theta.copy_(stepped.point)
        return {
            "train/meta_loss": stepped.loss,
            "train/outer_kl": stepped.divergence,
            "train/line_search": float(stepped.tries),
        }
