"""Rehearsal: what earlier policies did is kept, and the present one must go on doing it there."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.adapter import Constraint
from agent.continual.agents import Finetune
from agent.continual.life import Hints
from agent.continual.methods.common import Recording, packed, unpacked
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import DiagonalGaussian, Policy
from agent.seeding import torch_generator


class Demonstrations:
    """What policies did where: a bounded store, in which every visit has the same share."""

    def __init__(self, capacity: int, obs_size: int) -> None:
        self.visits: list[Tensor] = []
        """Of each visit, in random order, ``[n, O + 2 A]``: observations, means, log-stds."""
        self._capacity, self._obs_size = capacity, obs_size

    def __len__(self) -> int:
        """States held."""
        return sum(len(rows) for rows in self.visits)

    @torch.no_grad()
    def add(self, policy: Policy, params: Tensor, obs: Tensor, generator: torch.Generator) -> None:
        """One more visit: what ``params [1, P]`` do in the states ``obs [n, O]``.

        Every share shrinks to its part of the capacity; as the order is random, by its end.
        """
        acts = policy(params, obs[None])
        rows = torch.cat([obs, acts.mean[0], acts.log_std.expand_as(acts.mean)[0]], -1)
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        share = max(1, self._capacity // (len(self.visits) + 1))
        self.visits = [kept[:share].clone() for kept in [*self.visits, rows[order]]]

    def all(self) -> tuple[Tensor, DiagonalGaussian]:
        """Every state ``[n, O]`` that is held, and what was done in it."""
        return self._told(torch.cat(self.visits))

    def drawn(self, n: int, generator: torch.Generator) -> tuple[Tensor, DiagonalGaussian]:
        """``n`` of them at random, with replacement."""
        rows = torch.cat(self.visits)
        chosen = torch.randint(len(rows), (n,), generator=generator)
        return self._told(rows[chosen.to(rows.device)])

    def _told(self, rows: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        mean, log_std = rows[:, self._obs_size :].chunk(2, -1)
        return rows[:, : self._obs_size], DiagonalGaussian(mean, log_std)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Rehearsing(Recording):
    """Keeps what its policy does in the last episodes of each visit."""

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)

    capacity: Annotated[int, Field(ge=1)] = 3000
    """States kept, of all visits together."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation and nothing done."""
        super().setup(learner, probes, seed)
        self._shown, self._visits = Demonstrations(self.capacity, learner.policy.obs_size), 0

    def end(self) -> dict[str, Any]:
        """Keep what the policy does now where it has just been."""
        obs = self._visited(self.capacity)
        if len(obs) > 0:  # else all of it diverged
            generator = torch_generator(self.seed, "adaptation", 0, self._visits)
            self._shown.add(self.policy, self.params, obs, generator)
        self._visits += 1
        return super().end()

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and what it did."""
        own = packed("replay", {"visits": self._shown.visits, "over": self._visits})
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The policy and what it did."""
        super().load_state_dict(state)
        own = unpacked("replay", state, self.params.device)
        self._shown.visits, self._visits = own["visits"], own["over"]


@dataclass(kw_only=True, config={"extra": "forbid"})
class Replay(Rehearsing, Finetune):
    """Fine-tuning that rehearses: ``strength * KL(pi_then || pi)`` is added to the loss.

    The policy cloning of CLEAR (Rolnick 2019, section 3) on a store as ClonEx-SAC has it (Wolczyk
    2022): states of the end of each visit, with what the policy of then did in them.
    """

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """Weight of the divergence, nats per step. On training tasks of HalfCheetah's faults .3 did
    better than 1 and 3."""
    batch: Annotated[int, Field(ge=1)] = 256
    """States rehearsed at a time."""

    def constraint(self) -> Constraint | None:
        """The divergence on one batch of what was done, another at each adaptation step."""
        if len(self._shown) == 0:
            return None
        generator = torch_generator(self.seed, "adaptation", 1, self._step)
        obs, did = self._shown.drawn(self.batch, generator)
        policy, strength = self.policy, self.strength

        def penalty(point: Tensor) -> Tensor:
            """``[T, P] -> [T]``."""
            return strength * did.kl(policy(point, obs.expand(len(point), -1, -1))).mean(-1)

        return Constraint(penalty=penalty)
