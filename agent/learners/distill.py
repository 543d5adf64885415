"""Distillation: one student does what the policies of a memory do (Hinton 2015, Rusu 2016).

The student minimises KL(teacher || student), which covers what teachers do who disagree, in two
kinds of states: those of each row's own probe, and those that the student itself comes to in tasks,
where every row would do what it learned to. It knows nothing of the rows afterwards,
may be smaller than they are, and is a meta-initialisation as any.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.distributed import mean_gradients, mean_over_processes, rank
from agent.files import BadFileError
from agent.learners.base import (
    Learner,
    Metrics,
    adam_state,
    load_adam,
    refuse_unless_finite,
    under,
)
from agent.losses import mean_over_steps
from agent.memory.files import Lineage, MemoryFolder
from agent.memory.manifest import MemoryFolderError
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.types import Adaptation, Trajectories

_EXPECTED = (
    "expected the memory folder of a run whose agent wrote some (RUN/lifetimes/AGENT-SEED/memory)"
)


class TeacherError(BadFileError):
    """A memory whose rows cannot teach this student."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A row as a function of raw observations, with its own size and normaliser."""

    policy: GaussianMlp
    params: Tensor
    """``[P]``, of its own P."""
    probe: Tensor
    """``[M, O]``, raw observations of its task."""

    def __call__(self, obs: Tensor) -> DiagonalGaussian:
        """What it does at raw ``obs [..., O]``."""
        with torch.no_grad():
            did = self.policy(self.params[None], obs[None])
        return DiagonalGaussian(did.mean[0], did.log_std[0].expand_as(did.mean[0]))


def teachers_of(folder: Path, student: GaussianMlp) -> list[Teacher]:
    """The rows of a memory folder, oldest first.

    Raises:
        TeacherError: There is no row, or one is of other observations or actions than the student.
    """
    try:
        contents = MemoryFolder(folder).contents()
    except MemoryFolderError as error:
        raise TeacherError(f"learner.memory={folder}: {error}; {_EXPECTED}") from None
    rows = list(contents.rows())
    if not rows:
        raise TeacherError(f"learner.memory={folder}: has no rows to be distilled; {_EXPECTED}")
    networks = {
        name: _network(contents.lineage(name), f"learner.memory={folder}: row {uid}", student)
        for name, uid in {row.lineage: uid for uid, row in rows}.items()
    }
    device = student.device
    return [
        Teacher(networks[row.lineage], row.params.to(device), row.probe.obs.to(device))
        for _, row in rows
    ]


