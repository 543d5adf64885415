# pyright: reportAttributeAccessIssue=false
"""Humanoid against gymnasium's own, as it is and changed; the other definitions by hand."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest

from envs.humanoid import Humanoid, HumanoidDir, HumanoidTasks
from envs.param import Param
from envs.simulation import SimulatedFamily
from tests.against_gymnasium import compare
from tests.changed_models import changed

MOVE = np.linspace(-0.4, 0.3, 17)
ANGLES = [0.0, 0.3, 2.0, 5.5]


def same(family: SimulatedFamily, env_id: str = "Humanoid-v5", **settings: Any) -> int:
    """Equal, bit for bit; gives how many of four episodes ended early."""
    gaps = compare(family, env_id, **settings)
    print(f"largest differences from {env_id}: {gaps}")
    assert max(gaps[:2]) == 0.0
    return gaps.ended


def opened(family: Humanoid) -> HumanoidTasks:
    """A humanoid for each of four angles."""
    sims = family.simulate([family.task({"angle": angle}) for angle in ANGLES], 1)
    assert isinstance(sims, HumanoidTasks)
    sims.reset(0)
    return sims


def step(sims: HumanoidTasks) -> np.ndarray:
    return sims.step(np.tile(MOVE, (len(ANGLES), 1, 1)))[1][:, 0]


def com(sims: HumanoidTasks) -> np.ndarray:
    mass = sims.model.body_mass / sims.model.body_mass.sum()
    return np.einsum("b,nbk->nk", mass, sims.read("xipos")[..., :2])


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_it_equals_gymnasium(scale: float):
    """Measured: 0.0 in observation and reward until they fall, as all do."""
    assert same(Humanoid(name="humanoid", horizon=1000), scale=scale) == 4


def test_it_equals_gymnasium_where_nothing_ends_the_episode():
    """Measured: 0.0 over 200 steps, most of them on the ground."""
    family = HumanoidDir(name="humanoid", horizon=1000, ends_by_fall=False)
    assert same(family, values={"angle": 0.0}, terminate_when_unhealthy=False) == 0


@pytest.mark.parametrize("integrator", ["Euler", "implicitfast"])
def test_it_equals_gymnasium_with_another_integrator(integrator: Any):
    """The sensor that fills the contact forces, against ``mj_rnePostConstraint``: 0.0."""
    number = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator.upper()}")

    def change(model: Any) -> None:
        model.opt.integrator = number

    family = Humanoid(name="humanoid", horizon=1000, integrator=integrator, ends_by_fall=False)
    env_id = changed("Humanoid-v5", change)
    same(family, env_id, steps=100, terminate_when_unhealthy=False)


def test_the_centre_of_mass_is_that_of_the_tasks_own_masses():
    def change(model: Any) -> None:
        arm = model.body("left_lower_arm").id
        model.body_mass[arm] *= 6.0
        model.body_inertia[arm] *= 6.0

    load = Param(to="model:body_mass[left_lower_arm]", op="scale", low=1.0, high=6.0)
    family = Humanoid(name="humanoid", horizon=1000, params={"load": load})
    same(family, changed("Humanoid-v5", change), values={"load": 6.0}, steps=40)


# Entries observed, steps, whether the step of a fall is paid.
VARIANTS = {
    "v5": (348, 200, False),
    "promp": (376, 200, True),
    "varibad": (376, 200, True),
    "pearl": (376, 200, True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_of_directions_by_hand(variant: str):
    observed, horizon, pays_fall = VARIANTS[variant]
    family = HumanoidDir(name="humanoid", variant=variant)
    assert (family.obs_size, family.horizon) == (observed, horizon)
    sims = opened(family)
    along = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    control = 0.1 * (MOVE**2).sum()
    sims.qvel[:, :2] = [0.4, -0.7]
    before = com(sims)
    reward = step(sims)
    forward = 0.25 * (along * (com(sims) - before)).sum(axis=1) / 0.003
    assert (np.abs(forward) > 0.01).all()
    contact = 5e-7 * (sims.contact_forces**2).sum(axis=(1, 2))
    assert reward == pytest.approx(forward + 5.0 - control - contact, abs=1e-9)

    sims.qpos[:, 2], sims.qvel[:, 2] = 0.9, -20.0  # thrown to the ground
    before = com(sims)
    _, reward, terminated, _ = sims.step(np.zeros((4, 1, 17)))
    forward = 0.25 * (along * (com(sims) - before)).sum(axis=1) / 0.003
    assert (5e-7 * (sims.contact_forces**2).sum(axis=(1, 2)) > 10.0).all()
    expected = forward - 10.0 + (5.0 if pays_fall else 0.0)
    assert reward[:, 0] == pytest.approx(expected, abs=1e-9)
    assert terminated.all()


def test_older_observations_have_entries_that_are_always_zero():
    """Those of the world's inertia, velocity and contacts, and of motors at the free torso."""
    new, old = (opened(HumanoidDir(name="humanoid", variant=v)) for v in ("v5", "promp"))
    zero = np.r_[45:55, 185:191, 269:275, 292:298]
    for _ in range(30):
        moves = np.tile(MOVE, (len(ANGLES), 1, 1))
        seen, seen_before = new.step(moves)[0][:, 0], old.step(moves)[0][:, 0]
        assert not seen_before[:, zero].any()
        assert np.array_equal(np.delete(seen_before, zero, axis=1), seen)
    assert np.abs(seen[:, -78:]).max() > 1.0  # there was contact


def test_heights_of_a_healthy_humanoid():
    sims = opened(HumanoidDir(name="humanoid"))
    sims.qpos[:, 2] = [1.0, 1.0 + 1e-9, 2.0 - 1e-9, 2.0]
    assert sims.healthy().tolist() == [False, True, True, False]
    assert sims.terminated().tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match=r"min_height=2\.5 must be below max_height=2"):
        Humanoid(name="humanoid", min_height=2.5)


def test_directions_are_of_the_full_circle_and_pearls_are_fixed():
    rng = np.random.default_rng(0)
    angles = [t.values["angle"] for t in HumanoidDir(name="humanoid").sample(200, rng)]
    assert 0.0 <= min(angles) < 0.1 and 6.2 < max(angles) <= 2.0 * math.pi
    pearl = HumanoidDir(name="humanoid", variant="pearl")
    assert len(set(pearl.sample(2000, rng))) == 100
    assert len(set(pearl.sample(2000, rng, "heldout"))) == 30


def test_contact_forces_are_computed_only_where_they_are_used():
    assert HumanoidDir(name="humanoid").needs_contact_forces
    assert HumanoidDir(name="humanoid", observation=["position"]).needs_contact_forces  # charged
    assert HumanoidDir(name="humanoid", contact_cost=0.0).needs_contact_forces
    free = HumanoidDir(name="humanoid", contact_cost=0.0, observation=["position", "velocity"])
    assert not free.needs_contact_forces
    assert np.isfinite(step(opened(free))).all()


def test_the_start_is_gymnasiums():
    family = Humanoid(name="humanoid")
    sims = family.simulate([family.task({})], 300)
    sims.reset(0)
    for noise in (sims.qpos - sims.model.qpos0, sims.qvel):
        assert 0.0099 < np.abs(noise).max() <= 0.01
        assert noise.std() == pytest.approx(0.01 / math.sqrt(3.0), rel=0.05)
