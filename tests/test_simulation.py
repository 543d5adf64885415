# pyright: reportAttributeAccessIssue=false
"""The native engine: it equals gymnasium's own HalfCheetah, keeps tasks apart and sees blow-ups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from envs.half_cheetah import HalfCheetah, HalfCheetahFaults, HalfCheetahTasks
from envs.simulation import load_gymnasium_model, write_model_param
from envs.task import Param, Task

ROOT = Path(__file__).parent.parent
MOTORS = ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]


def motor(name: str) -> Param:
    return Param(to=f"model:actuator_gear[{name}]", op="scale", low=-1.0, high=1.5)


def cheetahs(**params: Param) -> HalfCheetah:
    return HalfCheetah(name="cheetah", horizon=1000, params=params)


def varied() -> HalfCheetah:
    return cheetahs(
        direction=Param(to="attr:direction", choices=[1.0, -1.0]),
        torso=Param(to="model:body_mass[torso]", op="scale", low=0.5, high=2.0, log=True),
        friction=Param(to="model:geom_friction", op="scale", low=0.5, high=1.5),
        gravity=Param(to="option:gravity[2]", op="add", low=-2.0, high=2.0),
        bshin=motor("bshin"),
        ffoot=motor("ffoot"),
    )


def task(**values: float) -> Task:
    return Task("cheetah", values)


VALUES = [
    {"direction": 1, "torso": 1.7, "friction": 0.6, "gravity": 1, "bshin": -0.5, "ffoot": 1.25},
    {"direction": -1, "torso": 0.6, "friction": 1.4, "gravity": -1, "bshin": 0.3, "ffoot": 1.0},
    {"direction": -1, "torso": 1.0, "friction": 1.0, "gravity": 0, "bshin": 1.0, "ffoot": -1.0},
]
TASKS = [task(**values) for values in VALUES]


def actions(steps: int, *leading: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, *leading, 6))


def play(sims: HalfCheetahTasks, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    results = [sims.step(move) for move in moves]
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


def put(sims: HalfCheetahTasks, seed: int = 0) -> None:
    """The same start in every simulation, whatever else is in the batch."""
    generator = np.random.default_rng(seed)
    sims.qpos[:] = sims.model.qpos0 + generator.uniform(-0.1, 0.1, 9)
    sims.qvel[:] = generator.standard_normal(9) * 0.1


@pytest.fixture
def reference() -> Iterator[Any]:
    env = gymnasium.make("HalfCheetah-v5").unwrapped
    yield env
    env.close()


def difference(sims: HalfCheetahTasks, env: Any, direction: float = 1.0) -> tuple[float, float]:
    """Largest difference of observation and reward over 1000 equal random steps."""
    sims.reset(seed=1)
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(sims.qpos[0].copy(), sims.qvel[0].copy())
    env._forward_reward_weight = direction
    moves = actions(1000, 1, 1)
    obs, reward = play(sims, moves)
    expected = [env.step(move[0, 0])[:2] for move in moves]
    obs_gap = np.abs(obs[:, 0, 0] - [e[0] for e in expected]).max()
    reward_gap = np.abs(reward[:, 0, 0] - [e[1] for e in expected]).max()
    assert np.abs(obs).max() > 1.0  # it did move
    return float(obs_gap), float(reward_gap)


def test_it_equals_gymnasium(reference: Any):
    gaps = difference(cheetahs().open([task()], 1), reference)
    print(f"largest difference from gymnasium's HalfCheetah-v5 in 1000 steps: {gaps}")
    assert max(gaps) <= 1e-9


@pytest.mark.parametrize("values", VALUES)
def test_it_equals_gymnasium_with_the_tasks_parameters(reference: Any, values: dict):
    model = reference.model
    torso = model.body("torso").id
    model.body_mass[torso] *= values["torso"]
    model.body_inertia[torso] *= values["torso"]
    model.geom_friction[:] *= values["friction"]
    model.opt.gravity[2] += values["gravity"]
    model.actuator("bshin").gear[:] *= values["bshin"]
    model.actuator("ffoot").gear[:] *= values["ffoot"]
    mujoco.mj_setConst(model, reference.data)
    gaps = difference(varied().open([task(**values)], 1), reference, values["direction"])
    print(f"largest difference with parameters {values}: {gaps}")
    assert max(gaps) <= 1e-9


def test_a_tasks_time_step_counts_in_its_reward(reference: Any):
    reference.model.opt.timestep = 0.005
    family = cheetahs(dt=Param(to="option:timestep", low=0.001, high=0.01))
    sims = family.open([task(dt=0.005), task(dt=0.01)], 1)
    assert sims.dt == pytest.approx([0.025, 0.05])
    assert max(difference(family.open([task(dt=0.005)], 1), reference)) <= 1e-9


def test_a_task_alone_equals_itself_in_a_batch():
    moves = actions(300, 3, 2)
    together = varied().open(TASKS, 2)
    together.reset(seed=0)
    put(together)
    obs, reward = play(together, moves)
    assert not np.allclose(obs[-1, 0, 0], obs[-1, 1, 0])
    for t, each in enumerate(TASKS):
        alone = varied().open([each], 2)
        alone.reset(seed=0)
        put(alone)
        alone_obs, alone_reward = play(alone, moves[:, t : t + 1])
        assert np.array_equal(alone_obs[:, 0], obs[:, t])
        assert np.array_equal(alone_reward[:, 0], reward[:, t])


def test_equal_seeds_give_equal_episodes():
    sims, moves = varied().open(TASKS, 2), actions(50, 3, 2)
    runs = []
    for seed in (5, 5, 6):
        start = sims.reset(seed)
        runs.append(np.concatenate([start[None], play(sims, moves)[0]]))
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[2][0])
    assert len(np.unique(runs[0][0].reshape(6, -1), axis=0)) == 6  # no two start alike


def test_the_start_is_halfcheetahs():
    sims = cheetahs().open([task()], 500)
    sims.reset(seed=0)
    assert np.abs(sims.qpos).max() <= 0.1
    assert np.abs(sims.qpos).max() > 0.099
    assert sims.qvel.std() == pytest.approx(0.1, rel=0.05)


def test_observations_are_copies_of_their_own():
    sims, moves = cheetahs().open([task()], 2), actions(2, 1, 2)
    start = sims.reset(seed=0)
    kept = start.copy()
    first = sims.step(moves[0])
    kept_first = [array.copy() for array in first]
    sims.step(moves[1])
    sims.reset(seed=3)
    assert np.array_equal(start, kept)
    for array, expected in zip(first, kept_first, strict=True):
        assert np.array_equal(array, expected)


class Torsos(HalfCheetahTasks):
    """Cheetahs that observe what MuJoCo derives from the state."""

    def observe(self) -> np.ndarray:
        """The torso's position in the world."""
        return self._batch.bind("xpos")[:, 1].copy()


