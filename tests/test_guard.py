"""The guard: how often it is wrong, when it stops, and what acting under it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.memory.candidates import Candidates
from agent.memory.guard import (
    Guard,
    GuardConfig,
    abort_threshold,
    guard_for,
    look_steps,
    measured_threshold,
)
from agent.rollout import TaskBatch
from agent.types import Trajectories
from tests.test_rollout import HORIZON, TASKS, make_batch, make_policy, scripted


def candidates_with(
    paths: Tensor, gain: float = 1.0, home: Tensor | None = None, params: int = 3
) -> Candidates:
    """Rows whose records are ``paths [T, K, n, H]`` of rewards, each of another task."""
    t, k, n, _ = paths.shape
    so_far = paths.cumsum(-1)
    mean = so_far[..., -1].mean(2)
    return Candidates(
        index=10 + torch.arange(k).expand(t, -1),
        weight=torch.full((t, k), 0.9 / k),
        null=torch.full((t,), 0.1),
        params=1 + torch.arange(k).float()[:, None].expand(t, k, params),
        mean=mean,
        sd=so_far[..., -1].std(2) if n > 1 else torch.zeros(t, k),
        n=torch.full((t, k), float(n)),
        so_far=so_far.mean(2),
        so_far_sd=so_far.std(2) if n > 1 else torch.zeros(t, k, paths.shape[-1]),
        affinity=torch.eye(k).expand(t, -1, -1),
        baseline=mean - gain,
        anchor=torch.zeros(params),
        home_so_far=home,
    )


def walked(guard: Guard, rewards: Tensor, alive: Tensor | None = None) -> Any:
    """The watch after episodes with ``rewards [T, E, H]``."""
    t, e, horizon = rewards.shape
    watch = guard.watch(e, horizon)
    nothing = torch.zeros(t, e, 1)
    for h in range(horizon):
        going = torch.ones(t, e, dtype=torch.bool) if alive is None else alive[..., h]
        watch.step(nothing, nothing, rewards[..., h], nothing, going)
    return watch


@pytest.mark.parametrize("n", [6, 8, 30])
def test_right_rows_are_stopped_at_the_promised_rate(n: int):
    generator = torch.Generator().manual_seed(n)
    paths = 0.3 + torch.randn(4000, 1, n + 1, 50, generator=generator)
    offered = candidates_with(paths[:, :, :-1], gain=0.0)
    guard = guard_for(offered, torch.zeros(4000, dtype=torch.int64), GuardConfig(false_abort=0.02))
    rate = float(walked(guard, paths[:, :, -1]).tripped.float().mean())
    assert 0.008 < rate < 0.032  # the last look of all stops nothing, for nothing is left to do


def test_no_spread_at_all_and_whole_episodes_that_go_well_or_badly_are_stopped_less():
    generator = torch.Generator().manual_seed(0)
    level = 1 + 0.2 * torch.randn(4000, 1, 9, 1, generator=generator)
    paths = level.expand(-1, -1, -1, 50)
    guard = guard_for(
        candidates_with(paths[:, :, :-1]), torch.zeros(4000, dtype=torch.int64), GuardConfig()
    )
    assert float(walked(guard, paths[:, :, -1]).tripped.float().mean()) < 0.01
    same = torch.ones(1, 1, 5, 50)
    still = guard_for(candidates_with(same), torch.zeros(1, dtype=torch.int64), GuardConfig())
    assert not walked(still, same[:, :, 0]).tripped.any()


def test_the_threshold_grows_as_the_record_shrinks_and_as_errors_get_dearer():
    by_n = [abort_threshold(n, 25, 0.01) for n in (6, 8, 16, 32)]
    assert by_n == sorted(by_n, reverse=True)
    assert abort_threshold(16, 25, 0.001) > abort_threshold(16, 25, 0.01)
    # one look and a long record: Student's quantile with 31 degrees of freedom
    assert abort_threshold(32, 1, 0.01) == pytest.approx(2.453, abs=0.15)
    assert abort_threshold(32, 25, 0.01) > abort_threshold(32, 1, 0.01)


def test_a_measured_threshold_agrees_on_walks_and_refuses_too_few():
    generator = torch.Generator().manual_seed(1)
    walks = torch.randn(1500, 7, 50, generator=generator)
    assert measured_threshold(walks, 0.05) == pytest.approx(abort_threshold(6, 25, 0.05), rel=0.1)
    with pytest.raises(ValueError, match=r"3 x 7 episodes cannot measure a rate of 0\.01"):
        measured_threshold(walks[:3], 0.01)


def test_the_bound_is_its_formula_at_the_looks_only():
    generator = torch.Generator().manual_seed(2)
    paths = torch.randn(1, 2, 6, 10, generator=generator)
    offered = candidates_with(paths, gain=-4.0)  # negative gains are gains all the same
    guard = guard_for(offered, torch.tensor([1]), GuardConfig(looks=4, floor=0.1), threshold=2.0)
    so_far = paths[0, 1].cumsum(-1)
    expected = so_far.mean(0) - 2.0 * (so_far.std(0) * (7 / 6) ** 0.5 + 0.4)
    looks = [1, 4, 6, 9]
    assert look_steps(10, 4).tolist() == looks
    torch.testing.assert_close(
        guard.lowest[0, looks].float(), expected[looks], rtol=1e-4, atol=1e-4
    )
    assert guard.lowest.isinf().sum() == 6
    assert guard_for(offered, torch.tensor([-1]), GuardConfig()).lowest.isinf().all()


def test_what_is_no_worse_than_the_meta_initialisation_goes_on():
    paths = torch.ones(1, 1, 5, 10)
    rewards = torch.full((1, 1, 10), 0.5)
    for per_step, stopped in ((0.4, False), (0.6, True), (float("nan"), True)):
        home = torch.full((1, 10), per_step).cumsum(-1)
        guard = guard_for(candidates_with(paths, home=home), torch.tensor([0]), GuardConfig())
        assert bool(walked(guard, rewards).tripped.any()) is stopped


@pytest.mark.parametrize("n", [1, 3])
def test_a_short_record_has_its_gain_for_a_measure(n: int):
    offered = candidates_with(torch.ones(1, 1, n, 10), gain=6.0)
    guard = guard_for(offered, torch.tensor([0]), GuardConfig(floor=0.0), threshold=2.0)
    by_hand = torch.arange(1, 11) - 2 * (torch.arange(1, 11) / 10).sqrt() * (1 + 1 / n) ** 0.5
    torch.testing.assert_close(guard.lowest[0], by_hand.double(), atol=1e-4, rtol=0)
    wide = torch.tensor([-9.0, 0.0, 9.0]).expand(1, 1, 10, 3).mT  # its own spread is larger
    own = guard_for(candidates_with(wide, gain=6.0), torch.tensor([0]), GuardConfig())
    assert float(own.lowest[0, -1]) < -3 * 90
    assert abort_threshold(n, 25, 0.01) == abort_threshold(32, 25, 0.01)


def test_episodes_that_ended_are_left_alone_and_the_switch_is_the_next_step():
    guard = Guard(torch.zeros(1, 6).double() - 0.5, torch.zeros(1, 3))
    rewards = torch.tensor([[[0.0, 0, -1, 9, 9, 9], [0, -1, 0, 0, 0, 0], [0, 0, 0, 0, 0, -1]]])
    alive = torch.ones(1, 3, 6, dtype=torch.bool)
    alive[0, 1, 1:] = False  # fell in step 1, and its return says so: nothing is left to stop
    watch = walked(guard, rewards, alive)
    assert watch.switched.tolist() == [[3, 6, 6]]
    assert watch.tripped.tolist() == [[True, False, False]]
    with pytest.raises(ValueError, match="episodes of 6 steps"):
        guard.watch(1, 7)


def test_model_evidence_stops_wrong_dynamics_and_keeps_its_rate():
    def evidence(obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
        """N(after; obs + 1, 1) against N(after; obs, 1), the candidate's."""
        moved = (after - obs)[..., 0]
        return 0.5 * (moved.square() - (moved - 1).square())

    offered = candidates_with(torch.zeros(1, 1, 5, 40), gain=1e9)
    guard = guard_for(offered, torch.tensor([0]), GuardConfig(false_abort=0.05), evidence)
    generator, rates = torch.Generator().manual_seed(3), []
    for drift in (0.0, 1.0):
        watch, nothing = guard.watch(3000, 40), torch.zeros(1, 3000, 1)
        for _ in range(40):
            after = drift + torch.randn(1, 3000, 1, generator=generator)
            watch.step(nothing, nothing, nothing[..., 0], after, torch.ones(1, 3000).bool())
        rates.append(float(watch.tripped.float().mean()))
    assert 0.005 < rates[0] <= 0.05  # Ville's inequality, whenever one looks
    assert rates[1] > 0.99


