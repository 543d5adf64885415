"""Readers that keep a belief of how well each row will do here, and act on it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.guard import band, negligible, spread
from agent.memory.reader.base import Picked, Trial

_FLOOR = 0.02


@dataclass(kw_only=True, config={"extra": "forbid"})
class Bpr:
    """Bayesian policy reuse (Rosman 2016): the belief of the task, updated by each return.

    The return of row i on its own task is its record's, and the meta-initialisation's on each row's
    task is known from its probe. What row i returns on the task of row j was never measured: it is
    guessed from the meta-initialisation's, and taken to be no better known than to within the gain.
    """

    trials: Annotated[int, Field(ge=1)] = 5
    """Episodes at most."""
    sure: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Decided when one answer, after an episode or more, is as likely as this."""
    stranger: float = -1.0
    """Guess of what a row is worth on another task, in gains above the meta-initialisation."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin."""
        return _Belief(self, candidates, generator, sampled=False)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Thompson(Bpr):
    """The same belief; each episode acts for a task drawn from it."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin."""
        return _Belief(self, candidates, generator, sampled=True)


class _Belief(Picked):
    """Answer K stands for "none of these", policy K for the meta-initialisation."""

    def __init__(
        self, settings: Bpr, candidates: Candidates, generator: torch.Generator, sampled: bool
    ) -> None:
        super().__init__(candidates)
        self._settings, self._generator, self._sampled = settings, generator, sampled
        belief = torch.cat([candidates.weight, candidates.null[:, None]], -1).double()
        self.belief = _normalised(belief)
        """``[T, K + 1]``."""
        self._mean, self._sd = expected_returns(candidates, settings.stranger)
        self._made = 0
        self._done = self._done | ~candidates.known.any(-1)

    @property
    def weight(self) -> Tensor:
        """``[T, K]`` of the belief."""
        return self.belief[:, :-1]

    @property
    def null(self) -> Tensor:
        """``[T]``, that it is none of the rows."""
        return self.belief[:, -1]

    def place(self) -> Tensor:
        """The policy of a sampled task, or the one that is best on average over the belief."""
        if self._sampled:
            drawn = torch.multinomial(self.belief.cpu(), 1, generator=self._generator)[:, 0]
            return self._as_place(drawn.to(self.belief.device))
        return self._best()

    def learn(self, returns: Tensor, place: Tensor, tripped: Tensor) -> None:
        """Bayes' rule, for the return of ``place`` under each answer."""
        tasks, last = torch.arange(len(place), device=place.device), self.candidates.size[1]
        policy = torch.where(place < 0, last, place)
        mean, sd = self._mean[tasks, policy], self._sd[tasks, policy]
        z = (returns.double()[:, None] - mean) / sd
        likelihood = -0.5 * z.square() - sd.log()
        # A row that made the physics blow up is not the one for this task; nothing else is known.
        answers = torch.arange(last + 1, device=place.device)
        own = (answers == policy[:, None]) & (place >= 0)[:, None]
        blown = torch.where(own, -torch.inf, 0.0).double()
        likelihood = torch.where(returns.isnan()[:, None], blown, likelihood)
        logits = self.belief.log() + likelihood
        top = logits.amax(-1, keepdim=True)
        self.belief = torch.where(top.isinf(), self.belief, _normalised((logits - top).exp()))
        self._made += 1
        self.choice = self._best()
        over = self._made >= self._settings.trials
        self._done = self._done | over | (self.belief.amax(-1) >= self._settings.sure)

    def _best(self) -> Tensor:
        worth = (self._mean * self.belief[:, None]).sum(-1)
        known = torch.cat([self.candidates.known, torch.ones_like(worth[:, :1]).bool()], -1)
        return self._as_place(worth.masked_fill(~known, -torch.inf).argmax(-1))

    def _as_place(self, policy: Tensor) -> Tensor:
        return policy.masked_fill(policy == self.candidates.size[1], -1)


