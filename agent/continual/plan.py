"""A stream as one lifetime meets it: the tasks behind the names, the visits, the evaluations."""

from __future__ import annotations

import dataclasses

from agent.continual.life import Planned, TaskInfo
from envs.task import Task, TaskDistribution


@dataclasses.dataclass(frozen=True)
class Plan:
    """One lifetime's stream, drawn: the tasks behind the names, and the visits in their order."""

    tasks: dict[str, Task]
    """By name; also tasks that are evaluated and never visited, and steps of a drift."""
    visits: list[Planned]
    held_out: list[str]
    """Names of tasks that are evaluated and never visited."""
    all_seen: bool = True
    """Whether all tasks seen so far are evaluated at each checkpoint."""

    def revisit(self, visit: int) -> bool:
        """Whether the task of this name was visited before."""
        return self.visits[visit].task in [v.task for v in self.visits[:visit]]

    def scored(self) -> list[str]:
        """Names of the tasks that agents are evaluated on, in the order in which they are met."""
        visited = dict.fromkeys(v.task for v in self.visits if not v.drifting)
        return [*visited, *self.held_out]

    def evaluated(self, checkpoint: int) -> list[str]:
        """Names of the tasks evaluated once so many visits are over.

        Those seen so far (or just the last one) and the next; at both ends everything. Nothing in
        the middle of a drift.
        """
        if checkpoint in (0, len(self.visits)):
            return self.scored()
        around = self.visits[checkpoint - 1 : checkpoint + 1]
        if all(v.drifting for v in around):
            return []
        met = self.visits[: checkpoint + 1] if self.all_seen else around
        return list(dict.fromkeys(v.task for v in met if not v.drifting))

    def infos(self, family: TaskDistribution) -> dict[str, TaskInfo]:
        """The tasks, to be written down."""
        return {
            name: TaskInfo(id=task.id, label=family.label(task), values=dict(task.values))
            for name, task in self.tasks.items()
        }
