"""The settings of each command as typed fields: what may stand at the top of its YAML file."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from agent.continual.detecting import Detection
from agent.evaluate import EvaluationSize
from agent.policy import PolicyConfig
from agent.train import BatchSize, Budget, Calibration, Curve
from envs.task import Split

Seed = Annotated[int, Field(ge=0)]
Node = dict[str, Any]
"""A node whose class is named by its ``_target_``; built, and checked, by the command."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Machine:
    """Where and on what a command works."""

    run: str
    """The run folder; the same command continues what is there."""
    seed: Seed = 0
    """Of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes CUDA if there is one."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Of torch. Small networks are fastest on one; the physics takes all cores anyway."""
    import_path: list[str] = field(default_factory=list)
    """Folders of the user's own code, appended to ``sys.path``."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class TrainSettings(Machine):
    """``engram train``."""

    env: Node
    """The family of tasks."""
    learner: Node
    """The meta-learner."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Size of the policy network."""
    batch: BatchSize = field(default_factory=BatchSize)
    """Tasks and episodes of a meta-iteration."""
    budget: Budget = field(default_factory=Budget)
    """How long to train."""
    calibration: Calibration = field(default_factory=Calibration)
    """How the memory's key metric is estimated at the end."""
    curve: Curve = field(default_factory=Curve)
    """Evaluations during training."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Iterations between checkpoints."""
    tensorboard: bool = False
    """Whether the metrics are also written to ``<run>/tensorboard``."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class EvaluateSettings(Machine):
    """``engram evaluate``."""

    oracle: str | None = None
    """Run folder of an oracle (``learner=oracle``) trained on the same family."""
    split: Split = "heldout"
    """Which tasks."""
    evaluation: EvaluationSize = field(default_factory=EvaluationSize)
    """How many, how long, how often."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class ContinualSettings(TrainSettings):
    """``engram continual``."""

    stream: Node
    """The stream of visits, and under ``family`` where its tasks come from."""
    agents: Annotated[list[str], Field(min_length=1)]
    """Names of ``configs/agent`` files."""
    agent: dict[str, Node]
    """Their settings, by name."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | Annotated[int, Field(ge=1)]
    """One lifetime of each agent with each; a number n is 0 to n - 1."""
    init: str | None = None
    """A meta-training run to start from; without one, ``<run>/init`` is trained first."""
    jobs: Annotated[int, Field(ge=1)] = 1
    """Lifetimes lived at the same time, in processes of their own."""
    shard: str | None = None
    """``i/n``: live only every n-th lifetime, from the i-th; for machines that share a folder."""
    references: str | None = "runs/references"
    """Where lifetimes that scores are scaled by are kept, for all runs; null: no such scores."""
    expert_times: Annotated[int, Field(ge=1)] = 5
    """Budget of the expert reference in each task, in visits of the stream."""
    detection: Detection = field(default_factory=Detection)
    """How agents find out that the task has changed, where the stream does not tell."""
    save_every_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds between saves within a visit; whole visits are always saved."""

    @property
    def lifetimes(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def shard_of(self) -> tuple[int, int]:
        """Which part of how many; 1 of 1 without a shard."""
        part, parts = (self.shard or "1/1").split("/")
        return int(part), int(parts)

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, shard: str | None) -> str | None:
        part, slash, parts = (shard or "1/1").partition("/")
        if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
            raise ValueError(f"{shard!r}: expected i/n with i from 1 to n, such as 2/4")
        return shard


@dataclass(kw_only=True, config={"extra": "forbid"})
class DemoSettings(Machine):
    """``engram demo``."""

    env_steps: Annotated[int, Field(ge=1)]
    """Of meta-training; the oracle gets as many."""
    agents: Annotated[list[str], Field(min_length=1)]
    """Agents of the stream."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Lifetimes on the stream."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class ReportSettings:
    """``engram report``."""

    run: str
    """The run folder."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class CheckEnvSettings:
    """``engram check_env``."""

    env: Node
    """The family."""
    episodes: Annotated[int, Field(ge=1)] = 3
    """Parallel episodes of a task."""
    seed: Seed = 0
    """Of tasks, starts and actions."""
    import_path: list[str] = field(default_factory=list)
    """Folders of the user's own code, appended to ``sys.path``."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class ShowEnvSettings:
    """``engram show_env``."""

    env: Node
    """The family; with ``run`` given, that run's family is shown instead."""
    run: str | None = None
    """A meta-training run, whose policy is filmed; without one, random actions are."""
    adapt: Annotated[int, Field(ge=0)] = 1
    """Adaptation steps, of 10 episodes each, before the run's policy is filmed."""
    split: Split = "train"
    """Where the tasks are drawn from."""
    tasks: Annotated[int, Field(ge=1)] = 4
    """How many, side by side."""
    steps: Annotated[int, Field(ge=0)] = 15
    """Random actions before the picture is taken."""
    seed: Seed = 0
    """Of tasks, starts and actions."""
    out: str = "pictures"
    """Folder of the files."""
    film: Literal["webp", "gif", "mp4", "none"] = "webp"
    """Format of the film of one episode."""
    width: Annotated[int, Field(ge=16)] = 320
    """Of a picture, in pixels."""
    height: Annotated[int, Field(ge=16)] = 240
    """Of a picture, in pixels."""
    renderer: Literal["auto", "opengl", "software"] = "auto"
    """What draws; ``auto``: OpenGL if it works without a screen, else the software drawer."""
    import_path: list[str] = field(default_factory=list)
    """Folders of the user's own code, appended to ``sys.path``."""
