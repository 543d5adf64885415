"""Is a family of tasks what a learner needs? Checks that say what was seen and what to change.

``check_family`` runs them all; ``envs.testing.FamilyContract`` runs the quick ones as tests.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gymnasium

from envs.checks import episodes as check_episodes
from envs.checks import gymnasium_checkers as check_gym
from envs.checks import interface as check_interface
from envs.checks import tasks as check_tasks
from envs.checks.finding import Finding, MakeEnv, Status, Subject, failed, skipped
from envs.checks.leak import given_away
from envs.gym_tasks import GymTasks
from envs.parallel.rows import RowError
from envs.task import Task, TaskDistribution, TaskError

__all__ = ["Finding", "Status", "Subject", "check_family", "checks", "findings", "run_check"]

Check = Callable[[Subject], Finding]

ENVIRONMENT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,  # TaskError and RowError among them
    gymnasium.error.Error,
)
"""What families raise, and environments and their checkers where nothing stands in between."""

_EPISODES: tuple[Check, ...] = (
    check_interface.sizes,
    check_interface.finite_numbers,
    check_interface.observations_in_their_space,
    check_interface.same_seed_same_episode,
    check_interface.starts,
    check_episodes.horizon,
    check_episodes.ends_of_the_task,
    check_interface.own_arrays,
    check_interface.action_bounds,
)
_TASKS: tuple[Check, ...] = (
    check_tasks.plain_values,
    check_tasks.splits,
    check_tasks.coming_back,
    check_gym.task_over_another,
)
_USE: tuple[Check, ...] = (
    given_away,
    check_episodes.reward,
    check_gym.success_key,
    check_episodes.success,
    check_episodes.early_ends,
    check_episodes.stability,
    check_episodes.speed,
    check_gym.gymnasium_checker,
)
_REPEATABLE = "same seed same episode"
_COMPARING = ("own arrays", "action bounds", "coming back", "task over another")
_LOCATION = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def check_family(
    family: TaskDistribution,
    episodes: int = 3,
    seed: int = 0,
    extra_checks: Mapping[str, Callable[[gymnasium.Env], None]] | None = None,
    make_env: MakeEnv | None = None,
) -> list[Finding]:
    """Every check's finding.

    Args:
        family: What is checked.
        episodes: Parallel episodes of a task.
        seed: Of everything random.
        extra_checks: Checkers of other libraries by name, each called with one environment; what
            they raise is a failure, what they warn of a warning.
        make_env: A task's Gymnasium environment for these checkers; ``GymTasks`` need none.
    """
    if make_env is None and isinstance(family, GymTasks) and not family.vectorized:
        make_env = functools.partial(_plain_env, family)
    subject = Subject(family, episodes, seed, make_env=make_env)
    return list(findings(subject, checks(family, extra_checks or {})))


def checks(
    family: TaskDistribution, extra_checks: Mapping[str, Callable[[gymnasium.Env], None]]
) -> dict[str, Check]:
    """All checks of a family by name, in the order of their findings."""
    effects: dict[str, Check] = {
        f"effect of {name}": functools.partial(check_tasks.effect, name=name)
        for name in family.params
    }
    foreign: dict[str, Check] = {
        name: functools.partial(check_gym.foreign_checker, check=check)
        for name, check in extra_checks.items()
    }
    return {**_named(_EPISODES), **effects, **_named(_TASKS), **_named(_USE), **foreign}


def findings(subject: Subject, run: Mapping[str, Check]) -> Iterator[Finding]:
    """One finding after the other, as they come. What failed already is not told again."""
    failures: dict[str, str] = {}
    for name, check in run.items():
        broken = {"sizes", *([_REPEATABLE] if _compares(name) else [])} & set(failures.values())
        if broken:
            found = skipped(f"needs {broken.pop()!r}, which failed")
        else:
            found = run_check(subject, check)
        if found.status == "failed":
            first = failures.setdefault(found.detail, name)
            found = found if first == name else skipped(f"fails as {first!r} does")
        yield dataclasses.replace(found, name=name)


def _compares(name: str) -> bool:
    """Whether a check compares episodes of equal seeds, so that noise would look like a fault."""
    return name.startswith("effect of ") or name in _COMPARING


def run_check(subject: Subject, check: Check) -> Finding:
    """The check's finding; a failure with its text if an error is raised."""
    try:
        return check(subject)
    except ENVIRONMENT_ERRORS as error:
        text, _, cause = str(error).partition("\n\n")[0].partition("\nLikely cause: ")
        if isinstance(error, TaskError):
            trace = error.traceback if isinstance(error, RowError) else ""
        else:
            text = f"{type(error).__name__}: {text}"
            trace = "".join(traceback.format_exception(error))
        found = list(_LOCATION.finditer(trace))
        where = f" ({Path(found[-1]['file']).name}, line {found[-1]['line']})" if found else ""
        return failed(text + where, cause or "the message says what; the line, where")


def _named(group: tuple[Check, ...]) -> dict[str, Check]:
    return {check.__name__.replace("_", " "): check for check in group}


def _plain_env(family: GymTasks, task: Task) -> gymnasium.Env:
    return family.make(task.values).env
