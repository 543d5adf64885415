"""What a visit leaves in the memory: a new row, a better version of an old one, or nothing.

A policy is written when its training has ended or come to rest, when it beats both the
meta-initialisation and whatever was recalled, and as a new row only when its task is new. Returns
are compared by differences and standard errors, never multiplied, so they may be negative.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.memory.bank import Bank
from agent.memory.evict import Alike, EvictConfig
from agent.memory.records import beats
from agent.memory.row import ReturnRecord, Row

Differs = Callable[[Row, Row], bool]
"""Whether two rows' policies do different things, wherever they come to the same return."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known when a visit, or a part of its training, is over."""

    row: Row
    """What would be written: the policy, its own record, the probe and its key."""
    meta_init: ReturnRecord
    """The meta-initialisation on this task, at the same budget where that was measured, else as it
    was in the probe. (A visit that began at the meta-initialisation is its own such measure.)"""
    ended: bool = True
    """Whether training is over; if not, ``curve`` must have come to rest."""
    curve: Sequence[float] = ()
    """Mean return of the episodes of each training step so far."""
    null: float = 1.0
    """Final posterior probability that none of the rows is of this task."""
    match: int | None = None
    """uid of the row that is most probably of this task."""
    recalled: ReturnRecord | None = None
    """The best recalled row as it did in this visit, if any was tried."""
    accepted: bool = False
    """Whether that row was ``match`` and its return was as promised: it is of this task."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of a visit's policy, and why."""

    action: Literal["new", "update", "keep"]
    """``keep``: no policy is written."""
    reason: str
    """In words, for the record."""
    uid: int | None = None
    """The row written (before that, the row to update); for ``keep``, this task's row, if any."""
    evicted: tuple[int, ...] = ()
    """Rows that gave way."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class WriteConfig:
    """When a policy is worth keeping."""

    when: Literal["both", "novelty", "improvement", "always"] = "both"
    """``both``: better, and a new row only for a new task; ``novelty``: whether better or not;
    ``improvement``: a new row whenever better; ``always``: a new row at every visit."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Standard errors of the difference by which it must beat what there is."""
    novel: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Posterior probability of "none of these" from which a task is taken to be new. Low, as a row
    too many can be merged, and a policy overwritten by another task's is lost."""
    plateau_steps: Annotated[int, Field(ge=1)] = 5
    """Training steps of which the mean must have stopped rising..."""
    plateau_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """...by more than this share of all that was gained so far."""
    kept_gain: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Share of the gain that the coded policy must keep where it can be measured."""
    record_episodes: Annotated[int, Field(ge=1)] = 64
    """Episodes that an old record counts for at most when newer ones are added to it."""
    alternatives: Annotated[int, Field(ge=1)] = 1
    """Rows kept for one task; more than one keeps policies that do as well in another way."""
    same: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability of the same task from which a row counts among the alternatives."""
    evict: EvictConfig = dataclasses.field(default_factory=EvictConfig)
    """Who gives way when the memory is full."""


def plateaued(curve: Sequence[float], steps: int, share: float) -> bool:
    """Whether the mean of the last ``steps`` entries has all but stopped rising.

    It is compared with the mean of the ``steps`` before; what counts as standing still is
    ``share`` of the way from the first ``steps`` to the best such mean so far.
    """
    means = torch.tensor(list(curve), dtype=torch.float64)
    if len(means) < 2 * steps or not bool(torch.isfinite(means).all()):
        return False
    smooth = means.unfold(0, steps, 1).mean(-1)
    return float(smooth[-1] - smooth[-1 - steps]) <= share * float(smooth.max() - smooth[0])


