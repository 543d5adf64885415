"""Checks on single Gymnasium environments: others' checkers, and a task written over another."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import cast

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from envs.checks.finding import Finding, Subject, failed, ok, skipped, warning
from envs.checks.recording import explore
from envs.gym_tasks import GymTasks
from envs.parallel.rows import SerialRows
from envs.task import Task
from envs.wrapped.env import TaskEnv
from envs.wrapped.make import hint

# What checkers say of nearly every environment, and what makes no difference here.
_NO_MATTER = (
    "is -infinity",
    "is infinity",
    "symmetric and normalized space",
    "symmetric and normalized Box",
    "different from the unwrapped version",
    "not inheriting from",
    "use_render",
    "render_modes",
    "render_mode",
)


def gymnasium_checker(subject: Subject) -> Finding:
    """Gymnasium's ``check_env``, on the environment without its wrappers."""
    return foreign_checker(subject, lambda env: check_env(env.unwrapped, skip_render_check=True))


def foreign_checker(subject: Subject, check: Callable[[gymnasium.Env], None]) -> Finding:
    """What another library's checker raises is a failure, what it warns of a warning."""
    if subject.make_env is None:
        return skipped("the family has no single Gymnasium environment")
    with contextlib.closing(subject.make_env(subject.tasks[0])) as env:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(env)
    said = [str(each.message).partition("\n")[0] for each in caught]
    said = list(dict.fromkeys(each for each in said if not any(n in each for n in _NO_MATTER)))
    if said:
        more = f" (and {len(said) - 1} more)" if said[1:] else ""
        return warning(f"{said[0]}{more}", "other libraries may refuse or misread the environment")
    return ok("passed")


def task_over_another(subject: Subject) -> Finding:
    """One environment: a task written over another leaves nothing of it.

    That writing it twice is writing it once is seen by all checks of repeatability, since a task is
    written before every reset.
    """
    family = subject.family
    if not isinstance(family, GymTasks) or family.vectorized:
        return skipped("not an environment that tasks are written into one by one")
    if len(subject.tasks) < 2:
        return skipped("the family has one task only")
    for one, other in (subject.tasks, subject.tasks[::-1]):
        if found := _over_another(subject, family, one, other):
            return found
    return ok("identical to a fresh environment after another task")


def _over_another(subject: Subject, family: GymTasks, one: Task, other: Task) -> Finding | None:
    make = functools.partial(family.make, one.values)
    with contextlib.closing(SerialRows([make], [family.label(one)], family.raw_obs_size)) as rows:
        env = cast(TaskEnv, rows.envs[0])
        fresh = _played(rows, subject)
        env.set_task(other.values)
        _played(rows, subject)
        env.set_task(one.values)
        back = _played(rows, subject)
    differing = np.flatnonzero((fresh != back).any(axis=1))
    if not len(differing):
        return None
    return failed(
        f"task {family.label(one)!r}, then {family.label(other)!r}, then the first again: the "
        f"transitions differ from step {differing[0]} on",
        "something of the other task is left: reset() or the setter must compute all that depends "
        "on the parameters anew",
    )


def success_key(subject: Subject) -> Finding:
    """The entry of ``info`` that is named to tell of success is there."""
    family = subject.family
    if not isinstance(family, GymTasks) or family.vectorized or family.success_key is None:
        return skipped("no success_key is given")
    with contextlib.closing(family.make(subject.tasks[0].values)) as env:
        known = set(env.env.reset(seed=subject.seed)[1])
        for action in explore(family, subject.steps, 1, 1, subject.seed)[:, 0, 0]:
            _, _, terminated, truncated, info = env.env.step(env.action.to_env(action))
            known |= info.keys()
            if terminated or truncated:
                break
    if family.success_key not in known:
        return failed(
            f"{family.success_key!r} is not in the info of reset() and {subject.steps} steps",
            f"success_key names an entry of info{hint(family.success_key, known)}",
        )
    return ok(f"{family.success_key!r} is in info")


def _played(rows: SerialRows, subject: Subject) -> np.ndarray:
    """One episode: ``[H + 1, O + 3]``."""
    steps = [np.concatenate([rows.reset([subject.seed])[0], np.zeros(3)])]
    running = np.ones(1, dtype=bool)
    for action in explore(subject.family, subject.steps, 1, 1, subject.seed)[:, 0]:
        now = rows.step(action, running)
        steps.append(np.concatenate([now.obs[0], now.reward, now.terminated, now.truncated]))
        running = running & ~(now.terminated | now.truncated | now.diverged)
    return np.stack(steps)