def expected_returns(candidates: Candidates, stranger: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[T, K + 1, K + 1]`` of each policy's return under each answer.

    The last policy is the meta-initialisation, the last answer "none of these".
    """
    k = candidates.size[1]
    mean, baseline = candidates.mean.double(), candidates.baseline.double()
    known = candidates.known
    count = known.sum(-1).clamp(min=1)
    gain = torch.where(known, (mean - baseline).abs(), 0.0)
    typical = gain.sum(-1) / count
    home = torch.where(known, baseline, 0.0).sum(-1) / count
    told = ~candidates.home.isnan()
    home = torch.where(told, candidates.home.double(), home)
    at_home = torch.cat([baseline, home[:, None]], -1)
    gains = torch.cat([gain, typical[:, None]], -1)
    own = band(spread(candidates)[..., -1], candidates.n) + negligible(candidates, _FLOOR)
    mean_of = (at_home + stranger * gains)[:, None].repeat(1, k + 1, 1)
    sd_of = gains[:, None].repeat(1, k + 1, 1)
    # A row's like does as well there as the row of that task itself, as far as it is its like.
    like = candidates.affinity.double().clamp(0, 1)
    mean_of[:, :k, :k] = like * mean[:, None] + (1 - like) * mean_of[:, :k, :k]
    sd_of[:, :k, :k] = like * own[:, None] + (1 - like) * sd_of[:, :k, :k]
    places = torch.arange(k, device=mean.device)
    mean_of[:, places, places], sd_of[:, places, places] = mean, own
    mean_of[:, k] = at_home
    sd_of[:, k, :k] = own
    sd_of[:, k, k] = torch.where(told, own.amax(-1), typical)
    return mean_of, sd_of.clamp(min=1e-9)


def _normalised(belief: Tensor) -> Tensor:
    """To sum 1; the last answer for certain where nothing is left."""
    total = belief.sum(-1, keepdim=True)
    nothing = torch.zeros_like(belief)
    nothing[:, -1] = 1.0
    return torch.where(total > 1e-30, belief / total.clamp(min=1e-30), nothing)


@dataclass(kw_only=True, config={"extra": "forbid"})
class GpUcb:
    """Intelligent trial and error (Cully 2015): the records are the mean of a Gaussian process.

    Each return moves the expectation of the rows alike. It knows no "none of these".
    """

    trials: Annotated[int, Field(ge=1)] = 8
    """Episodes at most."""
    optimism: Annotated[float, Field(ge=0)] = 0.05
    """Standard deviations added to the mean when a row is picked."""
    enough: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Decided when the best seen has this share of the best gain that is still expected."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin."""
        return _Process(self, candidates)


class _Process(Picked):
    def __init__(self, settings: GpUcb, candidates: Candidates) -> None:
        super().__init__(candidates)
        self._settings, self._made = settings, 0
        gain = (candidates.mean - candidates.baseline).double().abs()
        like = candidates.affinity.double()
        values, vectors = torch.linalg.eigh((like + like.mT) / 2)
        root = vectors * values.clamp(min=0).sqrt()[:, None]  # what is given need not be a kernel
        self._cov = (root @ root.mT) * gain[..., None] * gain[:, None]
        sd = spread(candidates)[..., -1]
        self._noise = (band(sd, candidates.n) + negligible(candidates, _FLOOR)).square()
        self._mean, self._var = self._posterior()
        self._done = self._done | ~candidates.known.any(-1)

    def place(self) -> Tensor:
        """The largest upper confidence bound."""
        bound = self._mean + self._settings.optimism * self._var.clamp(min=0).sqrt()
        return bound.masked_fill(~self.candidates.known, -torch.inf).argmax(-1)

    def learn(self, returns: Tensor, place: Tensor, tripped: Tensor) -> None:
        """Condition on the return; the choice is the row with the best seen so far."""
        bad = (2 * self.candidates.baseline - self.candidates.mean).amin(-1)
        for task, value in enumerate(returns.tolist()):
            if (
                math.isnan(value) and not self._done[task] and not tripped[task]
            ):  # it diverged, which is bad
                self.returns[task][int(place[task])][-1] = float(bad[task])
        self._mean, self._var = self._posterior()
        self._made += 1
        for task in (~self._done).nonzero()[:, 0].tolist():
            seen = [sum(x) / len(x) if x else -math.inf for x in self.returns[task][:-1]]
            self.choice[task] = best = seen.index(max(seen))
            known = self.candidates.known[task]
            base = float(self.candidates.baseline[task, best])
            hoped = float(self._mean[task][known].max()) - base
            slack = (1 - self._settings.enough) * abs(hoped)
            reached = seen[best] - base >= hoped - slack
            self._done[task] = reached or self._made >= self._settings.trials

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[T, K]`` of each row's return here."""
        mean, var = (
            self.candidates.mean.double().clone(),
            self._cov.diagonal(dim1=1, dim2=2).clone(),
        )
        for task, by_place in enumerate(self.returns):
            seen = [(i, value) for i, values in enumerate(by_place[:-1]) for value in values]
            if not seen:
                continue
            at = torch.tensor([i for i, _ in seen], device=mean.device)
            value = torch.tensor([v for _, v in seen], dtype=mean.dtype, device=mean.device)
            cov, across = self._cov[task][at][:, at], self._cov[task][:, at]
            cov = cov + torch.diag(self._noise[task, at])
            surprise = value - self.candidates.mean[task, at].double()
            mean[task] += across @ torch.linalg.solve(cov, surprise)
            var[task] -= (across * torch.linalg.solve(cov, across.mT).mT).sum(-1)
        return mean, var
