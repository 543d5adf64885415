"""What tells agents and lives apart; locks, threads, signals and sizes that do not fit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.cli import main
from agent.continual.agents import Finetune, MetaInit
from agent.continual.cohort import live_one
from agent.continual.diary import Diary
from agent.continual.life import Life, Protocol, Recalled
from agent.continual.lifetime import live
from agent.continual.stream import Stream
from agent.continual.visit import Visit
from agent.doctor import timeless
from agent.learners.maml import Maml
from agent.memory.probes import TrainingProbes
from agent.progress import stop_on_signals
from agent.run import Run
from envs.half_cheetah import HalfCheetah
from envs.task import Param, TaskError
from tests import test_continual
from tests.test_continual import believing, cohort, lived, world

family, born = test_continual.family, test_continual.born  # the fixtures

TRAIN = ["train", "env=navigation", "budget.env_steps=500", "batch.tasks=3", "batch.episodes=4"]
LIVE = ["continual", "stream=point_recall", "init=a", "run=b", "seeds=[0]", "agents=[meta_init]"]
LIVE += ["references=null"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_that_is_worked_in_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]):
    with Run("a").lock():
        assert main([*TRAIN, "run=a"]) == 1
    assert "a: another process is working in this run folder" in capsys.readouterr().err
    assert [p.name for p in (folder / "a").iterdir()] == [".lock"]
    assert main([*TRAIN, "run=a"]) == 0
    # A stream's folder is shared, its lifetimes are not.
    with Run("b").lock(), Run("b/lifetimes/meta_init-0").lock():
        assert main([*LIVE, "stream.budget_episodes=4"]) == 0
    assert "1 lifetimes are being lived by other processes" in capsys.readouterr().out
    assert [p.name for p in (folder / "b/lifetimes/meta_init-0").iterdir()] == [".lock"]


def test_a_stream_of_another_robot_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*TRAIN, "run=a"]) == 0
    assert main([*LIVE, "stream=cheetah_faults"]) == 2
    error = capsys.readouterr().err
    assert "(observation, action) sizes (17, 6)" in error and "'navigation' with (2, 2)" in error
    assert not (folder / "b/lifetimes").exists()


def test_torch_works_with_as_many_threads_as_asked_for(folder: Path):
    before = torch.get_num_threads()
    try:
        assert main([*TRAIN, "run=a", "threads=2"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_first_signal_asks_the_second_insists_and_the_handlers_are_given_back():
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.requested, stop.signal) == (True, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def spied(patch: pytest.MonkeyPatch) -> tuple[list[tuple[int, int]], list[float]]:
    """Number and episodes of each adaptation step made from now on; returns of each collection."""
    steps: list[tuple[int, int]] = []
    returns: list[float] = []
    step, collect = Maml.step, Visit.collect

    def spy_step(self: Maml, params: Any, episodes: Any, n: int, *more: Any) -> torch.Tensor:
        steps.append((n, episodes.reward.shape[1]))
        return step(self, params, episodes, n, *more)

    def spy_collect(self: Visit, *arguments: Any, **named: Any) -> Any:
        found = collect(self, *arguments, **named)
        if type(self) is Visit:  # and not an evaluation's
            returns.append(float(found.mean_return()))
        return found

    patch.setattr(Maml, "step", spy_step)
    patch.setattr(Visit, "collect", spy_collect)
    return steps, returns


def test_which_steps_each_agent_makes_from_how_many_episodes(
    tmp_path: Path,
    family: HalfCheetah,
    born: tuple[Maml, TrainingProbes],
    monkeypatch: pytest.MonkeyPatch,
):
    around = world(family, born[0], "AA")
    steps, _ = spied(monkeypatch)
    lived(MetaInit(), around, born, tmp_path / "meta")
    assert steps == [(0, 6), (1, 8)] * 2
    steps.clear()
    lived(Finetune(), around, born, tmp_path / "tuned")
    assert steps == [(0, 6), (1, 8), (2, 6), (3, 8)]
    steps.clear()
    # First visit: the probe is learned from. Re-visit: it is not, nor is the meta-learned step 0
    # taken, which is for theta_0 alone.
    lived(believing(), around, born, tmp_path / "engram")
    assert steps == [(0, 6), (1, 8), (1, 6), (2, 6)]


def test_a_policy_is_written_with_the_record_of_its_own_episodes(
    tmp_path: Path,
    family: HalfCheetah,
    born: tuple[Maml, TrainingProbes],
    monkeypatch: pytest.MonkeyPatch,
):
    _, returns = spied(monkeypatch)
    agent, written = believing(), []
    agent.setup(*born, 0)
    write = agent.store.write
    monkeypatch.setattr(
        agent.store, "write", lambda out, measure: written.append(out) or write(out, measure)
    )
    live(agent, world(family, born[0], "A"), Run(tmp_path), "engram")
    (outcome,) = written
    assert outcome.row.record.mean == pytest.approx(returns[-1], rel=1e-5)
    assert outcome.row.record.n == 8 and outcome.meta_init.n == 2
    assert outcome.row.baseline == returns[0] == pytest.approx(outcome.meta_init.mean, rel=1e-5)
    # The policy of the record is the one before the last step; kept is that one or the next.
    assert agent._acted is not None
    acted, episodes = agent._acted
    assert float(episodes.mean_return()) == pytest.approx(returns[-1], rel=1e-5)
    assert not torch.equal(acted, agent.params)
    assert any(torch.equal(outcome.row.params, each[0]) for each in (acted, agent.params))


def test_what_was_remembered_is_still_there_after_a_restart(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    agent, around = believing(), world(family, born[0], "AB")
    lived(agent, around, born, tmp_path)
    saved = Run(tmp_path).checkpoints.load()
    assert saved is not None
    fresh = believing()
    fresh.setup(*born, 0)
    fresh.load_state_dict(saved[0])
    assert fresh.memory_facts() == agent.memory_facts() and len(fresh.store) == 2
    query = agent.store.bank.snapshot().keys
    one, other = fresh.store.candidates(query), agent.store.candidates(query)
    assert torch.equal(one.params, other.params) and torch.equal(one.weight, other.weight)


def test_a_life_does_not_depend_on_the_lives_before_it(
    tmp_path: Path, family: HalfCheetah, born: tuple[Maml, TrainingProbes]
):
    agent, together = Finetune(), cohort(family, born)
    lives = [live_one("agent", agent, n, together, tmp_path / str(n)) for n in (0, 1)]
    alone = lived(Finetune(), world(family, born[0], "ABA", seed=1), born, tmp_path / "alone")
    assert lives[1] is not None and timeless(lives[1])["visits"] == timeless(alone)["visits"]
    assert lives[1].evaluations == alone.evaluations


def test_a_stream_draws_distinct_tasks_of_its_split(family: HalfCheetah):
    for split in ("train", "validation", "heldout"):
        stream = Stream(name="s", order=["A", "B", "C"], split=split)
        tasks = stream.plan(family, 0).tasks.values()
        assert {family.split_of(task.values) for task in tasks} == {split}
    params = {
        "direction": Param(to="attr:direction", choices=[-1.0, 1.0]),
        "gear_bthigh": Param(to="model:actuator_gear[bthigh]", op="scale", choices=[-1.0, 0.2]),
    }
    four = HalfCheetah(name="four", horizon=20, params=params)
    for seed in range(5):
        stream = Stream(name="s", order=["A", "B", "C", "D"])
        assert len({task.id for task in stream.plan(four, seed).tasks.values()}) == 4
    with pytest.raises(TaskError, match="draws 5 tasks, but 'four' has only 4"):
        Stream(name="s", order=["A", "B", "C", "D", "E"]).plan(four, 0)


def test_a_recalled_row_is_traced_to_the_visit_that_wrote_it_last():
    order, rows = "ABCA", [0, 1, 0, None]
    protocol = Protocol.model_validate(
        {
            "stream": "s",
            "family": "f",
            "horizon": 1,
            "split": "heldout",
            "seed": 0,
            "tasks": {name: {"id": name} for name in "ABC"},
            "schedule": [{"task": name, "episodes": 1} for name in [*order, "B"]],
            "eval_episodes": 1,
        }
    )
    diary = Diary(Life(agent="a", status="stopped", protocol=protocol))
    for row in rows:
        diary.over({}, 0.0, {"row": row}, {})
    found: dict[int, Recalled] = {}
    for row in (0, 1, 7):
        facts = {"row": row, "posterior": {0: 0.5, 7: 0.25, 1: 0.125}}
        diary.recalled(facts, 0.0)
        found[row] = diary.current.recalled
    assert [(r.of_visit, r.of_task) for r in found.values()] == [(2, "C"), (1, "B"), (None, None)]
    # Row 7 is inherited: of a task that nobody here knows.
    assert found[0].weights == {"C": 0.5, "B": 0.125} and found[0].ranked == ["C", "B"]
    diary.recalled({}, 0.0)
    assert diary.current.recalled == Recalled()
