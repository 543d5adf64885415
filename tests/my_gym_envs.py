# pyright: reportIncompatibleMethodOverride=false
"""Small Gymnasium environments of all kinds, as users have them; importing this registers them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Fragile(gymnasium.Env):
    """Counts its steps, ends as told, and breaks if it is stepped once more."""

    closed: ClassVar[int] = 0
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2, 1)), BOX

    def __init__(self, life: int = 3, how: str = "terminated") -> None:
        if life == 13:
            raise gymnasium.error.Error("13 is no life")
        self.life, self.how, self.steps, self.size = life, how, -1, np.array([1.0, 1.0])
        self.alias = self.size
        self.fresh, self.pair, self.name, self.nothing = True, [1, 2], "fragile", None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """A random start."""
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.uniform()
        return self.look() * (np.nan if self.life == 0 else 1.0), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Reward 1."""
        if self.steps < 0:
            raise RuntimeError("stepped after the end")
        self.steps += 1
        ends = self.steps == self.life
        obs = self.look()
        if ends:
            self.steps = -1
        obs = obs * np.nan if ends and self.how == "nan" else obs
        obs = obs[:1] if ends and self.how == "shape" else obs
        reward = np.inf if ends and self.how == "reward" else 1.0
        return obs, reward, ends and self.how == "terminated", ends and self.how == "truncated", {}

    def look(self) -> np.ndarray:
        """The steps, and the start."""
        return np.array([[self.steps], [self.start]], dtype=np.float32)

    def set_task(self, life: float) -> None:
        """How long it shall live."""
        self.life = int(life)

    def close(self) -> None:
        """Count."""
        Fragile.closed += 1


class Spaces(Fragile):
    """An environment of any spaces."""

    def __init__(self, obs: spaces.Space = BOX, action: spaces.Space = BOX) -> None:
        super().__init__()
        self.observation_space, self.action_space = obs, action


class Resizes(Fragile):
    """An environment whose spaces depend on its task."""

    def __init__(self, links: int = 2, torque: float = 1.0) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (links,))
        self.action_space = spaces.Box(-torque, torque, (2,))


class Forgets(Fragile):
    """An environment whose reset draws its parameter anew."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Overwrite the task."""
        self.life, self.size[1] = 7, 7.0
        return super().reset(seed=seed, options=options)


class Goal(gymnasium.Env):
    """A point that has to reach a goal, which ``reset(options=...)`` must give at every reset."""

    observation_space = spaces.Dict(
        state=spaces.Tuple([spaces.Box(-9.0, 9.0, (2,), np.float64), spaces.Box(-1.0, 1.0, ())]),
        goal=spaces.Dict(position=spaces.Box(-9.0, 9.0, (2,)), kind=spaces.Discrete(3, start=1)),
    )
    action_space = spaces.Dict(move=spaces.Box(-1.0, 1.0, (2,)), boost=spaces.Discrete(2, start=1))

    def __init__(self, told: bool = True) -> None:
        self.speed, self.calls, self.told = 0.1, 0, told

    def set_speed(self, speed: float) -> None:
        """The task by a method."""
        self.speed, self.calls = speed, self.calls + 1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Take the goal out of the options, as some environments do."""
        super().reset(seed=seed)
        self.goal = np.array((options or {}).pop("goal"), dtype=np.float64)
        self.kind = int((options or {}).pop("kind", 1))
        self.place = self.np_random.uniform(-1.0, 1.0, 2)
        return self.look(), {"is_success": False} if self.told else {}

    def step(self, action: dict) -> tuple[Any, float, bool, bool, dict]:
        """Move; near the goal it is a success."""
        self.place = self.place + self.speed * action["boost"] * action["move"]
        far = float(np.abs(self.place - self.goal).max())
        return self.look(), -far, False, False, {"is_success": far < 0.5} if self.told else {}

    def look(self) -> dict:
        """Where it is and where to."""
        goal = {"position": self.goal.astype(np.float32), "kind": self.kind}
        return {"state": (self.place, np.float32(self.speed)), "goal": goal}


class Late(Fragile):
    """Tells of success at the end of its episodes only."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """As ever."""
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"succeeded": True} if terminated else {}


class Gain(gymnasium.ActionWrapper):
    """A wrapper with a number of its own, which tasks may change."""

    def __init__(self, env: gymnasium.Env, gain: float = 1.0) -> None:
        super().__init__(env)
        self.gain = gain

    def action(self, action: Any) -> Any:
        """Scaled."""
        return np.float32(self.gain) * action


def doubled(env: gymnasium.Env) -> gymnasium.Env:
    """A wrapper that is a function."""
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2.0 * float(reward))


def broken(env: gymnasium.Env) -> None:
    """A wrapper that forgets to return."""


class HidesItsCounters(HalfCheetahEnv):
    """Clears MuJoCo's warnings after each step, and its reset leaves them alone."""

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        """As ever, and then no trace."""
        result = super().step(action)
        self.data.warning.number[:] = 0
        return result


