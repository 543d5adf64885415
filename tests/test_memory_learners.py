"""The memory serves every learner: tiny rows, beliefs, policies that remember, consolidation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.adapter import PpoAdapter
from agent.continual.agents import MetaInit
from agent.continual.engram import Engram, lineage_of
from agent.continual.inheritance import inherited
from agent.continual.methods.matching import Matching
from agent.continual.methods.memory_only import MemoryOnly
from agent.continual.methods.simple import Scratch
from agent.continual.visit import Segment, Visit
from agent.learners.anil import Anil
from agent.learners.context import Context
from agent.learners.maml import Maml
from agent.learners.rl2 import Rl2
from agent.learners.varibad import Varibad
from agent.memory.bank import Bank, BankConfig, Sizes
from agent.memory.codec import Codec, fit_codec, spans_of
from agent.memory.consolidate import ConsolidateConfig
from agent.memory.decide import Decision, Outcome, WriteConfig
from agent.memory.memory import MemoryConfig
from agent.memory.packing import json_bytes, json_value
from agent.memory.use import function_recall, own_teacher
from agent.memory.worth import reweighted_return
from agent.memory.writer import Measure
from agent.policy import DiagonalGaussian, GaussianMlp, Policy, PolicyConfig
from agent.run import RunError
from agent.seeding import generator
from agent.train import (
    BatchSize,
    Calibration,
    make_policy,
    meta_iteration,
    new_learner,
    probe_twice,
)
from agent.types import Recall, Trajectories
from envs.navigation import Navigation
from tests.conftest import made_up_episodes
from tests.memory_rows import H, row

FREE = ((2, 4), (5, 8))
DELTA = torch.tensor([0.0, 0, 127, -63.4, 0, 2, 0, -254, 0, 0])


def test_only_free_places_are_coded_and_all_others_are_zero():
    codec = Codec("int8", (3, 3, 4), block=64, free=FREE)
    assert codec.coded == (1, 1, 1, 2)  # the segments' ends cut what is free
    record = codec.encode(DELTA)
    # four scales, bfloat16; five codes; padding to whole words
    assert record[:8].view(torch.bfloat16).tolist() == pytest.approx([1, 0.5, 2 / 127, 2], rel=0.01)
    assert record[8:13].view(torch.int8).tolist() == [127, -127, 127, 0, -127]
    assert len(record) == codec.record_bytes == 16
    decoded = codec.decode(record.expand(2, 3, -1))
    assert decoded.shape == (2, 3, 10)
    torch.testing.assert_close(decoded[1, 2], DELTA, atol=0.5, rtol=0)
    assert not decoded[..., [0, 1, 4, 8, 9]].any()
    for kind in ("float32", "bfloat16", "int4"):
        coded = Codec(kind, (3, 3, 4), free=FREE)
        torch.testing.assert_close(coded.decode(coded.encode(DELTA)), DELTA, atol=0.5, rtol=0.15)
    with pytest.raises(ValueError, match="differs from 0 outside"):
        codec.encode(DELTA + 1)


def test_a_delta_that_is_not_free_is_coded_whole():
    everything = torch.ones(10)
    codec, record = fit_codec(everything, lambda _: True, (10,), "int4", free=FREE)
    assert codec == Codec("float32", (10,)) and torch.equal(codec.decode(record), everything)
    codec, _ = fit_codec(DELTA, lambda _: True, (10,), "int4", free=FREE)
    assert codec == Codec("int4", (10,), free=FREE)


def test_masks_as_spans():
    mask = torch.zeros(10, dtype=torch.bool)
    mask[2:4], mask[5:8] = True, True
    assert spans_of(mask) == FREE
    mask[0] = mask[9] = True
    assert spans_of(mask) == ((0, 1), (2, 4), (5, 8), (9, 10))
    assert spans_of(None) == spans_of(torch.ones(3, dtype=torch.bool)) == ()


def bank(free: Any = FREE, codec: Any = "int8") -> Bank:
    """Around 0, 1, ..., 9."""
    sizes = Sizes(key=2, params=10, horizon=H, obs=3, action=2, segments=(10,), free=free)
    return Bank(BankConfig(codec=codec), sizes, torch.arange(10.0), "a", encoder="v1")


def test_rows_are_the_anchor_exactly_where_nothing_adapts():
    store, anchor = bank(), torch.arange(10.0)
    own = store.append(row(params=anchor + DELTA))
    foreign = store.append(row(params=-anchor, lineage="b"))
    both = store.snapshot().params(torch.tensor([own, foreign]))
    held = [0, 1, 4, 8, 9]
    assert torch.equal(both[0, held], anchor[held])
    torch.testing.assert_close(both[0], anchor + DELTA, atol=1.1, rtol=0)
    assert torch.equal(both[1], -anchor)
    again = bank()
    again.load_state_dict(store.state_dict())
    assert torch.equal(again.snapshot().params(torch.tensor([0, 1])), both)
    store.compact()
    assert torch.equal(store.snapshot().params(torch.tensor([0, 1])), both)
    moved = anchor + 0.5
    store.rebase(moved, "c")
    assert torch.equal(store.row(own).params, both[0]) and store.row(own).lineage == "c"


def test_what_was_saved_before_rows_could_be_small_still_loads():
    store = bank(free=())
    store.append(row(params=torch.arange(10.0) + DELTA))
    saved = store.state_dict()
    facts = json_value(saved["facts"])
    del facts["sizes"]["free"]
    again = bank(free=())
    again.load_state_dict(saved | {"facts": json_bytes(facts)})
    assert torch.equal(again.row(0).params, store.row(0).params)
    with pytest.raises(ValueError, match="holds rows of"):
        bank().load_state_dict(saved)
    with pytest.raises(ValueError, match="not places of 10"):
        Sizes(key=2, params=10, horizon=H, obs=3, action=2, free=((5, 11),))


class Remembering(Policy):
    """Acts on the sum of what it has seen in the episode, times its only parameter."""

    device = torch.device("cpu")

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """Not without the episode."""
        raise AssertionError("asked without the episode")

    def along(self, params: Tensor, episodes: Trajectories) -> DiagonalGaussian:
        """The sum up to each step."""
        seen = episodes.obs.cumsum(2)
        return DiagonalGaussian(params[:, None, None] * seen, torch.zeros(1))


def test_policies_that_remember_are_asked_about_whole_episodes():
    policy: Any = Remembering()
    episodes = made_up_episodes(
        GaussianMlp(1, 1, PolicyConfig(hidden=[])), torch.zeros(1, 3), 1, 6, 3
    )
    acted, other = torch.tensor([[0.3]]), torch.tensor([0.5])
    own = reweighted_return(policy, acted[0], acted, episodes)
    assert own == pytest.approx(float(episodes.mean_return()), rel=1e-5)
    seen, action = episodes.obs.cumsum(2)[0, ..., 0], episodes.action[0, ..., 0]
    log = (0.5 * (action - 0.3 * seen) ** 2 - 0.5 * (action - 0.5 * seen) ** 2).cumsum(-1)
    wanted = (log.double().softmax(0) * episodes.reward[0]).sum()
    assert reweighted_return(policy, other, acted, episodes) == pytest.approx(
        float(wanted), rel=1e-5
    )
    one = torch.ones(1, 1)
    recall = Recall(one.long() - 1, one, one, other[None, None])
    taught = function_recall(recall, [own_teacher(policy, other[None])])
    by_hand = (0.5 * (0.2 * seen).square()).mean()
    assert float(taught.divergence(policy, acted, episodes)) == pytest.approx(
        float(by_hand), rel=1e-5
    )


def born(navigation: Navigation, learner: Any, iterations: int = 0) -> tuple[Any, Any]:
    """A learner, a little trained, and its probes."""
    policy = make_policy(navigation, PolicyConfig(hidden=[16]), False, "cpu", learner.make_policy)
    new_learner(learner, policy, 0)
    for n in range(iterations):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=6), 0, n)
    return learner, probe_twice(learner, navigation, Calibration(tasks=30, episodes=2), 0)[0]


def keeps_all(kind: type[Engram] = Engram, **settings: Any) -> Any:
    """An agent that writes every new task's policy and believes its key."""
    memory = MemoryConfig(write=WriteConfig(when="novelty"))
    reader = {"_target_": "agent.memory.reader.simple.Top1"}
    return kind(reader=reader, memory=memory, episodes=4, **settings)


