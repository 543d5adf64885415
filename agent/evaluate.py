"""Evaluation: return before adaptation and after each of a few steps, on tasks of a split."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.learners.base import MetaLearner
from agent.policy import GaussianMlp
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


@plain_dataclass(frozen=True)
class Curves:
    """Returns ``[T, draws, steps + 1]`` and the env steps that adapting and measuring took."""

    returns: Tensor
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
    fresh = _untrained(learner.policy, rows, seed)
    ours = adaptation_curves(learner, family, tasks, start, size, seed)
    scratch = adaptation_curves(learner, family, tasks, fresh, size, seed, meta_learned=False)
    random, random_steps = measure(
        learner.policy, family, tasks, fresh, size, seed, deterministic=False
    )
    told, told_steps = None, 0
    if oracle is not None:
        params = oracle.theta.detach().expand(rows, -1)
        told, told_steps = measure(oracle.policy, family, tasks, params, size, seed, reveal=True)
    entries = [
        {
            "id": task.id,
            "label": family.label(task),
            "values": dict(task.values),
            "returns": ours.returns[i].mean(0).tolist(),
            "returns_sd": ours.returns[i].std(0, unbiased=False).tolist(),
            "random": float(random[i].mean()),
            "scratch": scratch.returns[i].mean(0).tolist(),
            "oracle": None if told is None else float(told[i].mean()),
        }
        for i, task in enumerate(tasks)
    ]
    gain = ours.returns[..., 1] - ours.returns[..., 0]
    return {
        "family": family.name,
        "split": split,
        "held_out": held_out_note(family),
        "seed": seed,
        "episodes_per_step": size.episodes,
        "draws": size.draws,
        "eval_episodes": size.eval_episodes,
        "horizon": family.horizon,
        "env_steps": ours.env_steps + scratch.env_steps + random_steps + told_steps,
        "mean": {
            "meta": ours.returns.mean((0, 1)).tolist(),
            "scratch": scratch.returns.mean((0, 1)).tolist(),
            "random": float(random.mean()),
            "oracle": None if told is None else float(told.mean()),
        },
        "gain_after_one_step": float(gain.mean()),
        "tasks": entries,
    }


def adaptation_curves(
    learner: MetaLearner,
    family: TaskDistribution,
    tasks: list[Task],
    params: Tensor,
    size: EvaluationSize,
    seed: int,
    meta_learned: bool = True,
) -> Curves:
    """Adapt ``params [T * draws, P]`` step by step, measuring before the first and after each step.

    Without ``meta_learned``, for what did not come from the meta-learner, only the task adapter is
    used.
    """
    repeated = [task for task in tasks for _ in range(size.draws)]
    first = 0 if meta_learned else learner.meta_steps
    rng = generator(seed, "adaptation")
    measured, steps = measure(learner.policy, family, tasks, params, size, seed)
    curve = [measured]
    with TaskBatch(family, repeated, size.episodes, learner.policy, rng) as batch:
        for n in range(size.steps):
            params = learner.step(params, batch.collect(params), first + n)
            measured, used = measure(learner.policy, family, tasks, params, size, seed)
            curve.append(measured)
            steps += used
        return Curves(torch.stack(curve, -1), steps + batch.steps_used)


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
) -> tuple[Tensor, int]:
    """Mean return ``[T, draws]`` of ``params [T * draws, P]``, and the env steps taken.

    The starts are always the same.
    """
    repeated = [task for task in tasks for _ in range(size.draws)]
    rng = generator(seed, "evaluation")
    with TaskBatch(family, repeated, size.eval_episodes, policy, rng, reveal) as batch:
        returns = batch.collect(params, deterministic).mean_return()
        return returns.cpu().double().reshape(len(tasks), size.draws), batch.steps_used


def held_out_note(family: TaskDistribution) -> str:
    """What is and what is not held out of training, in a sentence."""
    if family.holds_out:
        return (
            "Held-out tasks come from cells of the parameter space (a tenth of all, chosen by "
            "hash) from which training never draws."
        )
    return (
        "Nothing is held out: the family is so small that every task is trained on; only the reset "
        "and action noise of the evaluation are new."
    )


def _untrained(policy: GaussianMlp, rows: int, seed: int) -> Tensor:
    """Fresh parameters for each row, ``[rows, P]``."""
    random = torch_generator(seed, "evaluation", 1)
    return torch.stack([policy.init(random) for _ in range(rows)])
