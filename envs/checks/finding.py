"""What is checked, a family with some of its tasks and episodes, and what a check says of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import gymnasium
import numpy as np

from envs.checks.recording import Recording, explore, opened, record
from envs.task import Task, TaskDistribution

Status = Literal["ok", "warning", "failed", "skipped"]
MakeEnv = Callable[[Task], gymnasium.Env]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    """Of the check, in words."""
    status: Status
    """``failed``: learning on the family would be wrong; ``warning``: probably not as intended."""
    detail: str
    """What was seen, in numbers."""
    suggestion: str = ""
    """Likely cause and what to change; empty if there is nothing to do."""


def ok(detail: str) -> Finding:
    """All is well; whoever runs the checks adds the name."""
    return Finding("", "ok", detail)


def warning(detail: str, suggestion: str) -> Finding:
    """Probably not as intended."""
    return Finding("", "warning", detail, suggestion)


def failed(detail: str, suggestion: str) -> Finding:
    """Wrong."""
    return Finding("", "failed", detail, suggestion)


def skipped(detail: str) -> Finding:
    """Not applicable."""
    return Finding("", "skipped", detail)


@dataclass
class Subject:
    """A family under check. Recordings are made when first asked for and shared by the checks."""

    family: TaskDistribution
    episodes: int = 3
    """E, parallel episodes of a task."""
    seed: int = 0
    """Of tasks, starts and actions."""
    rows: int = 64
    """Simulators in the survey."""
    most_steps: int = 200
    """Longest recording, where nothing asks for whole episodes."""
    values: int = 4
    """How many other values of a parameter are tried."""
    many: int = 32
    """Episodes in which an effect is looked for at last before it is called missing."""
    make_env: MakeEnv | None = None
    """Makes a Gymnasium environment that stays at a task; None: there is none to be checked."""
    _kept: dict[tuple[str, int], Recording] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> int:
        """H of the recordings."""
        return min(self.family.horizon, self.most_steps)

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """Two tasks, if the family has two."""
        return self.family.sample(2, np.random.default_rng(self.seed), distinct=True)

    @functools.cached_property
    def twice(self) -> tuple[Recording, Recording]:
        """The same seed and actions twice over in the same simulators."""
        with opened(self.family, self.tasks, self.episodes) as simulators:
            first, again = (record(simulators, self.actions, self.seed) for _ in range(2))
        return first, again

    @functools.cached_property
    def actions(self) -> np.ndarray:
        """The actions of ``twice``, ``[H, T, E, A]``."""
        return explore(self.family, self.steps, len(self.tasks), self.episodes, self.seed)

    @functools.cached_property
    def whole(self) -> Recording:
        """Whole episodes of the tasks."""
        shape = len(self.tasks), self.episodes
        with opened(self.family, self.tasks, self.episodes) as simulators:
            actions = explore(self.family, self.family.horizon, *shape, self.seed)
            return record(simulators, actions, self.seed)

    @functools.cached_property
    def survey_tasks(self) -> list[Task]:
        """The tasks of the survey."""
        count = max(self.rows // self.episodes, 1)
        return self.family.sample(count, np.random.default_rng([self.seed, 1]))

    @functools.cached_property
    def survey(self) -> Recording:
        """Many tasks under random actions."""
        tasks, family = self.survey_tasks, self.family
        shape = self.steps, len(tasks), self.episodes, family.action_size
        actions = np.random.default_rng([self.seed, 2]).uniform(*family.action_range, shape)
        with opened(family, tasks, self.episodes) as simulators:
            return record(simulators, actions, self.seed)

    def play(self, task: Task, copies: int, beside: Task | None = None) -> Recording:
        """One task; equal starts and actions for all. Another may be played by turns with it."""
        actions = explore(self.family, self.steps, 1, copies, self.seed)
        with opened(self.family, [task], copies) as simulators:
            if beside is None:
                return record(simulators, actions, self.seed)
            with opened(self.family, [beside], copies) as others:
                return record(simulators, actions, self.seed, beside=others)

    def reference(self, task: Task, copies: int) -> Recording:
        """``play``, kept because many are compared with it."""
        if (task.id, copies) not in self._kept:
            self._kept[task.id, copies] = self.play(task, copies)
        return self._kept[task.id, copies]
