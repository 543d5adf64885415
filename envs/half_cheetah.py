"""HalfCheetah families: gymnasium's HalfCheetah-v5 with task-dependent direction, body and motors.

Reward ``direction * v - 0.1 |a|^2`` with ``v = (x' - x) / dt``; observation, reset noise and
control cost are those of HalfCheetah-v5 (``forward_reward_weight = direction``). Papers use other
constants (0.05 |a|^2 and H 100 or 200 in Finn 2017 and Rothfuss 2019): set ``ctrl_cost`` and
``horizon`` to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.simulation import SimulatedTasks, load_gymnasium_model
from envs.task import Finite, Task, TaskDistribution

FRAME_SKIP = 5
"""Physics steps of 0.01 s per control step."""
RESET_NOISE = 0.1
"""Noise at reset, rad and m: half-width of the positions' (uniform), sd of the rates' (normal)."""


class HalfCheetahTasks(SimulatedTasks):
    """B half-cheetahs: ``qpos [B, 9]`` = x, z, pitch, 6 joints (m, rad), ``qvel`` their rates."""

    frame_skip = FRAME_SKIP
    direction: float | np.ndarray = 1.0
    """+1 is paid for running forward, -1 for running backward."""

    def __init__(self, family: HalfCheetah, tasks: Sequence[Task], copies: int) -> None:
        super().__init__(load_gymnasium_model("half_cheetah.xml"), family, tasks, copies)
        self.ctrl_cost = family.ctrl_cost

    def sample_reset(self, rng: np.random.Generator) -> None:
        """Nominal pose with noise."""
        self.qpos[:] = self.model.qpos0 + rng.uniform(-RESET_NOISE, RESET_NOISE, self.qpos.shape)
        self.qvel[:] = RESET_NOISE * rng.standard_normal(self.qvel.shape)

    def before_step(self) -> np.ndarray:
        """Position along the track, m."""
        return self.qpos[:, 0].copy()

    def observe(self) -> np.ndarray:
        """All positions but x, then all velocities, ``[B, 17]``."""
        return np.concatenate([self.qpos[:, 1:], self.qvel], axis=1)

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Mean speed over the step in the task's direction (m/s) less the control cost."""
        speed = (self.qpos[:, 0] - before) / self.dt
        return self.direction * speed - self.ctrl_cost * np.square(action).sum(axis=1)


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetah(TaskDistribution):
    """Half-cheetahs that differ in the parameters given."""

    ctrl_cost: Annotated[Finite, Field(ge=0)] = 0.1
    """Weight of the squared action in the reward."""

    @property
    def obs_size(self) -> int:
        """17."""
        return 17

    @property
    def action_size(self) -> int:
        """6 joint torques."""
        return 6

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Each torque is a fraction of its motor's gear."""
        return -np.ones(6), np.ones(6)

    def open(self, tasks: Sequence[Task], copies: int) -> HalfCheetahTasks:
        """Simulators for ``copies`` episodes of each task."""
        return HalfCheetahTasks(self, tasks, copies)


@dataclass(kw_only=True, config={"extra": "forbid"})
class HalfCheetahFaults(HalfCheetah):
    """Half-cheetahs with broken motors: a few random ``gear_*`` parameters leave nominal."""

    faults: Annotated[int, Field(ge=1)] = 2
    """How many motors are broken at a time."""

    def __post_init__(self) -> None:
        """Check that there are motors enough to break, and that an intact one has a value."""
        for name in self._motors():
            if self.params[name].neutral is None:
                raise ValueError(f"{self.name}.params.{name}: motors need op=scale or op=add")
        if len(self._motors()) < self.faults:
            raise ValueError(
                f"faults={self.faults} but only {len(self._motors())} gear_* parameters are given"
            )

    def draw(
        self, rng: np.random.Generator, fixed: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """A task with ``faults`` broken motors; the other gears stay nominal."""
        values = super().draw(rng, fixed)
        intact = rng.permutation(self._motors())[self.faults :]
        return values | {name: float(self.params[name].neutral or 0.0) for name in intact.tolist()}

    def _motors(self) -> list[str]:
        return [name for name in self.params if name.startswith("gear_")]
