"""Meta-training: sample tasks, adapt, collect, update; and at the end learn to tell tasks apart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from agent.distributed import (
    agreed,
    check_divisible,
    from_first,
    gathered,
    rank,
    total_over_processes,
    world_size,
)
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
from agent.tensorboard import tensorboard_log
from envs.task import Split, TaskDistribution


@dataclass(kw_only=True, config={"extra": "forbid"})
class BatchSize:
    """What one meta-iteration looks at."""

    tasks: Annotated[int, Field(ge=1)] = 6
    """T, of all processes together."""
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
            raise ValueError("give env_steps or minutes, or training would never end")
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


NO_CURVE = Curve()


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


# Where the processes' metrics are not simply averaged.
_SUMMED = {"iteration_steps", "cpu_seconds", "train/diverged"}
_LONGEST = {"seconds"}


def training_batch(
    learner: MetaLearner, family: TaskDistribution, size: BatchSize, rng: np.random.Generator
) -> TaskBatch:
    """Fresh tasks of the train split, opened as the learner wants them; this process's share."""
    tasks = family.sample(size.tasks, rng, "train")
    trials, episodes = (size.episodes, 1) if learner.one_at_a_time else (1, size.episodes)
    tasks = [task for task in tasks for _ in range(trials)]
    return TaskBatch(family, tasks, episodes, learner.policy, rng, learner.sees_task, True, trials)


def meta_iteration(
    learner: MetaLearner, family: TaskDistribution, size: BatchSize, seed: int, iteration: int
) -> Metrics:
    """One outer step on a fresh batch of tasks, which processes share; metrics are of all."""
    rng = generator(seed, "train", iteration)
    started, cpu_started = time.perf_counter(), time.process_time()
    with training_batch(learner, family, size, rng) as batch:
        adaptation = learner.adapt(batch)
        query = batch.collect(adaptation.params)
        metrics = learner.update(adaptation, query)
        episodes = [*adaptation.support, query]
        metrics |= {
            "train/return_before": _mean_of_all(episodes[0].returns()),
            "train/return_after": _mean_of_all(query.returns()),
            "train/diverged": float(sum(int(e.diverged.sum()) for e in episodes)),
            "iteration_steps": float(batch.steps_used),
            "physics_s": batch.physics_s,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
        }
    metrics = _of_all(metrics)
    return metrics | {
        "time/env_steps_per_s": metrics["iteration_steps"] / metrics["seconds"],
        "time/physics_share": metrics["physics_s"] / metrics["seconds"],
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
    curve: Curve = NO_CURVE,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Train to the budget, from wherever the run folder says it was. Returns the progress made.

    Processes that train together all come here; the first one reads and writes the run folder.

    Raises:
        Stopped: Somebody asked to stop; everything up to the last whole iteration is saved.
        TogetherError: The batch cannot be divided among the processes, or they lost each other.
    """
    check_divisible(size.tasks)
    progress = _same_start(learner, _NOTHING_YET | (restore(learner, run) or {}))
    run.truncate_log(progress["iteration"])
    board = run.folder / "tensorboard" if tensorboard and rank() == 0 else None
    with (
        Live("meta-training", budget.env_steps) as live,
        tensorboard_log(board, progress["env_steps"]) as show,
        stop_on_signals() as stop,
    ):
        while budget.share(progress) < 1:
            metrics = meta_iteration(learner, family, size, seed, progress["iteration"])
            before, progress = progress, _advance(progress, metrics)
            if rank() == 0 and _due(curve, before, progress, budget):
                metrics |= curve_point(learner, family, curve, seed)
            facts = {k: progress[k] for k in ("iteration", "env_steps", "seconds")}
            run.log(facts | {"time/cpu_seconds": progress["cpu_seconds"]} | metrics)
            show(metrics, progress["env_steps"])
            live.update(progress["env_steps"], _note(metrics), budget.share(progress))
            signal = agreed(stop.signal, learner.state_dict)
            if signal or progress["iteration"] % checkpoint_every == 0:
                run.checkpoints.save(learner.state_dict(), progress)
            if signal:
                raise Stopped(
                    f"Stopped after iteration {progress['iteration']}; saved in {run.folder}. "
                    "The same command continues.",
                    signal,
                )
    if progress.get("key_at") != progress["iteration"] and rank() == 0:
        run.checkpoints.save(learner.state_dict(), progress)  # before anything can go wrong
        progress = _calibrated(learner, family, run, calibration, seed, progress)
    return _from_first(progress)  # nobody leaves before the first has finished


def _same_start(learner: MetaLearner, progress: dict[str, Any]) -> dict[str, Any]:
    """Every process goes on from the learner, and the progress, of the first."""
    progress = _from_first(progress)
    if world_size() > 1:
        state = {k: v.detach().cpu().contiguous() for k, v in learner.state_dict().items()}
        state = load_tensors(from_first(save_tensors(state)))
        if rank() > 0:
            learner.load_state_dict(state)
    return progress


def _from_first(progress: dict[str, Any]) -> dict[str, Any]:
    return json.loads(from_first(json.dumps(progress).encode()))


def _mean_of_all(returns: Tensor) -> float:
    """The mean over the episodes of all processes; those that diverged, NaN, are left out."""
    if world_size() == 1:
        return float(returns.nanmean())
    known = ~returns.isnan()
    total = torch.stack([returns[known].double().sum(), known.double().sum()])
    total, count = total_over_processes(total.cpu()).tolist()
    return total / count if count else float("nan")


def _of_all(metrics: Metrics) -> Metrics:
    """The metrics of all processes as one, the same for all."""
    names = list(metrics)
    own = torch.tensor([metrics[name] for name in names], dtype=torch.float64)
    rows = torch.stack(gathered(own))
    total, longest = rows.sum(0).tolist(), rows.max(0).values.tolist()
    return {
        name: longest[i] if name in _LONGEST else total[i] / (1 if name in _SUMMED else len(rows))
        for i, name in enumerate(names)
    }


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
