"""The agent with episodic memory: probe, recall on trial, adapt, write what is worth it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Pull
from agent.config import build
from agent.continual.agents import MetaInit
from agent.continual.evaluation import digest
from agent.continual.inheritance import inherited, save
from agent.continual.packing import pack, unpack
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.candidates import Candidates
from agent.memory.decide import Outcome
from agent.memory.key.base import Key
from agent.memory.key.given import GivenKey
from agent.memory.memory import EpisodicMemory, MemoryConfig
from agent.memory.posterior import Calibration
from agent.memory.probes import TrainingProbes
from agent.memory.reader.base import Attempt, Reader, Trial, attempts
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.memory.use import FunctionRecall, function_recall, own_teacher, used
from agent.memory.worth import reweighted_return
from agent.policy import GaussianMlp
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories

Node = dict[str, Any]
_OF_A_VISIT = (
    "probe",
    "evidence",
    "curve",
    "acted",
    "again",
    "recall",
    "unused",
    "first_step",
    "jumped",
    "matched",
    "null",
    "match",
)
"""What it knows of the visit that it is in, each in an attribute of that name."""


def _likelihood() -> Node:
    return {"_target_": "agent.memory.key.likelihood.Likelihood"}


def _guarded() -> Node:
    return {"_target_": "agent.memory.reader.guarded.Guarded"}


@dataclass(kw_only=True, config={"extra": "forbid"})
class Engram(MetaInit):
    """Recognises its task from a probe, tries what it remembers of it, and goes on from there."""

    probe_episodes: Annotated[int, Field(ge=1)] = 2
    """Episodes of the meta-initialisation, charged as any, from which the task is recognised."""
    key: Node = field(default_factory=_likelihood)
    """What says which task it is: ``_target_`` and settings of a ``memory.key.base.Key``."""
    reader: Node = field(default_factory=_guarded)
    """How the memory is read: ``_target_`` and settings of a ``memory.reader.base.Reader``."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """The rows: how many, and which are worth keeping."""
    open_from: str | None = None
    """Folder of a memory that another run left (``.../memory``), to be born with its rows."""
    pull: Pull = field(default_factory=Pull)
    """The memory's term in each adaptation step; off by default, as the jump does the work."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with an empty memory around the meta-initialisation."""
        super().setup(learner, probes, seed)
        self._key, calibration = self._fitted(probes)
        self._reader: Reader = build(self.reader, "reader")
        anchor = learner.theta.detach().clone()
        horizon = probes.probes[0].reward.shape[-1]
        lineage = lineage_of(anchor, learner.policy)
        own = self.memory, self._key, calibration, learner.policy, anchor, lineage, horizon, seed
        self.store = EpisodicMemory(*own, free=learner.free)
        self._generator = torch_generator(seed, "reader")
        self._time = 0
        if self.open_from is not None:
            self.store.take_over(inherited(Path(self.open_from), learner.policy, lineage))

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Probe with the meta-initialisation, try what the memory brings up, and start from it."""
        super().begin(visit)
        self._curve, self._acted, self._again = [], None, None
        before = visit.steps_used
        candidates = self._recognised(visit)
        trial = self._reader.open(candidates, self._generator)
        made = attempts(
            trial, lambda params, guard: visit.collect(params, 1, guard, "trial"), visit.remaining
        )
        self._recall = used(self.pull.kind, trial, candidates, self.learner.policy)
        start = trial.start()
        jumped = not torch.equal(start, self.params)
        row = self._row_of(trial) if jumped else None
        self._unused = self._probe  # made by the policy that goes on, unless it jumped
        if jumped:
            self._unused = _joined([a.episodes for a in made if self._is_of(a, row)])
            self.params = start
            self._step = self.learner.meta_steps  # the meta-learned step is for the meta-init
        self._first_step, self._jumped = self._step, row
        believed = torch.tensor([row is not None and not bool(candidates.null_wins[0])])
        self._matched = bool(getattr(trial, "matched", believed)[0])
        self._null, self._match = self._belief(trial, candidates, row)
        self._time += visit.steps_used - before
        return self._told(candidates, made, row)

    def improve(self, visit: Visit) -> None:
        """One adaptation step, on episodes that it has not learned from yet or on fresh ones."""
        before = visit.steps_used
        super().improve(visit)
        self._time += visit.steps_used - before

    def end(self) -> dict[str, Any]:
        """Write what was learned, with the record of the last episodes, if it is worth it."""
        probe, acted = self._probe, self._acted
        nothing = {"row": None, "score": self.score, "rows": len(self.store)}
        if acted is None or bool(acted[1].diverged.all()) or bool(probe.diverged.all()):
            return nothing | {"reason": "nothing was learned, or all of it diverged"}
        params, episodes = acted
        kept = self._last(params, episodes)
        row = Row(
            key=self._evidence[0].cpu(),
            encoder=self._key.version,
            params=kept[0].cpu(),
            lineage=self.store.lineage,
            record=ReturnRecord.of(episodes),
            baseline=float(probe.mean_return()),
            probe=Transitions.of(probe, self.memory.bank.probe_steps),
            time=self._time,
        )
        outcome = Outcome(
            row=row,
            meta_init=ReturnRecord.of(probe),
            curve=self._curve,
            null=self._null,
            match=self._match,
            recalled=self._again,
            accepted=self._matched,
        )
        policy = self.learner.policy
        decision = self.store.write(
            outcome, lambda decoded: reweighted_return(policy, decoded, params, episodes)
        )
        return {
            "row": decision.uid if decision.action != "keep" else None,
            "score": row.record.mean,
            "rows": len(self.store),
            "action": decision.action,
            "reason": decision.reason,
            "evicted": list(decision.evicted),
        }

    def _recognised(self, visit: Visit) -> Candidates:
        """Act in a probe, and find the rows that its task may be of."""
        episodes = min(self.probe_episodes, visit.remaining)
        self._probe = visit.collect(self.params, episodes, purpose="probe")
        self.score = float(self._probe.mean_return())
        # Only keys that are oracles are told what the task is.
        told = visit.told if isinstance(self._key, GivenKey) else None
        self._evidence = self._key.encode(self._probe, told)
        return self.store.candidates(self._evidence, return_so_far(self._probe))

    def _last(self, acted: Tensor, episodes: Trajectories) -> Tensor:
        """The policy after the last step, or the one that ``acted`` before it, ``[1, P]``.

        The record is of the episodes before the step, so what came of it is kept only if those,
        weighted by how likely it would have acted as was acted, say that it is no worse.
        """
        policy, before = self.learner.policy, float(episodes.mean_return())
        after = reweighted_return(policy, self.params[0].cpu(), acted, episodes)
        return self.params if after >= before else acted

    def memory_facts(self) -> list[dict[str, float]]:
        """Score, gain over the meta-initialisation and visits of each row."""
        rows = self.store.bank.snapshot()
        columns = (rows.uids, rows.mean, rows.mean - rows.baseline, rows.visits)
        names = ("row", "score", "gain", "visits")
        return [
            dict(zip(names, (c.item() for c in each), strict=True))
            for each in zip(*columns, strict=True)
        ]

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """Write the rows to a folder of which ``engram memory`` and other runs can make use."""
        save(folder, self.store, self.learner.policy, dict(self.key), labels)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and the memory."""
        memory = {f"memory.{k}": v for k, v in self.store.state_dict().items()}
        visit = {f"visit.{k}": v for k, v in self._visit_state().items()}
        own = {"time": torch.tensor(self._time), "draws": self._generator.get_state()}
        key = {f"key.{k}": v for k, v in self._key.state_dict().items()}
        worth = self.store.calibration.state_dict()
        return super().state_dict() | own | key | worth | memory | visit

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and the memory."""
        super().load_state_dict(state)
        self._time = int(state["time"])
        self._generator.set_state(state["draws"].cpu())
        key = {k.removeprefix("key."): v for k, v in state.items() if k.startswith("key.")}
        self._key.load_state_dict({k: v.to(self.params.device) for k, v in key.items()})
        self._fit = None, None  # it is this life's now
        self.store.calibrate(Calibration.from_state(state))
        rows = {k.removeprefix("memory."): v for k, v in state.items() if k.startswith("memory.")}
        self.store.load_state_dict(rows)
        visit = {k.removeprefix("visit."): v for k, v in state.items() if k.startswith("visit.")}
        for name, value in unpack(visit, self.params.device).items() if visit else ():
            setattr(self, f"_{name}", value)
        if visit and self.pull.kind == "function" and self._recall is not None:
            places = range(self._recall.weights.shape[1])
            policy, rows_of = self.learner.policy, self._recall.params
            teachers = [own_teacher(policy, rows_of[:, k]) for k in places]
            self._recall = function_recall(self._recall, teachers)

    def _visit_state(self) -> dict[str, Tensor]:
        """What it knows of the visit that it is in; nothing before its first."""
        if not hasattr(self, "_probe"):
            return {}
        values = {name: getattr(self, f"_{name}") for name in _OF_A_VISIT}
        if isinstance(values["recall"], FunctionRecall):  # its teachers are made from its rows
            r = values["recall"]
            values["recall"] = Recall(r.index, r.distance, r.weights, r.params)
        return pack(values)

    def _fitted(self, probes: TrainingProbes) -> tuple[Key, Calibration]:
        """The key and its calibration; fitted once for all lifetimes of this agent."""
        made_from, fitted = getattr(self, "_fit", (None, None))
        if made_from is not probes or fitted is None:
            key: Key = build(self.key, "key")
            fitted = key, probes.fit(key)
            self._fit = probes, fitted
        return fitted

    @property
    def pending(self) -> bool:
        """Whether it has episodes that it has not learned from yet."""
        return self._unused is not None

    def _collect(self, visit: Visit) -> Trajectories:
        """As without memory, but episodes made by the very policy that goes on are not wasted."""
        unused, self._unused = self._unused, None
        if unused is None:
            return super()._collect(visit)
        had = unused.reward.shape[1]
        more = min(self._batch(had + visit.remaining) - had, visit.remaining)
        return unused.joined(visit.collect(self.params, more)) if more > 0 else unused

    def _memory_term(self) -> tuple[Recall | None, float]:
        return self._recall, self.pull.at(self._step - self._first_step)

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self._acted = self.params, episodes
        if self._jumped is not None and not self._curve and not bool(episodes.diverged.all()):
            self._again = ReturnRecord.of(episodes)
        super()._learn(episodes, recall, beta)
        self._curve.append(self.score)
        course = self._course
        if course is not None and torch.equal(course.params, course.best):  # put back, if moved
            self._acted = course.best, course.episodes or episodes

    def _row_of(self, trial: Trial) -> int | None:
        """Uid of the one row that the trial decided on; None where it is a mixture."""
        recall = trial.recall()
        weights, index = recall.weights[0], recall.index[0]
        one = int((weights > 0).sum()) == 1
        return int(self._uids()[index[weights.argmax()]]) if one else None

    def _belief(
        self, trial: Trial, candidates: Candidates, row: int | None
    ) -> tuple[float, int | None]:
        """After the trial: probability of "none of these", and the likeliest row."""
        if self._matched:
            return 0.0, row
        weight = getattr(trial, "weight", candidates.weight)[0]
        null = float(getattr(trial, "null", candidates.null)[0])
        place = int(weight.argmax())
        index = int(candidates.index[0, place])
        known = index >= 0 and float(weight[place]) > 0
        return null, int(self._uids()[index]) if known else None

    def _is_of(self, attempt: Attempt, row: int | None) -> bool:
        """Whether an episode was acted by this row alone, from its first step to its last."""
        index, stopped = int(attempt.row[0]), bool(attempt.episodes.stopped().any())
        return index >= 0 and not stopped and int(self._uids()[index]) == row

    def _uids(self) -> Tensor:
        return self.store.bank.snapshot().uids

    def _told(self, candidates: Candidates, made: list[Attempt], row: int | None) -> dict[str, Any]:
        uids = self._uids()
        tried = [
            {
                "row": None if int(a.row[0]) < 0 else int(uids[int(a.row[0])]),
                "return": float(a.episodes.returns()[0, 0]),
                "stopped_at": int(a.episodes.switch_step()[0, 0])
                if bool(a.episodes.stopped()[0, 0])
                else None,
            }
            for a in made
        ]
        index, weight = candidates.index[0].tolist(), candidates.weight[0].tolist()
        posterior = {int(uids[i]): w for i, w in zip(index, weight, strict=True) if i >= 0}
        return {
            "row": row,
            "weight": weight[0] if posterior else None,
            "likeliest": next(iter(posterior), None),
            "null": float(candidates.null[0]),
            "rows": len(self.store),
            "posterior": posterior,
            "tried": tried,
        }


def lineage_of(anchor: Tensor, policy: GaussianMlp | None = None) -> str:
    """Names a meta-initialisation ``[P]``: policies from another are in other coordinates.

    So are those of a ``policy`` that shares other weights or normalisers between its parameters.
    """
    named = hashlib.sha256(json.dumps(anchor.tolist()).encode())
    if policy is not None and (shared := policy.shared()):
        named.update(digest(shared).encode())
    return named.hexdigest()[:16]


def return_so_far(probe: Trajectories) -> Tensor:
    """``[T, H]`` mean return so far of the episodes that did not diverge; NaN if all did."""
    kept = (~probe.diverged)[..., None]
    paid = (probe.reward * probe.mask).cumsum(-1)
    return torch.where(kept, paid, torch.nan).nanmean(1)


def _joined(parts: list[Trajectories]) -> Trajectories | None:
    if not parts:
        return None
    first, *more = parts
    for each in more:
        first = first.joined(each)
    return first
