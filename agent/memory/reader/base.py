"""How a memory is read: a reader opens a trial, which acts with candidates until it has decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.guard import Guard
from agent.types import Recall, Trajectories


@dataclass(frozen=True)
class Proposal:
    """What to act with in the next episode."""

    params: Tensor
    """``[T, P]``."""
    row: Tensor
    """``[T]`` row of the memory; -1 is the meta-initialisation."""
    guard: Guard | None = None
    """Watches the episode, if the reader wants it watched."""


class Trial(Protocol):
    """One read of the memory for T tasks, an episode of each at a time."""

    @property
    def done(self) -> Tensor:
        """``[T]`` bool: decided; what is proposed from here on is the decision."""
        ...

    def propose(self) -> Proposal:
        """What the next episode should be acted with."""
        ...

    def observe(self, episodes: Trajectories, tripped: Tensor) -> None:
        """What came of it: one episode per task, and ``[T]`` bool where the guard stopped it."""
        ...

    def recall(self) -> Recall:
        """What was recalled; weights 0 where the meta-initialisation won."""
        ...

    def start(self) -> Tensor:
        """``[T, P]`` the policies to go on from."""
        ...


class Reader(Protocol):
    """Settings are fields; all state is in the trial."""

    def open(self, candidates: Candidates, generator: torch.Generator) -> Trial:
        """Begin to read."""
        ...


class Picked:
    """A trial that ends with one row, or the meta-initialisation, for each task.

    Places are 0 to K-1 and -1, the meta-initialisation. Subclasses override ``place`` and
    ``learn``; one that needs no episode is done from the start.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        t, k = candidates.size
        device = candidates.weight.device
        self.returns: list[list[list[float]]] = [[[] for _ in range(k + 1)] for _ in range(t)]
        """Returns seen so far, by task and place; the last place is the meta-initialisation's."""
        self.choice = torch.full((t,), -1, device=device)
        """``[T]`` the place decided on, or the best guess so far."""
        self._done = torch.zeros(t, dtype=torch.bool, device=device)
        self._proposed: Tensor | None = None

    @property
    def done(self) -> Tensor:
        """``[T]`` bool: decided."""
        return self._done

    def place(self) -> Tensor:
        """``[T]`` what to try next where nothing is decided."""
        return self.choice

    def guard(self, place: Tensor) -> Guard | None:
        """What watches the episode with ``place [T]``."""
        return None

    def learn(self, returns: Tensor, place: Tensor, tripped: Tensor) -> None:
        """Take in the ``returns [T]`` that came of ``place [T]``; NaN where it diverged.

        ``choice`` and ``_done`` of tasks that were done already are put back afterwards.
        """

    def propose(self) -> Proposal:
        """The decision where there is one, else what to try next."""
        place = torch.where(self._done, self.choice, self.place())
        self._proposed = place
        return Proposal(self.candidates.at(place), self.candidates.row(place), self.guard(place))

    def observe(self, episodes: Trajectories, tripped: Tensor) -> None:
        """Learn from one episode per task of what was proposed last.

        Raises:
            ValueError: Nothing was proposed, or there are several episodes.
        """
        place, self._proposed = self._proposed, None
        if place is None:
            raise ValueError("observe needs a proposal to have been made since the last one")
        if episodes.reward.shape[:2] != (len(place), 1):
            raise ValueError(
                f"expected 1 episode of each of {len(place)} tasks, "
                f"got {tuple(episodes.reward.shape[:2])}"
            )
        returns = episodes.returns()[:, 0]
        before, choice = self._done.clone(), self.choice.clone()
        for task, (slot, value) in enumerate(zip(place.tolist(), returns.tolist(), strict=True)):
            if not before[task] and not tripped[task]:
                self.returns[task][slot].append(value)
        self.learn(returns, place, tripped)
        self._done = self._done | before
        self.choice = torch.where(before, choice, self.choice)

    def weights(self) -> Tensor:
        """``[T, K]``: 1 at the choice; all 0 for the meta-initialisation."""
        places = torch.arange(self.candidates.size[1], device=self.choice.device)
        return (places == self.choice[:, None]).to(self.candidates.params.dtype)

    def recall(self) -> Recall:
        """The choice, as weights."""
        return recall_of(self.candidates, self.weights())

    def start(self) -> Tensor:
        """The chosen row itself, not a rounded sum."""
        return self.candidates.at(self.choice)


def recall_of(candidates: Candidates, weights: Tensor) -> Recall:
    """A ``Recall`` of the candidates with given ``weights [T, K]``.

    A row's distance is that at which ``exp(-distance^2 / 2)`` is its posterior: 0 where the row is
    certain, about 1 at 0.6, infinite where there is no row.
    """
    distance = (-2 * candidates.weight.double().log()).clamp(min=0).sqrt()
    return Recall(candidates.index.clamp(min=0), distance, weights, candidates.params)


@dataclass(frozen=True)
class Attempt:
    """An episode of a trial."""

    row: Tensor
    """``[T]`` row acted with, -1 the meta-initialisation."""
    episodes: Trajectories
    """``[T, 1, H]``; ``switched`` says where the guard stopped it."""


def attempts(
    trial: Trial, collect: Callable[[Tensor, Guard | None], Trajectories], budget: int
) -> list[Attempt]:
    """Run a trial until all tasks are decided, for ``budget`` episodes of each at most.

    ``collect(params [T, P], guard)`` acts in one episode of each task.
    """
    made: list[Attempt] = []
    while len(made) < budget and not bool(trial.done.all()):
        proposal = trial.propose()
        episodes = collect(proposal.params, proposal.guard)
        trial.observe(episodes, episodes.stopped()[:, 0])
        made.append(Attempt(proposal.row, episodes))
    return made
