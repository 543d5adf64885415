"""Readers of the memory side by side: same rows, same tasks, same probes, same twenty episodes.

python scripts/ablate.py INIT [rows=24] [split=validation] [family=half_cheetah_dir_faults]

INIT is a meta-training run. A policy is worked out for each of ``rows`` tasks (10 steps of 6
episodes) and stored; then every stored task comes again, and as many that were never met. All
methods get 20 episodes: 2 of probe, their trials, and the rest with what they decided on. No
gradient step is taken, so that what is seen is reading alone. Regret: what is missing to the true
row (on tasks never met: to the best of the rows and the meta-initialisation, which nobody could
know), as a share of the stored gain of an episode, summed over the 20.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from agent.assemble import build_family, load_trained
from agent.cli import configure
from agent.config import build
from agent.continual.engram import lineage_of, return_so_far
from agent.learners.base import MetaLearner
from agent.memory.candidates import Candidates, corrupt
from agent.memory.codec import Codec
from agent.memory.key.likelihood import Likelihood
from agent.memory.memory import EpisodicMemory, MemoryConfig
from agent.memory.reader.base import attempts
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.policy import GaussianMlp
from agent.progress import console
from agent.rollout import TaskBatch
from agent.run import Run
from agent.seeding import generator
from agent.settings import EvaluateSettings
from agent.train import load_probes
from agent.types import Trajectories
from envs.task import Task, TaskDistribution

READERS: dict[str, dict[str, Any]] = {
    "guarded": {"_target_": "agent.memory.reader.guarded.Guarded"},
    "guarded + residual": {"_target_": "agent.memory.reader.guarded.Guarded", "residual": True},
    "guarded, no abort": {"_target_": "agent.memory.reader.guarded.Guarded", "guard": None},
    "top1 gated": {"_target_": "agent.memory.reader.simple.Top1"},
    "top1": {"_target_": "agent.memory.reader.simple.Top1", "gated": False},
    "softmax_topk": {"_target_": "agent.memory.reader.simple.SoftmaxTopK", "gated": False},
    "average": {"_target_": "agent.memory.reader.simple.Average", "gated": False},
    "thompson": {"_target_": "agent.memory.reader.bandits.Thompson"},
    "bpr": {"_target_": "agent.memory.reader.bandits.Bpr"},
    "gp_ucb (ITE)": {"_target_": "agent.memory.reader.bandits.GpUcb"},
    "halving": {"_target_": "agent.memory.reader.rounds.Halving"},
    "test (FAME)": {"_target_": "agent.memory.reader.rounds.TTest"},
}
RATES = (0.0, 0.3, 0.7, 1.0)
EPISODES, PROBE, STEPS, BATCH = 20, 2, 10, 6


@dataclass
class Library:
    """A memory with a row for each of the first M tasks, and as many tasks that it never met."""

    memory: EpisodicMemory
    family: TaskDistribution
    tasks: list[Task]
    """2 M of them: the stored ones, then those never met."""
    params: Tensor
    """``[M, P]`` the stored policies."""

    @property
    def policy(self) -> GaussianMlp:
        """The policy's form."""
        return self.memory.policy