def visit(navigation: Navigation, policy: Any, name: str, number: int) -> Visit:
    """To one of three goals."""
    tasks = navigation.sample(3, generator(0, "stream"), distinct=True)
    segment = Segment(number, name, tasks["ABC".index(name)], 14)
    return Visit(navigation, [segment], policy, generator(0, "visit", number))


def lives(
    agent: Any, navigation: Navigation, order: str, resumed: Any = None, first: int = 0
) -> list[dict[str, Any]]:
    """What begins of visits told; with ``resumed``, it is saved and made anew after every batch."""
    told = []
    for number, name in enumerate(order, first):
        with visit(navigation, agent.learner.policy, name, number) as here:
            before = agent.store.bank.snapshot()
            told.append(agent.begin(here) | {"start": agent.params, "before": before})
            while here.remaining > 0 or agent.pending:
                agent.improve(here)
                if resumed is not None:
                    state = {k: v.clone() for k, v in agent.state_dict().items()}
                    agent = resumed()
                    agent.load_state_dict(state)
            told[-1] |= {"end": agent.params, "wrote": agent.end()}
            told[-1]["state"] = {k: v.clone() for k, v in agent.state_dict().items()}
    return told


def test_what_anil_keeps_of_a_task_is_its_head(navigation: Navigation):
    sizes = {}
    for kind in (Maml, Anil):
        learner, probes = born(navigation, kind())
        agent = keeps_all()
        agent.setup(learner, probes, 0)
        told = lives(agent, navigation, "AB" if kind is Maml else "ABA")
        assert len(agent.store) == 2
        sizes[kind] = agent.store.bank._log.codecs[1].record_bytes
        if kind is Anil:
            held, rows = ~learner.free, agent.store.bank.snapshot()
            theta = learner.theta.detach()
            assert torch.equal(rows.params(torch.arange(2))[:, held], theta[held].expand(2, -1))
            assert told[2]["row"] == 0 and torch.equal(told[2]["start"][0, held], theta[held])
            assert torch.equal(told[2]["start"][0], told[2]["before"].row(0).params)
    # One byte a number and two a segment, in whole words: 36 and 3, of 84 and 5.
    assert sizes == {Anil: 48, Maml: 96}


