"""What task adaptation does with what was recalled: the pulls beside the plain weighted one.

A ``Recall`` pulls by ``sum_i w_i (theta_i - theta)``. Here are those that pull otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.reader.base import Trial, recall_of
from agent.policy import DiagonalGaussian, GaussianMlp, Policy
from agent.types import Recall, Trajectories

Teacher = Callable[[Trajectories], DiagonalGaussian]
"""A policy as a function, of any make: episodes to how it would have acted at their steps."""


@dataclass(frozen=True)
class PosteriorRecall(Recall):
    """Pulls towards the mixture ``sum_i w_i N(theta_i, tau^2)``, "none of these" among them.

    That is the gradient of the mixture's log-density, times tau^2: each candidate pulls by its
    responsibility for where theta is now, so one that adaptation leaves behind lets go. The weights
    are the posterior, not only what was accepted.
    """

    tau: Tensor
    """``[T]`` standard deviation of the mixture's parts, in distance between parameters."""

    def pull(self, params: Tensor) -> Tensor:
        """``sum_i r_i(theta) (theta_i - theta)``."""
        away = self.params - params[:, None]
        logits = self.weights.log() - 0.5 * away.square().sum(-1) / self.tau[:, None].square()
        top = logits.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        raised = torch.exp(logits - top)
        share = raised / raised.sum(-1, keepdim=True).clamp(min=1e-30)
        return torch.einsum("tk,tkp->tp", share, away)


@dataclass(frozen=True)
class FunctionRecall(Recall):
    """Pulls what the policy does, wherever it is in parameters: across lineages and sizes."""

    teachers: Sequence[Teacher]
    """K policies."""

    def pull(self, params: Tensor) -> Tensor:
        """Nothing in parameters."""
        return torch.zeros_like(params)

    def divergence(self, policy: Policy, params: Tensor, episodes: Trajectories) -> Tensor:
        """``sum_i w_i E_s KL(pi_i || pi_theta)``, ``[T]``, over the valid steps.

        Its gradient is that of ``KL(sum_i w_i pi_i || pi_theta)``: the two differ by a constant.
        """
        mine, total = policy.along(params, episodes), torch.zeros_like(episodes.mask)
        for k, teacher in enumerate(self.teachers):
            with torch.no_grad():
                theirs = teacher(episodes)
            share = self.weights[:, k, None, None]
            # 0 * inf is not 0: a teacher that counts for nothing must say nothing.
            total = total + torch.where(share > 0, share * theirs.kl(mine), 0.0)
        steps = episodes.mask.sum((1, 2)).clamp(min=1)
        return (total * episodes.mask).sum((1, 2)) / steps


def used(kind: str, trial: Trial, candidates: Candidates, policy: GaussianMlp) -> Recall | None:
    """What the pull ``kind`` (``adapter.Pull``) needs of a trial's decision.

    Raises:
        LineageError: The pull would mix parameters of different lineages.
    """
    recall = trial.recall()
    if kind == "none":
        return None
    if kind == "function":
        teachers = [own_teacher(policy, recall.params[:, k]) for k in range(candidates.size[1])]
        return function_recall(recall, teachers)
    if kind == "posterior":
        return posterior_recall(candidates)
    candidates.refuse_mixing(recall.weights)
    return recall


def own_teacher(policy: GaussianMlp, params: Tensor) -> Teacher:
    """A policy of the same make as the one that learns, with ``params [T, P]``."""
    return lambda episodes: policy.along(params, episodes)


def function_recall(recall: Recall, teachers: Sequence[Teacher]) -> FunctionRecall:
    """The same weights, on any policies that act on the same observations and give such actions.

    Raises:
        ValueError: There is not a teacher for each place.
    """
    if len(teachers) != recall.weights.shape[1]:
        raise ValueError(f"{recall.weights.shape[1]} weights for {len(teachers)} teachers")
    return FunctionRecall(
        recall.index, recall.distance, recall.weights, recall.params, tuple(teachers)
    )


def posterior_recall(candidates: Candidates, spread: float = 1.0) -> PosteriorRecall:
    """The whole posterior, with the meta-initialisation as its last place (row -1).

    tau is ``spread`` times the posterior's own root mean square distance from the
    meta-initialisation.
    """
    candidates.refuse_mixing(candidates.weight)
    rows = recall_of(candidates, candidates.weight)
    t, _ = candidates.size
    anchor = candidates.anchor.expand(t, 1, -1)
    null = candidates.null[:, None]
    weights = torch.cat([candidates.weight, null], -1).to(anchor.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    square = (candidates.params - anchor).square().sum(-1)
    mean_square = (square * candidates.weight).sum(-1) / candidates.weight.sum(-1).clamp(min=1e-30)
    return PosteriorRecall(
        torch.cat([rows.index, torch.full_like(rows.index[:, :1], -1)], -1),
        torch.cat([rows.distance, (-2 * null.double().log()).clamp(min=0).sqrt()], -1),
        weights,
        torch.cat([candidates.params, anchor], 1),
        (spread * mean_square.sqrt()).clamp(min=1e-6),
    )