def test_what_is_derived_from_the_state_is_known_right_after_a_reset():
    sims = Torsos(cheetahs(), [task()], 2)
    sims.observe()
    for seed in (0, 1):
        obs = sims.reset(seed)[0]
        assert obs[:, 0] == pytest.approx(sims.qpos[:, 0])
        assert obs[:, 2] == pytest.approx(sims.qpos[:, 1] + 0.7)


def test_shapes_and_the_horizon():
    family = HalfCheetah(name="cheetah", horizon=3)
    sims = family.open([task(), task()], 2)
    assert sims.reset(seed=0).shape == (2, 2, family.obs_size)
    for h in range(3):
        obs, reward, terminated, truncated = sims.step(np.zeros((2, 2, family.action_size)))
        assert obs.shape == (2, 2, 17)
        assert reward.shape == terminated.shape == truncated.shape == (2, 2)
        assert not terminated.any()
        assert truncated.all() == (h == 2)
    sims.reset(seed=0)
    assert not sims.step(np.zeros((2, 2, 6)))[3].any()


def test_a_blown_up_simulation_is_flagged_alone_and_until_reset():
    moves = actions(20, 3, 2)
    calm, sims = varied().open(TASKS, 2), varied().open(TASKS, 2)
    calm.reset(seed=0)
    sims.reset(seed=0)
    expected, expected_reward = play(calm, moves)
    play(sims, moves[:10])
    sims.qvel[3, 2] = 1e12  # task 1, episode 1
    obs, reward = play(sims, moves[10:])
    flags = np.zeros((3, 2), dtype=bool)
    flags[1, 1] = True
    assert np.array_equal(sims.diverged, flags)
    assert np.all(reward[:, 1, 1] == 0.0)
    assert np.array_equal(obs[:, ~flags], expected[10:, ~flags])
    assert np.array_equal(reward[:, ~flags], expected_reward[10:, ~flags])
    assert np.isfinite(obs).all()
    assert not calm.diverged.any()

    kept = sims.diverged
    sims.reset(seed=0)
    assert np.array_equal(kept, flags)
    assert not sims.diverged.any()
    assert np.array_equal(play(sims, moves)[0], expected)
    assert not sims.diverged.any()


