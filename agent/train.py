"""Meta-training: sample tasks, adapt, collect, update; and at the end learn to tell tasks apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from agent.evaluate import EvaluationSize, adaptation_curves
from agent.learners.base import MetaLearner, Metrics
from agent.memory.key.base import IndistinguishableTasksError
from agent.memory.key.likelihood import Likelihood
from agent.memory.probes import TrainingProbes
from agent.policy import GaussianMlp, PolicyConfig
from agent.progress import Live, Stopped, console, stop_on_signals
from agent.rollout import TaskBatch
from agent.run import Run
from agent.seeding import generator, torch_generator
from envs.task import Split, TaskDistribution


@dataclass(kw_only=True, config={"extra": "forbid"})
class BatchSize:
    """What one meta-iteration looks at."""

    tasks: Annotated[int, Field(ge=1)] = 6
    """T."""
    episodes: Annotated[int, Field(ge=1)] = 10
    """E, per task and adaptation step."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Budget:
    """How long to train: until the first of these is spent."""

    env_steps: Annotated[int, Field(ge=1)] | None = 1_000_000
    """Env steps of all tasks and episodes together; null: any number."""
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Minutes of training, evaluations aside; null: any number."""

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if self.env_steps is None and self.minutes is None:
            raise ValueError("budget: give env_steps or minutes, or training would never end")
        return self

    def share(self, progress: Mapping[str, Any]) -> float:
        """How much of it is spent; 1 or more: all."""
        steps = progress["env_steps"] / self.env_steps if self.env_steps else 0.0
        return max(steps, progress["seconds"] / (60 * self.minutes) if self.minutes else 0.0)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Curve:
    """The learning curve: evaluations during training, always of the same tasks."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Env steps from one to the next; null: none. Their own are not counted as training."""
    split: Split = "validation"
    """Where the tasks are drawn from; never ``heldout``, or what is shown is tuned on."""
    size: EvaluationSize = field(
        default_factory=lambda: EvaluationSize(tasks=10, draws=1, eval_episodes=2)
    )
    """Tasks, steps and episodes of each."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class Calibration:
    """Probes of training tasks, once, at the end, on which any key of the memory is fitted."""

    tasks: Annotated[int, Field(ge=8)] = 100
    """Training tasks, each probed twice."""
    episodes: Annotated[int, Field(ge=1)] = 2
    """Episodes per probe; the same number that an agent of the stream should probe with."""


_NOTHING_YET: dict[str, Any] = {
    "iteration": 0,
    "env_steps": 0,
    "seconds": 0.0,
    "physics_s": 0.0,
    "cpu_seconds": 0.0,
}


def make_policy(
    family: TaskDistribution,
    config: PolicyConfig,
    reveal: bool,
    device: torch.device | str,
    make: Callable[..., GaussianMlp] = GaussianMlp,
) -> GaussianMlp:
    """A policy of the right sizes; one that sees the task has its parameters among the inputs.

    ``make`` is a learner's ``make_policy``.
    """
    obs_size = family.obs_size + (len(family.params) if reveal else 0)
    return make(obs_size, family.action_size, config, device)


def meta_iteration(
    learner: MetaLearner, family: TaskDistribution, size: BatchSize, seed: int, iteration: int
) -> Metrics:
    """One outer step on a fresh batch of tasks."""
    rng = generator(seed, "train", iteration)
    started, cpu_started = time.perf_counter(), time.process_time()
    tasks, copies = family.sample(size.tasks, rng, "train"), size.episodes
    if learner.one_at_a_time:
        tasks, copies = [task for task in tasks for _ in range(copies)], 1
    with TaskBatch(family, tasks, copies, learner.policy, rng, learner.sees_task) as batch:
        adaptation = learner.adapt(batch)
        query = batch.collect(adaptation.params)
        metrics = learner.update(adaptation, query)
        episodes = [*adaptation.support, query]
        seconds = time.perf_counter() - started
        return metrics | {
            "train/return_before": float(episodes[0].returns().nanmean()),
            "train/return_after": float(query.returns().nanmean()),
            "train/diverged": float(sum(int(e.diverged.sum()) for e in episodes)),
            "time/env_steps_per_s": batch.steps_used / seconds,
            "time/physics_share": batch.physics_s / seconds,
            "iteration_steps": float(batch.steps_used),
            "physics_s": batch.physics_s,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu_started,
        }


def train(
    learner: MetaLearner,
    family: TaskDistribution,
    run: Run,
    *,
    size: BatchSize,
    budget: Budget,
    calibration: Calibration,
    checkpoint_every: int,
    seed: int,
    curve: Curve | None = None,
) -> dict[str, Any]:
    """Train to the budget, from wherever the run folder says it was. Returns the progress made.

    Raises:
        Stopped: Somebody asked to stop; everything up to the last whole iteration is saved.
    """
    progress = _NOTHING_YET | (restore(learner, run) or {})
    run.truncate_log(progress["iteration"])
    with Live("meta-training", budget.env_steps) as live, stop_on_signals() as stop:
        while budget.share(progress) < 1:
            metrics = meta_iteration(learner, family, size, seed, progress["iteration"])
            before, progress = progress, _advance(progress, metrics)
            if curve is not None and _due(curve, before, progress, budget):
                metrics |= curve_point(learner, family, curve, seed)
            facts = {k: progress[k] for k in ("iteration", "env_steps", "seconds")}
            run.log(facts | {"time/cpu_seconds": progress["cpu_seconds"]} | metrics)
            live.update(progress["env_steps"], _note(metrics))
            if stop.requested or progress["iteration"] % checkpoint_every == 0:
                run.checkpoints.save(learner.state_dict(), progress)
            if stop.requested:
                raise Stopped(
                    f"Stopped after iteration {progress['iteration']}; saved in {run.folder}. "
                    "The same command continues.",
                    stop.signal,
                )
    if progress.get("key_at") != progress["iteration"]:
        run.checkpoints.save(learner.state_dict(), progress)  # before anything can go wrong
        progress = _calibrated(learner, family, run, calibration, seed, progress)
    return progress


def curve_point(learner: MetaLearner, family: TaskDistribution, curve: Curve, seed: int) -> Metrics:
    """Returns on the curve's tasks before adaptation and after each step, without learning."""
    size = curve.size
    tasks = family.sample(size.tasks, generator(seed, "tasks"), curve.split, distinct=True)
    start = learner.theta.detach().expand(len(tasks) * size.draws, -1)
    returns = adaptation_curves(learner, family, tasks, start, size, seed).returns
    return {f"curve/after_{n}": float(x) for n, x in enumerate(returns.nanmean((0, 1)))}


