# pyright: reportAttributeAccessIssue=false
# (Meta-World is an extra, and MuJoCo's bindings come without type stubs.)
"""Meta-World as a family: its own tasks, goals hidden, and its scripted policies as the oracle.

What needs Meta-World is skipped where it is not installed. All of it: ``make test-metaworld``.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import envs.compat as compat
from agent.cli import configure
from agent.config import build
from envs.metaworld import MetaWorld
from envs.metaworld_env import ENVIRONMENTS, STEPS, draw_goals
from envs.param import Param, TaskError
from envs.task import SPLITS, Task

INSTALL = "pip install --no-deps metaworld==3.1.1"
GOAL = [0.05, 0.65, 0.02, -0.05, 0.85, 0.2]


MISSING = compat.missing("metaworld")
needs_metaworld = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def ml1(env_name: str = "reach-v3", **settings: Any) -> MetaWorld:
    return MetaWorld(name="ml1", benchmark="ML1", env_name=env_name, **settings)


def ml(benchmark: Any, **settings: Any) -> MetaWorld:
    return MetaWorld(name="ml", benchmark=benchmark, **settings)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Without Meta-World.


@pytest.mark.parametrize("name", ["metaworld_ml1", "metaworld_ml10", "metaworld_ml45"])
def test_the_configs_build(name: str):
    family = build(configure("train", [f"env={name}"])["env"], "env", MetaWorld)
    assert family.name.startswith(name)
    assert (family.id, family.horizon) == (f"{family.name}:v2", 500)
    assert (family.obs_size, family.action_size) == (39, 4)
    shorter = dataclasses.replace(family, horizon=10)
    assert (shorter.params, shorter.horizon) == (family.params, 10)


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "find_spec", lambda _: None)
    family = ml("ML10", goals_seed=987)
    assert family.missing() == f"metaworld is not installed; install it with: {INSTALL}"
    task = family.task_of("reach-v3", GOAL)
    for use in (lambda: family.sample(1, rng()), lambda: family.open([task], 1)):
        with pytest.raises(TaskError, match=f"install it with: {INSTALL}"):
            use()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmark": "ML1"}, "ML1 needs the name of an environment"),
        ({"benchmark": "ML10", "env_name": "reach-v3"}, "the others have their own"),
        ({"benchmark": "ML1", "env_name": "raech-v3"}, "did you mean 'reach-v3'"),
        ({"benchmark": "ML45", "horizon": 501}, "horizon"),
        ({"benchmark": "ML45", "variant": "v3"}, "variant"),
        ({"benchmark": "ML45", "validation_goals": 50}, "validation_goals"),
        ({"benchmark": "ML45", "pool": {"train": 3}}, "Meta-World's goals are fixed sets"),
        (
            {"benchmark": "ML45", "params": {"mass": Param(to="attr:mass", choices=[1.0])}},
            "params.mass: only action: and obs: targets",
        ),
        (
            {"benchmark": "ML45", "params": {"rand_vec_5": Param(to="obs:1", choices=[1.0])}},
            "params.rand_vec_5: only action:",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MetaWorld(name="wrong", **settings)


def test_a_task_is_a_plain_value():
    family = ml("ML45")
    task = family.task_of("reach-v3", GOAL)
    written = json.loads(json.dumps(task.values))
    assert Task(task.family, written) == task
    assert written["environment"] == list(ENVIRONMENTS).index("reach-v3")
    assert [written[f"rand_vec_{i}"] for i in range(6)] == GOAL
    assert family.label(task) == "reach-v3 0.050 0.650 0.020 -0.050 0.850 0.200"
    short = family.task_of("sweep-v3", GOAL[:3])
    assert family.label(short) == "sweep-v3 0.050 0.650 0.020"
    assert np.abs(family.describe([task, short])).max() <= 1.0
    assert len({task.id, short.id, ml1().task_of("reach-v3", GOAL).id}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"environment": 50.0}, "environment=50; expected 0 to 49"),
        ({"environment": 1.5}, "environment=1.5; expected 0 to 49"),
        ({"environment": 4.0}, "button-press-topdown-v3 has a rand_vec of 3 numbers"),
    ],
)
def test_a_task_that_cannot_be_is_refused(values: dict, message: str):
    family = ml("ML45")
    task = family.task_of("reach-v3", GOAL)
    with pytest.raises(TaskError, match=message):
        family.label(Task(family.id, {**task.values, **values}))
    for name, goal in (("reach-v3", GOAL[:3]), ("raech-v3", GOAL)):
        with pytest.raises(TaskError, match="expected an environment of Meta-World and"):
            family.task_of(name, goal)


# With Meta-World.


@needs_metaworld
def test_the_table_of_environments_is_metaworlds():
    theirs = compat.import_metaworld().ALL_V3_ENVIRONMENTS
    assert list(theirs) == list(ENVIRONMENTS)
    for name, goals in draw_goals(list(theirs), 0).items():
        assert goals.shape == (50, ENVIRONMENTS[name])
        axes = np.abs(ml("ML45").describe([ml("ML45").task_of(name, goal) for goal in goals]))
        assert axes.max() <= 1.0


def official(tasks: Any) -> dict[str, list]:
    """The goals in Meta-World's own pickles."""
    goals: dict[str, list] = {}
    for task in tasks:
        goals.setdefault(task.env_name, []).append(pickle.loads(task.data)["rand_vec"].tolist())
    return goals


