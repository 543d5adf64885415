"""The memory as a whole: read by content, written by merit, saved and loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from agent.memory.bank import BankConfig, LineageMismatchError
from agent.memory.decide import Outcome, WriteConfig
from agent.memory.key.base import Key
from agent.memory.key.fisher import Fisher
from agent.memory.memory import EpisodicMemory, MemoryConfig
from agent.memory.posterior import Calibration
from agent.memory.probes import TrainingProbes
from agent.memory.reader.guarded import Guarded
from agent.memory.reader.simple import Average, SeedLiteral, SoftmaxTopK, Top1
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.policy import GaussianMlp, PolicyConfig
from tests.conftest import made_up_episodes

HORIZON = 6
POLICY = GaussianMlp(3, 2, PolicyConfig(hidden=[4]))
ANCHOR = POLICY.init(torch.Generator().manual_seed(0))
READERS = [Guarded(), Top1(), Top1(gated=False), SoftmaxTopK(), Average(), SeedLiteral()]


class Number:
    """A key of one number: the score is 4 less the squared distance."""

    size, version = 1, "number"

    def joined(self, first: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """In between."""
        return (first + more) / 2

    def score(self, query: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """-inf for what is not a number."""
        found = 4.0 - (query[:, None, 0] - rows[None, :, 0]).double().square()
        return found.nan_to_num(nan=-math.inf)


def memory(*keys: float, version: str = "number", **settings: Any) -> EpisodicMemory:
    """A memory of one-number keys; row i's policy is the anchor plus i + 1."""
    key: Any = Number()
    bank = BankConfig(codec="float32", **settings.pop("bank", {}))
    config = MemoryConfig(bank=bank, **settings)
    made = EpisodicMemory(config, key, Calibration(), POLICY, ANCHOR, "line", HORIZON)
    for i, value in enumerate(keys):
        made.bank.append(row(value, ANCHOR + i + 1, encoder=version))
    return made


def row(key: float, params: torch.Tensor, mean: float = 10.0, **changes: Any) -> Row:
    """A row with a made-up record."""
    steps = torch.arange(1, HORIZON + 1) / HORIZON
    probe = Transitions.of(made_up_episodes(POLICY, ANCHOR[None], 1, 1, HORIZON), HORIZON)
    made = Row(
        key=torch.tensor([key]),
        encoder="number",
        params=params,
        lineage="line",
        record=ReturnRecord(mean, 1.0, 6, mean * steps, steps),
        baseline=0.0,
        probe=probe,
    )
    return made.with_(**changes)


def query(*values: float) -> torch.Tensor:
    return torch.tensor([[v] for v in values])


def test_the_posterior_by_hand():
    store = memory(0.0, 1.0, candidates=2, novelty=2.0)
    store.bank.count(0, visits=2)  # three visits there, one to the other, two to tasks never met
    found = store.candidates(query(0.5))
    odds = [3 / 6 * math.exp(3.75), 1 / 6 * math.exp(3.75), 2 / 6]
    assert found.index[0].tolist() == [0, 1]
    assert found.weight[0].tolist() == pytest.approx([o / sum(odds) for o in odds[:2]], rel=1e-6)
    assert float(found.null) == pytest.approx(odds[2] / sum(odds), rel=1e-5)
    torch.testing.assert_close(found.params[0], torch.stack([ANCHOR + 1, ANCHOR + 2]))
    assert found.mean.tolist() == [[10.0, 10.0]] and found.baseline.tolist() == [[0.0, 0.0]]
    # The rows are one apart: alone with a new task, as likely as exp(3) to 1.
    same = math.exp(3.0) / (1 + math.exp(3.0))
    assert found.affinity.flatten().tolist() == pytest.approx([1, same, same, 1])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("keys", [(), (0.0,)], ids=["empty", "unknown"])
def test_where_nothing_is_known_the_meta_initialisation_is_exactly_kept(
    reader: Any, keys: tuple[float, ...]
):
    store = memory(*keys)
    trial = reader.open(store.candidates(query(math.nan)), torch.Generator())
    assert torch.equal(trial.start(), ANCHOR[None])
    assert not bool(trial.recall().accepted) and bool(trial.done.all())


def test_more_candidates_than_rows_and_fewer():
    assert memory(0.0, 1.0, candidates=8).candidates(query(0.0)).size == (1, 2)
    found = memory(5.0, 0.0, 1.0, candidates=1).candidates(query(0.1, 4.9))
    assert found.index.tolist() == [[1], [0]]


