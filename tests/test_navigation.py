"""2-D navigation, against rewards worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from envs.navigation import Navigation, NavigationCorners, NavigationSparse, NavigationSquare
from envs.points import PointTasks
from envs.task import Param, Task, TaskError

ANGLE = Param(to="attr:angle", low=-math.pi, high=math.pi)


def navigation(radius: float = 1.0, horizon: int = 20) -> Navigation:
    return Navigation(name="nav", radius=radius, horizon=horizon, params={"angle": ANGLE})


def goals(*angles: float) -> list[Task]:
    return [Task("nav", {"angle": angle}) for angle in angles]


def test_rewards_of_a_few_steps_by_hand():
    points = navigation().open(goals(0.0, math.pi / 2), 1)
    assert not points.reset(seed=0).any()
    right, up = [[1.0, 0.0]], [[0.0, 1.0]]
    obs, reward, terminated, truncated = points.step(np.array([right, right]))
    assert obs[:, 0] == pytest.approx(np.array([[0.1, 0.0], [0.1, 0.0]]))
    assert reward[:, 0] == pytest.approx([-0.9, -math.hypot(0.1, 1.0)])
    obs, reward, terminated, truncated = points.step(np.array([up, up]))
    assert obs[:, 0] == pytest.approx(np.array([[0.1, 0.1], [0.1, 0.1]]))
    assert reward[:, 0] == pytest.approx([-math.hypot(0.9, 0.1), -math.hypot(0.1, 0.9)])
    assert not terminated.any() and not truncated.any()


def test_standing_still_costs_the_radius():
    points = navigation(radius=2.5).open(goals(0.3, -2.0), 3)
    points.reset(seed=0)
    assert points.step(np.zeros((2, 3, 2)))[1] == pytest.approx(np.full((2, 3), -2.5))


def test_actions_are_clipped_per_axis():
    points = navigation().open(goals(0.0), 1)
    points.reset(seed=0)
    obs, reward, _, _ = points.step(np.array([[[50.0, -0.5]]]))
    assert obs[0, 0] == pytest.approx([0.1, -0.05])
    assert reward[0, 0] == pytest.approx(-math.hypot(0.9, 0.05))


def test_episodes_last_for_the_horizon_and_start_anew():
    points = navigation(horizon=2).open(goals(0.0), 2)
    for _ in range(2):
        assert not points.reset(seed=1).any()
        assert not points.step(np.ones((1, 2, 2)))[3].any()
        obs, _, terminated, truncated = points.step(np.ones((1, 2, 2)))
        assert truncated.all() and not terminated.any()
        assert obs == pytest.approx(np.full((1, 2, 2), 0.2))
        assert not points.diverged.any()


def test_observations_are_copies():
    points = navigation().open(goals(0.0), 1)
    start = points.reset(seed=0)
    start[:] = 9.0
    first = points.step(np.ones((1, 1, 2)))[0]
    assert first == pytest.approx(np.full((1, 1, 2), 0.1))
    points.step(np.ones((1, 1, 2)))
    assert first == pytest.approx(np.full((1, 1, 2), 0.1))


def test_it_takes_just_the_angle():
    with pytest.raises(ValueError, match=r"params must be just 'angle', got \['angle', 'wind'\]"):
        Navigation(name="nav", params={"angle": ANGLE, "wind": ANGLE})
    assert Navigation(name="nav").params["angle"].high == 2.0 * math.pi  # unless given


def square(**settings: Any) -> NavigationSquare:
    return NavigationSquare(name="square", **settings)


def simulate(family: Any, *values: dict[str, float], copies: int = 1) -> PointTasks:
    return family.simulate([family.task(each) for each in values], copies)


def test_a_goal_in_the_square_ends_the_episode_when_reached():
    points = simulate(square(), {"x": 0.2, "y": 0.0}, {"x": 0.4, "y": 0.4})
    assert not points.reset(seed=0).any()
    right = np.array([[[1.0, 0.0]]] * 2)
    assert points.step(right)[1][:, 0] == pytest.approx([-0.1, -math.hypot(0.3, 0.4)])
    assert points.success is not None and not points.success.any()
    _, reward, terminated, truncated = points.step(0.92 * right)  # 0.192 is within 0.01 of 0.2
    assert reward[:, 0] == pytest.approx([-0.008, -math.hypot(0.4 - 0.192, 0.4)])
    assert terminated[:, 0].tolist() == [True, False] and not truncated.any()
    obs, reward, terminated, truncated = points.step(right)  # the first one keeps its place
    assert obs[0, 0] == pytest.approx([0.192, 0.0]) and obs[1, 0] == pytest.approx([0.292, 0.0])
    assert reward[0, 0] == 0.0 and reward[1, 0] < 0.0
    assert not terminated.any() and not truncated.any()
    assert points.success[:, 0].tolist() == [True, False]
    points.reset(seed=0)
    assert not points.success.any()
    assert points.step(right)[1][:, 0] == pytest.approx([-0.1, -math.hypot(0.3, 0.4)])


def test_the_box_around_the_goal_is_square():
    for off, ends in ((0.0099, True), (0.0101, False)):
        points = simulate(square(), {"x": 0.1 - 0.0099, "y": 0.1 - off})
        points.reset(seed=0)
        assert points.step(np.ones((1, 1, 2)))[2].all() == ends


def test_pearls_square_starts_anywhere_and_never_ends():
    family = square(variant="pearl")
    assert (family.id, family.horizon) == ("square:pearl", 20)
    points = simulate(family, {"x": 0.9, "y": -0.9}, copies=1000)
    start = points.reset(seed=0)
    assert np.abs(start).max() <= 1.0
    assert start.std() == pytest.approx(1.0 / math.sqrt(3.0), rel=0.05)
    assert not np.array_equal(start, points.reset(seed=1))
    assert np.array_equal(start, points.reset(seed=0))
    near = np.flatnonzero(np.abs(start[0] - [0.9, -0.9]).max(axis=1) < 0.1)
    assert len(near)
    move = (np.array([0.9, -0.9]) - start) / 0.1
    obs, reward, terminated, _ = points.step(move)
    assert obs[0, near] == pytest.approx(np.tile([0.9, -0.9], (len(near), 1)))
    assert reward[0, near] == pytest.approx(np.zeros(len(near)), abs=1e-9)
    assert not terminated.any()
    assert points.success is not None and points.success[0, near].all()


def test_goals_of_the_square_and_pools_are_as_published():
    rng = np.random.default_rng(0)
    for variant, most in (("finn2017", 0.5), ("pearl", 1.0)):
        family = square(variant=variant)
        goals = np.array([list(t.values.values()) for t in family.sample(80, rng)])
        assert 0.9 * most < np.abs(goals).max() <= most
        assert all(t.values["x"] >= most for t in family.sample(5, rng, "ood"))
    for family in (square(variant="pearl"), NavigationSparse(name="sparse", variant="pearl")):
        assert family.horizon == 20
        assert len({t.id for t in family.sample(80, rng, distinct=True)}) == 80
        with pytest.raises(TaskError, match="the pool of 'heldout' has 20"):
            family.sample(21, rng, "heldout", distinct=True)


def test_sparse_reward_is_paid_only_near_the_goal():
    up = {"angle": math.pi / 2}
    expected = {  # distances .21, .20 - 1e-9, .1 and .15 to the goal
        "varibad": [0.0, 0.8, 0.9, 0.85],
        "pearl": [0.0, 0.8, 0.9, 0.85],
        "pearl_dense": [-0.21, -0.2, -0.1, -0.15],
    }
    for variant, rewards in expected.items():
        points = simulate(NavigationSparse(name="sparse", variant=variant), up)
        assert not points.reset(seed=0).any()
        for _ in range(7):
            points.step(np.array([[[0.0, 1.0]]]))
        got, succeeded = [], []
        for move in (0.9, 0.1 + 1e-8, 1.0, -0.5):
            got.append(float(points.step(np.array([[[0.0, move]]]))[1][0, 0]))
            succeeded.append(bool(np.all(points.success)))
        assert got == pytest.approx(rewards, abs=1e-6)
        assert succeeded == [False, True, True, True]
    angles = [
        t.values["angle"] for t in NavigationSparse(name="s").sample(99, np.random.default_rng(0))
    ]
    assert 0.0 <= min(angles) < 0.2 and 2.9 < max(angles) <= math.pi


def test_corners_pay_for_progress_in_their_own_quarter():
    family = NavigationCorners(name="corners")
    points = simulate(family, {"x": 2.0, "y": -2.0}, {"x": -2.0, "y": -2.0}, copies=300)
    start = points.reset(seed=0)
    assert 0.19 < np.abs(start).max() <= 0.2
    down = np.broadcast_to([1.0, -1.0], (2, 300, 2))  # towards the first corner
    for _ in range(3):
        before = points.step(down)[0]
    obs, reward, terminated, _ = points.step(down)
    assert obs - before == pytest.approx(0.2 * down)
    goal = np.array([2.0, -2.0])
    progress = np.linalg.norm(before[0] - goal, axis=-1) - np.linalg.norm(obs[0] - goal, axis=-1)
    assert reward[0] == pytest.approx(progress) and progress.min() > 0.2
    assert not reward[1].any() and not terminated.any()


def test_nothing_is_paid_in_the_middle_of_the_corners():
    points = simulate(NavigationCorners(name="corners"), {"x": 2.0, "y": 2.0}, copies=300)
    points.reset(seed=0)
    obs, reward, *_ = points.step(np.ones((1, 300, 2)))
    middle = np.abs(obs).sum(axis=-1) < 0.5
    assert 0 < middle.sum() < 300
    assert not reward[middle].any() and (reward[~middle] > 0.0).all()


def test_the_corners_are_four_tasks():
    goals = NavigationCorners(name="c").sample(4, np.random.default_rng(0), distinct=True)
    assert {tuple(t.values.values()) for t in goals} == {(x, y) for x in (-2, 2) for y in (-2, 2)}


def test_single_rows_start_anew_while_others_go_on():
    family = square(variant="pearl", horizon=3)
    tasks = [family.task({"x": x, "y": 0.5}) for x in (0.1, 0.2, 0.3)]
    points = family.simulate(tasks[:2], 1)
    points.reset(seed=0)
    for _ in range(2):
        before = points.step(np.ones((2, 1, 2)))[0]
    obs = points.restart(np.array([1]), tasks[2:], [np.random.default_rng(5)])
    assert obs == pytest.approx(np.random.default_rng(5).uniform(-1.0, 1.0, (1, 2)))
    assert points.tasks == [tasks[0], tasks[2]]
    after, reward, _, truncated = points.step(np.zeros((2, 1, 2)))
    assert np.array_equal(after, [before[0], obs])
    goals = [[0.1, 0.5], [0.3, 0.5]]
    assert reward[:, 0] == pytest.approx(-np.linalg.norm(after[:, 0] - goals, axis=1))
    assert truncated[:, 0].tolist() == [True, False]
    with pytest.raises(TaskError, match="restart needs copies=1"):
        family.simulate(tasks, 2).restart(np.array([0]), tasks[:1], [np.random.default_rng(0)])


def test_a_picture_shows_where_the_point_has_been():
    points = simulate(square(), {"x": 0.5, "y": -0.5}, {"x": 0.5, "y": -0.5}, copies=2)
    points.reset(seed=0)
    start = points.look(3)
    assert isinstance(start, np.ndarray) and start.dtype == np.uint8 and start.shape[2] == 3
    assert np.array_equal(start, points.look(0))
    move = np.zeros((2, 2, 2))
    move[1, 1] = 1.0, 1.0
    for back in (1.0, -1.0):
        points.step(back * move)
    assert not np.array_equal(start, points.look(3))  # back at the start, but with a trail
    assert np.array_equal(start, points.look(2))


def test_faults_work_beside_a_goal_and_other_parameters_do_not():
    fault = {"fault": Param(to="action:0", op="scale", choices=[-1.0])}
    family = square(params=fault)
    points = family.open([family.task({"x": 0.5, "y": 0.5, "fault": -1.0})], 1)
    points.reset(seed=0)
    assert points.step(np.ones((1, 1, 2)))[0][0, 0] == pytest.approx([-0.1, 0.1])
    with pytest.raises(ValueError, match=r"params must be just 'x', 'y', got \['wind', 'x', 'y'\]"):
        square(params={"wind": ANGLE})
