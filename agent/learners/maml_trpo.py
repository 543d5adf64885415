"""MAML as it was published: a policy-gradient inner step, a trust-region outer step (Finn 2017).

The reference implementation, since there are published numbers for it. Two departures: the inner
gradient is that of the likelihood ratio, whose second derivative has less variance (Rothfuss 2019),
and advantages come from GAE with the settings of the other learners.
"""

from __future__ import annotations

from dataclasses import field

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.distributed import mean_over_processes
from agent.learners.base import Metrics
from agent.learners.maml import Maml
from agent.losses import mean_over_steps, surrogate
from agent.trust_region import TrustRegion, trust_region_step
from agent.types import Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class MamlTrpo(Maml):
    """MAML-TRPO. Of the fields of ``Maml``, those of its outer step are not used."""

    learn_rates: bool = False
    """The published inner step size is fixed."""
    region: TrustRegion = field(default_factory=TrustRegion)
    """The outer step."""

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