def listed(goals: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: of_one.tolist() for name, of_one in goals.items()}


@needs_metaworld
def test_goals_are_metaworlds_own_without_its_pickles(monkeypatch: pytest.MonkeyPatch):
    metaworld = compat.import_metaworld()
    train, test = ml1("push-v3", goals_seed=3, validation_goals=0), ml1("push-v3", goals_seed=3)
    theirs = metaworld.ML1("push-v3", seed=3)
    monkeypatch.setattr(metaworld.pickle, "loads", None)
    monkeypatch.setattr(metaworld.pickle, "dumps", None)
    np.random.seed(5)
    expected = np.random.uniform(size=3)
    np.random.seed(5)
    goals = train.goals("train"), test.goals("heldout")
    test.open(test.sample(1, rng()), 1).reset(0)
    assert np.array_equal(np.random.uniform(size=3), expected)  # numpy's generator was left alone
    monkeypatch.undo()
    assert listed(goals[0]) == official(theirs.train_tasks)
    assert goals[1]["push-v3"].tolist() == official(theirs.test_tasks)["push-v3"][:40]


@needs_metaworld
@pytest.mark.slow
def test_goals_of_many_environments_are_metaworlds_own():
    theirs = compat.import_metaworld().ML10(seed=8)
    family = ml("ML10", goals_seed=8, validation_goals=0, heldout_goals=50)
    parts = {"train": theirs.train_tasks, "heldout": theirs.test_tasks}
    for split in ("train", "heldout"):
        goals, tasks = listed(family.goals(split)), parts[split]
        assert goals == official(tasks)
        assert list(goals) == list(official(tasks))


@needs_metaworld
@pytest.mark.parametrize("family", [ml1(), ml("ML10"), ml("ML45")], ids=lambda f: f.benchmark)
def test_splits_are_disjoint_and_whole(family: MetaWorld):
    counts = {"ML1": (1, 1), "ML10": (10, 5), "ML45": (45, 5)}[family.benchmark]
    goals = {split: family.goals(split) for split in SPLITS}
    sets = {
        split: {(name, *goal) for name, of_one in goals[split].items() for goal in of_one.tolist()}
        for split in SPLITS
    }
    assert [len(sets[split]) for split in SPLITS] == [
        45 * counts[0],
        5 * counts[0],
        40 * counts[1],
    ]
    assert not any(a & b for a, b in combinations(sets.values(), 2))
    if family.benchmark != "ML1":
        assert not goals["train"].keys() & goals["heldout"].keys()
    assert family.protocol["tasks"] == 40 * counts[1]
    for split in SPLITS:
        size = len(sets[split])
        tasks = family.sample(size, rng(), split, distinct=True)
        assert len(set(tasks)) == size
        assert {family.split_of(task.values) for task in tasks} == {split}
        with pytest.raises(TaskError, match=f"{size + 1} distinct tasks .*has only"):
            family.sample(size + 1, rng(), split, distinct=True)


@needs_metaworld
def test_draws_are_even_seeded_and_need_goals():
    family = ml("ML10")
    tasks = family.sample(25, rng(1))
    names = [family.label(task).split()[0] for task in tasks]
    assert sorted(names.count(name) for name in set(names)) == [2] * 5 + [3] * 5
    assert tasks == family.sample(25, rng(1)) != family.sample(25, rng(2))
    assert family.split_of(family.task_of("reach-v3", GOAL).values) == "ood"
    with pytest.raises(TaskError, match=r"validation.* is empty"):
        ml1(validation_goals=0).sample(1, rng(), "validation")
    with pytest.raises(TaskError, match="split='ood'"):
        family.sample(1, rng(), "ood")


