"""Meta-training as a loop: resumed equals uninterrupted, and equal seeds give equal numbers."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agent import train as training
from agent.cli import main
from agent.learners.maml import Maml
from agent.memory.key.base import IndistinguishableTasksError
from agent.memory.key.likelihood import Likelihood
from agent.policy import PolicyConfig
from agent.progress import Live, Stopped, duration
from agent.run import Run
from agent.train import (
    BatchSize,
    Budget,
    Calibration,
    load_probes,
    make_policy,
    new_learner,
    train,
)
from envs.navigation import Navigation
from envs.task import Param, Task

SIZE = BatchSize(tasks=3, episodes=4)  # 2 x 3 x 4 x 20 = 480 steps an iteration
STEPS = 480


def run_to(folder: Path, family: Navigation, iterations: int, seed: int = 0, **other: Any) -> Maml:
    policy = make_policy(family, PolicyConfig(hidden=[8]), False, "cpu")
    learner = new_learner(Maml(), policy, seed)
    settings: dict[str, Any] = {
        "size": SIZE,
        "budget": Budget(env_steps=iterations * STEPS),
        "calibration": Calibration(tasks=40, episodes=2),
        "checkpoint_every": 100,
        "seed": seed,
    }
    train(learner, family, Run(folder), **(settings | other))
    assert isinstance(learner, Maml)
    return learner


def measured(folder: Path) -> list[dict[str, float]]:
    """The logged metrics, without those that depend on the machine's speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")}
        for line in lines
    ]


def test_resumed_equals_uninterrupted(tmp_path: Path, navigation: Navigation):
    run_to(tmp_path / "whole", navigation, 4)
    run_to(tmp_path / "halves", navigation, 2)
    run_to(tmp_path / "halves", navigation, 4)
    assert measured(tmp_path / "halves") == measured(tmp_path / "whole")
    states = [Run(tmp_path / name).checkpoints.load() for name in ("whole", "halves")]
    assert states[0] is not None and states[1] is not None
    assert states[0][0].keys() == states[1][0].keys()
    assert {"theta", "rates", "obs.mean", "probes.0.obs", "adam.0.exp_avg"} <= states[0][0].keys()
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name


