"""``engram doctor``: what ships passes, and of agents made to break one rule it names that rule."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass

from agent.cli import configure, main
from agent.config import build
from agent.continual.agents import Finetune
from agent.continual.evaluation import Actor
from agent.continual.life import Evaluation, Life, Planned, Protocol, TaskInfo
from agent.continual.life import Visit as Lived
from agent.continual.visit import Visit
from agent.doctor import DoctorSettings, Examination, attempted, forgetting, gain
from agent.jobs import Workshop
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.progress import console
from agent.types import Trajectories
from envs.checks.finding import Finding
from tests import test_jobs

init = test_jobs.init


def examination(init: str, *overrides: str, **agents: str) -> Examination:
    """Of agents of this file on a short ``point_recall``."""
    typed = ["stream=point_recall", "stream.order=[A,B,A]", "stream.budget_episodes=14"]
    config = configure("doctor", [*typed, f"init={init}", "run=x", "seeds=[0]", *overrides])
    nodes = {name: {"_target_": target} for name, target in agents.items()}
    if nodes:
        config |= {"agents": list(nodes), "agent": nodes}
    settings = build(config, "", DoctorSettings)
    return Examination(Workshop(settings, init), settings)


def findings(init: str, *overrides: str, **agents: str) -> dict[str, Finding]:
    """Of all checks, by name."""
    checks = examination(init, "whole=false", *overrides, **agents).checks()
    return {name: attempted(check) for name, check in checks}


CHECKS = (
    "executed as declared, to the step",
    "same seed, same life",
    "evaluation is pure",
    "resumes exactly",
    "keeps what it has",
)


def test_what_ships_passes(init: str):
    found = findings(init)
    assert list(found) == ["tasks differ", "tasks return"] + [
        f"{name}: {check}" for name in ("engram", "finetune") for check in CHECKS
    ]
    assert {name: f.detail for name, f in found.items() if f.status != "ok"} == {}
    # 3 visits of 14 episodes of 20 steps; 2, 3 or 4 tasks at 4 checkpoints; 2 batches a visit.
    assert "840 env steps in 3 visits" in found[f"finetune: {CHECKS[0]}"].detail
    assert "after each of 6 batches" in found[f"finetune: {CHECKS[3]}"].detail
    assert "in A after 1 visits elsewhere" in found[f"finetune: {CHECKS[4]}"].detail


@dataclass(kw_only=True, config={"extra": "forbid"})
class Dicing(Finetune):
    """Draws from torch's global generator."""

    def _learn(self, episodes: Trajectories, *memory: Any) -> None:
        super()._learn(episodes, *memory)
        self.params = self.params + 0.01 * torch.randn_like(self.params)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Impure(Finetune):
    """Looks at the task that it is evaluated on, and remembers that it did."""

    def actor(self, visit: Visit) -> Actor:
        """Not on a copy."""
        self.score = float(visit.collect(self.params, 1).mean_return())
        return self.acting


