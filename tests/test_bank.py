"""The bank: rows come back as written, readers see one moment, capacity is exact, codes keep up."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.memory.bank import Bank, BankConfig, BankFullError, LineageMismatchError, Sizes
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.memory.tiers import Tiers, limited, on_device
from agent.types import Trajectories

P, D, H, O, A, M = 70, 3, 4, 2, 1, 6  # noqa: E741
SIZES = Sizes(key=D, params=P, horizon=H, obs=O, action=A, segments=(64, 6))
ANCHOR = torch.linspace(-1, 1, P)
CPU = torch.device("cpu")


def made_up(seed: int, **changes: Any) -> Row:
    """A row with an episode of 4 steps and the beginning of another."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(M + 1, O, generator=g)
    after, first = obs[1:].clone(), torch.tensor([True, False, False, False, True, False])
    after[3] = 9.0  # where the first episode ended
    probe = Transitions(
        obs[:-1], torch.randn(M, A, generator=g), torch.randn(M, generator=g), after, first
    )
    row = Row(
        key=torch.randn(D, generator=g),
        encoder="key-1",
        params=ANCHOR + 0.1 * torch.randn(P, generator=g),
        lineage="home",
        record=ReturnRecord(-1.5 - seed, 0.3, 5, torch.randn(H, generator=g), torch.ones(H) * seed),
        baseline=-2.5,
        probe=probe,
        visits=1 + seed,
        time=100 * seed,
        info={"task": f"task {seed}"},
    )
    return row.with_(**changes)


def bank(tiers: Tiers | None = None, **settings: Any) -> Bank:
    config = BankConfig(**{"codec": "float32", "chunk_rows": 3} | settings)
    return Bank(config, SIZES, ANCHOR, "home", tiers=tiers)


def bank_bytes(rows: list[Row]) -> int:
    held = bank()
    for row in rows:
        held.append(row)
    return held.bytes


def assert_same(row: Row, other: Row, tolerance: float = 3e-7) -> None:
    """Everything but the policy to the bit; that to a tolerance."""
    for f in fields(Row):
        a, b = getattr(row, f.name), getattr(other, f.name)
        if f.name == "params":
            assert (a - b).abs().max() <= tolerance
        elif f.name in ("record", "probe"):
            for g in fields(type(a)):
                x, y = getattr(a, g.name), getattr(b, g.name)
                assert torch.equal(x, y) if isinstance(x, Tensor) else x == y, g.name
        else:
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, f.name


def test_rows_come_back_as_they_were_written():
    held, rows = bank(), [made_up(i) for i in range(7)]
    uids = [held.append(row) for row in rows]
    assert uids == list(range(7)) and len(held) == 7 and 6 in held and 7 not in held
    snapshot = held.snapshot()
    for i, (uid, row) in enumerate(zip(uids, rows, strict=True)):
        assert_same(held.row(uid), row)
        assert_same(snapshot.row(i), row)
    assert snapshot.encoder == "key-1"  # that of the first row
    assert torch.equal(snapshot.keys, torch.stack([row.key for row in rows]))
    assert snapshot.mean.tolist() == [row.record.mean for row in rows]
    assert snapshot.sd.tolist() == [0.3] * 7 and snapshot.n.tolist() == [5] * 7
    assert snapshot.baseline.tolist() == [-2.5] * 7
    assert snapshot.visits.tolist() == list(range(1, 8))
    assert snapshot.time.tolist() == [100 * i for i in range(7)]
    assert torch.equal(snapshot.so_far[3], rows[3].record.so_far)
    assert torch.equal(snapshot.so_far_sd[3], rows[3].record.so_far_sd)