def stocked(folder: str, rows: int, split: Any, name: str) -> tuple[Library, MetaLearner]:
    """Train and store a policy for each of ``rows`` tasks at once."""
    trained = load_trained(Run(folder), build({"run": folder}, "", EvaluateSettings))
    learner, policy = trained.learner, trained.learner.policy
    family = build_family(configure("train", [f"env={name}"])["env"], "env")
    key, anchor = Likelihood(), learner.theta.detach()
    calibration = load_probes(Run(folder), learner).fit(key)
    memory = EpisodicMemory(
        MemoryConfig(), key, calibration, policy, anchor, lineage_of(anchor), family.horizon
    )
    rng = generator(0, "tasks")
    tasks = family.sample(2 * rows, rng, split, distinct=True)
    if len(tasks) < 2 * rows:
        raise SystemExit(f"{name} has only {len(tasks)} {split} tasks, {2 * rows} are needed")
    params = anchor.expand(rows, -1)
    with TaskBatch(family, tasks[:rows], PROBE, policy, rng) as batch:
        probe = batch.collect(params)
    with TaskBatch(family, tasks[:rows], BATCH, policy, rng) as batch:
        for n in track(range(STEPS), description="working out policies", transient=True):
            episodes = batch.collect(params)
            params = learner.step(params, episodes, n)
        episodes = batch.collect(params)
    evidence = key.encode(probe)
    for i in range(rows):
        own, seen = one(episodes, i), one(probe, i)
        memory.bank.append(
            Row(
                key=evidence[i],
                encoder=key.version,
                params=params[i],
                lineage=memory.lineage,
                record=ReturnRecord.of(own),
                baseline=float(seen.mean_return()),
                probe=Transitions.of(seen, 256),
            )
        )
    return Library(memory, family, tasks, params), learner


def one(episodes: Trajectories, i: int) -> Trajectories:
    """Task i alone."""
    return episodes._map(lambda x: x[i : i + 1])


def probed(library: Library, learner: MetaLearner) -> tuple[Candidates, Tensor]:
    """What every reader gets to choose from, and the mean return of the probes ``[2M]``."""
    anchor = learner.theta.detach()
    with TaskBatch(
        library.family, library.tasks, PROBE, library.policy, generator(1, "visit")
    ) as batch:
        probe = batch.collect(anchor.expand(len(library.tasks), -1))
    evidence = library.memory.key.encode(probe)
    return library.memory.candidates(evidence, return_so_far(probe)), probe.returns().nanmean(1)


def acted(library: Library, params: Tensor, episodes: int, seed: int = 2) -> Tensor:
    """Returns ``[2M, episodes]`` of one policy ``[2M, P]`` per task."""
    with TaskBatch(
        library.family, library.tasks, episodes, library.policy, generator(seed, "visit")
    ) as batch:
        return batch.collect(params).returns()


def best_returns(library: Library, anchor: Tensor) -> Tensor:
    """``[2M]`` mean return of the true row, or of the best of the rows and the anchor."""
    m = len(library.params)
    own = acted(library, torch.cat([library.params, anchor[m:]]), 18, seed=8).nanmean(1)
    # Every row on every new task. The best of them is picked on other episodes than it is judged.
    found = [acted(library, row.expand(2 * m, -1), 4, seed=9).nanmean(1) for row in library.params]
    place = torch.stack([*found, acted(library, anchor, 4, seed=9).nanmean(1)]).argmax(0)
    rows = torch.cat([library.params, anchor[:1]])
    judged = acted(library, rows[place], 18, seed=8).nanmean(1)
    return torch.cat([own[:m], judged[m:]])


def read(library: Library, candidates: Candidates, reader: dict[str, Any], rate: float) -> Tensor:
    """Returns ``[2M, 18]`` of the episodes after the probe, with ``rate`` wrong matches."""
    draws = torch.Generator().manual_seed(7)
    found = corrupt(candidates, rate, draws)
    trial = build(reader, "reader").open(found, draws)
    left = EPISODES - PROBE
    with TaskBatch(
        library.family, library.tasks, 1, library.policy, generator(5, "visit")
    ) as batch:
        made = attempts(trial, lambda params, guard: batch.collect(params, guard=guard), left)
        returns = [a.episodes.returns() for a in made]
    if len(made) < left:
        returns.append(acted(library, trial.start(), left - len(made), seed=6))
    return torch.cat(returns, 1)


