"""Side-by-side measurements behind choices made: ratios within one run, not absolute promises.

python scripts/benchmark.py simulation: five robots on our engine and on others (5 min).
python scripts/benchmark.py acting: policies stacked over tasks, and one after another.
python scripts/benchmark.py memory: reading latency, and top-k against faiss.
python scripts/benchmark.py learners: meta-training with each learner, beside simulation alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import learner_rates
import memory_rates
import simulation_rates
import torch
from rich.table import Table

from agent.policy import GaussianMlp
from agent.progress import console

ROUNDS = 5


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


def main() -> None:
    """Run what was asked for."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["simulation"]:
            console.print(simulation_rates.engines())
            console.print(simulation_rates.integrators())
        case ["acting"]:
            console.print(acting())
        case ["memory"]:
            console.print(*memory_rates.tables(), sep="\n")
        case ["learners"]:
            console.print(learner_rates.learners())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
