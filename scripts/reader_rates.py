"""What each way of reading the memory costs, at any quality of the key: regret on a point robot.

python scripts/reader_rates.py: readers x share of right first matches, and novel tasks (1 min).

A point that is to move at a velocity; its direction, and the actuators' rotation and gain, are
hidden. Stored policies were trained on their own task from one meta-initialisation, by gradients
through the dynamics. Everything after that is real: episodes are acted by ``TaskBatch``, guards
stop them inside, trials are charged. Nothing adapts, so that only reading is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from agent.memory.candidates import Candidates, corrupt
from agent.memory.guard import Guard
from agent.memory.reader.bandits import Bpr, GpUcb, Thompson
from agent.memory.reader.base import Reader
from agent.memory.reader.guarded import Guarded
from agent.memory.reader.rounds import Halving, TTest
from agent.memory.reader.simple import Average, SoftmaxTopK, Top1
from agent.policy import GaussianMlp, PolicyConfig
from agent.progress import console
from agent.rollout import TaskBatch
from agent.types import Trajectories
from envs.task import Param, Task, TaskDistribution, VectorTasks

HORIZON, EPISODES, PLACES = 50, 20, 8
WORST = -8.0
"""Returns are bounded below: a robot is switched off."""
KEY_WIDTH = 0.5
"""Distance of task descriptors at which two tasks look alike to the simulated key."""


class Point(TaskDistribution):
    """A point in a plane; a task is a direction to go, a rotation of the actuators, their gain."""

    @property
    def raw_obs_size(self) -> int:
        """Velocity."""
        return 2

    @property
    def action_size(self) -> int:
        """A force."""
        return 2

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """What the policy says."""
        return -np.ones(2), np.ones(2)

    def simulate(self, tasks: Sequence[Task], copies: int) -> VectorTasks:
        """Open the simulators."""
        return _Points(tasks, copies)


class _Points(VectorTasks):
    def __init__(self, tasks: Sequence[Task], copies: int) -> None:
        self.tasks, self.copies, self.physics_s = tasks, copies, 0.0
        self._hidden = hidden(tasks)[:, None]
        self._ones = np.zeros((len(tasks), copies), dtype=bool)

    @property
    def diverged(self) -> np.ndarray:
        """Never."""
        return self._ones

    def reset(self, seed: int) -> np.ndarray:
        """Nearly at rest."""
        generator = torch.Generator().manual_seed(seed)
        self._state = 0.2 * torch.randn(*self._ones.shape, 2, generator=generator)
        return self._state.numpy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step; an episode has no other end than the horizon."""
        force = torch.as_tensor(action, dtype=torch.float32)
        self._state, reward = moved(self._state, force, self._hidden)
        return self._state.numpy(), reward.numpy(), self._ones, self._ones

    def close(self) -> None:
        """Nothing to close."""


def hidden(tasks: Sequence[Task]) -> Tensor:
    """``[T, 3]``: angle, rotation, gain."""
    return torch.tensor([[t.values[k] for k in ("angle", "rotation", "gain")] for t in tasks])


def moved(state: Tensor, force: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
    """Next velocity and reward, for ``task [..., 3]``."""
    angle, rotation, gain = task[..., :1], task[..., 1:2], task[..., 2:]
    c, s = rotation.cos(), rotation.sin()
    x, y = force[..., :1], force[..., 1:]
    push = gain * torch.cat([c * x - s * y, s * x + c * y], -1)
    velocity = 0.6 * state + 0.4 * push
    target = torch.cat([angle.cos(), angle.sin()], -1)
    reward = -(2 / HORIZON * (velocity - target).square().sum(-1)).clamp(max=-WORST / HORIZON)
    return velocity, reward


@dataclass(frozen=True)
class World:
    """Trained policies, what they return, and tasks that none of them was trained on."""

    family: Point
    policy: GaussianMlp
    anchor: Tensor
    """``[P]``."""
    tasks: list[Task]
    """First those with a row, then as many novel ones."""
    params: Tensor
    """``[2N, P]``, each trained on its task."""
    records: Trajectories
    """``[2N, E, H]`` of each on its own task."""
    baseline: Trajectories
    """``[2N, E, H]`` of the meta-initialisation."""


def make_world(rows: int = 24, seed: int = 0, steps: int = 100) -> World:
    """Train a policy for each of ``rows`` tasks with a row, and of as many novel ones."""
    family = Point(
        name="point",
        horizon=HORIZON,
        params={
            "angle": Param(to="attr:angle", low=0.0, high=2 * math.pi),
            "rotation": Param(to="attr:rotation", low=0.0, high=2 * math.pi),
            "gain": Param(to="attr:gain", low=0.5, high=1.5),
        },
    )
    rng = np.random.default_rng(seed)
    tasks = family.sample(2 * rows, rng)
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=[32, 32], log_std=-2.0))
    generator = torch.Generator().manual_seed(seed)
    loss = partial(_loss, policy, generator)
    others = hidden(family.sample(2 * rows, rng))
    first = policy.init(generator).expand(len(tasks), -1)
    anchor = _trained(first, partial(loss, others), 20, shared=True)
    params = _trained(anchor, partial(loss, hidden(tasks)), steps)
    with TaskBatch(family, tasks, 12, policy, rng) as batch:
        records, meta = batch.collect(params), batch.collect(anchor)
    return World(family, policy, anchor[0], tasks, params, records, meta)