@pytest.mark.parametrize("bad", [np.nan, 1e12])
def test_a_bad_position_is_flagged_too(bad: float):
    sims = cheetahs().open([task()], 2)
    sims.reset(seed=0)
    sims.qpos[0, 3] = bad
    sims.step(np.zeros((1, 2, 6)))
    assert sims.diverged.tolist() == [[True, False]]


BLOW_UP = """
import numpy as np
from envs.half_cheetah import HalfCheetah
from envs.task import Task
sims = HalfCheetah(name="cheetah").open([Task("cheetah", {})], 8)
sims.reset(0)
sims.qvel[:] = 1e12
sims.step(np.zeros((1, 8, 6)))
assert sims.diverged.all()
"""


def test_mujoco_writes_no_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exec(BLOW_UP, {})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOW_UP]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("model:bodymass[torso]", "model:bodymass.*no field of real numbers 'bodymass'"),
        ("model:body_parentid[torso]", "no field of real numbers 'body_parentid'"),
        ("model:body_mass[wing]", r"body_mass\[wing\]: no row of that name"),
        ("model:body_mass[99]", r"model:body_mass\[99\].*no such row.*\(8,\)"),
        ("model:body_mass[torso", r"expected model:FIELD or model:FIELD\[NAME\]"),
        ("model:qpos0[torso]", r"qpos0\[torso\]: no row of that name"),
        ("option:gravty[2]", "no field of real numbers 'gravty'"),
        ("option:gravity[3]", r"option:gravity\[3\].*no such row"),
        ("option:timestep[0]", r"option:timestep\[0\].*no such row"),
        ("attr:directoin", "'attr:directoin' is nothing that this native family can change"),
        ("attr:reset", "'attr:reset' is nothing"),
        ("kwarg:x", "'kwarg:x' is nothing"),
    ],
)
def test_a_bad_target_is_named(target: str, message: str):
    family = cheetahs(wrong=Param(to=target, low=0.5, high=1.0))
    with pytest.raises(ValueError, match=message) as caught:
        family.open([task(wrong=0.5)], 1)
    assert str(caught.value).startswith("cheetah.params.wrong: ")


def write(
    param: Param, *values: float, model: mujoco.MjModel | None = None
) -> dict[str, np.ndarray]:
    """The fields that a parameter changes, as ``[B, ...]``; each is written twice over."""
    nominal, written = model or load_gymnasium_model("half_cheetah.xml"), {}

    def rows(field: str) -> np.ndarray:
        source, name = (nominal.opt, field[4:]) if field.startswith("opt.") else (nominal, field)
        values_of_one = np.asarray(getattr(source, name))[None]
        return written.setdefault(field, np.repeat(values_of_one, len(values), axis=0))

    for _ in range(2):
        write_model_param(param, np.array(values), nominal, rows)
    return written


