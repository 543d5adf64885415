"""Whether the first observation gives hidden parameters away: ridge regression, cross-validated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.checks.finding import Finding, Subject, ok, skipped, warning
from envs.checks.recording import opened
from envs.task import Task

_TASKS = 200
_AT_ONCE = 50
"""Simulators open at a time."""
_GIVEN_AWAY = 0.5
"""R2 above which a parameter is said to be given away."""
_FOLDS = 5
_MOST_FEATURES = 10
_PENALTY = 0.01
"""Of ridge regression, per task."""


def given_away(subject: Subject) -> Finding:
    """Whether the first observation tells the hidden parameters, so that nothing is to be found."""
    family = subject.family
    names = [name for name, param in family.params.items() if param.hidden and not param.inert]
    rng = np.random.default_rng([subject.seed, 3])
    tasks = family.sample(_TASKS, rng)
    values = family.describe(tasks)[:, [list(family.params).index(name) for name in names]]
    varied = [i for i in range(len(names)) if values[:, i].std() > 0]
    if not varied:
        return skipped("no hidden parameter varies")
    obs = _first_observations(subject, tasks)
    scores = {names[i]: _guessed(obs, values[:, i]) for i in varied}
    name, (score, entry) = max(scores.items(), key=lambda item: item[1][0])
    detail = f"R2 {max(score, 0.0):.2f} of {name!r} from the first observation"
    if score > _GIVEN_AWAY:
        return warning(
            f"{detail}, most of it from entry {entry}",
            "a hidden task need not be found out: take it out of the observation (wrappers:), or "
            f"declare params.{name}.hidden: false",
        )
    return ok(f"{detail} at most")


def _first_observations(subject: Subject, tasks: Sequence[Task]) -> np.ndarray:
    """``[T, O]``, without the parameters that are told."""
    obs = []
    for i in range(0, len(tasks), _AT_ONCE):
        with opened(subject.family, tasks[i : i + _AT_ONCE]) as simulators:
            obs.append(simulators.reset(subject.seed + i)[:, 0, : subject.family.raw_obs_size])
    return np.concatenate(obs)


def _guessed(obs: np.ndarray, target: np.ndarray) -> tuple[float, int]:
    """R2 of ``target [n]`` predicted on tasks not fitted to, and the most telling entry of obs.

    The features are the observation's numbers and their squares; only those that go best with the
    target are used, since few tasks would be drowned in the many numbers of some robots.
    """
    features = np.concatenate([obs, obs**2], axis=1)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    fold = np.arange(len(target)) % _FOLDS
    predicted = np.zeros_like(target)
    for i in range(_FOLDS):
        fit, rest = fold != i, fold == i
        middle = target[fit].mean()
        best = np.argsort(-np.abs((target[fit] - middle) @ features[fit]))[:_MOST_FEATURES]
        x, y = features[fit][:, best], target[fit] - middle
        weights = np.linalg.solve(x.T @ x + _PENALTY * len(y) * np.eye(len(best)), x.T @ y)
        predicted[rest] = middle + features[rest][:, best] @ weights
    error = np.square(target - predicted).sum() / np.square(target - target.mean()).sum()
    entry = int(np.abs((target - target.mean()) @ features).argmax()) % obs.shape[1]
    return float(1.0 - error), entry
