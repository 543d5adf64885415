# pyright: reportAttributeAccessIssue=false
"""Any Gymnasium environment as a family: parameters, ends of episodes, spaces and errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from agent.policy import GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from envs.gym_tasks import GymTasks
from envs.half_cheetah import HalfCheetah
from envs.parallel.rows import RowError
from envs.task import Param, Task, TaskError, VectorTasks
from tests.my_gym_envs import Fragile

ROOT = Path(__file__).parent.parent


def gym_tasks(env_id: str, horizon: int = 10, **fields: Any) -> GymTasks:
    return GymTasks(name="test", env_id=env_id, horizon=horizon, **fields)


def fragile(horizon: int = 10, **kwargs: Any) -> GymTasks:
    return gym_tasks("engram-test/Fragile-v0", horizon, kwargs=kwargs)


def lives(horizon: int = 10, how: str = "terminated") -> GymTasks:
    life = Param(to="kwarg:life", choices=[0.0, 3.0, 5.0, 13.0, 99.0])
    kwargs = {"how": how, "disable_env_checker": True}  # it would warn of what is not finite
    return gym_tasks("engram-test/Fragile-v0", horizon, kwargs=kwargs, params={"life": life})


def task(**values: float) -> Task:
    return Task("test", values)


def zeros(sims: VectorTasks, size: int = 2) -> np.ndarray:
    return np.zeros((len(sims.tasks), sims.copies, size))


def play(sims: VectorTasks, steps: int, size: int = 2) -> list[np.ndarray]:
    """Observations, rewards, terminated and truncated of some steps of action 0, each [H, T, E]."""
    results = [sims.step(zeros(sims, size)) for _ in range(steps)]
    return [np.stack(column) for column in zip(*results, strict=True)]


def pendulum(to: str, **fields: Any) -> GymTasks:
    param = Param(to=to, low=0.5, high=15.0, **fields)
    return gym_tasks("Pendulum-v1", 200, params={"x": param})


def pendulum_step(
    obs: np.ndarray, u: float, g: float = 10.0, m: float = 1.0
) -> tuple[np.ndarray, float]:
    """Pendulum-v1's equations: length 1, dt 0.05, speed at most 8, torque at most 2."""
    angle, speed = np.arctan2(obs[1], obs[0]), obs[2]
    cost = angle**2 + 0.1 * speed**2 + 0.001 * u**2
    speed = np.clip(speed + (1.5 * g * np.sin(angle) + 3.0 / m * u) * 0.05, -8.0, 8.0)
    angle = angle + speed * 0.05
    return np.array([np.cos(angle), np.sin(angle), speed]), -cost


@pytest.mark.parametrize(
    ("family", "values", "constants"),
    [
        (pendulum("attr:g"), [5.0, 15.0], [{"g": 5.0}, {"g": 15.0}]),
        (pendulum("attr:m", op="scale"), [0.5, 2.0], [{"m": 0.5}, {"m": 2.0}]),
        (pendulum("attr:g", op="add"), [1.0, 3.0], [{"g": 11.0}, {"g": 13.0}]),
        (pendulum("kwarg:g"), [5.5, 15.0], [{"g": 5.5}, {"g": 15.0}]),
    ],
)
def test_a_parameter_changes_the_pendulum_as_its_equations_say(
    family: GymTasks, values: list[float], constants: list[dict]
):
    sims = family.open([task(x=value) for value in values], 2)
    obs = sims.reset(seed=0)
    assert obs.shape == (2, 2, 3) and obs.dtype == np.float64
    for u in (1.5, -0.5, 2.0):
        before = obs
        obs, reward, _, _ = sims.step(np.full((2, 2, 1), u))
        for t in range(2):
            for e in range(2):
                expected, expected_reward = pendulum_step(before[t, e], u, **constants[t])
                assert obs[t, e] == pytest.approx(expected, abs=1e-5)
                assert reward[t, e] == pytest.approx(expected_reward, abs=1e-5)


def test_the_shipped_pendulum_config_is_such_a_family():
    fields: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/env/pendulum.yaml"))
    assert fields.pop("_target_") == "envs.gym_tasks.GymTasks"
    family = TypeAdapter(GymTasks).validate_python(fields)
    assert (family.obs_size, family.action_size, family.horizon) == (3, 1, 200)
    assert [bound.tolist() for bound in family.action_range] == [[-2.0], [2.0]]
    tasks = family.sample(2, np.random.default_rng(0))
    sims = family.open(tasks, 1)
    for drawn, env in zip(tasks, sims.envs, strict=True):
        assert env.unwrapped.g == drawn.values["gravity"]
        assert env.unwrapped.m == drawn.values["mass"]