def test_keys_of_another_version_are_never_compared():
    store = memory(0.0, candidates=1)
    store.bank.append(row(0.0, ANCHOR - 1, encoder="older"))
    found = store.candidates(query(0.0))
    assert found.index.tolist() == [[0]] and torch.equal(found.params[0, 0], ANCHOR + 1)


def test_duplicates_share_the_belief():
    found = memory(0.0, 0.0, candidates=2).candidates(query(0.0))
    assert float(found.weight[0, 0]) == pytest.approx(float(found.weight[0, 1]))
    assert float(found.weight.sum() + found.null) == pytest.approx(1.0)


def test_wrong_matches_are_injected_as_often_as_asked():
    store = memory(0.0, 100.0, 200.0, corrupt_rate=1.0)
    found = store.candidates(query(0.0, 0.0, 0.0))
    assert 0 not in found.index[:, 0].tolist()
    assert float(found.weight[0, 0]) == pytest.approx(1.0, abs=0.05)


def outcome(key: float, mean: float, **more: Any) -> Outcome:
    """What a visit found, against a meta-initialisation that returns 0."""
    nothing = ReturnRecord(0.0, 1.0, 6, torch.zeros(HORIZON), torch.zeros(HORIZON))
    return Outcome(row=row(key, ANCHOR + 9, mean), meta_init=nothing, **more)


def test_a_full_memory_keeps_its_number_and_gives_up_what_is_worth_least():
    store = memory(0.0, 50.0, bank={"rows": 2})
    assert store.write(outcome(100.0, 1.5, null=1.0)).action == "keep"
    decision = store.write(outcome(100.0, 30.0, null=1.0))
    assert decision.action == "new" and len(store) == 2 and len(decision.evicted) == 1
    found = store.candidates(query(100.0))
    uids = store.bank.snapshot().uids
    assert int(uids[found.index[0, 0]]) == decision.uid == 2


def test_a_task_that_came_back_updates_its_row_only_with_something_better():
    store = memory(0.0)
    assert store.write(outcome(0.1, 10.0, null=0.0, match=0, accepted=True)).action == "keep"
    assert torch.equal(store.bank.row(0).params, ANCHOR + 1) and store.bank.row(0).visits == 2
    before = store.bank.snapshot()
    assert store.write(outcome(0.1, 20.0, null=0.0, match=0, accepted=True)).action == "update"
    torch.testing.assert_close(store.bank.row(0).params, ANCHOR + 9)
    torch.testing.assert_close(before.params(torch.tensor([0])), (ANCHOR + 1)[None])


def test_writing_must_beat_the_meta_initialisation_even_below_zero():
    store = memory(write=WriteConfig(margin=0.0))
    low = ReturnRecord(-20.0, 1.0, 6, torch.zeros(HORIZON), torch.zeros(HORIZON))
    for mean, action in ((-25.0, "keep"), (-20.0, "keep"), (-15.0, "new")):
        told = Outcome(row=row(0.0, ANCHOR + 1, mean, baseline=-20.0), meta_init=low, null=1.0)
        assert store.write(told).action == action


def test_a_memory_comes_back_and_refuses_another_lineage():
    store = memory(0.0, 3.0)
    other = memory()
    other.load_state_dict({name: value.clone() for name, value in store.state_dict().items()})
    ours, theirs = (each.candidates(query(0.5, 2.0)) for each in (store, other))
    assert torch.equal(ours.params, theirs.params) and torch.equal(ours.weight, theirs.weight)
    key: Key = store.key
    stranger = EpisodicMemory(
        MemoryConfig(), key, Calibration(), POLICY, ANCHOR + 1, "other", HORIZON
    )
    with pytest.raises(LineageMismatchError, match=r"'line'.*'other'"):
        stranger.load_state_dict(store.state_dict())


def test_probes_of_training_tasks_come_back_and_fit_the_same_key():
    made = [made_up_episodes(POLICY, ANCHOR.expand(12, -1), 12, 2, HORIZON, s) for s in (0, 0)]
    shift = torch.randn(2, 12, 1, 1, generator=torch.Generator().manual_seed(1))
    wanted = 5 * torch.arange(12.0)[:, None, None]  # tasks differ in their reward
    probes = TrainingProbes(
        tuple(
            type(e)(**{**vars(e), "advantage": None, "reward": e.reward + wanted + 0.1 * s})
            for e, s in zip(made, shift, strict=True)
        ),
        torch.arange(12.0)[:, None],
        POLICY.normalizer,
    )
    state = {name: value.clone() for name, value in probes.state_dict().items()}
    again = TrainingProbes.from_state(state, POLICY.normalizer)
    first, second = Fisher(), Fisher()
    assert probes.fit(first) == again.fit(second)
    assert first.version == second.version
    assert torch.equal(again.given, probes.given)