SMALL = {"hidden": 8, "embed": 8, "outer_epochs": 1, "task_adapter": PpoAdapter(epochs=2)}
HEADS = {  # Of 16 hidden units; deltas: weights and biases of its two layers, log-stds.
    "context": [(2 + 6) * 16, 16, 16 * 2, 2, 2],
    "rl2": [(2 + 8) * 16, 16, 16 * 2, 2, 2],
}
# What makes the learner, the segments of its rows and the bytes of one: one a number, two for each
# started 64 of a segment, in whole words.
BELIEFS: dict[str, tuple[Callable[[], Any], list[int], int]] = {
    "context": (Context, [5, 1], 16),  # 6 + 2 * 2
    "gru": (partial(Rl2, **SMALL), [8], 16),  # 8 + 2
    "lstm": (partial(Rl2, cell="lstm", **SMALL), [8, 8], 24),  # 16 + 2 * 2
    "varibad": (partial(Varibad, bounds=2, decoded=10, **SMALL), [8], 16),
    # 186 + 2 * 8 and 220 + 2 * 8
    "context with deltas": (partial(Context, deltas=True), [5, 1, *HEADS["context"]], 208),
    "gru with deltas": (partial(Rl2, deltas=True, **SMALL), [8, *HEADS["rl2"]], 240),
}