def _loss(policy: GaussianMlp, generator: torch.Generator, task: Tensor, params: Tensor) -> Tensor:
    state = 0.5 * torch.randn(len(task), 2, 2, generator=generator)
    total = torch.zeros(())
    for _ in range(HORIZON):
        mean = policy(params, state).mean.clamp(-1, 1)
        state, reward = moved(state, mean, task[:, None])
        total = total - reward.mean(1).sum()
    return total


def _trained(params: Tensor, loss: Any, steps: int, shared: bool = False) -> Tensor:
    """Adam; with ``shared``, the same step for all tasks, so that they stay one policy."""
    leaf = params.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(leaf).backward()
        if shared and leaf.grad is not None:
            leaf.grad = leaf.grad.mean(0, keepdim=True).expand_as(leaf).clone()
        optimizer.step()
    return leaf.detach()


def candidates_of(
    world: World, novel: bool, null: float, blind: bool = False, probed: bool = True
) -> Candidates:
    """What a key would offer that sees the tasks' descriptors: the nearest rows, and ``null``.

    A blind one takes any row for the nearest. ``probed``: what the meta-initialisation returns on
    the task at hand is known, from as many episodes as the records.
    """
    rows = len(world.tasks) // 2
    chosen = slice(rows, None) if novel else slice(0, rows)
    angle, rotation, gain = hidden(world.tasks).T
    seen = torch.stack([angle.cos(), angle.sin(), rotation.cos(), rotation.sin(), gain], -1)
    apart = torch.cdist(seen, seen[:rows])
    query = apart[chosen]
    if blind:
        query = query[:, torch.randperm(rows, generator=torch.Generator().manual_seed(4))]
    index = query.topk(PLACES, largest=False).indices
    near = torch.softmax(-0.5 * (query.gather(1, index) / KEY_WIDTH).square(), -1)
    so_far = _so_far(world.records)[index]
    between = (torch.cdist(seen[:rows], seen[:rows]) / KEY_WIDTH).square().mul(-2).exp()
    return Candidates(
        index=index,
        weight=near * (1 - null),
        null=torch.full((rows,), null),
        params=world.params[index],
        mean=so_far[..., -1].mean(2),
        sd=so_far[..., -1].std(2),
        n=torch.full(index.shape, float(so_far.shape[2])),
        so_far=so_far.mean(2),
        so_far_sd=so_far.std(2),
        affinity=between[index[:, :, None], index[:, None]],
        baseline=world.baseline.mean_return()[index],
        anchor=world.anchor,
        home_so_far=_so_far(world.baseline)[chosen].mean(1) if probed else None,
    )


def _so_far(episodes: Trajectories) -> Tensor:
    return (episodes.reward * episodes.mask).cumsum(-1)


