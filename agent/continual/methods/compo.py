"""CompoNet: each task's module composes what the frozen modules of earlier tasks would do."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.continual.agents import PolicyAgent
from agent.continual.life import Hints
from agent.continual.methods.common import packed, unpacked
from agent.continual.methods.composed import Composed, Module
from agent.continual.methods.parts import ppo_step, told_task
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import Policy
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class Compo(PolicyAgent):
    """CompoNet (Malagon et al., ICML 2024): self-composing policies.

    A task that is new gets a module which composes the frozen ones of all tasks before; one that
    comes back goes on from its own, on a copy if others build on it. So nothing that any other task
    uses ever changes, and an oracle told the task's id forgets exactly nothing. It starts as the
    meta-initialisation: the gain of what is composed is learned from 0 (1 and fixed in the paper).
    Each module adds P + O(d (O + A)) parameters, so memory grows linearly with the tasks, at most
    one more module for each with re-visits between which tasks came that build on it. A decision
    computes all modules one after the other: its latency grows linearly too.
    """

    needs_weights: ClassVar[bool] = True

    needs: ClassVar[Hints] = Hints(task=True, boundary=True)
    isolates: ClassVar[bool] = True
    """A module is chosen by the task's id."""

    width: Annotated[int, Field(ge=1)] = 16
    """d, of queries, keys and the input head's values."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """No module yet."""
        super().setup(learner, probes, seed)
        self.modules: list[Module] = []
        self.module_of: dict[str, int] = {}
        self._policies: dict[tuple[int, ...], Composed] = {}
        self._name, self._sees = "", ()

    @property
    def policy(self) -> Policy:
        """The module of this visit on top of those that it composes."""
        return self._composed(self._sees) if self._sees else self.learner.policy

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Go on from the task's module, or put a new one on top."""
        self._name = told_task(visit)
        if self._name in self.module_of:
            self.params, self._sees = self.modules[self.module_of[self._name]]
            self._step = self.learner.meta_steps
        else:
            self._sees, self._step = tuple(sorted(self.module_of.values())), 0
            self.params = self._meta_init()
            if self._sees:
                drawn = torch_generator(self.seed, "init", 1 + len(self.module_of))
                self.params = self._composed(self._sees).widened(self.params, drawn)
        return {"rows": len(self.modules)}

    def end(self) -> dict[str, Any]:
        """Freeze the module; the task's last one is replaced only if nothing builds on it."""
        module, last = (self.params, self._sees), self.module_of.get(self._name)
        if last is None or any(last in sees for _, sees in self.modules):
            self.module_of[self._name] = len(self.modules)
            self.modules.append(module)
        else:
            self.modules[last] = module
            self._policies = {}  # some may have been made, for a task never met, on the old one
        return {"rows": len(self.modules)}

    def twin(self) -> Compo:
        """A copy, which shares the composed policies: they depend on frozen modules alone."""
        twin = cast("Compo", super().twin())
        twin._policies = self._policies
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """All modules, whose is which, and the one that is learned."""
        names = list(self.module_of)
        modules = {
            "params": [params for params, _ in self.modules],
            "sees": [sees for _, sees in self.modules],
            "names": names,
            "of": [self.module_of[name] for name in names],
        }
        visit = {"name": self._name, "sees": self._sees}
        return super().state_dict() | packed("modules", modules) | packed("visit", visit)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The same."""
        super().load_state_dict(state)
        device = self.params.device
        modules, visit = (unpacked(kind, state, device) for kind in ("modules", "visit"))
        self.modules = list(zip(modules["params"], modules["sees"], strict=True))
        self.module_of = dict(zip(modules["names"], modules["of"], strict=True))
        self._name, self._sees, self._policies = visit["name"], visit["sees"], {}

    def _composed(self, sees: tuple[int, ...]) -> Composed:
        if sees not in self._policies:
            made = Composed(self.learner.policy, self.modules, sees, self.width)
            self._policies[sees] = made
        return self._policies[sees]

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        self.score = float(episodes.mean_return())
        if self._step < self.learner.meta_steps:  # the heads still have no effect
            own = self.learner.policy.num_params
            moved = self.learner.step(self.params[:, :own], episodes, self._step)
            self.params = torch.cat([moved, self.params[:, own:]], 1)
        else:
            self.params = ppo_step(self.learner, self.policy, self.params, episodes)
        self._step += 1
