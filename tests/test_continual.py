"""Lifetimes: budgets are kept, evaluation teaches nothing, memory recalls, resuming is exact."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.adapter import Pull
from agent.continual.agents import Finetune, MetaInit
from agent.continual.cohort import Cohort, live_all, summarise
from agent.continual.engram import Engram
from agent.continual.lifetime import Stream, World, intervals, live, measure, metrics
from agent.continual.visit import Visit
from agent.learners.maml import Maml
from agent.memory.bank import BankConfig
from agent.memory.decide import WriteConfig
from agent.memory.memory import MemoryConfig
from agent.memory.probes import TrainingProbes
from agent.policy import PolicyConfig
from agent.run import Run, RunError
from agent.seeding import generator
from agent.train import Calibration, make_policy, new_learner, probe_twice
from envs.half_cheetah import HalfCheetah
from envs.task import Param

BUDGET = 14


@pytest.fixture(scope="module")
def family() -> HalfCheetah:
    """A cheetah of very different motors, 20 steps an episode: easily recognised and simulated."""
    gears = {
        f"gear_{name}": Param(to=f"model:actuator_gear[{name}]", op="scale", low=-1.0, high=1.0)
        for name in ("bthigh", "fthigh", "bshin")
    }
    return HalfCheetah(name="motors", horizon=20, params=gears)


@pytest.fixture(scope="module")
def born(family: HalfCheetah) -> tuple[Maml, TrainingProbes]:
    """An untrained meta-initialisation, and probes to tell tasks by."""
    learner = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[16]), False, "cpu"), 0)
    assert isinstance(learner, Maml)
    probes, _ = probe_twice(learner, family, Calibration(tasks=60, episodes=2), 0)
    return learner, probes


def believing(reader: str = "Top1", **settings: Any) -> Engram:
    """An Engram for episodes of 20 steps, whose returns are noise: it writes whatever it learned.

    And it believes its keys, as there is nothing to hold a trial against.
    """
    memory = MemoryConfig(write=WriteConfig(when="novelty"), bank=BankConfig(codec="float32"))
    node = {"_target_": f"agent.memory.reader.simple.{reader}"}
    return Engram(reader=node, memory=memory, **settings)


def world(family: HalfCheetah, learner: Maml, order: str = "ABAB", seed: int = 0) -> World:
    stream = Stream(name="test", order=list(order), budget_episodes=BUDGET, eval_episodes=2)
    return World(stream, family, learner.policy, seed)


def lived(
    agent: Any, around: World, born: tuple[Maml, TrainingProbes], folder: Path
) -> list[dict[str, Any]]:
    agent.setup(*born, around.seed)
    records = live(agent, around, Run(folder))
    assert records is not None
    return records


def test_every_agent_gets_the_same_budget_to_the_step(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    for agent in (Engram(), MetaInit(), Finetune(), MetaInit(episodes=5)):
        records = lived(agent, world(family, born[0]), born, tmp_path / str(id(agent)))
        assert [r["env_steps"] for r in records] == [BUDGET * 20] * 4
        assert records[0]["curve"][-1]["episodes"] == BUDGET


def test_a_visit_refuses_more_than_its_budget(
    family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    learner = born[0]
    params, task = learner.theta.detach()[None], family.sample(1, generator(0, "stream"))[0]
    with Visit(family, task, learner.policy, 3, generator(0, "visit")) as visit:
        visit.collect(params, 2)
        with pytest.raises(ValueError, match="asked for 2 episodes, but the visit has 1 left"):
            visit.collect(params, 2)


def test_being_measured_changes_nothing_and_depends_on_the_policy_alone(
    family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    agent, around = Engram(), world(family, born[0])
    agent.setup(*born, 0)
    task = around.stream.draw(family, 0)["A"]
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    scores = [measure(agent.params, around, task) for _ in range(2)]
    assert scores[0] == scores[1]
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())
    assert measure(agent.params + 0.1, around, task) != scores[0]


def test_what_tells_the_agents_apart(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    around = world(family, born[0])
    meta = lived(MetaInit(), around, born, tmp_path / "meta")
    tuned = lived(Finetune(), around, born, tmp_path / "tuned")
    assert meta[2]["start"] == meta[0]["start"]  # back to the meta-initialisation
    assert tuned[2]["start"] != tuned[0]["start"]  # on from where it was
    assert tuned[0] | {"seconds": 0, "physics_s": 0} == meta[0] | {"seconds": 0, "physics_s": 0}


def test_memory_recalls_on_revisits_and_not_on_first_visits(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    agent, around = believing(), world(family, born[0])
    records = lived(agent, around, born, tmp_path)
    assert [r["recalled"]["row"] for r in records] == [None, None, 0, 1]
    assert [r["recalled"].get("of_visit") for r in records[2:]] == [0, 1]
    assert [r["written"]["rows"] for r in records] == [1, 2, 2, 2]
    # What is stored is the policy that acted last, and that is where the re-visit starts.
    tasks = around.stream.draw(family, 0)
    first = lived(believing(), world(family, born[0], "A"), born, tmp_path / "first")
    assert first[0]["written"]["score"] == records[0]["written"]["score"]
    again = believing()
    again.setup(*born, 0)
    saved = Run(tmp_path / "first").checkpoints.load()
    assert saved is not None
    again.load_state_dict(saved[0])
    stored = again.store.bank.row(0).params[None]
    assert measure(stored, around, tasks["A"]) == records[2]["start"] != records[0]["start"]
    assert [r["curve"][0]["episodes"] for r in records] == [6, 6, 2 + 6, 2 + 6]
    assert len(agent.store) == len(agent.memory_facts()) == 2


def test_engram_that_can_recall_nothing_is_the_agent_without_memory(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    # Tasks never met count so much that nothing is believed to come back.
    around = world(family, born[0])
    closed = lived(Engram(memory=MemoryConfig(novelty=1e300)), around, born, tmp_path / "closed")
    meta = lived(MetaInit(), around, born, tmp_path / "meta")
    assert [r["start"] for r in closed] == [r["start"] for r in meta]
    assert all(r["recalled"]["row"] is None for r in closed)
    # The probe is part of the first batch: both learn from as many episodes in as many steps.
    steps = [[point["episodes"] for point in r["curve"]] for r in (closed[0], meta[0])]
    assert steps[0] == steps[1] == [6, 14]  # 8 left are one step: 2 would say too little


def test_the_literal_rule_pulls_without_jumping(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    ends = []
    for pull in (Pull(), Pull(kind="constant", beta=0.0), Pull(kind="constant", beta=0.9)):
        agent, folder = believing("SeedLiteral", pull=pull), tmp_path / str(len(ends))
        records = lived(agent, world(family, born[0], "AA"), born, folder)
        assert records[1]["start"] == records[0]["start"]
        assert records[1]["recalled"]["likeliest"] == 0 and records[1]["recalled"]["row"] is None
        ends.append(records[1]["end"])
    assert ends[0] == ends[1]  # beta = 0 is bit-equal to no pull
    assert ends[0] != ends[2]


def test_trials_are_charged_and_what_they_showed_is_told(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    agent = believing()
    agent.reader = {"_target_": "agent.memory.reader.guarded.Guarded"}
    records = lived(agent, world(family, born[0], "ABAB"), born, tmp_path)
    for record in records:
        assert record["env_steps"] == BUDGET * 20
        tried = record["recalled"]["tried"]
        if record["recalled"]["row"] is not None:
            assert record["recalled"]["row"] in [each["row"] for each in tried]
        assert len(tried) <= 3
    assert not records[0]["recalled"]["tried"]  # there was nothing to try


@pytest.mark.parametrize("kind", [Engram, MetaInit, Finetune])
def test_stopped_between_visits_and_continued_equals_uninterrupted(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes], kind: type[MetaInit]
):
    around = world(family, born[0])
    whole = lived(kind(), around, born, tmp_path / "whole")
    for visits in (1, 2, 3):
        agent, folder, done = kind(), Run(tmp_path / str(visits)), []
        agent.setup(*born, 0)
        assert (
            live(agent, around, folder, done.append, lambda d=done, v=visits: len(d) == v) is None
        )
        fresh = kind()
        fresh.setup(*born, 0)
        records = live(fresh, around, folder)
        assert records is not None
        assert [timeless(r) for r in records] == [timeless(r) for r in whole]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("seconds", "physics_s")}


def cohort(family: HalfCheetah, born: tuple[Maml, TrainingProbes], folder: Path) -> Cohort:
    around = world(family, born[0], "ABA")
    return Cohort(around.stream, family, *born, run=Run(folder))


def test_a_cohort_is_resumed_life_by_life_and_summarised(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    together = cohort(family, born, tmp_path)
    agents = {"engram": Engram(), "meta_init": MetaInit()}
    first = live_all(agents, [0], together)
    both = live_all(agents, [0, 1], together)
    assert [life.lived for life in first] == [True, True]
    assert [life.lived for life in both] == [False, False, True, True]
    summary = summarise(both, together)
    assert summary["env_steps"] == 2 * 2 * 3 * BUDGET * 20
    assert summary["seeds"] == [0, 1]
    visits = summary["agents"]["engram"]["visits"]
    assert [v["revisit"] for v in visits] == [False, False, True] * 2
    other = {"engram": Engram(memory=MemoryConfig(novelty=7.0))}
    with pytest.raises(RunError, match=r"agent\.memory\.novelty=1\.0 \(now 7\.0\)"):
        live_all(other, [0], together)


def test_lifetimes_of_another_initialisation_are_not_continued(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    live_all({"meta_init": MetaInit()}, [0], cohort(family, born, tmp_path))
    other = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[16]), False, "cpu"), 9)
    with pytest.raises(RunError, match="meta_initialisation"):
        live_all(
            {"meta_init": MetaInit()},
            [0],
            dataclasses.replace(cohort(family, born, tmp_path), learner=other),
        )


def test_a_return_that_could_not_be_measured_stays_visible():
    record = {"seed": 0, "revisit": False, "start": None, "end": 3.0}  # null, from a file
    found = metrics([record, record | {"start": 1.0, "end": 5.0}])
    assert found["first.end"] == 4.0 and math.isnan(found["first.start"])


def test_metrics_and_intervals_by_hand():
    def record(seed: int, revisit: bool, start: float, end: float) -> dict[str, Any]:
        return {"seed": seed, "revisit": revisit, "start": start, "end": end}

    records = [
        record(0, False, 0.0, 10.0),
        record(0, True, 8.0, 12.0),
        record(1, False, 2.0, 14.0),
        record(1, True, 12.0, 20.0),
    ]
    assert metrics(records) == {
        "first.start": 1.0,
        "first.end": 12.0,
        "revisit.start": 10.0,
        "revisit.end": 16.0,
    }
    # two lifetimes 8 and 12: mean 10, se 2, t(.975, 1) = 12.706
    interval = intervals(records)["revisit.start"]
    assert interval == pytest.approx([10 - 25.412, 10 + 25.412], abs=1e-3)
    assert intervals(records[:2])["revisit.start"] is None
