"""Continual subspace of policies: convex combinations of anchors, which grow only if it pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.parts import Reparametrised, ppo_step, told_task
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.seeding import torch_generator
from agent.types import Trajectories


def mixed(anchors: Tensor, alpha: Tensor) -> Tensor:
    """``sum_i alpha_i theta_i``, ``[1, P]``, over as many of the anchors ``[N, P]`` as alpha has.

    So a task keeps its policy bit for bit when anchors are added.
    """
    return (alpha[:, None] * anchors[: len(alpha)]).sum(0, keepdim=True)


def worth_keeping(new: Tensor, old: Tensor, margin: float) -> bool:
    """Whether the returns ``new [E]`` beat ``old [E]`` by ``margin`` of what returns amount to.

    That is the larger of ``|mean old|`` and their spread. For positive returns it is at least the
    paper's ``new > (1 + margin) old``, which for negative ones would accept what is worse.
    """
    new, old = new[new.isfinite()], old[old.isfinite()]
    if len(new) == 0 or len(old) == 0:
        return len(new) > 0
    variances = [each.var() for each in (new, old) if len(each) > 1]
    spread = torch.stack(variances).mean().sqrt() if variances else new.new_zeros(())
    scale = torch.maximum(old.mean().abs(), spread)
    return bool(new.mean() - old.mean() > margin * scale)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Csp(PolicyAgent):
    """Continual Subspace of Policies (Gaya et al., ICLR 2023).

    A task is a point alpha of a simplex of anchors. A visit trains one new anchor, begun where the
    visit starts (the task's own point; the midpoint for a new one), at points drawn anew for each
    step, all other anchors frozen. Then points with and without it are tried, charged as trials,
    and it stays only if that pays: memory grows with what is new, not with visits. The paper ranks
    points by a critic that sees alpha; here each is ranked by an episode of its own. Oracle: it is
    told the task's id, and forgets exactly nothing of a task until its next visit.
    """

    needs: ClassVar[Hints] = Hints(task=True, boundary=True)
    isolates: ClassVar[bool] = True
    """A point is kept by the task's id."""

    corner: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of steps in which the new anchor acts alone; alpha is uniform on the simplex in the
    others. With the few steps of a short visit, 0.8 learned more than 0.5."""
    candidates: Annotated[int, Field(ge=1)] = 3
    """Points tried for an episode each, with and without the new anchor."""
    trial_episodes: Annotated[int, Field(ge=1)] = 3
    """Of the best point with, and of the best without it, to decide on it; with those that were not
    needed to find points, more."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """By what share of the return the new anchor must improve it to stay."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """No anchor: the first is learned from the meta-initialisation."""
        super().setup(learner, probes, seed)
        self.anchors, self.points = self.params[:0], dict[str, Tensor]()
        self._name, self._anchor, self._draws = "", self.params, 0

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Start from the task's point, the midpoint if it is new.

        Raises:
            ValueError: The visit is too short for the trials.
        """
        if len(self.anchors) and visit.remaining <= self._trials():
            raise ValueError(
                f"the visit has {visit.remaining} episodes, and csp keeps {self._trials()} for "
                "trials: lower candidates or trial_episodes"
            )
        self._name, self._step = told_task(visit), self.learner.meta_steps
        if len(self.anchors):
            self.params = mixed(self.anchors, self._point())
        else:
            self.params, self._step = self._meta_init(), 0
        self._anchor = self.params
        return {"rows": len(self.anchors)}

    def improve(self, visit: Visit) -> None:
        """Train the new anchor at one point of the simplex; with the last episodes, decide."""
        left = visit.remaining - self._trials()
        if left == 0:
            self._decide(visit)
            return
        alpha = self._drawn(len(self.anchors) + 1, self.corner)
        self.params = mixed(torch.cat([self.anchors, self._anchor]), alpha)
        episodes = visit.collect(self.params, self._batch(left))
        self._train(episodes, alpha)

    def end(self) -> dict[str, Any]:
        """The first anchor stays without trial."""
        if len(self.anchors) == 0:
            self.anchors, self.points = self._anchor, {self._name: self._anchor.new_ones(1)}
        return {"rows": len(self.anchors)}

    def state_dict(self) -> dict[str, Tensor]:
        """Anchors, points, and the anchor in training."""
        points = {"names": list(self.points), "alphas": list(self.points.values())}
        return (
            super().state_dict()
            | {"anchors.params": self.anchors, "draws": torch.tensor(self._draws)}
            | packed("points", points)
            | packed("visit", {"name": self._name, "anchor": self._anchor})
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The same."""
        super().load_state_dict(state)
        device = self.params.device
        self.anchors, self._draws = state["anchors.params"].to(device), int(state["draws"])
        points, visit = (unpacked(kind, state, device) for kind in ("points", "visit"))
        self.points = dict(zip(points["names"], points["alphas"], strict=True))
        self._name, self._anchor = visit["name"], visit["anchor"]

    def _trials(self) -> int:
        """Episodes kept for them: none before there is an anchor to compare with."""
        return 2 * (self.candidates + self.trial_episodes) if len(self.anchors) else 0

    def _point(self) -> Tensor:
        """The task's; the midpoint of all anchors for a task without one."""
        n = len(self.anchors)
        return self.points.get(self._name, self.anchors.new_full((n,), 1 / max(n, 1)))

    def _drawn(self, size: int, corner: float) -> Tensor:
        """The last corner with probability ``corner``, else a uniform point of the simplex."""
        self._draws += 1
        u = torch.rand(size + 1, generator=torch_generator(self.seed, "adaptation", self._draws))
        drawn = -torch.log1p(-u[1:]) if u[0] >= corner else torch.eye(size)[-1]
        return (drawn / drawn.sum()).to(self.params)

    def _train(self, episodes: Trajectories, alpha: Tensor) -> None:
        """A step of the new anchor; the baseline is fitted to this one point's episodes alone."""
        self.score = float(episodes.mean_return())
        if self._step < self.learner.meta_steps:
            self._anchor = self.learner.step(self._anchor, episodes, self._step)
        else:
            rest, own = mixed(self.anchors, alpha[:-1]), alpha[-1]
            policy = Reparametrised(self.learner.policy, lambda anchor: rest + own * anchor)
            self._anchor = ppo_step(self.learner, policy, self._anchor, episodes)
        self._step += 1
        self.params = mixed(torch.cat([self.anchors, self._anchor]), alpha)

    def _decide(self, visit: Visit) -> None:
        """Whether the new anchor stays, and where in the simplex the task is."""
        n, more = len(self.anchors), torch.cat([self.anchors, self._anchor])
        draws = range(self.candidates - 1)
        old = [self._point()]
        if self._name not in self.points:  # else what was found for it before is not searched again
            old += [self._drawn(n, 0.0) for _ in draws]
        new = [torch.eye(n + 1)[-1].to(more), *[self._drawn(n + 1, 0.0) for _ in draws]]
        best = [self._best(visit, more, points) for points in (old, new)]
        returns = []
        for alpha, rest in zip(best, (2, 1), strict=True):
            acted = visit.collect(mixed(more, alpha), visit.remaining // rest, purpose="trial")
            returns.append(acted.returns()[0])
        stays = worth_keeping(returns[1], returns[0], self.margin)
        self.anchors = more if stays else self.anchors
        self.points[self._name] = best[stays]
        self.params, self.score = mixed(more, best[stays]), float(returns[stays].nanmean())

    def _best(self, visit: Visit, anchors: Tensor, points: Sequence[Tensor]) -> Tensor:
        """The point that does best in an episode; if there is only one, that one."""
        if len(points) == 1:
            return points[0]
        scores = [
            visit.collect(mixed(anchors, alpha), 1, purpose="trial").returns()[0, 0]
            for alpha in points
        ]
        return points[int(torch.stack(scores).nan_to_num(nan=-torch.inf).argmax())]
