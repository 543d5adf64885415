"""Evaluation: paired, counted, independent of what was trained before, and teaching nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from agent.evaluate import EvaluationSize, adaptation_curves, evaluate, measure
from agent.learners.anil import Anil
from agent.learners.context import Context
from agent.learners.maml import Maml
from agent.policy import PolicyConfig
from agent.protect import Protection
from agent.seeding import generator
from agent.train import BatchSize, make_policy, meta_iteration, new_learner
from agent.types import Trajectories
from envs.navigation import Navigation, NavigationTasks
from envs.task import Param

SIZE = EvaluationSize(tasks=3, steps=2, episodes=4, draws=2, eval_episodes=2)


def make(navigation: Navigation, **settings: bool) -> Maml:
    learner = Maml(**settings)  # pyright: ignore[reportArgumentType]
    policy = make_policy(navigation, PolicyConfig(hidden=[8]), learner.sees_task, "cpu")
    new_learner(learner, policy, 0)
    return learner


def test_the_result_has_a_row_per_task_and_counts_every_step(navigation: Navigation):
    learner = make(navigation)
    result = evaluate(learner, navigation, SIZE, "heldout", 0, make(navigation, sees_task=True))
    assert len(result["tasks"]) == 3
    assert len({t["id"] for t in result["tasks"]}) == 3
    for task in result["tasks"]:
        assert len(task["returns"]) == len(task["returns_sd"]) == len(task["scratch"]) == 3
        assert navigation.split_of(task["values"]) == "heldout"
        assert isinstance(task["oracle"], float)
    rows, horizon = 3 * 2, 20
    curve = rows * horizon * (3 * 2 + 2 * 4)  # three measurements of 2 episodes, two steps of 4
    assert result["env_steps"] == 2 * curve + 2 * rows * horizon * 2
    means = np.mean([t["returns"] for t in result["tasks"]], axis=0)
    assert result["mean"]["meta"] == pytest.approx(means.tolist())
    assert result["gain_after_one_step"] == pytest.approx(means[1] - means[0])


def test_the_gain_is_that_of_the_curve_and_measuring_is_repeatable(navigation: Navigation):
    learner = make(navigation)
    tasks = navigation.sample(3, np.random.default_rng(0))
    start = learner.theta.detach().expand(6, -1)
    curves = adaptation_curves(learner, navigation, tasks, start, SIZE, 0)
    assert curves.returns.shape == (3, 2, 3)
    again = measure(learner.policy, navigation, tasks, start, SIZE, 0)
    assert torch.equal(curves.returns[..., 0], again.returns) and again.success is None
    assert not torch.equal(
        curves.returns[:, 0, 1], curves.returns[:, 1, 1]
    )  # draws are independent


def test_it_teaches_nothing(navigation: Navigation):
    learner = make(navigation)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    evaluate(learner, navigation, SIZE, "heldout", 0)
    assert all(torch.equal(before[k], v) for k, v in learner.state_dict().items())


def test_tasks_and_seeds_do_not_depend_on_training(navigation: Navigation):
    untouched, trained = make(navigation), make(navigation)
    for i in range(3):
        meta_iteration(trained, navigation, BatchSize(tasks=2, episodes=3), 0, i)
    one, other = (evaluate(x, navigation, SIZE, "heldout", 5) for x in (untouched, trained))
    assert [t["id"] for t in one["tasks"]] == [t["id"] for t in other["tasks"]]
    assert one["mean"]["meta"] != other["mean"]["meta"]
    assert evaluate(untouched, navigation, SIZE, "heldout", 5) == one


def test_a_family_that_holds_nothing_out_says_so(navigation: Navigation):
    two = Navigation(
        name="two", horizon=20, params={"angle": Param(to="attr:angle", choices=[0.0, 3.0])}
    )
    result = evaluate(make(two), two, SIZE, "heldout", 0)
    assert len(result["tasks"]) == 2
    assert result["held_out"].startswith("Nothing is held out")
    assert evaluate(make(navigation), navigation, SIZE, "heldout", 0)["held_out"].startswith(
        "Held-out tasks"
    )


def test_the_oracle_is_measured_with_the_task_in_sight(navigation: Navigation):
    oracle = make(navigation, sees_task=True)
    assert oracle.policy.obs_size == 3
    tasks = navigation.sample(2, np.random.default_rng(0))
    start = oracle.theta.detach().expand(4, -1)
    told = measure(oracle.policy, navigation, tasks, start, SIZE, 0, reveal=True)
    assert told.returns.shape == (2, 2) and told.env_steps == 4 * 2 * 20
    assert generator(0, "evaluation").integers(10) == generator(0, "evaluation").integers(10)


def test_measuring_is_of_the_deterministic_policy(navigation: Navigation):
    learner = make(navigation)
    tasks = navigation.sample(3, np.random.default_rng(0))
    start = learner.theta.detach().expand(6, -1)
    louder = start.clone()
    louder[:, -2:] = 0.4  # the log-stds
    quiet, loud = (measure(learner.policy, navigation, tasks, x, SIZE, 0) for x in (start, louder))
    assert torch.equal(quiet.returns, loud.returns)


def test_scratch_and_random_know_nothing_of_what_was_learned(
    navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    learner, numbers = make(navigation), []
    step = Maml.step

    def spy(self: Maml, params: torch.Tensor, episodes: Trajectories, n: int) -> torch.Tensor:
        numbers.append(n)
        return step(self, params, episodes, n)

    monkeypatch.setattr(Maml, "step", spy)
    bare = dataclasses.replace(SIZE, protection=None)
    one = evaluate(learner, navigation, bare, "heldout", 0)
    assert numbers == [0, 1]  # scratch never asks the meta-learner for a step
    with torch.no_grad():
        learner.theta += 0.5
        learner.rates *= 2
    other = evaluate(learner, navigation, bare, "heldout", 0)
    for a, b in zip(one["tasks"], other["tasks"], strict=True):
        assert (a["scratch"], a["random"]) == (b["scratch"], b["random"])
        assert a["returns"] != b["returns"]


def test_returns_are_measured_on_the_same_starts_which_nothing_was_learned_from(
    navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    learner, seeds = make(navigation), {SIZE.episodes: [], SIZE.eval_episodes: []}
    reset = NavigationTasks.reset

    def spy(self: NavigationTasks, seed: int) -> np.ndarray:
        seeds[self.copies].append(seed)
        return reset(self, seed)

    monkeypatch.setattr(NavigationTasks, "reset", spy)
    evaluate(learner, navigation, SIZE, "heldout", 0)
    adapted_on, measured_on = seeds[SIZE.episodes], seeds[SIZE.eval_episodes]
    assert len(measured_on) == 2 * 3 + 1 and len(set(measured_on)) == 1
    assert adapted_on[:2] == adapted_on[2:] and len(set(adapted_on)) == 2  # ours, then scratch
    assert not set(adapted_on) & set(measured_on)


def test_the_spread_is_that_of_the_draws(navigation: Navigation):
    learner = make(navigation)
    result = evaluate(learner, navigation, SIZE, "heldout", 0)
    tasks = navigation.sample(3, generator(0, "tasks"), "heldout", distinct=True)
    start = learner.theta.detach().expand(6, -1)
    one, other = adaptation_curves(learner, navigation, tasks, start, SIZE, 0).returns.unbind(1)
    for i, task in enumerate(result["tasks"]):
        assert task["returns"] == pytest.approx(((one + other) / 2)[i].tolist())
        assert task["returns_sd"] == pytest.approx(((one - other).abs() / 2)[i].tolist())


class Backwards(Maml):
    """Moves against the gradient, and far."""

    def step(self, params: torch.Tensor, episodes: Trajectories, n: int, *more: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Five times the way in the wrong direction."""
        return params - 5 * (super().step(params, episodes, n, *more) - params)


