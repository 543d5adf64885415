"""Checks on tasks: what each parameter changes, coming back to a task, splits, plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from envs.checks.finding import Finding, Subject, failed, ok, skipped, warning
from envs.checks.recording import Change, changes, explore, opened, told
from envs.param import Param
from envs.task import SPLITS, Split, Task
from envs.vector_tasks import VectorTasks

_HARDLY = 1e-7
"""A change of less than this share of the largest number is hardly one."""
_COPY = "does the constructor make a copy that is used instead?"
_NOMINAL_ZERO = "is its nominal value 0, so that no factor changes it?"


def effect(subject: Subject, name: str) -> Finding:
    """The same seed and actions under other values of a parameter must not give the same."""
    param = subject.family.params[name]
    if not subject.family.independent_params:
        return skipped("the parameters of this family are drawn together, not one by one")
    found = _effects(subject, name, subject.tasks[:1], subject.episodes)
    if param.inert:
        return _inert(name, found)
    if not found:  # it may take luck to meet it: a sparse reward, or a task that hides the effect
        found = _effects(subject, name, subject.tasks, subject.many)
    if not found:
        cause = _NOMINAL_ZERO if param.op == "scale" else _COPY
        return failed(
            f"{len(_others(subject, name, subject.tasks[0]))} other values of {name!r} gave "
            f"identical transitions in {subject.many} episodes of {subject.steps} steps",
            f"params.{name}.to: {param.to} reaches nothing that step() or reset() uses; {cause} If "
            f"that is as it should be: params.{name}.inert: true",
        )
    value, change = max(found.items(), key=lambda item: _size(subject, item[1]))
    detail = (
        f"{value:g} instead of {subject.tasks[0].values[name]:g} {_kind(change)}: {told(change)}"
    )
    if _size(subject, change) < _HARDLY:
        return warning(detail, f"hardly a change at all: widen the range of params.{name}")
    return ok(detail)


def coming_back(subject: Subject) -> Finding:
    """Task A beside B, after B, or in a row that had B in between, is task A."""
    if len(subject.tasks) < 2:
        return skipped("the family has one task only")
    one, other = subject.tasks
    first = subject.play(one, subject.episodes)
    beside = changes(first, subject.play(one, subject.episodes, beside=other))
    if found := beside or changes(first, subject.play(one, subject.episodes)):
        return failed(
            f"a task {'beside' if beside else 'after'} another is not what it is alone: "
            f"{told(found)}",
            "something that all simulators share is written to (a class attribute, a cached "
            "model); give each its own copy",
        )
    with opened(subject.family, [one]) as simulators:
        if not _can_restart(subject, one):
            return ok("a task beside or after another is what it is alone")
        fresh = _restarted(simulators, subject, one)
        _restarted(simulators, subject, other)
        last = _restarted(simulators, subject, one)
    if not np.array_equal(fresh, last, equal_nan=True):
        return failed(
            "a row that goes from a task to another and back does not start as before",
            "restart() must make nominal what the last task changed, then apply the new one",
        )
    return ok("a task beside or after another is what it is alone; so is a row that comes back")


def splits(subject: Subject) -> Finding:
    """Train, validation and held-out tasks are disjoint."""
    family = subject.family
    rng = np.random.default_rng(subject.seed)
    beyond: tuple[Split, ...] = ("ood",) if any(p.ood for p in family.params.values()) else ()
    names = (*SPLITS, *beyond)
    drawn = {name: set(family.sample(20, rng, name)) for name in names}
    apart = names if family.holds_out else beyond
    for name in apart:
        wrong = [task for task in drawn[name] if family.split_of(task.values) != name]
        if wrong:
            return failed(
                f"task {family.label(wrong[0])!r} was drawn for {name!r} but belongs to "
                f"{family.split_of(wrong[0].values)!r}",
                "sample() and draw() must keep to split_of()",
            )
    if not family.holds_out:
        return ok("too few different tasks to hold some out: every split is the whole family")
    return ok(f"{', '.join(names)} are disjoint")


def plain_values(subject: Subject) -> Finding:
    """A task is a plain value: it can be written, read, described and printed."""
    family = subject.family
    for task in subject.survey_tasks:
        again = Task(task.family, json.loads(json.dumps(dict(task.values))))
        if again != task or again.id != task.id or set(task.values) != set(family.params):
            return failed(
                f"task {task} is not the same after being written and read, or has other "
                "parameters than its family",
                "draw() must return a float for each of params",
            )
        if not family.label(task).strip():
            return failed(f"task {task} has an empty label", "label() must say what it is")
    described = family.describe(subject.survey_tasks)
    shape = len(subject.survey_tasks), len(family.params)
    if described.shape != shape or np.abs(described).max(initial=0.0) > 1 + 1e-9:
        return failed(
            f"describe() gave {described.shape}, up to {np.abs(described).max(initial=0.0):.3g}; "
            f"expected {shape} within [-1, 1]",
            "draw() must keep to the ranges of params",
        )
    return ok(f"for example {family.label(subject.survey_tasks[0])!r}")


def _inert(name: str, found: Mapping[float, dict[str, Change]]) -> Finding:
    if not found:
        return ok("changes nothing, as declared (inert)")
    value, change = next(iter(found.items()))
    return failed(
        f"declared inert, but {value:g} changes the {told(change)}",
        f"drop params.{name}.inert: true",
    )


def _effects(
    subject: Subject, name: str, bases: list[Task], copies: int
) -> dict[float, dict[str, Change]]:
    """What other values of a parameter change, by value; those that change nothing are left out."""
    columns = subject.family.raw_obs_size  # not the values themselves, where they are told
    found: dict[float, dict[str, Change]] = {}
    for base in bases:
        reference = subject.reference(base, copies)
        for value in _others(subject, name, base):
            task = Task(base.family, {**base.values, name: value})
            if change := changes(reference, subject.play(task, copies), columns):
                found[value] = change
        if found:
            break
    return found


def _others(subject: Subject, name: str, base: Task) -> list[float]:
    """Values of a parameter that differ from the task's, the farthest first."""
    param: Param = subject.family.params[name]
    known = param.choices or [param.low, param.high]
    values = {float(value) for value in known if value is not None} - {base.values[name]}
    if not values and param.neutral is not None:
        values = {param.neutral} - {base.values[name]}
    ordered = sorted(values, key=lambda value: -abs(value - base.values[name]))
    return ordered[: subject.values]


