"""FAME: of the last policy and a distilled one, start a visit from whichever proves better."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.stats import ttest_ind
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.parts import Distilling, visited
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian
from agent.types import Recall, Trajectories


def proven_better(returns: Tensor, others: Tensor, level: float) -> bool:
    """Whether ``returns`` are higher in the mean, by a one-sided Welch t test at ``level``.

    Episodes that diverged (NaN) do not count; fewer than two prove nothing.
    """
    ours, theirs = returns[returns.isfinite()].double(), others[others.isfinite()].double()
    if min(len(ours), len(theirs)) < 2:
        return False
    if ours.var() + theirs.var() == 0:  # the test's statistic is 0 / 0 or infinite
        return bool(ours.mean() > theirs.mean())
    found = ttest_ind(ours.cpu(), theirs.cpu(), equal_var=False, alternative="greater")
    return bool(found[1] < level)  # pyright: ignore[reportOperatorIssue]


@dataclass(kw_only=True, config={"extra": "forbid"})
class Fame(PolicyAgent):
    """FAME's fast and meta learner (ICLR 2026; arXiv 2603.00903), with the tested warm start.

    At a boundary the last visit's (fast) policy, the meta policy and the meta-initialisation act in
    a few episodes each, charged as trials. The better of fast policy and meta-initialisation is
    where the visit starts, unless the meta policy is better by a one-sided t test. Afterwards the
    meta policy is distilled from what the fast one does on its last trajectories of every visit.
    Told boundaries, no ids. What it keeps grows by those trajectories at each visit.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)
    """When to test, and when to distil."""

    trial_episodes: Annotated[int, Field(ge=2)] = 4
    """Each candidate's, stochastic, charged; 10 in the paper's code."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Largest p at which the meta policy counts as better."""
    kept_episodes: Annotated[int, Field(ge=1)] = 10
    """A visit's last trajectories, from which the meta policy is distilled for ever after."""
    distilling: Distilling = field(default_factory=Distilling)
    """How it is distilled."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """No visit has been made: fast and meta policy are the meta-initialisation."""
        super().setup(learner, probes, seed)
        self.fast, self.meta = self.params, self.params
        self._unused: Trajectories | None = None
        sizes = (learner.policy.obs_size, *[learner.policy.action_size] * 2)
        self._replay = tuple(self.params.new_zeros(0, size) for size in sizes)
        self._seen = self._replay[0]

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Try the candidates, and start from one; the meta-initialisation if none can be tried."""
        self.params, self._unused, self._seen = self._meta_init(), None, self._seen[:0]
        self._step = 0
        each = min(self.trial_episodes, visit.remaining // 3)
        if len(self._replay[0]) == 0 or each < 2:
            return {}
        candidates = {"meta_init": self.params, "fast": self.fast, "meta": self.meta}
        tried = {
            name: visit.collect(params, each, purpose="trial")
            for name, params in candidates.items()
        }
        chosen = self.chosen({name: acted.returns()[0] for name, acted in tried.items()})
        self.params, self._unused = candidates[chosen], tried[chosen]
        self._step = 0 if chosen == "meta_init" else self.learner.meta_steps
        return {"tried": [{"return": float(acted.mean_return())} for acted in tried.values()]}

    def chosen(self, returns: dict[str, Tensor]) -> str:
        """The candidate to start from, by the returns ``[E]`` of its trials."""
        means = {name: each.nanmean().nan_to_num(nan=-torch.inf) for name, each in returns.items()}
        other = "fast" if means["fast"] > means["meta_init"] else "meta_init"
        proven = proven_better(returns["meta"], returns[other], self.level)
        return "meta" if proven else other

    def end(self) -> dict[str, Any]:
        """Keep what the fast policy does where it was, and distil the meta policy from all that."""
        self.fast = self.params
        if len(self._seen) == 0:
            return {"reason": "every episode diverged, there is nothing to distil"}
        with torch.no_grad():
            does = self.learner.policy(self.params, self._seen[None])
        new = (self._seen, does.mean[0], does.log_std[0].expand_as(does.mean[0]))
        self._replay = tuple(torch.cat(both) for both in zip(self._replay, new, strict=True))
        obs, mean, log_std = self._replay
        self.meta = self.distilling.distilled(
            self.learner.policy, self.meta, obs, DiagonalGaussian(mean, log_std)
        )
        return {}

    @property
    def pending(self) -> bool:
        """Whether the trials of the policy that goes on are still to be learned from."""
        return self._unused is not None

    def state_dict(self) -> dict[str, Tensor]:
        """The three policies, the trajectories, and what the visit has left to learn from."""
        names = ("obs", "mean", "log_std")
        return (
            super().state_dict()
            | {"fast.params": self.fast.clone(), "meta.params": self.meta.clone()}
            | {f"replay.{name}": value for name, value in zip(names, self._replay, strict=True)}
            | packed("visit", {"unused": self._unused, "seen": self._seen})
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The same."""
        super().load_state_dict(state)
        device = self.params.device
        self.fast, self.meta = state["fast.params"].to(device), state["meta.params"].to(device)
        self._replay = tuple(state[f"replay.{n}"].to(device) for n in ("obs", "mean", "log_std"))
        left = unpacked("visit", state, device)
        self._unused, self._seen = left["unused"], left["seen"]

    def _collect(self, visit: Visit) -> Trajectories:
        """Trials made by the very policy that goes on are not wasted."""
        unused, self._unused = self._unused, None
        if unused is None:
            return super()._collect(visit)
        had = unused.reward.shape[1]
        more = min(self._batch(had + visit.remaining) - had, visit.remaining)
        return unused.joined(visit.collect(self.params, more)) if more > 0 else unused

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        kept = self.kept_episodes * episodes.reward.shape[2]
        self._seen = torch.cat([self._seen, visited(episodes)])[-kept:]
        super()._learn(episodes, recall, beta)
