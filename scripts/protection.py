"""What protection at test time is worth: the same adaptations, plain and protected, side by side.

python scripts/protection.py RUN [RUN ...] (10 tasks of the train split x 4 draws, 5 steps of 1 and
of 10 episodes; minutes each): the table in docs/learners.md.
"""

from __future__ import annotations

import argparse

from rich.table import Table
from torch import Tensor

from agent.assemble import Trained, load_trained
from agent.evaluate import EvaluationSize, adaptation_curves
from agent.progress import console
from agent.protect import Protection
from agent.run import Run
from agent.seeding import generator
from agent.settings import Machine

TASKS, STEPS, DRAWS, SEED = 10, 5, 4, 0
WORSE = 5.0
"""Units of return below its beginning at which an adaptation has done harm."""


def returns(trained: Trained, episodes: int, protection: Protection | None) -> Tensor:
    """Of the deterministic policy before and after each step, ``[T, draws, STEPS + 1]``."""
    learner, family = trained.learner, trained.family
    tasks = family.sample(TASKS, generator(SEED, "tasks"), "train", distinct=True)
    start = learner.theta.detach().expand(len(tasks) * DRAWS, -1)
    size = EvaluationSize(
        tasks=TASKS,
        steps=STEPS,
        episodes=episodes,
        draws=DRAWS,
        eval_episodes=4,
        protection=protection,
    )
    return adaptation_curves(learner, family, tasks, start, size, SEED).returns


def compared(runs: list[str]) -> Table:
    """A row per run, number of episodes and kind of adaptation."""
    table = Table(title=f"Return after each of {STEPS} steps, train split, seed {SEED}")
    for name in ("run", "episodes", "steps", "before", *map(str, range(1, STEPS + 1)), "worse off"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        trained = load_trained(Run(run), Machine(run=run))
        for episodes in (1, 10):
            for name, protection in (("plain", None), ("protected", Protection())):
                found = returns(trained, episodes, protection)
                harmed = (found[..., -1] < found[..., 0] - WORSE).double().mean()
                cells = [f"{x:.0f}" for x in found.mean((0, 1)).tolist()]
                table.add_row(run, str(episodes), name, *cells, f"{float(harmed):.0%}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a meta-training run")
    console.print(compared(parser.parse_args().runs))
