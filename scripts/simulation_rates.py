# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# (MuJoCo ships no type stubs, and envpool is an extra.)
"""Env steps per second of five robots on our engine and on others, closed loop, side by side.

Every method gets fresh random actions each step and starts ended episodes anew. The limit is the
bare physics: the states that our own loop visited, stepped again by ``mj_step`` on all cores, with
no observation, reward or reset.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from rich.progress import track
from rich.table import Table
from stable_baselines3.common.vec_env import SubprocVecEnv

from envs.ant import Ant
from envs.citizens import NativeVectorEnv
from envs.half_cheetah import HalfCheetah
from envs.humanoid import Humanoid
from envs.simulation import SimulatedFamily
from envs.walkers import Hopper, Walker2d

ROBOTS: dict[str, type[SimulatedFamily]] = {
    "HalfCheetah": HalfCheetah,
    "Hopper": Hopper,
    "Walker2d": Walker2d,
    "Ant": Ant,
    "Humanoid": Humanoid,
}
SIZES = (16, 64, 256, 1024)
ROUNDS, SECONDS = 3, 0.7
FEW = 16
"""A process for each environment is measured with so many only; with more, 2 cores thrash."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Step = Callable[[], object]


class Rate(NamedTuple):
    """Env steps per second: the best round, and the median of all."""

    best: float
    median: float


def native(robot: str, n: int, opened: ExitStack) -> Step:
    """Ours, on ``mujoco.batch``: observation, reward, termination and automatic resets."""
    family = ROBOTS[robot](name="bench", horizon=1000)
    env = NativeVectorEnv(family, n, autoreset_mode=AutoresetMode.SAME_STEP)
    opened.callback(env.close)
    return closed_loop(env)


def sync(robot: str, n: int, opened: ExitStack) -> Step:
    """Gymnasium's SyncVectorEnv."""
    env = gymnasium.make_vec(f"{robot}-v5", n, vectorization_mode="sync")
    opened.callback(env.close)
    return closed_loop(env)


def asynchronous(robot: str, n: int, opened: ExitStack) -> Step:
    """Gymnasium's AsyncVectorEnv, a process for each environment."""
    env = gymnasium.make_vec(f"{robot}-v5", n, vectorization_mode="async")
    opened.callback(env.close)
    return closed_loop(env)


def subprocesses(robot: str, n: int, opened: ExitStack) -> Step:
    """stable-baselines3's SubprocVecEnv, a process for each environment."""
    env = SubprocVecEnv([lambda: gymnasium.make(f"{robot}-v5")] * n)
    opened.callback(env.close)
    env.reset()
    rng = np.random.default_rng(0)
    space: Any = env.action_space
    return lambda: env.step(rng.uniform(space.low, space.high, (n, *space.shape)))


def envpool(robot: str, n: int, opened: ExitStack) -> Step:
    """envpool, synchronous, on all cores."""
    import envpool as package

    make: Any = package.make_gymnasium
    env = make(f"{robot}-v5", num_envs=n, num_threads=CORES, seed=0)
    opened.callback(env.close)
    space: Any = env.action_space
    rng = np.random.default_rng(0)
    env.reset()
    return lambda: env.step(rng.uniform(space.low, space.high, (n, *space.shape)))


def limit(robot: str, n: int, opened: ExitStack) -> Step:
    """``mj_step`` alone, on all cores, from states that our closed loop visits."""
    family = ROBOTS[robot](name="bench", horizon=1000)
    env: Any = NativeVectorEnv(family, n, autoreset_mode=AutoresetMode.SAME_STEP)
    loop, batch = closed_loop(env), env._simulators._batch
    visited = []
    for _ in range(40):
        loop()
        visited.append(batch.state.copy())
    model, spec = family.model, mujoco.mjtState.mjSTATE_INTEGRATION
    data = [mujoco.MjData(model) for _ in range(n)]
    pool = opened.enter_context(ThreadPoolExecutor(CORES))
    chunks = [range(n)[k::CORES] for k in range(CORES)]
    count = 0

    def part(rows: range, states: np.ndarray) -> None:
        for row in rows:
            mujoco.mj_setState(model, data[row], states[row], spec)
            mujoco.mj_step(model, data[row], nstep=family.frame_skip)

    def step() -> None:
        nonlocal count
        count += 1
        states = visited[count % len(visited)]
        list(pool.map(lambda rows: part(rows, states), chunks))

    return step


METHODS: dict[str, Callable[[str, int, ExitStack], Step]] = {
    "ours": native,
    "limit": limit,
    "SyncVectorEnv": sync,
    "envpool": envpool,
    "AsyncVectorEnv": asynchronous,
    "SubprocVecEnv": subprocesses,
}


def closed_loop(env: Any) -> Step:
    """A step of a Gymnasium vector environment with fresh random actions."""
    env.reset(seed=0)
    space, rng = env.action_space, np.random.default_rng(0)
    return lambda: env.step(rng.uniform(space.low, space.high))


def applicable(method: str, n: int) -> bool:
    """Whether a method is measured with n environments on this machine."""
    if method == "envpool":
        return importlib.util.find_spec("envpool") is not None
    return method not in ("AsyncVectorEnv", "SubprocVecEnv") or n <= FEW


def measure(robot: str, n: int, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, Rate]:
    """All methods, their rounds interleaved, so that the machine's moods strike all alike."""
    with ExitStack() as opened:
        steps = {
            name: make(robot, n, opened) for name, make in METHODS.items() if applicable(name, n)
        }
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():  # past the first, unusual states
            for _ in range(30 if n <= 64 else 5):
                step()
        for _ in range(rounds):
            for name, step in steps.items():
                count, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < seconds:
                    step()
                    count += n
                rates[name].append(count / spent)
    return {name: Rate(max(r), statistics.median(r)) for name, r in rates.items()}


def tables(robots: list[str], sizes: list[int]) -> Table:
    """Our rate, and its ratio to each of the others, by robot and number of environments."""
    others = [name for name in METHODS if name != "ours"]
    table = Table("robot", "N", "ours, env steps/s", *(f"/ {name}" for name in others))
    for robot in track(robots, description="measuring", transient=True):
        for n in sizes:
            rates = measure(robot, n)
            ratios = [
                f"{rates['ours'].median / rates[name].median:.2f}" if name in rates else ""
                for name in others
            ]
            table.add_row(robot, str(n), f"{rates['ours'].median:,.0f}", *ratios)
    table.title = (
        f"Closed loop, random actions, {CORES} cores; ratio of the medians of {ROUNDS} rounds"
    )
    return table
