# pyright: reportAttributeAccessIssue=false
"""Ant against gymnasium's own, as it is and changed; the other definitions by hand."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest

from envs.ant import Ant, AntAngle, AntBody, AntDir, AntLegs, AntTasks, AntVel
from envs.ant_goals import AntGoal, AntSquare
from envs.simulation import SimulatedFamily
from tests.against_gymnasium import compare
from tests.changed_models import changed

MOVE = np.array([0.5, 0.0, 0.4, 0.0, -0.3, 0.0, 0.2, 0.0])
SQUARED_MOVE = float((MOVE**2).sum())


def same(family: SimulatedFamily, env_id: str = "Ant-v5", **settings: Any) -> int:
    """Equal, bit for bit; gives how many of four episodes ended early."""
    gaps = compare(family, env_id, **settings)
    print(f"largest differences from {env_id}: {gaps}")
    assert max(gaps[:2]) == 0.0
    return gaps.ended


def grounded(family: SimulatedFamily, *values: dict[str, float]) -> AntTasks:
    """An ant of each task, lying on the ground."""
    sims = family.simulate([family.task(each) for each in values], 1)
    assert isinstance(sims, AntTasks)
    sims.reset(0)
    for _ in range(40):
        sims.step(np.zeros((len(values), 1, 8)))
    return sims


def torso(sims: AntTasks) -> np.ndarray:
    return sims.read("xpos")[:, 1, :2].copy()


def step(sims: AntTasks) -> np.ndarray:
    return sims.step(np.tile(MOVE, (len(sims.tasks), 1, 1)))[1][:, 0]


def contact(sims: AntTasks) -> np.ndarray:
    cost = 5e-4 * (np.clip(sims.contact_forces, -1.0, 1.0) ** 2).sum(axis=(1, 2))
    assert (cost > 1e-4).all()  # there is contact
    return cost


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_it_equals_gymnasium(scale: float):
    """Measured: 0.0 in observation and reward, with and without falls."""
    assert (same(Ant(name="ant", horizon=1000), scale=scale) > 0) == (scale == 1.0)


def test_it_equals_gymnasium_where_nothing_ends_the_episode():
    family = Ant(name="ant", horizon=1000, ends_by_fall=False, healthy_reward=0.7)
    settings = {"terminate_when_unhealthy": False, "healthy_reward": 0.7}
    assert same(family, **settings) == 0


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_it_equals_gymnasium_in_both_directions(direction: float):
    family = AntDir(name="ant", horizon=1000)
    same(family, values={"direction": direction}, forward_reward_weight=direction)


@pytest.mark.parametrize("integrator", ["Euler", "implicitfast"])
def test_it_equals_gymnasium_with_another_integrator(integrator: Any):
    """The sensor that fills the contact forces, against ``mj_rnePostConstraint``: 0.0."""
    number = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator.upper()}")

    def change(model: Any) -> None:
        model.opt.integrator = number

    family = Ant(name="ant", horizon=1000, integrator=integrator)
    assert family.id == f"ant:v5+{integrator}"
    assert same(family, changed("Ant-v5", change)) > 0


def test_a_broken_leg_is_the_one_it_is_called():
    """Legs by their joints' names."""
    faults = {"hip_1": -1.0, "ankle_1": -1.0, "hip_3": 0.2, "ankle_3": 0.2}

    def change(model: Any) -> None:
        for motor in range(model.nu):
            name = model.joint(model.actuator_trnid[motor, 0]).name
            model.actuator_gear[motor] *= faults.get(name, 1.0)

    values = dict.fromkeys(AntLegs(name="ant").params, 1.0)
    values |= {"leg_front_left": -1.0, "leg_back_left": 0.2}
    same(AntLegs(name="ant", horizon=1000), changed("Ant-v5", change), values=values)