def test_candidates_are_decoded_into_stacked_policies():
    held, rows = bank(codec="int8"), [made_up(i) for i in range(5)]
    exact = [held.append(row, check=lambda policy: False) for row in rows[:2]]
    coded = [held.append(row) for row in rows[2:]]
    assert [held.codec(uid) for uid in exact + coded] == ["float32"] * 2 + ["int8"] * 3
    index = torch.tensor([[4, 0, -1], [2, 2, 1]])  # of both codes, and "no row"
    params = held.snapshot().params(index)
    assert params.shape == (2, 3, P)
    assert torch.equal(params[0, 2], ANCHOR)
    for t, k in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        i = int(index[t, k])
        assert torch.equal(params[t, k], held.row(i).params)
        # a scale is at most the largest delta / 127
        limit = 3e-7 if i < 2 else float((rows[i].params - ANCHOR).abs().max()) / 127 * 0.51
        assert (params[t, k] - rows[i].params).abs().max() <= limit
    so_far, sd = held.snapshot().bands(index)
    assert torch.equal(so_far[0, 0], rows[4].record.so_far) and sd[0, 0].tolist() == [4.0] * H
    assert so_far[0, 2].tolist() == sd[0, 2].tolist() == [0.0] * H
    with pytest.raises(IndexError, match="of 5 rows"):
        held.snapshot().params(torch.tensor([5]))
    with pytest.raises(IndexError, match="of 5 rows"):
        held.snapshot().params(torch.tensor([-2]))


def test_an_empty_bank_answers_with_the_meta_initialisation():
    snapshot = bank().snapshot()
    assert len(snapshot) == 0 and snapshot.keys.shape == (0, D) and snapshot.so_far.shape == (0, H)
    params = snapshot.params(torch.full((2, 3), -1))
    assert torch.equal(params, ANCHOR.expand(2, 3, P))
    assert snapshot.params(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, P)
    assert snapshot.bands(torch.tensor([-1]))[0].tolist() == [[0.0] * H]
    with pytest.raises(IndexError):
        snapshot.params(torch.tensor([0]))


def test_a_snapshot_is_of_one_moment():
    held, rows = bank(rows=100), [made_up(i) for i in range(5)]
    for row in rows:
        held.append(row)
    before = held.snapshot()
    keys, params = before.keys, before.params(torch.arange(5))
    held.count(0, visits=2, recalls=1, accepted=1, time=77)
    held.replace(1, made_up(11))
    held.remove(2)
    for i in range(20, 40):  # past the room first reserved
        held.append(made_up(i))
    held.compact()
    assert before.visits[0] == 1 and before.recalls[0] == 0
    for i, row in enumerate(rows):
        assert_same(before.row(i), row)
    assert torch.equal(before.keys, keys) and torch.equal(before.params(torch.arange(5)), params)
    after = held.snapshot()
    assert after is held.snapshot()  # and only made anew when something changed
    assert after.uids.tolist() == [0, 1, 3, 4, *range(5, 25)]
    counted = rows[0].with_(visits=3, recalls=1, accepted=1, time=77)
    assert_same(after.row(0), counted)
    assert_same(held.row(0), counted)
    assert_same(after.row(after.index_of(1)), made_up(11))
    assert_same(held.row(24), made_up(39))
    for gone in (held.row, held.remove, after.index_of, held.codec):
        with pytest.raises(KeyError, match="no row 2"):
            gone(2)


def test_what_is_gone_is_given_back_by_itself():
    held = bank(rows=10)
    for i in range(300):
        if len(held) == 10:
            held.remove(i - 10)
        held.append(made_up(i))
    assert held.snapshot().uids.tolist() == list(range(290, 300))
    assert len(held._log) < 10 + 64 + 1
    assert_same(held.row(290), made_up(290))


def test_capacity_in_rows_is_exact():
    held = bank(rows=2)
    held.append(made_up(0))
    held.append(made_up(1))
    with pytest.raises(BankFullError, match="its 2 rows"):
        held.append(made_up(2))
    held.replace(0, made_up(3))  # no more rows than before
    assert len(held) == 2
    held.remove(1)
    assert held.append(made_up(4)) == 2  # a name is never used again


