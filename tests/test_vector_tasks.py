"""Faults of motors and sensors, and parameters that are not hidden, on any family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic.dataclasses import dataclass

from envs.task import Param, Task, TaskDistribution, VectorTasks
from envs.vector_tasks import ConnectedTasks


class EchoTasks(VectorTasks):
    """Observes the last action, and is paid its first entry."""

    def __init__(self, tasks: Sequence[Task], copies: int) -> None:
        self.tasks: list[Task] = list(tasks)
        self.copies, self.physics_s = copies, 0.0

    def reset(self, seed: int) -> np.ndarray:
        """Ones."""
        return np.ones((len(self.tasks), self.copies, 3))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Give the action back."""
        never = np.zeros(action.shape[:2], dtype=bool)
        return action.copy(), action[..., 0].copy(), never, never

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """Ones again."""
        for row, task in zip(rows, tasks, strict=True):
            self.tasks[row] = task
        return np.ones((len(rows), 3))

    @property
    def diverged(self) -> np.ndarray:
        """Never."""
        return np.zeros((len(self.tasks), self.copies), dtype=bool)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Echo(TaskDistribution):
    """Three numbers in, three out."""

    @property
    def raw_obs_size(self) -> int:
        """3."""
        return 3

    @property
    def action_size(self) -> int:
        """3."""
        return 3

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Plus minus one."""
        return -np.ones(3), np.ones(3)

    def simulate(self, tasks: Sequence[Task], copies: int) -> EchoTasks:
        """Echoes."""
        return EchoTasks(tasks, copies)


def echo(**params: Param) -> Echo:
    return Echo(name="echo", params=params)


def scaled(target: str | list[str], **fields: Any) -> Param:
    return Param(to=target, **({"op": "scale", "low": -2.0, "high": 2.0} | fields))


def opened(family: Echo, values: list[dict[str, float]]) -> VectorTasks:
    return family.open([family.task(each) for each in values], 2)


def test_without_faults_nothing_stands_between():
    family = echo(other=Param(to="attr:x", low=0.0, high=1.0))
    assert isinstance(opened(family, [{"other": 0.5}]), EchoTasks)


def test_motors_and_sensors_are_changed_by_task():
    family = echo(
        motor=scaled("action:0"),
        pair=scaled(["action:1", "obs:2"]),
        shift=scaled("obs:1", op="add"),
        stuck=Param(to="obs:0", low=0.0, high=9.0),
    )
    sims = opened(
        family,
        [{"motor": -1.0, "stuck": 7.0}, {"motor": 0.2, "pair": 0.0, "shift": 0.5, "stuck": 8.0}],
    )
    assert sims.reset(0)[:, 1].tolist() == [[7.0, 1.0, 1.0], [8.0, 1.5, 0.0]]
    action = np.tile([0.5, 0.25, 1.0], (2, 2, 1))
    obs, reward, *_ = sims.step(action)
    assert obs[:, 0].tolist() == [[7.0, 0.25, 1.0], [8.0, 0.5, 0.0]]
    assert reward.tolist() == [[-0.5, -0.5], [0.1, 0.1]]
    assert action[0, 0].tolist() == [0.5, 0.25, 1.0]  # the caller's array is left alone
    assert sims.diverged.shape == (2, 2) and sims.success is None and sims.look(0) is None


def test_parameters_that_are_not_hidden_are_observed():
    told = Param(to="attr:x", low=10.0, high=30.0, hidden=False)
    family = echo(secret=Param(to="attr:y", low=0.0, high=1.0), told=told)
    assert (family.obs_size, family.raw_obs_size, family.visible) == (4, 3, ["told"])
    sims = opened(family, [{"secret": 0.1, "told": 10.0}, {"secret": 0.9, "told": 25.0}])
    assert sims.reset(0)[:, 0].tolist() == [[1, 1, 1, -1.0], [1, 1, 1, 0.5]]
    assert sims.step(np.zeros((2, 2, 3)))[0][1, 1].tolist() == [0, 0, 0, 0.5]


def test_a_restarted_row_has_its_new_tasks_faults():
    family = echo(motor=scaled("action:0"), told=scaled("obs:0", hidden=False))
    first = [family.task({"motor": m}) for m in (1.0, 2.0)]
    sims = family.open(first, 1)
    sims.reset(0)
    fresh = family.task({"motor": -1.0, "told": 2.0})
    assert sims.restart(np.array([1]), [fresh], [np.random.default_rng(0)]).tolist() == [
        [2.0, 1.0, 1.0, 1.0]
    ]
    assert sims.tasks[1] == fresh
    obs = sims.step(np.ones((2, 1, 3)))[0]
    assert obs[:, 0].tolist() == [[1, 1, 1, 0.5], [-2, 1, 1, 1.0]]


@pytest.mark.parametrize("target", ["action:3", "obs:x", "obs:-1"])
def test_an_entry_that_is_not_there_is_named(target: str):
    family = echo(wrong=scaled(target))
    with pytest.raises(ValueError, match=rf"echo.params.wrong: {target} is no entry .* 0 to 2"):
        opened(family, [{}])


def test_a_broken_motor_is_the_same_on_the_native_engine_by_either_way():
    from envs.half_cheetah import HalfCheetah

    moves = np.random.default_rng(0).uniform(-1, 1, (30, 1, 2, 6))
    runs = []
    for target in ("model:actuator_gear[bshin]", "action:1"):
        family = HalfCheetah(name="cheetah", ctrl_cost=0.0, params={"motor": scaled(target)})
        sims = family.open([family.task({"motor": -0.5})], 2)
        sims.reset(0)
        runs.append([sims.step(move)[0] for move in moves])
        assert isinstance(sims, ConnectedTasks) == (target == "action:1")
    assert np.abs(np.array(runs[0]) - runs[1]).max() < 1e-6
