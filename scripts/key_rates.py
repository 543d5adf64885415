"""Which key tells tasks apart: rates on half-cheetahs of many kinds, probed in a trained run.

python scripts/key_rates.py RUN: every kind of key, without and with sensor noise (about 8 min).
python scripts/key_rates.py RUN latency: milliseconds of one query against the rows stored.
python scripts/key_rates.py RUN crowd: what the shortlist misses among 2,000 real rows.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from agent.assemble import Trained, load_trained
from agent.memory.key.base import Key
from agent.memory.key.fisher import Fisher
from agent.memory.key.given import Descriptor, NoKey, OracleId
from agent.memory.key.handmade import HandMade
from agent.memory.key.likelihood import Likelihood
from agent.memory.key.stats import Stats
from agent.memory.posterior import Calibration, Prior
from agent.memory.scoring import auroc, brier, chosen, posterior_error, precision_at
from agent.policy import ObsNormalizer
from agent.progress import console
from agent.rollout import TaskBatch
from agent.run import Run
from agent.settings import Machine
from agent.types import Trajectories
from envs.half_cheetah import HalfCheetahBody, HalfCheetahFaults, HalfCheetahVel
from envs.task import Task

KINDS: dict[str, Callable[[], Key]] = {
    "likelihood": Likelihood,
    "likelihood, squares": lambda: Likelihood(features=HandMade(squares=True)),
    "fisher": Fisher,
    "stats": Stats,
    "descriptor (given)": Descriptor,
    "oracle_id (given)": OracleId,
    "none": NoKey,
}
COLUMNS = ("P@1", "P@5", "AUROC new", "ECE", "Brier", "right")
SPEEDS = [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]


def variants() -> HalfCheetahVel:
    """Direction x speed x motor faults x body: a hidden speed, and two perturbations at a time."""
    speed = {"to": "attr:speed", "choices": SPEEDS}
    params = {"speed": speed, **HalfCheetahFaults.PARAMS, **HalfCheetahBody.PARAMS}
    settings = {"name": "half_cheetah_variants", "horizon": 100, "params": params, "perturbed": 2}
    return HalfCheetahVel(**settings)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclasses.dataclass(frozen=True)
class Probes:
    """Probes of the same training tasks, and of the same tasks never trained on."""

    train: list[Trajectories]
    held: list[Trajectories]
    train_given: Tensor
    held_given: Tensor

    def noisy(self, share: float, normalizer: ObsNormalizer, seed: int) -> Probes:
        """As if every sensor had noise of ``share`` of its own spread.

        Only what is recorded is noisy, not what the policy acted on.
        """
        generator = torch.Generator().manual_seed(seed)
        spread = share * normalizer.var.sqrt()

        def blurred(episodes: Trajectories) -> Trajectories:
            noise = [
                spread * torch.randn(x.shape, generator=generator)
                for x in (episodes.obs, episodes.final_obs)
            ]
            return dataclasses.replace(
                episodes, obs=episodes.obs + noise[0], final_obs=episodes.final_obs + noise[1]
            )

        return dataclasses.replace(
            self, train=[blurred(e) for e in self.train], held=[blurred(e) for e in self.held]
        )


def probed(trained: Trained, tasks: Sequence[Task], repeats: int, seed: int) -> list[Trajectories]:
    """Probes of one episode each, by the meta-initialisation."""
    learner, rng = trained.learner, np.random.default_rng(seed)
    params = learner.theta.detach().expand(len(tasks), -1)
    with TaskBatch(variants(), tasks, 1, learner.policy, rng) as batch:
        return [batch.collect(params) for _ in range(repeats)]


def gather(trained: Trained, seed: int, stored: int = 64, repeats: int = 5) -> Probes:
    """Two probes of 100 training tasks; some of ``stored`` others, and of as many that are new."""
    family, rng = variants(), np.random.default_rng(seed)
    train = family.sample(100, rng, "train", distinct=True)
    held = family.sample(2 * stored, rng, "heldout", distinct=True)
    given = [torch.as_tensor(family.describe(tasks)) for tasks in (train, held)]
    return Probes(probed(trained, train, 2, seed), probed(trained, held, repeats, seed + 1), *given)


def rates(key: Key, probes: Probes, normalizer: ObsNormalizer, stored: int = 64) -> list[float]:
    """``COLUMNS``: half of the queries are of stored tasks, half are new; even prior."""
    key.fit(probes.train, normalizer, probes.train_given)
    first, second = (key.encode(p, probes.train_given) for p in probes.train)
    calibration = Calibration.fit([key.score(first, second), key.score(second, first)])
    evidence = [key.encode(p, probes.held_given) for p in probes.held]
    scores = torch.cat([key.score(query, evidence[0][:stored]) for query in evidence[1:]])
    known = (torch.arange(2 * stored) < stored).repeat(len(evidence) - 1)
    own = torch.arange(2 * stored).clamp(max=stored).repeat(len(evidence) - 1)
    posterior = calibration.posterior(scores, Prior.even(stored, 0.5))
    return [
        precision_at(scores[known], own[known], 1),
        precision_at(scores[known], own[known], 5),
        auroc(posterior.null[~known], posterior.null[known]),
        posterior_error(posterior, own),
        brier(posterior, own),
        float((chosen(posterior)[0] == own).double().mean()),
    ]


def table(
    folder: str,
    kinds: dict[str, Callable[[], Key]] = KINDS,
    noises: Sequence[float] = (0.0, 0.05),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> Table:
    """All kinds, mean of the seeds; each seed draws its own tasks."""
    trained = load(folder)
    normalizer = trained.learner.policy.normalizer
    found = Table("key", "sensor noise", *COLUMNS, "seconds", title=_title(seeds))
    for noise in noises:
        sets = [gather(trained, s).noisy(noise, normalizer, s) for s in seeds]
        for name, kind in kinds.items():
            started = time.perf_counter()
            result = [rates(kind(), probes, normalizer) for probes in sets]
            seconds = (time.perf_counter() - started) / len(seeds)
            columns = torch.tensor(result).mean(0).tolist()
            found.add_row(name, f"{noise:.0%}", *(f"{c:.3f}" for c in columns), f"{seconds:.1f}")
    return found


def _title(seeds: Sequence[int]) -> str:
    return f"64 stored and 64 new half-cheetahs, one probe episode; {len(seeds)} seeds"


def latency(folder: str, rows: Sequence[int] = (64, 1_000, 10_000), queries: int = 200) -> Table:
    """Wall milliseconds of ``Key.score`` of one query; rows are real ones, over and over."""
    trained = load(folder)
    probes = gather(trained, 0, repeats=2)
    found = Table("key", "rows", "median, ms", "p99, ms", title="One query, one core")
    for name, kind in KINDS.items():
        key = kind()
        key.fit(probes.train, trained.learner.policy.normalizer, probes.train_given)
        stored, query = (key.encode(p, probes.held_given) for p in probes.held)
        for n in rows:
            bank = stored[torch.arange(n) % len(stored)].contiguous()
            times = []
            for i in range(queries):
                one = query[i % len(query)][None]
                started = time.perf_counter()
                key.score(one, bank)
                times.append(1e3 * (time.perf_counter() - started))
            middle, worst = np.quantile(times, [0.5, 0.99])
            found.add_row(name, f"{n:,}", f"{middle:.2f}", f"{worst:.2f}")
    return found


def crowd(folder: str, rows: int = 2_000, queries: int = 100) -> Table:
    """Retrieval of the default key among many rows, with its shortlist and without."""
    trained = load(folder)
    tasks = variants().sample(rows, np.random.default_rng(7), "train", distinct=True)
    train, normalizer = gather(trained, 0, repeats=2), trained.learner.policy.normalizer
    key = Likelihood()
    key.fit(train.train, normalizer, train.train_given)
    bank = key.encode(probed(trained, tasks, 1, 8)[0])
    query, own = key.encode(probed(trained, tasks[:queries], 1, 9)[0]), torch.arange(queries)
    found = Table("shortlist", "P@1", "P@5", "own row scored", "ms a query", title=f"{rows} rows")
    for shortlist in (16, 64, 256, rows):
        short = Likelihood(shortlist=shortlist)
        short.load_state_dict(key.state_dict())
        started = time.perf_counter()
        score = torch.cat([short.score(q[None], bank) for q in query])
        spent = 1e3 * (time.perf_counter() - started) / queries
        rate = [precision_at(score, own, k) for k in (1, 5)]
        kept = float(torch.isfinite(score.gather(1, own[:, None])).double().mean())
        found.add_row(str(shortlist), *(f"{r:.3f}" for r in (*rate, kept)), f"{spent:.1f}")
    return found


def load(folder: str) -> Trained:
    """A trained run, on the CPU."""
    return load_trained(Run(Path(folder)), Machine(run=folder, device="cpu"))


def main() -> None:
    """Run what was asked for."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case [folder]:
            console.print(table(folder))
        case [folder, "latency"]:
            console.print(latency(folder))
        case [folder, "crowd"]:
            console.print(crowd(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
