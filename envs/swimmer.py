"""Swimmer: three links in a viscous plane, paid for speed along x or for a hidden speed.

``v5`` is gymnasium's; the target speeds are ProMP's (``reference/meta_rl.md`` 2.7). ProMP's code
adds the distance from the target to the reward, which pays for missing it; here it is subtracted.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.runners import RunnerTasks, TargetSpeedTasks
from envs.simulation import SimulatedFamily
from envs.task import Finite
from envs.variants import Settings

# Constants, with their units.

RESET_NOISE = 0.1
"""Noise at reset, half-width: m and rad of the positions, m/s and rad/s of the rates."""


class SwimmerTasks(RunnerTasks):
    """B swimmers: ``qpos [B, 5]`` = x, y, heading, 2 joints (m, rad), ``qvel`` their rates."""

    family: Swimmer
    noise = RESET_NOISE

    # Readings of the physics.

    def position(self) -> np.ndarray:
        """All positions but x and y, ``[B, 3]``."""
        return self.qpos[:, 2:]

    def velocity(self) -> np.ndarray:
        """All rates, ``[B, 5]``."""
        return self.qvel

    # Reward.

    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The speed's worth, less the control cost."""
        return self.worth(before) - self.family.ctrl_cost * np.square(action).sum(axis=1)


class SwimmerVelTasks(TargetSpeedTasks, SwimmerTasks):
    """Swimmers that are paid for moving at a hidden speed."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Swimmer(SimulatedFamily):
    """Paid for speed; by default gymnasium's Swimmer-v5."""

    ASSET = "swimmer.xml"
    SIMULATORS = SwimmerTasks
    VARIANTS: ClassVar[Settings] = {"v5": {"horizon": 200}}

    frame_skip: Annotated[int, Field(ge=1)] = 4
    """Physics steps (10 ms) per control step."""
    ctrl_cost: Annotated[Finite, Field(ge=0)] = 1e-4
    """Weight of the squared action in the reward."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class SwimmerVel(Swimmer):
    """Swimming at a hidden speed, which is not observed."""

    SIMULATORS = SwimmerVelTasks
    VARIANTS: ClassVar[Settings] = {"promp": {"horizon": 200}}
    PARAMS: ClassVar[Settings] = {
        "speed": {"to": "attr:speed", "low": 0.1, "high": 0.2, "ood": [0.2, 0.3]}
    }
