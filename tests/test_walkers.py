# pyright: reportAttributeAccessIssue=false
"""Hopper and Walker2d against gymnasium's own, rewards by hand, and which coefficients matter."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest

from envs.task import TaskError
from envs.walkers import (
    Hopper,
    HopperBody,
    HopperParams,
    HopperVel,
    Walker,
    Walker2d,
    Walker2dBody,
    Walker2dParams,
    Walker2dVel,
    WalkerTasks,
)
from tests.against_gymnasium import compare
from tests.changed_models import changed

ROBOTS = [(Hopper, "Hopper-v5"), (Walker2d, "Walker2d-v5")]


def robot(kind: type[Walker], **settings: Any) -> Any:
    made: Any = kind
    return made(name="robot", **{"horizon": 1000} | settings)


def simulate(family: Any, *values: dict[str, float], copies: int = 1) -> WalkerTasks:
    return family.simulate([family.task(each) for each in values], copies)


@pytest.mark.parametrize(("kind", "env_id"), ROBOTS)
def test_it_equals_gymnasium(kind: type[Walker], env_id: str):
    """Measured: 0.0 in observation and reward, for both robots, falling and lying on the ground."""
    falling = compare(robot(kind), env_id, episodes=6, scale=0.5)
    lying = compare(robot(kind, ends_by_fall=False), env_id, terminate_when_unhealthy=False)
    print(f"largest differences from {env_id}, falling and lying: {falling}, {lying}")
    assert falling.ended == 6 and lying.ended == 0
    assert max(falling[:2]) == 0.0 and max(lying[:2]) == 0.0


def test_it_equals_gymnasium_with_the_coefficients_of_a_task():
    """Measured: 0.0."""
    values = {
        "mass_leg": 2.0,
        "inertia_torso_y": 3.0,
        "inertia_foot_z": 0.5,
        "friction_floor_slide": 1.5,
        "friction_foot_slide": 0.4,
        "friction_foot_roll": 2.5,
        "damping_leg": 0.6,
    }

    def change(model: mujoco.MjModel) -> None:
        model.body("leg").mass *= 2.0
        model.body("torso").inertia[1] *= 3.0
        model.body("foot").inertia[2] *= 0.5
        model.geom("floor").friction[0] *= 1.5
        model.geom("foot_geom").friction[:] *= [0.4, 1.0, 2.5]
        model.joint("leg_joint").damping *= 0.6

    settings = {"pays_fall": False, "ends_by_fall": False, "horizon": 1000}
    for kind, env_id in ((HopperParams, "Hopper-v5"), (Walker2dParams, "Walker2d-v5")):
        family = robot(kind, **settings)
        full = dict(family.task(values).values)
        env = changed(env_id, change)
        gaps = compare(family, env, full, terminate_when_unhealthy=False)
        print(f"{env_id} with other coefficients: {gaps}")
        assert max(gaps[:2]) <= 1e-9


def test_it_equals_gymnasium_in_another_body():
    """Measured: 0.0."""

    def change(model: mujoco.MjModel) -> None:
        for part in ("leg", "leg_left"):
            body = model.body(part)
            body.mass *= 1.5
            body.inertia *= 1.5
            geom = model.geom(f"{part}_geom")
            geom.size[0] *= 1.5
            radius, half = geom.size[:2]
            model.geom_rbound[geom.id] = radius + half
            model.geom_aabb[geom.id, 3:] = radius, radius, radius + half
        model.opt.gravity *= 0.15
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)

    family = robot(Walker2dBody)
    values = dict(family.task({"leg": 1.5, "gravity": 0.15}).values)
    gaps = compare(family, changed("Walker2d-v5", change), values, scale=0.5)
    print(f"Walker2d-v5 in another body: {gaps}")
    assert max(gaps[:2]) <= 1e-9


@pytest.mark.parametrize(("kind", "parts"), [(HopperBody, 1), (Walker2dBody, 2)])
def test_bodies_change_two_things_at_a_time(kind: type[Walker], parts: int):
    family = robot(kind)
    assert set(family.params) == {"gravity", "friction", "torso", "thigh", "leg", "foot"}
    assert len(family.params["foot"].targets) == 2 * parts
    for task in family.sample(20, np.random.default_rng(0)):
        assert sum(value != 1.0 for value in task.values.values()) == 2


@pytest.mark.parametrize(("kind", "count"), [(HopperParams, 41), (Walker2dParams, 65)])
def test_just_the_coefficients_called_inert_change_nothing(kind: type[Walker], count: int):
    """Equal to the last bit over 60 steps of squirming on the ground."""
    family = robot(kind, ends_by_fall=False)
    assert len(family.params) == count
    highs = {name: {name: float(param.high or 0.0)} for name, param in family.params.items()}
    sims = simulate(family, {}, *highs.values(), copies=2)
    sims.reset(0)
    for state in (sims.qpos, sims.qvel):  # all tasks start as the first
        state[:] = np.tile(state[:2], (count + 1, 1))
    sims.qpos[0::2, 1:3] = 0.4, 1.4  # nearly on the face
    sims.qpos[1::2, 1:5] = 0.4, -1.4, -1.5, -2.3  # nearly on the back, a knee bent
    moves = np.random.default_rng(1).uniform(-0.6, 0.6, (60, 1, 2, family.action_size))
    seen = np.stack([sims.step(np.repeat(move, count + 1, axis=0))[0] for move in moves])
    same = {name for k, name in enumerate(highs) if np.array_equal(seen[:, 0], seen[:, k + 1])}
    assert same == {name for name, param in family.params.items() if param.inert}
    assert not sims.diverged.any()


@pytest.mark.parametrize("kind", [HopperParams, Walker2dParams])
def test_some_friction_matters_only_where_falls_do_not_end_the_episode(kind: type[Walker]):
    """Whatever the posture, thighs and torso are too high to touch the floor before."""
    family, lying = robot(kind), robot(kind, ends_by_fall=False)
    names = [name for name in family.params if name.endswith("_slide")]
    sims = simulate(family, {}, *({name: 1.5**3} for name in names), copies=64)
    sims.reset(0)
    rng, (low, high) = np.random.default_rng(0), sims.model.jnt_range[3:].T
    sims.qpos[:64, 1] = rng.uniform(family.min_height, 1.25, 64)
    sims.qpos[:64, 2] = rng.uniform(-family.max_pitch, family.max_pitch, 64)
    sims.qpos[:64, 3:] = rng.uniform(low, high, (64, len(low)))
    for state in (sims.qpos, sims.qvel):
        state[:] = np.tile(state[:64], (len(names) + 1, 1))
    moves = rng.uniform(-1.0, 1.0, (10, 1, 64, family.action_size))
    seen = np.stack([sims.step(np.repeat(move, len(names) + 1, axis=0))[0] for move in moves])
    for k, name in enumerate(names):
        part = name.removeprefix("friction_").removesuffix("_slide")
        out_of_reach = part in ("torso", "thigh", "thigh_left")
        assert np.array_equal(seen[:, 0], seen[:, k + 1]) == out_of_reach, name
        assert family.params[name].inert == out_of_reach
        assert not lying.params[name].inert  # that these matter is the test above


def test_coefficients_are_drawn_as_published():
    family = robot(HopperParams)
    draws = [family.draw(np.random.default_rng(seed)) for seed in range(400)]
    for name, base in (("mass_leg", 1.5), ("friction_foot_spin", 1.5), ("damping_foot", 1.3)):
        powers = np.log([draw[name] for draw in draws]) / math.log(base)
        assert np.abs(powers).max() <= 3.0 and np.abs(powers.mean()) < 0.3
        assert powers.std() == pytest.approx(math.sqrt(3.0), rel=0.1)  # of U(-3, 3)
    pearl = HopperParams(name="h", variant="pearl")
    assert (pearl.horizon, pearl.frame_skip, pearl.id) == (200, 4, "h:pearl")
    rng = np.random.default_rng(0)
    assert len({t.id for t in pearl.sample(40, rng, distinct=True)}) == 40
    with pytest.raises(TaskError, match="the pool of 'heldout' has 10"):
        pearl.sample(11, rng, "heldout", distinct=True)


def test_mass_does_not_move_inertia_where_both_are_parameters():
    sims = simulate(robot(HopperParams), {"mass_leg": 2.0})
    leg = sims.model.body("leg").id
    assert sims.read_model("body_mass")[0, leg] == 2.0 * sims.model.body_mass[leg]
    assert np.array_equal(sims.read_model("body_inertia")[0], sims.model.body_inertia)


def reward_of(sims: WalkerTasks, progress: float, action: float) -> np.ndarray:
    """Reward of a step that has moved all robots so far, whatever the physics would do."""
    before = sims.qpos[:, 0] - progress
    return sims.reward(before, np.full((len(sims.qpos), sims.model.nu), action))


@pytest.mark.parametrize(
    ("kind", "settings", "motors", "dt", "bonus"),
    [
        (HopperVel, {}, 3, 0.008, 1.0),
        (Walker2dVel, {}, 6, 0.008, 1.0),
        (Walker2dVel, {"variant": "promp"}, 6, 0.016, 15.0),
    ],
)
def test_target_speeds_are_paid_by_hand(
    kind: type[Walker], settings: dict[str, Any], motors: int, dt: float, bonus: float
):
    sims = simulate(robot(kind, **settings), {"speed": 0.5}, {"speed": 2.0})
    sims.reset(0)
    expected = [-abs(1.25 - 0.5) + bonus, -abs(1.25 - 2.0) + bonus]
    cost = 1e-3 * motors * 0.5**2
    assert reward_of(sims, 1.25 * dt, 0.5) == pytest.approx(np.array(expected) - cost)
    sims.qpos[:, 1] = 0.1  # fallen
    paid = bonus if settings else 0.0  # gymnasium's v5 does not pay for the fall
    assert reward_of(sims, 1.25 * dt, 0.5) == pytest.approx(
        np.array(expected) - cost + paid - bonus
    )


def test_the_ranges_of_target_speeds():
    assert robot(HopperVel).params["speed"].high == 3.0
    promp = robot(Walker2dVel, variant="promp")
    assert (promp.params["speed"].low, promp.params["speed"].high) == (0.0, 10.0)
    speeds = [t.values["speed"] for t in promp.sample(50, np.random.default_rng(0), "ood")]
    assert 10.0 <= min(speeds) and max(speeds) <= 12.0


FALLS = [  # entry of the state, a value with which the robot has fallen, one with which it stands
    (Hopper, "qpos", 1, 0.69, 0.71),
    (Hopper, "qpos", 1, 0.0, 9.0),
    (Hopper, "qpos", 2, 0.21, 0.19),
    (Hopper, "qpos", 2, -0.21, -0.19),
    (Hopper, "qpos", 3, -100.1, -99.9),
    (Hopper, "qvel", 5, 100.1, 99.9),
    (Walker2d, "qpos", 1, 0.79, 0.81),
    (Walker2d, "qpos", 1, 2.01, 1.99),
    (Walker2d, "qpos", 2, 1.01, 0.99),
    (Walker2d, "qpos", 2, -1.01, -0.99),
]


@pytest.mark.parametrize(("kind", "state", "entry", "fallen", "standing"), FALLS)
def test_what_counts_as_a_fall(
    kind: type[Walker], state: str, entry: int, fallen: float, standing: float
):
    sims = simulate(robot(kind), {}, {})
    sims.reset(0)
    getattr(sims, state)[:, entry] = fallen, standing
    assert sims.terminated().tolist() == [True, False]
    assert reward_of(sims, 0.0, 0.0).tolist() == [0.0, 1.0]


def test_a_fallen_robot_keeps_its_place():
    sims = simulate(robot(Hopper), {}, copies=4)
    sims.reset(0)
    ended, last = np.zeros((1, 4), bool), np.zeros((1, 4, 11))
    for move in np.random.default_rng(0).uniform(-1, 1, (150, 1, 4, 3)):
        obs, reward, terminated, truncated = sims.step(move)
        assert not (terminated & ended).any() and not truncated.any()
        assert np.array_equal(obs[ended], last[ended]) and not reward[ended].any()
        ended, last = ended | terminated, obs
    assert ended.all()


@pytest.mark.parametrize("kind", [Hopper, Walker2d])
def test_the_start_is_gymnasiums(kind: type[Walker]):
    sims = simulate(robot(kind), {}, copies=1000)
    sims.reset(0)
    for noise in (sims.qpos - sims.model.qpos0, sims.qvel):
        assert 0.0049 < np.abs(noise).max() <= 0.005
        assert noise.std() == pytest.approx(0.005 / math.sqrt(3.0), rel=0.05)


def test_fast_physics_are_another_family():
    fast = robot(Hopper, integrator="implicitfast")
    assert fast.id == "robot:v5+implicitfast"
    assert int(fast.model.opt.integrator) == int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)


def test_heights_must_leave_room():
    with pytest.raises(ValueError, match="min_height=2 must be below max_height=1"):
        robot(Walker2d, min_height=2.0, max_height=1.0)
