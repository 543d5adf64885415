"""What it costs to remember: a whole read, acting afterwards, and looking for the nearest row.

python scripts/memory_rates.py [device]: two tables (2 min on one CPU core). Tasks and policies are
made up, of HalfCheetah's sizes: only times are measured here.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.table import Table
from torch import Tensor

from agent.memory.bank import Bank, BankConfig, Sizes
from agent.memory.key.base import Key
from agent.memory.key.fisher import Fisher
from agent.memory.key.likelihood import Likelihood
from agent.memory.nearest import Nearest
from agent.memory.posterior import Calibration, Posterior, Prior
from agent.memory.ranking import top_rows
from agent.memory.row import ReturnRecord, Row, Transitions
from agent.memory.snapshot import Snapshot
from agent.policy import GaussianMlp, ObsNormalizer
from agent.progress import console
from agent.types import Trajectories

OBS, ACTION, HORIZON, PROBE_STEPS = 17, 6, 200, 256
CONTROL_PERIOD = 0.05
"""Seconds between two actions of HalfCheetah."""
CANDIDATES = 8
ROWS = (1_000, 10_000)
READS, ACTIONS = 300, 1000
NEAREST_OF, KEY_SIZE, NEAREST = (1_000, 10_000, 100_000, 1_000_000), 64, 8
TASKS, STORED_TASKS = 40, 500


@dataclass(frozen=True)
class Times:
    """Of many calls, one by one, in milliseconds."""

    seconds: list[float]

    def quantile(self, share: float) -> float:
        """So many of the calls took no longer."""
        return (
            1e3 * sorted(self.seconds)[min(int(share * len(self.seconds)), len(self.seconds) - 1)]
        )


def timed(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> list[Times]:
    """Each call ``rounds`` times, in turn, so that all share the same noise."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name].append(time.perf_counter() - started)
    return [Times(seconds) for seconds in found.values()]


def made_up(tasks: int, seed: int) -> Trajectories:
    """An episode ``[T, 1, H]`` of each of T linear tasks; the same seeds are the same tasks."""
    rules, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    drift = 0.3 * torch.randn(tasks, OBS + ACTION, OBS, generator=rules) / OBS**0.5
    worth = torch.randn(tasks, OBS, 1, generator=rules)
    obs = [torch.randn(tasks, OBS, generator=noise)]
    action = torch.randn(tasks, HORIZON, ACTION, generator=noise)
    for h in range(HORIZON):
        seen = torch.cat([obs[-1], action[:, h].clamp(-1, 1)], -1)[:, None]
        jolt = 0.1 * torch.randn(tasks, OBS, generator=noise)
        obs.append(0.5 * obs[-1] + (seen @ drift)[:, 0] + jolt)
    steps = torch.stack(obs, 1)
    reward = (steps[:, 1:] @ worth)[..., 0]
    none = torch.zeros(tasks, 1, dtype=torch.bool)
    return Trajectories(
        obs=steps[:, None, :-1],
        action=action[:, None],
        log_prob=torch.zeros_like(reward)[:, None],
        reward=reward[:, None],
        mask=torch.ones_like(reward)[:, None],
        final_obs=steps[:, None, -1],
        terminated=none,
        diverged=none,
    )


def two_probes(tasks: int) -> tuple[Trajectories, Trajectories]:
    """Of the same tasks: the two halves of an episode, which is all that fitting a key needs."""
    whole, half = made_up(tasks, 0), HORIZON // 2

    def cut(piece: slice) -> Trajectories:
        columns = {n: getattr(whole, n)[:, :, piece] for n in ("obs", "action", "reward", "mask")}
        last = whole.next_obs()[:, :, piece][:, :, -1]
        flags = {"terminated": whole.terminated, "diverged": whole.diverged}
        log_prob = torch.zeros_like(columns["reward"])
        return Trajectories(**columns, **flags, log_prob=log_prob, final_obs=last)

    return cut(slice(0, half)), cut(slice(half, None))


def filled(rows: int, key: Key, policy: GaussianMlp, anchor: Tensor) -> Bank:
    """A bank of so many rows with keys of ``STORED_TASKS`` tasks."""
    episodes = made_up(STORED_TASKS, 100)
    keys = key.encode(episodes).cpu()
    sizes = Sizes(key.size, policy.num_params, HORIZON, OBS, ACTION)
    bank = Bank(BankConfig(rows=rows), sizes, anchor, "rates", policy.device, key.version)
    generator = torch.Generator().manual_seed(0)
    record = ReturnRecord(1.0, 0.1, 6, torch.zeros(HORIZON), torch.ones(HORIZON))
    probes = [
        Transitions(
            episodes.obs[t, 0],
            episodes.action[t, 0],
            episodes.reward[t, 0],
            episodes.next_obs()[t, 0],
            torch.arange(HORIZON) == 0,
        )
        for t in range(STORED_TASKS)
    ]
    for i in range(rows):
        params = anchor.cpu() + 0.1 * torch.randn(policy.num_params, generator=generator)
        t = i % STORED_TASKS
        row = Row(
            key=keys[t],
            encoder=key.version,
            params=params,
            lineage="rates",
            record=record,
            baseline=0.0,
            probe=probes[t],
        )
        bank.append(row)
    return bank


