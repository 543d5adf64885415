"""Checks on episodes: how they end, what they pay, whether they blow up, how fast they are."""

from __future__ import annotations

import numpy as np

from envs.checks.finding import Finding, Subject, failed, ok, skipped, warning

_LARGE_REWARD = 1e3
_MANY_BLOWN_UP = 0.2
_FEW_STEPS = 5
_SLOW = 200.0
"""Steps per second."""


def horizon(subject: Subject) -> Finding:
    """Episodes are truncated at the horizon and not before, unless the task ends them."""
    whole, limit = subject.whole, subject.family.horizon
    open_ended = whole.running[-1] & ~(whole.terminated | whole.truncated | whole.diverged[1:])[-1]
    if open_ended.any():
        return failed(
            f"{int(open_ended.sum())} of {open_ended.size} episodes were neither truncated nor "
            f"terminated at step {limit}",
            "truncated must be true once `horizon` steps are made",
        )
    early = whole.ended(whole.truncated) & (whole.lengths < limit) & ~whole.blown_up
    if early.any():
        steps = int(whole.lengths[early].min())
        return warning(
            f"truncated after {steps} steps although horizon is {limit}",
            f"the environment has a limit of its own: horizon: {steps}, or give it a longer one "
            f"(kwargs: {{max_episode_steps: {limit}}})",
        )
    return ok(f"no episode is longer than {limit} steps, none is truncated before")


def ends_of_the_task(subject: Subject) -> Finding:
    """A limit of time is not passed off as an end of the task (terminated)."""
    whole = subject.whole
    ended, lengths = whole.ended(whole.terminated), whole.lengths
    steps = int(lengths.max())
    if lengths.size >= 4 and ended.all() and steps > 1 and (lengths == steps).all():
        return warning(
            f"every episode terminated after exactly {steps} steps",
            "a limit of time reported as terminated: return it as truncated, or the value of the "
            "states there will be learned wrongly",
        )
    return ok(
        f"{int(ended.sum())} of {ended.size} episodes terminated, {int((~ended).sum())} were "
        "truncated"
    )


def early_ends(subject: Subject) -> Finding:
    """Random actions leave enough of an episode to learn from."""
    survey = subject.survey
    ended = survey.ended(survey.terminated)
    length = float(survey.lengths.mean())
    detail = (
        f"{ended.mean():.0%} of the episodes terminated within {subject.steps} steps under random "
        f"actions; mean length {length:.1f}"
    )
    if ended.any() and length < _FEW_STEPS:
        return warning(
            detail,
            "little can be learned before the end: start further from it, or end episodes later",
        )
    reward = survey.reward[survey.running]
    # Whether the last step of an episode costs as much as going on from there would.
    last = survey.reward[survey.running & survey.terminated]
    left = subject.steps - float(survey.lengths[ended].mean()) if ended.any() else 0.0
    if len(last) and reward.max() < 0 and last.mean() > reward.mean() * max(left, 1.0):
        return warning(
            f"{detail}; the reward is always negative and its sum ends with the episode",
            "the way to the highest return may be to fail early: add a bonus for each step "
            "survived, or a penalty for termination",
        )
    return ok(detail)


def reward(subject: Subject) -> Finding:
    """The reward varies, and is of a size that can be learned from."""
    values = subject.survey.reward[subject.survey.running]
    if not len(values):
        return skipped("no step was made")
    detail = (
        f"mean {values.mean():.3g}, sd {values.std():.3g} per step, from {values.min():.3g} to "
        f"{values.max():.3g}, under random actions"
    )
    if values.min() == values.max():
        if values[0] and subject.survey.ended(subject.survey.terminated).any():
            return ok(f"always {values[0]:g}: the return is how long an episode lasts")
        return warning(
            f"always {values[0]:g} under random actions",
            "nothing to learn from unless luck finds more: is it sparse? Add a dense part, widen "
            "what counts, or start nearer to the goal",
        )
    if np.abs(values).max() > _LARGE_REWARD:
        return warning(
            detail,
            f"rewards beyond {_LARGE_REWARD:g} drown the others: scale it (wrappers: "
            "[{path: 'gymnasium.wrappers:TransformReward', ...}]) or bound the term that grows",
        )
    return ok(detail)


def stability(subject: Subject) -> Finding:
    """Random actions do not blow the simulation up."""
    blown = subject.survey.blown_up
    share = float(blown.mean())
    if not share:
        return ok(f"none of {blown.size} episodes blew up under random actions")
    worst = subject.survey_tasks[int(blown.mean(axis=1).argmax())]
    detail = (
        f"{share:.1%} of {blown.size} episodes blew up under random actions, most of them in task "
        f"{subject.family.label(worst)!r}"
    )
    remedy = (
        "narrow the ranges of its parameters, lower the physics' timestep, or give it an implicit "
        "integrator (integrator: implicitfast)"
    )
    return failed(detail, remedy) if share >= _MANY_BLOWN_UP else warning(detail, remedy)


def speed(subject: Subject) -> Finding:
    """Steps per second under random actions."""
    survey = subject.survey
    rate = float(survey.running.sum()) / max(survey.seconds, 1e-9)
    detail = f"{rate:,.0f} steps/s with {survey.lengths.size} rows"
    if rate < _SLOW:
        return warning(
            f"{detail}; a million take {1e6 / rate / 3600:.1f} h",
            "workers: 2 or more (one per core) steps a Gymnasium environment in parallel; fewer "
            "physics steps per action help too",
        )
    return ok(detail)


def success(subject: Subject) -> Finding:
    """Whether the family tells of success."""
    reached = subject.survey.success
    if reached is None:
        return ok("not told: evaluation shows returns only (success_key names the entry of info)")
    share = float(reached.mean())
    if share == 1.0:
        return warning(
            "every episode succeeds under random actions",
            "success_key names an entry that is always true, or the goal is too easy",
        )
    return ok(f"{share:.0%} of the episodes succeed under random actions")
