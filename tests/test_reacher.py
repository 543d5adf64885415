# pyright: reportAttributeAccessIssue=false
"""Reacher against gymnasium's own; goals, motors and loads by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest

from envs.reacher import TOUCH, Reacher, ReacherGoal, ReacherPayload, ReacherReversed, ReacherTasks
from envs.task import TaskDistribution
from tests.against_gymnasium import compare
from tests.changed_models import changed


def simulate(family: Any, *values: dict[str, float], copies: int = 1) -> ReacherTasks:
    return family.simulate([family.task(each) for each in values], copies)


def place(sims: ReacherTasks, shoulder: float, elbow: float, x: float, y: float) -> None:
    """Every arm at rest in one posture, and the target somewhere."""
    count = len(sims.qpos)
    sims._begin(
        np.arange(count), np.tile([shoulder, elbow, x, y], (count, 1)), np.zeros((count, 4))
    )


def test_it_equals_gymnasium():
    """Measured: 0.0 in observation and reward."""
    gaps = compare(Reacher(name="reacher", horizon=1000), "Reacher-v5")
    print(f"largest differences from Reacher-v5: {gaps}")
    assert max(gaps[:2]) == 0.0


def test_it_equals_gymnasium_with_reversed_motors_and_with_loads():
    """Measured: 0.0."""

    def reverse(model: mujoco.MjModel) -> None:
        model.actuator_gear[:, 0] *= [-1.0, 0.2]

    def load(model: mujoco.MjModel) -> None:
        model.body("fingertip").mass += 7.0
        model.dof_damping[:2] *= 3.0
        model.dof_frictionloss[:2] += 5.0

    reversed_motors = {"gear_shoulder": -1.0, "gear_elbow": 0.2}
    loads = {"payload": 7.0, "damping": 3.0, "friction": 5.0}
    cases: list[tuple[Any, dict[str, float], Any]] = [
        (ReacherReversed, reversed_motors, reverse),
        (ReacherPayload, loads, load),
    ]
    for kind, values, change in cases:
        gaps = compare(kind(name="reacher", horizon=1000), changed("Reacher-v5", change), values)
        print(f"largest differences from Reacher-v5 with {values}: {gaps}")
        assert max(gaps[:2]) <= 1e-9


def test_targets_are_uniform_in_a_disc_and_new_in_every_episode():
    sims = simulate(Reacher(name="reacher"), {}, copies=2000)
    x, y = sims.reset(0)[0, :, 4:6].T
    radius = np.hypot(x, y)
    assert radius.max() <= 0.2
    assert np.mean(radius < 0.1) == pytest.approx(0.25, abs=0.03)
    assert np.mean(x > np.abs(y)) == pytest.approx(0.25, abs=0.03)
    assert np.abs(sims.qpos[:, :2]).max() <= 0.1 and np.abs(sims.qvel[:, :2]).max() <= 0.005
    assert not sims.qvel[:, 2:].any()
    assert not np.array_equal(sims.reset(1)[0, :, 4], x)


def test_a_goal_is_where_the_task_says_and_stays_hidden():
    family = ReacherGoal(name="reacher")
    goals = (
        {"goal_distance": 0.15, "goal_angle": math.pi / 2},
        {"goal_distance": 0.1, "goal_angle": 0},
    )
    sims = simulate(family, *goals)
    assert sims.reset(0).shape == (2, 1, family.obs_size) == (2, 1, 8)
    assert sims.qpos[:, 2:] == pytest.approx(np.array([[0.0, 0.15], [0.1, 0.0]]), abs=1e-12)
    sims.qpos[:, :2], sims.qvel[:, :2] = 0.1, 0.0
    obs, reward, *_ = sims.step(np.zeros((2, 1, 2)))
    assert np.array_equal(obs[0], obs[1]) and reward[0] != reward[1]  # only the reward can tell
    angle, reach = (0.1, 0.2), (0.1, 0.11)  # both links' directions and lengths
    tip = [sum(np.array(reach) * f(angle)) for f in (np.cos, np.sin)]
    assert obs[0, 0, 6:] == pytest.approx(tip)
    assert reward[1, 0] == pytest.approx(-math.hypot(tip[0] - 0.1, tip[1]))


def test_a_row_starts_anew_with_its_own_goal():
    family = ReacherGoal(name="reacher")
    tasks = [family.task({"goal_distance": 0.1, "goal_angle": angle}) for angle in (0, 1, 2)]
    sims = family.simulate(tasks[:2], 1)
    sims.reset(0)
    kept = sims.qpos[0].copy()
    obs = sims.restart(np.array([1]), tasks[2:], [np.random.default_rng(0)])
    assert obs.shape == (1, 8)
    assert np.array_equal(sims.qpos[0], kept)
    assert sims.qpos[1, 2:] == pytest.approx([0.1 * math.cos(2), 0.1 * math.sin(2)])


def test_an_episode_succeeds_once_fingertip_and_target_touch():
    sims = simulate(Reacher(name="reacher", horizon=3), {}, copies=2)
    sims.reset(0)
    tip = np.array([0.21, 0.0])  # stretched along x
    place(sims, 0.0, 0.0, *(tip - [TOUCH + 0.001, 0.0]))
    assert not sims.success.any()  # what counts is after steps
    sims.step(np.zeros((1, 2, 2)))
    assert not sims.success.any()
    place(sims, 0.0, 0.0, *(tip - [TOUCH - 0.001, 0.0]))
    sims.step(np.zeros((1, 2, 2)))
    assert sims.success.tolist() == [[True, True]]
    sims.step(np.array([[[1.0, 0.0], [0.0, 0.0]]]))
    sims.step(np.array([[[1.0, 0.0], [0.0, 0.0]]]))
    assert sims.success.tolist() == [[True, True]]  # though the first one has swung away
    place(sims, 0.0, 0.0, *tip)
    sims._diverged[0] = True  # what a simulation does that has blown up is void
    sims.step(np.zeros((1, 2, 2)))
    assert sims.success.tolist() == [[False, True]]


@pytest.mark.parametrize("kind", [ReacherGoal, ReacherReversed, ReacherPayload])
def test_every_parameter_of_the_families_matters(kind: Callable[..., TaskDistribution]):
    family = kind(name="reacher")
    rng = np.random.default_rng(0)
    base = family.sample(1, rng)[0]
    tasks = [base]
    for name, param in family.params.items():
        draws = (param.draw(rng) for _ in range(50))
        other = next(value for value in draws if value != base.values[name])
        tasks.append(family.task(dict(base.values) | {name: other}))
    sims = family.simulate(tasks, 1)
    assert isinstance(sims, ReacherTasks)
    sims.reset(0)
    sims.qpos[:, :2], sims.qvel[:, :2] = 0.1, 0.0
    if kind is not ReacherGoal:
        sims.qpos[:, 2:] = 0.1
    reward = np.stack([sims.step(np.full((len(tasks), 1, 2), 0.3))[1][:, 0] for _ in range(5)])
    assert all(not np.array_equal(reward[:, 0], reward[:, k]) for k in range(1, len(tasks)))


def test_reversed_motors_are_nine_tasks():
    family = ReacherReversed(name="reacher")
    assert family.obs_size == 10
    tasks = family.sample(9, np.random.default_rng(0), distinct=True)
    assert len({task.id for task in tasks}) == 9
    assert any(not np.any(np.array(list(task.values.values())) - 1.0) for task in tasks)
