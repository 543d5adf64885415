"""A robot of one's own: a cart on a rail that must get to the origin, in plain Gymnasium.

It knows nothing of Engram. What differs between tasks (the motor's gain, which may be reversed, and
the drag) are plain attributes; conf/env/my_robot.yaml says which, and from which ranges.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Cart(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation: position (m) and speed (m/s). Action: motor voltage as a fraction of full."""

    dt = 0.05

    def __init__(self) -> None:
        self.gain, self.drag = 1.0, 0.1
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
        self._state = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Stand still, up to half a metre from where it should be."""
        super().reset(seed=seed)
        self._state = np.array([self.np_random.uniform(-0.5, 0.5), 0.0])
        return self._state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push for 50 ms; the episode ends if the cart runs off the rail."""
        position, speed = self._state
        speed += self.dt * (self.gain * float(action[0]) * 4.0 - self.drag * speed)
        self._state = np.array([position + self.dt * speed, speed])
        off = bool(abs(self._state[0]) > 2.0)
        reward = -abs(float(self._state[0])) - (10.0 if off else 0.0)
        return self._state.astype(np.float32), reward, off, False, {}


gymnasium.register(id="Cart-v0", entry_point=Cart)
