"""Meta-training as a loop: resumed equals uninterrupted, and equal seeds give equal numbers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from agent import train as training
from agent.learners.maml import Maml
from agent.memory.key.base import IndistinguishableTasksError
from agent.memory.key.likelihood import Likelihood
from agent.policy import PolicyConfig
from agent.progress import Stopped
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
