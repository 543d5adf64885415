"""Matching in action space: recalled policies vote on every action, and no gradient is taken."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.engram import Engram
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.candidates import Candidates
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian, GaussianMlp, Policy
from agent.types import Trajectories


class Vote(Policy):
    """K policies of one make, each with a weight: the action is the weighted mean of theirs.

    Parameters ``[T, K * (1 + P)]``: the weights, which sum to one, and then the policies. The
    log-stds are averaged too, so that a policy of weight 1 acts as if it were alone.
    """

    def __init__(self, network: GaussianMlp) -> None:
        self.network = network

    def ballot(self, weights: Tensor, policies: Tensor) -> Tensor:
        """The parameters, of ``weights [T, K]`` and ``policies [T, K, P]``."""
        return torch.cat([weights.to(policies), policies.flatten(1)], 1)

    def parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[T, K]``, and the policies of all tasks one after the other, ``[T * K, P]``."""
        voters = params.shape[1] // (1 + self.network.num_params)
        return params[:, :voters], params[:, voters:].reshape(len(params) * voters, -1)

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """The outcome at raw observations ``[T, ..., O]``."""
        weights, policies = self.parts(params)
        return _counted(weights, self.network(policies, _asked(obs, weights.shape[1])))

    def begin(self, params: Tensor, episodes: int) -> Any:
        """The carries of all voters."""
        weights, policies = self.parts(params)
        return weights.shape[1], self.network.begin(policies, episodes)

    def act(self, params: Tensor, obs: Tensor, carry: Any) -> tuple[DiagonalGaussian, Any]:
        """The outcome at ``obs [T, E, O]``."""
        (voters, each), (weights, policies) = carry, self.parts(params)
        said, each = self.network.act(policies, _asked(obs, voters), each)
        return _counted(weights, said), (voters, each)

    def heard(self, carry: Any, action: Tensor, reward: Tensor) -> Any:
        """All voters hear what was done."""
        if carry is None:  # there is no such vote
            return None
        voters, each = carry
        return voters, self.network.heard(each, _asked(action, voters), _asked(reward, voters))

    def along(self, params: Tensor, episodes: Trajectories) -> DiagonalGaussian:
        """The outcome at every step of stored episodes."""
        weights, policies = self.parts(params)
        values = {f.name: getattr(episodes, f.name) for f in fields(episodes)}
        asked = {
            name: _asked(value, weights.shape[1])
            for name, value in values.items()
            if value is not None
        }
        return _counted(weights, self.network.along(policies, replace(episodes, **asked)))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Matching(Engram):
    """Acts as its memory votes, weighted by how likely each row is of the task (Vinyals 2016).

    The vote is a nearest-neighbour classifier's, on actions in place of labels: every recalled
    policy counts by the posterior of its row, and the meta-initialisation by that of "none of
    these". It needs no parameters to be mixed, so rows of any lineage may take part. A visit to a
    task that is in memory takes no gradient and writes no policy. What votes must have been
    learned by somebody: where "none of these" is likelier than all rows together, the visit is
    learned and written as ``Engram`` does. ``reader`` and ``pull`` have no say here.
    """

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with an empty memory."""
        super().setup(learner, probes, seed)
        self._vote = Vote(learner.policy)

    @property
    def voting(self) -> bool:
        """Whether the memory acts in this visit."""
        return self.params.shape[1] != self.learner.policy.num_params

    @property
    def policy(self) -> Policy:
        """The vote, or the network where the task is new."""
        return self._vote if self.voting else self.learner.policy

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Probe, and let the rows that it brings up vote from here on, unless it is a new task."""
        PolicyAgent.begin(self, visit)
        before = visit.steps_used
        candidates = self._recognised(visit)
        place = int(candidates.weight[0].argmax())
        known = float(candidates.weight[0, place]) > 0
        likeliest = int(self._uids()[candidates.index[0, place]]) if known else None
        self._curve, self._acted, self._again, self._recall = [], None, None, None
        self._first_step, self._jumped, self._matched = 0, None, False
        self._null, self._match = float(candidates.null[0]), likeliest
        self._unused = self._probe
        if not bool(candidates.null_wins[0]):
            self.params, self._unused = self._vote.ballot(*voters(candidates)), None
        self._time += visit.steps_used - before
        return self._told(candidates, [], likeliest if self.voting else None)

    def improve(self, visit: Visit) -> None:
        """Act as the vote goes; in a new task, an adaptation step."""
        if not self.voting:
            return super().improve(visit)
        before = visit.steps_used
        count = self._batch(visit.remaining)
        episodes = visit.collect(self.params, count, policy=self.policy)
        self.score = float(episodes.mean_return())
        self._time += visit.steps_used - before
        return None

    def end(self) -> dict[str, Any]:
        """Count the visit for the likeliest row; write a new task's policy."""
        if not self.voting or self._match is None:
            return super().end()
        self.store.bank.count(self._match, visits=1, recalls=1, time=self._time)
        told = {"row": None, "score": self.score, "rows": len(self.store)}
        return told | {"reason": "a known task, on which the memory voted"}

    def twin(self) -> Matching:
        """A copy, which shares the vote: that never changes."""
        twin = cast("Matching", super().twin())
        twin._vote = self._vote
        return twin


def voters(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Weights ``[T, K + 1]`` that sum to one and policies ``[T, K + 1, P]``, the anchor last."""
    weights = torch.cat([candidates.weight, candidates.null[:, None]], -1)
    anchor = candidates.anchor.expand(len(weights), 1, -1)
    return weights / weights.sum(-1, keepdim=True), torch.cat([candidates.params, anchor], 1)


def _asked(values: Tensor, voters: int) -> Tensor:
    """``[T, ...]`` once for each voter, ``[T * K, ...]``."""
    return values.repeat_interleave(voters, 0)


def _counted(weights: Tensor, said: DiagonalGaussian) -> DiagonalGaussian:
    """The weighted mean of ``said [T * K, ...]``, ``[T, ...]``."""
    t, k = weights.shape

    def mean(values: Tensor) -> Tensor:
        return torch.einsum("tk,tk...->t...", weights, values.unflatten(0, (t, k)))

    log_std = said.log_std.expand(t * k, *said.log_std.shape[1:])
    return DiagonalGaussian(mean(said.mean), mean(log_std))
