"""Settings to objects: the parts that commands are put together from."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from agent import train as training
from agent.config import ConfigError, build, resolved
from agent.continual.stream import Stream
from agent.files import read_yaml
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
    policy = training.make_policy(
        family, settings.policy, learner.sees_task, device, learner.make_policy
    )
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
    saved = read_yaml(path)
    set_up(machine)  # the import path of now, beside the one that the run remembers
    here = {"device": machine.device, "threads": machine.threads}
    try:
        trained = untrained(build(saved | here, "", TrainSettings))
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}\nThe run was made by another version of Engram, whose settings these "
            "were, or the file was edited; versions.json beside it tells"
        ) from None
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


def build_agents(settings: ContinualSettings) -> dict[str, Any]:
    """The agents named, each with its settings, and a check that every seed is one lifetime."""
    for name in settings.agent:
        if name not in settings.agents:
            raise ConfigError(f"agent.{name}: no such agent here; agents={settings.agents}")
    if len(set(settings.lifetimes)) < len(settings.lifetimes):
        raise ConfigError(f"seeds={settings.seeds}: a seed that is given twice is one lifetime")
    return {name: build(settings.agent[name], f"agent.{name}") for name in settings.agents}


def check_oracle(trained: Trained, oracle: Trained) -> None:
    """What stands beside an agent as its oracle must be one, of the same family."""
    if not oracle.learner.sees_task:
        raise RunError(
            f"oracle={oracle.config['run']}: is no oracle; train one with learner=oracle"
        )
    if oracle.config["env"] != trained.config["env"]:
        raise RunError(
            f"oracle=: that oracle was trained on {oracle.family.name!r} with other settings than "
            f"the run's {trained.family.name!r}"
        )


def check_not_oracle(learner: MetaLearner, path: str) -> None:
    """An oracle cannot be evaluated or sent through a stream as if it were an agent."""
    if learner.sees_task:
        raise RunError(
            f"{path}: is an oracle, which is told the task; expected an agent's learner (a run "
            "that it is a reference for is evaluated with oracle=)"
        )


def check_fits(trained_on: TaskDistribution, met: TaskDistribution) -> None:
    """The stream's robot must have the sizes of the one that was trained for."""
    sizes = [(f.obs_size, f.action_size) for f in (trained_on, met)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"stream.family: {met.name!r} has (observation, action) sizes {sizes[1]}, but the "
            f"meta-initialisation was trained on {trained_on.name!r} with {sizes[0]}; "
            "train one on the stream's robot (env=...)"
        )


def extend_path(folders: list[str]) -> list[str]:
    """Append folders to the import path; the folders in full.

    Never put first: a user's own 'envs' must not stand before ours.
    """
    absolute = [str(Path(folder).expanduser().resolve()) for folder in folders]
    sys.path.extend(folder for folder in absolute if folder not in sys.path)
    return absolute


def set_up(machine: Machine) -> torch.device:
    """The import path, torch's threads, and the device, which is chosen here and nowhere else."""
    machine.import_path = extend_path(machine.import_path)
    torch.set_num_threads(machine.threads)
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': torch finds no CUDA device here; use auto or cpu")
    if machine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(machine.device)