@dataclass(frozen=True)
class Outcome:
    """20 episodes of each task with one reader."""

    returns: Tensor
    """``[T, 20]``."""
    regret: Tensor
    """``[T]``: what the task's own policy would have returned, minus that, summed."""
    stopped: float
    """Share of steps acted by the fallback in episodes that a guard stopped; NaN if none."""

    def worse_than(self, other: Outcome, episodes: int = 10) -> float:
        """Share of tasks whose first episodes are worse by more than a standard error."""
        ours, theirs = self.returns[:, :episodes], other.returns[:, :episodes]
        error = ((ours.var(1) + theirs.var(1)) / episodes).sqrt()
        return float((ours.mean(1) < theirs.mean(1) - error).float().mean())


def live(world: World, reader: Reader | None, candidates: Candidates, novel: bool) -> Outcome:
    """Read, and go on with what was decided, until the episodes are spent. No reader: meta-init."""
    rows = len(world.tasks) // 2
    chosen = slice(rows, None) if novel else slice(0, rows)
    own = world.records.mean_return()[chosen]
    generator = torch.Generator().manual_seed(1)
    trial = None if reader is None else reader.open(candidates, generator)
    returns, stopped = [], []
    rng = np.random.default_rng(2)
    with TaskBatch(world.family, world.tasks[chosen], 1, world.policy, rng) as batch:
        for _ in range(EPISODES):
            params, guard = world.anchor.expand(rows, -1), None
            if trial is not None:
                params, guard = _next(trial.propose())
            episodes = batch.collect(params, guard=guard)
            if trial is not None:
                trial.observe(episodes, episodes.stopped()[:, 0])
            returns.append(episodes.returns()[:, 0])
            stopped += (episodes.switch_step() / HORIZON)[episodes.stopped()].tolist()
    made = torch.stack(returns, 1)
    share = sum(stopped) / len(stopped) if stopped else math.nan
    return Outcome(made, (own[:, None] - made).sum(1), share)


def _next(proposal: Any) -> tuple[Tensor, Guard | None]:
    return proposal.params, proposal.guard


READERS: dict[str, Reader | None] = {
    "meta-initialisation only": None,
    "top1 (never 'none')": Top1(gated=False),
    "softmax_topk": SoftmaxTopK(gated=False),
    "average": Average(gated=False),
    "thompson": Thompson(),
    "bpr": Bpr(),
    "gp_ucb": GpUcb(),
    "halving": Halving(),
    "test": TTest(),
    "guarded, no abort": Guarded(guard=None),
    "guarded": Guarded(),
    "guarded, 8 trials": Guarded(trials=8),
}


def conditions(
    world: World, rates: Sequence[float] = (1.0, 0.7, 0.3, 0.0), probed: bool = True
) -> dict[str, tuple[Candidates, bool]]:
    """Re-visits at several shares of right first matches, and novel tasks.

    On those, a blind key is sure of some row whatever it is; a near-sighted one of rows that really
    are near; and a telling one gives "none of these" .6.
    """
    again = candidates_of(world, novel=False, null=0.1, probed=probed)
    new = partial(candidates_of, world, novel=True, probed=probed)
    generator = torch.Generator().manual_seed(3)
    found = {f"P@1 = {p:g}": (corrupt(again, 1 - p, generator), False) for p in rates}
    found["novel, blind"] = (new(null=0.1, blind=True), True)
    found["novel, near"] = (new(null=0.1), True)
    found["novel, told"] = (new(null=0.6, blind=True), True)
    return found


def table(world: World, probed: bool = True) -> Table:
    """Mean regret over 20 episodes; in brackets, share of tasks harmed in the first 10."""
    known = "" if probed else ", meta-initialisation's return not known"
    title = f"regret over {EPISODES} episodes, {len(world.tasks) // 2} tasks{known}"
    shown = Table(title=title)
    cases = conditions(world, probed=probed)
    for name in ("reader", *cases):
        shown.add_column(name, justify="left" if name == "reader" else "right")
    plain = {name: live(world, None, *case) for name, case in cases.items()}
    for name, reader in READERS.items():
        cells = []
        for case, arguments in cases.items():
            out = plain[case] if reader is None else live(world, reader, *arguments)
            harmed = out.worse_than(plain[case])
            cells.append(f"{float(out.regret.mean()):.2f} ({harmed:.0%})")
        shown.add_row(name, *cells)
    return shown


if __name__ == "__main__":
    torch.set_num_threads(1)  # the matrices are small
    made = make_world()
    console.print(table(made))
    console.print(table(made, probed=False))
