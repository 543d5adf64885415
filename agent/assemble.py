"""Settings to objects: the parts that commands are put together from."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from agent import train as training
from agent.config import ConfigError, build, resolved
from agent.continual.lifetime import Stream
from agent.learners.base import MetaLearner
from agent.run import Run, RunError
from agent.settings import ContinualSettings, Machine, TrainSettings
from envs.task import TaskDistribution


@dataclasses.dataclass(frozen=True)
class Trained:
    """A meta-learner in a state, and the family it was or is trained on."""

    learner: MetaLearner
    family: TaskDistribution
    config: dict[str, Any]
    """The settings it was made from, with every default filled in."""


def untrained(settings: TrainSettings) -> Trained:
    """A learner in its initial state, on the device that the settings ask for."""
    device = set_up(settings)
    family = build_family(settings.env, "env")
    learner = build(settings.learner, "learner")
    policy = training.make_policy(family, settings.policy, learner.sees_task, device)
    config = dataclasses.asdict(settings) | {
        "env": resolved(settings.env, family),
        "learner": resolved(settings.learner, learner),
    }
    return Trained(training.new_learner(learner, policy, settings.seed), family, config)


def load_trained(run: Run, machine: Machine) -> Trained:
    """The learner of a run folder as its last checkpoint left it, on the device asked for now."""
    path = run.folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run.folder}: not a meta-training run (no config.yaml); make one with: "
            f"engram train run={run.folder}"
        )
    saved = yaml.safe_load(path.read_text())
    if not isinstance(saved, dict):
        raise RunError(f"{path}: expected settings, found {type(saved).__name__}; was it edited?")
    here = {"device": machine.device, "threads": machine.threads}
    trained = untrained(build(saved | here, "", TrainSettings))
    if training.restore(trained.learner, run) is None:
        raise FileNotFoundError(
            f"{run.folder}: has no checkpoint yet; run its training command first"
        )
    return trained


def build_family(node: object, path: str) -> TaskDistribution:
    """The family of tasks that a node describes."""
    family = build(node, path)
    if not isinstance(family, TaskDistribution):
        raise ConfigError(f"{path}: {type(family).__name__} is not a TaskDistribution")
    return family


def build_stream(settings: ContinualSettings) -> tuple[TaskDistribution, Stream]:
    """The stream, and the family that its tasks come from."""
    node = dict(settings.stream)
    family = build_family(node.pop("family", None), "stream.family")
    return family, build(node, "stream", Stream)


def check_fits(trained_on: TaskDistribution, met: TaskDistribution) -> None:
    """The stream's robot must have the sizes of the one that was trained for."""
    sizes = [(f.obs_size, f.action_size) for f in (trained_on, met)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"stream.family: {met.name!r} has (observation, action) sizes {sizes[1]}, but the "
            f"meta-initialisation was trained on {trained_on.name!r} with {sizes[0]}; "
            "train one on the stream's robot (env=...)"
        )


def set_up(machine: Machine) -> torch.device:
    """The import path, torch's threads, and the device, which is chosen here and nowhere else."""
    machine.import_path = [str(Path(f).expanduser().resolve()) for f in machine.import_path]
    # Appended, never put first: a user's own 'envs' must not stand before ours.
    sys.path.extend(folder for folder in machine.import_path if folder not in sys.path)
    torch.set_num_threads(machine.threads)
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': torch finds no CUDA device here; use auto or cpu")
    if machine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(machine.device)
