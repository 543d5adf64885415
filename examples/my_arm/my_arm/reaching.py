"""An arm that must hold its hand at a place that it cannot see. It knows nothing of Engram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

REACH = 0.33
"""Distance of the goals from the shoulder, m."""
NEAR = 0.05
"""So near to the goal the hand has arrived, m."""
FOLDED = np.array([-1.2, 2.4])
"""Joint angles at the start, rad: the hand is about as far from all goals."""


class ReachingArm(MujocoEnv):
    """Observation: joint angles (rad), their rates (rad/s) and the hand's place (m).

    Action: the speed that each servo shall hold for the next 50 ms, rad/s.
    """

    metadata = {  # noqa: RUF012 (as Gymnasium has it)
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 20,
    }

    def __init__(self, effort_cost: float = 0.0005, **kwargs: Any) -> None:
        super().__init__(
            str(Path(__file__).with_name("arm.xml")),
            frame_skip=5,
            observation_space=Box(-np.inf, np.inf, (6,), np.float64),
            **kwargs,
        )
        self.effort_cost = effort_cost
        """Weight of the squared commands in the reward."""
        self._hand = self.model.site("fingertip").id
        self._goal = self.model.site("goal").id

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Fold the arm; ``options["goal_angle"]`` (rad) says in which direction the goal lies."""
        angle = float((options or {}).get("goal_angle", 0.0))
        self.model.site_pos[self._goal, :2] = REACH * np.cos(angle), REACH * np.sin(angle)
        return super().reset(seed=seed, options=options)

    def reset_model(self) -> np.ndarray:
        """Nearly the same pose each time."""
        self.set_state(FOLDED + self.np_random.uniform(-0.1, 0.1, 2), np.zeros(2))
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the commanded speeds; pay for the distance (m) that is left."""
        self.do_simulation(action, self.frame_skip)
        hand, goal = self.data.site_xpos[self._hand, :2], self.model.site_pos[self._goal, :2]
        distance = float(np.linalg.norm(hand - goal))
        reward = -distance - self.effort_cost * float(np.square(action).sum())
        return self._observe(), reward, False, False, {"success": distance < NEAR}

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel, self.data.site_xpos[self._hand, :2]])
