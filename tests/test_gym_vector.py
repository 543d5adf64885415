"""Environments that are vectorised already: their episodes, whatever their autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from envs.gym_tasks import GymTasks
from envs.parallel.rows import RowError
from envs.task import Param, Task, TaskError
from envs.wrapped.vector import VectorRows
from tests.my_gym_envs import Lives
from tests.test_gym_env import HERE, family, param

MODES = ["NextStep", "SameStep", "Disabled"]
PARAMS = {
    "goal": Param(to="reset:goal", low=1.0, high=9.0),
    "bonus": Param(to="attr:bonus", op="add", low=0.0, high=9.0),
    "speed": Param(to="call:set_speed", low=0.0, high=9.0),
}
VALUES = [{"goal": 3.0, "bonus": 10.0, "speed": 0.5}, {"goal": 7.0, "bonus": 20.0, "speed": 0.25}]


def lives(mode: str = "NextStep", **fields: Any) -> GymTasks:
    kwargs = {"mode": mode, **fields.pop("kwargs", {})}
    return family("engram-test/Lives-v0", vectorized=True, kwargs=kwargs, **fields)


def task(**values: float) -> Task:
    return Task("test", values)


def episode(seed: int, values: dict[str, float], actions: np.ndarray) -> list[list[Any]]:
    """Observation, reward and terminated of one episode of a single environment, by hand."""
    env = Lives()
    env.bonus, env.speed = values["bonus"], values["speed"]
    found: list[list[Any]] = [[env.reset(seed=seed, options={"goal": values["goal"]})[0], 0, False]]
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        found.append([obs, reward, terminated])
        if terminated:
            break
    return found


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_single_episodes_of_their_task_whatever_the_autoreset(mode: str):
    tasks = lives(mode, params=PARAMS, horizon=9)
    sims = tasks.open([task(**values) for values in VALUES], 3)
    generator = np.random.default_rng(0)
    for seed in (4, 5, 4):  # a task survives every reset
        actions = generator.uniform(-1, 1, (9, 2, 3, 2)).astype(np.float32)
        obs, rest = [sims.reset(seed)], []
        for action in actions:
            now, *others = sims.step(action.astype(np.float64))
            obs.append(now)
            rest.append(others)
        seeds = np.random.SeedSequence(seed).generate_state(6)
        lengths = set()
        for t, values in enumerate(VALUES):
            for e in range(3):
                # SyncVectorEnv's own rule: row e of a vector environment has its seed plus e.
                expected = episode(int(seeds[3 * t]) + e, values, actions[:, t, e])
                lengths.add(len(expected))
                for h, (found, reward, terminated) in enumerate(expected):
                    assert np.array_equal(obs[h][t, e], found)
                    if h:
                        assert rest[h - 1][0][t, e] == reward
                        assert rest[h - 1][1][t, e] == terminated
                for h in range(len(expected), 10):  # nothing comes of the episodes that follow
                    assert np.array_equal(obs[h][t, e], expected[-1][0])
                    assert rest[h - 1][0][t, e] == 0.0 and not rest[h - 1][1][t, e]
        assert len(lengths) > 1
        assert not np.any([others[2] for others in rest])
        assert sims.success is not None and sims.success.all()
    sims.reset(seed=0)
    assert sims.success is not None and not sims.success.any()


def test_gymnasiums_own_vector_environment():
    params = {
        "pole": Param(to=["attr:length", "attr:polemass_length"], op="scale", low=0.5, high=2.0),
        "low": Param(to="reset:low", low=-0.1, high=-0.01),
    }
    tasks = family("CartPole-v1", 40, vectorized=True, params=params)
    assert (tasks.obs_size, tasks.action_size) == (4, 2)
    sims = tasks.open([task(pole=2.0, low=-0.02), task(pole=1.0, low=-0.01)], 4)
    plain: Any = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    plain.length, plain.polemass_length = 1.0, 0.1
    for seed in (1, 2):
        obs = sims.reset(seed)
        first = int(np.random.SeedSequence(seed).generate_state(8)[0])
        assert np.array_equal(obs[0], plain.reset(seed=first, options={"low": -0.02})[0])
        alive = np.ones(4, dtype=bool)
        for h in range(40):
            pushes = np.random.default_rng(h).integers(2, size=4)
            scores = np.zeros((2, 4, 2))
            scores[:, np.arange(4), pushes] = 1.0
            obs, reward, terminated, truncated = sims.step(scores)
            expected = plain.step(pushes)
            assert np.array_equal(obs[0, alive], expected[0][alive])
            assert np.array_equal(reward[0], expected[1] * alive)
            assert np.array_equal(terminated[0], expected[2] & alive)
            assert np.array_equal(truncated[0], alive & (h == 39))
            alive &= ~expected[2]
        assert not alive.all()
    assert sims.success is None and sims.look(0) is None


def test_the_horizon_and_kwargs_of_a_task():
    params = {"bad": param("kwarg:bad", 1, 9)}
    sims = lives(params=params, horizon=1).open([task(bad=9)], 2)
    sims.reset(0)
    _, _, terminated, truncated = sims.step(np.zeros((1, 2, 2)))
    assert truncated.all() and not terminated.any()


def test_a_row_that_is_not_finite_is_named():
    sims = lives(params={"bad": param("kwarg:bad", 1, 9)}).open([task(bad=9), task(bad=1)], 2)
    sims.reset(0)
    with pytest.raises(RowError, match=r"row 2 \(task 'bad 1'\), step 1, seed \d+: .*nan.*finite"):
        sims.step(np.zeros((2, 2, 2)))
    with pytest.raises(TaskError, match="closed after an earlier failure"):
        sims.reset(0)


def test_errors_of_the_environment_name_task_and_step(monkeypatch: pytest.MonkeyPatch):
    sims = lives(params=PARAMS).open([task(**values) for values in VALUES], 2)
    sims.reset(0)
    monkeypatch.setattr(Lives, "step", lambda self, action: 1 / 0)
    with pytest.raises(RowError, match=r"rows 0 to 1.*step 1.*ZeroDivisionError") as caught:
        sims.step(np.zeros((2, 2, 2)))
    assert "Traceback" in caught.value.traceback


def test_what_is_not_of_e_rows_is_refused(monkeypatch: pytest.MonkeyPatch):
    sims: Any = lives().open([task()], 2)
    sims.reset(0)
    env = sims._rows.envs[0].env
    step = env.step(np.zeros((2, 2), np.float32))
    for i, bad in enumerate((step[0][:1], 1.0, [True], np.zeros((2, 1), bool))):
        monkeypatch.setattr(env, "step", lambda _, i=i, bad=bad: (*step[:i], bad, *step[i + 1 :]))
        with pytest.raises(TaskError, match=r"shape"):
            sims._rows.envs[0].step(np.zeros((2, 2)))


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_after_an_end_is_nobodys(mode: str):
    sims: Any = lives(mode, params=PARAMS, horizon=99).open([task(**v) for v in VALUES], 3)
    env = sims._rows.envs[0].env
    singles = [single.unwrapped for single in env.envs]
    lives_of = sims.reset(1)[..., 1].max(axis=1)
    assert lives_of[0] < lives_of[1]  # the second task goes on for longer
    ended, calls = np.zeros((2, 3), dtype=bool), []
    ordinary, env.step = env.step, lambda actions: (calls.append(1), ordinary(actions))[1]
    while not ended.all():
        for single, over in zip(singles, ended[0], strict=True):
            single.bad = single.steps + 1 if over else 0  # its next observation is NaN
        actions = np.where(ended[..., None], np.nan, np.zeros((2, 3, 2)))
        obs, _, terminated, _ = sims.step(actions)
        assert np.isfinite(obs).all() and not (terminated & ended).any()
        ended |= terminated
        if mode == "Disabled":  # gymnasium asks for a reset here, and the task comes with it
            assert [single.goal for single in singles] == [3.0] * 3
    assert len(calls) == lives_of[0]  # not stepped once all its rows have ended


def test_a_task_is_written_again_at_each_reset_and_checked():
    sims: Any = lives(params=PARAMS).open([task(**VALUES[0])], 2)
    sims._rows.envs[0].env.set_attr("bonus", -5.0)
    sims.reset(0)
    assert np.all(sims.step(np.zeros((1, 2, 2)))[1] == 10.5)
    lost = lives(params={"x": Param(to="attr:goal", low=1.0, high=2.0)}).open([task(x=1.0)], 2)
    with pytest.raises(RowError, match=r"wrote over its attribute 'goal'.*use reset:"):
        lost.reset(0)


def test_an_info_is_of_the_rows_that_its_mask_names(monkeypatch: pytest.MonkeyPatch):
    sims: Any = lives().open([task()], 2)
    sims.reset(0)
    row = sims._rows.envs[0]
    info = {"success": np.array([True, True]), "_success": np.array([False, True])}
    result = (np.zeros((2, 3)), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), info)
    monkeypatch.setattr(row.env, "step", lambda actions: result)
    assert row.step(np.zeros((2, 2))).success.tolist() == [False, True]


def test_wrappers_of_vector_environments():
    tasks = lives(
        wrappers=[f"{HERE}:VectorGain"],
        params={"gain": Param(to="attr:gain", low=2.0, high=5.0), "bonus": PARAMS["bonus"]},
    )
    sims = tasks.open([task(gain=3.0, bonus=4.0)], 2)
    sims.reset(0)
    assert np.all(sims.step(np.zeros((1, 2, 2)))[1] == 12.0)
    with pytest.raises(TaskError, match=r"Gain' (refuses|returned)"):
        _ = lives(wrappers=[f"{HERE}:Gain"]).obs_size


def test_each_row_has_its_picture(monkeypatch: pytest.MonkeyPatch):
    sims: Any = lives().open([task(), task()], 2)
    rows = sims._rows
    assert isinstance(rows, VectorRows) and sims.look(3) is None and sims.envs == []
    frames = tuple(np.full((2, 2, 3), i, np.uint8) for i in range(2))
    env = rows.envs[1].env.unwrapped
    env.render_mode = "rgb_array"
    monkeypatch.setattr(env, "render", lambda: frames)
    assert np.array_equal(sims.look(3), frames[1])


def test_closing_closes_every_environment(monkeypatch: pytest.MonkeyPatch):
    closed: list[VectorEnv] = []
    tasks = lives()
    assert tasks.obs_size == 3
    monkeypatch.setattr(VectorEnv, "close", lambda self: closed.append(self))
    sims = tasks.open([task(), task()], 2)
    sims.close()
    sims.close()
    assert len(closed) == 2


def test_a_method_that_the_single_environments_lack_is_named():
    sims = lives(params={"x": param("call:set_sped", 1)}).open([task(x=1)], 2)
    with pytest.raises(RowError, match="no attribute 'set_sped'"):
        sims.reset(0)


@pytest.mark.filterwarnings("ignore:.*autoreset_mode:UserWarning")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kwargs": {"mode": ""}}, r"metadata\['autoreset_mode'\] of SyncVectorEnv is None"),
        ({"env_id": "Pendulum-v1"}, "cannot make 'Pendulum-v1': .*vector entry point"),
        (
            {"env_id": "CartPole-v1", "params": {"x": param("call:set_sped", 1)}},
            "CartPoleVectorEnv has no method 'set_sped'",
        ),
        ({"params": {"x": param("attr:bonuss", 1)}}, "no number or array 'bonuss'"),
        ({"kwargs": {"env_idd": 1}}, "did you mean 'env_id'"),
        ({"workers": 2}, "workers=2 and vectorized=true"),
        ({"params": {"x": param("model:body_mass", 1)}}, "'model:body_mass' cannot be written"),
    ],
)
def test_what_does_not_fit_is_said(fields: dict, message: str):
    fields = {"env_id": "engram-test/Lives-v0", "vectorized": True, **fields}
    with pytest.raises(ValueError, match=message):
        _ = family(fields.pop("env_id"), **fields).obs_size
