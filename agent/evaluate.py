"""Evaluation: return before adaptation and after each of a few steps, on tasks of a split."""

from __future__ import annotations

from dataclasses import asdict, field, replace
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.learners.base import MetaLearner
from agent.learners.transfer import Scratch
from agent.policy import GaussianMlp
from agent.protect import Course, Protection, progressed
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from envs.task import Split, Task, TaskDistribution


@dataclass(kw_only=True, config={"extra": "forbid"})
class EvaluationSize:
    """How an evaluation is done."""

    tasks: Annotated[int, Field(ge=1)] = 8
    """Distinct tasks of the split; a small family gives all it has."""
    steps: Annotated[int, Field(ge=1)] = 3
    """Adaptation steps."""
    episodes: Annotated[int, Field(ge=1)] = 10
    """Episodes collected for each adaptation step."""
    draws: Annotated[int, Field(ge=1)] = 3
    """Independent adaptations of each task, over which returns are averaged."""
    eval_episodes: Annotated[int, Field(ge=1)] = 8
    """Episodes of the deterministic policy by which a return is measured; they teach nothing."""
    protection: Protection | None = field(default_factory=Protection)
    """Takes steps back that do harm, without episodes of its own; null: every step is kept. (Those
    from scratch always are.) Measured on HalfCheetah directions and velocities: as good within
    noise with ten episodes a step, and far better with one to three."""


@plain_dataclass(frozen=True)
class Curves:
    """What a policy reaches before the first adaptation step and after each of them."""

    returns: Tensor
    """``[T, draws, steps + 1]``."""
    success: Tensor | None
    """``[T, steps + 1]``, share of episodes; None where the family has no goal."""
    env_steps: int
    """Taken by adapting and by measuring."""


@plain_dataclass(frozen=True)
class Measured:
    """What a policy reaches: returns ``[T, draws]``, success ``[T]`` if any, env steps it took."""

    returns: Tensor
    success: Tensor | None
    env_steps: int


def evaluate(
    learner: MetaLearner,
    family: TaskDistribution,
    size: EvaluationSize,
    split: Split,
    seed: int,
    oracle: MetaLearner | None = None,
) -> dict[str, Any]:
    """The meta-learner beside an untrained policy, learning from scratch and an oracle, by task.

    All see the same tasks and the same evaluation seeds, and adapt with the same number of
    episodes. Returns what ``evaluation.json`` holds.
    """
    tasks = family.sample(size.tasks, generator(seed, "tasks"), split, distinct=True)
    rows = len(tasks) * size.draws
    start = learner.theta.detach().expand(rows, -1)
    beginner = Scratch.beside(learner, torch_generator(seed, "evaluation", 2))
    fresh = _untrained(beginner.policy, rows, seed)
    ours = adaptation_curves(learner, family, tasks, start, size, seed)
    # Protected, what learns slowly would take noise for harm, and stop: no fair reference.
    bare = replace(size, protection=None)
    scratch = adaptation_curves(beginner, family, tasks, fresh, bare, seed)
    random = measure(beginner.policy, family, tasks, fresh, size, seed, deterministic=False)
    told = None
    if oracle is not None:
        params = oracle.theta.detach().expand(rows, -1)
        told = measure(oracle.policy, family, tasks, params, size, seed, reveal=True)
    entries = [
        {
            "id": task.id,
            "label": family.label(task),
            "values": dict(task.values),
            "returns": ours.returns[i].mean(0).tolist(),
            "returns_sd": ours.returns[i].std(0, unbiased=False).tolist(),
            "success": None if ours.success is None else ours.success[i].tolist(),
            "random": float(random.returns[i].mean()),
            "scratch": scratch.returns[i].mean(0).tolist(),
            "oracle": None if told is None else float(told.returns[i].mean()),
        }
        for i, task in enumerate(tasks)
    ]
    gain = ours.returns[..., 1] - ours.returns[..., 0]
    return {
        "family": family.id,
        "split": split,
        "held_out": family.held_out_note(split),
        "seed": seed,
        "episodes_per_step": size.episodes,
        "draws": size.draws,
        "eval_episodes": size.eval_episodes,
        "protection": None if size.protection is None else asdict(size.protection),  # pyright: ignore[reportArgumentType]
        "horizon": family.horizon,
        "env_steps": sum(
            part.env_steps for part in (ours, scratch, random, told) if part is not None
        ),
        "mean": {
            "meta": ours.returns.nanmean((0, 1)).tolist(),
            "scratch": scratch.returns.nanmean((0, 1)).tolist(),
            "success": None if ours.success is None else ours.success.mean(0).tolist(),
            "random": float(random.returns.nanmean()),
            "oracle": None if told is None else float(told.returns.nanmean()),
        },
        "gain_after_one_step": float(gain.nanmean()),
        "tasks": entries,
    }


def adaptation_curves(
    learner: MetaLearner,
    family: TaskDistribution,
    tasks: list[Task],
    params: Tensor,
    size: EvaluationSize,
    seed: int,
) -> Curves:
    """Adapt ``params [T * draws, P]`` step by step, measuring before the first and after each."""
    repeated = [task for task in tasks for _ in range(size.draws)]
    course = Course.begin(params)
    rng = generator(seed, "adaptation")
    told = learner.sees_task  # an oracle, in training
    curve = [measure(learner.policy, family, tasks, params, size, seed, reveal=told)]
    with TaskBatch(family, repeated, size.episodes, learner.policy, rng, told) as batch:
        for _ in range(size.steps):
            episodes = batch.collect(course.params)
            course = progressed(learner.policy, course, episodes, learner.step, size.protection)
            params = course.params
            curve.append(measure(learner.policy, family, tasks, params, size, seed, reveal=told))
    success = [measured.success for measured in curve if measured.success is not None]
    return Curves(
        torch.stack([measured.returns for measured in curve], -1),
        torch.stack(success, -1) if success else None,
        batch.steps_used + sum(measured.env_steps for measured in curve),
    )


def measure(
    policy: GaussianMlp,
    family: TaskDistribution,
    tasks: list[Task],
    params: Tensor,
    size: EvaluationSize,
    seed: int,
    *,
    deterministic: bool = True,
    reveal: bool = False,
) -> Measured:
    """What ``params [T * draws, P]`` reach; the starts are always the same."""
    repeated = [task for task in tasks for _ in range(size.draws)]
    rng = generator(seed, "evaluation")
    with TaskBatch(family, repeated, size.eval_episodes, policy, rng, reveal) as batch:
        seen = batch.collect(params, deterministic)
    returns = seen.mean_return().cpu().double().reshape(len(tasks), size.draws)
    rate = seen.success_rate()
    success = None if rate is None else rate.cpu().double().reshape(len(tasks), -1).mean(-1)
    return Measured(returns, success, batch.steps_used)


def _untrained(policy: GaussianMlp, rows: int, seed: int) -> Tensor:
    """Fresh parameters for each row, ``[rows, P]``."""
    random = torch_generator(seed, "evaluation", 1)
    return torch.stack([policy.init(random) for _ in range(rows)])