def test_capacity_in_bytes_is_exact():
    free = bank(codec="int8")
    free.append(made_up(0))
    one = free.bytes
    # the key, the codes, two bands, the probe (four numbers and a byte a step, and two
    # observations that no step begins with) and the task's name; the rest is columns
    probe, info = M * (4 * (O + A + 1) + 1) + 2 * O * 4, len('{"task": "task 0"}')
    columns = 3 * 8 + 5 * 8 + 11 * 8
    assert one == 4 * D + (4 + P + 6) + 8 * H + probe + info + columns
    held = bank(codec="int8", bytes=2 * one)
    held.append(made_up(0))
    held.append(made_up(1))
    assert held.bytes == 2 * one
    with pytest.raises(BankFullError, match=f"takes {one:,} bytes, but 0 of"):
        held.append(made_up(2))
    before = held.snapshot()
    with pytest.raises(BankFullError):  # float32 does not fit, and the old version stays
        held.replace(0, made_up(3), check=lambda policy: False)
    assert held.snapshot() is before and held.bytes == 2 * one
    held.replace(0, made_up(3))
    held.remove(1)
    assert held.bytes == one
    held.compact()
    assert held.bytes == one


def test_a_failed_write_leaves_no_trace():
    held = bank(rows=1, bytes=1)
    with pytest.raises(BankFullError):
        held.append(made_up(0))
    assert len(held) == 0 and held.bytes == 0 and len(held.snapshot()) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": torch.zeros(P + 1)}, "params must be"),
        ({"params": torch.full((P,), torch.nan)}, "params are not finite"),
        ({"key": torch.zeros(D + 1)}, "key must be"),
        ({"key": torch.tensor([0.0, torch.nan, 0.0])}, "key are not finite"),
        ({"record": ReturnRecord(0.0, 0.0, 1, torch.zeros(9), torch.zeros(H))}, "so_far must be"),
    ],
)
def test_unlike_rows_are_refused(changes: dict[str, Any], message: str):
    held = bank()
    held.append(made_up(0))
    with pytest.raises(ValueError, match=message):
        held.append(made_up(1, **changes))
    assert len(held) == 1


def test_keys_of_other_encoders_are_kept_but_not_compared():
    held = bank()
    held.append(made_up(0))
    other = made_up(1, encoder="key-0", key=torch.arange(5.0))
    held.append(other)
    snapshot = held.snapshot()
    assert snapshot.encoders == ["key-1", "key-0"]
    assert snapshot.keys[1].isnan().all() and snapshot.keys[0].isfinite().all()
    held.compact()
    assert_same(held.row(1), other)


def test_policies_of_other_lineages_keep_all_their_bits():
    held = bank(codec="int4")
    held.append(made_up(0))
    foreign = made_up(1, lineage="abroad", params=torch.randn(P) * 10)
    held.append(foreign)
    assert held.snapshot().lineages == ["home", "abroad"]
    assert held.snapshot().mixable.tolist() == [True, False]
    assert [held.codec(0), held.codec(1)] == ["int4", "float32"]
    assert_same(held.row(1), foreign, tolerance=4e-6)


def test_a_long_probe_is_cut():
    held = bank(probe_steps=5)
    held.append(made_up(0))
    kept = held.row(0).probe
    assert torch.equal(kept.obs, made_up(0).probe.obs[:5])
    assert torch.equal(kept.next_obs, made_up(0).probe.next_obs[:5])
    none = Transitions(*(c[:0] for c in vars(made_up(0).probe).values()))
    held.append(made_up(1, probe=none))
    assert held.row(1).probe.obs.shape == (0, O)


@pytest.mark.parametrize("codec", ["float32", "int8", "int4"])
def test_moving_the_meta_initialisation_changes_no_behaviour(codec: str):
    held = bank(codec=codec)
    for i in range(5):
        held.append(made_up(i, lineage="abroad" if i == 3 else "home"))
    before, index = held.snapshot(), torch.arange(5)
    moved = ANCHOR + torch.randn(P, generator=torch.Generator().manual_seed(0))
    held.rebase(moved, "home-2")
    assert torch.equal(held.snapshot().params(index), before.params(index))  # to the bit
    assert torch.equal(held.anchor, moved) and held.lineage == "home-2"
    assert held.snapshot().lineages == ["home-2"] * 3 + ["abroad", "home-2"]
    assert before.lineages[0] == "home" and torch.equal(before.anchor, ANCHOR)
    held.append(made_up(6, lineage="home-2", params=moved + 0.01))
    assert (held.row(5).params - moved - 0.01).abs().max() < 1e-3
    held.compact()  # rows on two meta-initialisations, stacked
    both = held.snapshot().params(torch.tensor([5, 0]))
    assert torch.equal(both[0], held.row(5).params)
    assert torch.equal(both[1], before.params(index)[0])
    assert len(held._log.anchors) == 2
    for uid in range(5):
        held.remove(uid)
    held.compact()
    assert len(held._log.anchors) == 1  # what no row needs is dropped