@pytest.mark.parametrize(("make", "segments", "size"), BELIEFS.values(), ids=BELIEFS)
def test_a_belief_is_recalled_in_one_forward_pass(
    navigation: Navigation,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Any],
    segments: list[int],
    size: int,
):
    learner, probes = born(navigation, make(), 1)
    agent = keeps_all()
    agent.setup(learner, probes, 0)
    kept: list[Tensor] = []
    write = agent.store.write

    def spy(outcome: Outcome, measure: Measure) -> Decision:
        kept.append(outcome.row.params)
        return write(outcome, measure)

    monkeypatch.setattr(agent.store, "write", spy)
    told = lives(agent, navigation, "ABAB")
    policy = learner.policy
    assert policy.segments == segments and policy.num_params == sum(segments)
    assert [t["row"] for t in told] == [None, None, 0, 1]
    assert [t["wrote"]["row"] for t in told] == [0, 1, 0, 1]
    for again, number in ((told[2], 0), (told[3], 1)):
        assert again["start"].shape == (1, sum(segments))
        assert torch.equal(again["start"][0], again["before"].row(number).params)
        # A row is its distance from zeros in int8: half a step of the segment's largest at most.
        parts = zip(again["start"][0].split(segments), kept[number].split(segments), strict=True)
        assert all((got - put).abs().max() <= put.abs().max() / 250 for got, put in parts)
        assert (again["start"][0] - kept[1 - number]).abs().max() > kept[number].abs().max() / 50
        assert all(part.any() for part in again["start"][0].split(segments))  # deltas, too
    assert told[2]["wrote"]["rows"] == 2
    assert agent.store.bank._log.codecs[1].record_bytes == size


def goes_on(navigation: Navigation, learner: Any, probes: Any, make: Callable[[], Any]) -> Any:
    """A life in which a task comes back, which must not notice being saved and made anew."""

    def fresh() -> Any:
        agent = make()
        agent.setup(learner, probes, 0)
        return agent

    whole = lives(fresh(), navigation, "ABA")
    again = lives(fresh(), navigation, "ABA", fresh)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one["start"], other["start"]) and torch.equal(one["end"], other["end"])
        assert one["wrote"] == other["wrote"] and one["row"] == other["row"]
        # What is known of the rows, too: their times, records and counters.
        torch.testing.assert_close(other["state"], one["state"], rtol=0, atol=0, equal_nan=True)
    return whole


def test_a_life_of_beliefs_goes_on_from_any_batch(navigation: Navigation):
    goes_on(navigation, *born(navigation, Context(), 2), lambda: Engram(episodes=4))


@pytest.mark.parametrize("make", [make for make, *_ in BELIEFS.values()], ids=BELIEFS)
def test_a_recalled_belief_goes_on_from_any_batch(navigation: Navigation, make: Callable[[], Any]):
    told = goes_on(navigation, *born(navigation, make(), 1), keeps_all)
    assert [t["row"] for t in told] == [None, None, 0]
    assert not torch.equal(told[2]["end"], told[2]["start"])  # it went on from what was recalled


def test_a_belief_belongs_to_the_weights_it_was_made_with(navigation: Navigation, tmp_path: Path):
    learner, probes = born(navigation, Context(), 1)
    theta, policy = learner.theta.detach(), learner.policy
    mine = lineage_of(theta, policy)
    with torch.no_grad():
        policy.weights[0] += 1e-3
    assert lineage_of(theta, policy) != mine
    with torch.no_grad():
        policy.weights[0] -= 1e-3
    policy.reward_normalizer.mean += 1
    assert lineage_of(theta, policy) != mine  # what a reward is in the encoder's units
    policy.reward_normalizer.mean -= 1
    plain = GaussianMlp(2, 2)
    params = plain.init(torch.Generator().manual_seed(0))
    assert lineage_of(params, plain) == lineage_of(params)  # old names stay

    agent = keeps_all()
    agent.setup(learner, probes, 0)
    lives(agent, navigation, "AB")
    agent.save_memory(tmp_path / "memory", {})
    assert len(list(inherited(tmp_path / "memory", policy, agent.store.lineage))) == 2
    heir = keeps_all(open_from=str(tmp_path / "memory"))
    heir.setup(learner, probes, 0)
    assert lives(heir, navigation, "AB")[1]["row"] == 1
    with pytest.raises(ValueError, match=r"row 0 is a belief of lineage .* same training run"):
        list(inherited(tmp_path / "memory", policy, "elsewhere"))


