"""What robots that move along x have in common: start with uniform noise, reward for speed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from envs.simulation import SimulatedTasks


class RunnerTasks(SimulatedTasks):
    """B robots whose first coordinate is the way along the track (m), and is not observed."""

    noise: ClassVar[float]
    """At reset, half-width: m and rad of the positions, m/s and rad/s of the rates."""

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Nominal pose at rest, with noise."""
        qpos = self.model.qpos0 + rng.uniform(-self.noise, self.noise, (n, self.model.nq))
        return qpos, rng.uniform(-self.noise, self.noise, (n, self.model.nv))

    def before_step(self) -> np.ndarray:
        """Position along the track, m."""
        return self.qpos[:, 0].copy()

    def worth(self, before: np.ndarray) -> np.ndarray:
        """What the step's mean speed is worth: itself, m/s."""
        return (self.qpos[:, 0] - before) / self.dt


class TargetSpeedTasks(RunnerTasks):
    """Robots that are paid for moving at a hidden speed."""

    speed: float | np.ndarray = 1.0
    """Target, m/s."""

    def worth(self, before: np.ndarray) -> np.ndarray:
        """Distance of the step's mean speed from the target, negative, m/s."""
        return -np.abs(super().worth(before) - self.speed)
