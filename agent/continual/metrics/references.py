"""What scores are measured against: the random, scratch and expert lifetimes of the same seed."""

from __future__ import annotations

import dataclasses
import math

from agent.continual.life import Life

INFORMATIVE = 0.9
"""Area under the reference's curve above which a transfer divided by the rest is mostly noise."""


@dataclasses.dataclass(frozen=True)
class References:
    """The reference lifetimes of one seed; those that there are."""

    random: Life | None = None
    """Does what it likes; its first evaluations are the score 0."""
    scratch: Life | None = None
    """Reset at each visit of the same schedule: what learning alone comes to."""
    expert: Life | None = None
    """Every task once, with several times the budget; what a visit led to is the score 1."""

    def bounds(self, life: Life) -> tuple[dict[str, float], dict[str, float], list[str]]:
        """By task of the lifetime, the returns that are 0 and 1, and why some are NaN.

        Tasks are matched by id, not by name.
        """
        random, expert = _lived(self.random), _lived(self.expert)
        zero = _at_start(random) if random else {}
        one = _after_own_visit(expert) if expert else {}
        notes = [
            f"no normalised scores: there is no {kind} reference of seed {life.seed}"
            for kind, found in (("random", random), ("expert", expert))
            if found is None
        ]
        low, high = {}, {}
        for name, task in life.protocol.tasks.items():
            low[name], high[name] = zero.get(task.id, math.nan), one.get(task.id, math.nan)
            if random and expert and not high[name] > low[name]:
                notes.append(
                    f"no normalised scores on task {name}: the expert's return {high[name]:.4g} is "
                    f"not above the random agent's {low[name]:.4g}"
                )
        return low, high, notes

    def reset(self, life: Life) -> tuple[Life | None, list[str]]:
        """The scratch lifetime if it can be compared with this one, and why not otherwise."""
        scratch = _lived(self.scratch)
        if scratch is None:
            return None, [f"no transfer: there is no scratch reference of seed {life.seed}"]
        if _visited(scratch) != _visited(life):
            return None, ["no transfer: the scratch reference had another schedule"]
        return scratch, []


def _lived(life: Life | None) -> Life | None:
    return life if life is not None and life.status == "done" else None


def _visited(life: Life) -> list[tuple[str, int]]:
    tasks = life.protocol.tasks
    return [(tasks[planned.task].id, planned.episodes) for planned in life.protocol.schedule]


def _at_start(life: Life) -> dict[str, float]:
    tasks = life.protocol.tasks
    return {tasks[e.task].id: e.mean for e in life.evaluations if e.checkpoint == 0}


def _after_own_visit(life: Life) -> dict[str, float]:
    tasks = life.protocol.tasks
    return {tasks[visit.task].id: visit.end_mean for visit in life.visits}
