"""The native families as Gymnasium environments and under stable-baselines3."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from agent.sb3 import TaskVecEnv, make_vec_env
from envs.citizens import NativeEnv, NativeVectorEnv
from envs.half_cheetah import HalfCheetahVel
from envs.registration import ids

VEL = "engram/HalfCheetahVel-v0"


def vector(num_envs: int = 3, **settings: Any) -> NativeVectorEnv:
    settings = {"horizon": 4} | settings
    made: Any = gymnasium.make_vec(VEL, num_envs, **settings)
    assert isinstance(made, NativeVectorEnv)
    return made


@pytest.mark.parametrize("env_id", sorted(ids()))
def test_every_id_passes_both_checkers(env_id: str):
    env = gymnasium.make(env_id).unwrapped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity.*|.*symmetric.*|.*-infinity.*")
        check_env(env, skip_render_check=True)
        check_env_sb3(env, skip_render_check=True)
    env.close()
    many = gymnasium.make_vec(env_id, 2)
    assert isinstance(many, NativeVectorEnv)
    assert many.reset(seed=0)[0].shape == (2, *many.single_observation_space.shape)  # pyright: ignore
    many.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_equals_gymnasiums_own_vectoriser(mode: AutoresetMode):
    """The oracle: SyncVectorEnv over single environments, with tasks, seeds and autoresets."""
    ours = vector(autoreset_mode=mode)
    theirs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make(VEL, horizon=4) for _ in range(3)], autoreset_mode=mode
    )
    first, info = ours.reset(seed=5)
    expected, expected_info = theirs.reset(seed=5)
    assert np.array_equal(first, expected)
    np.testing.assert_array_equal(info["task"]["speed"], expected_info["task"]["speed"])
    rng = np.random.default_rng(0)
    for _ in range(14):
        action = rng.uniform(-1, 1, (3, 6)).astype(np.float32)
        *step, info = ours.step(action)
        *expected, expected_info = theirs.step(action)
        for mine, reference in zip(step, expected, strict=True):
            np.testing.assert_array_equal(mine, reference)
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        if "final_obs" in info:
            np.testing.assert_array_equal(
                np.stack(info["final_obs"]), np.stack(expected_info["final_obs"])
            )
    theirs.close()


def test_the_vector_entry_point_is_the_native_engine_and_single_ones_are_made_too():
    assert isinstance(gymnasium.make(f"envs.registration:{VEL}").unwrapped, NativeEnv)
    env = vector(variant="pearl", split="ood")
    assert env.family.id == "half_cheetah_vel:pearl"
    env.reset(seed=0)
    assert all(task.values["speed"] >= 3.0 for task in env.tasks)


def test_each_episode_is_a_new_task_unless_one_is_pinned():
    env = vector(2)
    env.reset(seed=0)
    before = [task.values["speed"] for task in env.tasks]
    for _ in range(5):
        env.step(np.zeros((2, 6), np.float32))
    assert all(task.values["speed"] != old for task, old in zip(env.tasks, before, strict=True))
    env.reset(options={"task": [{"speed": 1.0}, {"speed": 2.0}]})
    for _ in range(11):  # through two autoresets
        env.step(np.zeros((2, 6), np.float32))
        assert [task.values["speed"] for task in env.tasks] == [1.0, 2.0]
    env.reset(options={"task": None})
    assert {task.values["speed"] for task in env.tasks}.isdisjoint({1.0, 2.0})


def test_rows_can_be_reset_by_hand():
    env = vector(3, autoreset_mode="Disabled")
    env.reset(seed=0)
    zeros = np.zeros((3, 6), np.float32)
    for _ in range(4):
        obs, *_ = env.step(zeros)
    with pytest.raises(ResetNeeded, match=r"episodes \[0, 1, 2\] have ended"):
        env.step(zeros)
    fresh, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert np.array_equal(fresh[1], obs[1]) and not np.array_equal(fresh[0], obs[0])
    with pytest.raises(ResetNeeded, match=r"episodes \[1\]"):
        env.step(zeros)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tsak": {}}, r"unknown reset options \['tsak'\]"),
        ({"reset_mask": [True]}, r"bool array of shape \(3,\)"),
        ({"task": [{"speed": 1.0}]}, "expected one, or 3 of them, got 1"),
        ({"task": {"sped": 1.0}}, "no parameter 'sped'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        vector().reset(options=options)


def test_a_blow_up_ends_the_episode_and_is_told():
    env: Any = vector(2, horizon=50)
    env.reset(seed=0)
    env._simulators.qvel[1, 2] = 1e12
    _, reward, terminated, truncated, info = env.step(np.zeros((2, 6), np.float32))
    assert truncated.tolist() == [False, True] and not terminated.any() and reward[1] == 0.0
    assert info["diverged"].tolist() == [False, True]


def test_stable_baselines_sees_what_gymnasium_does():
    ours = make_vec_env(VEL, 2, horizon=3, task={"speed": 1.0})
    reference = vector(2, horizon=3, autoreset_mode="SameStep", task={"speed": 1.0})
    ours.seed(7)
    np.testing.assert_array_equal(ours.reset(), reference.reset(seed=7)[0].astype(np.float32))
    for h in range(7):
        action = np.full((2, 6), 0.1 * h, np.float32)
        obs, reward, done, infos = ours.step(action)
        expected, expected_reward, _, truncated, info = reference.step(action)
        np.testing.assert_array_equal(obs, expected.astype(np.float32))
        np.testing.assert_array_equal(reward, expected_reward.astype(np.float32))
        assert done.tolist() == truncated.tolist()
        for row in np.flatnonzero(done):
            last = info["final_obs"][row].astype(np.float32)
            np.testing.assert_array_equal(infos[row]["terminal_observation"], last)
            assert infos[row]["TimeLimit.truncated"] and not infos[row]["diverged"]
    ours.set_options({"task": {"speed": 2.5}})
    ours.reset()
    for _ in range(4):
        ours.step(np.zeros((2, 6)))
    assert [task.values["speed"] for task in ours.get_attr("tasks")] == [2.5, 2.5]


def test_ppo_learns_on_the_native_engine():
    """A known answer: 30,000 steps of PPO stand still rather than thrash (return up by 30)."""
    settings: Any = {"task": {"speed": 0.0}, "horizon": 50, "ctrl_cost": 1.0}
    env = make_vec_env(VEL, 16, **settings)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=256, learning_rate=1e-3, seed=0)

    def mean_return() -> float:
        test = vector(16, autoreset_mode="SameStep", **settings)
        obs, _ = test.reset(seed=3)
        total = np.zeros(16)
        for _ in range(50):
            action, _ = model.predict(obs.astype(np.float32))
            obs, reward, *_ = test.step(action)
            total += reward
        return float(total.mean())

    before = mean_return()
    model.learn(30_000)
    assert mean_return() > before + 30.0


def test_the_adapter_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="needs SAME_STEP"):
        TaskVecEnv(vector())
    with pytest.raises(ValueError, match="none of Engram's own"):
        make_vec_env("CartPole-v1", 2)
    with pytest.raises(ValueError, match="settings go to a class"):
        NativeVectorEnv(HalfCheetahVel(name="x"), 2, variant="pearl")
