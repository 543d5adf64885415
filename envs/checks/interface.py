"""Checks on what goes in and out: sizes, numbers, bounds, seeds, and whose the arrays are."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from envs.checks.finding import Finding, Subject, failed, ok, skipped, warning
from envs.checks.recording import Recording, changes, opened, record, told
from envs.gym_tasks import GymTasks
from envs.param import TaskError


def sizes(subject: Subject) -> Finding:
    """The sizes that the family declares are those that come out; action bounds are finite."""
    family = subject.family
    low, high = family.action_range
    if low.shape != (family.action_size,) or high.shape != low.shape:
        return failed(
            f"action_range has the shapes {low.shape} and {high.shape}, action_size is "
            f"{family.action_size}",
            "action_range gives lowest and highest action, [A] each",
        )
    wrong = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low < high)))
    if len(wrong):
        i = wrong[0]
        return failed(
            f"action {i} ranges from {low[i]} to {high[i]}",
            "actions need finite bounds, low below high; for a Gymnasium environment give "
            "action_limits: [low, high]",
        )
    found = subject.twice[0].obs.shape[-1]
    if found != family.obs_size:
        return failed(
            f"observations have {found} numbers, obs_size is {family.obs_size}",
            "raw_obs_size must count what the simulators return",
        )
    return ok(
        f"{found} observations, {len(low)} actions within [{low.min():g}, {high.max():g}], "
        f"{family.horizon} steps"
    )


def finite_numbers(subject: Subject) -> Finding:
    """No observation or reward is infinite or not a number."""
    survey = subject.survey
    for what, values, first in (("observation", survey.obs, 0), ("reward", survey.reward, 1)):
        seen = survey.running if first else _seen(survey)
        bad = np.argwhere(~np.isfinite(values) & seen.reshape(*seen.shape, *[1] * (what[0] == "o")))
        if len(bad):
            step, task, _, *entry = bad[0].tolist()
            where = f"{what} {entry[0]}" if entry else what
            return failed(
                f"{where} is {values[tuple(bad[0])]} at step {step + first} of task "
                f"{subject.family.label(subject.survey_tasks[task])!r}",
                "a division by zero, or a simulation that blew up without being flagged: set "
                "diverged",
            )
    return ok(f"{int(survey.running.sum())} steps")


def observations_in_their_space(subject: Subject) -> Finding:
    """What a Gymnasium environment observes lies in the space that it declares."""
    if not isinstance(subject.family, GymTasks):
        return skipped("native families declare no bounds of observations")
    survey = subject.survey
    for name, where, low, high in subject.family.probe.observation.table():
        part = survey.obs[..., where]
        slack = 1e-5 * np.maximum(1.0, np.abs(part))  # spaces hold float32
        low, high = np.ravel(low), np.ravel(high)
        beyond = ((part < low - slack) | (part > high + slack)) & _seen(survey)[..., None]
        if beyond.any():
            step, task, copy, i = np.argwhere(beyond)[0].tolist()
            return warning(
                f"{name!r}, entry {i}: {part[step, task, copy, i]:.4g} at step {step}, outside of "
                f"[{low[i]:g}, {high[i]:g}]",
                "widen observation_space to what the environment can show, or clip there",
            )
    return ok("all within the declared bounds")


def same_seed_same_episode(subject: Subject) -> Finding:
    """Equal seeds and actions give equal episodes, in the same simulators and in fresh ones."""
    first, again = subject.twice
    with opened(subject.family, subject.tasks, subject.episodes) as simulators:
        fresh = changes(first, record(simulators, subject.actions, subject.seed))
    repeated = changes(first, again)
    if fresh:
        return failed(
            f"the same seed and actions gave another episode: {told(fresh)}",
            "random numbers that the seed does not reach: call super().reset(seed=seed) and draw "
            "from self.np_random alone, never from np.random, random or the clock",
        )
    if repeated:
        return failed(
            f"the second episode of a simulator is not its first again: {told(repeated)}",
            "reset() leaves something of the last episode behind; set every attribute that step() "
            "changes, the task's among them",
        )
    return ok(f"identical over {subject.steps} steps, in the same simulators and in fresh ones")


def starts(subject: Subject) -> Finding:
    """Whether episodes of other seeds start elsewhere."""
    first = subject.twice[0].obs[0]
    with opened(subject.family, subject.tasks, subject.episodes) as simulators:
        others = [simulators.reset(subject.seed + i) for i in (1, 2, 3)]
    spread = max(float(np.abs(other - first).max()) for other in others)
    if spread == 0:
        return ok("every episode of a task starts alike; the seed does not change the start")
    return ok(f"other seeds start elsewhere (by up to {spread:.3g})")


def own_arrays(subject: Subject) -> Finding:
    """What is handed out belongs to the caller: it does not change later, and may be changed."""
    for name, step in subject.twice[0].overwritten:
        return failed(
            f"{name} of step {step} changed after it had been returned",
            "return a copy: np.array(self._obs)",
        )
    with opened(subject.family, subject.tasks, subject.episodes) as simulators:
        spoiled = record(simulators, subject.actions, subject.seed, spoil=True)
    if found := changes(subject.twice[0], spoiled):
        return failed(
            f"writing into returned arrays or into past actions changes what comes next: "
            f"{told(found)}",
            "the simulator goes on using an array that it has handed out or was given; copy it",
        )
    return ok("observations, rewards and flags are the caller's to keep")


def action_bounds(subject: Subject) -> Finding:
    """Actions beyond the bounds act like those at the bounds."""
    family = subject.family
    if isinstance(family, GymTasks):
        kinds = {type(leaf.space) for leaf in family.probe.action.leaves}
        if kinds != {Box}:
            return skipped("actions are choices: of the numbers given, the largest decides")
    low, high = family.action_range
    beyond = (low + high) / 2 + 2 * (subject.actions - (low + high) / 2)
    with opened(family, subject.tasks, subject.episodes) as simulators:
        clipped = record(simulators, np.clip(beyond, low, high), subject.seed)
        try:
            found = changes(clipped, record(simulators, beyond, subject.seed))
        except TaskError as error:
            first_line = str(error).partition("\n")[0]
            return ok(f"actions beyond the bounds are refused: {first_line}")
    if "observation" in found or "end" in found:
        return warning(
            f"actions beyond the bounds go further than those at the bounds: {told(found)}",
            "Engram clips actions, others may not: clip them in step(), or declare the bounds that "
            "are meant",
        )
    if found:
        return ok(
            f"beyond the bounds the motion is that at the bounds; only the {told(found)} (Engram "
            "clips actions before the environment sees them)"
        )
    return ok("actions beyond the bounds act like those at the bounds")


def _seen(recording: Recording) -> np.ndarray:
    """``[H + 1, T, E]`` bool: observations of running episodes, the last one too."""
    return np.concatenate([~recording.diverged[:1], recording.running]) & ~recording.diverged