def watched(lowest: list[float], seed: int = 0) -> tuple[Trajectories, Tensor, Tensor]:
    """Scripted episodes (reward 1, 2, 3, ...) under a guard with these bounds for task 0."""
    policy, params = make_policy()
    fallback = params.flip(0)
    bounds = torch.tensor([lowest, [-torch.inf] * HORIZON]).double()
    batch = TaskBatch(scripted(), TASKS, 2, policy, np.random.default_rng(seed))
    return batch.collect(params, guard=Guard(bounds, fallback)), params, fallback


def test_collect_hands_over_inside_the_episode():
    policy = make_policy()[0]
    episodes, params, fallback = watched([-1, -1, 99, 99, 99, 99])
    assert episodes.switched is not None
    assert episodes.switched.tolist() == [[3, 3], [HORIZON, HORIZON]]
    first = policy(params, episodes.obs).log_prob(episodes.action)
    second = policy(fallback, episodes.obs).log_prob(episodes.action)
    acted = torch.cat([first[:1, :, :3], second[:1, :, 3:]], 2)
    torch.testing.assert_close(episodes.log_prob[:1], acted)
    torch.testing.assert_close(episodes.log_prob[1:], first[1:])
    assert episodes.mask.all()
    assert episodes.before_switch().mask.sum(-1).tolist() == [[3, 3], [6, 6]]
    assert episodes.after_switch().mask.sum(-1).tolist() == [[3, 3], [0, 0]]
    assert episodes.before_switch().returns().tolist() == [[6, 6], [21, 21]]
    assert episodes.stopped().tolist() == [[True, True], [False, False]]


def test_a_guard_that_says_nothing_and_no_guard_act_the_same():
    params = make_policy()[1]
    plain = make_batch(scripted()).collect(params)
    silent, _, _ = watched([-torch.inf] * HORIZON)
    assert plain.switched is None and not plain.stopped().any()
    for name in ("obs", "action", "log_prob", "reward", "mask", "final_obs"):
        assert torch.equal(getattr(plain, name), getattr(silent, name)), name


def test_switches_survive_joining_choosing_and_the_end_of_the_task():
    episodes, _, _ = watched([-1, -1, 99, 99, 99, 99])
    plain = make_batch(scripted()).collect(make_policy()[1])
    for both in (episodes.joined(plain), plain.joined(episodes)):
        assert sorted(both.switch_step()[0].tolist()) == [3, 3, 6, 6]
    assert plain.joined(plain).switched is None
    assert episodes.episodes(torch.tensor([0])).switch_step().tolist() == [[3], [6]]
    ended = replace(episodes, terminated=torch.ones(2, 2, dtype=torch.bool))
    assert ended.before_switch().terminated.tolist() == [[False, False], [True, True]]
    assert ended.after_switch().terminated.tolist() == [[True, True], [False, False]]
