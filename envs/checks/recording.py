"""Episodes played with given actions and written down whole, to be compared step by step."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from envs.task import Task, TaskDistribution, TaskError, VectorTasks

# Copy c of a task holds each random action for so many steps (None: to the end): what only a
# sustained push reaches would never be met by trembling on the spot.
_HOLDS = (1, None, 10)
_PARTS = ("the observation", "the reward", "terminated", "truncated")


class Change(NamedTuple):
    """How two recordings differ in one respect."""

    step: int
    """First step at which they do; 0 is the reset."""
    size: float
    """Largest difference of a number over all steps."""


@dataclass
class Recording:
    """What T x E simulators gave from a reset on, over H steps."""

    obs: np.ndarray
    """``[H + 1, T, E, O]``; 0 is the reset."""
    reward: np.ndarray
    """``[H, T, E]``."""
    terminated: np.ndarray
    """``[H, T, E]`` bool."""
    truncated: np.ndarray
    """``[H, T, E]`` bool."""
    diverged: np.ndarray
    """``[H + 1, T, E]`` bool; 0 is the reset."""
    success: np.ndarray | None
    """``[T, E]`` bool, or None where the family has no such notion."""
    seconds: float
    """Wall time of the steps."""
    overwritten: list[tuple[str, int]] = field(default_factory=list)
    """Arrays that changed after they had been handed out, with their steps."""

    @functools.cached_property
    def running(self) -> np.ndarray:
        """``[H, T, E]`` bool: steps made within an episode; what comes after its end is void."""
        ended = self.diverged.copy()
        ended[1:] |= self.terminated | self.truncated
        return ~np.logical_or.accumulate(ended, axis=0)[:-1]

    @property
    def lengths(self) -> np.ndarray:
        """``[T, E]`` steps of each episode."""
        return self.running.sum(axis=0)

    @property
    def blown_up(self) -> np.ndarray:
        """``[T, E]`` bool: episodes that diverged."""
        return np.asarray(self.diverged.any(axis=0))

    def ended(self, flag: np.ndarray) -> np.ndarray:
        """``[T, E]`` bool: episodes at whose end ``flag [H, T, E]`` was raised."""
        return np.asarray((flag & self.running).any(axis=0))


@contextlib.contextmanager
def opened(
    family: TaskDistribution, tasks: Sequence[Task], copies: int = 1
) -> Iterator[VectorTasks]:
    """Simulators that are closed at the end of the block."""
    with contextlib.closing(family.open(tasks, copies)) as simulators:
        yield simulators


def explore(family: TaskDistribution, steps: int, tasks: int, copies: int, seed: int) -> np.ndarray:
    """Actions ``[H, T, E, A]`` within the bounds: random, held for a while, or held to the end."""
    low, high = family.action_range
    rng = np.random.default_rng(seed)
    actions = rng.uniform(low, high, (steps, tasks, copies, len(low)))
    for copy in range(copies):
        hold = _HOLDS[copy % len(_HOLDS)] or steps
        actions[:, :, copy] = actions[np.arange(steps) // hold * hold, :, copy]
    return actions


def record(
    simulators: VectorTasks,
    actions: np.ndarray,
    seed: int,
    spoil: bool = False,
    beside: VectorTasks | None = None,
) -> Recording:
    """Reset with ``seed`` and play ``actions [H, T, E, A]``.

    Args:
        simulators: What is played in.
        actions: Of each step.
        seed: Of the reset.
        spoil: Whether all that is handed out, and the actions, are written over at once.
        beside: Simulators of the same size that are reset and stepped by turns with these.
    """
    lead = actions.shape[1:3]
    first = simulators.reset(seed)
    if beside is not None:
        beside.reset(seed)
    given = [("the observation", 0, first)]
    kept, diverged = [first.copy()], [np.array(simulators.diverged)]
    started = time.perf_counter()
    for step, action in enumerate(actions, 1):
        action = action.copy()
        parts = simulators.step(action)
        for name, part, size in zip(_PARTS, parts, (first.shape[2:], (), (), ()), strict=True):
            _check(name, step, part, (*lead, *size))
            given.append((name, step, part))
            kept.append(part.copy())
        diverged.append(np.array(simulators.diverged))
        if beside is not None:
            beside.step(action.copy())
        if spoil:
            action[...] = np.nan
            for part in parts:
                part[...] = 1
    seconds = time.perf_counter() - started
    success = simulators.success
    return Recording(
        obs=np.stack([kept[0], *kept[1::4]]),
        reward=np.stack(kept[2::4]),
        terminated=np.stack(kept[3::4]),
        truncated=np.stack(kept[4::4]),
        diverged=np.stack(diverged),
        success=None if success is None else np.array(success),
        seconds=seconds,
        overwritten=[
            (name, step)
            for (name, step, part), copy in zip(given, kept, strict=True)
            if not np.array_equal(part, copy, equal_nan=part.dtype.kind == "f")
        ],
    )


def _check(name: str, step: int, part: np.ndarray, shape: tuple[int, ...]) -> None:
    if np.shape(part) != shape:
        raise TaskError(f"step {step} gave {name} of shape {np.shape(part)}, expected {shape}")
    if name in _PARTS[2:] and part.dtype != bool:
        raise TaskError(f"step {step} gave {name} of type {part.dtype}, expected bool")


def changes(one: Recording, other: Recording, columns: int | None = None) -> dict[str, Change]:
    """In what two recordings of equal shape differ while their episodes run; empty if they agree.

    Args:
        one: A recording.
        other: Another, of the same actions and seed.
        columns: How many entries of the observation to compare; None: all.
    """
    running = one.running | other.running
    seen = np.concatenate([np.ones_like(running[:1]), running])
    flags = (one.terminated != other.terminated) | (one.truncated != other.truncated)
    gaps = {
        "observation": (_gap(one.obs[..., :columns], other.obs[..., :columns]).max(axis=-1), seen),
        "reward": (_from_step_1(_gap(one.reward, other.reward)), _from_step_1(running)),
        "end": ((one.diverged != other.diverged) | _from_step_1(flags), seen),
    }
    return {
        what: Change(int(np.argwhere((gap > 0) & where)[0, 0]), float(gap[where].max()))
        for what, (gap, where) in gaps.items()
        if (gap[where] > 0).any()
    }


def told(found: dict[str, Change]) -> str:
    """The changes in words."""
    return ", ".join(
        f"{what} from {'the reset' if step == 0 else f'step {step}'} on"
        + ("" if what == "end" else f" (by up to {size:.3g})")
        for what, (step, size) in found.items()
    )


def _gap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Absolute difference; infinite where just one of the two is not a number."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - other)
    gap[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0  # infinities are equal too
    return np.nan_to_num(gap, nan=np.inf, posinf=np.inf)


def _from_step_1(per_step: np.ndarray) -> np.ndarray:
    """``[H, ...] -> [H + 1, ...]``: nothing at the reset."""
    return np.concatenate([np.zeros_like(per_step[:1]), per_step])
