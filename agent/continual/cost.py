"""What a lifetime on a stream will cost: env steps, CPU time of the simulator, disk."""

from __future__ import annotations

import dataclasses
import json
import time

from agent.continual.life import Episode, Evaluation
from agent.continual.plan import Plan
from agent.continual.stream import Stream
from envs.checks.recording import explore, opened, record
from envs.task import Task, TaskDistribution

_COPIES = 6
"""Parallel episodes of the probe; agents act in about as many."""
_STEPS = 100
_ENOUGH_S = 0.3
_VISIT_BYTES = 1500
"""Of a visit in ``life.json``, without memory."""
_BYTES_PER_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one lifetime of an agent; episodes that end early make it less."""

    visits: int
    episodes: int
    """Of all visits."""
    env_steps: int
    """Of all visits."""
    evaluations: int
    """Entries of the evaluation matrix, and what each visit led to."""
    evaluation_env_steps: int
    """At most: a policy that has not changed is not measured again. Without the probes that agents
    with a memory make of their own to be evaluated."""
    stored_mb: float
    """Of ``episodes.jsonl`` and of the evaluations and visits in ``life.json``, in MB."""

    @property
    def evaluation_share(self) -> float:
        """Env steps of evaluation for each one of training."""
        return self.evaluation_env_steps / self.env_steps

    def cpu_minutes(self, rate: float) -> float:
        """Of the simulator, at so many env steps a second of CPU time."""
        return (self.env_steps + self.evaluation_env_steps) / rate / 60.0


def cost_of(stream: Stream, family: TaskDistribution, plan: Plan) -> Cost:
    """The cost of the lifetime that was planned."""
    episodes = sum(visit.episodes for visit in plan.visits)
    entries = sum(len(plan.evaluated(c)) for c in range(len(plan.visits) + 1)) + len(plan.visits)
    name = max(plan.tasks, key=len)
    line = {"visit": len(plan.visits), "task": name, "purpose": "learn", "episode": 100}
    line |= {"return": -123.45678901234567, "length": family.horizon, "success": False}
    entry = {"checkpoint": len(plan.visits), "task": name, "env_steps": 10_000}
    entry |= {"returns": [-123.45678901234567] * stream.eval_episodes}
    each = len(json.dumps(Episode.model_validate(line).model_dump(by_alias=True))) + 1
    each_entry = len(json.dumps(Evaluation.model_validate(entry).model_dump(), indent=1))
    stored = episodes * each + entries * each_entry + len(plan.visits) * _VISIT_BYTES
    return Cost(
        visits=len(plan.visits),
        episodes=episodes,
        env_steps=episodes * family.horizon,
        evaluations=entries,
        evaluation_env_steps=entries * stream.eval_episodes * family.horizon,
        stored_mb=stored / _BYTES_PER_MB,
    )


def steps_per_cpu_second(family: TaskDistribution, task: Task) -> float:
    """How fast a task is simulated under random actions, by a short trial.

    CPU time of this process, all threads together: a family with worker processes seems faster.
    """
    actions = explore(family, min(family.horizon, _STEPS), 1, _COPIES, seed=0)
    steps, seconds = 0, 0.0
    with opened(family, [task], _COPIES) as simulators:
        record(simulators, actions, seed=0)  # the first time is slower
        while seconds < _ENOUGH_S:
            started = time.process_time()
            played = record(simulators, actions, seed=0)
            seconds += time.process_time() - started
            steps += int(played.running.sum())
    return steps / seconds
