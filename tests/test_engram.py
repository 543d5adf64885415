"""The agent with memory: what outlives a visit, what it tells the writer, what it inherits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.continual.agents import MetaInit
from agent.continual.cohort import live_one
from agent.continual.engram import Engram, return_so_far
from agent.continual.inheritance import inherited
from agent.continual.lifetime import Watch, live
from agent.learners.maml import Maml
from agent.memory.bank import BankConfig
from agent.memory.decide import WriteConfig
from agent.memory.evict import EvictConfig
from agent.memory.files import MemoryFolder
from agent.memory.memory import EpisodicMemory, MemoryConfig
from agent.memory.posterior import Calibration as Worth
from agent.memory.probes import TrainingProbes
from agent.memory.worth import reweighted_return
from agent.policy import GaussianMlp, PolicyConfig
from agent.run import Run
from envs.half_cheetah import HalfCheetah
from tests import test_continual, test_memory
from tests.conftest import made_up_episodes
from tests.test_continual import believing, cohort, lived, starts, world
from tests.test_memory import ANCHOR, HORIZON, POLICY, memory, outcome, query, row

family, born = test_continual.family, test_continual.born
Born = tuple[Maml, TrainingProbes]
THOMPSON = {"_target_": "agent.memory.reader.bandits.Thompson", "trials": 2}


def drawing(**settings: Any) -> Engram:
    """One that uses every random number generator and the clock, with rows to choose from."""
    config = MemoryConfig(
        write=WriteConfig(when="always", evict=EvictConfig(kind="reservoir")),
        bank=BankConfig(codec="float32", rows=2),
        corrupt_rate=0.5,
    )
    return Engram(reader=THOMPSON, memory=config, key=NOKEY, **settings)


NOKEY = {"_target_": "agent.memory.key.given.NoKey"}


def test_all_that_outlives_a_visit_comes_back_generators_and_clock_too(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    around = world(family, born[0], "ABC")
    agent = drawing()
    lived(agent, around, born, tmp_path / "whole")
    saved = agent.state_dict()
    fresh = drawing()
    fresh.setup(*born, 0)
    start = fresh.state_dict()
    for name in ("draws", "memory.generator", "memory.writer.generator", "time"):
        assert not torch.equal(start[name], saved[name]), f"{name}: nothing to restore"
    fresh.load_state_dict(saved)
    again = fresh.state_dict()
    assert again.keys() == saved.keys()
    for name, value in saved.items():
        assert torch.equal(again[name], value), name
    assert int(again["time"]) == 3 * test_continual.BUDGET * 20


def test_a_row_is_dated_by_the_clock_of_its_lifetime(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    agent = believing()
    lived(agent, world(family, born[0], "AB"), born, tmp_path)
    steps = test_continual.BUDGET * 20
    assert agent.store.bank.snapshot().time.tolist() == [steps, 2 * steps]


def outcomes(agent: Engram, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    write = agent.store.write
    monkeypatch.setattr(
        agent.store,
        "write",
        lambda out, measure: found.append((out, measure, agent._acted)) or write(out, measure),
    )
    return found


def test_what_a_visit_tells_the_writer(
    tmp_path: Path, family: HalfCheetah, born: Born, monkeypatch: pytest.MonkeyPatch
):
    agent = believing()
    agent.setup(*born, 0)
    found = outcomes(agent, monkeypatch)
    assert live(agent, world(family, born[0], "AA"), Run(tmp_path), "engram") is not None
    (first, measure, (acted, _)), (second, _, _) = found
    assert (first.match, first.accepted, first.recalled, first.null) == (None, False, None, 1.0)
    assert (second.match, second.accepted, second.null) == (0, True, 0.0)
    assert second.recalled.n == 6  # the first batch by the recalled row itself
    # A policy is judged by the episodes that the last one to act made; none worse is written.
    assert measure(acted[0]) == pytest.approx(first.row.record.mean, rel=1e-4)
    assert measure(acted[0] + 0.1) != pytest.approx(first.row.record.mean, rel=1e-4)
    assert measure(first.row.params) >= first.row.record.mean - 1e-4


def test_the_return_so_far_of_what_did_not_diverge():
    episodes = made_up_episodes(POLICY, ANCHOR[None], 1, 2, HORIZON)
    lost = replace(episodes, diverged=torch.tensor([[False, True]]))
    torch.testing.assert_close(return_so_far(lost)[0], episodes.reward[0, 0].cumsum(-1))
    none = replace(episodes, diverged=torch.ones(1, 2, dtype=torch.bool))
    assert bool(return_so_far(none).isnan().all())


def test_candidates_know_how_the_meta_initialisation_does_here(
    tmp_path: Path, family: HalfCheetah, born: Born, monkeypatch: pytest.MonkeyPatch
):
    agent, shown = believing(), []
    agent.setup(*born, 0)
    candidates = EpisodicMemory.candidates

    def spy(self: EpisodicMemory, *asked: Any) -> Any:
        found = candidates(self, *asked)
        if self is agent.store:  # and not a copy's, which is evaluated
            shown.append(found)
        return found

    monkeypatch.setattr(EpisodicMemory, "candidates", spy)
    live(agent, world(family, born[0], "AA"), Run(tmp_path), "engram")
    assert float(shown[1].home) == pytest.approx(float(agent._probe.mean_return()), rel=1e-5)


def test_the_pull_fades_from_the_first_step_after_the_jump(
    tmp_path: Path, family: HalfCheetah, born: Born, monkeypatch: pytest.MonkeyPatch
):
    """A jump begins at step ``meta_steps``, the pull at its first beta."""
    from agent.adapter import Pull

    agent, betas = believing(pull=Pull(kind="harmonic", beta=0.4)), []
    step = Maml.step

    def spy(self: Maml, params: Any, episodes: Any, n: int, *more: Any) -> Any:
        betas.append(more[1])
        return step(self, params, episodes, n, *more)

    monkeypatch.setattr(Maml, "step", spy)
    lived(agent, world(family, born[0], "AA"), born, tmp_path)
    assert betas[2:] == pytest.approx([0.4, 0.2])


def test_a_memory_that_another_run_left_is_recalled_from(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    first = believing()
    lived(first, world(family, born[0], "AB"), born, tmp_path / "one")
    first.save_memory(tmp_path / "memory", {0: "task A"})
    nodes: list[dict[str, Any]] = [{}, {"key": {"_target_": "agent.memory.key.fisher.Fisher"}}]
    for node in nodes:
        heir = believing(open_from=str(tmp_path / "memory"), **node)
        life = lived(heir, world(family, born[0], "AB"), born, tmp_path / f"heir{len(node)}")
        assert [v.recalled.row for v in life.visits] == [0, 1], node


def test_saved_rows_are_called_by_their_tasks(tmp_path: Path, family: HalfCheetah, born: Born):
    life = live_one("engram", believing(), 0, cohort(family, born), tmp_path)
    assert life is not None
    rows = MemoryFolder(tmp_path / "memory").read()
    labels = {uid: stored.info["label"] for uid, stored in rows}
    assert labels == {n: life.protocol.tasks["AB"[n]].label for n in (0, 1)}
    assert len({*labels.values()}) == 2 and all(labels.values())


def test_a_row_however_unlikely_can_be_tried():
    found = memory(0.0, candidates=1).candidates(query(100.0))
    assert found.index.tolist() == [[0]] and float(found.weight) > 0
    assert float(found.null) == pytest.approx(1.0)


def test_candidates_of_one_task_are_each_others_like_and_strangers_are_not():
    found = memory(0.0, 0.0, 50.0, candidates=3).candidates(query(0.0))
    order = found.index[0].tolist()
    assert order[2] == 2
    like = found.affinity[0]
    assert torch.equal(like, like.mT) and torch.equal(like.diagonal(), torch.ones(3))
    assert float(like[0, 1]) > 0.95 and float(like[0, 2]) < 1e-6


def test_a_row_of_another_lineage_is_shown_but_not_to_be_mixed():
    store = memory(0.0, candidates=2)
    store.bank.append(row(0.0, ANCHOR + 2, lineage="other"))
    found = store.candidates(query(0.0))
    assert found.mixable is not None
    assert dict(zip(found.index[0].tolist(), found.mixable[0].tolist(), strict=True)) == {
        0: True,
        1: False,
    }


WORTH_POLICY = GaussianMlp(2, 1, PolicyConfig(hidden=[4]))
WORTH_PARAMS = WORTH_POLICY.init(torch.Generator().manual_seed(0))


def moved(by: float) -> torch.Tensor:
    other = WORTH_PARAMS.clone()
    other[-2] += by
    return other


def test_two_steps_reweighted_by_hand():
    episodes = made_up_episodes(WORTH_POLICY, WORTH_PARAMS[None], 1, 4, 3)
    mask = torch.ones(1, 4, 3)
    mask[0, 1, 1:] = 0.0  # ended after one step
    mask[0, 3] = 0.0
    diverged = torch.tensor([[False, False, False, True]])
    episodes = replace(episodes, mask=mask, diverged=diverged)
    other = moved(0.5)
    log = WORTH_POLICY(other[None], episodes.obs).log_prob(episodes.action) - WORTH_POLICY(
        WORTH_PARAMS[None], episodes.obs
    ).log_prob(episodes.action)
    wanted = 0.0
    for h in range(3):
        ratios = [
            math.exp(sum(float(log[0, e, i]) for i in range(h + 1) if mask[0, e, i]))
            for e in range(3)
        ]
        paid = [float(episodes.reward[0, e, h] * mask[0, e, h]) for e in range(3)]
        wanted += sum(r * p for r, p in zip(ratios, paid, strict=True)) / sum(ratios)
    found = reweighted_return(WORTH_POLICY, other, WORTH_PARAMS[None], episodes)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_what_a_guard_stopped_is_not_learned_from_as_the_rows_own(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    from agent.memory.reader.base import Attempt

    agent = believing()
    lived(agent, world(family, born[0], "A"), born, tmp_path)
    whole = made_up_episodes(born[0].policy, born[0].theta.detach()[None], 1, 1, 20)
    for switched, index, own in ((20, 0, True), (19, 0, False), (20, -1, False)):
        episodes = replace(whole, switched=torch.tensor([[switched]]))
        assert agent._is_of(Attempt(torch.tensor([index]), episodes), 0) is own
    assert not agent._is_of(Attempt(torch.tensor([0]), whole), None)


def test_a_key_is_calibrated_both_ways_on_known_and_different_tasks(
    monkeypatch: pytest.MonkeyPatch,
):
    from agent.memory import probes as module

    class Told:
        """Scores say which probe asked."""

        def fit(self, probes: Any, normalizer: Any, given: Any) -> None: ...

        def encode(self, episodes: Any, given: Any) -> torch.Tensor:
            return episodes.reward[:, :, 0]

        def score(self, asked: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return 10 * asked + rows.mT

    def probe(number: float, lost: int) -> Any:
        made = made_up_episodes(POLICY, ANCHOR.expand(4, -1), 4, 1, HORIZON)
        mask = made.mask.clone()
        mask[lost] = 0.0
        return replace(made, mask=mask, reward=torch.full_like(made.reward, number))

    seen: list[Any] = []
    monkeypatch.setattr(module.Calibration, "fit", lambda s, same=None: seen.append((s, same)))
    told: Any = Told()
    given = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    TrainingProbes((probe(1.0, 0), probe(2.0, 3)), given, POLICY.normalizer).fit(told)
    ((scores, same),) = seen
    assert [float(s[0, 0]) for s in scores] == [12.0, 21.0]
    assert all(s.shape == (2, 2) for s in scores)  # tasks 1 and 2: both probes know them
    assert same is not None and bool(same.all())  # and they are one


def test_probes_are_of_the_seeds_own_tasks_and_all_their_steps_count(tmp_path: Path):
    from agent.train import Calibration, make_policy, new_learner, probe_twice
    from envs.navigation import Navigation
    from envs.task import Param
    from tests.test_train import run_to

    angle = Param(to="attr:angle", low=0.0, high=6.28)
    navigation = Navigation(name="navigation", horizon=20, params={"angle": angle})
    learner = new_learner(Maml(), make_policy(navigation, PolicyConfig(), False, "cpu"), 0)
    size = Calibration(tasks=8, episodes=1)
    given = [probe_twice(learner, navigation, size, seed)[0].given for seed in (0, 0, 1)]
    assert torch.equal(given[0], given[1]) and not torch.equal(given[1], given[2])
    run_to(tmp_path, navigation, 1)
    run_to(tmp_path, navigation, 2)  # trained further: calibrated once more
    progress = Run(tmp_path).progress()
    assert progress is not None and progress["key_steps"] == 2 * 40 * 2 * 2 * 20


def test_a_row_kept_with_more_bits_keeps_them_when_its_task_comes_back():
    key: Any = test_memory.Number()
    config = MemoryConfig(bank=BankConfig(codec="int4"))
    store = EpisodicMemory(config, key, Worth(), POLICY, ANCHOR, "line", HORIZON)
    policy = ANCHOR + torch.randn(ANCHOR.shape, generator=torch.Generator().manual_seed(3))
    uid = store.bank.append(row(0.0, policy), lambda p: bool((p - policy).abs().max() < 1e-3))
    assert store.bank.codec(uid) == "float32"
    store.write(outcome(0.1, 5.0, null=0.0, match=uid, accepted=True))
    assert store.bank.codec(uid) == "float32"
    torch.testing.assert_close(store.bank.row(uid).params, policy)


def test_a_lifetime_goes_on_with_its_memory_where_numbers_round_otherwise(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    """Threads (or another machine) change the last bits of the fitted key, so its version."""
    around, agent, seen = world(family, born[0], "ABAB"), believing(), []
    agent.setup(*born, 0)
    watch = Watch(seen.append, lambda: len(seen) == 5)
    assert live(agent, around, Run(tmp_path), "engram", watch) is None
    assert len(seen[0].life.visits) == 2
    before = torch.get_num_threads()
    learner, probes = born
    nudged = replace(
        probes.probes[0], reward=probes.probes[0].reward * (1 + 1e-6)
    )  # as another summation order would
    other = TrainingProbes((nudged, *probes.probes[1:]), probes.given, probes.normalizer)
    assert torch.get_num_threads() == before
    fresh = believing()
    fresh.setup(learner, other, 0)
    life = live(fresh, around, Run(tmp_path), "engram")
    assert life is not None
    assert [v.recalled.row for v in life.visits] == [None, None, 0, 1]


@pytest.mark.parametrize("by", [2.0, -2.0])
def test_shares_sum_to_one_however_unlikely_all_episodes_are(by: float):
    episodes = made_up_episodes(WORTH_POLICY, WORTH_PARAMS[None], 1, 5, 1000)
    episodes = replace(episodes, reward=-torch.ones_like(episodes.reward))
    found = reweighted_return(WORTH_POLICY, moved(by), WORTH_PARAMS[None], episodes)
    assert found == pytest.approx(-1000.0)


@pytest.mark.parametrize("budget", [8, 9, 10])
def test_no_step_is_made_from_fewer_episodes_than_without_memory(
    tmp_path: Path, family: HalfCheetah, born: Born, budget: int
):
    steps = []
    for agent in (MetaInit(), Engram(memory=MemoryConfig(novelty=1e300))):
        around = world(family, born[0], "A", budget_episodes=budget)
        life = lived(agent, around, born, tmp_path / str(len(steps)))
        steps.append([point.episodes for point in life.visits[0].curve])
    assert steps[0] == steps[1]


def test_a_budget_that_the_probe_uses_up_still_teaches(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    life = lived(Engram(), world(family, born[0], "A", budget_episodes=2), born, tmp_path)
    (visit,) = life.visits
    assert visit.curve and starts(life) != [visit.end_mean]


def test_rows_taken_over_keep_what_was_said_of_them(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    first = believing()
    lived(first, world(family, born[0], "A"), born, tmp_path / "one")
    first.save_memory(tmp_path / "memory", {0: "task A"})
    heir = believing(open_from=str(tmp_path / "memory"))
    heir.setup(*born, 0)
    heir.save_memory(tmp_path / "more", {})
    rows = dict(MemoryFolder(tmp_path / "more").read())
    assert rows[0].info["label"] == "task A"


@pytest.mark.parametrize("kind", ["Descriptor", "OracleId"])
def test_oracle_keys_can_be_lived_with(tmp_path: Path, family: HalfCheetah, born: Born, kind: str):
    agent = believing()
    agent.key = {"_target_": f"agent.memory.key.given.{kind}"}
    life = lived(agent, world(family, born[0], "ABA"), born, tmp_path)
    assert [v.recalled.row for v in life.visits] == [None, None, 0]


def test_a_bandit_that_found_no_row_says_so():
    from agent.memory.reader.bandits import Bpr

    found = memory(0.0, candidates=1).candidates(query(0.0))
    trial = Bpr().open(found, torch.Generator())
    bad = made_up_episodes(POLICY, ANCHOR[None], 1, 1, HORIZON)
    bad = replace(bad, reward=torch.full_like(bad.reward, -50.0))
    while not bool(trial.done.all()):
        trial.propose()
        trial.observe(bad, torch.zeros(1, dtype=torch.bool))
    assert not bool(trial.recall().accepted)
    assert float(getattr(trial, "null", found.null)[0]) > 0.5


def test_a_row_of_another_run_acts_as_it_did_there(tmp_path: Path, family: HalfCheetah, born: Born):
    """Its parameters are of observations normalised by that run's statistics."""
    from agent.policy import PolicyConfig as Form
    from agent.train import Calibration, make_policy, new_learner, probe_twice

    first = believing()
    lived(first, world(family, born[0], "A"), born, tmp_path / "one")
    first.save_memory(tmp_path / "memory", {0: "task A"})
    other = new_learner(Maml(), make_policy(family, Form(hidden=[16]), False, "cpu"), 9)
    other.policy.normalizer.mean = torch.full((family.obs_size,), 0.5)
    other.policy.normalizer.var = torch.full((family.obs_size,), 4.0)
    probes, _ = probe_twice(other, family, Calibration(tasks=60, episodes=2), 1)
    heir = believing(open_from=str(tmp_path / "memory"))
    heir.setup(other, probes, 0)
    obs = torch.randn(1, 1, 5, family.obs_size, generator=torch.Generator().manual_seed(0))
    there = born[0].policy(first.store.bank.row(0).params[None], obs).mean
    here = other.policy(heir.store.bank.row(0).params[None], obs).mean
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_rows_of_a_network_of_another_form_are_refused(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    first = believing()
    lived(first, world(family, born[0], "A"), born, tmp_path / "one")
    first.save_memory(tmp_path / "memory", {})
    other = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[8, 8]))
    with pytest.raises(ValueError, match=r"row 0 is a network of layers .* this agent.s are"):
        list(inherited(tmp_path / "memory", other, "elsewhere"))