def test_every_leg_is_named_after_its_body():
    model, params = Ant(name="ant").model, AntLegs(name="ant").params
    bodies = {
        "leg_front_left": "front_left_leg",
        "leg_front_right": "front_right_leg",
        "leg_back_left": "back_leg",
        "leg_back_right": "right_back_leg",
    }
    assert set(params) == set(bodies)
    for name, body in bodies.items():
        for target in params[name].targets:
            motor = int(target.removeprefix("model:actuator_gear[").removesuffix("]"))
            above = model.jnt_bodyid[model.actuator_trnid[motor, 0]]
            while model.body(model.body_parentid[above]).name != "torso":
                above = model.body_parentid[above]
            assert model.body(above).name == body


def test_legs_are_rich_enough_to_hold_some_out():
    family = AntLegs(name="ant")
    tasks = {t for split in ("train", "heldout") for t in family.sample(9, _rng(), split)}
    assert all(sum(v != 1.0 for v in task.values.values()) == 2 for task in tasks)
    assert family.holds_out


@pytest.mark.parametrize("foot", [0.75, 3.0])
def test_another_body_and_world_equal_gymnasiums_changed_alike(foot: float):
    def change(model: Any) -> None:
        model.opt.gravity *= 0.7
        model.geom_friction *= 0.375
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
        feet = [model.jnt_bodyid[model.joint(f"ankle_{i}").id] for i in (1, 2, 3, 4)]
        for body, factor in [(model.body("torso").id, 1.5), *[(each, foot) for each in feet]]:
            model.body_mass[body] *= factor
            model.body_inertia[body] *= factor
            geom = model.body_geomadr[body]
            radius = model.geom_size[geom, 0] * factor
            model.geom_size[geom, 0] = radius
            model.geom_rbound[geom] = radius + model.geom_size[geom, 1]
            model.geom_aabb[geom, 3:] = radius
            model.geom_aabb[geom, 5] += model.geom_size[geom, 1]

    values = {"gravity": 0.7, "friction": 0.375, "torso": 1.5, "foot": foot}
    same(AntBody(name="ant", horizon=1000), changed("Ant-v5", change), values=values)


# Weight of the squared action, healthy reward, entries observed, steps; all but v5's pay a fall.
DIRECTIONS = {
    "v5": (0.5, 1.0, 105, 200),
    "finn2017": (0.005, 0.05, 125, 200),
    "deleu": (0.005, 0.05, 125, 100),
    "promp": (0.5, 1.0, 111, 200),
    "pearl": (0.5, 1.0, 27, 200),
    "varibad": (0.5, 1.0, 27, 200),
}


@pytest.mark.parametrize("variant", DIRECTIONS)
def test_rewards_of_directions_by_hand(variant: str):
    weight, healthy, observed, horizon = DIRECTIONS[variant]
    family = AntDir(name="ant", variant=variant)
    assert (family.obs_size, family.horizon) == (observed, horizon)
    sims = grounded(family, {"direction": 1.0}, {"direction": -1.0})
    mass = sims.model.body_mass / sims.model.body_mass.sum()

    def place() -> np.ndarray:
        if variant == "finn2017":
            return np.einsum("b,nbk->nk", mass, sims.read("xipos")[..., :2])
        return torso(sims)

    before = place()
    reward = step(sims)
    velocity = (place() - before) / 0.05
    along = np.array([[1.0, 0.0], [-1.0, 0.0]])
    if variant == "varibad":  # 57.3 degrees to the left and to the right of x
        along = np.array([[math.cos(1.0), math.sin(1.0)], [math.cos(1.0), -math.sin(1.0)]])
    forward = (along * velocity).sum(axis=1)
    assert (np.abs(forward) > 0.01).all()
    expected = forward + healthy - weight * SQUARED_MOVE - contact(sims)
    assert reward == pytest.approx(expected, abs=1e-12)

    sims.qpos[:, 2] = 1.5  # far above the ground, where nothing touches
    before = place()
    _, reward, terminated, _ = sims.step(np.zeros((2, 1, 8)))
    forward = (along * (place() - before) / 0.05).sum(axis=1)
    expected = forward + (0.0 if variant == "v5" else healthy)
    assert reward[:, 0] == pytest.approx(expected, abs=1e-12)
    assert terminated.all()


