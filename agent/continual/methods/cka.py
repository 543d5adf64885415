"""CKA-RL: a bounded pool of parameter vectors, combined with weights that are learned."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.parts import Reparametrised, ppo_step, told_task
from agent.continual.methods.pool import Pool
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.types import Recall, Trajectories

_OF_A_VISIT = ("name", "learned", "used", "rows", "from")


@dataclass(kw_only=True, config={"extra": "forbid"})
class Cka(PolicyAgent):
    """CKA-RL (NeurIPS 2025): ``theta = theta_0 + sum_j softmax(beta)_j v_j + v_new``.

    A visit learns beta and v_new, then v_new joins the pool. What is told is the task's id: beta
    and v belong to a task, so without it there would be nothing to say whose to use. A task that
    comes back goes on from its own, and what it learns is a new vector; others keep the old one. At
    a first visit all vectors weigh the same. Up to the bound nothing is forgotten, bit for bit;
    beyond it the two most similar vectors become one, for every task that used either.
    """

    needs: ClassVar[Hints] = Hints(task=True, boundary=True)
    """Weights are kept by the task's id."""

    rows: Annotated[int, Field(ge=1)] = 8
    """Most vectors in the pool when a visit is over."""
    weight_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """How many times faster beta learns than a parameter: Adam moves both by the same."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """An empty pool around the meta-initialisation."""
        super().setup(learner, probes, seed)
        self.pool = Pool(learner.policy.num_params)
        self.pool.vectors = self.params[:0]
        self._start("")
        self._visits = 0

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Start from the task's own combination; from the mean of all vectors if it is new."""
        self._start(told_task(visit))
        self._step = self.learner.meta_steps if len(self.pool.vectors) else 0
        return {"rows": len(self.pool.vectors)}

    def end(self) -> dict[str, Any]:
        """The new vector joins the pool, which is then brought back to its bound."""
        beta = torch.full_like(self._used, -torch.inf, dtype=self.params.dtype)
        beta[self._used] = self._weights(self._learned)[0]
        self.pool.add(self._name, self._own(self._learned)[0], beta, self._visits)
        self.pool.drop_unused()
        while len(self.pool.vectors) > self.rows:
            self.pool.merge_most_similar()
        self._visits += 1
        return {"rows": len(self.pool.vectors)}

    def combined(self, learned: Tensor) -> Tensor:
        """``[1, P]`` from what is learned: v_new and the change of k betas, ``[1, P + k]``."""
        weights = torch.softmax(self._weights(learned), 1)
        return self._meta_init() + weights @ self._rows + self._own(learned)

    def state_dict(self) -> dict[str, Tensor]:
        """The pool and what is being learned."""
        visit = {name: getattr(self, f"_{name}") for name in _OF_A_VISIT}
        visits = {"visits": torch.tensor(self._visits)}
        return super().state_dict() | visits | self.pool.state_dict() | packed("visit", visit)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The same."""
        super().load_state_dict(state)
        device = self.params.device
        self._visits = int(state["visits"])
        self.pool.load_state_dict(state, device)
        for name, value in unpacked("visit", state, device).items():
            setattr(self, f"_{name}", value)

    def _start(self, task: str) -> None:
        """The combination that a visit to the task starts from."""
        pool, self._name = self.pool, task
        k, new = len(pool.vectors), task not in pool.betas
        beta = self.params.new_zeros(k) if new else pool.betas[task]
        own = torch.zeros_like(self.params[0]) if new else pool.vectors[pool.own[task]]
        self._used = beta.isfinite()
        self._rows = pool.vectors[self._used]
        self._from = beta[self._used]
        self._learned = torch.cat([own, torch.zeros_like(self._from)])[None]
        self.params = self.combined(self._learned)

    def _own(self, learned: Tensor) -> Tensor:
        return learned[:, : self.learner.policy.num_params]

    def _weights(self, learned: Tensor) -> Tensor:
        return self._from + self.weight_rate * learned[:, self.learner.policy.num_params :]

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())
        if self._step < self.learner.meta_steps:  # there are no weights yet
            moved = self.learner.step(self.params, episodes, self._step)
            self._learned = self._learned + moved - self.params
        else:
            policy = Reparametrised(self.learner.policy, self.combined)
            self._learned = ppo_step(self.learner, policy, self._learned, episodes)
        self.params = self.combined(self._learned)
        self._step += 1