class Rules:
    """Decides what becomes of a visit's policy, and changes nothing."""

    def __init__(
        self, config: WriteConfig, bank: Bank, alike: Alike | None, differs: Differs | None
    ) -> None:
        if config.alternatives > 1 and (alike is None or differs is None):
            raise ValueError(
                f"alternatives={config.alternatives} needs `alike` to tell which rows are of one "
                "task and `differs` to tell which policies are not the same"
            )
        self.config, self.bank = config, bank
        self._alike, self._differs = alike, differs

    def decide(self, outcome: Outcome) -> Decision:
        """What should become of a visit's policy; nothing is written yet."""
        uid = self.known(outcome)
        if not self._at_rest(outcome):
            return Decision("keep", "training goes on and still gains")
        if trouble := _unfit(outcome.row):
            return Decision("keep", trouble, uid)
        when = self.config.when
        if when == "always":
            return Decision("new", "every visit is kept")
        if when != "novelty" and (trouble := self._no_better(outcome)):
            return Decision("keep", trouble, uid)
        if uid is None:
            return Decision("new", "nothing like it is stored")
        if when == "improvement":
            return Decision("new", "better than what there was")
        if when == "novelty":
            return Decision("update", "a known task", uid)
        if self.config.alternatives > 1 and self._alike is not None and self._differs is not None:
            return self._among_alternatives(outcome.row, uid, self._alike, self._differs)
        return self._against_one(outcome.row, uid)

    def known(self, outcome: Outcome) -> int | None:
        """The row of this task, if it is sure enough that there is one."""
        match = outcome.match
        if match is None or match not in self.bank:
            return None
        return match if outcome.accepted or outcome.null < self.config.novel else None

    def to_beat(self, outcome: Outcome, decision: Decision) -> float:
        """Mean return above which a fresh measurement must lie."""
        bars = [outcome.meta_init.mean]
        if (rival := self._rival(outcome)) is not None:
            bars.append(rival.mean)
        if decision.action == "update" and decision.uid is not None:
            bars.append(self.bank.row(decision.uid).record.mean)
        return max(bars)

    def _at_rest(self, outcome: Outcome) -> bool:
        """Whether training is over, or may as well be."""
        steps, share = self.config.plateau_steps, self.config.plateau_share
        return outcome.ended or plateaued(outcome.curve, steps, share)

    def _rival(self, outcome: Outcome) -> ReturnRecord | None:
        """What was recalled, if it must be beaten: an alternative need only do as well."""
        several = self.config.alternatives > 1 and self.known(outcome) is not None
        return None if several else outcome.recalled

    def _no_better(self, outcome: Outcome) -> str | None:
        record, margin = outcome.row.record, self.config.margin
        if not beats(record, outcome.meta_init, margin):
            return f"not clearly better than the meta-initialisation ({_told(outcome.meta_init)})"
        rival = self._rival(outcome)
        if rival is not None and not beats(record, rival, margin):
            return f"not clearly better than what was recalled ({_told(rival)})"
        return None

    def _against_one(self, row: Row, uid: int) -> Decision:
        old = self.bank.row(uid).record
        if beats(row.record, old, self.config.margin):
            return Decision("update", "better than the row of this task", uid)
        return Decision("keep", f"not clearly better than this task's row ({_told(old)})", uid)

    def _among_alternatives(self, row: Row, match: int, alike: Alike, differs: Differs) -> Decision:
        """With several rows per task: instead of the one that acts alike, or beside the others."""
        rows = {uid: self.bank.row(uid) for uid in self._same_task(row, match, alike)}
        like = [uid for uid, old in rows.items() if not differs(row, old)]
        if like:
            return self._against_one(row, like[0])
        best = max(rows, key=lambda uid: rows[uid].record.mean)
        if beats(rows[best].record, row.record, self.config.margin):
            return Decision("keep", "another row of this task does better", match)
        if len(rows) < self.config.alternatives:
            return Decision("new", "does as well as this task's row, in another way")
        return self._against_one(row, min(rows, key=lambda uid: rows[uid].record.mean))

    def _same_task(self, row: Row, match: int, alike: Alike) -> list[int]:
        """The matched row, and all others that are probably of its task."""
        rows = self.bank.snapshot()
        same = alike(row.key[None].to(rows.keys.device), rows.keys, rows.encoders)[0].tolist()
        columns = zip(rows.uids.tolist(), same, strict=True)
        near = [uid for uid, p in columns if p >= self.config.same]
        return [match, *(uid for uid in near if uid != match)]


def _unfit(row: Row) -> str | None:
    """Why a row cannot be stored at all."""
    if not bool(torch.isfinite(row.params).all()):
        return "its parameters are not finite"
    if not (math.isfinite(row.record.mean) and math.isfinite(row.baseline)):
        return "its return, or the meta-initialisation's, is not finite"
    if not bool(torch.isfinite(row.key).all()):
        return "nothing is known of the task, so it could not be found again"
    return None


def _told(record: ReturnRecord) -> str:
    return f"{record.mean:.4g} over {record.n} episodes"