def test_a_signal_stops_at_an_iteration_and_resuming_loses_nothing(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    run_to(tmp_path / "whole", navigation, 3)
    iteration = training.meta_iteration

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # in the middle of the second iteration
        return iteration(*arguments)

    monkeypatch.setattr(training, "meta_iteration", interrupted)
    with pytest.raises(Stopped, match="after iteration 2; saved") as stopped:
        run_to(tmp_path / "cut", navigation, 3)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    run_to(tmp_path / "cut", navigation, 3)
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")


def test_a_crash_goes_back_to_the_last_checkpoint(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    run_to(tmp_path / "whole", navigation, 5)
    iteration = training.meta_iteration

    def crashing(*arguments: Any) -> Any:
        if arguments[-1] == 3:
            raise RuntimeError("power cut")
        return iteration(*arguments)

    monkeypatch.setattr(training, "meta_iteration", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        run_to(tmp_path / "cut", navigation, 5, checkpoint_every=2)
    assert len(measured(tmp_path / "cut")) == 3  # one line more than the checkpoint knows of
    monkeypatch.undo()
    run_to(tmp_path / "cut", navigation, 5, checkpoint_every=2)
    assert measured(tmp_path / "cut") == measured(tmp_path / "whole")


def test_same_seed_same_metrics_other_seed_others(tmp_path: Path, navigation: Navigation):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name))
        run_to(tmp_path / name, navigation, 2, seed)
    assert measured(tmp_path / "a") == measured(tmp_path / "b")
    assert measured(tmp_path / "a") != measured(tmp_path / "c")


def test_minutes_are_a_budget_that_a_continued_run_goes_on_with(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    iteration = training.meta_iteration

    def slow(*arguments: Any) -> Any:
        return iteration(*arguments) | {"seconds": 20.0}

    monkeypatch.setattr(training, "meta_iteration", slow)
    for minutes, iterations in ((0.5, 2), (1.0, 3), (1.0, 3), (1.4, 5)):
        run_to(tmp_path, navigation, 1, budget=Budget(env_steps=None, minutes=minutes))
        progress = Run(tmp_path).progress()
        assert progress is not None
        assert (progress["iteration"], progress["seconds"]) == (iterations, 20.0 * iterations)
    assert [line["iteration"] for line in measured(tmp_path)] == [1, 2, 3, 4, 5]
    both = Budget(env_steps=6 * STEPS, minutes=60)
    run_to(tmp_path, navigation, 1, budget=both)
    assert len(measured(tmp_path)) == 6  # whichever is spent first


def test_the_share_of_a_budget_is_that_of_what_is_spent_first():
    progress = {"env_steps": 250, "seconds": 30.0}
    assert Budget(env_steps=1000).share(progress) == 0.25
    assert Budget(env_steps=None, minutes=2).share(progress) == 0.25
    assert Budget(env_steps=1000, minutes=1).share(progress) == 0.5
    assert Budget(env_steps=500, minutes=10).share(progress) == 0.5
    with pytest.raises(ValueError, match="give env_steps or minutes"):
        Budget(env_steps=None)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What would be printed into a file."""
    text = io.StringIO()
    monkeypatch.setattr("agent.progress.console", Console(file=text, width=200))
    return text


def test_progress_says_how_long_it_will_take(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("agent.progress.time.monotonic", lambda: now[0])
    by_steps, by_time = Live("work", 1000), Live("work", None)
    with by_steps, by_time:
        for seconds, steps, share in ((11, 400, 0.2), (47, 500, 0.3), (83, 600, 0.4)):
            now[0] = seconds
            by_steps.update(steps, "well")
            by_time.update(steps, "well", share)
        now[0] = 84  # neither due nor over
        by_steps.update(601, "well")
        by_time.update(1400, "done", 1.01)
    lines = shown.getvalue().splitlines()
    assert lines[:2] == [
        "work: 400/1,000 env steps | well",
        "work: 400 env steps, 20% of the time | well",
    ]
    # A tenth in 36 s: five tenths take 180 s, seven 252 s.
    assert lines[2:4] == [
        "work: 500/1,000 env steps | well | 3 min left",
        "work: 500 env steps, 30% of the time | well | 4 min left",
    ]
    assert lines[4].endswith("well | 2 min left") and lines[5].endswith("well | 4 min left")
    assert lines[6:] == ["work: 1,400 env steps, 100% of the time | done"]


def test_durations_are_told_in_two_units():
    told = [duration(s) for s in (0.4, 59.4, 59.6, 3569, 3571, 3660 * 25)]
    assert told == ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "25 h 25 min"]


def test_tensorboard_gets_every_metric_and_forgets_what_a_crash_undid(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard extra"
    )
    run_to(tmp_path / "plain", navigation, 5)
    assert not (tmp_path / "plain/tensorboard").exists()
    iteration = training.meta_iteration

    def crashing(*arguments: Any) -> Any:
        if arguments[-1] == 3:
            raise RuntimeError("power cut")
        return iteration(*arguments) | ({"train/meta_loss": 99.0} if arguments[-1] == 2 else {})

    monkeypatch.setattr(training, "meta_iteration", crashing)
    board: dict[str, Any] = {"checkpoint_every": 2, "tensorboard": True}
    with pytest.raises(RuntimeError, match="power cut"):
        run_to(tmp_path / "run", navigation, 5, **board)
    monkeypatch.undo()
    run_to(tmp_path / "run", navigation, 5, **board)
    assert measured(tmp_path / "run") == measured(tmp_path / "plain")
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    logged = measured(tmp_path / "run")
    assert {"train/meta_loss", "train/return_after"} <= set(events.Tags()["scalars"])
    for name in ("train/meta_loss", "train/return_after"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(line["env_steps"], pytest.approx(line[name])) for line in logged]


def test_a_missing_tensorboard_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("agent.tensorboard.find_spec", lambda name: None)
    arguments = ["train", "env=navigation", f"run={tmp_path}/r", "tensorboard=true"]
    assert main(arguments) == 2
    assert "pip install 'engram-rl[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_every_step_is_counted(tmp_path: Path, navigation: Navigation):
    run_to(tmp_path, navigation, 2)
    progress = Run(tmp_path).progress()
    assert progress is not None
    assert progress["env_steps"] == 2 * STEPS
    assert progress["key_steps"] == 40 * 2 * 2 * 20  # tasks, probes, episodes, steps


def test_a_finished_run_does_nothing_more(tmp_path: Path, navigation: Navigation):
    run_to(tmp_path, navigation, 2)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.safetensors"))
    run_to(tmp_path, navigation, 2)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.safetensors")) == before


def test_a_family_whose_tasks_cannot_be_told_apart_trains_but_has_no_keys(tmp_path: Path):
    only = {"angle": Param(to="attr:angle", choices=[1.0])}
    one = Navigation(name="one", horizon=20, params=only)
    learner = run_to(tmp_path, one, 2, calibration=Calibration(tasks=40, episodes=2))
    progress = Run(tmp_path).progress()
    assert progress is not None and progress["iteration"] == 2
    probes = load_probes(Run(tmp_path), learner)
    with pytest.raises(IndistinguishableTasksError, match="hardly more alike"):
        probes.fit(Likelihood())


def test_an_unfinished_run_has_no_probes(tmp_path: Path, navigation: Navigation):
    learner = new_learner(Maml(), make_policy(navigation, PolicyConfig(), False, "cpu"), 0)
    with pytest.raises(FileNotFoundError, match="no finished meta-training"):
        load_probes(Run(tmp_path), learner)


def test_only_training_tasks_are_trained_and_calibrated_on(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    opened: list[list[Task]] = []
    simulators = Navigation.open

    def spy(self: Navigation, tasks: list[Task], copies: int) -> Any:
        opened.append(list(tasks))
        return simulators(self, tasks, copies)

    monkeypatch.setattr(Navigation, "open", spy)
    run_to(tmp_path, navigation, 20)
    assert [len(tasks) for tasks in opened] == [SIZE.tasks] * 20 + [40]
    splits = {navigation.split_of(task.values) for tasks in opened for task in tasks}
    assert splits == {"train"}
    assert len({task.id for tasks in opened[:20] for task in tasks}) == 20 * SIZE.tasks


def test_checkpoints_come_as_often_as_asked_for(
    tmp_path: Path, navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    iteration = training.meta_iteration

    def crashing(*arguments: Any) -> Any:
        if arguments[-1] == 5:
            raise RuntimeError("power cut")
        return iteration(*arguments)

    monkeypatch.setattr(training, "meta_iteration", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        run_to(tmp_path, navigation, 9, checkpoint_every=2)
    progress = Run(tmp_path).progress()
    assert progress is not None and progress["iteration"] == 4
