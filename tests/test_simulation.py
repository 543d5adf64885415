# pyright: reportAttributeAccessIssue=false
"""The native engine: it equals gymnasium's own HalfCheetah, keeps tasks apart and sees blow-ups."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from envs.half_cheetah import HalfCheetah, HalfCheetahBody, HalfCheetahTasks, HalfCheetahVel
from envs.model_fields import write_field, write_one_model
from envs.simulation import gymnasium_asset, load_gymnasium_model
from envs.task import Param, Task, TaskError
from envs.walkers import Hopper

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


def play(sims: Any, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    results = [sims.step(move) for move in moves]
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


def put(sims: Any, seed: int = 0) -> None:
    """The same start in every simulation, whatever else is in the batch."""
    generator = np.random.default_rng(seed)
    sims.qpos[:] = sims.model.qpos0 + generator.uniform(-0.1, 0.1, 9)
    sims.qvel[:] = generator.standard_normal(9) * 0.1


@pytest.fixture
def reference() -> Iterator[Any]:
    env = gymnasium.make("HalfCheetah-v5").unwrapped
    yield env
    env.close()


def difference(sims: Any, env: Any, direction: float = 1.0) -> tuple[float, float]:
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
        return self.read("xpos")[:, 1].copy()


def test_what_is_derived_from_the_state_is_known_right_after_a_reset():
    sims = Torsos(cheetahs(), [task()], 2)
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
        ("model:body_mass[99]", r"model:body_mass\[99\].*no such entry.*\(8,\)"),
        ("model:body_mass[torso", r"expected model:FIELD, model:FIELD\[ROW\]"),
        ("model:qpos0[torso]", r"qpos0\[torso\]: no row of that name"),
        ("option:gravty[2]", "no field of real numbers 'gravty'"),
        ("option:gravity[3]", r"option:gravity\[3\].*no such entry"),
        ("option:timestep[0]", r"option:timestep\[0\].*no such entry"),
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
    """The fields that a parameter changes, as ``[B, ...]``."""
    nominal, written = model or load_gymnasium_model("half_cheetah.xml"), {}

    def rows(field: str) -> np.ndarray:
        source, name = (nominal.opt, field[4:]) if field.startswith("opt.") else (nominal, field)
        values_of_one = np.asarray(getattr(source, name))[None]
        return written.setdefault(field, np.repeat(values_of_one, len(values), axis=0))

    for target in param.targets:
        write_field(target, param.op, np.array(values), nominal, rows)
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


def fields(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    names = [n for n in dir(model) if isinstance(getattr(model, n), np.ndarray)]
    return {name: getattr(model, name).copy() for name in names} | {
        "gravity": model.opt.gravity.copy(),
        "timestep": np.array(model.opt.timestep),
    }


def test_one_model_takes_tasks_one_after_another_and_goes_back_exactly():
    nominal = load_gymnasium_model("half_cheetah.xml")
    model, data = copy.copy(nominal), mujoco.MjData(nominal)

    def apply(scale: float, shift: float) -> dict[str, np.ndarray]:
        changes = [
            ("model:body_mass[torso]", "scale", scale),
            ("model:body_mass[torso]", "add", shift),
            ("option:gravity[2]", "add", shift),
            ("option:timestep", "scale", scale),
        ]
        write_one_model(model, nominal, changes)
        mujoco.mj_setConst(model, data)
        return fields(model)

    first = apply(2.0, 1.0)
    torso = model.body("torso").id
    # Parameters of one field compose, in order, on top of what is nominal.
    assert model.body_mass[torso] == 2.0 * nominal.body_mass[torso] + 1.0
    assert model.body_subtreemass[0] == pytest.approx(model.body_mass.sum())
    again = apply(2.0, 1.0)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    back, plain = apply(1.0, 0.0), copy.copy(nominal)
    mujoco.mj_setConst(plain, mujoco.MjData(plain))
    assert all(np.array_equal(value, back[name]) for name, value in fields(plain).items())


def test_inertia_with_parameters_of_its_own_is_not_scaled_by_the_mass():
    wide: dict[str, Any] = {"op": "scale", "low": 0.1, "high": 9.0}
    family = cheetahs(
        mass=Param(to="model:body_mass[torso]", **wide),
        inertia=Param(to="model:body_inertia[torso,1]", **wide),
    )
    sims: Any = family.open([task(mass=3.0, inertia=2.0)], 1)
    torso = sims.model.body("torso").id
    expected = sims.model.body_inertia[torso] * [1.0, 2.0, 1.0]
    assert np.array_equal(sims.read_model("body_inertia")[0, torso], expected)
    assert sims.read_model("body_mass")[0, torso] == 3.0 * sims.model.body_mass[torso]


BUMPER = """<mujoco><worldbody><body name="b"> <freejoint/>
    <geom name="ball" type="sphere" size=".1" mass="{mass}" pos="{geom}"/>
    <geom name="arm" type="capsule" size=".1" mass="1" fromto="0 0 0 1 0 0"/>
    <site name="s" pos="{site}"/> <inertial pos="{com}" mass="1" diaginertia="1 2 3"/>
    </body></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("field", "place"), [("geom_pos[ball", "geom"), ("site_pos[s", "site"), ("body_ipos[b", "com")]
)
def test_a_pose_that_the_compiler_had_left_out_is_read_again(field: str, place: str):
    """MuJoCo flags what stands in its body's own frame; only ``mj_setConst`` looks again."""
    poses = {"geom": "0 0 0", "site": "0 0 0", "com": ".5 0 0", "mass": 0}
    nominal = mujoco.MjModel.from_xml_string(BUMPER.format(**poses))
    moved = mujoco.MjModel.from_xml_string(BUMPER.format(**poses | {place: ".3 .2 .1"}))
    model = copy.copy(nominal)
    write_one_model(
        model, nominal, [(f"model:{field},{i}]", "set", x) for i, x in enumerate((0.3, 0.2, 0.1))]
    )
    found = []
    for each in (model, moved, nominal):
        data = mujoco.MjData(each)
        mujoco.mj_setConst(each, data)
        mujoco.mj_forward(each, data)
        places = (data.geom_xpos, data.site_xpos, data.xipos)
        found.append(np.concatenate([each.ravel() for each in places]))
    assert np.allclose(found[0], found[1], atol=1e-15)
    assert not np.allclose(found[0], found[2])


