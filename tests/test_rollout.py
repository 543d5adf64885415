"""TaskBatch: what is counted, masked, clipped and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.policy import GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.types import Trajectories
from envs.task import Param, Task, TaskDistribution, VectorTasks

HORIZON = 6
TASKS = [Task("scripted", {"x": 1.0}), Task("scripted", {"x": 3.0})]


@dataclass(kw_only=True)
class Scripted(TaskDistribution):
    """Simulators to which things happen as told: ``events[t, e] = (step, what)``."""

    events: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    simulators: Any = None
    """The simulators opened last."""

    @property
    def raw_obs_size(self) -> int:
        """3."""
        return 3

    @property
    def action_size(self) -> int:
        """2."""
        return 2

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Not symmetric, and not the same for both."""
        return np.array([-0.1, -0.2]), np.array([0.3, 0.4])

    def simulate(self, tasks: Sequence[Task], copies: int) -> VectorTasks:
        """Remember them, to look inside."""
        self.simulators = ScriptedTasks(self, tasks, copies)
        return self.simulators


class ScriptedTasks(VectorTasks):
    """Reward h in step h. What has ended returns only rubbish."""

    def __init__(self, family: Scripted, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = tasks, copies, 0.25
        self.when = np.full((len(tasks), copies), 99)
        self.what = np.full((len(tasks), copies), "nothing", dtype=object)
        for place, event in family.events.items():
            self.when[place], self.what[place] = event
        self.actions, self.closed = [], False

    def reset(self, seed: int) -> np.ndarray:
        """A random start."""
        self.steps, self.generator = 0, np.random.default_rng(seed)
        return self.seen()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Random observations and whatever is due."""
        self.actions.append(action)
        self.steps += 1
        reward = np.full(self.when.shape, float(self.steps))
        reward[self.now("nan reward") | self.over()] = np.nan
        return self.seen(), reward, self.now("terminated"), self.now("truncated")

    def seen(self) -> np.ndarray:
        """Three random numbers, unless something is due."""
        obs = self.generator.normal(size=(*self.when.shape, 3))
        obs[self.now("nan obs"), 1] = np.nan
        obs[self.now("huge obs"), 1] = 1e200  # infinite as a float32
        obs[self.over(), 0] = -np.inf
        return obs

    @property
    def success(self) -> np.ndarray | None:
        """What was told to succeed, or to blow up; None where nothing was told to succeed."""
        if not np.isin(self.what, ["success"]).any():
            return None
        return np.isin(self.what, ["success", "diverged"]) & (self.steps >= self.when)

    @property
    def diverged(self) -> np.ndarray:
        """What was told to, and whatever has ended."""
        return (self.what == "diverged") & (self.steps >= self.when) | self.over()

    def now(self, what: str) -> np.ndarray:
        """Where it is due."""
        return (self.what == what) & (self.steps == self.when)

    def over(self) -> np.ndarray:
        """Where an episode has ended."""
        return np.isin(self.what, ["terminated", "truncated"]) & (self.steps > self.when)

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def scripted(**events: tuple[int, str]) -> Scripted:
    """``t1e0=(3, "terminated")``: task 1, episode 0, step 3."""
    places = {(int(name[1]), int(name[3])): event for name, event in events.items()}
    param = Param(to="attr:x", low=1.0, high=3.0)
    return Scripted(name="scripted", horizon=HORIZON, params={"x": param}, events=places)


def make_policy(obs_size: int = 3) -> tuple[GaussianMlp, Tensor]:
    policy = GaussianMlp(obs_size, 2, PolicyConfig(hidden=[8]))
    generator = torch.Generator().manual_seed(0)
    return policy, torch.stack([policy.init(generator) for _ in TASKS])


def make_batch(family: Scripted, seed: int = 0) -> TaskBatch:
    return TaskBatch(family, TASKS, 2, make_policy()[0], np.random.default_rng(seed))


def collect(family: Scripted, seed: int = 0, deterministic: bool = False) -> Trajectories:
    return make_batch(family, seed).collect(make_policy()[1], deterministic)


def all_finite(episodes: Trajectories) -> bool:
    optional = {"advantage", "success", "switched"}
    tensors = [getattr(episodes, f.name) for f in fields(episodes) if f.name not in optional]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_shapes_rewards_and_masks_of_whole_episodes():
    episodes = collect(scripted())
    assert episodes.obs.shape == (2, 2, HORIZON, 3)
    assert episodes.action.shape == (2, 2, HORIZON, 2)
    assert episodes.reward[1, 1].tolist() == [1, 2, 3, 4, 5, 6]
    assert episodes.mask.all()
    assert not episodes.terminated.any() and not episodes.diverged.any()
    assert episodes.returns().tolist() == [[21.0, 21.0], [21.0, 21.0]]


def test_each_observation_is_the_one_acted_on():
    episodes = collect(scripted(), seed=4)
    seed = int(np.random.default_rng(4).integers(2**62, size=2)[0])
    generator = np.random.default_rng(seed)
    looks = np.stack([generator.normal(size=(2, 2, 3)) for _ in range(HORIZON + 1)], axis=2)
    expected = torch.as_tensor(looks, dtype=torch.float32)
    assert torch.equal(episodes.obs, expected[:, :, :-1])
    assert torch.equal(episodes.final_obs, expected[:, :, -1])


def test_only_steps_really_taken_are_counted_and_kept():
    family = scripted(t0e0=(2, "terminated"), t1e1=(4, "truncated"), t1e0=(6, "terminated"))
    batch, params = make_batch(family), make_policy()[1]
    assert batch.steps_used == 0
    episodes = batch.collect(params)
    assert episodes.mask.sum(-1).tolist() == [[2, 6], [6, 4]]
    assert episodes.mask[0, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert batch.steps_used == 18
    assert episodes.terminated.tolist() == [[True, False], [True, False]]
    assert episodes.returns().tolist() == [[3.0, 21.0], [21.0, 10.0]]
    batch.collect(params)
    assert batch.steps_used == 36


def test_what_happens_after_the_end_does_not_spoil_an_episode():
    episodes = collect(scripted(t0e0=(2, "terminated"), t1e1=(4, "truncated")))
    assert not episodes.diverged.any()
    assert all_finite(episodes)
    assert not episodes.reward[0, 0, 2:].any()


@pytest.mark.parametrize("what", ["diverged", "nan obs", "huge obs", "nan reward"])
@pytest.mark.parametrize("step", [1, 3, HORIZON])
def test_a_diverged_episode_is_masked_throughout(what: str, step: int):
    batch, params = make_batch(scripted(t1e0=(step, what))), make_policy()[1]
    episodes, calm = batch.collect(params), collect(scripted())
    flags = torch.tensor([[False, False], [True, False]])
    assert torch.equal(episodes.diverged, flags)
    assert not episodes.mask[flags].any() and episodes.mask[~flags].all()
    assert torch.equal(episodes.returns().isnan(), flags)
    assert episodes.mean_return().tolist() == [21.0, 21.0]
    assert all_finite(episodes)
    assert torch.equal(episodes.obs[~flags], calm.obs[~flags])
    assert torch.equal(episodes.action[~flags], calm.action[~flags])
    assert batch.steps_used == 3 * HORIZON + step


def test_a_start_that_is_not_finite_is_not_stepped_from():
    batch = make_batch(scripted(t0e1=(0, "nan obs")))
    episodes = batch.collect(make_policy()[1])
    assert episodes.diverged.tolist() == [[False, True], [False, False]]
    assert all_finite(episodes)
    assert batch.steps_used == 3 * HORIZON


def test_deterministic_actions_are_the_mean():
    policy, params = make_policy()
    episodes = collect(scripted(), deterministic=True)
    mean = policy(params, episodes.obs).mean
    assert torch.allclose(episodes.action, mean, atol=1e-6)
    assert not torch.allclose(collect(scripted()).action, mean, atol=0.1)


def test_actions_are_drawn_with_the_policys_spread():
    policy, params = make_policy()
    batch = TaskBatch(scripted(), TASKS, 300, policy, np.random.default_rng(0))
    episodes = batch.collect(params)
    noise = (episodes.action - policy(params, episodes.obs).mean) / np.exp(-0.5)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.03)
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)


def test_log_prob_is_the_normals_at_the_stored_action():
    policy, params = make_policy()
    episodes = collect(scripted())
    distribution = policy(params, episodes.obs)
    normal = torch.distributions.Normal(distribution.mean, distribution.log_std.exp())
    expected = normal.log_prob(episodes.action).sum(-1)
    assert torch.allclose(episodes.log_prob, expected, atol=1e-5)


def test_equal_generators_give_equal_trajectories():
    first, second, other = (collect(scripted(), seed) for seed in (1, 1, 2))
    for name in ("obs", "action", "log_prob", "reward", "final_obs"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.obs, other.obs)


def test_each_collection_is_a_fresh_draw():
    policy, params = make_policy()
    batch = TaskBatch(scripted(), TASKS, 2, policy, np.random.default_rng(0))
    first, second = batch.collect(params), batch.collect(params)
    noise = [each.action - policy(params, each.obs).mean for each in (first, second)]
    assert not torch.equal(first.obs, second.obs)
    assert not torch.allclose(noise[0], noise[1], atol=0.1)


def test_simulators_get_clipped_and_scaled_actions_while_the_drawn_ones_are_stored():
    family = scripted()
    episodes = collect(family)
    low, high = family.action_range
    sent = np.stack(family.simulators.actions, axis=2)
    stored = episodes.action.numpy()
    by_hand = low + (np.clip(stored, -1, 1) + 1) / 2 * (high - low)
    np.testing.assert_allclose(sent, by_hand, rtol=1e-6, atol=1e-6)
    assert (stored < -1).any() and (stored > 1).any()
    assert np.isclose(sent, low).any() and np.isclose(sent, high).any()


def test_reveal_appends_the_tasks_descriptors():
    policy, params = make_policy(obs_size=4)
    batch = TaskBatch(scripted(), TASKS, 2, policy, np.random.default_rng(0), reveal=True)
    episodes, hidden = batch.collect(params), collect(scripted())
    assert torch.equal(episodes.obs[..., :3], hidden.obs)
    assert (episodes.obs[0, ..., 3] == -1.0).all() and (episodes.obs[1, ..., 3] == 1.0).all()
    assert episodes.final_obs[:, 0, 3].tolist() == [-1.0, 1.0]


def test_leaving_the_block_closes_the_simulators():
    family = scripted()
    with make_batch(family) as batch:
        assert batch.physics_s == 0.25
        assert not family.simulators.closed
    assert family.simulators.closed


def test_joined_episodes_are_the_episodes_of_both():
    policy, params = make_policy()
    batch = TaskBatch(scripted(), TASKS, 2, policy, np.random.default_rng(0))
    first, second = batch.collect(params), batch.collect(params)
    both = first.joined(second)
    assert both.reward.shape[1] == 4
    assert torch.equal(both.obs, torch.cat([first.obs, second.obs], dim=1))
    assert torch.equal(both.episodes(slice(2, 4)).log_prob, second.log_prob)
    assert both.advantage is None


def test_success_is_a_share_of_episodes_and_a_blow_up_is_none():
    family = scripted(t0e0=(2, "success"), t0e1=(HORIZON, "success"), t1e0=(3, "diverged"))
    policy, params = make_policy()
    with TaskBatch(family, TASKS, 2, policy, np.random.default_rng(0)) as batch:
        seen = batch.collect(params)
        rate = seen.success_rate()
        assert rate is not None and rate.tolist() == [1.0, 0.0]
        both = seen.joined(seen).success
        assert both is not None and both.tolist() == [[True] * 4, [True, False, True, False]]
    with TaskBatch(scripted(), TASKS, 2, policy, np.random.default_rng(0)) as batch:
        seen = batch.collect(params)
        assert seen.success is None and seen.success_rate() is None
        assert seen.joined(seen).success is None
