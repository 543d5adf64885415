"""2-D navigation, against rewards worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.navigation import Navigation
from envs.task import Param, Task

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
    with pytest.raises(ValueError, match=r"got \[\]"):
        Navigation(name="nav")
