"""The only one who writes to a bank: what was decided is done, and the least missed gives way."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from agent.memory.bank import Bank, BankFullError, Check
from agent.memory.decide import Decision, Differs, Outcome, Rules, WriteConfig
from agent.memory.evict import Alike, Ledger, leaving
from agent.memory.key.base import Key
from agent.memory.records import both_probes, keeps_gain, pooled
from agent.memory.row import Row

Measure = Callable[[Tensor], float]
"""Mean return of a policy ``[P]`` on the visit's task: measured anew, in episodes that are charged,
or estimated off-policy from those that there are (``worth.reweighted_return``)."""
_MOST_EVICTED = 8  # for one newcomer, where capacity is in bytes


class Writer:
    """The only one who writes to a bank."""

    def __init__(
        self,
        config: WriteConfig,
        bank: Bank,
        key: Key,
        alike: Alike | None = None,
        differs: Differs | None = None,
        seed: int = 0,
    ) -> None:
        """``alike`` also serves eviction; with ``differs`` it is needed for ``alternatives``."""
        self.config, self.bank, self._key = config, bank, key
        self._rules, self._alike = Rules(config, bank, alike, differs), alike
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = 0

    def write(self, outcome: Outcome, measure: Measure | None = None) -> Decision:
        """Decide, and do it. A row of the same task is told that its task came again.

        With ``measure``, the policy must be better than what there is by that, too, before it
        replaces anything, and its coded form must keep the gain or gets more bits. (An estimate
        from the record's own episodes confirms them; only fresh ones can find that it was luck.)
        """
        decision, check = self._rules.decide(outcome), None
        if decision.action != "keep" and measure is not None:
            decision, check = self._confirmed(outcome, decision, measure)
        if decision.action == "new":
            return self._append(outcome.row, decision, check)
        if decision.uid is None:
            return decision
        return self._again(outcome, decision, decision.uid, check)

    def state_dict(self) -> dict[str, Tensor]:
        """How many rows were offered, and where the random choices stand."""
        return {"seen": torch.tensor(self._seen), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._seen = int(state["seen"])
        self._generator.set_state(state["generator"].cpu())

    def _confirmed(
        self, outcome: Outcome, decision: Decision, measure: Measure
    ) -> tuple[Decision, Check]:
        """The decision after a second look, and what the coded policy must pass."""
        fresh, floor = measure(outcome.row.params), self._rules.to_beat(outcome, decision)
        if self.config.when in ("both", "improvement") and not fresh > floor:
            reason = f"its return was luck: {fresh:.4g} when measured again, {floor:.4g} to beat"
            decision = Decision("keep", reason, self._rules.known(outcome))
        baseline, share = outcome.row.baseline, self.config.kept_gain
        return decision, lambda decoded: keeps_gain(measure(decoded), fresh, baseline, share)

    def _append(self, row: Row, decision: Decision, check: Check | None) -> Decision:
        self._seen += 1
        uid, evicted = self._with_room(row, None, lambda: self.bank.append(row, check))
        if uid is None:
            reason = "the memory is full of rows that would be missed more"
            return Decision("keep", reason, evicted=evicted)
        return dataclasses.replace(decision, uid=uid, evicted=evicted)

    def _with_room(
        self, row: Row, instead_of: int | None, write: Callable[[], int]
    ) -> tuple[int | None, tuple[int, ...]]:
        """Write a row, others giving way as need be: its uid, or None if it is missed least itself.

        Only the bank knows how much room a row takes, so one row goes at a time.
        """
        evicted: list[int] = []
        while True:
            try:
                return write(), tuple(evicted)
            except BankFullError:
                if len(evicted) == _MOST_EVICTED or len(self.bank) == 0:
                    raise
            ledger = Ledger.of(self.bank.snapshot(), row, instead_of)
            settings = self.config.evict
            place = leaving(settings, ledger, self._alike, self._generator, self._seen)
            if place == len(ledger) - 1:
                return None, tuple(evicted)
            evicted.append(int(ledger.uid[place]))
            self.bank.remove(evicted[-1])

    def _again(
        self, outcome: Outcome, decision: Decision, uid: int, check: Check | None
    ) -> Decision:
        """A row's task came again: count it, add what was learned, and take over a better policy.

        What was learned is only added if the row is certainly of this task: it did as promised, or
        is being replaced by a policy for it.
        """
        new, update = outcome.row, decision.action == "update"
        tried = int(outcome.recalled is not None)
        self.bank.count(uid, visits=1, recalls=tried, accepted=int(outcome.accepted), time=new.time)
        if not update and not (outcome.accepted and _informative(new)):
            return decision
        row = self._grown(outcome, self.bank.row(uid), update)

        def write() -> int:
            # The same policy needs the bits that it was found to need when it was written.
            kind = None if update else self.bank.codec(uid)
            self.bank.replace(uid, row, check if update else None, kind)
            return uid

        if update:
            written, evicted = self._with_room(row, uid, write)
            if written is None:
                return Decision("keep", "no room for the better policy", uid, evicted)
            return dataclasses.replace(decision, evicted=evicted)
        with contextlib.suppress(BankFullError):  # nobody gives way to a longer probe
            write()
        return decision

    def _grown(self, outcome: Outcome, old: Row, update: bool) -> Row:
        """The row with what the visit said of its task, and with its policy if it is better."""
        new = outcome.row
        row = new if update else old
        if old.encoder == new.encoder:
            keys = (k[None].to(self.bank.device) for k in (old.key, new.key))
            key = self._key.joined(*keys)[0]
            row = row.with_(key=key, probe=both_probes(old.probe, new.probe))
        if not update and outcome.recalled is not None:
            record = pooled(old.record, outcome.recalled, self.config.record_episodes)
            row = row.with_(record=record)
        before = old.visits - 1  # the visit is counted already
        return row.with_(
            baseline=(before * old.baseline + new.baseline) / old.visits,
            visits=old.visits,
            recalls=old.recalls,
            accepted=old.accepted,
        )


def _informative(row: Row) -> bool:
    """Whether a visit has anything to add to a row."""
    return bool(torch.isfinite(row.key).all()) and math.isfinite(row.baseline)