def test_model_parameters_equal_the_native_engine():
    params = {
        "torso": Param(to="model:body_mass[torso]", op="scale", low=0.5, high=2.0),
        "bshin": Param(to="model:actuator_gear[bshin]", op="scale", low=-1.0, high=2.0),
        "gravity": Param(to="option:gravity[2]", op="add", low=-2.0, high=2.0),
        "dt": Param(to="option:timestep", low=0.005, high=0.01),
    }
    values = {"torso": 1.6, "bshin": -0.5, "gravity": 1.5, "dt": 0.008}
    native = HalfCheetah(name="test", horizon=300, params=params).open([task(**values)], 1)
    sims = gym_tasks("HalfCheetah-v5", 300, params=params).open([task(**values)], 1)
    native.reset(seed=0)
    sims.reset(seed=0)
    inner: Any = sims.envs[0].unwrapped
    mujoco.mj_resetData(inner.model, inner.data)
    inner.set_state(native.qpos[0].copy(), native.qvel[0].copy())
    moves = np.random.default_rng(0).uniform(-1, 1, (300, 1, 1, 6)).astype(np.float32)
    for move in moves:
        expected, found = native.step(move), sims.step(move)
        assert np.abs(found[0] - expected[0]).max() <= 1e-9
        assert np.abs(found[1] - expected[1]).max() <= 1e-9
    assert np.abs(native.qpos).max() > 0.5


def test_model_parameters_are_relative_to_nominal():
    mass: dict[str, Any] = {"op": "scale", "low": 0.5, "high": 4.0}
    params = {
        "all": Param(to="model:body_mass", **mass),
        "torso": Param(to="model:body_mass[torso]", **mass),
    }
    family = gym_tasks("HalfCheetah-v5", params=params)
    inner: Any = family.open([task(all=2.0, torso=3.0)], 1).envs[0].unwrapped
    nominal: Any = gymnasium.make("HalfCheetah-v5").unwrapped
    torso = inner.model.body("torso").id
    assert inner.model.body_mass[torso] == 2.0 * 3.0 * nominal.model.body_mass[torso]
    assert inner.model.body_mass[torso + 1] == 2.0 * nominal.model.body_mass[torso + 1]
    assert inner.model.body_subtreemass[0] != nominal.model.body_subtreemass[0]  # mj_setConst ran


def test_attributes_keep_their_kind():
    params = {
        "life": Param(to="attr:life", low=1.0, high=9.0),
        "size": Param(to="attr:size", op="scale", low=0.5, high=2.0),
    }
    family = gym_tasks("engram-test/Fragile-v0", params=params)
    envs = family.open([task(life=4.0, size=1.5), task(life=4.5, size=1.0)], 1).envs
    whole, half = (env.unwrapped for env in envs)
    assert (whole.life, type(whole.life)) == (4, int)
    assert half.life == 4.5
    assert whole.size.tolist() == [1.5, 1.5]
    whole.size[0] = 7.0  # an environment may write into its own array


def test_whole_choices_reach_a_kwarg_as_integers():
    life: Any = lives().open([task(life=5.0)], 1).envs[0].unwrapped.life
    assert (life, type(life)) == (5, int)


def test_an_ended_episode_is_not_stepped_again():
    sims = lives().open([task(life=3.0), task(life=5.0)], 2)
    sims.reset(seed=0)
    obs, reward, terminated, truncated = play(sims, 10)
    for t, life in enumerate((3, 5)):
        assert terminated[:, t, :].sum(axis=0).tolist() == [1, 1]
        assert terminated[life - 1, t].all()
        assert reward[:, t, 0].tolist() == [1.0] * life + [0.0] * (10 - life)
        assert obs[:, t, 0, 0].tolist() == [*range(1, life + 1), *[life] * (10 - life)]
    assert not truncated.any() and not sims.diverged.any()
    sims.reset(seed=0)
    assert play(sims, 3)[2][2].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_terminated_and_truncated_stay_apart(how: str):
    sims = fragile(how=how).open([task()], 1)
    sims.reset(seed=0)
    _, _, terminated, truncated = play(sims, 4)
    assert terminated.any() == (how == "terminated")
    assert truncated.any() == (how == "truncated")