def test_scaling_a_mass_scales_its_inertia_relative_to_nominal():
    model = load_gymnasium_model("half_cheetah.xml")
    torso = model.body("torso").id
    param = Param(to="model:body_mass[torso]", op="scale", low=0.5, high=4.0)
    written = write(param, 2.0, 3.0)
    for field in ("body_mass", "body_inertia"):
        nominal = getattr(model, field)
        assert np.array_equal(written[field][0, torso], 2.0 * nominal[torso])
        assert np.array_equal(written[field][1, torso], 3.0 * nominal[torso])
        assert np.array_equal(np.delete(written[field][0], torso, 0), np.delete(nominal, torso, 0))
    assert set(write(Param(to="model:body_mass[1]", low=1.0, high=2.0), 2.0)) == {"body_mass"}


def test_operations_are_relative_to_nominal():
    model = load_gymnasium_model("half_cheetah.xml")
    low_high: dict[str, Any] = {"low": -1.0, "high": 5.0}
    gravity = write(Param(to="option:gravity[2]", op="add", **low_high), 1.0, 2.0)["opt.gravity"]
    assert gravity[:, 2] == pytest.approx([-8.81, -7.81])
    assert not gravity[:, :2].any()
    damping = write(Param(to="model:dof_damping[bthigh]", op="set", **low_high), 4.5)["dof_damping"]
    dof = model.joint("bthigh").dofadr[0]
    assert damping[0, dof] == 4.5
    assert np.array_equal(np.delete(damping[0], dof), np.delete(model.dof_damping, dof))
    friction = write(Param(to="model:geom_friction", op="scale", **low_high), 3.0)["geom_friction"]
    assert np.array_equal(friction[0], 3.0 * model.geom_friction)
    assert write(Param(to="option:density", **low_high), 2.0)["opt.density"].tolist() == [2.0]


def test_a_joints_name_finds_its_degree_of_freedom():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><body><freejoint/><geom size="1"/>
        <body><joint name="knee"/><geom size="1"/></body></body></worldbody></mujoco>"""
    )
    written = write(Param(to="model:dof_damping[knee]", low=1.0, high=9.0), 5.0, model=model)
    assert written["dof_damping"].tolist() == [[0, 0, 0, 0, 0, 0, 5.0]]


def test_opening_a_task_leaves_the_shared_model_nominal():
    model = load_gymnasium_model("half_cheetah.xml")
    before = model.body_mass.copy(), model.actuator_gear.copy(), model.opt.gravity.copy()
    varied().open(TASKS, 2).reset(seed=0)
    after = model.body_mass, model.actuator_gear, model.opt.gravity
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("faults", [1, 2, 4])
def test_exactly_the_asked_number_of_motors_is_broken(faults: int):
    params = {f"gear_{name}": motor(name) for name in MOTORS}
    params["direction"] = Param(to="attr:direction", choices=[1.0, -1.0])
    family = HalfCheetahFaults(name="faults", faults=faults, params=params)
    generator = np.random.default_rng(0)
    broken = [
        {n for n, v in family.draw(generator).items() if n.startswith("gear_") and v != 1.0}
        for _ in range(200)
    ]
    assert {len(names) for names in broken} == {faults}
    assert set.union(*broken) == {f"gear_{name}" for name in MOTORS}
    assert {t.values["direction"] for t in family.sample(4, generator)} == {1.0, -1.0}


def test_faults_that_cannot_be_drawn_are_refused():
    params = {"gear_bthigh": motor("bthigh")}
    with pytest.raises(ValueError, match="faults=2 but only 1 gear_"):
        HalfCheetahFaults(name="faults", params=params)
    absolute = Param(to="model:actuator_gear[bthigh]", low=1.0, high=2.0)
    with pytest.raises(ValueError, match=r"faults.params.gear_bthigh: motors need op=scale"):
        HalfCheetahFaults(name="faults", faults=1, params={"gear_bthigh": absolute})
