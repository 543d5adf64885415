"""The baselines without meta-learning: how each adapts, and what training does for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from agent.adapter import PpoAdapter
from agent.config import build
from agent.evaluate import EvaluationSize, measure
from agent.files import read_yaml
from agent.learners.base import Learner
from agent.learners.maml import Maml
from agent.learners.transfer import Finetune, Scratch, ZeroShot
from agent.policy import GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.train import BatchSize, make_policy, meta_iteration, new_learner
from agent.types import Trajectories
from envs.navigation import Navigation
from tests.conftest import made_up_episodes

CONFIGS = Path(__file__).parent.parent / "configs" / "learner"
SIZE = BatchSize(tasks=3, episodes=4)


def make(kind: type[Any], policy: GaussianMlp | None = None, **settings: Any) -> Any:
    learner = kind(**settings)
    learner.setup(policy or GaussianMlp(2, 2), torch_generator(0, "init"))
    return learner


def in_a_task(learner: Learner) -> tuple[Tensor, Trajectories]:
    params = learner.theta.detach().expand(2, -1)
    return params, made_up_episodes(learner.policy, params, 2, 3, 6)


@pytest.mark.parametrize("kind", [Finetune, Scratch])
@pytest.mark.parametrize("n", [0, 3])
def test_all_steps_are_the_task_adapters(kind: type[Learner], n: int):
    learner = make(kind, task_adapter=PpoAdapter(epochs=2))
    params, episodes = in_a_task(learner)
    ready = learner.advantages(episodes)
    expected = PpoAdapter(epochs=2).step(learner.policy, params, ready)
    assert torch.equal(learner.step(params, episodes, n), expected)
    assert learner.meta_steps == 0
    rule = make(Maml).step(params, episodes, 0)
    assert not torch.equal(expected, rule)


def test_zero_shot_never_moves():
    learner = make(ZeroShot)
    params, episodes = in_a_task(learner)
    for n in range(3):
        assert torch.equal(learner.step(params, episodes, n), params)


@pytest.mark.parametrize("kind", [Finetune, ZeroShot])
def test_training_is_multi_task_ppo(kind: type[Maml], navigation: Navigation):
    learner, multitask = make(kind), make(Maml, inner_steps=0)
    for i in range(2):
        for each in (learner, multitask):
            meta_iteration(each, navigation, SIZE, 0, i)
    for name, value in multitask.state_dict().items():
        assert torch.equal(value, learner.state_dict()[name]), name
    with pytest.raises(ValidationError, match="inner_steps"):
        kind(inner_steps=1)


def test_training_gives_scratch_a_normaliser_and_nothing_else(navigation: Navigation):
    learner = make(Scratch)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    metrics = meta_iteration(learner, navigation, SIZE, 0, 0)
    after = learner.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {
        "obs.mean",
        "obs.var",
        "obs.count",
    }
    assert float(after["obs.count"]) == 3 * 4 * 20 == metrics["iteration_steps"]
    assert torch.equal(learner.theta, learner.policy.init(torch_generator(0, "init")))


def test_scratch_goes_through_a_checkpoint(navigation: Navigation):
    one, other = make(Scratch), Scratch()
    other.setup(GaussianMlp(2, 2), torch_generator(1, "init"))
    meta_iteration(one, navigation, SIZE, 0, 0)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    with torch.no_grad():
        other.theta.add_(1.0)  # a state that was loaded stays what it was
    assert not torch.equal(one.theta, other.theta)


def test_a_reference_beside_any_learner_shares_its_network_and_settings():
    class Wrapped(GaussianMlp):
        """A policy that is more than its network."""

        @property
        def plain(self) -> GaussianMlp:
            return network

    network = GaussianMlp(2, 2)
    learner = make(
        Maml, Wrapped(2, 2), gamma=0.7, gae_lambda=0.6, task_adapter=PpoAdapter(epochs=3)
    )
    scratch = Scratch.beside(learner, torch_generator(5, "evaluation"))
    assert scratch.policy is network and scratch.task_adapter is learner.task_adapter
    assert (scratch.gamma, scratch.gae_lambda, scratch.sees_task) == (0.7, 0.6, False)
    assert torch.equal(scratch.theta, network.init(torch_generator(5, "evaluation")))


@pytest.mark.slow
def test_scratch_learns_each_task_from_nothing(navigation: Navigation):
    """Ten steps of ten episodes: -5.2 at seeds 0-2, and -20 at a rate of nearly 0."""
    for rate, low, high in ((3e-3, -7.0, -3.0), (1e-9, -30.0, -17.7)):
        learner = make(Scratch, task_adapter=PpoAdapter(rate=rate))
        meta_iteration(learner, navigation, SIZE, 0, 0)
        tasks = navigation.sample(10, generator(0, "tasks"), "heldout")
        with TaskBatch(navigation, tasks, 10, learner.policy, generator(0, "evaluation")) as batch:
            params = learner.theta.expand(10, -1)
            for n in range(10):
                params = learner.step(params, batch.collect(params), n)
            assert low < float(batch.collect(params).mean_return().mean()) < high


@pytest.mark.slow
def test_an_oracle_learns_to_use_what_it_is_told(navigation: Navigation):
    """-6.0 at seed 0; told of another task, -22.4."""
    learner = build(read_yaml(CONFIGS / "oracle.yaml"), "learner", Maml)
    policy = make_policy(navigation, PolicyConfig(), True, "cpu", learner.make_policy)
    new_learner(learner, policy, 0)
    for i in range(60):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=10), 0, i)
    tasks = navigation.sample(20, generator(0, "tasks"), "heldout")
    start = learner.theta.detach().expand(20, -1)
    size = EvaluationSize(tasks=20, steps=1, draws=1)
    told = measure(policy, navigation, tasks, start, size, 0, reveal=True).returns.mean()
    describe = type(navigation).describe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(navigation), "describe", lambda *given: np.roll(describe(*given), 7, 0))
        misled = measure(policy, navigation, tasks, start, size, 0, reveal=True).returns.mean()
    assert float(told) > -10.0 and float(misled) < -17.7