def test_moving_with_a_check_codes_anew_with_the_bits_that_it_takes():
    held = bank(codec="int4")
    for i in range(3):
        held.append(made_up(i))
    before = held.snapshot().params(torch.arange(3))
    limits = [1.0, 1e-2, 1e-5]
    held.rebase(
        ANCHOR + 0.5, "home", lambda uid, p: bool((p - before[uid]).abs().max() <= limits[uid])
    )
    assert [held.codec(uid) for uid in range(3)] == ["int4", "int8", "float32"]
    after = held.snapshot().params(torch.arange(3))
    assert [bool((a - b).abs().max() <= e) for a, b, e in zip(after, before, limits, strict=True)]
    assert len(held._log.anchors) == 1 and held.row(0).lineage == "home"


class MeanObs:
    """A key of one number more than the bank's: mean observation, steps and episodes."""

    size, version = O + 2, "key-2"

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """Of each task."""
        mask = episodes.mask
        steps = mask.sum((1, 2))
        mean = (episodes.obs * mask[..., None]).sum((1, 2)) / steps[:, None]
        count = torch.full_like(steps, mask.shape[1])
        return torch.cat([mean, steps[:, None], count[:, None]], -1)


def test_keys_are_made_anew_from_the_probes():
    held = bank()
    shorter = made_up(1).probe
    shorter = Transitions(*(c[:3] for c in vars(shorter).values()))
    none = Transitions(*(c[:0] for c in vars(shorter).values()))
    rows = [
        made_up(0),
        made_up(1, probe=shorter),
        made_up(2, encoder="key-0"),
        made_up(3, probe=none),
    ]
    for row in rows:
        held.append(row)
    before = held.snapshot()
    held.rekey(MeanObs())  # pyright: ignore[reportArgumentType]
    after = held.snapshot()
    assert (after.encoder, before.encoder) == ("key-2", "key-1")
    assert after.encoders == ["key-2"] * 4 and after.keys.shape == (4, O + 2)
    for i in range(3):
        assert torch.allclose(after.keys[i, :O], rows[i].probe.obs.mean(0))
    assert after.keys[:3, O:].tolist() == [[6.0, 2.0], [3.0, 1.0], [6.0, 2.0]]
    assert after.keys[3].isnan().all()  # nothing is known
    assert before.keys.shape == (4, D)
    for i in range(4):  # nothing else changed
        assert_same(after.row(i).with_(key=rows[i].key, encoder=rows[i].encoder), rows[i])
    held.append(made_up(4, encoder="key-2", key=torch.zeros(O + 2)))
    with pytest.raises(ValueError, match="key must be"):
        held.append(made_up(5, encoder="key-2"))


def test_a_saved_bank_goes_on_as_it_was():
    held = bank(codec="int8", rows=20)
    for i in range(6):
        held.append(made_up(i), check=None if i != 2 else lambda policy: False)
    held.append(made_up(6, encoder="key-0", key=torch.arange(7.0)))
    held.rebase(ANCHOR + 0.1, "home")
    held.remove(4)
    held.replace(1, made_up(9))
    held.remove(0)
    state = held.state_dict()
    assert all(isinstance(value, Tensor) and value.device.type == "cpu" for value in state.values())
    again = bank(codec="int4", rows=20)
    again.load_state_dict(state)
    assert again.snapshot().uids.tolist() == held.snapshot().uids.tolist() == [1, 2, 3, 5, 6]
    for uid in (1, 2, 3, 5, 6):
        assert_same(again.row(uid), held.row(uid), tolerance=0.0)
        assert again.codec(uid) == held.codec(uid)
    assert torch.equal(again.anchor, held.anchor) and again.encoder == "key-1"
    assert again.bytes == held.bytes
    assert again.append(made_up(7)) == held.append(made_up(7)) == 7
    empty = bank()
    empty.load_state_dict(bank().state_dict())
    assert len(empty) == 0