def play(family: MetaWorld, tasks: list[Task], copies: int = 1, steps: int = 30) -> list:
    """Observations, rewards and success ``[step, T, ...]``, all tasks with equal actions."""
    sims = family.open(tasks, copies)
    moves = rng(0).uniform(-1, 1, (steps, 1, copies, 4)).repeat(len(tasks), axis=1)
    start = sims.reset(seed=0)
    done = [sims.step(move) for move in moves]
    success = sims.success
    assert success is not None and not sims.diverged.any()
    sims.close()
    return [np.stack([start, *[d[0] for d in done]]), np.stack([d[1] for d in done]), success[None]]


SOME = ["reach-v3", "hammer-v3", "stick-pull-v3", "box-close-v3"]


def against_metaworld(env_name: str, rewards: str = "v2") -> float:
    """Largest difference from Meta-World's own environment and pickled task over 60 steps."""
    metaworld = compat.import_metaworld()
    theirs = metaworld.ML1(env_name, seed=0)
    env = theirs.train_classes[env_name](reward_function_version=rewards)
    env.set_task(theirs.train_tasks[7])
    family = ml1(env_name, variant=rewards)
    sims = family.open([family.task_of(env_name, family.goals("train")[env_name][7])], 1)
    moves, gaps = rng(0).uniform(-1, 1, (60, 4)), []
    for _ in range(2):  # the second episode starts like the first
        gaps.append(np.abs(sims.reset(seed=0)[0, 0] - env.reset()[0]).max())
        for move in moves:
            obs, reward, _, _, info = env.step(move)
            ours = sims.step(move[None, None])
            gaps += [np.abs(ours[0][0, 0] - obs).max(), abs(ours[1][0, 0] - reward)]
            assert sims.success is not None and sims.success[0, 0] >= info["success"]
    return max(gaps)


@needs_metaworld
@pytest.mark.parametrize("env_name", SOME)
def test_episodes_are_metaworlds(env_name: str):
    assert against_metaworld(env_name) == 0.0


@needs_metaworld
def test_the_variant_is_the_reward_function():
    assert against_metaworld("reach-v3", "v1") == 0.0
    rewards = [play(ml1(variant=v), [ml1().task_of("reach-v3", GOAL)])[1] for v in ("v1", "v2")]
    assert rewards[0].max() > 10.0 >= rewards[1].max()


@needs_metaworld
def test_the_goal_is_hidden_but_paid_for():
    family = ml1()
    other = [*GOAL[:3], 0.09, 0.81, 0.29]  # the same object, another goal
    obs, reward, _ = play(family, [family.task_of("reach-v3", goal) for goal in (GOAL, other)])
    assert np.array_equal(obs[:, 0], obs[:, 1])
    assert not obs[..., 36:].any()
    assert np.abs(reward[:, 0] - reward[:, 1]).min() > 1e-3


@needs_metaworld
@pytest.mark.parametrize("env_name", SOME)
def test_episodes_repeat_in_any_company_and_after_any_other(env_name: str):
    family = ml1(env_name)
    task, other = family.sample(2, rng(), distinct=True)
    alone = play(family, [task], copies=2)
    for ours, expected in zip(play(family, [other, task], copies=2), alone, strict=True):
        assert np.array_equal(ours[:, 1], expected[:, 0])
    sims = family.open([task], 2)  # two that share a model, out of step
    for seed, steps in ((1, 100), (2, 3)):
        sims.reset(seed)
        for _ in range(steps):
            sims.step(rng(seed).uniform(-1, 1, (1, 2, 4)))
    start = sims.reset(0)
    assert np.array_equal(start, alone[0][0])
    sims.close()


@needs_metaworld
def test_workers_give_the_same():
    tasks = ml("ML10").sample(3, rng())
    for serial, parallel in zip(
        play(ml("ML10"), tasks, 2), play(ml("ML10", workers=2), tasks, 2), strict=True
    ):
        assert np.array_equal(serial, parallel)