def test_a_pose_is_read_again_in_the_native_engine_too():
    """The hopper's torso capsule stands in its body's frame."""
    pose = Param(to="model:geom_pos[torso_geom,0]", low=-1.0, high=1.0)
    family = Hopper(name="hopper", horizon=5, params={"place": pose})
    sims: Any = family.open([task(place=0.0), task(place=0.3)], 1)
    sims.reset(0)
    for row, place in enumerate((0.0, 0.3)):
        _, data = sims.look(row)
        torso, body = data.geom("torso_geom").xpos, data.body("torso").xpos
        assert torso[0] - body[0] == pytest.approx(place, abs=0.01)


def test_a_geoms_bounds_follow_its_size_as_the_compiler_would_have_them():
    xml = """<mujoco><worldbody><body>
    <geom name="a" type="sphere" size="{0}"/> <geom name="b" type="capsule" size="{0} .3"/>
    <geom name="c" type="box" size="{0} .2 .3"/> <geom name="d" type="cylinder" size="{0} .4"/>
    <geom name="e" type="ellipsoid" size="{0} .2 .3"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml.format(0.1))
    wanted = mujoco.MjModel.from_xml_string(xml.format(0.25))
    targets = [f"model:geom_size[{name},0]" for name in "abcde"]
    written = write(Param(to=targets, op="scale", low=1.0, high=3.0), 2.5, model=model)
    for name in ("geom_size", "geom_rbound", "geom_aabb"):
        # A sphere's other sizes mean nothing.
        ours, theirs = written[name][0], getattr(wanted, name)
        assert ours[1:] == pytest.approx(theirs[1:]), name
        assert ours.reshape(5, -1)[0, 0] == pytest.approx(theirs.reshape(5, -1)[0, 0]), name


def test_a_bigger_foot_meets_the_ground_as_in_a_model_compiled_with_it():
    family = HalfCheetahBody(name="body", horizon=300)
    sims: Any = family.open([family.task({"foot": 1.5, "gravity": 1.5})], 1)
    sims.reset(seed=0)
    spec = mujoco.MjSpec.from_file(str(gymnasium_asset("half_cheetah.xml")))
    for foot in ("bfoot", "ffoot"):
        spec.geom(foot).size[0] *= 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = spec.compile()
    data, nominal = mujoco.MjData(model), sims.model
    model.body_mass[:] = nominal.body_mass
    model.body_inertia[:] = nominal.body_inertia
    model.body_ipos[:], model.body_iquat[:] = nominal.body_ipos, nominal.body_iquat
    for foot in ("bfoot", "ffoot"):
        model.body(foot).mass *= 1.5
        model.body(foot).inertia *= 1.5
    model.opt.gravity *= 1.5
    mujoco.mj_setConst(model, data)
    data.qpos[:], data.qvel[:] = sims.qpos[0], sims.qvel[0]
    mujoco.mj_forward(model, data)
    contacts = 0
    for move in actions(60, 1, 1):
        sims.step(move)
        data.ctrl[:] = move[0, 0]
        mujoco.mj_step(model, data, nstep=5)
        contacts += data.ncon
        assert sims.qpos[0] == pytest.approx(data.qpos, abs=1e-8)
    assert contacts > 20


def test_restarted_rows_are_new_tasks_and_leave_the_others_alone():
    moves = actions(30, 3, 1)
    kept, sims = varied().open(TASKS, 1), varied().open(TASKS, 1)
    kept.reset(seed=0)
    sims.reset(seed=0)
    play(kept, moves[:10])
    play(sims, moves[:10])
    fresh = task(**(VALUES[0] | {"torso": 0.8, "direction": -1}))
    started = sims.restart(np.array([1]), [fresh], [np.random.default_rng(7)])
    assert np.array_equal(started[0, 8:], sims.qvel[1])
    obs, reward = play(sims, moves[10:])
    expected_obs, expected_reward = play(kept, moves[10:])
    for row in (0, 2):
        assert np.array_equal(obs[:, row], expected_obs[:, row])
        assert np.array_equal(reward[:, row], expected_reward[:, row])
    alone = varied().open([fresh], 1)
    assert np.array_equal(
        alone.restart(np.array([0]), [fresh], [np.random.default_rng(7)]), started
    )
    alone_obs, alone_reward = play(alone, moves[10:, 1:2])
    assert np.array_equal(alone_obs[:, 0], obs[:, 1])
    assert np.array_equal(alone_reward[:, 0], reward[:, 1])
    with pytest.raises(TaskError, match="copies=1"):
        varied().open(TASKS, 2).restart(np.array([0]), [fresh], [np.random.default_rng(0)])


def test_an_ended_episode_keeps_its_place_and_costs_nothing():
    sims = HalfCheetah(name="cheetah", horizon=2).open([task()], 2)
    sims.reset(seed=0)
    play(sims, actions(2, 1, 2))
    last, spent = sims.step(np.ones((1, 2, 6))), sims.qpos.copy()
    assert not last[1].any() and not last[2].any() and not last[3].any()
    assert np.array_equal(sims.step(np.ones((1, 2, 6)))[0], last[0])
    assert np.array_equal(sims.qpos, spent)


@pytest.mark.parametrize("variant", ["finn2017", "deleu"])
def test_what_a_variant_observes_beside_the_state(variant: str):
    sims: Any = HalfCheetah(name="cheetah", variant=variant).open([task()], 2)
    obs = sims.reset(seed=0)
    assert obs.shape == (1, 2, 20)
    _, data = sims.look(1)
    expected = data.subtree_com[1] if variant == "finn2017" else data.xpos[1]
    assert obs[0, 1, 17:] == pytest.approx(expected, abs=1e-12)


def test_sparse_speed_is_paid_only_far_from_the_origin():
    sims: Any = HalfCheetah(name="cheetah", variant="hyperx").open([task()], 2)
    sims.reset(seed=0)
    sims.qpos[:, 0] = [4.0, 6.0]
    before = sims.qpos[:, 0].copy()
    reward = sims.step(np.full((1, 2, 6), 0.5))[1][0]
    speed = (sims.qpos[:, 0] - before) / 0.05
    assert reward == pytest.approx([-0.05 * 1.5, speed[1] - 0.05 * 1.5])


def test_a_target_speed_is_paid_by_distance():
    family = HalfCheetahVel(name="speed")
    sims: Any = family.open([family.task({"speed": 2.0})], 1)
    sims.reset(seed=0)
    before = sims.qpos[0, 0]
    reward = sims.step(np.full((1, 1, 6), 0.5))[1][0, 0]
    velocity = (sims.qpos[0, 0] - before) / 0.05
    assert reward == pytest.approx(-abs(velocity - 2.0) - 0.05 * 1.5)


def test_variants_fill_in_what_is_not_given():
    family = HalfCheetahVel(name="speed", variant="pearl", params={"speed": {"high": 2.5}})  # pyright: ignore[reportArgumentType]
    assert (family.horizon, family.ctrl_cost, family.raw_obs_size) == (200, 0.05, 20)
    assert (family.params["speed"].low, family.params["speed"].high) == (0.0, 2.5)
    assert family.id == "speed:pearl"
    assert HalfCheetahVel(name="speed", variant="pearl", horizon=7).horizon == 7
    assert HalfCheetah(name="c", integrator="RK4").id == "c:v5+RK4"
    with pytest.raises(ValueError, match="variant='perl': expected one of promp, finn2017"):
        HalfCheetahVel(name="speed", variant="perl")
    with pytest.raises(ValueError, match="'torso_pos' is no reading of this robot; expected"):
        HalfCheetah(name="c", observation=["torso_pos"])


def test_another_integrator_is_other_physics():
    runs = []
    for integrator in ("model", "Euler", "RK4"):
        sims = HalfCheetah(name="cheetah", integrator=integrator).open([task()], 1)
        sims.reset(seed=0)
        runs.append(play(sims, actions(20, 1, 1))[0])
    assert np.array_equal(runs[0], runs[1])  # the model's own is Euler
    assert not np.allclose(runs[0], runs[2])


def test_no_false_alarms_in_ordinary_episodes():
    sims = HalfCheetahBody(name="body", horizon=100)
    tasks = sims.sample(20, np.random.default_rng(0))
    opened = sims.open(tasks, 5)
    opened.reset(seed=0)
    play(opened, actions(100, 20, 5))  # 10,000 steps
    assert not opened.diverged.any()