def test_a_saved_bank_must_fit():
    held = bank()
    held.append(made_up(0))
    held.append(made_up(1))
    state = held.state_dict()
    with pytest.raises(BankFullError, match="2 rows of"):
        bank(rows=1).load_state_dict(state)
    with pytest.raises(BankFullError, match="2 rows of"):
        bank(bytes=held.bytes - 1).load_state_dict(state)
    bank(bytes=held.bytes).load_state_dict(state)
    with pytest.raises(LineageMismatchError, match="'home'"):
        Bank(BankConfig(), SIZES, ANCHOR, "abroad").load_state_dict(state)
    wider = replace(SIZES, horizon=H + 1)
    with pytest.raises(ValueError, match="horizon=5"):
        Bank(BankConfig(), wider, ANCHOR, "home").load_state_dict(state)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_device_memory_spills_and_gives_the_same_rows(error: Exception):
    calls = []

    def refusing(size: int) -> Tensor:
        calls.append(size)
        if len(calls) > 2:
            raise error
        return torch.empty(size, dtype=torch.uint8)

    small = bank(Tiers([("device", refusing), ("host", on_device(CPU))], CPU), codec="int8")
    large = bank(codec="int8")
    with pytest.warns(ResourceWarning, match="'host'") as caught:
        for i in range(20):
            small.append(made_up(i))
            large.append(made_up(i))
    assert len(caught) == 1
    index = torch.tensor([[0, 19, 7], [3, 3, 12]])
    a, b = small.snapshot(), large.snapshot()
    assert torch.equal(a.params(index), b.params(index)) and torch.equal(a.so_far, b.so_far)
    for uid in range(20):
        assert_same(small.row(uid), large.row(uid), tolerance=0.0)


def test_no_space_anywhere_leaves_the_bank_as_it_was():
    full = limited(on_device(CPU), 5 << 20)
    refused = [False]

    def allocate(size: int) -> Tensor:
        if refused[0]:
            raise MemoryError
        return full(size)

    held = bank(Tiers([("only", allocate)], CPU), chunk_rows=1)
    held.append(made_up(0))
    refused[0] = True
    for row in (made_up(1), made_up(2, encoder="key-0")):
        with pytest.raises(MemoryError, match="out of space"):
            held.append(row)
    assert len(held) == 1 and held.bytes == bank_bytes([made_up(0)])
    refused[0] = False
    assert held.append(made_up(3)) == 1
    assert_same(held.row(0), made_up(0))
    assert_same(held.row(1), made_up(3))


def test_a_write_that_fails_half_way_does_not_shift_later_rows():
    """The policy and the band found room, the probe did not."""
    held = bank()
    held.append(made_up(0))
    put = held._log.probes.put

    def refuse(data: Tensor) -> tuple[int, int]:
        raise MemoryError

    held._log.probes.put = refuse
    with pytest.raises(MemoryError):
        held.append(made_up(1, encoder="key-0"))
    held._log.probes.put = put
    held.append(made_up(2))
    assert_same(held.row(0), made_up(0))
    assert_same(held.row(1), made_up(2))


def test_columns_follow_their_rows_when_one_was_replaced():
    held = bank()
    for i in range(3):
        held.append(made_up(i))
    held.replace(0, made_up(7))  # now at the end of the log, but still the first row
    assert held.snapshot().mean.tolist() == [made_up(i).record.mean for i in (7, 1, 2)]
    assert torch.equal(held.snapshot().keys[0], made_up(7).key)


def test_counting_shows_in_the_next_snapshot():
    held = bank()
    held.append(made_up(0))
    before = held.snapshot()
    held.count(0, recalls=2)
    assert (before.recalls.tolist(), held.snapshot().recalls.tolist()) == ([0], [2])


def test_an_observation_that_differs_in_one_number_is_kept():
    held, probe = bank(), made_up(0).probe
    after = probe.next_obs.clone()
    after[1, 0] += 1e-3
    held.append(made_up(0, probe=replace(probe, next_obs=after)))
    assert torch.equal(held.row(0).probe.next_obs, after)
