"""Side-by-side measurements behind choices made: ratios within one run, not absolute promises.

python scripts/benchmark.py simulation: five robots on our engine and on others (5 min).
python scripts/benchmark.py acting: policies stacked over tasks, and one after another.
python scripts/benchmark.py keys runs/demo: which key metric tells tasks apart, in a trained run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import simulation_rates
import torch
from rich.table import Table

from agent.assemble import load_trained
from agent.cli import configure
from agent.config import build
from agent.memory.keys import KeyMetric, task_coefficients
from agent.memory.store import MemoryConfig
from agent.policy import GaussianMlp
from agent.progress import console
from agent.rollout import TaskBatch
from agent.run import Run
from agent.seeding import generator
from agent.settings import EvaluateSettings
from agent.train import Calibration, probe_twice

ROUNDS = 5
GATE = MemoryConfig().gate


def best_rates(methods: dict[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """Best units per second of each method, rounds interleaved so that all share the same noise."""
    best = dict.fromkeys(methods, 0.0)
    for _ in range(rounds):
        for name, method in methods.items():
            started = time.perf_counter()
            units = method()
            best[name] = max(best[name], units / (time.perf_counter() - started))
    return best


def acting() -> Table:
    """Actions per second of 20 tasks x 3 episodes, stacked and one task after another."""
    policy = GaussianMlp(17, 6)
    params = torch.randn(20, policy.num_params) * 0.1
    obs = torch.randn(20, 3, 17)

    @torch.no_grad()
    def stacked() -> int:
        for _ in range(200):
            policy(params, obs)
        return 200 * 60

    @torch.no_grad()
    def loop() -> int:
        for _ in range(50):
            for t in range(20):
                policy(params[t : t + 1], obs[t : t + 1])
        return 50 * 60

    rates = best_rates({"stacked over tasks": stacked, "one task after another": loop})
    return rate_table("Acting, 64x64 policies of 20 tasks", "actions/s", rates)


def rate_table(title: str, unit: str, rates: dict[str, float]) -> Table:
    """Rates and their ratio to the first."""
    table = Table("method", unit, "ratio", title=title)
    first = next(iter(rates.values()))
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / first:.2f}")
    return table


def keys(folder: str = "runs/demo", tasks: int = 12, probes: int = 4) -> Table:
    """Retrieval among actuator faults (train split) under two weightings of the coefficients."""
    settings = build({"run": folder}, "", EvaluateSettings)
    trained = load_trained(Run(Path(folder)), settings)
    learner = trained.learner
    first, second, _ = probe_twice(learner, trained.family, Calibration(), 0)
    family = build(configure("continual", [])["stream"]["family"], "family")
    rng = generator(0, "tasks")
    drawn = family.sample(tasks, rng, "train", distinct=True)
    params = learner.theta.detach().expand(tasks, -1)
    with TaskBatch(family, drawn, 2, learner.policy, rng) as batch:
        normalizer = learner.policy.normalizer
        found = [task_coefficients(batch.collect(params), normalizer) for _ in range(probes)]
    within = (first - second).square().mean(0) / 2 + 1e-12
    between = (((first + second) / 2).var(0) - within / 2).clamp(min=0)
    unbounded = (between / within).sqrt() / within.sqrt()
    unbounded = unbounded / ((first - second) * unbounded).norm(dim=-1).quantile(0.95)
    columns = ("metric", "top-1", "same task, 95 %", "other task, 1 %", "missed", "mistaken")
    title = f"{tasks} tasks x {probes} probes of 2 episodes; gate {GATE}"
    table = Table(*columns, title=title)
    ours = KeyMetric.fit(first, second)
    for name, metric in (("reliability / sd", ours), ("unbounded Fisher", KeyMetric(unbounded))):
        table.add_row(name, *retrieval(torch.stack([metric.key(c) for c in found])))
    return table


def retrieval(found: torch.Tensor) -> list[str]:
    """Top-1, distances and gate errors of keys ``[probes, tasks, D]`` of the same tasks."""
    probes, tasks, _ = found.shape
    apart = torch.cdist(found.flatten(0, 1), found.flatten(0, 1)).unflatten(1, (probes, tasks))
    apart = apart.unflatten(0, (probes, tasks))  # [probe, task, probe', task']
    pairs = [apart[i, :, j] for i in range(probes) for j in range(probes) if i != j]
    own = torch.eye(tasks, dtype=torch.bool)
    same = torch.cat([p.diagonal() for p in pairs])
    other = torch.cat([p[~own] for p in pairs])
    top1 = torch.stack([(p.argmin(1) == torch.arange(tasks)).double().mean() for p in pairs]).mean()
    missed, mistaken = (same > GATE).double().mean(), (other <= GATE).double().mean()
    distances = [f"{same.quantile(0.95):.2f}", f"{other.quantile(0.01):.2f}"]
    return [f"{top1:.2f}", *distances, f"{missed:.1%}", f"{mistaken:.1%}"]


def main() -> None:
    """Run what was asked for."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["simulation"]:
            console.print(simulation_rates.engines())
            console.print(simulation_rates.integrators())
        case ["acting"]:
            console.print(acting())
        case ["keys"]:
            console.print(keys())
        case ["keys", folder]:
            console.print(keys(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