def test_episodes_are_truncated_at_the_horizon():
    sims = fragile(horizon=4, life=99).open([task()], 2)
    for _ in range(2):
        sims.reset(seed=0)
        assert play(sims, 6)[3][:, 0, 0].tolist() == [False, False, False, True, False, False]


def test_an_environments_own_time_limit_is_kept():
    family = gym_tasks("engram-test/Limited-v0", 10, kwargs={"life": 99})
    sims = family.open([task()], 1)
    sims.reset(seed=0)
    _, reward, terminated, truncated = play(sims, 10)
    assert np.flatnonzero(truncated).tolist() == [4]
    assert reward.sum() == 5.0
    assert not terminated.any()


def test_equal_seeds_give_equal_starts():
    sims = fragile().open([task(), task()], 3)
    starts = [sims.reset(seed) for seed in (2**61 + 1, 2**61 + 1, 2)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    assert len(np.unique(starts[0][..., 1])) == 6
    assert starts[0].shape == (2, 3, 2)


def test_results_are_copies():
    sims = fragile().open([task()], 1)
    start = sims.reset(seed=0)
    start[:] = 9.0
    first, _, _, _ = sims.step(zeros(sims))
    assert first[0, 0, 0] == 1.0
    sims.step(zeros(sims))
    assert first[0, 0, 0] == 1.0


@pytest.mark.parametrize(
    ("how", "what"), [("nan", r"the observation\[0\] is nan"), ("reward", "the reward is inf")]
)
def test_what_is_not_finite_is_an_error_that_says_where(how: str, what: str):
    sims = lives(how=how).open([task(life=99.0), task(life=3.0)], 1)
    sims.reset(seed=7)
    seed = np.random.SeedSequence(7).generate_state(2)[1]
    play(sims, 2)
    with pytest.raises(RowError, match=rf"row 1 \(task 'life 3'\), step 3, seed {seed}: {what}"):
        play(sims, 1)


def test_a_start_that_is_not_finite_is_an_error_that_says_where():
    sims = lives().open([task(life=5.0), task(life=0.0)], 1)
    with pytest.raises(RowError, match=r"row 1 .*'life 0'\), step 0 \(reset\), seed .* is nan"):
        sims.reset(seed=0)


def blow_up(env_id: str, after: int) -> VectorTasks:
    """Two simulations, of which the second blows up in the step that follows."""
    sims = gym_tasks(env_id).open([task()], 2)
    sims.reset(seed=0)
    for _ in range(after):
        sims.step(zeros(sims, 6))
    assert not sims.diverged.any()
    inner: Any = sims.envs[1].unwrapped
    inner.data.qvel[2] = 1e12
    return sims


@pytest.mark.parametrize(
    ("env_id", "after"),
    [
        ("HalfCheetah-v5", 0),
        ("HalfCheetah-v5", 3),
        ("engram-test/Hides-v0", 3),
        ("engram-test/Keeps-v0", 3),
    ],
)
def test_physics_that_blow_up_are_flagged_until_reset(env_id: str, after: int):
    sims = blow_up(env_id, after)
    obs, reward, _, truncated = play(sims, 3, 6)
    assert sims.diverged.tolist() == [[False, True]]
    assert truncated[:, 0, 1].tolist() == [True, False, False]
    assert not reward[:, 0, 1].any() and reward[:, 0, 0].all()
    assert np.isfinite(obs).all()
    sims.reset(seed=0)
    play(sims, 3, 6)
    assert not sims.diverged.any()


def test_no_log_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    play(blow_up("HalfCheetah-v5", 0), 1, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_learner_sees_early_ends_masked():
    family = gym_tasks("Hopper-v5", 120)
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[8]))
    params = policy.init(torch.Generator().manual_seed(0)).expand(2, -1)
    with TaskBatch(family, [task(), task()], 2, policy, np.random.default_rng(0)) as batch:
        episodes = batch.collect(params)
        steps = batch.steps_used
    lengths = episodes.mask.sum(-1)
    assert episodes.terminated.all() and lengths.max() < 120
    assert steps == lengths.sum()
    for row, length in zip(episodes.mask.flatten(0, 1), lengths.flatten().int(), strict=True):
        assert row[:length].all() and not row[length:].any()
    last = int(lengths[0, 0]) - 1
    assert torch.equal(episodes.next_obs()[0, 0, last], episodes.final_obs[0, 0])
    assert not torch.equal(episodes.obs[0, 0, last], episodes.final_obs[0, 0])
    assert torch.equal(episodes.returns(), (episodes.reward * episodes.mask).sum(-1))


UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"action": UNBOUNDED}, r"the action space has Box\(-inf, inf.*give action_limits: \["),
        ({"action": spaces.Text(3)}, r"the action space has Text\(.*supported are Box, Discrete"),
        ({"obs": spaces.Sequence(spaces.Discrete(2))}, "the observation space has Sequence"),
        ({"obs": spaces.Box(0, 255, (64, 64, 3), np.uint8)}, "flattens to 12,288 numbers"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(given: dict, message: str):
    family = gym_tasks("engram-test/Spaces-v0", kwargs=given)
    for read in (lambda: family.obs_size, lambda: family.open([task()], 1)):
        with pytest.raises(TaskError, match=message) as caught:
            read()
        assert str(caught.value).startswith("test: 'engram-test/Spaces-v0': the ")


def test_an_observation_of_another_shape_is_not_broadcast():
    sims = fragile(how="shape").open([task()], 1)
    sims.reset(seed=0)
    with pytest.raises(RowError, match=r"row 0 \(task 'nominal'\), step 3.* \(2, 1\).* \(1, 1\)"):
        play(sims, 3)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Pendulm-v1", "test: cannot make 'Pendulm-v1': .*Did you mean: `Pendulum`"),
        ("no_such_module:Thing-v0", "cannot make 'no_such_module:Thing-v0': .*No module named"),
    ],
)
def test_a_wrong_env_id_says_what_gymnasium_knows(env_id: str, message: str):
    with pytest.raises(ValueError, match=message):
        _ = gym_tasks(env_id).obs_size


@pytest.mark.parametrize(
    ("env_id", "target", "message"),
    [
        ("Pendulum-v1", "attr:gravity", "'attr:gravity': PendulumEnv has no number or array"),
        ("Pendulum-v1", "attr:reset", "'attr:reset': PendulumEnv has no number or array"),
        ("Pendulum-v1", "model:body_mass", "PendulumEnv has no MuJoCo model"),
        ("HalfCheetah-v5", "attr:dt", "'attr:dt' cannot be set: .*no setter"),
        ("HalfCheetah-v5", "model:body_mass[wing]", r"body_mass\[wing\]: no row of that name"),
        ("HalfCheetah-v5", "option:wnd[0]", "no field of real numbers 'wnd'"),
    ],
)
def test_a_bad_target_is_named(env_id: str, target: str, message: str):
    family = gym_tasks(env_id, params={"x": Param(to=target, low=0.5, high=1.0)})
    with pytest.raises(ValueError, match=r"test\.params\.x: .*" + message):
        family.open([task(x=0.5)], 1)


def test_a_kwarg_that_is_unknown_or_not_set_is_refused():
    with pytest.raises(ValueError, match=r"cannot make 'Pendulum-v1': .*'gravity'"):
        _ = pendulum("kwarg:gravity").obs_size
    with pytest.raises(ValueError, match=r"test\.params\.x: 'kwarg:g' takes op=set only, got op=s"):
        pendulum("kwarg:g", op="scale")


def test_a_folder_of_ones_own_is_appended_to_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "engram_test_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gymnasium.register('engram-test/Mine-v0', entry_point=PendulumEnv)\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    family = gym_tasks("engram_test_module:engram-test/Mine-v0", import_path=["~/mine"])
    assert family.obs_size == 3
    family.open([task(), task()], 2).close()
    assert sys.path == [*before, str(folder)]


def test_closing_closes_every_environment():
    family = lives()
    _ = family.probe
    Fragile.closed = 0
    sims = family.open([task(life=3.0), task(life=5.0)], 2)
    sims.close()
    sims.close()
    assert Fragile.closed == 4


def test_a_task_that_cannot_be_opened_closes_the_others():
    family = lives()
    _ = family.probe
    Fragile.closed = 0
    with pytest.raises(ValueError, match=r"cannot make .*13 is no life"):
        family.open([task(life=3.0), task(life=13.0)], 2)
    assert Fragile.closed == 2