def _network(lineage: Lineage, what: str, student: GaussianMlp) -> GaussianMlp:
    """The network that the rows of a lineage are weights of; ``what`` names one of them."""
    segments = list(lineage.settings.get("segments", student.segments))
    widths = segments[1:-1:2]  # of all layers, the last one's being the action
    made = None
    if widths and min(widths) > 0:
        config = PolicyConfig(hidden=widths[:-1])
        made = GaussianMlp(segments[0] // widths[0], segments[-1], config, student.device)
    if made is None or made.segments != segments:
        raise TeacherError(
            f"{what}: is not the weights of a plain network (its parts have sizes {segments}); "
            "such rows, beliefs for example, mean nothing without the learner that made them"
        )
    theirs, mine = [(p.obs_size, p.action_size) for p in (made, student)]
    if theirs != mine:
        raise TeacherError(
            f"{what}: has (observation, action) sizes {theirs}, the student's are {mine}; "
            "train it on the family that the memory is of (env=...)"
        )
    if not {"mean", "var"} <= lineage.state.keys():
        raise TeacherError(f"{what}: the observation normaliser is missing from its lineage")
    made.normalizer.mean = lineage.state["mean"].to(student.device)
    made.normalizer.var = lineage.state["var"].to(student.device)
    return made


@dataclass(kw_only=True, config={"extra": "forbid"})
class Distill(Learner):
    """A student of the policies that a memory holds."""

    memory: Annotated[str, Field(min_length=1)]
    """Folder of the memory that a run left (``.../memory``); needed for training only."""
    visited: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the states that the student comes to, beside the rows' probes. 0 where observations
    tell the task: there, a row's policy has no say in the other tasks' states."""
    outer_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Adam's step size."""
    outer_epochs: Annotated[int, Field(ge=1)] = 20
    """Adam steps per batch of the student's episodes."""
    voices: Annotated[int, Field(ge=1)] = 32
    """Rows that say, at an update, what they would do in those states; all take turns."""
    states: Annotated[int, Field(ge=1)] = 2048
    """States of probes per Adam step."""
    max_grad_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Largest gradient norm."""

    def setup(self, policy: GaussianMlp, generator: torch.Generator) -> None:
        """Draw a student that has learned nothing."""
        super().setup(policy, generator)
        self.theta = policy.init(generator).requires_grad_(True)
        self.updates = torch.zeros((), dtype=torch.int64)
        self._optimizer = self._new_optimizer()
        self._teachers: list[Teacher] = []
        self._probes = self.theta.new_zeros(0, policy.obs_size)
        self._did = DiagonalGaussian(self._probes, self._probes)

    def adapt(self, batch: TaskBatch) -> Adaptation:
        """The student acts as it is.

        Raises:
            TeacherError: The memory holds nothing that could teach it.
        """
        self._meet_teachers()
        return Adaptation(self.theta.detach().expand(len(batch.tasks), -1), [])

    def update(self, adaptation: Adaptation, query: Trajectories) -> Metrics:
        """Adam steps towards the teachers; the normaliser moves after them."""
        self._meet_teachers()
        if float(self.policy.normalizer.count) == 0:  # nothing was learned under it yet
            once = torch.full_like(self._probes[:, 0], float(rank() == 0))
            self.policy.normalizer.update(self._probes, once)
        wanted = self._wanted(query)
        first = int(self.updates) * self.outer_epochs
        at_probes = at_visited = self.theta.new_zeros(())
        for step in range(first, first + self.outer_epochs):
            at_probes = self._probe_loss(step)
            at_visited = self._visited_loss(query, wanted)
            loss = (1 - self.visited) * at_probes + self.visited * at_visited
            self._optimizer.zero_grad()
            loss.backward()
            mean_gradients([self.theta])
            norm = torch.nn.utils.clip_grad_norm_([self.theta], self.max_grad_norm)
            refuse_unless_finite(norm, "a smaller learner.outer_rate may help")
            self._optimizer.step()
        self.updates = self.updates + 1
        self.policy.normalizer.update(query.obs, query.mask)
        return {
            "train/kl_at_probes": float(mean_over_processes(at_probes.detach())),
            "train/kl_at_visited": float(mean_over_processes(at_visited.detach())),
            "train/teachers": float(len(self._teachers)),
        }

    def _meet_teachers(self) -> None:
        """Read the memory, once; what the rows do in their own probes never changes."""
        if self._teachers:
            return
        self._teachers = teachers_of(Path(self.memory), self.policy)
        did = [teacher(teacher.probe) for teacher in self._teachers]
        self._probes = torch.cat([teacher.probe for teacher in self._teachers])
        mean, log_std = (torch.cat([getattr(d, n) for d in did]) for n in ("mean", "log_std"))
        self._did = DiagonalGaussian(mean, log_std)

    def _wanted(self, query: Trajectories) -> DiagonalGaussian:
        """What the rows would do in the student's episodes, those whose turn it is together.

        The mean of the KLs from several normal distributions is, but for a constant, the KL from
        the one that has the moments of their mixture.
        """
        count = min(self.voices, len(self._teachers))
        first = int(self.updates) * count
        turns = [(first + n) % len(self._teachers) for n in range(count)]
        did = [self._teachers[turn](query.obs) for turn in turns]
        means = torch.stack([d.mean for d in did])
        variance = torch.stack([torch.exp(2 * d.log_std) for d in did]).mean(0)
        variance = variance + means.var(0, unbiased=False)
        return DiagonalGaussian(means.mean(0), 0.5 * torch.log(variance))

    def _probe_loss(self, step: int) -> Tensor:
        """KL, mean over a part of all probes' states; the parts are interleaved, taken in turn."""
        parts = -(-len(self._probes) // self.states)
        part = slice(step % parts, None, parts)
        wanted = DiagonalGaussian(self._did.mean[part], self._did.log_std[part])
        now = self.policy(self.theta[None], self._probes[None, part])
        return wanted.kl(now).mean()

    def _visited_loss(self, query: Trajectories, wanted: DiagonalGaussian) -> Tensor:
        """KL, mean over the steps of the student's episodes."""
        now = self.policy(self.theta.expand(len(query.reward), -1), query.obs)
        return mean_over_steps(wanted.kl(now), query.mask).mean()

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([self.theta], lr=self.outer_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """The student, Adam's moments, how many updates there were, the observation normaliser."""
        state = {"theta": self.theta.detach(), "updates": self.updates}
        state |= adam_state(self._optimizer)
        return state | {f"obs.{k}": v for k, v in self.policy.normalizer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, bit for bit."""
        with torch.no_grad():
            self.theta.copy_(state["theta"])
        self.updates = state["updates"].cpu()
        self.policy.normalizer.load_state_dict(under(state, "obs."))
        self._optimizer = self._new_optimizer()
        load_adam(self._optimizer, state)
