"""Any agent where nobody says when the task changes: it finds out by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.config import build
from agent.continual.agents import StreamAgent
from agent.continual.detect import Detector, Surprise
from agent.continual.evaluation import Actor
from agent.continual.life import Hints, Purpose
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.guard import Guard
from agent.memory.probes import TrainingProbes
from agent.policy import Policy
from agent.types import Trajectories

Node = dict[str, Any]


def _page_hinkley() -> Node:
    return {"_target_": "agent.continual.detect.PageHinkley"}


@dataclass(kw_only=True, config={"extra": "forbid"})
class Detection:
    """How an agent finds out that its task has changed, where boundaries are hidden."""

    detector: Node = field(default_factory=_page_hinkley)
    """``_target_`` and settings of a ``detect.Detector``; one for reward, one for dynamics."""
    settle_episodes: Annotated[int, Field(ge=1)] = 12
    """Episodes from which its model of a task is made before it is surprised by any."""

    def __post_init__(self) -> None:
        """Errors of the detector's settings are found before anything is run."""
        build(self.detector, "detection.detector")


class Detecting:
    """Lives an endless visit as a sequence of visits of its own making.

    Where it detects a change, the agent inside goes back to what it was before the batch that
    gave the change away (what it learned from that was learned from two tasks), ends its visit, and
    begins another.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=False)
    """Nothing: that is the point."""

    def __init__(self, agent: StreamAgent, detection: Detection) -> None:
        self.agent, self._detection = agent, detection
        heads = Surprise.HEADS
        self._detectors: list[Detector] = [
            build(detection.detector, "detection.detector") for _ in heads
        ]
        self.detected: list[int] = []
        """Episodes of the life after which a change was detected."""
        self.inferred: list[int] = []
        """For each episode of the life, which task the agent took itself to be in: the row of its
        memory that it recalled or wrote, or a number below zero of its own where it has none."""
        self._since, self._changes, self._row = 0, 0, None

    @property
    def score(self) -> float:
        """Mean return of the episodes that it last acted in."""
        return self.agent.score

    @property
    def pending(self) -> bool:
        """Whether it has episodes that it has not learned from yet."""
        return self.agent.pending

    @property
    def acting(self) -> Actor:
        """How it acts now."""
        return self.agent.acting

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Be born."""
        self.agent.setup(learner, probes, seed)
        policy = learner.policy
        sizes = policy.obs_size, policy.action_size
        self._surprise = Surprise(*sizes, policy.normalizer)
        self._fresh = Surprise(*sizes, policy.normalizer).state_dict()

    def begin(self, visit: Visit) -> dict[str, Any]:
        """The first task."""
        watched = _Watched(visit)
        facts = self.agent.begin(watched)  # pyright: ignore[reportArgumentType]
        self._row = facts.get("row")
        self._look(watched.acted)
        return facts

    def improve(self, visit: Visit) -> None:
        """Go on in the same task, or, if this was another, end with it and begin anew."""
        before = {name: value.clone() for name, value in self.agent.state_dict().items()}
        watched = _Watched(visit)
        self.agent.improve(watched)  # pyright: ignore[reportArgumentType]
        if not self._look(watched.acted):
            return
        self.agent.load_state_dict(before)
        self.detected.append(len(self.inferred))
        if visit.remaining == 0:  # what ends the life ends this visit too
            return
        self._settle(self.agent.end())
        self._since, self._changes = len(self.inferred), self._changes + 1
        self._surprise.load_state_dict(self._fresh)
        for detector in self._detectors:
            detector.reset()
        self.begin(visit)

    def end(self) -> dict[str, Any]:
        """The life is over."""
        written = self.agent.end()
        self._settle(written)
        return written

    def actor(self, visit: Visit) -> Actor:
        """How it would act if it met this task now, and knew that it was another."""
        return self.agent.actor(visit)

    def memory_facts(self) -> list[dict[str, float]]:
        """As the agent inside."""
        return self.agent.memory_facts()

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """As the agent inside."""
        self.agent.save_memory(folder, labels)

    def state_dict(self) -> dict[str, Tensor]:
        """The agent's, and what the detectors have seen."""
        whole = {"since": self._since, "changes": self._changes, "row": self._row}
        own = {
            "detected": torch.tensor(self.detected, dtype=torch.int64),
            "inferred": torch.tensor(self.inferred, dtype=torch.int64),
            "where": torch.tensor([-1 if v is None else v for v in whole.values()]),
        }
        own |= {f"surprise.{k}": v for k, v in self._surprise.state_dict().items()}
        for head, detector in zip(Surprise.HEADS, self._detectors, strict=True):
            for name, value in detector.state_dict().items():
                own[f"{head}.{name}"] = torch.tensor(value, dtype=torch.float64)
        return self.agent.state_dict() | {f"detection.{k}": v for k, v in own.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        prefix = "detection."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self.agent.load_state_dict({k: v for k, v in state.items() if not k.startswith(prefix)})
        self.detected, self.inferred = own["detected"].tolist(), own["inferred"].tolist()
        self._since, self._changes, row = own["where"].tolist()
        self._row = None if row < 0 else row
        sums = {k.removeprefix("surprise."): v for k, v in own.items() if k.startswith("surprise.")}
        self._surprise.load_state_dict(sums)
        for head, detector in zip(Surprise.HEADS, self._detectors, strict=True):
            seen = {k.removeprefix(f"{head}."): v for k, v in own.items() if k.startswith(head)}
            detector.load_state_dict({name: float(value) for name, value in seen.items()})

    def _look(self, acted: list[Trajectories]) -> bool:
        """Take in what was just acted; whether it was another task."""
        changed = False
        for episodes in acted:
            surprises = self._surprise.of(episodes).tolist()
            settled = len(self.inferred) - self._since >= self._detection.settle_episodes
            self.inferred += [self._label()] * len(surprises)
            for values in surprises if settled else ():
                # Every head must see every episode, so no shortcut.
                signs = [d.see(v) for d, v in zip(self._detectors, values, strict=True)]
                changed |= any(signs)
            self._surprise.take(episodes)
        return changed

    def _label(self) -> int:
        return -1 - self._changes if self._row is None else self._row

    def _settle(self, written: Mapping[str, Any]) -> None:
        """Name the episodes since the last change by the row that came of them, if any did."""
        row = written.get("row")
        self._row = self._row if row is None else row
        self.inferred[self._since :] = [self._label()] * (len(self.inferred) - self._since)
        self._row = None


class _Watched:
    """A visit whose episodes are looked at by the detector too."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self.acted: list[Trajectories] = []

    def __getattr__(self, name: str) -> Any:
        """All else is the visit's."""
        return getattr(self._visit, name)

    def collect(
        self,
        params: Tensor,
        episodes: int,
        guard: Guard | None = None,
        purpose: Purpose = "learn",
        policy: Policy | None = None,
    ) -> Trajectories:
        """As the visit's."""
        acted = self._visit.collect(params, episodes, guard, purpose, policy)
        self.acted.append(acted)
        return acted