def test_agents_that_need_weights_say_so(navigation: Navigation):
    learner, probes = born(navigation, Context())
    agent: Any = MemoryOnly()
    with pytest.raises(RunError, match=r"agent MemoryOnly .* adapts a belief.*such as engram"):
        agent.setup(learner, probes, 0)

    class Weights(MetaInit):
        needs_weights = True

    with pytest.raises(RunError, match="agent Weights"):
        Weights().setup(learner, probes, 0)
    Weights().setup(*born(navigation, Maml()), 0)
    for kind in (MetaInit, Matching, Scratch):
        kind().setup(learner, probes, 0)


def remembered(learner: Any, visits: list[int], lineages: str) -> Bank:
    """A bank around the learner's start; row i lies i + 1 from it in every parameter."""
    policy = learner.policy
    sizes = Sizes(2, policy.num_params, H, policy.obs_size, policy.action_size)
    made = Bank(BankConfig(codec="float32"), sizes, learner.theta.detach(), "a", encoder="v1")
    for i, (times, lineage) in enumerate(zip(visits, lineages, strict=True)):
        params = learner.theta.detach() + i + 1
        full = row(params=params, lineage=lineage, visits=times)
        o, a = policy.obs_size, policy.action_size
        probe = replace(full.probe, obs=full.probe.obs[:, :o], next_obs=full.probe.next_obs[:, :o])
        made.append(full.with_(probe=replace(probe, action=probe.action[:, :a])))
    return made


@pytest.mark.parametrize("kind", [Maml, Context])
def test_consolidation_moves_the_start_to_what_is_frequent(navigation: Navigation, kind: Any):
    learner, _ = born(navigation, kind(), 1)
    theta, shared = learner.theta, {k: v.clone() for k, v in learner.policy.shared().items()}
    before, store = theta.detach().clone(), remembered(learner, [3, 1, 9], "aaa")
    rows = [store.row(uid).params for uid in range(3)]
    config = ConsolidateConfig(frequent=3, reptile=0.5, steps=0)
    told = learner.consolidate(store, config)
    # Rows 0 and 2, at 1 and 3: (3 * 1 + 9 * 3) / 12 = 2.5, half of the way.
    torch.testing.assert_close(theta.detach(), before + 1.25)
    assert learner.theta is theta and torch.equal(store.anchor, theta.detach())
    assert told["consolidate/teachers"] == 2 and told["consolidate/share"] == 1
    moved = 1.25 * math.sqrt(len(theta))
    assert told["consolidate/moved"] == pytest.approx(moved, rel=1e-4)
    assert all(torch.equal(store.row(uid).params, rows[uid]) for uid in range(3))
    assert all(torch.equal(shared[k], v) for k, v in learner.policy.shared().items())
    with pytest.raises(ValueError, match="around another start"):
        learner.consolidate(remembered(born(navigation, kind(), 2)[0], [3], "a"))
    meta_iteration(learner, navigation, BatchSize(tasks=2, episodes=3), 0, 1)  # training goes on


def test_beliefs_are_taught_by_their_own_lineage_alone_and_never_by_distillation(
    navigation: Navigation,
):
    learner, _ = born(navigation, Context(), 1)
    before = learner.theta.clone()
    store = remembered(learner, [5, 5], "ab")
    told = learner.consolidate(store, ConsolidateConfig(reptile=0.1, steps=50))
    assert told["consolidate/teachers"] == 1
    torch.testing.assert_close(learner.theta, before + 0.1)
    nothing = learner.consolidate(remembered(learner, [5], "b"))
    assert nothing == {f"consolidate/{x}": 0.0 for x in ("share", "teachers", "moved")}


def test_a_consolidation_that_does_harm_is_not_made(navigation: Navigation):
    learner, _ = born(navigation, Maml())
    before = learner.theta.detach().clone()
    store = remembered(learner, [5], "a")
    told = learner.consolidate(store, None, lambda start: -float((start - before).norm()))
    assert told["consolidate/share"] == 0.0 and torch.equal(learner.theta.detach(), before)
