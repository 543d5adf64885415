"""Two rows become one only with a certificate; what comes often moves the meta-initialisation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.memory.bank import Bank, BankConfig, Sizes
from agent.memory.consolidate import ConsolidateConfig, consolidate, taught
from agent.memory.merge import MergeConfig, Merger, differ, divergence, likeness, mixed
from agent.memory.posterior import Calibration
from agent.policy import GaussianMlp
from tests.memory_rows import H, SumKey, alike, bank, probe, record, row

# ---- merging


def near(policy: GaussianMlp, theta: Tensor, seed: int, size: float = 0.02) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return theta + size * torch.randn(theta.shape, generator=g)


def policies(policy: GaussianMlp, *params: Tensor, **more: Any) -> Bank:
    return bank(*(row(params=p, probe=probe(8, seed=i), **more) for i, p in enumerate(params)))


def merger(to: Bank, policy: GaussianMlp, **config: Any) -> Merger:
    return Merger(MergeConfig(**config), to, SumKey(), alike, policy)


def ten(params: Tensor, uid: int) -> float:
    return 10.0


def hidden_units_swapped(policy: GaussianMlp, params: Tensor) -> Tensor:
    """The same function in other coordinates: the units of the first layer in another order."""
    (w1, b1), (w2, b2), (w3, b3) = policy.unflatten(params[None])[0]
    order = torch.arange(w1.shape[-1]).roll(1)
    layers = ((w1[0][:, order], b1[0, 0][order]), (w2[0][order], b2[0, 0]), (w3[0], b3[0, 0]))
    flat = [part.reshape(-1) for layer in layers for part in layer]
    return torch.cat([*flat, params[-policy.action_size :]])


def test_likeness_is_the_calibrated_odds_of_two_and_never_across_versions():
    keys = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [math.nan, 1.0]])
    same = likeness(SumKey(), Calibration(scale=2.0, offset=-1.0))
    got = same(keys[:1], keys, ["v1", "v1", "v0", "v1"])[0].tolist()
    assert got == pytest.approx([1 / (1 + math.exp(-7)), 1 / (1 + math.exp(9)), 0.0, 0.0])


def test_divergence_by_hand(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    wider = theta.clone()
    wider[-2:] += 0.3  # the log-stds: KL is ((e^.6 - 1) / 2 - .3) one way, the mirror image back
    by_hand = 2 * 0.5 * ((math.exp(0.6) - 1) / 2 - 0.3 + (math.exp(-0.6) - 1) / 2 + 0.3)
    assert divergence(small_policy, theta, wider, probe().obs) == pytest.approx(by_hand, rel=1e-4)
    same = hidden_units_swapped(small_policy, theta)
    assert divergence(small_policy, theta, same, probe().obs) == pytest.approx(0, abs=1e-6)
    rows = row(params=theta), row(params=wider)
    assert differ(small_policy, by_hand * 0.9)(*rows)
    assert not differ(small_policy, by_hand * 1.1)(*rows)


def test_two_rows_of_one_task_become_one(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    one, two = near(small_policy, theta, 1), near(small_policy, theta, 2)
    first = row(params=one, visits=3, recalls=2, accepted=1, baseline=1.0, time=5, info={"a": 1})
    store = bank(first, row(task=0.1, params=two, visits=1, recalls=1, baseline=5.0, time=9))
    done = merger(store, small_policy).merge_all(ten)
    assert [m.merged for m in done] == [True] and done[0].uids == (0, 1)
    assert store.snapshot().uids.tolist() == [0]
    now = store.row(0)
    torch.testing.assert_close(now.params, 0.75 * one + 0.25 * two)
    assert (now.visits, now.recalls, now.accepted, now.time) == (4, 3, 1, 9)
    assert now.baseline == pytest.approx(2.0) and now.record.n == 8
    assert now.key.tolist() == pytest.approx([0.1, 2.0])
    assert now.info["a"] == 1


def test_a_move_of_one_alone_is_not_diluted():
    first = row(params=torch.tensor([1.0, 0.0, 1.0, 0.0]), visits=1)
    second = row(params=torch.tensor([0.0, 2.0, 3.0, 0.0]), visits=3)
    anchor = torch.zeros(4)
    by_visits = mixed(MergeConfig(), first, second, anchor)
    assert by_visits.tolist() == pytest.approx([0.25, 1.5, 2.5, 0.0])
    whole = mixed(MergeConfig(how="changed"), first, second, anchor)
    assert whole.tolist() == pytest.approx([1.0, 2.0, 2.5, 0.0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lineage": "b"}, "different lineages"),
        ({"encoder": "v0"}, "different versions"),
        ({"key": torch.tensor([9.0, 1.0])}, "not of one task"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(
    small_policy: GaussianMlp, change: dict[str, Any], reason: str
):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    store = bank(row(params=theta), row(params=near(small_policy, theta, 1)).with_(**change))
    tried = merger(store, small_policy).merge(0, 1, ten)
    assert not tried.merged and reason in tried.reason
    assert len(store) == 2
    if "lineage" not in change:
        assert merger(store, small_policy).pairs() == []


def test_policies_that_act_differently_are_not_merged(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    store = policies(small_policy, theta, near(small_policy, theta, 1, size=2.0))
    tried = merger(store, small_policy).merge(0, 1, ten)
    assert not tried.merged and "different things" in tried.reason
    assert merger(store, small_policy, divergence=1e6).merge(0, 1, ten).merged


def test_the_certificate_refuses_the_midpoint_of_other_coordinates(small_policy: GaussianMlp):
    """Swapped hidden units act the same on every state, yet their midpoint is another policy."""
    theta = 3 * small_policy.init(torch.Generator().manual_seed(0))
    store = policies(small_policy, theta, hidden_units_swapped(small_policy, theta), visits=2)
    states = probe(64, seed=5).obs

    def measure(params: Tensor, uid: int) -> float:
        return -100 - 100 * divergence(small_policy, params, theta, states)

    for uid in (0, 1):
        store.replace(uid, store.row(uid).with_(record=record(-100), baseline=-110.0))
    tried = merger(store, small_policy).merge(0, 1, measure)
    assert not tried.merged and "lost" in tried.reason
    assert tried.divergence == pytest.approx(0, abs=1e-5) and max(tried.kept) < 0.5
    assert len(store) == 2
    torch.testing.assert_close(store.row(0).params, theta)


@pytest.mark.parametrize(
    ("got", "merged"), [(-10.1, True), (-10.3, False), (math.nan, False), (-5.0, True)]
)
def test_the_certificate_holds_on_both_tasks_or_not_at_all(
    small_policy: GaussianMlp, got: float, merged: bool
):
    """Own return -10, meta-initialisation -20: at .98 at least -10.2 must be left."""
    theta = small_policy.init(torch.Generator().manual_seed(0))
    pair = [near(small_policy, theta, 1), near(small_policy, theta, 2)]
    for spoilt in (0, 1):
        store = policies(small_policy, *pair, baseline=-20.0)

        def measure(params: Tensor, uid: int, spoilt: int = spoilt) -> float:
            own = any(torch.allclose(params, p) for p in pair)
            return got if uid == spoilt and not own else -10.0

        tried = merger(store, small_policy).merge(0, 1, measure)
        assert tried.merged == merged
        assert len(store) == (1 if merged else 2)


def test_a_record_that_flatters_is_not_what_a_merge_is_held_to(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    for paired in (True, False):  # both policies now bring 9.5 of the 10 on record
        store = policies(small_policy, theta, near(small_policy, theta, 2))
        tried = merger(store, small_policy, paired=paired).merge(0, 1, lambda params, uid: 9.5)
        assert tried.merged == paired


def test_the_certificate_is_of_the_policy_as_it_is_stored(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    store = bank(*(row(params=near(small_policy, theta, i)) for i in (1, 2)), codec="int4")
    wanted = (store.row(0).params + store.row(1).params) / 2

    def measure(params: Tensor, uid: int) -> float:
        return 10 - 1e3 * float((params - wanted).abs().max())

    assert merger(store, small_policy, paired=False).merge(0, 1, measure).merged
    assert measure(store.row(0).params, 0) >= 9.8


def test_the_likest_pairs_come_first(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    store = bank(*(row(task=t, params=theta) for t in (0.0, 0.1, 5.0, 0.14)))
    assert merger(store, small_policy).pairs() == [(1, 3), (0, 1), (0, 3)]


def test_no_row_is_risked_for_a_merge_that_has_no_room(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    rows = [row(params=theta, info={"a": "x" * n}) for n in (1, 100)]
    store = bank(*rows, bytes=bank(*rows).bytes)  # the merged row says what became of both
    tried = merger(store, small_policy).merge(0, 1, ten)
    assert not tried.merged and "no room" in tried.reason and len(store) == 2


def test_three_of_a_kind_and_only_the_pairs_asked_for(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    params = [near(small_policy, theta, i) for i in range(3)]
    store = policies(small_policy, *params)
    store.append(row(task=50, params=theta))
    assert merger(store, small_policy).pairs(among=[1]) == [(0, 1), (1, 2)]
    assert sum(m.merged for m in merger(store, small_policy).merge_all(ten)) == 2
    assert store.snapshot().uids.tolist() == [0, 3]
    torch.testing.assert_close(store.row(0).params, torch.stack(params).mean(0))
    assert merger(bank(), small_policy).merge_all(ten) == []


# ---- consolidating


def test_the_reptile_step_in_closed_form(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    a, b = near(small_policy, theta, 1), near(small_policy, theta, 2)
    rows = [row(params=a, visits=3), row(params=b, visits=1)]
    foreign = row(params=1e3 * a, visits=9, lineage="b")
    config = ConsolidateConfig(steps=0, reptile=0.2)
    moved = taught(config, small_policy, theta, "a", [*rows, foreign])
    torch.testing.assert_close(moved, theta + 0.2 * (0.75 * a + 0.25 * b - theta))
    assert torch.equal(taught(config, small_policy, theta, "a", [foreign]), theta)


def test_distillation_goes_towards_what_the_rows_do_and_trust_holds_back(
    small_policy: GaussianMlp,
):
    g = torch.Generator().manual_seed(0)
    theta, other = small_policy.init(g), small_policy.init(g)
    teacher = row(params=3 * other, lineage="b", probe=probe(32), visits=5)

    def gap(trust: float) -> tuple[float, float]:
        config = ConsolidateConfig(steps=100, rate=1e-2, trust=trust)
        moved = taught(config, small_policy, theta, "a", [teacher])
        states = teacher.probe.obs
        return (
            divergence(small_policy, moved, teacher.params, states),
            divergence(small_policy, moved, theta, states),
        )

    start = divergence(small_policy, theta, teacher.params, teacher.probe.obs)
    free, held, fixed = gap(0.0), gap(1.0), gap(1e3)
    assert free[0] < held[0] < fixed[0] < start
    assert free[0] < 0.1 * start and fixed[1] < 0.01 * start


def test_probes_of_different_lengths_weigh_by_visits_alone(small_policy: GaussianMlp):
    """A row twice, or once with twice the visits, or with each state doubled: all the same."""
    theta = small_policy.init(torch.Generator().manual_seed(0))
    one = row(params=near(small_policy, theta, 1, 0.5), probe=probe(6, seed=1), visits=2)
    two = row(params=near(small_policy, theta, 2, 0.5), probe=probe(9, seed=2), visits=2)
    doubled = dataclasses.replace(two.probe, obs=two.probe.obs.repeat(2, 1))
    config = ConsolidateConfig(steps=5)
    plain = taught(config, small_policy, theta, "a", [one, two])
    for rows in (
        [one, two.with_(probe=doubled)],
        [one, two.with_(visits=1), two.with_(visits=1)],
    ):
        torch.testing.assert_close(taught(config, small_policy, theta, "a", rows), plain)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_every_row_does_after_consolidation_what_it_did_before(
    small_policy: GaussianMlp, codec: str
):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    rows = [
        row(task=10.0 * i, params=near(small_policy, theta, i, 0.1), visits=1 + i) for i in range(5)
    ]
    sizes = Sizes(key=2, params=len(theta), horizon=H, obs=3, action=2)
    config = BankConfig(rows=8, codec=codec)  # pyright: ignore[reportArgumentType]
    store = Bank(config, sizes, theta, "a", encoder="v1")
    for each in rows:
        store.append(each)
    before = [store.row(uid).params for uid in range(5)]
    done = consolidate(ConsolidateConfig(), store, small_policy)
    assert done.teachers == (4, 3, 2) and done.share == 1.0
    assert not torch.allclose(done.anchor, theta, atol=1e-3)
    assert torch.equal(store.snapshot().anchor, done.anchor)
    for uid, params in enumerate(before):
        torch.testing.assert_close(store.row(uid).params, params, atol=2e-6, rtol=1e-6)
        states = rows[uid].probe.obs
        assert divergence(small_policy, store.row(uid).params, params, states) < 1e-6


def test_a_move_that_does_harm_is_halved_or_not_made(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    config = ConsolidateConfig(frequent=1, steps=0, reptile=0.4, halvings=2)

    def run(limit: float) -> tuple[Any, Bank]:
        store = bank(row(params=theta + 1))  # the anchor is 0, so a full move is .4 (theta + 1)
        whole = 0.4 * float((theta + 1).norm())

        def measure(params: Tensor) -> float:
            return -50.0 if float(params.norm()) < limit * whole else -60.0

        return consolidate(config, store, small_policy, measure), store

    for limit, share in ((1.1, 1.0), (0.6, 0.5), (0.3, 0.25), (0.1, 0.0)):
        done, store = run(limit)
        assert done.share == share
        torch.testing.assert_close(store.snapshot().anchor, 0.4 * share * (theta + 1))
        torch.testing.assert_close(done.anchor, store.snapshot().anchor)
        torch.testing.assert_close(store.row(0).params, theta + 1)


def test_only_frequent_rows_with_a_gain_teach(small_policy: GaussianMlp):
    theta = small_policy.init(torch.Generator().manual_seed(0))
    store = bank(row(params=theta, visits=2), row(9, -1.0, params=theta, visits=9))
    done = consolidate(ConsolidateConfig(), store, small_policy)
    assert done.share == 0.0 and done.teachers == ()
    assert consolidate(ConsolidateConfig(frequent=2), store, small_policy).teachers == (0,)
