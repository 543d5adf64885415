"""The environment checker finds every fault that is built in here, and none where there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from envs.check import Finding, check_family
from envs.checks import episodes as check_episodes
from envs.checks.finding import Subject
from envs.checks.leak import _guessed
from envs.checks.recording import changes, explore, record
from envs.checks.tasks import _effects, effect
from envs.gym_tasks import GymTasks
from envs.half_cheetah import HalfCheetah, HalfCheetahTasks
from envs.navigation import Navigation
from envs.param import Param
from envs.task import Task, TaskDistribution, VectorTasks
from envs.testing import FamilyContract

GAIN = {"gain": Param(to="attr:gain", low=0.5, high=2.0)}
STEPS = 20


class Cart(gymnasium.Env[np.ndarray, np.ndarray]):
    """A cart, pushed by ``gain * action``, that is paid for being at the origin.

    One of its faults can be switched on.
    """

    shared: ClassVar[float] = 1.0
    clock: ClassVar[int] = 0

    def __init__(self, fault: str = "") -> None:
        self.fault, self._gain, self.most = fault, 1.0, 0.0
        self.built = np.random.default_rng().uniform() if fault == "built by chance" else 0.0
        self.observation_space = Box(-10.0, 10.0, (2,), np.float32)
        bound = np.inf if fault == "unbounded action" else 1.0
        self.action_space = Box(-bound, bound, (1,), np.float32)
        self.state, self.steps = np.zeros(2, np.float32), 0

    @property
    def gain(self) -> float:
        """What tasks differ in."""
        return self._gain

    @gain.setter
    def gain(self, value: float) -> None:
        self._gain, self.most = value, max(value, self.most)
        Cart.shared = value

    def multiply(self, value: float) -> None:
        """Not idempotent."""
        self._gain *= value

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Somewhere about the origin."""
        super().reset(seed=None if self.fault == "deaf to seeds" else seed)
        Cart.clock = 0
        position = 0.5 if self.fault == "fixed start" else self.np_random.uniform(-0.5, 0.5)
        keep = self.state[1] if self.fault == "leftover state" else 0.0
        self.state, self.steps = np.array([position, keep], np.float32), 0
        if self.fault == "tells":
            self.state[1] = self._gain
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Pushed for a moment."""
        self.steps += 1
        Cart.clock += 1
        other = {"ignores": 1.0, "shared": Cart.shared, "leftover task": self.most}
        push = other.get(self.fault, self._gain) + self.built
        if self.fault == "shared clock":
            push *= np.cos(Cart.clock)
        if self.fault == "noise":
            push += np.random.default_rng().uniform()
        position, speed = (float(each) for each in self.state)
        speed += 0.1 * (push * float(action[0]) - 0.1 * speed)
        obs = np.array([position + 0.1 * speed, speed], np.float32)
        if self.fault == "same array":
            self.state[:] = obs
        else:
            self.state = obs
        shown = self.state if self.fault == "same array" else self.state.copy()
        return self._ruined(shown, -abs(position))

    def _ruined(self, obs: Any, reward: float) -> tuple[Any, float, bool, bool, dict]:
        ends = {"early": 2, "clock": 12}.get(self.fault, math.inf)
        own_limit = 7 if self.fault == "own limit" else math.inf
        if self.fault == "shape" and self.steps > 3:
            obs = obs[:1]
        if self.fault == "nan" and self.steps > 3:
            obs = obs * np.nan
        if self.fault == "outside":
            obs = obs + np.array([50.0, 0.0], np.float32)
        if self.fault == "raises" and self.steps > 3:
            raise KeyError("wheel")
        reward = {"constant": 1.0, "huge": 1e5 * reward}.get(self.fault, reward)
        info = {"success": True} if self.fault == "always solved" else {}
        died = self.fault in ("dies cheaply", "dies dearly") and abs(float(obs[0])) > 0.6
        reward -= 100.0 if died and self.fault == "dies dearly" else 0.0
        return obs, reward, self.steps >= ends or died, self.steps >= own_limit, info


gymnasium.register("CheckedCart-v0", lambda **kwargs: Cart(**kwargs))


def cart(fault: str = "", horizon: int = STEPS, **settings: Any) -> GymTasks:
    return GymTasks(
        **{
            "name": "cart",
            "env_id": "CheckedCart-v0",
            "horizon": horizon,
            "kwargs": {"fault": fault},
            "params": GAIN,
            **settings,
        }
    )


def unlike_ok(found: list[Finding]) -> dict[str, str]:
    return {each.name: each.status for each in found if each.status in ("warning", "failed")}


def named(found: list[Finding], name: str) -> Finding:
    return next(each for each in found if each.name == name)


PENDULUM = GymTasks(
    name="pendulum",
    env_id="Pendulum-v1",
    horizon=200,
    params={
        "gravity": Param(to="attr:g", low=5.0, high=15.0),
        "mass": Param(to="attr:m", op="scale", low=0.5, high=2.0, log=True),
    },
)
ANGLE = {"angle": Param(to="attr:angle", low=0.0, high=2 * math.pi)}
DIRECTION = {"direction": Param(to="attr:direction", choices=[-1.0, 1.0])}
GOOD = [
    PENDULUM,
    Navigation(name="navigation", horizon=STEPS, params=ANGLE),
    HalfCheetah(name="half_cheetah_dir", params=DIRECTION),
    cart(),
    cart("fixed start"),
    GymTasks(
        name="cartpole",
        env_id="CartPole-v1",
        params={"length": Param(to="attr:length", low=0.3, high=1.0)},
    ),
]


@pytest.mark.parametrize("family", GOOD, ids=lambda family: family.name)
def test_there_are_no_false_alarms(family: TaskDistribution):
    found = check_family(family)
    assert unlike_ok(found) == {}
    assert {each.status for each in found} <= {"ok", "skipped"}
    assert len({each.name for each in found}) == len(found)
    assert any(each.name.startswith("effect of ") for each in found)


# Fault -> what is found, completely.
FAULTS = {
    "unbounded action": {"sizes": "failed"},
    "shape": {"sizes": "failed"},
    "nan": {"sizes": "failed"},
    "raises": {"sizes": "failed"},
    "noise": {"same seed same episode": "failed", "gymnasium checker": "failed"},
    "deaf to seeds": {"same seed same episode": "failed", "gymnasium checker": "failed"},
    "leftover state": {"same seed same episode": "failed", "gymnasium checker": "failed"},
    "leftover task": {"task over another": "failed"},
    "shared": {"coming back": "failed"},
    "shared clock": {"coming back": "failed"},
    "built by chance": {"same seed same episode": "failed"},
    "ignores": {"effect of gain": "failed"},
    "own limit": {"horizon": "warning"},
    "clock": {"ends of the task": "warning", "early ends": "warning"},
    "early": {"ends of the task": "warning", "early ends": "warning"},
    "dies cheaply": {"early ends": "warning"},
    "dies dearly": {},
    "same array": {"gymnasium checker": "failed"},
    "outside": {"observations in their space": "warning", "gymnasium checker": "warning"},
    "tells": {"given away": "warning"},
    "constant": {"reward": "warning"},
    "huge": {"reward": "warning"},
    "always solved": {"success": "warning"},
}


SAID = {
    "noise": ("same seed same episode", "self.np_random"),
    "built by chance": ("same seed same episode", "self.np_random"),
    "leftover state": ("same seed same episode", "leaves something of the last episode"),
    "shared clock": ("coming back", "all simulators share"),
    "own limit": ("horizon", "horizon: 7, or"),
    "early": ("early ends", "little can be learned"),
    "dies cheaply": ("early ends", "fail early"),
    "clock": ("ends of the task", "return it as truncated"),
    "tells": ("given away", "params.gain.hidden: false"),
    "constant": ("reward", "sparse"),
    "huge": ("reward", "scale"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_no_other(fault: str):
    Cart.shared = 1.0
    found = check_family(cart(fault))
    assert unlike_ok(found) == FAULTS[fault]
    assert all(each.detail and each.suggestion for each in found if each.name in FAULTS[fault])
    check, words = SAID.get(fault, ("sizes", ""))
    assert words in named(found, check).suggestion


class Points(VectorTasks):
    """Points that are paid for being near a goal in a hidden direction, with the family's fault."""

    def __init__(self, family: PointFamily, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = list(tasks), copies, 0.0
        self.fault, self.horizon, self.rows = family.fault, family.horizon, (len(tasks), copies)
        self.restart(np.arange(len(tasks)), tasks, [])

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """The goals of other tasks; at the origin."""
        angle = np.array([task.values["angle"] for task in tasks])[:, None]
        self.goal = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        left = getattr(self, "position", 0.0) if self.fault == "comes back elsewhere" else 0.0
        self.reset(0)
        self.position += left
        return self.position[:, 0].copy()

    def reset(self, seed: int) -> np.ndarray:
        """At the origin."""
        self.position, self.steps = np.zeros((*self.rows, 2)), 0
        self.last = np.zeros_like(self.position)
        return self.position.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A step of a tenth of the action, clipped."""
        self.steps += 1
        now = action if self.fault == "no bounds" else np.clip(action, -1, 1)
        if self.fault == "keeps the action":
            now = now / 2 + np.clip(self.last, -1, 1) / 2
            self.last = action
        if self.fault == "hands out its state":
            self.position += 0.1 * now
            obs = self.position
        else:
            self.position = self.position + 0.1 * now
            obs = self.position.copy()
        distance = np.linalg.norm(self.position - self.goal, axis=-1)
        reward = np.where(distance < 0.2, 1.0, 0.0) if self.fault == "sparse" else -distance
        if self.fault == "not finite":
            reward[distance < 0.8] = np.nan
        terminated = np.zeros(self.rows, dtype=bool)
        over = self.steps >= self.horizon and self.fault != "goes on"
        flags = terminated.astype(float) if self.fault == "numbers for flags" else terminated
        reward = reward[:1] if self.fault == "one reward" else reward
        return obs, reward, flags, np.full(self.rows, over)

    @property
    def diverged(self) -> np.ndarray:
        """The first tasks', from the fifth step on."""
        flags = np.zeros(self.rows, dtype=bool)
        share = {"blows up": 3, "blows up at times": 10}.get(self.fault, len(flags) + 1)
        flags[: len(flags) // share] = self.steps >= 5
        return flags

    @property
    def success(self) -> np.ndarray:
        """Near the goal."""
        return np.linalg.norm(self.position - self.goal, axis=-1) < 0.3


class PointFamily(TaskDistribution):
    """Their family."""

    fault = ""

    @property
    def raw_obs_size(self) -> int:
        """Position."""
        return 3 if self.fault == "size" else 2

    @property
    def action_size(self) -> int:
        """Displacement."""
        return 2

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Of a step."""
        return -np.ones(2), np.array([1.0, -1.0 if self.fault == "empty range" else 1.0])

    def simulate(self, tasks: Sequence[Task], copies: int) -> Points:
        """Points."""
        return Points(self, tasks, copies)

    def sample(self, n: int, rng: np.random.Generator, *args: Any, **kwargs: Any) -> list[Task]:
        """Whatever the split."""
        if self.fault == "one pot":
            return [Task(self.id, self.draw(rng)) for _ in range(n)]
        return super().sample(n, rng, *args, **kwargs)

    def draw(self, rng: np.random.Generator, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Numbers that JSON does not know."""
        values = super().draw(rng, *args, **kwargs)
        if self.fault == "float32":
            return {name: np.float32(value) for name, value in values.items()}  # pyright: ignore
        return values


def points(fault: str = "") -> PointFamily:
    family = PointFamily(name="points", horizon=STEPS, params=ANGLE)
    family.fault = fault
    return family


NATIVE_FAULTS = {
    "": {},
    "size": {"sizes": "failed"},
    "empty range": {"sizes": "failed"},
    "numbers for flags": {"sizes": "failed"},
    "one reward": {"sizes": "failed"},
    "not finite": {"finite numbers": "failed"},
    "hands out its state": {"own arrays": "failed"},
    "keeps the action": {"own arrays": "failed"},
    "goes on": {"horizon": "failed"},
    "no bounds": {"action bounds": "warning"},
    "one pot": {"splits": "failed"},
    "float32": {"plain values": "failed"},
    "blows up": {"stability": "failed"},
    "blows up at times": {"stability": "warning"},
    "comes back elsewhere": {"coming back": "failed"},
    "sparse": {"reward": "warning"},
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("fault", NATIVE_FAULTS)
def test_every_fault_of_a_native_family_is_found_and_no_other(fault: str):
    found = check_family(points(fault))
    assert unlike_ok(found) == NATIVE_FAULTS[fault]
    if fault == "sparse":
        assert "the reward alone" in named(found, "effect of angle").detail
    if fault == "hands out its state":
        assert "of step 1 changed after it had been returned" in named(found, "own arrays").detail


def cheetah(**params: dict) -> HalfCheetah:
    made = {name: Param(**settings) for name, settings in (DIRECTION_AS_DICT | params).items()}
    return HalfCheetah(name="cheetah", horizon=STEPS, params=made)


DIRECTION_AS_DICT: dict[str, dict] = {"direction": {"to": "attr:direction", "choices": [-1.0, 1.0]}}


@pytest.mark.parametrize(
    "dead",
    [
        # The nominal friction of the joints is zero, so that no factor changes it.
        {"to": "model:dof_frictionloss", "op": "scale", "low": 0.5, "high": 2.0},
        # Told to the agent, which is a change of what it sees but not of what happens.
        {"to": "model:cam_fovy", "op": "scale", "low": 0.5, "high": 2.0, "hidden": False},
    ],
)
def test_a_declared_parameter_that_changes_nothing_is_found(dead: dict):
    found = check_family(cheetah(dead=dead))
    assert unlike_ok(found) == {"effect of dead": "failed"}
    assert "identical transitions in 32 episodes" in named(found, "effect of dead").detail
    assert named(found, "effect of direction").status == "ok"
    assert unlike_ok(check_family(cheetah(dead=dead | {"inert": True}))) == {}


class PaddedTasks(HalfCheetahTasks):
    """Half-cheetahs with a sensor that is connected to nothing."""

    READINGS = (*HalfCheetahTasks.READINGS, "padding")

    def padding(self) -> np.ndarray:
        """Zeros."""
        return np.zeros((len(self.qpos), 1))


class Padded(HalfCheetah):
    """Their family."""

    SIMULATORS = PaddedTasks


def test_a_sensor_fault_that_masks_nothing_is_found():
    family = Padded(
        name="padded",
        horizon=STEPS,
        observation=["padding", "position", "velocity"],
        params={
            f"mask_{i}": Param(to=f"obs:{i}", op="scale", choices=[0.0]) for i in (0, 1, 9, 17)
        },
    )
    assert unlike_ok(check_family(family)) == {"effect of mask_0": "failed"}


def test_what_is_declared_inert_must_be():
    found = check_family(
        cheetah(mass={"to": "model:body_mass[torso]", "low": 1.0, "high": 9.0, "inert": True})
    )
    assert unlike_ok(found) == {"effect of mass": "failed"}
    assert "drop params.mass.inert" in named(found, "effect of mass").suggestion


def test_a_rare_effect_is_looked_for_in_more_episodes_before_it_is_called_missing():
    subjects = [Subject(points("sparse"), episodes=1, seed=seed) for seed in range(10)]
    unlucky = [each for each in subjects if not _effects(each, "angle", each.tasks[:1], 1)]
    assert unlucky
    assert {effect(each, "angle").status for each in unlucky} == {"ok"}


def test_whether_starts_vary_is_told():
    assert "starts alike" in named(check_family(cart("fixed start")), "starts").detail
    assert "other seeds start elsewhere" in named(check_family(cart()), "starts").detail


def test_effects_are_told_apart():
    found = check_family(
        cheetah(gravity={"to": "option:gravity", "op": "scale", "low": 0.5, "high": 2.0})
    )
    assert (
        "changes the reward alone: reward from step 1 on"
        in named(found, "effect of direction").detail
    )
    assert (
        "changes the dynamics: observation from step 1 on"
        in named(found, "effect of gravity").detail
    )
    assert "changes the start" in named(check_family(cart("tells")), "effect of gain").detail


@pytest.mark.parametrize(
    ("tells", "least", "most"),
    [
        (lambda x: x, 0.99, 1.0),
        (lambda x: np.sqrt(1 + x) * np.sign(np.sin(999 * x)), 0.9, 1.0),  # only by its square
        (lambda x: 0.0 * x, -0.5, 0.1),
    ],
)
@pytest.mark.parametrize("size", [3, 400])
def test_how_well_an_observation_tells(tells: Callable, least: float, most: float, size: int):
    rng = np.random.default_rng(0)
    hidden = rng.uniform(-1, 1, 200)
    obs = rng.standard_normal((200, size))
    obs[:, 2] = tells(hidden) + 0.01 * obs[:, 2]
    score, entry = _guessed(obs, hidden)
    assert least <= score <= most
    assert entry == 2 or least < 0


def test_an_error_of_the_environment_is_told_once_with_its_place():
    found = check_family(cart("raises"))
    detail = named(found, "sizes").detail
    assert "KeyError: 'wheel' (test_check.py, line " in detail and "step 4, seed" in detail
    assert "Traceback" not in detail and "Likely cause" not in detail
    assert {each.status for each in found[1:]} == {"skipped"}


def test_another_exception_becomes_a_finding_too():
    family = points()
    family.describe = lambda tasks: 1 / 0  # pyright: ignore
    found = check_family(family)
    assert unlike_ok(found) == {"plain values": "failed"}
    assert named(found, "plain values").detail.startswith("ZeroDivisionError: division by zero (")
    assert "fails as 'plain values' does" in named(found, "given away").detail


def test_slow_environments_are_flagged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check_episodes, "_SLOW", 1e12)
    found = check_family(points())
    assert unlike_ok(found) == {"speed": "warning"}
    assert "workers: 2" in named(found, "speed").suggestion


def test_a_success_key_that_is_never_told_is_named():
    found = check_family(cart("always solved", success_key="sucess"))
    assert unlike_ok(found) == {"success key": "failed"}
    assert "did you mean 'success'?" in named(found, "success key").suggestion
    solved = check_family(cart("always solved", success_key="success"))
    assert named(solved, "success key").status == "ok"
    none = check_family(cart())
    assert (
        named(none, "success key").status == "skipped"
        and "not told" in named(none, "success").detail
    )
    assert "% of the episodes succeed" in named(check_family(points()), "success").detail


def test_checkers_of_other_libraries_are_called_with_an_environment_of_the_family():
    def complains(env: gymnasium.Env) -> None:
        assert isinstance(env.unwrapped, Cart) and env.unwrapped.gain != 1.0  # has a task
        warnings.warn("the wheels are round", stacklevel=1)

    def refuses(env: gymnasium.Env) -> None:
        raise AssertionError(f"{env.observation_space.shape} is no shape")

    checkers = {"one": complains, "other": refuses, "third": lambda env: None}
    found = check_family(cart(), extra_checks=checkers)
    assert unlike_ok(found) == {"one": "warning", "other": "failed"}
    assert named(found, "one").detail == "the wheels are round"
    assert "AssertionError: (2,) is no shape" in named(found, "other").detail
    assert named(found, "third").status == "ok"


def test_native_families_are_given_an_environment_for_checkers():
    made: list[Task] = []

    def make_env(task: Task) -> gymnasium.Env:
        made.append(task)
        return Cart()

    skipped = check_family(points(), extra_checks={"one": lambda env: None})
    assert named(skipped, "one").status == named(skipped, "gymnasium checker").status == "skipped"
    found = check_family(points(), extra_checks={"one": lambda env: None}, make_env=make_env)
    assert named(found, "one").status == named(found, "gymnasium checker").status == "ok"
    assert len(made) == 2 and made[0] == Subject(points()).tasks[0]


def test_actions_explore_within_the_bounds_and_some_are_held():
    actions = explore(cart(), 30, tasks=2, copies=3, seed=0)
    assert actions.shape == (30, 2, 3, 1) and np.abs(actions).max() <= 1
    kinds = [len(np.unique(actions[:, 0, copy])) for copy in range(3)]
    assert kinds == [30, 1, 3]
    assert np.array_equal(actions, explore(cart(), 30, 2, 3, seed=0))


def test_recordings_are_compared_until_their_episodes_end():
    family = points()
    with_goal = [Task(family.id, {"angle": angle}) for angle in (0.0, 0.0)]
    actions = explore(family, 6, 2, 1, seed=0)
    one, other = (record(family.open(with_goal, 1), actions, 0) for _ in range(2))
    assert changes(one, other) == {}
    other.obs[3, 1, 0, 1] += 0.5
    other.obs[5, 1, 0, 0] = np.nan
    other.reward[4, 0, 0] += 0.25
    assert changes(one, other)["observation"] == (3, np.inf)
    assert changes(one, other, columns=1)["observation"] == (5, np.inf)
    assert changes(one, other)["reward"] == (5, pytest.approx(0.25))
    for recording in (one, other):
        recording.terminated[2, 1] = True
        del recording.running  # computed anew
    assert set(changes(one, other)) == {"observation", "reward"}  # row 1 ends with step 3
    assert changes(one, other)["observation"] == (3, pytest.approx(0.5))
    assert one.lengths.tolist() == [[6], [3]]
    other.terminated[2, 1] = False
    assert changes(one, other)["end"].step == 3


class TestCart(FamilyContract):
    """The contract as a user would have it tested."""

    def make_family(self) -> GymTasks:
        """Carts."""
        return cart(horizon=1000)


class TestPoints(FamilyContract):
    """A native family."""

    def make_family(self) -> PointFamily:
        """Points."""
        return points()


BREACHES = {
    "test_sizes": points("size"),
    "test_numbers_are_finite": points("not finite"),
    "test_the_same_seed_gives_the_same_episode": cart("noise"),
    "test_arrays_belong_to_the_caller": points("keeps the action"),
    "test_episodes_end_at_the_horizon": points("goes on"),
    "test_every_parameter_matters": cart("ignores"),
    "test_a_task_is_the_same_after_another": cart("leftover task"),
    "test_splits_are_disjoint": points("one pot"),
    "test_tasks_are_plain_values": points("float32"),
}


def test_every_part_of_the_contract_can_be_broken():
    tests = {name for name in dir(FamilyContract) if name.startswith("test_")}
    assert tests == set(BREACHES)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("test", BREACHES)
def test_a_breach_of_contract_names_family_and_task(test: str):
    class Contract(FamilyContract):
        def make_family(self) -> TaskDistribution:
            return BREACHES[test]

    with pytest.raises(AssertionError) as caught:
        getattr(Contract(), test)()
    first = Subject(BREACHES[test]).tasks[0]
    assert str(caught.value).startswith(f"{BREACHES[test].id} (tasks '")
    assert BREACHES[test].label(first) in str(caught.value)


def test_long_episodes_are_cut_for_the_contract():
    assert TestCart()._subject().family.horizon == FamilyContract.steps < 1000
    assert TestPoints()._subject().family.horizon == STEPS


def test_a_contract_without_a_family_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="FamilyContract must define make_family"):
        FamilyContract().test_sizes()