def regrets(library: Library, learner: MetaLearner) -> Table:
    """The table: regret of each reader at each rate of wrong matches, and on tasks never met."""
    m, left = len(library.tasks) // 2, EPISODES - PROBE
    candidates, probe = probed(library, learner)
    anchor = learner.theta.detach().expand(2 * m, -1)
    meta = acted(library, anchor, left)
    best = best_returns(library, anchor)
    rows = library.memory.bank.snapshot()
    gain = (rows.mean - rows.baseline).clamp(min=1.0)
    unit = torch.cat([gain, gain.mean().expand(m)])

    def regret(returns: Tensor) -> Tensor:
        lived = PROBE * probe + left * returns.nanmean(1)
        return (best * EPISODES - lived) / unit

    right = candidates.index[:m, 0].cpu() == torch.arange(m)
    columns = ["reader", *(f"known, {r:.0%} wrong" for r in RATES), "new", "new, worse by > 1 se"]
    table = Table(*columns)
    base, again = regret(meta), acted(library, anchor, left, seed=3)
    known, chance = [f"{base[:m].mean():.1f}"] * len(RATES), worse_than(meta, again)[m:].mean()
    table.add_row("meta-init only", *known, f"{base[m:].mean():.1f}", f"({chance:.0%})")
    for name, reader in track(READERS.items(), description="reading", transient=True):
        cells = []
        for rate in RATES:
            returns = read(library, candidates, reader, rate)
            cells.append(f"{regret(returns)[:m].mean():.1f}")
            if rate == 0.0:
                new = regret(returns)[m:].mean()
                worse = worse_than(meta, returns)[m:].mean()
        table.add_row(name, *cells, f"{new:.1f}", f"{worse:.0%}")
    table.caption = "(In brackets: the meta-initialisation against itself, by chance alone.)"
    table.title = (
        f"Regret over {EPISODES} episodes in stored gains; {m} rows; P@1 {right.float().mean():.2f}"
        f", AUROC of novelty {auroc(candidates.null[m:], candidates.null[:m]):.2f}"
    )
    return table


def codecs(library: Library) -> Table:
    """What is left of the stored gains in few bits: 24 deterministic episodes of each, paired."""
    m, policy = len(library.params), library.policy
    anchor = library.memory.bank.anchor

    def returned(params: Tensor) -> Tensor:
        with TaskBatch(
            library.family, library.tasks[:m], 24, policy, generator(4, "evaluation")
        ) as batch:
            return batch.collect(params, deterministic=True).mean_return()

    full, base = returned(library.params), returned(anchor.expand(m, -1))
    table = Table("codec", "bytes of the policy", "gain kept, mean", "worst task")
    for kind in ("float32", "bfloat16", "int8", "int4"):
        codec = Codec(kind, tuple(policy.segments))
        coded = [codec.encode(p - anchor) for p in library.params]
        decoded = torch.stack([anchor + codec.decode(c) for c in coded])
        kept = (returned(decoded) - base) / (full - base)
        size = len(coded[0])
        table.add_row(kind, f"{size:,}", f"{kept.mean():.3f}", f"{kept.min():.3f}")
    state = library.memory.bank
    table.title = f"{state.bytes / len(state) / 1024:.1f} KiB a row with all that is kept (int8)"
    return table


def worse_than(meta: Tensor, returns: Tensor) -> Tensor:
    """1 where the first ten episodes are worse by more than a standard error, ``[2M]``."""
    first, other = meta[:, :10], returns[:, :10]
    noise = ((first.var(1).nan_to_num() + other.var(1).nan_to_num()) / 10).sqrt()
    return (first.nanmean(1) - other.nanmean(1) > noise).float()


def auroc(new: Tensor, known: Tensor) -> float:
    """Probability that a new task's null is above a known one's."""
    above = (new[:, None] > known[None]).float() + 0.5 * (new[:, None] == known[None]).float()
    return float(above.mean())


def main() -> None:
    """Run what was asked for."""
    torch.set_num_threads(1)
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    settings = dict(word.split("=", 1) for word in sys.argv[2:])
    library, learner = stocked(
        sys.argv[1],
        int(settings.get("rows", 24)),
        settings.get("split", "validation"),
        settings.get("family", "half_cheetah_dir_faults"),
    )
    console.print(codecs(library))
    console.print(regrets(library, learner))


if __name__ == "__main__":
    main()
