"""The contract of a family of tasks as tests, to be inherited by the tests of a family of your own.

    class TestMyRobot(FamilyContract):
        def make_family(self):
            return GymTasks(name="my_robot", env_id="my_robot:Cart-v0", horizon=60, params={...})

pytest then runs every ``test_`` method; nothing here needs pytest. What each checks is said by the
check of the same name (``envs.check``), which is run here on few and short episodes.
"""

from __future__ import annotations

import dataclasses

from envs.check import Check, run_check
from envs.checks import episodes as check_episodes
from envs.checks import gymnasium_checkers as check_gym
from envs.checks import interface as check_interface
from envs.checks import tasks as check_tasks
from envs.checks.finding import Subject
from envs.task import TaskDistribution


class FamilyContract:
    """What every family has to keep. Subclass it and define ``make_family``."""

    copies: int = 2
    """Parallel episodes of a task."""
    steps: int = 24
    """Longest episode: longer horizons are cut for the tests."""
    many: int = 32
    """Episodes in which a parameter's effect is looked for at last."""

    def make_family(self) -> TaskDistribution:
        """The family under test, made anew for each test."""
        raise NotImplementedError(f"{type(self).__name__} must define make_family()")

    def test_sizes(self) -> None:
        """Declared sizes are those that come out; actions have finite bounds."""
        self._require(check_interface.sizes)

    def test_numbers_are_finite(self) -> None:
        """Observations and rewards."""
        self._require(check_interface.finite_numbers)

    def test_the_same_seed_gives_the_same_episode(self) -> None:
        """In the same simulators and in fresh ones."""
        self._require(check_interface.same_seed_same_episode)

    def test_arrays_belong_to_the_caller(self) -> None:
        """What was returned does not change, and may be written over."""
        self._require(check_interface.own_arrays)

    def test_episodes_end_at_the_horizon(self) -> None:
        """Truncated there, unless the task has ended them."""
        self._require(check_episodes.horizon)

    def test_every_parameter_matters(self) -> None:
        """Other values give other transitions, but for those that are declared inert."""
        subject = self._subject()
        for name in subject.family.params:
            self._require(lambda subject, name=name: check_tasks.effect(subject, name), subject)

    def test_a_task_is_the_same_after_another(self) -> None:
        """Opened after another, in a row that comes back to it, written over another."""
        subject = self._subject()
        self._require(check_tasks.coming_back, subject)
        self._require(check_gym.task_over_another, subject)

    def test_splits_are_disjoint(self) -> None:
        """Train, validation, held-out and beyond."""
        self._require(check_tasks.splits)

    def test_tasks_are_plain_values(self) -> None:
        """Written, read, described, printed."""
        self._require(check_tasks.plain_values)

    def _subject(self) -> Subject:
        family = self.make_family()
        if family.horizon > self.steps:
            family = dataclasses.replace(family, horizon=self.steps)
        return Subject(family, self.copies, rows=3 * self.copies, values=1, many=self.many)

    def _require(self, check: Check, subject: Subject | None = None) -> None:
        subject = subject or self._subject()
        found = run_check(subject, check)
        if found.status == "failed":
            tasks = ", ".join(subject.family.label(task) for task in subject.tasks)
            raise AssertionError(
                f"{subject.family.id} (tasks {tasks!r}): {found.detail}. {found.suggestion}"
            )