class KeepsItsCounters(HalfCheetahEnv):
    """A reset that does not call mj_resetData."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """A new pose only."""
        gymnasium.Env.reset(self, seed=seed)
        return self.reset_model(), {}


class Randomises(HalfCheetahEnv):
    """A reset that draws the model's masses anew, and episodes that wear the motors out."""

    def reset_model(self) -> np.ndarray:
        """Other masses."""
        self.model.body_mass[1] = self.np_random.uniform(5.0, 7.0)
        return super().reset_model()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        """Weaker and weaker."""
        self.model.actuator_gear[:] *= 0.5
        return super().step(action)


class VectorGain(VectorWrapper):
    """A wrapper around a vector environment."""

    gain = 1.0

    def step(self, actions: Any) -> tuple[Any, ...]:
        """Reward times gain."""
        obs, reward, *rest = super().step(actions)
        return obs, self.gain * reward, *rest


def vectors(
    num_envs: int, mode: str = "NextStep", env_id: str = "engram-test/Lives-v0", **kwargs: Any
) -> SyncVectorEnv:
    """Single environments as one that is vectorised itself; without a mode it hides its own."""
    makers = [lambda: gymnasium.make(env_id, **kwargs)] * num_envs
    env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode(mode or "NextStep"))
    env.metadata = {**env.metadata, "autoreset_mode": env.autoreset_mode if mode else None}
    return env


class Lives(gymnasium.Env):
    """Row i of a batch lives for a random number of steps, of which its observation tells."""

    observation_space, action_space = spaces.Box(-99.0, 99.0, (3,), np.float64), BOX

    def __init__(self, bad: float = 0.0) -> None:
        self.bonus, self.goal, self.speed, self.bad = 0.0, 0.0, 0.0, bad

    def set_speed(self, speed: float) -> None:
        """The task by a method."""
        self.speed = speed

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """The goal is 0 where an autoreset drops the options."""
        super().reset(seed=seed)
        self.goal, self.steps = (options or {}).get("goal", 0.0), 0
        self.life = int(self.np_random.integers(2, 6))
        return self.look(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Reward: the action, the bonus and the speed."""
        self.steps += 1
        reward = float(action[0]) + self.bonus + self.speed
        ends = self.steps >= self.life
        obs = self.look() * (np.nan if self.steps == self.bad else 1.0)
        return obs, reward, ends, False, {"success": ends}

    def look(self) -> np.ndarray:
        """Steps, life and goal."""
        return np.array([self.steps, self.life, self.goal])


def _register(name: str, entry_point: str, **more: Any) -> None:
    gymnasium.register(f"engram-test/{name}-v0", entry_point=f"{__name__}:{entry_point}", **more)


for _name in ("Fragile", "Forgets", "Late", "Randomises"):
    _register(_name, _name)
for _name in ("Spaces", "Resizes", "Goal"):  # gymnasium's checker would warn of some
    _register(_name, _name, disable_env_checker=True)
_register("Limited", "Fragile", max_episode_steps=5)
_register("Hides", "HidesItsCounters")
_register("Keeps", "KeepsItsCounters")
_register("Lives", "Lives", vector_entry_point=f"{__name__}:vectors", disable_env_checker=True)
