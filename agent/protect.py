"""Protection of adaptation at test time: a step that goes too far or does harm is taken back.

A policy gradient from a few episodes can have the wrong sign, and steps after the meta-learned one
can undo it. Two measures, on T tasks at once and for any learner; neither needs an episode that
would not be collected anyway:

* A step is halved until it changes the policy by no more than a KL (the line search of TRPO,
  Schulman 2015, on the KL alone).
* What a step led to is judged by the episodes that are then acted: where they return less than the
  best parameters so far did, by several standard errors (Student's test of two means), these are
  put back. The next step from there is made from all episodes of theirs together, and after
  some steps that did harm no other is tried. Until a step has done good, the best parameters are
  the unadapted ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.losses import mean_over_steps
from agent.policy import Policy
from agent.types import Trajectories

Step = Callable[[Tensor, Trajectories, int], Tensor]
"""A learner's step: ``params [T, P]``, their episodes and the step's number to new parameters."""
_PIECES = 10  # of an episode
_MOST_EPISODES = 64  # of the best parameters that are kept


@dataclasses.dataclass(frozen=True)
class Course:
    """How far the adaptation of T tasks has come: all that protection knows of it."""

    params: Tensor
    """``[T, P]``, what the next episodes are to be acted with."""
    number: Tensor
    """``[T]`` number of the step that is to be made from them."""
    best: Tensor
    """``[T, P]``, the best parameters so far."""
    best_number: Tensor
    """``[T]`` number of the step that is made from those."""
    failed: Tensor
    """``[T]`` steps that did harm since the last one that did good."""
    episodes: Trajectories | None = None
    """What the best parameters acted; void (diverged) where one task has fewer than another."""

    @classmethod
    def begin(cls, params: Tensor, number: int = 0) -> Course:
        """From the unadapted ``params [T, P]``; the first step is called ``number``."""
        params = params.detach()
        at = torch.full((len(params),), number, device=params.device)
        return cls(params, at, params, at, torch.zeros_like(at))


@dataclass(kw_only=True, config={"extra": "forbid"})
class Protection:
    """When a step of adaptation goes too far, and when it has done harm."""

    kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Nats per step by which a step may change the policy, on the episodes that it is made from;
    null: any number."""
    halvings: Annotated[int, Field(ge=1)] = 10
    """How often a step is halved; one that still goes too far is not made."""
    harm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """Standard errors by which a mean return must lie below that of the best parameters for these
    to be put back; null: they never are."""
    tries: Annotated[int, Field(ge=1)] = 2
    """Steps in succession that may do harm; after these the best parameters stay."""

    def step(self, policy: Policy, course: Course, episodes: Trajectories, step: Step) -> Course:
        """The course after ``episodes``, which were acted with its parameters."""
        if self.harm is None:
            back = torch.zeros_like(course.number, dtype=torch.bool)
        else:
            course, episodes, back = self._judged(course, episodes, self.harm)
        stay = back | (course.failed >= self.tries)
        moved = _moved(course, episodes, step)
        if self.kl is not None:
            moved = shortened(policy, course.params, moved, episodes, self.kl, self.halvings)
        return replace(
            course,
            params=torch.where(stay[:, None], course.params, moved),
            number=torch.where(stay, course.number, course.number + 1),
        )

    def _judged(
        self, course: Course, episodes: Trajectories, harm: float
    ) -> tuple[Course, Trajectories, Tensor]:
        """The course with the best parameters put back where the last step did harm, ``[T]`` bool.

        And what the step from its parameters is to be made from.
        """
        old = course.episodes
        if old is None:
            none = torch.zeros_like(course.number, dtype=torch.bool)
            return replace(course, episodes=episodes), episodes, none
        same = (course.params == course.best).all(-1)  # they acted once more
        ahead = lead(episodes, old)
        harmed = ~same & (ahead < -harm)
        better = ~same & (ahead > 0)
        both = old.joined(episodes)
        is_new = torch.arange(both.reward.shape[1], device=same.device) >= old.reward.shape[1]
        again = same & (course.failed < self.tries)
        kept = torch.where(is_new, (again | better)[:, None], ~better[:, None])
        course = replace(
            course,
            params=torch.where(harmed[:, None], course.best, course.params),
            number=torch.where(harmed, course.best_number, course.number),
            best=torch.where(better[:, None], course.params, course.best),
            best_number=torch.where(better, course.number, course.best_number),
            failed=torch.where(better, 0, course.failed + harmed.long()),
            episodes=_only(both, kept, _MOST_EPISODES),
        )
        return course, _only(both, is_new | again[:, None]), harmed