def _due(curve: Curve, before: Mapping[str, Any], now: Mapping[str, Any], budget: Budget) -> bool:
    """Whether the iteration crossed a point of the curve, the first and the last included."""
    if curve.every is None:
        return False
    crossed = now["env_steps"] // curve.every > before["env_steps"] // curve.every
    return crossed or before["iteration"] == 0 or budget.share(now) >= 1


def _calibrated(
    learner: MetaLearner,
    family: TaskDistribution,
    run: Run,
    calibration: Calibration,
    seed: int,
    progress: dict[str, Any],
) -> dict[str, Any]:
    """The last checkpoint of a run, with its probes, and the reason if tasks look all alike."""
    state, earlier = learner.state_dict(), progress.get("key_steps", 0)
    facts = {"key_at": progress["iteration"], "key_steps": earlier, "key_failure": None}
    if not learner.sees_task:  # an oracle needs no keys
        probes, steps = probe_twice(learner, family, calibration, seed)
        facts["key_steps"] += steps
        state |= {f"probes.{name}": value for name, value in probes.state_dict().items()}
        try:
            probes.fit(Likelihood())
        except IndistinguishableTasksError as error:
            facts["key_failure"] = str(error)
            console.print(f"[yellow]No key[/]: {error}. Evaluation works, the memory will not.")
    run.checkpoints.save(state, progress | facts)
    return progress | facts


def restore(learner: MetaLearner, run: Run) -> dict[str, Any] | None:
    """Put the learner where the run's last checkpoint was; None if there is none."""
    saved = run.checkpoints.load()
    if saved is None:
        return None
    tensors, progress = saved
    learner.load_state_dict(tensors)
    return progress


def load_probes(run: Run, learner: MetaLearner) -> TrainingProbes:
    """The probes of training tasks that a finished training run has made.

    Whether a key can tell the tasks apart is found when it is fitted to them.

    Raises:
        FileNotFoundError: The run is not finished.
    """
    saved = run.checkpoints.load()
    own = {} if saved is None else saved[0]
    state = {n.removeprefix("probes."): v for n, v in own.items() if n.startswith("probes.")}
    if not state or saved is None:
        raise FileNotFoundError(
            f"{run.folder}: holds no finished meta-training (no probes in its checkpoint); run the "
            "training command for this folder to its end first"
        )
    return TrainingProbes.from_state(state, learner.policy.normalizer)


def probe_twice(
    learner: MetaLearner, family: TaskDistribution, config: Calibration, seed: int
) -> tuple[TrainingProbes, int]:
    """Two probes each of M training tasks, and the env steps taken."""
    rng = generator(seed, "calibration")
    tasks = family.sample(config.tasks, rng, "train")
    params = learner.theta.detach().expand(len(tasks), -1)
    given = torch.as_tensor(family.describe(tasks), dtype=torch.float32, device=params.device)
    with TaskBatch(family, tasks, config.episodes, learner.policy, rng) as batch:
        first, second = (batch.collect(params) for _ in range(2))
        probes = TrainingProbes((first, second), given, learner.policy.normalizer)
        return probes, batch.steps_used


def _advance(progress: dict[str, Any], metrics: Metrics) -> dict[str, Any]:
    """The progress after one more iteration; its own entries are moved out of the metrics."""
    return progress | {
        "iteration": progress["iteration"] + 1,
        "env_steps": progress["env_steps"] + int(metrics.pop("iteration_steps")),
        "seconds": progress["seconds"] + metrics.pop("seconds"),
        "physics_s": progress["physics_s"] + metrics.pop("physics_s"),
        "cpu_seconds": progress["cpu_seconds"] + metrics.pop("cpu_seconds"),
    }


def _note(metrics: Metrics) -> str:
    before, after = metrics["train/return_before"], metrics["train/return_after"]
    rate = metrics["time/env_steps_per_s"]
    # The memory is an agent's, born after training; it is shown to be empty until then.
    return f"{rate:,.0f}/s | return {before:.1f} -> {after:.1f} | memory 0 rows"


def new_learner(learner: MetaLearner, policy: GaussianMlp, seed: int) -> MetaLearner:
    """Give a learner its initial state."""
    learner.setup(policy, torch_generator(seed, "init"))
    return learner
