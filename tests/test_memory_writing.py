"""What a visit leaves in the memory, and that a full memory stays exactly as large as it may."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.memory.bank import Bank
from agent.memory.decide import Outcome, WriteConfig, plateaued
from agent.memory.evict import EvictConfig
from agent.memory.records import beats, both_probes, keeps_gain, pooled
from agent.memory.row import ReturnRecord, Row
from agent.memory.writer import Writer
from agent.policy import GaussianMlp
from tests.conftest import made_up_episodes
from tests.memory_rows import H, SumKey, alike, bank, probe, record, row


def writer(to: Bank, seed: int = 0, differs: Any = None, **config: Any) -> Writer:
    return Writer(WriteConfig(**config), to, SumKey(), alike, differs, seed)


def outcome(of: Row, **more: Any) -> Outcome:
    return Outcome(**{"row": of, "meta_init": record(of.baseline)} | more)


# ---- comparing


def test_beating_by_hand():
    # standard error of the difference: sqrt(2^2 / 4 + 2^2 / 4) = 1.414
    assert beats(record(10, sd=2), record(8, sd=2), margin=1.4)
    assert not beats(record(10, sd=2), record(8, sd=2), margin=1.5)
    assert not beats(record(8), record(8), margin=0)
    # one episode says nothing of its spread, so it borrows: sqrt(4 / 1 + 4 / 4) = 2.236
    lone = dataclasses.replace(record(10), n=1)
    assert beats(lone, record(7.7, sd=2), 1) and not beats(lone, record(7.8, sd=2), 1)
    assert not beats(record(math.nan), record(0), 0)
    assert not beats(record(0), record(math.nan), 0)


@pytest.mark.parametrize("shift", [0.0, -1000.0, 1000.0])
def test_the_sign_of_returns_makes_no_difference(shift: float):
    """CSP keeps what is above (1 + 0.1) x the best, which for negative returns is something worse.

    -104 is worse than -100 but above 1.1 x -100; and .98 x -100 = -98 is better than -100.
    """
    assert not beats(record(shift - 4), record(shift), 0)
    assert keeps_gain(shift - 1.9, shift, shift - 100, 0.98)
    assert not keeps_gain(shift - 2.1, shift, shift - 100, 0.98)
    # something that never gained anything may not do much worse either
    assert keeps_gain(shift - 1.9, shift, shift + 100, 0.98)
    assert not keeps_gain(shift - 2.1, shift, shift + 100, 0.98)
    curve = [shift + g for g in (0, 5, 9, 10, 10, 10)]
    assert plateaued(curve, 2, 0.1) and not plateaued(curve[:4], 2, 0.1)
    new = row(mean=shift + 5, baseline=shift)
    assert writer(bank()).write(outcome(new)).action == "new"
    assert writer(bank()).write(outcome(new.with_(record=record(shift - 5)))).action == "keep"


def test_what_cannot_be_measured_keeps_nothing():
    assert not keeps_gain(math.nan, 1, 0, 0.98)
    assert not keeps_gain(1, math.nan, 0, 0.98)


def test_a_plateau_is_neither_a_climb_nor_a_short_curve():
    assert not plateaued([1, 2, 3, 4, 5, 6], 3, 0.05)
    assert not plateaued([5, 5, 5], 2, 0.05)
    assert not plateaued([5, 5, math.nan, 5], 2, 0.05)
    assert plateaued([5, 5, 5, 5], 2, 0.0)
    assert plateaued([0, 9, 10, 8, 8, 10], 2, 0.05)  # means of two: 4.5, 9.5, 9, 8, 9
    assert plateaued([9, 8, 3, 2], 2, 0.0)  # what falls is not worth waiting for


def test_pooled_records_are_the_record_of_all_episodes(small_policy: GaussianMlp):
    params = small_policy.init(torch.Generator().manual_seed(0))[None]
    episodes = made_up_episodes(small_policy, params, 1, 8, H)
    parts = [ReturnRecord.of(episodes.episodes(s)) for s in (slice(0, 3), slice(3, 8))]
    whole, both = ReturnRecord.of(episodes), pooled(parts[0], parts[1])
    assert both.n == 8
    assert both.mean == pytest.approx(whole.mean, rel=1e-5)
    assert both.sd == pytest.approx(whole.sd, rel=1e-5)
    torch.testing.assert_close(both.so_far, whole.so_far)
    torch.testing.assert_close(both.so_far_sd, whole.so_far_sd)
    assert pooled(record(0, n=100), record(10, n=4), most=4).mean == pytest.approx(5)
    with pytest.raises(ValueError, match="4 and 3 steps"):
        pooled(record(0), dataclasses.replace(record(0), so_far=torch.ones(3)))


@pytest.mark.parametrize(("first", "more", "taken"), [(6, 6, 3), (6, 2, 2), (2, 6, 4), (5, 9, 5)])
def test_two_probes_take_no_more_room_than_one(first: int, more: int, taken: int):
    joint = both_probes(probe(first, seed=1), probe(more, seed=2))
    assert len(joint.reward) == max(first, more)
    kept = len(joint.reward) - taken
    assert torch.equal(joint.obs[:kept], probe(first, seed=1).obs[:kept])
    assert torch.equal(joint.obs[kept:], probe(more, seed=2).obs[:taken])
    assert joint.trajectories().reward.shape[1] == 2


# ---- deciding and writing


def test_something_new_that_is_better_is_a_new_row():
    store = bank(row(task=0))
    decision = writer(store).write(outcome(row(task=5, mean=3), match=0, null=0.9))
    assert (decision.action, decision.uid, len(store)) == ("new", 1, 2)
    assert store.row(0).visits == 1


def test_what_is_not_better_than_the_meta_initialisation_is_not_kept():
    store = bank()
    assert writer(store).write(outcome(row(mean=0))).action == "keep"
    noisy = row(mean=1).with_(record=record(1, sd=4))
    assert writer(store).write(outcome(noisy)).action == "keep"
    assert writer(store, margin=0.1).write(outcome(noisy)).action == "new"


def test_what_is_not_better_than_what_was_recalled_is_not_kept():
    store = bank(row(task=0, mean=10))
    written = writer(store)
    new = outcome(row(task=5, mean=3), match=0, null=0.9, recalled=record(4))
    assert "recalled" in written.write(new).reason
    assert written.write(dataclasses.replace(new, recalled=record(2))).action == "new"


def test_training_that_still_gains_is_not_written_yet_nor_counted():
    store = bank(row())
    written = writer(store, plateau_steps=2)
    going = outcome(row(mean=12), ended=False, curve=[0, 2, 4, 6], match=0, null=0.0)
    assert written.write(going).action == "keep"
    assert store.row(0).visits == 1
    at_rest = dataclasses.replace(going, curve=[0, 6, 10, 12, 12, 12, 12])
    assert written.write(at_rest).action == "update"


def test_a_better_policy_for_a_known_task_replaces_it_and_readers_keep_what_they_hold():
    store = bank(row(mean=10, baseline=2.0, visits=3, recalls=2, accepted=1), row(task=7))
    held = store.snapshot()
    new = row(task=0.1, mean=12, baseline=6.0, time=50)
    decision = writer(store).write(
        outcome(new, match=0, null=0.01, recalled=record(10), accepted=True)
    )
    assert (decision.action, decision.uid, len(store)) == ("update", 0, 2)
    now = store.row(0)
    assert now.params.tolist() == [12] * 5 and now.record.mean == 12
    assert (now.visits, now.recalls, now.accepted, now.time) == (4, 3, 2, 50)
    assert now.key.tolist() == pytest.approx([0.1, 2.0])  # the evidence adds up
    assert now.baseline == pytest.approx((3 * 2 + 6) / 4)
    assert held.row(held.index_of(0)).params.tolist() == [10] * 5
    assert store.row(1).params.tolist() == row(task=7).params.tolist()


def test_a_task_that_may_well_be_new_overwrites_nothing():
    store = bank(row(mean=10))
    decision = writer(store).write(outcome(row(task=0.4, mean=99), match=0, null=0.3))
    assert decision.action == "new"
    assert store.row(0).params.tolist() == [10] * 5
    # ... unless the row has just proved itself
    proved = outcome(row(task=0.4, mean=99), match=0, null=0.3, accepted=True)
    assert writer(store).write(proved).uid == 0


def test_the_key_of_another_version_is_replaced_not_added_to():
    store = bank(row(mean=10, encoder="v0"), row(9))
    seen = outcome(row(task=0.2, mean=12), match=0, null=0.0)
    assert writer(store).write(seen).action == "update"
    now = store.row(0)
    assert now.encoder == "v1" and now.key.tolist() == pytest.approx([0.2, 1.0])


def test_a_visit_that_brought_nothing_better_still_teaches_the_row():
    store = bank(row(mean=10))
    seen = outcome(row(task=0.2, mean=10), match=0, null=0.0, recalled=record(8), accepted=True)
    decision = writer(store).write(seen)
    assert (decision.action, decision.uid) == ("keep", 0)
    now = store.row(0)
    assert now.params.tolist() == [10] * 5
    assert (now.visits, now.accepted, now.record.n) == (2, 1, 8)
    assert now.record.mean == pytest.approx(9)
    assert now.key.tolist() == pytest.approx([0.2, 2.0])


def test_a_row_that_was_only_probable_learns_nothing_of_the_visit():
    store = bank(row(mean=10))
    seen = outcome(row(task=0.2, mean=10), match=0, null=0.05, recalled=record(1))
    assert writer(store).write(seen).uid == 0
    now = store.row(0)
    assert (now.visits, now.recalls, now.accepted) == (2, 1, 0)
    assert now.key.tolist() == [0.0, 1.0] and now.record.mean == 10


@pytest.mark.parametrize(
    "spoil",
    [
        {"params": torch.full((5,), math.nan)},
        {"record": record(math.inf)},
        {"baseline": math.nan},
        {"key": torch.tensor([math.nan, 1.0])},
    ],
)
def test_nothing_that_is_not_finite_gets_in(spoil: dict[str, Any]):
    store = bank(row(mean=10))
    seen = Outcome(
        row=row(mean=99).with_(**spoil), meta_init=record(0), match=0, null=0.0, accepted=True
    )
    for when in ("both", "novelty", "improvement", "always"):
        assert writer(store, when=when).write(seen).action == "keep"
    now = store.row(0)
    assert now.params.tolist() == [10] * 5 and math.isfinite(now.baseline)
    assert bool(torch.isfinite(now.key).all())


def test_the_other_rules_of_writing():
    worse = outcome(row(mean=-1), match=0, null=0.0)
    better = outcome(row(mean=99), match=0, null=0.0)
    for when, of_worse, of_better in (
        ("both", "keep", "update"),
        ("novelty", "update", "update"),
        ("improvement", "keep", "new"),
        ("always", "new", "new"),
    ):
        for seen, expected in ((worse, of_worse), (better, of_better)):
            assert writer(bank(row()), when=when).write(seen).action == expected, when


def test_a_row_that_is_gone_is_no_match():
    store = bank(row())
    store.remove(0)
    assert writer(store).write(outcome(row(), match=0, null=0.0)).action == "new"


def test_a_return_that_was_luck_replaces_nothing():
    store = bank(row(mean=10))
    lucky = outcome(row(mean=12), match=0, null=0.0)
    decision = writer(store).write(lucky, measure=lambda params: 9.5)
    assert decision.action == "keep" and "luck" in decision.reason
    assert store.row(0).params.tolist() == [10] * 5
    assert writer(store).write(lucky, measure=lambda params: 11.0).action == "update"
    assert writer(bank()).write(outcome(row(mean=12)), lambda params: -1.0).action == "keep"
    tried = outcome(row(mean=12), recalled=record(9))
    assert writer(bank()).write(tried, lambda params: 8.0).action == "keep"
    assert writer(bank()).write(tried, lambda params: 10.0).action == "new"


def test_a_policy_that_its_code_spoils_gets_more_bits():
    g = torch.Generator().manual_seed(0)
    params = torch.randn(5, generator=g)

    def measure(policy: Tensor) -> float:
        return 10 - 1e4 * float((policy - params).abs().max())

    new = row(mean=10, params=params)
    for stored in ([], [row(mean=1)]):
        coarse, fine = bank(*stored, codec="int4"), bank(*stored, codec="int4")
        seen = outcome(new, match=0, null=0.0)
        action = "update" if stored else "new"
        assert writer(coarse).write(seen).action == action
        assert writer(fine).write(seen, measure).action == action
        assert measure(coarse.row(0).params) < 0
        assert measure(fine.row(0).params) >= 9.8


def test_alternatives_of_one_task():
    other = row(mean=10, params=torch.full((5,), -1.0))
    store = bank(row(mean=10), row(task=9, mean=50))

    def differs(a: Row, b: Row) -> bool:
        return (float(a.params[0]) > 0) != (float(b.params[0]) > 0)

    written = writer(store, differs=differs, alternatives=2)
    assert written.write(outcome(other, match=0, null=0.0, recalled=record(10))).action == "new"
    assert len(store) == 3
    # one that acts like the first and is no better, one that is better
    assert written.write(outcome(row(mean=10), match=0, null=0.0)).action == "keep"
    better = written.write(outcome(row(mean=11), match=2, null=0.0))
    assert (better.action, better.uid, len(store)) == ("update", 0, 3)
    assert store.row(1).record.mean == 50
    # a third takes the place of the worst, or none
    written = writer(store, differs=lambda a, b: True, alternatives=2)
    worse = written.write(outcome(row(mean=10.5), match=0, null=0.0))
    assert (worse.action, worse.uid) == ("keep", 0)
    third = written.write(outcome(row(mean=11), match=0, null=0.0))
    assert (third.action, third.uid, len(store)) == ("update", 2, 3)
    with pytest.raises(ValueError, match="alternatives=2"):
        writer(store, alternatives=2)


# ---- when the memory is full


@pytest.mark.parametrize("kind", ["value", "fifo", "lru", "random", "reservoir"])
def test_with_fewer_places_than_tasks_the_capacity_is_exact(kind: Any):
    store = bank(capacity=4)
    written = writer(store, evict=EvictConfig(kind=kind))
    where: dict[int, int] = {}
    for visit in range(60):
        task = visit % 2 if visit % 3 else 2 + visit % 9  # two tasks come back all the time
        match = where.get(task)
        known = match is not None and match in store
        seen = outcome(
            row(10.0 * task, 5.0, time=visit), match=match if known else None, null=1.0 - known
        )
        decision = written.write(seen)
        if decision.action == "new" and decision.uid is not None:
            where[task] = decision.uid
        assert len(store) <= 4
    assert len(store) == 4
    if kind == "value":
        keys = [store.row(uid).key[0] for uid in store.snapshot().uids.tolist()]
        assert {0.0, 10.0} <= {float(k) for k in keys}


def test_a_newcomer_worth_less_than_any_row_is_turned_away():
    store = bank(row(0, 10, visits=5), row(9, 8), capacity=2)
    decision = writer(store).write(outcome(row(20, 3)))
    assert (decision.action, decision.uid, decision.evicted) == ("keep", None, ())
    assert sorted(store.snapshot().uids.tolist()) == [0, 1]
    decision = writer(store).write(outcome(row(20, 9)))
    assert (decision.uid, decision.evicted) == (2, (1,))


def test_capacity_in_bytes():
    one = bank(row())
    store = bank(capacity=100, bytes=3 * one.bytes)
    written = writer(store)
    for task in range(8):
        written.write(outcome(row(10.0 * task, mean=1.0 + task)))
        assert store.bytes <= 3 * one.bytes
    assert sorted(store.row(u).record.mean for u in store.snapshot().uids.tolist()) == [6, 7, 8]


def test_a_better_version_that_needs_more_room_is_let_in_by_its_worth():
    """A longer probe makes the new version larger than the old one, and the bank is full."""
    long, room = probe(10), bank(row(), row(9)).bytes
    for others_worth, action, held in ((3.0, "update", [0]), (99.0, "keep", [0, 1])):
        store = bank(row(0, 10), row(9, others_worth), bytes=room)
        better = row(0, 12, probe=long)
        decision = writer(store).write(outcome(better, match=0, null=0.0))
        assert (decision.action, store.snapshot().uids.tolist()) == (action, held)
        assert store.row(0).record.mean == (12 if action == "update" else 10)
        assert store.bytes <= room


def test_nobody_gives_way_to_a_longer_probe_alone():
    store = bank(row(0), row(9, 1.0), bytes=bank(row(), row(9)).bytes)
    seen = outcome(row(0, probe=probe(40)), match=0, null=0.0, recalled=record(10), accepted=True)
    assert writer(store).write(seen).action == "keep"
    assert len(store) == 2 and store.row(0).visits == 2


def test_a_writer_goes_on_from_its_state():
    def run(restore: bool) -> list[int]:
        store = bank(row(0), row(10), capacity=2)
        one = writer(store, evict=EvictConfig(kind="reservoir"))
        for task in range(2, 6):
            one.write(outcome(row(10.0 * task)))
        assert int(one.state_dict()["seen"]) == 4
        if restore:
            state = one.state_dict()
            one = writer(store, seed=99, evict=EvictConfig(kind="reservoir"))
            one.load_state_dict(state)
        for task in range(6, 16):
            one.write(outcome(row(10.0 * task)))
        return store.snapshot().uids.tolist()

    assert run(restore=True) == run(restore=False)