@pytest.mark.parametrize(
    ("variant", "lowest"), [(name, 0.0 if name == "promp" else 0.2) for name in DIRECTIONS]
)
def test_heights_of_a_healthy_ant(variant: str, lowest: float):
    family = AntDir(name="ant", variant=variant)
    sims = family.simulate([family.task({"direction": 1.0})], 5)
    assert isinstance(sims, AntTasks)
    sims.reset(0)
    sims.qpos[:, 2] = [lowest - 1e-9, lowest, 0.5, 1.0, 1.0 + 1e-9]
    assert sims.healthy().tolist() == [False, True, True, True, False]
    assert sims.terminated().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(("variant", "observed"), [("v5", 105), ("promp", 111), ("pearl", 27)])
def test_any_direction_is_paid(variant: str, observed: int):
    family = AntAngle(name="ant", variant=variant)
    assert family.obs_size == observed
    angles = [0.3, 2.0, 5.5]
    sims = grounded(family, *({"angle": angle} for angle in angles))
    before = torso(sims)
    reward = step(sims)
    x, y = (torso(sims) - before).T / 0.05
    expected = np.cos(angles) * x + np.sin(angles) * y + 1.0 - 0.5 * SQUARED_MOVE - contact(sims)
    assert reward == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("variant", ["finn2017", "deleu"])
def test_missing_the_target_speed_costs(variant: str):
    family = AntVel(name="ant", variant=variant)
    sims = grounded(family, {"speed": 0.0}, {"speed": 2.5})
    before = sims.place().copy()
    reward = step(sims)
    velocity = (sims.place() - before)[:, 0] / 0.05
    expected = 1.05 - np.abs(velocity - [0.0, 2.5]) - 0.005 * SQUARED_MOVE - contact(sims)
    assert reward == pytest.approx(expected, abs=1e-12)


def test_speeds_and_their_beyond():
    family = AntVel(name="ant")
    speeds = [task.values["speed"] for task in family.sample(200, _rng())]
    assert 0.0 <= min(speeds) < 0.1 and 2.9 < max(speeds) <= 3.0
    assert all(3.0 <= task.values["speed"] <= 4.0 for task in family.sample(20, _rng(), "ood"))


QUARTER = {"angle": 3.0 * math.pi / 2.0, "area": 0.25}  # at (0, -1.5)
GOALS = {"promp": 113, "varibad": 113, "pearl": 113, "hyperx": 116}


@pytest.mark.parametrize("variant", GOALS)
def test_rewards_of_goals_by_hand(variant: str):
    family = AntGoal(name="ant", variant=variant)
    assert (family.obs_size, family.horizon) == (GOALS[variant], 200)
    sims = grounded(family, QUARTER, QUARTER)
    sims.qpos[1, :2] = [0.3, -1.0]
    reward = step(sims)
    x, y = torso(sims).T
    distance = np.hypot(x, y + 1.5)
    assert distance[0] > 0.75 > distance[1]
    if variant == "hyperx":
        expected = np.array([-0.75, 1.0 - distance[1]]) - 0.01 * SQUARED_MOVE
    else:
        expected = -np.abs(x) - np.abs(y + 1.5) - 0.1 * SQUARED_MOVE
    assert reward == pytest.approx(expected - contact(sims), abs=1e-12)
    sims.qpos[:, 2] = 5.0
    assert not sims.step(np.zeros((2, 1, 8)))[2].any()  # nothing ends the episode


