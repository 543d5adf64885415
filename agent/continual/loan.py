"""Simulators that a visit lends to agents that step them by hand, episode by episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from agent.continual.life import Episode, Purpose, finite_mean
from agent.rollout import TaskBatch
from envs.task import Task

if TYPE_CHECKING:
    from agent.continual.visit import Segment

Open = Callable[[Sequence[Task]], TaskBatch]


@dataclasses.dataclass(frozen=True)
class Stepped:
    """What one step led to in every row ``[E]``; where no episode went on, nothing happened."""

    obs: np.ndarray
    """``[E, O]``, after the step; of an episode that is over, its last."""
    reward: np.ndarray
    terminated: np.ndarray
    """Ended by the task."""
    truncated: np.ndarray
    """Cut off: by the horizon, or because the simulation blew up; that step then pays nothing and
    leads nowhere."""

    @property
    def over(self) -> np.ndarray:
        """``[E]`` bool: episodes that this step was the last of."""
        return self.terminated | self.truncated


@dataclasses.dataclass
class _Row:
    """The episode that a row is in."""

    segment: Segment
    number: int
    """Of the episode, within its planned visit."""
    value: float = 0.0
    length: int = 0

    def told(self, purpose: Purpose, success: bool | None, ended: bool, broken: bool) -> Episode:
        """The episode as it is written down; of one that diverged, the reward is void."""
        facts = {
            "visit": self.segment.number,
            "task": self.segment.name,
            "purpose": purpose,
            "episode": self.number,
            "return": None if broken else self.value,
            "length": 0 if broken else self.length,
            "success": success,
            "diverged": broken,
            "terminated": ended,
        }
        return Episode.model_validate(facts)


class Loan:
    """E episodes side by side, each of the task that is on when its turn comes.

    All must be acted to their end; a row that is over waits until ``start`` gives it the next one.
    """

    def __init__(
        self,
        open_tasks: Open,
        upcoming: Iterator[tuple[Segment, int]],
        rows: int,
        rng: np.random.Generator,
        purpose: Purpose,
    ) -> None:
        self.rows = rows
        """E."""
        self.purpose: Purpose = purpose
        self.finished: list[Episode] = []
        """Those that are over."""
        self.steps_of: dict[int, int] = {}
        """Env steps taken so far, by planned visit."""
        self._open, self._upcoming, self._rng = open_tasks, upcoming, rng
        self._at = [_Row(*next(upcoming)) for _ in range(rows)]
        self._before_s = 0.0
        self._open_all()

    def __enter__(self) -> Self:
        """Use the loan in a ``with`` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the simulators."""
        self._batch.simulators.close()
        if kind is None and self.running.any():
            raise RuntimeError(
                f"{int(self.running.sum())} of the episodes lent were not acted to their end; "
                "a budget is spent in whole episodes"
            )

    @property
    def score(self) -> float:
        """Mean return of the episodes that are over; NaN if all of them diverged."""
        return finite_mean([episode.value for episode in self.finished])

    @property
    def physics_s(self) -> float:
        """Wall seconds spent inside the simulators."""
        return self._before_s + self._batch.physics_s

    def step(self, action: np.ndarray) -> Stepped:
        """Apply ``action [E, A]``: clipped to +-1, then scaled; over rows ignore it."""
        ran = self.running.copy()
        applied = self._batch.applied(np.where(ran[:, None], action, 0.0))[:, None]
        raw, reward, ended, cut = (x[:, 0] for x in self._batch.simulators.step(applied))
        obs, broken = self._seen(raw)
        broken |= self._batch.simulators.diverged[:, 0] | ~np.isfinite(reward)
        obs = np.where((ran & ~broken)[:, None], obs, self.obs)
        stepped = Stepped(
            obs=obs,
            reward=np.where(ran & ~broken, reward, 0.0).astype(np.float32),
            terminated=ran & ended & ~broken,
            truncated=ran & ((cut & ~ended) | broken),
        )
        self.obs = obs.copy()
        for row in np.flatnonzero(ran).tolist():
            self._at[row].value += float(stepped.reward[row])
            self._at[row].length += 1
            number = self._at[row].segment.number
            self.steps_of[number] = self.steps_of.get(number, 0) + 1
        ended, cut = stepped.terminated, stepped.truncated
        self._end(np.flatnonzero(ended), terminated=True)
        self._end(np.flatnonzero(cut & broken), broken=True)
        self._end(np.flatnonzero(cut & ~broken))
        return stepped

    def start(self) -> None:
        """Begin the next episodes in rows that are over, as many as the budget has left.

        Raises:
            TaskError: Some go on, and these simulators cannot restart single rows.
        """
        free = np.flatnonzero(~self.running).tolist()
        begun = []
        for row, turn in zip(free, self._upcoming, strict=False):
            self._at[row] = _Row(*turn)
            begun.append(row)
        if len(begun) == self.rows:
            self._before_s += self._batch.physics_s
            self._batch.simulators.close()
            self._open_all()
        elif begun:
            rngs = [np.random.default_rng(self._rng.integers(2**62)) for _ in begun]
            tasks, rows = [self._at[row].segment.task for row in begun], np.array(begun)
            self.obs[rows], broken = self._seen(self._batch.simulators.restart(rows, tasks, rngs))
            self.running[rows] = True
            self._end(rows[broken], broken=True)

    def _open_all(self) -> None:
        """Simulators for the episodes that all rows are to begin."""
        self._batch = self._open([row.segment.task for row in self._at])
        raw = self._batch.simulators.reset(int(self._rng.integers(2**62)))
        self.obs, broken = self._seen(raw[:, 0])
        """``[E, O]``: what each row sees now."""
        self.running = np.ones(self.rows, dtype=bool)
        """``[E]``: rows whose episode goes on."""
        self._end(np.flatnonzero(broken), broken=True)

    def _seen(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw observations ``[n, O]`` as agents are shown them, and where they were not finite."""
        shown, broken = self._batch.seen(raw[:, None])
        return shown[:, 0], broken[:, 0]

    def _end(self, rows: np.ndarray, terminated: bool = False, broken: bool = False) -> None:
        """Write down the episodes of some rows, which are over."""
        success = self._batch.simulators.success
        for row in rows.tolist():
            reached = None if success is None else bool(success[row, 0])
            self.finished.append(self._at[row].told(self.purpose, reached, terminated, broken))
        self.running[rows] = False
