"""Keys made by networks that are trained on the probes: what contrastive and vae share.

Some of the training tasks are held out. They say whether tasks can be told apart at all (a network
tells any tasks apart that it was trained on, even ones that are all alike), and what a score is
worth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from agent.memory.key.base import (
    FEWEST_TASKS,
    IndistinguishableTasksError,
    known,
    same_task,
    where_known,
)
from agent.memory.key.networks import load_named, named, train
from agent.memory.key.steps import Steps, StepScaler
from agent.memory.key.summed import Seen, SummedKey, part, stack
from agent.memory.posterior import fit_weights, log_loss, loss_of_chance
from agent.policy import ObsNormalizer
from agent.types import Trajectories

# A log-loss above this share of that of chance tells hardly anything apart.
_HARDLY = 0.95
_FEWEST_HELD_OUT = 4


@dataclass(kw_only=True, config={"extra": "forbid"})
class LearnedKey(SummedKey):
    """A network sums over steps; how it is trained and what the sums mean is the subclass's."""

    width: Annotated[int, Field(ge=1)] = 64
    """Of the hidden layers."""
    latent: Annotated[int, Field(ge=1)] = 64
    """Numbers that a task is described by."""
    updates: Annotated[int, Field(ge=1)] = 500
    """Gradient steps."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Steps of each task that one gradient step is made from."""
    rate: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training tasks that the network is not trained on."""
    seed: int = 0
    """Of the initial weights and of all that is drawn in training."""

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """See ``base.Key``: train, then weigh the score on the tasks held out.

        ``given`` only says which training tasks are one and the same, in a family of few tasks.
        """
        told = torch.stack([known(p) for p in probes]).all(0) if probes else torch.zeros(0)
        if len(probes) < 2 or int(told.sum()) < FEWEST_TASKS:
            raise IndistinguishableTasksError(
                f"need two probes of at least {FEWEST_TASKS} tasks that did not all diverge, "
                f"got {len(probes)} of {int(told.sum())}"
            )
        self._use(normalizer.state_dict())
        seen = stack([Seen.of(p, self.normalizer) for p in probes])
        seen = Seen(**{name: column[:, told] for name, column in vars(seen).items()})
        same = same_task(given, told)
        generator = torch.Generator().manual_seed(self.seed)
        out = self._split(len(same), generator).to(same.device)
        kept = Seen(**{name: column[:, ~out] for name, column in vars(seen).items()})
        self._scaler = StepScaler.fit(kept)
        self._sizes = torch.tensor([seen.obs.shape[-1], seen.action.shape[-1]])
        self._network: Any = self._new(generator).to(same.device)
        steps, others = self._scaler(kept), self._scaler(seen).tasks(out)
        self._train(steps, same[~out][:, ~out], generator)
        self.trained(steps, others)
        self._weigh(others, same[out][:, out])
        self._finish()

    def _new(self, generator: torch.Generator) -> nn.Module:
        obs, action = self._sizes.tolist()
        return self.network(obs, action, generator)

    def _split(self, tasks: int, generator: torch.Generator) -> Tensor:
        """``[M]`` bool: which tasks are held out."""
        count = max(_FEWEST_HELD_OUT, round(self.held_out * tasks))
        out = torch.zeros(tasks, dtype=torch.bool)
        out[torch.randperm(tasks, generator=generator)[:count]] = True
        return out

    def _train(self, steps: Steps, same: Tensor, generator: torch.Generator) -> None:
        probes = len(steps.mask)
        self._probe_steps = float(steps.mask.sum(-1).mean())
        # No matter in which mode the caller is: there is something to learn here.
        with torch.enable_grad():

            def loss() -> Tensor:
                one, other = torch.randperm(probes, generator=generator)[:2].tolist()
                # More steps or fewer: evidence must mean the same whatever it is made of.
                few = max(1, self.steps // 2)
                count = int(torch.randint(few, 2 * self.steps + 1, (), generator=generator))
                first = steps.drawn(one, count, generator)
                second = steps.drawn(other, self.steps, generator)
                return self.loss(first, second, same, generator)

            train(self._network, loss, self.updates, self.rate)

    def _weigh(self, steps: Steps, same: Tensor) -> None:
        """What the score is worth in log-odds, and whether it is worth anything."""
        found = [self._with_view(self.summed(*probe)) for probe in _each(steps)]
        pairs = [(q, r) for q in range(len(found)) for r in range(len(found)) if q != r]
        terms = torch.stack([self.terms(found[q], found[r]).double() for q, r in pairs])
        weight, offset = fit_weights(terms, same)
        loss = float(log_loss(terms @ weight + offset, same))
        if bool(same.all()) or loss > _HARDLY * loss_of_chance(len(same), same):
            raise IndistinguishableTasksError(
                "two probes of one training task are hardly more alike than probes of two, so the "
                "memory would not know one from the other (is there only one task, are there too "
                "few to learn from, or does nothing that is observed or rewarded depend on the "
                "parameters?)"
            )
        self._weight, self._offset = weight, weight.new_tensor(offset)

    @abstractmethod
    def network(self, obs: int, action: int, generator: torch.Generator) -> nn.Module:
        """Untrained networks for O and A."""

    @abstractmethod
    def loss(self, first: Steps, second: Steps, same: Tensor, generator: torch.Generator) -> Tensor:
        """To be minimised: some steps each of two probes of the same tasks."""

    def trained(self, steps: Steps, others: Steps) -> None:
        """Called after training with all steps of the tasks trained on, and of those held out."""

    @abstractmethod
    def summed(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Sums ``[T, S]`` over steps, ``inputs [T, n, F]`` and ``mask [T, n]``."""

    @abstractmethod
    def terms(self, query: Tensor, rows: Tensor) -> Tensor:
        """``[T, N, L]`` of evidence: what the score is a weighted sum of, weights positive."""

    def sums(self, episodes: Trajectories) -> Tensor:
        """The network's sums."""
        steps = self._scaler(Seen.of(episodes, self.normalizer))
        return self.summed(steps.inputs(), steps.mask).double()

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """See ``base.Key``."""
        self._check_fitted()
        score = self.terms(query, rows).double() @ self._weight + self._offset
        told = self.sizes[0]  # what is not known is NaN throughout
        return where_known(score, query[:, :told], rows[:, :told])

    def _fitted(self) -> dict[str, Tensor]:
        scaler = {f"scaler.{k}": v for k, v in self._scaler.state_dict().items()}
        own = {"weight": self._weight, "offset": self._offset, "sizes": self._sizes}
        return scaler | own | named("network", self._network)

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        self._scaler = StepScaler(part(state, "scaler."))
        self._weight, self._offset = state["weight"], state["offset"]
        self._sizes = state["sizes"]
        self._network = self._new(torch.Generator().manual_seed(0))
        load_named("network", self._network, state)


def _each(steps: Steps) -> list[tuple[Tensor, Tensor]]:
    return list(zip(steps.inputs(), steps.mask, strict=True))