@pytest.mark.parametrize("variant", ["finn2017", "deleu"])
def test_goals_in_a_square(variant: str):
    family = AntSquare(name="ant", variant=variant)
    sims = grounded(family, {"x": 1.0, "y": -2.0})
    reward = step(sims)
    x, y = sims.place()[0]
    distance = abs(x - 1.0) + abs(y + 2.0)
    assert reward == pytest.approx(4.05 - distance - 0.005 * SQUARED_MOVE - contact(sims))
    sims.qpos[:, 2] = 1.5
    assert sims.step(np.zeros((1, 1, 8)))[2].all()


def test_goals_are_uniform_in_the_disc_and_beyond_in_the_ring():
    family = AntGoal(name="ant")
    x, y = _goals(family, family.sample(600, _rng()))
    radius = np.hypot(x, y)
    assert radius.max() <= 3.0
    assert (radius < 1.5).mean() == pytest.approx(0.25, abs=0.06)
    assert ((x > 0.0) & (y > 0.0)).mean() == pytest.approx(0.25, abs=0.06)
    radius = np.hypot(*_goals(family, family.sample(50, _rng(), "ood")))
    assert 3.0 <= radius.min() < 3.2 and 3.8 < radius.max() <= 4.0


def test_an_episode_has_succeeded_once_the_goal_was_near():
    family = AntGoal(name="ant", horizon=50)
    tasks = [family.task(QUARTER)] * 3
    sims = family.simulate(tasks, 1)
    assert isinstance(sims, AntTasks) and sims.success is not None
    sims.reset(0)
    for place in ([0.0, -1.0], [0.0, 0.0]):  # there and back
        sims.qpos[0, :2] = place
        step(sims)
    assert sims.success[:, 0].tolist() == [True, False, False]
    near_start = family.task({"angle": 0.0, "area": 0.01})
    sims.restart(np.array([1]), [near_start], [_rng()])
    step(sims)
    assert sims.success[:, 0].tolist() == [True, True, False]
    sims.reset(1)
    assert not sims.success.any()


def test_contact_forces_are_computed_only_where_they_are_used():
    assert Ant(name="ant").needs_contact_forces
    assert AntAngle(name="ant", variant="pearl").needs_contact_forces  # they are charged
    shown = Ant(name="ant", contact_cost=0.0)
    assert shown.needs_contact_forces
    free = Ant(name="ant", contact_cost=0.0, observation=["position"], integrator="Euler")
    assert not free.needs_contact_forces and free.model.nsensor == 0
    sims = grounded(free, {})
    before = torso(sims)
    forward = step(sims)[0] - 1.0 + 0.5 * SQUARED_MOVE
    assert forward == pytest.approx((torso(sims) - before)[0, 0] / 0.05)


def test_what_is_seen():
    seen = ["full_position", "orientation", "torso_position", "com"]
    family = Ant(name="ant", contact_cost=0.0, observation=seen)
    sims = family.simulate([family.task({})], 1)
    obs = sims.reset(0)[0, 0]
    data = mujoco.MjData(family.model)
    data.qpos[:] = sims.qpos[0]
    mujoco.mj_forward(family.model, data)
    torso = data.body("torso")
    expected = [data.qpos, torso.xmat, torso.xpos, data.subtree_com[0]]
    assert obs == pytest.approx(np.concatenate(expected))
    assert np.abs(obs[15:24] - np.eye(3).ravel()).max() > 0.05  # it leans


def test_the_start_is_gymnasiums():
    family = Ant(name="ant")
    sims = family.simulate([family.task({})], 500)
    sims.reset(0)
    noise = sims.qpos - sims.model.qpos0
    assert 0.099 < np.abs(noise).max() <= 0.1
    assert noise.std() == pytest.approx(0.1 / math.sqrt(3.0), rel=0.05)
    assert sims.qvel.std() == pytest.approx(0.1, rel=0.05)


def test_heights_must_be_in_order():
    with pytest.raises(ValueError, match="min_height=2 must be below max_height=1"):
        Ant(name="ant", min_height=2.0)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _goals(family: AntGoal, tasks: Any) -> tuple[Any, Any]:
    return family.simulate(tasks, 1).goal()