def test_protection_costs_no_step_and_saves_what_adaptation_would_spoil(navigation: Navigation):
    learner: Any = Backwards(inner_rate=1.0)
    new_learner(learner, make_policy(navigation, PolicyConfig(hidden=[8]), False, "cpu"), 0)
    tasks = navigation.sample(10, np.random.default_rng(0))
    start = learner.theta.detach().expand(20, -1)
    size = EvaluationSize(tasks=10, steps=4, episodes=6, draws=2, eval_episodes=4)

    def curves(protection: Protection | None) -> Any:
        settings = dataclasses.replace(size, protection=protection)
        return adaptation_curves(learner, navigation, tasks, start, settings, 0)

    bare, kept = curves(None), curves(Protection(tries=1))
    assert kept.env_steps == bare.env_steps
    assert torch.equal(kept.returns[..., :2], bare.returns[..., :2])  # nothing to judge by yet
    spoilt = bare.returns[..., -1] < bare.returns[..., 0] - 5
    assert spoilt.double().mean() > 0.5
    after = kept.returns[..., -1] < kept.returns[..., 0] - 5
    assert after.double().mean() < 0.1
    assert float(kept.returns[..., -1].mean()) > float(bare.returns[..., -1].mean()) + 10


def test_the_references_of_any_learner_are_networks_that_learn_by_ppo(navigation: Navigation):
    bare = dataclasses.replace(SIZE, protection=None)

    def references(learner: Any) -> list[Any]:
        policy = make_policy(
            navigation, PolicyConfig(hidden=[8]), False, "cpu", learner.make_policy
        )
        new_learner(learner, policy, 0)
        result = evaluate(learner, navigation, bare, "heldout", 0)
        assert result["protection"] is None
        return [(task["scratch"], task["random"]) for task in result["tasks"]]

    assert references(Context()) == references(Maml()) == references(Anil())
    assert references(Maml(gamma=0.5)) != references(Maml())


def test_learning_from_scratch_is_never_protected(navigation: Navigation):
    learner, curves = make(navigation), []
    for protection in (None, Protection(harm=1e-6, tries=1)):
        size = dataclasses.replace(SIZE, steps=4, protection=protection)
        result = evaluate(learner, navigation, size, "heldout", 0)
        curves.append([[task[who] for task in result["tasks"]] for who in ("scratch", "returns")])
    assert curves[0][0] == curves[1][0] and curves[0][1] != curves[1][1]