@needs_metaworld
def test_success_lasts_and_an_episode_ends_at_the_horizon():
    family = ml1(horizon=60)
    sims = family.open([family.task_of("reach-v3", goal) for goal in (GOAL, [*GOAL[:5], 0.29])], 1)
    for _ in range(2):
        sims.reset(seed=0)
        hits = []
        for h in range(60):
            env = sims.envs[0].env
            towards = 30 * (GOAL[3:] - env.tcp_center) if h < 40 else -np.ones(3)
            move = np.clip([*towards, 0.0], -1, 1)
            *_, terminated, truncated = sims.step(np.array([[move], [np.zeros(4)]]))
            hits.append(float(np.linalg.norm(GOAL[3:] - env.tcp_center)) <= 0.05)
            assert sims.success is not None and sims.success.tolist() == [[any(hits)], [False]]
            assert not terminated.any() and truncated.all() == truncated.any() == (h == 59)
        assert any(hits) and not hits[-1]
    assert sims.look(1) == (sims.envs[1].env.model, sims.envs[1].env.data)


@needs_metaworld
def test_an_episode_may_be_as_long_as_metaworlds():
    sims = ml1().open(ml1().sample(1, rng()), 1)
    sims.reset(seed=0)
    ends = [sims.step(np.zeros((1, 1, 4)))[3].item() for _ in range(STEPS + 1)]
    assert np.flatnonzero(ends).tolist() == [STEPS - 1]


@needs_metaworld
def test_a_simulation_that_blows_up_is_flagged_alone():
    family = ml1()
    sims = family.open(family.sample(1, rng()), 2)
    sims.reset(seed=0)
    sims.envs[1].env.data.qvel[2] = 1e12
    _, reward, _, truncated = sims.step(np.zeros((1, 2, 4)))
    assert sims.diverged.tolist() == truncated.tolist() == [[False, True]]
    assert reward[0, 0] > 0.0 == reward[0, 1]
    sims.reset(seed=0)
    assert not sims.diverged.any()


@needs_metaworld
def test_a_goal_on_top_of_the_object_is_an_error_not_a_hang():
    family = ml1()
    close = [0.0, 0.7, 0.02, 0.0, 0.8, 0.2]
    sims = family.open([family.task_of("reach-v3", goal) for goal in (GOAL, close)], 2)
    with pytest.raises(TaskError, match="object and goal are too close to each other") as caught:
        sims.reset(seed=0)
    assert f"row 2 (task '{family.label(sims.tasks[1])}')" in str(caught.value)


@needs_metaworld
def test_faults_and_visible_goals_can_be_added():
    params = {"grip": Param(to="action:3", op="scale", choices=[0.0, 0.5], hidden=False)}
    family = ml1(params=params)
    tasks = family.sample(12, rng())
    assert {task.values["grip"] for task in tasks} == {0.0, 0.5}
    assert family.obs_size == 40
    plain = [ml1().task_of("reach-v3", GOAL)]
    dead = play(family, [family.task_of("reach-v3", GOAL, grip=0.0)])
    assert not np.array_equal(dead[0][..., :39], play(ml1(), plain)[0])


def scripted(env_name: str) -> Any:
    """Meta-World's own policy for an environment; it wants to see the goal."""
    from metaworld import policies  # pyright: ignore[reportMissingImports]

    words = "".join(word.capitalize() for word in env_name.removesuffix("-v3").split("-"))
    name = {"PegInsertSide": "PegInsertionSide"}.get(words, words)
    return getattr(policies, f"Sawyer{name}V3Policy")()


def success_rate(env_name: str, goals: int) -> float:
    """Share of the goals that the scripted policy reaches, with actions within the range."""
    family, policy = ml1(env_name), scripted(env_name)
    sims = family.open(family.sample(goals, rng(), "heldout", distinct=True), 1)
    obs, rate = sims.reset(seed=0)[:, 0], 0.0
    for _ in range(STEPS):
        shown = [row.env._get_pos_goal() for row in sims.envs]
        seen = np.concatenate([obs[:, :36], shown], axis=1)
        moves = np.clip([policy.get_action(each) for each in seen], -1.0, 1.0)
        obs = sims.step(moves[:, None])[0][:, 0]
        assert sims.success is not None
        if (rate := float(sims.success.mean())) == 1.0:
            break
    sims.close()
    return rate


@needs_metaworld
@pytest.mark.slow
def test_scripted_policies_succeed():
    rates = {}
    for env_name in ENVIRONMENTS:
        rates[env_name] = success_rate(env_name, goals=10)
        print(f"{env_name}: {rates[env_name]:.0%}")
    # Measured on the 2500 goals of goals_seed=0: 98.2 % with MuJoCo 3.3.0, which Meta-World pins,
    # and 98.2 % with 4.0.0; in the worst environment 84 % and 80 % of 50.
    assert min(rates.values()) >= 0.6, rates
    assert np.mean(list(rates.values())) >= 0.95, rates
