"""An agent of your own that only acts and observes, made an agent of the stream.

It need not know tasks, budgets or simulators; this adapter runs its episodes, and charges them.
Nothing of the meta-initialisation is used. An agent that must be told tasks or boundaries is named
by a subclass of ``Stepwise`` with other ``needs``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.config import build
from agent.continual.evaluation import Actor, digest
from agent.continual.life import Hints
from agent.continual.loan import Loan
from agent.continual.step_agent import (
    OURS,
    VERBS,
    Body,
    Decided,
    StepAgent,
    Transition,
    act,
    arrays,
    tensors,
    to_unit,
)
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import Policy


@dataclass(kw_only=True, config={"extra": "forbid"})
class Stepwise:
    """A ``StepAgent`` in the stream."""

    needs: ClassVar[Hints] = Hints(task=False, boundary=False)
    """Nothing."""

    agent: dict[str, Any]
    """The agent: ``_target_`` is the import path of its class, all else are its settings."""
    episodes: Annotated[int, Field(ge=1)] = 6
    """That it acts in side by side; the last ones of a visit may be up to twice as many."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Build the agent; it is born when it first meets a visit, which knows the actions."""
        built: Any = build(self.agent, "agent.agent")
        missing = [verb for verb in VERBS if not callable(getattr(built, verb, None))]
        if missing:
            raise TypeError(
                f"agent.agent._target_={self.agent['_target_']!r}: lacks {', '.join(missing)}; "
                "expected the methods of agent.continual.step_agent.StepAgent"
            )
        self._own: StepAgent = built
        self._policy, self._seed = learner.policy, seed
        self._body: Body | None = None
        self._frozen: tuple[str, Actor] | None = None
        self.score = float("nan")

    @property
    def pending(self) -> bool:
        """What it has not learned from is its own affair."""
        return False

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Tell the agent."""
        self._body = self._body or self._bear(self._own, *visit.action_range, visit.horizon)
        self._own.begin(_name(visit))
        return {}

    def improve(self, visit: Visit) -> None:
        """Some whole episodes, side by side."""
        left = visit.remaining
        with visit.lend(left if left < 2 * self.episodes else self.episodes) as loan:
            while loan.running.any():
                self._step(loan, visit)
        self.score = loan.score

    def end(self) -> dict[str, Any]:
        """Tell the agent."""
        self._own.end()
        return {}

    @property
    def acting(self) -> Actor:
        """A frozen copy of the agent."""
        return self._freeze(copy.deepcopy(self._own), self._known_body())

    def actor(self, visit: Visit) -> Actor:
        """A frozen copy that has begun this visit."""
        own = copy.deepcopy(self._own)
        body = self._body or self._bear(own, *visit.action_range, visit.horizon)
        own.begin(_name(visit))
        return self._freeze(own, body, _name(visit))

    def memory_facts(self) -> list[dict[str, float]]:
        """None that the harness knows of."""
        return []

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """There is nothing to be written."""

    def state_dict(self) -> dict[str, Tensor]:
        """The agent's own state, and what it was born into."""
        state = {f"{OURS}score": torch.tensor(self.score, dtype=torch.float64)}
        if self._body is None:
            return state
        low, high = (torch.tensor(x) for x in (self._body.action_low, self._body.action_high))
        horizon = torch.tensor(self._body.horizon)
        state |= {f"{OURS}low": low, f"{OURS}high": high, f"{OURS}horizon": horizon}
        return state | tensors(self._own.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Be born again, and go on."""
        ours = {k.removeprefix(OURS): v for k, v in state.items() if k.startswith(OURS)}
        self.score = float(ours["score"])
        if "horizon" not in ours:
            return
        low, high = ours["low"].numpy(), ours["high"].numpy()
        self._body = self._body or self._bear(self._own, low, high, int(ours["horizon"]))
        own = {k: v for k, v in state.items() if not k.startswith(OURS)}
        self._own.load_state_dict(arrays(own))

    def _bear(self, own: StepAgent, low: np.ndarray, high: np.ndarray, horizon: int) -> Body:
        body = Body(self._policy.obs_size, low.copy(), high.copy(), horizon, self._seed)
        own.setup(body)
        return body

    def _known_body(self) -> Body:
        if self._body is None:
            raise RuntimeError("the agent acts in no visit yet: begin() comes first")
        return self._body

    def _freeze(self, own: StepAgent, body: Body, hint: str | None = None) -> Actor:
        """The same actor for the same state, so that it need not be measured again."""
        key = f"{digest(tensors(own.state_dict()))} {hint}"
        if self._frozen is None or self._frozen[0] != key:
            self._frozen = key, Actor(_Acting(own, body), torch.zeros(1, 1))
        return self._frozen[1]

    def _step(self, loan: Loan, visit: Visit) -> None:
        """One step of the episodes that go on."""
        row, body = np.flatnonzero(loan.running), self._known_body()
        obs, asked = loan.obs[row], time.perf_counter()
        action = act(self._own, obs, body, deterministic=False)
        visit.act_s.append(time.perf_counter() - asked)
        everywhere = np.zeros((loan.rows, action.shape[1]))
        everywhere[row] = to_unit(action, body)
        done = loan.step(everywhere)
        facts = (done.reward, done.obs, done.terminated, done.truncated)
        reward, following, terminated, truncated = (x[row] for x in facts)
        self._own.observe(Transition(obs, action, reward, following, terminated, truncated, row))


class _Acting(Policy):
    """A frozen agent as a policy; its parameters are its own affair."""

    def __init__(self, own: StepAgent, body: Body) -> None:
        self._own, self._body = own, body

    def __call__(self, params: Tensor, obs: Tensor) -> Decided:
        """The deterministic actions for observations ``[1, E, O]``."""
        action = act(self._own, obs[0].cpu().numpy(), self._body, deterministic=True)
        mean = to_unit(action, self._body)[None]
        return Decided(torch.as_tensor(mean, dtype=torch.float32, device=obs.device))


def _name(visit: Visit) -> str | None:
    return None if visit.hint is None else visit.hint.task
