"""Every YAML file composes and builds: contract suites that find their subjects by globbing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import agent.continual.agents as agents
from agent.cli import COMMANDS, configure
from agent.config import build
from agent.continual.lifetime import Stream
from agent.learners.base import MetaLearner
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.settings import ContinualSettings, TrainSettings
from agent.train import make_policy, new_learner
from envs.task import SPLITS, TaskDistribution

CONFIGS = Path(__file__).parent.parent / "configs"


def names(group: str) -> list[str]:
    found = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    assert found, f"no configs in {group}"
    return found


def family(name: str) -> TaskDistribution:
    return build(configure("train", [f"env={name}"])["env"], "env")


def learner(name: str) -> MetaLearner:
    return build(configure("train", [f"learner={name}"])["learner"], "learner")


def test_every_yaml_file_belongs_to_a_suite():
    groups = {"env", "learner", "agent", "stream"}
    for path in CONFIGS.rglob("*.yaml"):
        relative = path.relative_to(CONFIGS)
        assert relative.parts[0] in groups or relative.stem in COMMANDS, relative
        assert path.read_text().startswith("#"), f"{relative} does not begin by saying what it is"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_compose(command: str):
    assert "run" in configure(command, [])


@pytest.mark.parametrize("name", names("env"))
def test_families_keep_the_contract(name: str):
    env = family(name)
    for split in SPLITS:
        tasks = env.sample(5, np.random.default_rng(0), split)
        assert len(tasks) == 5
        assert {env.split_of(t.values) for t in tasks} == {split} or not env.holds_out
        described = env.describe(tasks)
        assert described.shape == (5, len(env.params))
        assert np.abs(described).max() <= 1.0 + 1e-9
        assert all(env.label(t) for t in tasks)
    low, high = env.action_range
    assert low.shape == high.shape == (env.action_size,)


@pytest.mark.parametrize("name", names("env"))
def test_episodes_are_finite_repeatable_and_their_own(name: str):
    env = family(name)
    tasks = env.sample(2, np.random.default_rng(1), "train", distinct=True)
    rng = np.random.default_rng(2)
    simulators = env.open(tasks, copies=2)
    actions = rng.uniform(*env.action_range, (12, 2, 2, env.action_size))
    runs = []
    for seed in (5, 5, 6):
        observations = [simulators.reset(seed)]
        rewards = []
        for action in actions:
            obs, reward, terminated, truncated = simulators.step(action)
            observations.append(obs)
            rewards.append(reward)
            assert obs.shape == (2, 2, env.obs_size)
            assert reward.shape == terminated.shape == truncated.shape == (2, 2)
        runs.append((np.stack(observations), np.stack(rewards)))
    simulators.close()
    assert np.isfinite(runs[0][0]).all() and np.isfinite(runs[0][1]).all()
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(
        runs[0][0][0], runs[0][0][-1]
    )  # observations are not views of one buffer


@pytest.mark.parametrize("name", names("env"))
def test_every_parameter_changes_what_happens(name: str):
    env = family(name)
    rng = np.random.default_rng(3)
    actions = rng.uniform(*env.action_range, (30, 1, 1, env.action_size))
    base = env.sample(1, rng)[0]

    def outcome(values: dict[str, float]) -> np.ndarray:
        simulators = env.open([type(base)(base.family, values)], copies=1)
        simulators.reset(0)
        out = [np.concatenate([o.ravel(), r.ravel()]) for o, r, *_ in map(simulators.step, actions)]
        simulators.close()
        return np.stack(out)

    reference = outcome(dict(base.values))
    for param_name, param in env.params.items():
        other = next(v for v in map(param.draw, [rng] * 50) if v != base.values[param_name])
        changed = outcome(dict(base.values) | {param_name: other})
        assert not np.array_equal(changed, reference), param_name


@pytest.mark.parametrize("name", names("learner"))
def test_learners_keep_the_contract(name: str):
    env = family("navigation")
    config = build(configure("train", ["env=navigation", f"learner={name}"]), "", TrainSettings)

    def trained(seed: int) -> MetaLearner:
        fresh = learner(name)
        policy = make_policy(env, config.policy, fresh.sees_task, "cpu")
        new_learner(fresh, policy, seed)
        rng = generator(seed, "train", 0)
        with TaskBatch(env, env.sample(3, rng), 4, policy, rng, fresh.sees_task) as batch:
            before = {k: v.clone() for k, v in fresh.state_dict().items()}
            adaptation = fresh.adapt(batch)
            assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())
            assert adaptation.params.shape == (3, policy.num_params)
            metrics = fresh.update(adaptation, batch.collect(adaptation.params))
        assert all(np.isfinite(v) for v in metrics.values())
        assert not torch.equal(before["theta"], fresh.state_dict()["theta"])
        return fresh

    one, same, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["theta"], other["theta"])


@pytest.mark.parametrize("name", names("agent"))
def test_agents_build(name: str):
    config = build(configure("continual", [f"agents=[{name}]"]), "", ContinualSettings)
    built = build(config.agent[name], f"agent.{name}")
    assert isinstance(built, agents.MetaInit)


@pytest.mark.parametrize("name", names("stream"))
def test_streams_draw_distinct_tasks_and_revisit_some(name: str):
    node = dict(configure("continual", [f"stream={name}"])["stream"])
    env = build(node.pop("family"), "stream.family")
    stream = build(node, "stream", Stream)
    drawn = [stream.draw(env, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].values())) == len(set(stream.order))
    assert any(stream.revisits()) and not stream.revisits()[0]


def test_the_seeds_of_purposes_are_independent():
    draws = {
        purpose: generator(0, purpose).integers(2**60)
        for purpose in (
            "init",
            "train",
            "calibration",
            "tasks",
            "evaluation",
            "adaptation",
            "stream",
            "visit",
        )
    }
    assert len(set(draws.values())) == len(draws)
    assert generator(0, "train", 1).integers(2**60) != generator(0, "train", 2).integers(2**60)
    assert torch_generator(1, "init").initial_seed() == torch_generator(1, "init").initial_seed()
