"""Progress & Compress: learn beside a knowledge base, then distil what was learned into it."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.evaluation import Actor
from agent.continual.life import Hints
from agent.continual.methods.column import Column
from agent.continual.methods.parts import Distilling, ppo_step, visited
from agent.continual.methods.regularised import fisher
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian, Policy
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories

_FISHER_OBSERVATIONS = 256


@dataclass(kw_only=True, config={"extra": "forbid"})
class ProgressCompress(PolicyAgent):
    """Progress & Compress (Schwarz et al., ICML 2018).

    Progress: an active column learns by reinforcement, reading the layers of a knowledge base that
    does not move. Compress, when the visit is over: the knowledge base is distilled from the column
    on what the visit saw, held by online EWC (eq. 2 there; Fisher normalised to mean 1 per visit).
    It is told boundaries, no ids, and does not grow. The knowledge base is what it is evaluated by.
    """

    needs_weights: ClassVar[bool] = True

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)
    """When to compress."""

    start: Literal["knowledge_base", "meta_init"] = "knowledge_base"
    """What the active column is set to at the start of a visit."""
    units: Annotated[int, Field(ge=1)] = 16
    """Width of the connections from the knowledge base."""
    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """Of the EWC penalty, ``strength / 2 * sum_p F_p (theta_p - theta*_p)^2``."""
    discount: Annotated[float, Field(ge=0, le=1)] = 0.95
    """By which the Fisher of the visits before fades at each visit (gamma there)."""
    kept_episodes: Annotated[int, Field(ge=1)] = 24
    """The visit's last episodes, on whose observations the knowledge base is distilled."""
    distilling: Distilling = field(default_factory=Distilling)
    """How it is distilled."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """The knowledge base is the meta-initialisation, and holds on to nothing."""
        super().setup(learner, probes, seed)
        self._knows(self._meta_init(), torch.zeros_like(self.params), 0)
        self._seen = self.params.new_zeros(0, learner.policy.obs_size)
        self._widen(self.params)

    @property
    def policy(self) -> Policy:
        """The active column."""
        return self._column

    def begin(self, visit: Visit) -> dict[str, Any]:
        """A new active column."""
        fresh = self._visits == 0 or self.start == "meta_init"
        self._widen(self._meta_init() if fresh else self.knowledge)
        self._step = 0 if fresh else self.learner.meta_steps
        self._seen = self._seen[:0]
        return {}

    def end(self) -> dict[str, Any]:
        """Compress."""
        if len(self._seen) == 0:
            return {"reason": "every episode diverged, there is nothing to distil"}
        with torch.no_grad():
            learned = self._column(self.params, self._seen[None])
        teacher = DiagonalGaussian(learned.mean[0], learned.log_std[0].expand_as(learned.mean[0]))
        network = self.learner.policy
        params = self.distilling.distilled(
            network, self.knowledge, self._seen, teacher, self.penalty
        )
        sparse = self._seen[:: -(-len(self._seen) // _FISHER_OBSERVATIONS)]
        here = fisher(network, params[0], sparse)
        total = self.discount * self.information + here / here.mean()
        self._knows(params, total, self._visits + 1)
        return {}

    def actor(self, visit: Visit) -> Actor:
        """The knowledge base, which a new column would start beside."""
        return Actor(self.learner.policy, self.knowledge)

    def penalty(self, params: Tensor) -> Tensor:
        """Online EWC's, ``[1, P] -> [1]``, around the knowledge base as it is."""
        return self.strength / 2 * (self.information * (params - self.knowledge).square()).sum(-1)

    def state_dict(self) -> dict[str, Tensor]:
        """The column, the knowledge base and what is yet to be distilled."""
        return super().state_dict() | {
            "knowledge.params": self.knowledge,
            "fisher.diagonal": self.information,
            "visits": torch.tensor(self._visits),
            "visit.observations": self._seen,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The same."""
        super().load_state_dict(state)
        kept = {name: value.to(self.params.device) for name, value in state.items()}
        self._knows(kept["knowledge.params"], kept["fisher.diagonal"], int(state["visits"]))
        self._seen = kept["visit.observations"]

    def _knows(self, params: Tensor, information: Tensor, visits: int) -> None:
        self.knowledge, self.information, self._visits = params, information, visits
        self._column = Column(self.learner.policy, params, self.units)

    def _widen(self, params: Tensor) -> None:
        generator = torch_generator(self.seed, "init", 1 + self._visits)
        self.params = self._column.widened(params, generator)

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())
        kept = self.kept_episodes * episodes.reward.shape[2]
        self._seen = torch.cat([self._seen, visited(episodes)])[-kept:]
        if self._step < self.learner.meta_steps:  # the connections still have no effect
            own = self.learner.policy.num_params
            moved = self.learner.step(self.params[:, :own], episodes, self._step)
            self.params = torch.cat([moved, self.params[:, own:]], 1)
        else:
            self.params = ppo_step(self.learner, self._column, self.params, episodes)
        self._step += 1
