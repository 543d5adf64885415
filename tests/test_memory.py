"""Keys that tell tasks apart, and a store that is read through a gate and written by merit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from agent.memory.keys import IndistinguishableTasksError, KeyMetric, task_coefficients
from agent.memory.store import EpisodicMemory, MemoryConfig
from agent.policy import GaussianMlp, ObsNormalizer
from tests.conftest import made_up_episodes

ANCHOR = torch.tensor([10.0, 20.0])


def memory(*keys: float, **settings: float) -> EpisodicMemory:
    """A memory with one-dimensional keys; row i holds the anchor plus (i + 1)."""
    store = EpisodicMemory(MemoryConfig(**settings), 1, ANCHOR)  # pyright: ignore[reportArgumentType]
    for i, key in enumerate(keys):
        assert store.write(torch.tensor([key]), ANCHOR + i + 1, score=5.0, baseline=0.0) == i
    return store


def query(*values: float) -> torch.Tensor:
    return torch.tensor([[v] for v in values])


def test_reading_by_hand():
    store = memory(0.0, 10.0, 14.0, gate=3.5, topk=2)
    recall = store.read(query(11.0, 100.0))
    assert recall.index[0].tolist() == [1, 2]
    assert recall.distance[0].tolist() == [1.0, 3.0]
    near, far = math.exp(-0.5), math.exp(-4.5)
    expected = torch.tensor([near, far]) / (near + far)
    torch.testing.assert_close(recall.weights[0], expected)
    torch.testing.assert_close(recall.params[0], torch.stack([ANCHOR + 2, ANCHOR + 3]))
    # the second query is beyond the gate of every row: none of these
    assert recall.weights[1].tolist() == [0.0, 0.0]
    assert recall.accepted.tolist() == [True, False]
    theta = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    mix = expected[0] * (ANCHOR + 2) + expected[1] * (ANCHOR + 3)
    torch.testing.assert_close(recall.pull(theta)[0], mix)
    assert recall.pull(theta)[1].tolist() == [0.0, 0.0]


def test_the_gate_is_closed_on_its_far_side_only():
    store = memory(0.0, gate=2.5)
    assert store.read(query(2.5, 2.51)).accepted.tolist() == [True, False]


def test_with_k_of_all_rows_the_weights_are_the_full_softmax():
    store = memory(0.0, 3.0, 6.0, gate=1e9, topk=3)  # the gate is of reading, not of writing
    recall = store.read(query(2.0))
    distances = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(recall.weights[0], torch.softmax(-0.5 * distances**2, 0))


def test_an_empty_memory_recalls_nothing():
    recall = memory().read(query(0.0))
    assert recall.accepted.tolist() == [False]
    assert recall.distance.tolist() == [[math.inf]]
    assert recall.pull(torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


def test_more_rows_asked_for_than_there_are():
    recall = memory(0.0, topk=4).read(query(1.0))
    assert recall.weights.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert recall.distance[0, 1:].tolist() == [math.inf] * 3


def test_a_query_that_is_not_finite_recalls_nothing():
    recall = memory(0.0, 5.0, topk=2).read(query(math.nan, math.inf, 0.0))
    assert recall.accepted.tolist() == [False, False, True]
    assert torch.isfinite(recall.weights).all()
    assert recall.pull(torch.ones(3, 2))[0].tolist() == [0.0, 0.0]


def test_very_distant_rows_do_not_underflow_to_nothing():
    store = memory(0.0, gate=1e6)
    assert store.read(query(1000.0)).weights.tolist() == [[1.0]]


def test_writing_must_beat_the_meta_initialisation_even_below_zero():
    store = memory()
    assert store.write(torch.tensor([0.0]), ANCHOR, score=-20.0, baseline=-10.0) is None
    assert store.write(torch.tensor([0.0]), ANCHOR, score=-5.0, baseline=-10.0) == 0
    assert store.size == 1


def test_the_same_task_updates_its_row_only_with_something_better():
    store = memory(0.0)
    assert store.write(torch.tensor([1.0]), ANCHOR + 7, score=4.0, baseline=0.0) is None
    torch.testing.assert_close(store.read(query(0.0)).params[0, 0], ANCHOR + 1)
    assert store.write(torch.tensor([1.0]), ANCHOR + 7, score=6.0, baseline=0.0) == 0
    torch.testing.assert_close(store.read(query(1.0)).params[0, 0], ANCHOR + 7)
    assert store.write(torch.tensor([1.0]), ANCHOR, score=-9.0, baseline=0.0) is None
    assert (store.size, int(store.visits[0])) == (1, 4)  # a visit counts even if nothing was kept


def test_a_full_memory_gives_up_the_row_that_gained_least():
    store = EpisodicMemory(MemoryConfig(capacity=2), 1, ANCHOR)
    store.write(torch.tensor([0.0]), ANCHOR, score=9.0, baseline=0.0)
    store.write(torch.tensor([50.0]), ANCHOR, score=105.0, baseline=100.0)  # gains only 5
    assert store.write(torch.tensor([100.0]), ANCHOR, score=4.0, baseline=0.0) is None
    assert store.write(torch.tensor([100.0]), ANCHOR, score=7.0, baseline=0.0) == 1
    assert store.keys[:, 0].tolist() == [0.0, 100.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_that_is_not_finite_is_kept(bad: float):
    store = memory()
    assert store.write(torch.tensor([bad]), ANCHOR, 5.0, 0.0) is None
    assert store.write(torch.tensor([0.0]), ANCHOR * bad, 5.0, 0.0) is None
    assert store.write(torch.tensor([0.0]), ANCHOR, math.nan, 0.0) is None


def test_state_goes_and_comes_back_and_refuses_another_lineage():
    store, other = memory(0.0, 9.0), memory()
    other.load_state_dict(store.state_dict())
    assert torch.equal(other.read(query(9.0)).params, store.read(query(9.0)).params)
    stranger = EpisodicMemory(MemoryConfig(), 1, ANCHOR + 1)
    with pytest.raises(ValueError, match="another meta-initialisation"):
        stranger.load_state_dict(store.state_dict())
    with pytest.raises(ValueError, match=r"2 rows but memory\.capacity=1"):
        EpisodicMemory(MemoryConfig(capacity=1), 1, ANCHOR).load_state_dict(store.state_dict())


def test_coefficients_recover_a_linear_task():
    policy = GaussianMlp(3, 2)
    params = torch.zeros(2, policy.num_params)
    episodes = made_up_episodes(policy, params, 2, 5, 60)
    episodes = dataclasses.replace(episodes, action=episodes.action.clamp(-1, 1))
    slope = torch.tensor([2.0, -3.0])[:, None, None]  # one slope a task
    reward = slope * episodes.action[..., 1] + 0.5 * episodes.action.square().sum(-1)
    episodes = dataclasses.replace(episodes, reward=reward)
    coefficients = task_coefficients(episodes, ObsNormalizer(3))
    assert coefficients.shape == (2, 2 * 3 + 2 + 2 + (3 + 2 + 1) * 3)
    # reward features: s (3), s' - s (3), a (2), |a|^2, 1
    expected = torch.zeros(2, 10, dtype=torch.float64)
    expected[:, 7], expected[:, 8] = torch.tensor([2.0, -3.0]), 0.5
    torch.testing.assert_close(coefficients[:, :10], expected, rtol=0, atol=2e-3)


def test_coefficients_ignore_masked_steps():
    policy = GaussianMlp(3, 2)
    episodes = made_up_episodes(policy, torch.zeros(1, policy.num_params), 1, 5, 60)
    mask = episodes.mask.clone()
    mask[0, 2] = 0
    spoiled = episodes.reward.clone()
    spoiled[0, 2] = 1e9
    kept = [dataclasses.replace(episodes, mask=mask, reward=r) for r in (episodes.reward, spoiled)]
    one, other = (task_coefficients(e, ObsNormalizer(3)) for e in kept)
    assert torch.equal(one, other)


def test_a_task_of_which_nothing_is_known_has_no_key_and_does_not_spoil_the_metric():
    policy = GaussianMlp(3, 2)
    episodes = made_up_episodes(policy, torch.zeros(2, policy.num_params), 2, 5, 60)
    mask = episodes.mask.clone()
    mask[1] = 0
    found = task_coefficients(dataclasses.replace(episodes, mask=mask), ObsNormalizer(3))
    assert torch.isfinite(found[0]).all() and torch.isnan(found[1]).all()
    generator = torch.Generator().manual_seed(0)
    first = 100 * torch.randn(10, 4, dtype=torch.float64, generator=generator)
    second = first + torch.randn(10, 4, dtype=torch.float64, generator=generator)
    spoiled = torch.cat([second, torch.full((1, 4), torch.nan, dtype=torch.float64)])
    more = torch.cat([first, first[:1]])
    assert torch.equal(KeyMetric.fit(more, spoiled).weight, KeyMetric.fit(first, second).weight)


def test_metric_weighs_by_hand():
    # coordinate 0 tells tasks apart, coordinate 1 is noise around one value
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2, dtype=torch.float64)
    tasks = torch.stack([10 * signs, 0 * signs], -1)
    noise = torch.stack([signs.roll(1), 5 * signs.roll(1)], -1)
    metric = KeyMetric.fit(tasks + noise, tasks - noise)
    # within = mean((2 n)^2) / 2 = (2, 50); between = var of the means - within / 2, which is
    # 800 / 7 - 1 and 0 - 25, that is none; reliability (0.98.., 0)
    assert float(metric.weight[1]) == 0.0
    # all same-task distances are 2 * reliability / sqrt(2); scaled to 1 they leave a weight of 1/2
    assert float(metric.weight[0]) == pytest.approx(0.5)
    same = metric.key(tasks + noise) - metric.key(tasks - noise)
    assert same.norm(dim=-1).tolist() == pytest.approx([1.0] * 8)


def test_the_unit_of_distance_is_what_95_percent_of_repeated_probes_stay_within():
    generator = torch.Generator().manual_seed(0)
    first = 100 * torch.randn(200, 6, dtype=torch.float64, generator=generator)
    second = first + torch.randn(200, 6, dtype=torch.float64, generator=generator)
    metric = KeyMetric.fit(first, second)
    same = (metric.key(first) - metric.key(second)).norm(dim=-1)
    assert float((same <= 1).double().mean()) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("coordinates", [2, 20, 450])
def test_no_difference_is_found_in_pure_noise(coordinates: int):
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, 40, coordinates, dtype=torch.float64, generator=generator)
        with pytest.raises(IndistinguishableTasksError, match="no further apart"):
            KeyMetric.fit(noise[0], noise[1])


def test_metric_says_when_there_is_nothing_to_tell_apart():
    same = torch.randn(10, 4, dtype=torch.float64)
    noise = torch.randn(2, 40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for first, second in (noise, (same[:1].expand(10, -1), same[:1].expand(10, -1))):
        with pytest.raises(IndistinguishableTasksError, match="no further apart"):
            KeyMetric.fit(first, second)
    with pytest.raises(ValueError, match="at least 8 tasks"):
        KeyMetric.fit(same[:2], same[:2])


def test_a_query_that_is_not_finite_is_infinitely_far():
    recall = memory(0.0, 5.0, topk=2).read(query(math.nan))
    assert recall.distance.tolist() == [[math.inf, math.inf]]


def test_a_known_task_must_still_beat_the_meta_initialisation_of_this_visit():
    store = memory(0.0)  # scored 5, when the meta-initialisation scored 0
    assert store.write(torch.tensor([0.0]), ANCHOR, score=8.0, baseline=9.0) is None
    assert float(store.scores[0]) == 5.0


def test_a_rewritten_row_takes_the_new_key_score_and_gain():
    store = memory(0.0)
    store.write(torch.tensor([1.5]), ANCHOR, score=9.0, baseline=2.0)
    assert (float(store.keys[0, 0]), float(store.scores[0]), float(store.gains[0])) == (1.5, 9, 7)


def test_a_row_given_up_does_not_pass_its_visits_on():
    store = memory(0.0, capacity=1)
    store.write(torch.tensor([0.0]), ANCHOR, score=4.0, baseline=0.0)
    assert int(store.visits[0]) == 2
    assert store.write(torch.tensor([50.0]), ANCHOR, score=9.0, baseline=0.0) == 0
    assert int(store.visits[0]) == 1


def test_every_column_of_the_memory_comes_back():
    store, other = memory(0.0, 9.0), memory()
    store.write(torch.tensor([9.0]), ANCHOR, score=50.0, baseline=20.0)
    other.load_state_dict(store.state_dict())
    assert other.size == 2
    for name in ("keys", "deltas", "scores", "gains", "visits"):
        assert torch.equal(getattr(other, name), getattr(store, name)), name


def test_coefficients_are_of_the_action_that_was_applied():
    policy = GaussianMlp(3, 2)
    episodes = made_up_episodes(policy, torch.zeros(1, policy.num_params), 1, 5, 60)
    wild = 3 * episodes.action
    reward = 2 * wild.clamp(-1, 1)[..., 0]  # the simulator never sees what lies beyond +-1
    seen = dataclasses.replace(episodes, action=wild, reward=reward)
    slope = task_coefficients(seen, ObsNormalizer(3))[0, 6:8].tolist()
    assert slope == pytest.approx([2.0, 0.0], abs=2e-3)
