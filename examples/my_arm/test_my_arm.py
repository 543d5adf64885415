"""Tests of the arm and of its tasks: ``pytest`` in this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from my_arm.reaching import REACH, ReachingArm

from envs.check import check_family
from envs.gym_tasks import GymTasks
from envs.param import Param
from envs.task import TaskDistribution
from envs.testing import FamilyContract


def read_family() -> GymTasks:
    """The family of ``conf/env/my_arm.yaml``."""
    text = Path(__file__).with_name("conf").joinpath("env/my_arm.yaml").read_text()
    settings = yaml.safe_load(text)
    del settings["_target_"]
    params = {name: Param(**each) for name, each in settings.pop("params").items()}
    return GymTasks(**settings, params=params)


class TestMyArm(FamilyContract):
    """What every family has to keep; the tests are inherited."""

    def make_family(self) -> TaskDistribution:
        """The arm's."""
        return read_family()


def test_the_checker_finds_nothing_wrong() -> None:
    """Neither a failure nor a warning."""
    found = check_family(read_family())
    assert [each for each in found if each.status in ("failed", "warning")] == []


def forward(qpos: np.ndarray) -> np.ndarray:
    """The hand's place after links of 0.25 and 0.2 m."""
    first, both = qpos[0], qpos[0] + qpos[1]
    upper, fore = 0.25 * np.exp(1j * first), 0.2 * np.exp(1j * both)
    return np.array([(upper + fore).real, (upper + fore).imag])


def test_the_hand_is_where_geometry_says() -> None:
    """And the reward is the distance that is left to a goal 0.33 m from the shoulder."""
    env = ReachingArm(effort_cost=0.0)
    env.reset(seed=0, options={"goal_angle": 0.5})
    goal = 0.33 * np.array([np.cos(0.5), np.sin(0.5)])
    for pose in ([0.0, 0.0], [1.0, -2.0], [-0.5, 1.5]):
        env.set_state(np.array(pose), np.zeros(2))
        obs, reward, *_ = env.step(np.zeros(2, np.float32))
        assert obs[4:] == pytest.approx(forward(np.array(pose)), abs=1e-6)
        assert reward == pytest.approx(-np.linalg.norm(obs[4:] - goal), abs=1e-6)
    env.close()


@pytest.mark.parametrize("angle", [-1.4, 0.0, 1.4])
def test_a_simple_controller_arrives(angle: float) -> None:
    """Each joint's speed along the way that is left (the transposed Jacobian)."""
    env = ReachingArm()
    obs, _ = env.reset(seed=0, options={"goal_angle": angle})
    goal = REACH * np.array([np.cos(angle), np.sin(angle)])
    arrived = []
    for _ in range(60):
        step = 1e-6 * np.eye(2)
        jacobian = [(forward(obs[:2] + each) - forward(obs[:2])) / 1e-6 for each in step]
        command = np.clip(40.0 * np.array(jacobian) @ (goal - obs[4:]), -3, 3)
        obs, _, _, _, info = env.step(command.astype(np.float32))
        arrived.append(info["success"])
    assert arrived[-1] and not arrived[0]
    env.close()