def read(snapshot: Snapshot, key: Key, query: Tensor) -> tuple[Posterior, Tensor, Tensor]:
    """All of a read: the posterior over rows and "none of these", and the best rows decoded."""
    # Rows of other encoders, had there been any, are NaN in the snapshot's keys, and score -inf.
    score = key.score(query, snapshot.keys)
    found = Calibration().posterior(score, Prior.recurrence(snapshot.visits, 1.0))
    _, index = top_rows(found.weight, CANDIDATES)
    return found, snapshot.params(index), snapshot.bands(index)[0]


def recall(device: torch.device) -> Table:
    """Latency of a whole read and of an action afterwards, against rows stored."""
    policy = GaussianMlp(OBS, ACTION, device=device)
    anchor = policy.init(torch.Generator().manual_seed(0))
    normalizer = ObsNormalizer(OBS, device)
    table = Table(
        "key",
        "rows",
        "KiB/row",
        "encode",
        "read p50",
        "p99",
        "of period",
        "action p50",
        title=f"A read of the {CANDIDATES} best rows, in ms, on {device}",
        caption="encode: one probe episode; period: between two actions, "
        f"{1e3 * CONTROL_PERIOD:.0f} ms; action: of the policy that was read",
    )
    query_episode, obs = made_up(1, 7), torch.randn(1, 1, OBS, device=device)
    for key in (Likelihood(), Fisher()):
        key.fit(two_probes(TASKS), normalizer)
        query = key.encode(query_episode).to(device)
        for rows in ROWS:
            bank = filled(rows, key, policy, anchor)
            snapshot = bank.snapshot()
            with torch.no_grad():
                acting = read(snapshot, key, query)[1][:, 0]
                one = partial(timed, device=device)
                encoding = one({"": partial(key.encode, query_episode)}, 20)[0]
                reading = one({"": partial(read, snapshot, key, query)}, READS)[0]
                action = one({"": partial(policy, acting, obs)}, ACTIONS)[0]
            p99 = reading.quantile(0.99)
            table.add_row(
                type(key).__name__,
                f"{rows:,}",
                f"{bank.bytes / len(bank) / 1024:.1f}",
                f"{encoding.quantile(0.5):.2f}",
                f"{reading.quantile(0.5):.2f}",
                f"{p99:.2f}",
                f"{p99 / 1e3 / CONTROL_PERIOD:.1%}",
                f"{action.quantile(0.5):.3f}",
            )
    return table


def nearest(device: torch.device) -> Table:
    """The nearest of up to a million rows, beside faiss's exact index, in one run."""
    table = Table(
        "rows",
        "queries",
        "ours",
        "faiss Flat",
        "ours / faiss",
        "reading all keys once",
        title=f"The {NEAREST} nearest of rows x {KEY_SIZE}, ms (best), on {device}; faiss on cpu",
    )
    generator = torch.Generator().manual_seed(0)
    for rows in NEAREST_OF:
        keys = torch.randn(rows, KEY_SIZE, generator=generator)
        here = keys.to(device)
        ours, theirs = Nearest(here), faiss_search(keys)
        for queries in (1, 32):
            query = torch.randn(queries, KEY_SIZE, generator=generator)
            asked, array = query.to(device), query.numpy()
            calls: dict[str, Callable[[], object]] = {
                "ours": lambda a=asked, o=ours: o.search(a, NEAREST),
                "pass": lambda k=here: k.clone(),  # reads all, and writes as much
            }
            if theirs is not None:
                calls["faiss"] = lambda a=array, f=theirs: f(a, NEAREST)
                same = theirs(array, NEAREST)[1] == ours.search(asked, NEAREST)[1].cpu().numpy()
                # Rows whose distances agree to the last digits may change places.
                if same.mean() < 0.99:
                    raise RuntimeError("not the same rows as faiss finds")
            times = [t.quantile(0.0) for t in timed(calls, 30 if rows < 1e6 else 7, device)]
            beside = (
                [f"{times[2]:.3f}", f"{times[0] / times[2]:.2f}"] if len(times) > 2 else ["-", "-"]
            )
            table.add_row(
                f"{rows:,}", f"{queries}", f"{times[0]:.3f}", *beside, f"{times[1] / 2:.3f}"
            )
    return table


def faiss_search(keys: Tensor) -> Callable | None:
    """Search of faiss's exact index of the keys; None where it is not installed (extra: bench)."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(keys.shape[1])
    index.add(keys.numpy())  # pyright: ignore[reportCallIssue]
    return index.search


def tables(device: torch.device | str | None = None) -> list[Table]:
    """Everything, on a device; by default on a GPU if there is one."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return [recall(device), nearest(device)]


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    for table in tables(*sys.argv[1:2]):
        console.print(table)


if __name__ == "__main__":
    main()