def progressed(
    policy: Policy,
    course: Course,
    episodes: Trajectories,
    step: Step,
    protection: Protection | None,
) -> Course:
    """The course after its next step, protected or, without ``protection``, just as it is made."""
    if protection is not None:
        return protection.step(policy, course, episodes, step)
    moved = _moved(course, episodes, step)
    return replace(course, params=moved, number=course.number + 1)


def lead(episodes: Trajectories, others: Trajectories) -> Tensor:
    """``[T]`` by how many standard errors ``episodes`` return more than ``others`` on average.

    Student's, both of one variance. Where there is but one episode of each, the pieces of an
    episode say how much its return varies (the method of batch means). Infinite where all of one
    diverged.
    """
    mean, square, n = _moments(episodes)
    mean_of_others, square_of_others, n_of_others = _moments(others)
    freedom = n + n_of_others - 2
    pooled = (square + square_of_others) / freedom.clamp(min=1) * (1 / n + 1 / n_of_others)
    pieces = _of_pieces(episodes) + _of_pieces(others)
    error = torch.where(freedom > 0, pooled, pieces).sqrt()
    ahead = (mean - mean_of_others) / error.clamp(min=1e-9)
    ahead = torch.where(n_of_others > 0, ahead, torch.inf)
    return torch.where(n > 0, ahead, -torch.inf)


def shortened(
    policy: Policy,
    params: Tensor,
    moved: Tensor,
    episodes: Trajectories,
    most: float,
    halvings: int,
) -> Tensor:
    """``moved [T, P]``, each task's step from ``params`` halved until its KL is no more than most.

    The mean over the valid steps of KL(before || after), in nats; ``params`` where no halving is
    enough.
    """
    with torch.no_grad():
        before = policy.along(params, episodes)
        for _ in range(halvings):
            apart = mean_over_steps(before.kl(policy.along(moved, episodes)), episodes.mask)
            far = ~(apart <= most)  # also where it is not a number
            if not bool(far.any()):
                return moved
            moved = torch.where(far[:, None], (params + moved) / 2, moved)
        apart = mean_over_steps(before.kl(policy.along(moved, episodes)), episodes.mask)
    return torch.where((apart <= most)[:, None], moved, params)


def _moved(course: Course, episodes: Trajectories, step: Step) -> Tensor:
    """A step for each task, of the number that is its own."""
    moved = course.params
    for number in course.number.unique().tolist():
        mine = (course.number == number)[:, None]
        moved = torch.where(mine, step(course.params, episodes, number), moved)
    return moved


def _moments(episodes: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """``[T]`` mean return, sum of squared deviations from it, and episodes that did not diverge."""
    returns, kept = episodes.returns().double(), ~episodes.diverged
    mean = returns.nanmean(-1)
    square = torch.where(kept, (returns - mean[:, None]).square(), 0.0).sum(-1)
    return mean, square, kept.sum(-1)


def _of_pieces(episodes: Trajectories) -> Tensor:
    """``[T]`` variance of a return, as if the pieces of an episode were independent."""
    paid = (episodes.reward * episodes.mask).double()
    pieces = min(_PIECES, paid.shape[-1])
    parts = torch.stack([part.sum(-1) for part in paid.tensor_split(pieces, -1)], -1)
    variance = parts.var(-1, unbiased=pieces > 1) * pieces
    kept = ~episodes.diverged
    return torch.where(kept, variance, 0.0).sum(-1) / kept.sum(-1).clamp(min=1)


def _only(episodes: Trajectories, kept: Tensor, most: int | None = None) -> Trajectories:
    """The last episodes that are ``kept [T, E]`` in any task; void in those where they are not."""
    some = kept.any(0).nonzero()[:, 0]
    if most is not None:
        some = some[-most:]
    void = ~kept[:, some]
    chosen = episodes.episodes(some)
    mask = chosen.mask * ~void[..., None]
    return replace(chosen, mask=mask, reward=chosen.reward * mask, diverged=chosen.diverged | void)