def _kind(change: Mapping[str, Change]) -> str:
    """What a change means for an agent."""
    if set(change) == {"reward"}:
        return "changes the reward alone"
    if "observation" in change and change["observation"].step == 0:
        return "changes the start, or what is seen of it"
    return "changes the dynamics"


def _size(subject: Subject, change: Mapping[str, Change]) -> float:
    """The largest relative change of an observation or a reward."""
    recording = subject.reference(subject.tasks[0], subject.episodes)
    scales = {"observation": np.abs(recording.obs).max(), "reward": np.abs(recording.reward).max()}
    sizes = [
        change[what].size / max(scale, 1e-12) for what, scale in scales.items() if what in change
    ]
    return max(sizes, default=1.0)


def _can_restart(subject: Subject, task: Task) -> bool:
    """Whether the family's own simulators restart single rows."""
    simulators = subject.family.simulate([task], 1)
    simulators.close()
    return type(simulators).restart is not VectorTasks.restart


def _restarted(simulators: VectorTasks, subject: Subject, task: Task) -> np.ndarray:
    """An episode of a row that is given this task: ``[H + 1, O + 2]``."""
    rng = np.random.default_rng(subject.seed)
    first = simulators.restart(np.arange(1), [task], [rng])[0]
    rows = [np.concatenate([first, np.zeros(2)])]
    for action in explore(subject.family, subject.steps, 1, 1, subject.seed):
        obs, *rest = simulators.step(action)
        rows.append(np.concatenate([obs[0, 0], rest[0][0], rest[1][0] | rest[2][0]]))
    return np.stack(rows)
