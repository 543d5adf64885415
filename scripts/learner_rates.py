"""Env steps per second of meta-training with each learner, beside the simulation alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.table import Table

from agent.cli import configure
from agent.config import build
from agent.settings import TrainSettings
from agent.train import BatchSize, make_policy, meta_iteration, new_learner
from envs.task import TaskDistribution

ENV, SIZE, ROUNDS = "half_cheetah_dir", BatchSize(tasks=10, episodes=8), 3
_LEARNERS = Path(__file__).resolve().parent.parent / "configs" / "learner"
_NOT_TIMED = {"distill", "oracle", "zero_shot", "scratch"}
"""It needs a memory; the others' training is that of ``multitask``, or none."""


def names() -> list[str]:
    """The learners timed."""
    return sorted(path.stem for path in _LEARNERS.glob("*.yaml") if path.stem not in _NOT_TIMED)


def learners() -> Table:
    """Medians of interleaved rounds, one iteration each; all with batches of the same size."""
    family, units = _iteration(names()[0])[0], {name: _iteration(name)[1] for name in names()}
    rates: dict[str, list[float]] = {name: [] for name in ("simulation alone", *units)}
    for turn in range(ROUNDS + 1):
        for name in rates:
            started = time.perf_counter()
            steps = _simulated(family) if name == "simulation alone" else units[name](turn)
            if turn:  # the first round is for warming up
                rates[name].append(steps / (time.perf_counter() - started))
    table = Table(title=f"Meta-training on {family.id}, H={family.horizon}, {os.cpu_count()} CPUs")
    for column in ("learner", "env steps/s", "of simulation alone"):
        table.add_column(column, justify="left" if column == "learner" else "right")
    alone = float(np.median(rates["simulation alone"]))
    for name, found in rates.items():
        median = float(np.median(found))
        table.add_row(name, f"{median:,.0f}", f"{median / alone:.0%}")
    return table


def _iteration(name: str) -> tuple[TaskDistribution, Callable[[int], int]]:
    """One meta-iteration of a fresh learner; returns its env steps."""
    config = configure("train", [f"env={ENV}", f"learner={name}"])
    settings = build(config, "", TrainSettings)
    family = build(settings.env, "env")
    learner = build(settings.learner, "learner")
    policy = make_policy(family, settings.policy, False, "cpu", learner.make_policy)
    new_learner(learner, policy, 0)
    return family, lambda n: int(meta_iteration(learner, family, SIZE, 0, n)["iteration_steps"])


def _simulated(family: TaskDistribution) -> int:
    """Two batches of episodes of random actions, without a policy; returns their env steps."""
    rng = np.random.default_rng(0)
    tasks = family.sample(SIZE.tasks, rng, "train")
    simulators = family.open(tasks, SIZE.episodes)
    shape = (SIZE.tasks, SIZE.episodes, family.action_size)
    for seed in range(2):
        simulators.reset(seed)
        for _ in range(family.horizon):
            simulators.step(rng.uniform(-1, 1, shape))
    simulators.close()
    return 2 * SIZE.tasks * SIZE.episodes * family.horizon
