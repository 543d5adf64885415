"""Swimmer against gymnasium's own; target speeds by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.swimmer import Swimmer, SwimmerVel
from tests.against_gymnasium import compare


def test_it_equals_gymnasium():
    """Measured: 0.0 in observation and reward."""
    gaps = compare(Swimmer(name="swimmer", horizon=1000), "Swimmer-v5")
    print(f"largest differences from Swimmer-v5: {gaps}")
    assert max(gaps[:2]) == 0.0


def test_missing_the_target_speed_costs():
    family = SwimmerVel(name="swimmer")
    sims = family.simulate([family.task({"speed": speed}) for speed in (0.1, 0.2)], 1)
    sims.reset(0)
    before = sims.qpos[:, 0] - 0.15 * 0.04  # 0.15 m/s for a step of 4 x 10 ms
    cost = 1e-4 * (0.5**2 + 1.0**2)
    reward = sims.reward(before, np.array([[0.5, -1.0], [0.5, -1.0]]))
    assert reward == pytest.approx([-0.05 - cost, -0.05 - cost])
    assert sims.reward(sims.qpos[:, 0] - 0.2 * 0.04, np.zeros((2, 2))) == pytest.approx([-0.1, 0.0])


def test_target_speeds_are_promps_and_hidden():
    family = SwimmerVel(name="swimmer")
    assert (family.id, family.obs_size) == ("swimmer:promp", 8)
    rng = np.random.default_rng(0)
    speeds = [task.values["speed"] for task in family.sample(200, rng)]
    assert 0.1 <= min(speeds) < 0.11 and 0.19 < max(speeds) <= 0.2
    assert all(0.2 <= task.values["speed"] <= 0.3 for task in family.sample(20, rng, "ood"))


def test_the_start_is_gymnasiums():
    sims = Swimmer(name="swimmer")
    sims = sims.simulate([sims.task({})], 1000)
    sims.reset(0)
    for noise in (sims.qpos, sims.qvel):
        assert 0.099 < np.abs(noise).max() <= 0.1
        assert noise.std() == pytest.approx(0.1 / math.sqrt(3.0), rel=0.05)
