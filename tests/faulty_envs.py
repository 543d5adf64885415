"""Environments of rows that misbehave in one way each, where worker processes can import them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from envs.parallel.chunk import Outcome

OBS, ACTION = 3, 2
MAKE, RESET, CLOSE = -1, 0, -2
"""When a fault can strike, besides at a step."""


class TwoArgumentsError(Exception):
    """Cannot be built again from its message."""

    def __init__(self, joint: str, angle: float) -> None:
        super().__init__(f"{joint} at {angle}")


class UnpicklableError(Exception):
    """Holds what cannot be sent to another process."""

    def __init__(self) -> None:
        super().__init__("it holds a lambda")
        self.held = lambda: None


def fail(error: BaseException) -> NoReturn:
    raise error


def sleep(seconds: float, *deaf_to: signal.Signals) -> None:
    for each in deaf_to:
        signal.signal(each, signal.SIG_IGN)
    time.sleep(seconds)


def leave_a_child() -> None:
    """End, while a fork of this process holds on to its pipes."""
    if os.fork() == 0:
        time.sleep(2)
    os._exit(3)


FAULTS: dict[str, Callable[[Outcome], Any]] = {
    "raises": lambda _: fail(ValueError("the elbow broke")),
    "raises with two arguments": lambda _: fail(TwoArgumentsError("knee", 0.5)),
    "raises what cannot be pickled": lambda _: fail(UnpicklableError()),
    "raises a long text": lambda _: fail(ValueError("x" * 10**7)),
    "sys.exit": lambda _: sys.exit(3),
    "os._exit": lambda _: os._exit(3),
    "is killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "leaves a child": lambda _: leave_a_child(),
    "hangs": lambda _: sleep(600),
    "hangs, deaf to SIGTERM": lambda _: sleep(600, signal.SIGTERM),
    "is slow": lambda outcome: sleep(0.5) or outcome,
    "leaves a note": lambda _: Path(os.environ["NOTE"]).touch(),
    "NaN observation": lambda outcome: outcome._replace(obs=np.array([1.0, np.nan, 1.0])),
    "infinite reward": lambda outcome: outcome._replace(reward=-np.inf),
    "overflow": lambda outcome: outcome._replace(obs=np.full(OBS, "1e400", dtype=np.longdouble)),
    "too long": lambda outcome: outcome._replace(obs=np.ones(OBS + 1)),
    "column": lambda outcome: outcome._replace(obs=np.ones((OBS, 1))),
    "one number": lambda outcome: outcome._replace(obs=np.ones(1)),
    "scalar": lambda outcome: outcome._replace(obs=7.0),
    "None": lambda _: None,
    "None observation": lambda outcome: outcome._replace(obs=None),
    "None reward": lambda outcome: outcome._replace(reward=None),
    "None flag": lambda outcome: outcome._replace(truncated=None),
    "text": lambda outcome: outcome._replace(obs=["a", "b", "c"]),
    "ragged": lambda outcome: outcome._replace(obs=[1.0, [2.0], 3.0]),
    "complex": lambda outcome: outcome._replace(obs=np.ones(OBS) * 1j),
    "reward of one element": lambda outcome: outcome._replace(reward=np.ones(1)),
    "another tuple": lambda outcome: tuple(outcome)[:5],
    "diverges": lambda outcome: outcome._replace(obs=None, reward=np.inf, diverged=True),
    "float32": lambda outcome: outcome._replace(obs=outcome.obs.astype(np.float32)),
}


class Counter:
    """Observes (row, seed, steps since the reset); its reward is the sum of all actions so far."""

    def __init__(self, row: int, fault: str = "", at: int = 3) -> None:
        self.row, self.fault, self.at = row, fault, at
        self.obs = np.array([row, 0.0, MAKE])
        self.kept: list[np.ndarray] = []
        self.strike(None)

    def strike(self, outcome: Any) -> Any:
        """What the fault makes of an outcome, when its time has come."""
        strikes = self.fault and self.obs[2] == self.at
        return FAULTS[self.fault](outcome) if strikes else outcome

    def reset(self, seed: int) -> np.ndarray:
        """The start."""
        self.obs[1:], self.kept = (seed, 0), []
        struck = self.strike(Outcome(self.obs, 0.0, False, False, False, False))
        return struck.obs if isinstance(struck, Outcome) else struck

    def step(self, action: np.ndarray) -> Outcome:
        """One more. The observation is the same array each time, as with a careless author."""
        self.obs[2] += 1
        self.kept.append(action)  # must be its own, for good
        ends, success = bool(self.obs[2] % 2 == 0), self.obs[2] % 3 == 0
        return self.strike(
            Outcome(self.obs, float(np.sum(self.kept)), ends, not ends, False, success)
        )

    def close(self) -> None:
        """Strikes too, if it is to."""
        self.obs[2] = CLOSE
        self.strike(None)


class Unloadable:
    """A maker that can be sent to a worker, but not be read there."""

    def __reduce__(self) -> tuple:
        """What the worker is to call."""
        return fail, (ImportError("no module named my_robot"),)


class Census(Counter):
    """Observes its process: heavy modules in it, what numpy's threads were set to, and its id."""

    def reset(self, seed: int) -> np.ndarray:
        """The process as it is now."""
        heavy = {"torch", "hydra", "gymnasium", "mujoco", "pytest"} & set(sys.modules)
        return np.array([len(heavy), int(os.environ["OMP_NUM_THREADS"]), os.getpid()])


class GymRow:
    """A gymnasium environment with a flat Box observation; what it needs is imported here."""

    def __init__(self, env_id: str) -> None:
        import gymnasium

        self.env: Any = gymnasium.make(env_id)
        self.discrete = isinstance(self.env.action_space, gymnasium.spaces.Discrete)

    def reset(self, seed: int) -> np.ndarray:
        """Its own reset."""
        return self.env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> Outcome:
        """Its own step; a first entry above 0 is the second of two discrete actions."""
        move = int(action[0] > 0) if self.discrete else action
        obs, reward, terminated, truncated, _ = self.env.step(move)
        return Outcome(obs, float(reward), terminated, truncated, False, False)

    def close(self) -> None:
        """Its own close."""
        self.env.close()