@dataclass(kw_only=True, config={"extra": "forbid"})
class Drifting(Finetune):
    """Has a number of its own that it does not save."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """It starts at zero."""
        super().setup(learner, probes, seed)
        self._steps = 0

    def _learn(self, episodes: Trajectories, *memory: Any) -> None:
        super()._learn(episodes, *memory)
        self._steps += 1
        self.params = self.params + 0.01 * self._steps


@dataclass(kw_only=True, config={"extra": "forbid"})
class Lazy(Finetune):
    """Has seen enough after its first batch."""

    def improve(self, visit: Visit) -> None:
        """Once."""
        if visit.used == 0:
            super().improve(visit)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Boasting(Finetune):
    """Says that what it learned elsewhere changes nothing here."""

    isolates = True


@pytest.mark.parametrize(
    ("agent", "check", "words"),
    [
        (Dicing, CHECKS[1], "two lives with the same seed differ"),
        (Impure, CHECKS[2], "changed the agent: its actor() must work on a copy"),
        (Drifting, CHECKS[3], "interrupted and uninterrupted lives differ from visit 0 on"),
        (Lazy, CHECKS[0], "Lazy.improve() acted in none"),
        (Boasting, CHECKS[4], "in A after other tasks"),
    ],
)
def test_a_broken_rule_is_named(init: str, agent: type, check: str, words: str):
    every = findings(init, mine=f"{__name__}.{agent.__name__}")
    found = every[f"mine: {check}"]
    assert found.status == "failed" and words in found.detail and found.suggestion
    wrong = {name for name, finding in every.items() if finding.status == "failed"}
    # One that changes when it is measured, or stands still, can live through none of the checks.
    if agent in (Drifting, Boasting):
        assert wrong == {f"mine: {check}"}


def test_two_names_for_one_task_are_no_stream(init: str):
    same = "stream.tasks={A: {angle: 1.0}, B: {angle: 1.0}}"
    exam = examination(init, same, agents="agent.continual.agents.Finetune")
    found = exam.tasks_differ()
    assert found.status == "failed" and "no difference between A and B" in found.detail
    # Whoever fine-tunes has nothing to forget there.
    assert exam.worth_living().status == "warning"
    assert exam.tasks_return().status == "ok"


def test_a_stream_without_revisits_is_warned_of(init: str):
    exam = examination(init, "stream.order=[A,B,C]", agents="agent.continual.agents.Finetune")
    found = exam.tasks_return()
    assert found.status == "warning" and "no task is visited twice" in found.detail
    assert exam.tasks_differ().status == "ok"
    assert [v.task for v in exam.world().plan.visits] == ["A", "B", "C"]


def test_the_short_stream_goes_on_to_the_first_return(init: str):
    order = "stream.order=[A,B,C,D,B,A]"
    exam = examination(init, order, "visits=3", "episodes=4", a="agent.continual.agents.Finetune")
    plan = exam.world().plan
    assert [(v.task, v.episodes) for v in plan.visits] == [(name, 4) for name in "ABCDB"]
    exam.settings.visits = 2
    assert [v.task for v in exam.world().plan.visits] == ["A", "B", "C", "D"]


def test_hidden_boundaries_are_lived_with(init: str):
    told = "stream.told.boundary=hidden"
    found = findings(init, told, mine="agent.continual.agents.Finetune")
    assert {f.status for f in found.values()} == {"ok"}


def a_life(ends: list[float], matrix: dict[str, list[float]]) -> Life:
    """Visits to A, B and A again that end so, and R by task."""
    order = "ABA"
    protocol = Protocol(
        stream="s",
        family="f",
        horizon=1,
        split="heldout",
        seed=0,
        tasks={name: TaskInfo(id=name) for name in "AB"},
        schedule=[Planned(task=name, episodes=1) for name in order],
        eval_episodes=1,
    )
    visits = [
        Lived(visit=n, task=order[n], revisit=n == 2, episodes=1, end=[end])
        for n, end in enumerate(ends)
    ]
    entries = itertools.chain.from_iterable(
        [Evaluation(checkpoint=c, task=name, returns=[value]) for c, value in enumerate(values)]
        for name, values in matrix.items()
    )
    return Life(
        agent="a", status="done", protocol=protocol, visits=visits, evaluations=list(entries)
    )


def test_what_is_gained_and_forgotten_by_hand():
    life = a_life([10.0, 8.0, 9.0], {"A": [0.0, 10.0, 4.0, 9.0], "B": [1.0, 2.0, 8.0, 7.0]})
    assert gain(life) == pytest.approx((10 + (8 - 2)) / 2)
    # A: 10 - 4 when it comes back; B: 8 - 7 at the end; of 10 + 6 learned.
    assert forgetting(life) == pytest.approx((6 + 1) / 16)
    none = a_life([0.0, 1.0, 0.0], {"A": [0.0, 0.0, 0.0, 0.0], "B": [1.0, 2.0, 2.0, 2.0]})
    assert forgetting(none) == 0.0


def test_the_command_prints_all_and_fails_if_one_check_does(
    init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)
    typed = ["doctor", "stream=point_recall", f"init={init}", "agents=[finetune]", "seeds=[0]"]
    typed += ["stream.budget_episodes=6"]
    assert main(typed) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "stream point_recall" in out and "worth living" in out and "finetune: resumes" in out
    same = "stream.tasks={A: {angle: 1.0}, B: {angle: 1.0}, C: {angle: 2.0}}"
    assert main([*typed, same, "whole=false"]) == 1
    assert "failed: tasks differ" in capsys.readouterr().err
    assert main(["doctor", "stream=point_recall"]) == 1
    assert "init=: name a finished meta-training run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
