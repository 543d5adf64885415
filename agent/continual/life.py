"""A lifetime as it is stored: once, in full, so that any number can be computed from it later.

``life.json`` holds the visits and the evaluation matrix; ``episodes.jsonl``, beside it, a line per
episode acted in. Metrics and reports read these and nothing else. A number that there is not, or
that was not finite, is ``null`` in a file and NaN here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from agent.files import BadFileError, read_json

FORMAT = 1
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
Purpose = Literal["probe", "trial", "learn"]
"""Why an episode was acted: to recognise the task, to try a recalled policy, to learn."""


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the values that are finite; NaN if none is."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan


class TaskInfo(BaseModel):
    """A task of the stream."""

    id: str
    """Equal physics and rewards, equal id, whatever the task is called."""
    label: str = ""
    """In words."""
    values: dict[str, float] = {}


class Planned(BaseModel):
    """One visit of the schedule."""

    task: str
    """Its name; a name that comes again is a re-visit."""
    episodes: int = Field(ge=1)
    drifting: bool = False
    """A step on the way from one task to the next, which nobody is scored on."""


class Hints(BaseModel):
    """What an agent is told."""

    task: bool = False
    """Which task it is in."""
    boundary: bool = True
    """When a visit begins and ends."""


class Protocol(BaseModel):
    """All that lifetimes must share to be compared."""

    stream: str
    family: str
    horizon: int
    split: str
    seed: int
    init: str = ""
    """Names the meta-initialisation."""
    tasks: dict[str, TaskInfo]
    """By name: those visited, and those only evaluated."""
    schedule: list[Planned] = Field(min_length=1)
    held_out: list[str] = []
    """Names of tasks that are evaluated (at the first and the last checkpoint), never visited."""
    eval_episodes: int = Field(ge=1)
    told: Hints = Hints()
    """What agents are told, unless ``Life.knew`` says that this one was told more."""


class Evaluation(BaseModel):
    """One entry of the matrix R: the agent as it was at a checkpoint, on one task.

    Before any gradient step: an agent with a memory has probed and recalled, on simulators of its
    own, and forgotten that it did.
    """

    checkpoint: int = Field(ge=0)
    """Visits that were over: 0 before the first, v + 1 after visit v."""
    task: str
    returns: list[Number]
    """Of each episode of the deterministic policy; NaN where the simulation diverged."""
    success: list[bool] | None = None
    env_steps: int = 0
    """Taken for it, its probes included; 0 where the policy was measured before."""

    @property
    def mean(self) -> float:
        """Mean return of the episodes that did not diverge; NaN if all did."""
        return finite_mean(self.returns)


class Point(BaseModel):
    """A batch of episodes of a visit, in the order in which it was learned from."""

    episodes: int
    """Of the visit that were used by the end of the batch."""
    value: Number = Field(alias="return")
    """Mean return of the batch."""


class Tried(BaseModel):
    """A recalled row, or the meta-initialisation (``row`` None), tried for an episode."""

    row: int | None = None
    value: Number = Field(alias="return")
    stopped_at: int | None = None


class Recalled(BaseModel):
    """What the memory brought up at the start of a visit; empty for an agent without memory."""

    row: int | None = None
    """The row that the visit started from; None: from the meta-initialisation."""
    of_task: str | None = None
    """Name of the task that the row was last written at."""
    of_visit: int | None = None
    weight: Number | None = None
    """Posterior probability of the likeliest row before any was tried."""
    null: Number | None = None
    """That of "none of these"."""
    likeliest: int | None = None
    rows: int = 0
    """In the memory, at that moment."""
    weights: dict[str, float] = {}
    """Posterior by the name of the task that a row was written at, before any was tried."""
    ranked: list[str] = []
    """Names of the tasks that rows were written at, likeliest row first."""
    tried: list[Tried] = []


class Visit(BaseModel):
    """One visit as it was lived."""

    visit: int = Field(ge=0)
    task: str
    revisit: bool
    """Whether a task of this name was visited before."""
    curve: list[Point] = []
    recalled: Recalled = Recalled()
    written: dict[str, Any] = {}
    env_steps: dict[Purpose, int] = {}
    """By purpose; what was taken, to the step."""
    episodes: int
    """Acted in, as executed."""
    end: list[Number] = []
    """What was learned: return of each deterministic episode of the policy that the visit led to,
    before the agent decided what to keep of it. What it has of it when the task comes back is R."""
    end_success: list[bool] | None = None
    seconds: Number = math.nan
    cpu_seconds: Number = math.nan
    physics_s: Number = math.nan
    """Of ``seconds``, inside the simulator."""
    evaluation_s: Number = math.nan
    """Wall seconds of evaluations since the end of the visit before; not part of ``seconds``."""
    begin_s: Number = math.nan
    """Of ``seconds``, recognising and recalling, the simulator not counted."""
    act_ms: dict[str, Number] = {}
    """``p50`` and ``p95`` of one decision, in ms."""
    state_bytes: dict[str, int] = {}
    """What the agent carries when the visit is over, by kind."""
    plasticity: dict[str, Number] = {}
    """Of the policy when the visit is over: ``dormant``, ``effective_rank``, ..."""

    @property
    def end_mean(self) -> float:
        """Mean of ``end`` over the episodes that did not diverge; NaN if all did."""
        return finite_mean(self.end)


class Life(BaseModel):
    """One agent on one stream with one seed: the unit of statistics."""

    format: int = FORMAT
    agent: str
    status: Literal["done", "stopped", "crashed"]
    error: str | None = None
    """Of a crashed one, the last line and where; it is a row of every table nevertheless."""
    job: str = ""
    """Content hash of everything that made it."""
    protocol: Protocol
    knew: Hints = Hints()
    evaluations: list[Evaluation] = []
    visits: list[Visit] = []
    """Those that are over."""
    detected: list[int] = []
    """Episodes of the life after which the agent said that its task had changed (hidden
    boundaries); the true ones follow from the schedule."""
    inferred: list[int] = []
    """Per episode of the life, the agent's own number of the task it took itself to be in."""
    deviations: list[str] = []
    """Where what was executed is not what was declared; empty, or the lifetime is not valid."""
    evaluation_env_steps: int = 0
    peak_memory_mib: Number = math.nan

    @property
    def seed(self) -> int:
        """Of the lifetime."""
        return self.protocol.seed


class Episode(BaseModel):
    """A line of ``episodes.jsonl``: an episode that the agent acted in, and was charged for."""

    visit: int
    task: str
    purpose: Purpose
    episode: int
    """Within the visit, from 0; episodes of one batch ran side by side."""
    value: Number = Field(alias="return")
    length: int
    success: bool | None = None
    diverged: bool = False
    terminated: bool = False


def read_life(folder: Path) -> Life:
    """The lifetime stored in a folder.

    Raises:
        BadFileError: ``life.json`` is not one; the message names the key.
    """
    path = folder / "life.json"
    try:
        return Life.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise BadFileError(f"{path}: {key}: {first['msg']}") from None


def read_episodes(folder: Path) -> list[Episode]:
    """The episodes of the lifetime stored in a folder, in the order in which they were acted."""
    path, out = folder / "episodes.jsonl", []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            out.append(Episode.model_validate(json.loads(line)))
        except ValueError as error:  # pydantic's and json's errors are both ValueErrors
            raise BadFileError(f"{path} line {number}: {error}") from None
    return out
