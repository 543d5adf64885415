# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# (MuJoCo ships no type stubs, and envpool is an extra.)
"""Env steps per second of five robots on our engine and on others, closed loop, side by side.

Every method gets fresh random actions each step and starts ended episodes anew. The limit is the
bare physics: from states that our own loop visited, ten control steps of ``mj_step`` on all cores
without coming back to Python, with no observation, reward or reset.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from mujoco import rollout
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
AHEAD = 10
"""Control steps that the limit takes without looking."""
Step = Callable[[], int]
"""Steps all environments; says how many env steps that were."""


def native(make: Callable[..., SimulatedFamily], n: int, opened: ExitStack) -> Step:
    """Ours, on ``mujoco.batch``: observation, reward, termination and automatic resets."""
    family = make(name="bench", horizon=1000)
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
    start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    env = SubprocVecEnv([lambda: gymnasium.make(f"{robot}-v5")] * n, start_method)
    opened.callback(env.close)
    env.reset()
    rng = np.random.default_rng(0)
    space: Any = env.action_space

    def step() -> int:
        env.step(rng.uniform(space.low, space.high, (n, *space.shape)))
        return n

    return step


def envpool(robot: str, n: int, opened: ExitStack) -> Step:
    """envpool, synchronous, on all cores."""
    import envpool as package

    make: Any = package.make_gymnasium
    env = make(f"{robot}-v5", num_envs=n, num_threads=CORES, seed=0)
    opened.callback(env.close)
    space: Any = env.action_space
    rng = np.random.default_rng(0)
    env.reset()

    def step() -> int:
        env.step(rng.uniform(space.low, space.high, (n, *space.shape)))
        return n

    return step


def limit(robot: str, n: int, opened: ExitStack) -> Step:
    """``mj_step`` alone, on all cores, from states that our closed loop visits.

    AHEAD control steps at a time in C (``mujoco.rollout``), so that no thread waits for Python.
    """
    family = ROBOTS[robot](name="bench", horizon=1000)
    env: Any = NativeVectorEnv(family, n, autoreset_mode=AutoresetMode.SAME_STEP)
    loop, batch, model = closed_loop(env), env._simulators._batch, family.model
    data, full = mujoco.MjData(model), mujoco.mjtState.mjSTATE_FULLPHYSICS
    visited = []
    for _ in range(40):
        loop()
        states = np.empty((n, mujoco.mj_stateSize(model, full)))
        for row, state in enumerate(batch.state):
            mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_getState(model, data, states[row], full)
        visited.append(states)
    pool = opened.enter_context(rollout.Rollout(nthread=CORES))
    each = [mujoco.MjData(model) for _ in range(CORES)]
    low, high = model.actuator_ctrlrange.T
    rng, count = np.random.default_rng(0), 0

    def step() -> int:
        nonlocal count
        count += 1
        control = rng.uniform(low, high, (n, AHEAD, model.nu)).repeat(family.frame_skip, axis=1)
        pool.rollout(model, each, visited[count % len(visited)], control)
        return n * AHEAD

    return step


METHODS: dict[str, Callable[[str, int, ExitStack], Step]] = {
    "ours": lambda robot, n, opened: native(ROBOTS[robot], n, opened),
    "limit": limit,
    "Sync": sync,
    "envpool": envpool,
    "Async": asynchronous,
    "Subproc": subprocesses,
}


def closed_loop(env: Any) -> Step:
    """A step of a Gymnasium vector environment with fresh random actions."""
    env.reset(seed=0)
    space, rng = env.action_space, np.random.default_rng(0)

    def step() -> int:
        env.step(rng.uniform(space.low, space.high))
        return env.num_envs

    return step


def applicable(method: str, n: int) -> bool:
    """Whether a method is measured with n environments on this machine."""
    if method == "envpool":
        return importlib.util.find_spec("envpool") is not None
    return method not in ("Async", "Subproc") or n <= FEW


def measure(
    opens: dict[str, Callable[[ExitStack], Step]], n: int, seconds: float = SECONDS
) -> dict[str, float]:
    """Env steps per second of each method of n environments: the median round.

    The rounds of all methods are interleaved, so that the machine's moods strike all alike.
    """
    with ExitStack() as opened:
        steps = {name: make(opened) for name, make in opens.items()}
        rates: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():  # past the first, unusual states
            for _ in range(30 if n <= 64 else 5):
                step()
        for _ in range(ROUNDS):
            for name, step in steps.items():
                count, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < seconds:
                    count += step()
                rates[name].append(count / spent)
    return {name: statistics.median(r) for name, r in rates.items()}


def engine_rates(robot: str, n: int) -> dict[str, float]:
    """Env steps per second of n of a robot on every engine."""
    methods = {name: make for name, make in METHODS.items() if applicable(name, n)}
    return measure({name: partial(make, robot, n) for name, make in methods.items()}, n)


def engines(robots: Sequence[str] = tuple(ROBOTS), sizes: Sequence[int] = SIZES) -> Table:
    """Our rate, and its ratio to each of the others, by robot and number of environments."""
    others = [name for name in METHODS if name != "ours"]
    table = Table("robot", "N", "env steps/s", *(f"/ {name}" for name in others))
    pairs = [(robot, n) for robot in robots for n in sizes]
    for robot, n in track(pairs, description="measuring", transient=True):
        # Each in a process of its own: one that has held 1024 robots may be too large to fork.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            rates = process.submit(engine_rates, robot, n).result()
        ratios = [f"{rates['ours'] / rates[name]:.2f}" if name in rates else "" for name in others]
        table.add_row(robot, str(n), f"{rates['ours']:,.0f}", *ratios)
    table.title = f"Closed loop, random actions, {CORES} cores; ratios of medians ({ROUNDS} rounds)"
    return table


def integrators(n: int = 256) -> Table:
    """The robots that Gymnasium integrates with RK4, beside their variants with implicitfast."""
    table = Table("robot", "RK4, env steps/s", "implicitfast", "ratio")
    for robot in track(("Hopper", "Walker2d", "Ant", "Humanoid"), transient=True):
        fast = partial(ROBOTS[robot], integrator="implicitfast")
        opens = {"RK4": ROBOTS[robot], "fast": fast}
        rates = measure({name: partial(native, make, n) for name, make in opens.items()}, n)
        ratio = f"{rates['fast'] / rates['RK4']:.2f}"
        table.add_row(robot, f"{rates['RK4']:,.0f}", f"{rates['fast']:,.0f}", ratio)
    table.title = f"Integrators, {n} environments, {CORES} cores"
    return table
