"""What every learner of ``configs/learner`` must keep, whatever its make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.cli import configure
from agent.config import build
from agent.evaluate import EvaluationSize, adaptation_curves
from agent.learners.base import MetaLearner
from agent.rollout import TaskBatch
from agent.seeding import generator
from agent.settings import TrainSettings
from agent.train import BatchSize, make_policy, meta_iteration, new_learner, training_batch
from envs.navigation import Navigation
from envs.task import TaskDistribution

NAMES = sorted(
    p.stem for p in (Path(__file__).parent.parent / "configs" / "learner").glob("*.yaml")
)
SIZE = BatchSize(tasks=3, episodes=4)
UNTAUGHT = {"scratch"}
"""Learners that training teaches nothing, on purpose."""
NEEDS = {"distill": "the folder of a memory; see test_distill.py"}

assert NAMES, "no learners found"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS:
        pytest.skip(f"{request.param} needs {NEEDS[request.param]}")
    return request.param


def born(name: str, family: TaskDistribution, seed: int = 0) -> MetaLearner:
    """As the YAML file says, in its initial state."""
    config = build(configure("train", ["env=navigation", f"learner={name}"]), "", TrainSettings)
    learner = build(config.learner, "learner")
    policy = make_policy(family, config.policy, learner.sees_task, "cpu", learner.make_policy)
    return new_learner(learner, policy, seed)


def state(learner: MetaLearner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def test_adapting_changes_nothing_and_updating_does(name: str, navigation: Navigation):
    learner, rng = born(name, navigation), generator(0, "train", 0)
    with training_batch(learner, navigation, SIZE, rng) as batch:
        before = state(learner)
        adaptation = learner.adapt(batch)
        assert all(torch.equal(before[k], v) for k, v in learner.state_dict().items())
        assert adaptation.params.shape == (len(batch.tasks), learner.policy.num_params)
        assert not adaptation.params.requires_grad
        metrics = learner.update(adaptation, batch.collect(adaptation.params))
    assert all(np.isfinite(value) for value in metrics.values())
    learned = [k for k in before if not k.endswith(("count", "mean", "var"))]
    changed = any(not torch.equal(before[k], learner.state_dict()[k]) for k in learned)
    assert changed == (name not in UNTAUGHT)


def test_a_seed_decides_everything_and_a_checkpoint_loses_nothing(
    name: str, navigation: Navigation
):
    one, same, other = (born(name, navigation, seed) for seed in (0, 0, 1))
    for learner, seed in ((one, 0), (same, 0), (other, 1)):
        meta_iteration(learner, navigation, SIZE, seed, 0)
    assert one.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in one.state_dict().items())
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    continued = born(name, navigation, 5)  # from another state
    continued.load_state_dict(state(one))
    for learner in (one, continued):
        meta_iteration(learner, navigation, SIZE, 0, 1)
    for key, value in one.state_dict().items():
        assert torch.equal(value, continued.state_dict()[key]), key


def test_none_but_an_oracle_is_told_the_task(
    name: str, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    learner, asked = born(name, navigation), []
    described = type(navigation).describe

    def spy(self: TaskDistribution, tasks: object) -> np.ndarray:
        asked.append(tasks)
        return described(self, tasks)  # pyright: ignore[reportArgumentType]

    def hidden(self: MetaLearner, batch: TaskBatch) -> object:
        if not learner.sees_task:
            batch.tasks = [None] * len(batch.tasks)  # pyright: ignore[reportAttributeAccessIssue]
        return adapt(self, batch)

    adapt = type(learner).adapt
    monkeypatch.setattr(type(learner), "adapt", hidden)
    monkeypatch.setattr(type(navigation), "describe", spy)
    meta_iteration(learner, navigation, SIZE, 0, 0)
    assert bool(asked) == learner.sees_task == (name == "oracle")


def test_untrained_it_evaluates_without_error_and_shows_no_gain(name: str, navigation: Navigation):
    learner = born(name, navigation)
    if learner.sees_task:
        pytest.skip("an oracle is measured, not adapted")
    tasks = navigation.sample(8, generator(0, "tasks"), "heldout")
    size = EvaluationSize(tasks=8, steps=2, episodes=4, draws=1, eval_episodes=2)
    start = learner.theta.detach().expand(8, -1)
    returns = adaptation_curves(learner, navigation, tasks, start, size, 0).returns
    assert bool(torch.isfinite(returns).all())
    gain = (returns[..., 1] - returns[..., 0]).mean()
    assert abs(float(gain)) < 3.0  # plain PPO steps gain 2; a trained one gains ten


def test_a_step_is_pure_and_moves_only_what_is_free(name: str, navigation: Navigation):
    learner = born(name, navigation)
    start = learner.theta.detach().expand(2, -1)
    tasks = navigation.sample(2, generator(0, "train"))
    rng = generator(0, "train", 1)
    with TaskBatch(navigation, tasks, 3, learner.policy, rng, learner.sees_task) as batch:
        episodes = batch.collect(start)
    before, free = state(learner), learner.free
    for n in (0, learner.meta_steps, learner.meta_steps + 3):
        one, again = (learner.step(start, episodes, n) for _ in range(2))
        assert torch.equal(one, again) and one.shape == start.shape
        assert bool(torch.isfinite(one).all()) and not one.requires_grad
        if free is not None:
            assert torch.equal(one[:, ~free], start[:, ~free])
            assert not torch.equal(one[:, free], start[:, free])
        alone = learner.step(start[:1], episodes.tasks(slice(1)), n)  # tasks do not see each other
        torch.testing.assert_close(alone, one[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in learner.state_dict().items())


def test_one_task_and_one_episode_are_enough(name: str, navigation: Navigation):
    learner = born(name, navigation)
    metrics = meta_iteration(learner, navigation, BatchSize(tasks=1, episodes=1), 0, 0)
    assert np.isfinite(metrics["train/return_after"])
    assert bool(torch.isfinite(learner.theta).all())
