"""Aggregates of normalised scores ``[..., runs, tasks]``, as reviewers know them from rliable.

Definitions of Agarwal et al. (2021). Scores that are NaN make an aggregate NaN.
"""

from __future__ import annotations

import numpy as np

from agent.continual.statistics.intervals import Array, expanded_band


def mean(scores: Array) -> Array:
    """Mean over runs and tasks."""
    return scores.mean(axis=(-2, -1))


def iqm(scores: Array) -> Array:
    """Interquartile mean: of all (run, task) scores, without a quarter at either end.

    The number left out is rounded down.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # NaN is sorted last
    cut = flat.shape[-1] // 4
    middle = flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)
    return np.where(np.isnan(flat[..., -1]), np.nan, middle)


def optimality_gap(scores: Array, target: float = 1.0) -> Array:
    """How far scores fall short of ``target`` on average; what is beyond it does not make up."""
    return target - np.minimum(scores, target).mean(axis=(-2, -1))


def improvement(first: Array, second: Array) -> float:
    """Probability that a run of the first scores above one of the second, meaned over tasks.

    Mann and Whitney's U over the number of pairs; ties count half. Both are ``[runs, tasks]``.
    """
    if np.isnan(first).any() or np.isnan(second).any():
        return np.nan
    difference = first[:, None, :] - second[None, :, :]
    return float((np.sign(difference) / 2 + 0.5).mean())


def paired_improvement(first: Array, second: Array) -> float:
    """Share of pairs in which the first is above; ties count half. Both are ``[n]``, in order."""
    difference = first - second
    return float((np.sign(difference) / 2 + 0.5).mean())


def profile(scores: Array, thresholds: Array) -> Array:
    """Performance profile ``[..., thresholds]``: the share of (run, task) scores above each."""
    flat = scores.reshape(*scores.shape[:-2], 1, -1)
    above = (flat > thresholds[:, None]).mean(axis=-1)
    return np.where(np.isnan(flat).any(axis=-1), np.nan, above)


def profile_band(
    scores: Array,
    thresholds: Array,
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[Array, Array]:
    """Pointwise band of a profile, whole runs drawn again; as wide as Student's t would have it."""
    of_run = np.stack([profile(run[None], thresholds) for run in scores])  # [runs, thresholds]
    runs = len(scores)
    drawn = of_run[rng.integers(runs, size=(draws, runs))].mean(axis=1)
    return expanded_band(drawn, runs, level)
