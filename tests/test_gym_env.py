# pyright: reportAttributeAccessIssue=false
"""Gymnasium environments with a task: episodes equal gymnasium's own, and resets keep the task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.spaces.utils import flatten
from pydantic import TypeAdapter

from envs.gym_tasks import GymTasks
from envs.parallel.rows import RowError
from envs.task import Param, Task, TaskError
from envs.wrapped.env import TaskEnv
from tests.my_gym_envs import Fragile, Goal

HERE = "tests.my_gym_envs"


def family(env_id: str, horizon: int = 30, **fields: Any) -> GymTasks:
    if env_id.startswith("engram-test/"):
        env_id = f"{HERE}:{env_id}"  # as a user would name it: the module registers them
    fields = {"name": "test", "env_id": env_id, "horizon": horizon, **fields}
    return TypeAdapter(GymTasks).validate_python(fields)


def param(to: str | list[str], *choices: float, **fields: Any) -> Param:
    return Param(to=to, choices=list(choices), **fields)


def task(**values: float) -> Task:
    return Task("test", values)


def moves(family: GymTasks, steps: int, seed: int = 0) -> np.ndarray:
    low, high = family.action_range
    return np.random.default_rng(seed).uniform(low, high, (steps, family.action_size))


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("MountainCarContinuous-v0", {}),
        ("Hopper-v5", {}),
        ("HalfCheetah-v5", {"max_episode_steps": 20}),
        ("FrozenLake-v1", {"is_slippery": False, "map_name": "8x8"}),
        ("Blackjack-v1", {}),
    ],
)
def test_episodes_are_gymnasiums_own(env_id: str, kwargs: dict):
    tasks = family(env_id, 60, kwargs=kwargs)
    sims = tasks.open([task(), task()], 2)
    env = gymnasium.make(env_id, **kwargs)
    actions = np.stack([moves(tasks, 60, seed=row) for row in range(4)], axis=1)
    for episode in (3, 4):
        seeds = np.random.SeedSequence(episode).generate_state(4)
        obs = [sims.reset(episode).reshape(4, -1)]
        rest = []
        for action in actions:
            now, *others = sims.step(action.reshape(2, 2, -1))
            obs.append(now.reshape(4, -1))
            rest.append(np.reshape(others, (3, 4)).T.tolist())
        for row in range(4):
            expected = by_hand(env, int(seeds[row]), actions[:, row])
            for h, (flat, *others) in enumerate(expected):
                assert np.array_equal(obs[h][row], flat)
                assert h == 0 or rest[h - 1][row] == others
            assert len(expected) == 61 or any(expected[-1][2:])


def by_hand(env: gymnasium.Env, seed: int, actions: np.ndarray) -> list[list[Any]]:
    """Flat observation, reward, terminated and truncated of one episode of at most 60 steps."""

    def flat(obs: Any) -> np.ndarray:
        return np.asarray(flatten(env.observation_space, obs)).astype(np.float64)

    found = [[flat(env.reset(seed=seed)[0]), 0.0, False, False]]
    for h, row in enumerate(actions):
        discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        obs, *rest, _ = env.step(row.argmax() if discrete else row.astype(np.float32))
        rest[2] = rest[2] or h == 59
        found.append([flat(obs), *rest])
        if rest[1] or rest[2]:
            break
    return found


def goals(**fields: Any) -> GymTasks:
    return family(
        "engram-test/Goal-v0",
        params={
            "x": Param(to="reset:goal[0]", low=-3.0, high=3.0),
            "y": Param(to="reset:goal[1]", low=-3.0, high=3.0),
            "kind": param("reset:kind", 1, 2, 3),
            "speed": Param(to="call:set_speed", low=0.1, high=1.0),
        },
        **fields,
    )


VALUES = [{"x": 2.0, "y": -1.0, "kind": 3.0, "speed": 0.5}, {"x": 0, "y": 1, "kind": 1, "speed": 1}]


def test_reset_and_call_values_come_at_every_reset_and_spaces_may_be_nested():
    tasks = goals()
    names = [entry.name for entry in tasks.probe.observation.table()]
    assert names == ["state[0]", "state[1]", "goal.position", "goal.kind"]
    assert (tasks.obs_size, tasks.action_size) == (2 + 1 + 2 + 3, 2 + 2)
    sims = tasks.open([task(**values) for values in VALUES], 1)
    envs: list[Any] = [env.unwrapped for env in sims.envs]
    for episode in range(3):
        obs = sims.reset(episode)
        for t, values in enumerate(VALUES):
            assert obs[t, 0, 2] == np.float32(values["speed"])
            assert obs[t, 0, 3:5].tolist() == [values["x"], values["y"]]
            assert obs[t, 0, 5:].argmax() + 1 == values["kind"]
            assert envs[t].calls == episode + 1
        # Task 0: boost 2 (the second score is higher), speed 0.5.
        after, reward, _, _ = sims.step(np.tile([0.5, -1.0, 0.0, 1.0], (2, 1, 1)))
        assert after[0, 0, :2] == pytest.approx(obs[0, 0, :2] + 0.5 * 2 * np.array([0.5, -1.0]))
        assert reward[0, 0] == pytest.approx(-np.abs(after[0, 0, :2] - [2.0, -1.0]).max())


def test_success_is_kept_until_the_next_reset():
    sims = goals().open([task(**(VALUES[1] | {"x": 0.0, "y": 3.0}))], 1)
    sims.reset(seed=0)
    seen = []
    for _ in range(8):  # along y, and on beyond the goal
        obs = sims.step(np.array([[[-obs_x(sims), 1.0, 1.0, 0.0]]]))[0]
        near = np.abs(obs[0, 0, :2] - [0.0, 3.0]).max() < 0.5
        seen.append(bool(near))
        assert sims.success is not None and sims.success[0, 0] == any(seen)
    assert any(seen) and not seen[-1]
    sims.reset(seed=0)
    assert sims.success is not None and not sims.success.any()

    row = goals().make(VALUES[1])
    row.reset(0)
    env: Any = row.env.unwrapped
    stay, told = np.array([0.0, 0.0, 1.0, 0.0]), []
    for place in (env.goal + 9, env.goal, env.goal + 9):
        env.place = place
        told.append(row.step(stay).success)
    row.reset(0)
    env.place = env.goal + 9
    assert [*told, row.step(stay).success] == [False, True, True, False]


def obs_x(sims: Any) -> float:
    return float(np.clip(sims.envs[0].unwrapped.place[0], -1.0, 1.0))


def test_what_does_not_tell_of_success_has_none():
    assert goals(kwargs={"told": False}).open([task(**VALUES[0])], 1).success is None
    sims = goals(kwargs={"told": False}, success_key="is_success").open([task(**VALUES[0])], 1)
    assert sims.success is not None


@pytest.mark.parametrize(
    ("info", "key", "expected"),
    [
        ({"is_success": 1.0, "solved": False}, None, True),
        ({"success": np.float32(0.0), "solved": True}, None, False),
        ({"solved": np.array([True])}, None, True),
        ({"won": True, "success": False}, "won", True),
    ],
)
def test_the_first_key_that_is_there_tells_of_success(info: dict, key: str | None, expected: bool):
    row = family("engram-test/Fragile-v0", success_key=key).make({})
    row.reset(0)
    inner: Any = row.env.unwrapped
    ordinary = inner.step
    inner.step = lambda action: (*ordinary(action)[:4], info)
    assert row.step(np.zeros(2)).success is expected
    assert row.reports_success


def test_a_success_key_that_never_comes_is_an_error_that_names_the_nearest():
    for key, length in (("succeeded", 3), ("suceeded", 2)):
        sims = family("engram-test/Late-v0", success_key=key).open([task()], 1)
        sims.reset(seed=0)
        for _ in range(length):
            sims.step(np.zeros((1, 1, 2)))
        if key == "succeeded":
            assert sims.success is not None and sims.success.all()
        else:
            with pytest.raises(RowError, match=r"'suceeded' was in no info.*mean 'succeeded'"):
                sims.step(np.zeros((1, 1, 2)))


def body(**fields: Any) -> GymTasks:
    params = {
        "torso": Param(to="model:body_mass[torso]", op="scale", low=0.5, high=3.0),
        "foot": Param(to="model:geom_size[ffoot,0]", op="scale", low=0.5, high=3.0),
        "gravity": Param(to="option:gravity[2]", op="add", low=-2.0, high=2.0),
        "cost": Param(to="attr:_ctrl_cost_weight", op="scale", low=0.5, high=3.0),
    }
    return family("HalfCheetah-v5", params=params, **fields)


NOMINAL = {"torso": 1.0, "foot": 1.0, "gravity": 0.0, "cost": 1.0}
CHANGED = {"torso": 2.5, "foot": 1.5, "gravity": 1.5, "cost": 2.0}


def numbers(env: TaskEnv) -> dict[str, np.ndarray]:
    """Every array of the model, and its gravity."""
    model = env.env.unwrapped.model
    found = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    arrays = {name: np.array(each) for name, each in found.items() if isinstance(each, np.ndarray)}
    return arrays | {"gravity": model.opt.gravity.copy()}


def test_back_to_nominal_is_exact_and_twice_is_once():
    plain = TaskEnv(family("HalfCheetah-v5"), {})
    env, other = body().make(NOMINAL), body().make(CHANGED)
    for name, expected in numbers(plain).items():
        assert np.array_equal(numbers(env)[name], expected), name
    for _ in range(2):
        env.set_task(CHANGED)
        changed = numbers(env)
        assert env.env.unwrapped._ctrl_cost_weight == 0.2
        for name, expected in numbers(other).items():
            assert np.array_equal(changed[name], expected), name
    differ = {name for name in changed if not np.array_equal(changed[name], numbers(plain)[name])}
    assert {"body_mass", "body_inertia", "geom_size", "geom_rbound", "gravity"} <= differ
    assert {"body_subtreemass", "body_invweight0", "dof_invweight0"} <= differ  # mj_setConst ran
    env.set_task(NOMINAL)
    assert env.env.unwrapped._ctrl_cost_weight == 0.1
    for name, expected in numbers(plain).items():
        assert np.array_equal(numbers(env)[name], expected), name


def test_a_task_in_the_model_survives_resets():
    env = body().make(CHANGED)
    before = numbers(env)
    episodes = []
    for _ in range(3):
        env.reset(5)
        episodes.append([env.step(move).obs for move in moves(body(), 5)])
        assert all(np.array_equal(numbers(env)[name], before[name]) for name in before)
    assert np.array_equal(episodes[0], episodes[2])
    env.set_task(NOMINAL)
    env.reset(5)
    assert not np.array_equal([env.step(move).obs for move in moves(body(), 5)], episodes[0])


def randomises(to: str, op: Any = "scale") -> TaskEnv:
    params = {"x": Param(to=to, op=op, low=0.5, high=2.0)}
    return family("engram-test/Randomises-v0", params=params).make({"x": 2.0})


def test_what_an_episode_changes_is_written_again():
    env = randomises("model:actuator_gear")
    model = env.env.unwrapped.model
    gears = model.actuator_gear.copy()
    for _ in range(2):
        env.reset(0)
        assert np.array_equal(model.actuator_gear, gears)
        env.step(np.zeros(6))
        assert np.array_equal(model.actuator_gear, gears / 2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: randomises("model:body_mass[torso]"), "wrote over model:body_mass of its MuJoCo"),
        (
            lambda: family(
                "engram-test/Forgets-v0", params={"life": param("attr:life", 3, 5)}
            ).make({"life": 5}),
            r"test\.params\.life: reset\(\) of Forgets wrote over its attribute 'life'.*use reset:",
        ),
    ],
)
def test_a_reset_that_overwrites_the_task_is_an_error(make: Any, message: str):
    env = make()
    with pytest.raises(TaskError, match=message):
        env.reset(0)


def test_what_the_task_leaves_alone_may_change_at_resets():
    size = {"size": Param(to="attr:size[0]", low=2.0, high=3.0)}
    forgets = family("engram-test/Forgets-v0", params=size).make({"size": 2.0})
    for env in (randomises("model:body_mass[bfoot]"), forgets):
        env.reset(0)
        env.reset(1)
    assert forgets.env.unwrapped.size.tolist() == [2.0, 7.0]


def test_attributes_of_all_kinds_and_their_entries():
    params = {
        "fresh": param("attr:fresh", 0, 1),
        "pair": param("attr:pair[1]", 5, 7),
        "size": Param(to="attr:size[0]", op="scale", low=0.5, high=2.0),
        "both": Param(to=["attr:size", "attr:life"], op="add", low=1.0, high=2.0),
    }
    env = family("engram-test/Fragile-v0", params=params).make(
        {"fresh": 0, "pair": 7, "size": 2.0, "both": 1.0}
    )
    inner: Any = env.env.unwrapped
    assert inner.fresh is False
    assert inner.pair == [1, 7] and type(inner.pair[1]) is int
    assert inner.size.tolist() == [3.0, 2.0] and inner.life == 4  # 2 x 1 + 1, and 1 + 1
    inner.size[:] = inner.alias[:] = 0.0  # an environment may write into its own array
    env.reset(0)
    assert inner.size.tolist() == [3.0, 2.0]


def test_an_argument_of_the_constructor_makes_it_anew():
    tasks = family(
        "engram-test/Fragile-v0",
        kwargs={"life": 9},
        params={
            "life": param("kwarg:life", 3, 5),
            "extra": Param(to="attr:life", op="add", low=1, high=2),
        },
    )
    env = tasks.make({"life": 3, "extra": 1.0})
    first: Any = env.env
    assert env.env.unwrapped.life == 4
    env.set_task({"life": 5, "extra": 2.0})
    assert env.env is not first and env.env.unwrapped.life == 7  # not the 9 of kwargs
    second = env.env
    env.set_task({"life": 5, "extra": 1.0})
    assert env.env is second and env.env.unwrapped.life == 6


@pytest.mark.parametrize(
    "fields", [{"params": {"x": param("attr:no", 1)}}, {"wrappers": [f"{HERE}:broken"]}]
)
def test_what_cannot_be_made_whole_is_closed(fields: dict):
    Fragile.closed = 0
    with pytest.raises(TaskError):
        _ = family("engram-test/Fragile-v0", **fields).probe
    assert Fragile.closed == 1


@pytest.mark.parametrize("blown_up", [True, False])
def test_a_state_that_is_void_since_the_last_physics_step_has_diverged(blown_up: bool):
    env = family("HalfCheetah-v5", kwargs={"disable_env_checker": True}).make({})
    env.reset(0)
    inner: Any = env.env.unwrapped
    ordinary = inner.step

    def step(action: np.ndarray) -> tuple:
        obs, *rest = ordinary(action)
        if blown_up:
            inner.data.qvel[3] = np.nan
        return obs * np.nan, *rest

    inner.step = step
    assert env.step(np.zeros(6)).diverged == blown_up  # else the environment has an error


WRAPPERS = [{"path": f"{HERE}:Gain", "kwargs": {"gain": 0.5}}, f"{HERE}.doubled"]


def test_wrappers_are_put_around_it_and_their_attributes_can_be_tasks():
    tasks = family(
        "MountainCarContinuous-v0",
        wrappers=WRAPPERS,
        params={
            "gain": Param(to="attr:gain", op="scale", low=-2.0, high=2.0),
            "power": Param(to="attr:power", op="scale", low=0.5, high=2.0),
        },
    )
    env = tasks.make({"gain": -2.0, "power": 2.0})
    plain = gymnasium.make("MountainCarContinuous-v0")
    plain.unwrapped.power *= 2.0
    env.reset(3)
    plain.reset(seed=3)
    for _ in range(3):
        found = env.step(np.array([0.7]))
        obs, reward, _, _, _ = plain.step(np.array([-0.7], dtype=np.float32))
        assert found.obs == pytest.approx(obs)
        assert found.reward == pytest.approx(2.0 * float(reward))


def test_motors_sensors_and_what_is_told_work_here_too():
    params = {
        "push": Param(to="action:0", op="scale", low=-1.0, high=1.0),
        "mask": Param(to="obs:1", op="scale", low=0.0, high=1.0),
        "power": Param(to="attr:power", op="scale", low=0.5, high=1.5, hidden=False),
    }
    tasks = family("MountainCarContinuous-v0", params=params)
    sims = tasks.open([task(push=-1.0, mask=0.0, power=1.5)], 1)
    plain = gymnasium.make("MountainCarContinuous-v0")
    plain.unwrapped.power *= 1.5
    plain.reset(seed=int(np.random.SeedSequence(0).generate_state(1)[0]))
    assert sims.reset(0).shape == (1, 1, tasks.obs_size) == (1, 1, 3)
    obs = sims.step(np.full((1, 1, 1), 0.6))[0]
    expected = plain.step(np.array([-0.6], dtype=np.float32))[0]
    assert obs[0, 0].tolist() == [expected[0], 0.0, 1.0]


def test_actions_without_bounds_need_limits():
    given = {"action": gymnasium.spaces.Box(-np.inf, np.inf, (2,))}
    tasks = family("engram-test/Spaces-v0", kwargs=given, action_limits=[-3.0, 2.0])
    assert [bound.tolist() for bound in tasks.action_range] == [[-3, -3], [2, 2]]
    with pytest.raises(ValueError, match=r"action_limits=\[2.0, -3.0\]: expected \[low, high\]"):
        family("engram-test/Spaces-v0", kwargs=given, action_limits=[2.0, -3.0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("links", 3.0, r"tasks change the observation space of .*\(3,\).* elsewhere\. One policy"),
        ("torque", 2.0, "tasks change the bounds of the action space .* give action_limits"),
    ],
)
def test_tasks_that_change_the_spaces_are_refused(name: str, value: float, message: str):
    params = {name: param(f"kwarg:{name}", 1, value)}
    tasks = family("engram-test/Resizes-v0", params=params)
    Fragile.closed = 0
    with pytest.raises(TaskError, match=message):
        tasks.make({name: value})
    assert Fragile.closed == 2  # the one that was asked for its spaces, and this one
    if name == "torque":
        family("engram-test/Resizes-v0", params=params, action_limits=[-1, 1]).make({name: 2.0})


def test_worker_processes_give_the_same_episodes():
    runs = []
    for workers in (1, 2):
        tasks = goals(workers=workers, deadline_s=60)
        sims = tasks.open([task(**values) for values in VALUES], 2)
        run = [sims.reset(1)]
        for move in moves(tasks, 6).reshape(3, 2, 1, -1):
            run += sims.step(np.repeat(move, 2, axis=1))
        runs.append([*run, sims.success])
        assert (sims.look(0) is None) and len(sims.envs) == (4 if workers == 1 else 0)
        sims.close()
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_what_a_camera_sees():
    sims = body().open([task(**NOMINAL), task(**CHANGED)], 1)
    sims.reset(0)
    seen: Any = sims.look(1)
    model, data = seen
    assert isinstance(data, mujoco.MjData) and model is sims.envs[1].unwrapped.model
    assert family("Pendulum-v1").open([task()], 1).look(0) is None
    pictures = family("FrozenLake-v1", kwargs={"render_mode": "rgb_array"}).make({})
    pictures.env.unwrapped.render = lambda: np.full((2, 3, 3), 7, np.uint8)
    pictures.reset(0)
    seen = pictures.look()
    assert np.array_equal(seen, np.full((2, 3, 3), 7))


@pytest.mark.parametrize(
    ("env_id", "to", "message"),
    [
        (
            "Pendulum-v1",
            "attr:max_torqe",
            r"array 'max_torqe'; did you mean 'max_torq",
        ),
        ("Pendulum-v1", "attr:gravity", r"known are dt, g, isopen, l, m, max_speed, max_torque"),
        ("engram-test/Fragile-v0", "attr:name", "Fragile has no number or array 'name'"),
        ("engram-test/Fragile-v0", "attr:nothing", "has no number or array 'nothing'"),
        ("engram-test/Fragile-v0", "attr:size[2]", r"'attr:size\[2\]': no such entry; .* \(2,\)"),
        ("engram-test/Fragile-v0", "attr:life[0]", r"no such entry; its shape is \(\)"),
        ("engram-test/Goal-v0", "call:set_sped", "no method 'set_sped'; did you mean 'set_speed'"),
        ("engram-test/Goal-v0", "call:speed", "Goal has no method 'speed'"),
        ("HalfCheetah-v5", "model:body_mass[tors]", r"body_mass\[tors\]: .*torso"),
        ("HalfCheetah-v5", "model:body_mas[torso]", "did you mean 'body_mass'"),
        ("engram-test/Fragile-v0", "kwarg:lif", "cannot make .*did you mean 'life'"),
        ("HalfCheetah-v5", "kwarg:forward_weight", "did you mean .*'forward_reward_weight'"),
        ("Pendulm-v1", "attr:g", "cannot make 'Pendulm-v1': .*did you mean 'Pendulum-v1'"),
        ("tests.my_gym_env:X-v0", "attr:g", "cannot make 'tests.my_gym_env:X-v0': No module named"),
    ],
)
def test_errors_name_what_is_near(env_id: str, to: str, message: str):
    with pytest.raises(TaskError, match=message) as caught:
        _ = family(env_id, params={"x": param(to, 1.5)}).obs_size
    assert str(caught.value).startswith("test")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x": Param(to="reset:goal", op="add", low=0, high=1)}, "'reset:goal' takes op=set only"),
        ({"x": Param(to="call:go", op="scale", low=0, high=1)}, "'call:go' takes op=set only"),
        ({"x": param("attr:size[a]", 1)}, r"'attr:size\[a\]': expected KIND:NAME"),
        ({"x": param("reset:g[1]", 1)}, r"reset:g: entry \[0\] has no value"),
        ({"x": param("reset:g[0]", 1), "y": param("reset:g", 1)}, "both whole and entry by entry"),
        ({"x": param("call:g[0]", 1), "y": param("call:g[0,1]", 1)}, "some entries have one index"),
    ],
)
def test_targets_that_can_never_be_written_are_refused_at_once(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        family("no-such-env-v0", params=params)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("tests.my_gym_envs:Gian", "'tests.my_gym_envs:Gian': .* no class or function.* 'Gain'"),
        ("no_such.module:Gain", "test.wrappers: 'no_such.module:Gain': No module named"),
        ("Gain", "expected package.module:Name"),
        ("tests.my_gym_envs:broken", "broken' returned None, expected a Env"),
        ({"path": f"{HERE}:Gain", "kwargs": {"gian": 2}}, "refuses .*unexpected keyword .*'gian'"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_named(wrapper: Any, message: str):
    with pytest.raises(TaskError, match=message):
        _ = family("engram-test/Fragile-v0", wrappers=[wrapper]).obs_size


def test_modules_in_folders_of_ones_own_are_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_robot_module.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TaskError, match="did you mean 'my_robot_module'"):
        _ = family("my_robt_module:X-v0", import_path=[str(tmp_path)]).obs_size
    with pytest.raises(TaskError, match=r"test\.import_path: there is no folder '.*/nowhere'"):
        _ = family("Pendulum-v1", import_path=[str(tmp_path / "nowhere")]).obs_size


def test_a_reset_of_the_old_interface_is_said(monkeypatch: pytest.MonkeyPatch):
    env = goals().make(VALUES[0])
    monkeypatch.setattr(Goal, "reset", lambda self, *, seed=None, options=None: np.zeros(2))
    with pytest.raises(TaskError, match=r"reset\(\) gave .*, expected \(observation, info\)"):
        env.reset(0)
