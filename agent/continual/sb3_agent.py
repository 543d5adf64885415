"""Any algorithm of stable-baselines3 as an agent of the stream.

It learns from scratch in its own way: nothing of the meta-initialisation, its normaliser or its
adapter is used, so what stands between it and the others is their prior as well as their method.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.func import functional_call

from agent.continual.evaluation import Actor
from agent.continual.life import Hints
from agent.continual.sb3_env import VisitVecEnv
from agent.continual.sb3_state import own_randomness, restore, state_of
from agent.continual.step_agent import Decided
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import Policy
from agent.seeding import generator


@dataclass(kw_only=True, config={"extra": "forbid"})
class Sb3Agent:
    """One model that goes on from visit to visit, or is made anew in each.

    It learns a batch of whole episodes at a time. Where tasks end episodes early, rows go on with
    the next one; what still runs when the batch is full is acted to its end and not learned from,
    and so are the last episodes of a visit if they are fewer than ``parallel``.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=False)
    """Nothing."""

    algorithm: str = "stable_baselines3.PPO"
    """Import path of the class; policies must be feed-forward, actions continuous."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Its settings."""
    parallel: Annotated[int, Field(ge=1)] = 6
    """Episodes acted in side by side; should divide a visit's."""
    waves: Annotated[int, Field(ge=1)] = 1
    """Horizons of a batch: it is ``parallel x waves`` episodes if none ends early. On-policy
    algorithms make an update of each; lives can be interrupted between two."""
    action_noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of normal noise on actions (of +-1), for algorithms that take it."""
    reset_each_visit: bool = False
    """Whether each visit starts from the same untrained model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        taken = {"env", "seed", "device"} | ({"n_steps"} if self._on_policy else set())
        for name in sorted(taken & self.kwargs.keys()):
            raise ValueError(f"kwargs.{name}: is set by the harness (n_steps: by waves)")
        return self

    @property
    def _class(self) -> type[BaseAlgorithm]:
        module, _, name = self.algorithm.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"algorithm={self.algorithm!r}: cannot be imported ({error})"
            ) from None
        if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
            raise ValueError(f"algorithm={self.algorithm!r}: is no algorithm of stable-baselines3")
        return found

    @property
    def _on_policy(self) -> bool:
        return issubclass(self._class, OnPolicyAlgorithm)

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Make the model."""
        self.seed, self.device = seed, learner.policy.device
        self._action_size = learner.policy.action_size
        self._env = VisitVecEnv(self.parallel, learner.policy.obs_size, self._action_size)
        self.model = self._untrained()
        self.policy = Sb3Policy(self.model.policy)
        self._newborn = self.policy.flat(self.model.policy)
        self.score, self._batches = float("nan"), 0

    @property
    def pending(self) -> bool:
        """It learns from all episodes at once, or never."""
        return False

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Go on with the model, or make it anew."""
        if self.reset_each_visit:
            self.model = self._untrained()
        return {}

    def improve(self, visit: Visit) -> None:
        """One batch of episodes."""
        rows, steps = min(self.parallel, visit.remaining), self.waves * visit.horizon
        rng = generator(self.seed, "adaptation", self._batches)
        with own_randomness(rng, self.device), visit.lend(rows) as loan:
            self._env.use(loan, steps)
            if rows == self.parallel:
                self._learn(steps, int(rng.integers(2**31)))
            self._env.finish(lambda obs: self.model.predict(obs)[0])
        self.score, self._batches = loan.score, self._batches + 1

    def end(self) -> dict[str, Any]:
        """Nothing is kept besides the model."""
        return {}

    @property
    def acting(self) -> Actor:
        """The model's deterministic policy."""
        return Actor(self.policy, self.policy.flat(self.model.policy))

    def actor(self, visit: Visit) -> Actor:
        """The same, or an untrained model's."""
        if self.reset_each_visit:
            return Actor(self.policy, self._newborn)
        return self.acting

    def memory_facts(self) -> list[dict[str, float]]:
        """No memory, no rows."""
        return []

    def save_memory(self, folder: Path, labels: Mapping[int, str]) -> None:
        """There is nothing to be written."""

    def state_dict(self) -> dict[str, Tensor]:
        """The model, and how many batches there were."""
        return state_of(self.model) | {
            "counter.batches": torch.tensor(self._batches),
            "score": torch.tensor(self.score, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from it."""
        restore(self.model, state)
        self.score, self._batches = float(state["score"]), int(state["counter.batches"])

    def _untrained(self) -> BaseAlgorithm:
        """The model that every life with this seed begins with."""
        # A copy: stable-baselines3 writes into the policy's settings.
        settings: dict[str, Any] = {"policy": "MlpPolicy", **copy.deepcopy(self.kwargs)}
        if self._on_policy:  # set anew for each batch; a multiple of the minibatch until then
            settings["n_steps"] = settings.get("batch_size", 64)
        if self.action_noise > 0:
            size = self._action_size
            settings["action_noise"] = NormalActionNoise(
                np.zeros(size), np.full(size, self.action_noise)
            )
        with own_randomness(generator(self.seed, "init"), self.device):
            return self._class(env=self._env, device=self.device, **settings)

    def _learn(self, steps: int, seed: int) -> None:
        """Act in the episodes that the environment has been lent, and learn from them."""
        model = self.model
        if isinstance(model, OnPolicyAlgorithm):
            model.n_steps = model.rollout_buffer.buffer_size = steps
        model.action_space.seed(seed)  # random actions of a warm-up
        model._last_obs = None  # new episodes
        model.learn(
            self.parallel * steps,
            callback=lambda *_: not self._env.idle,
            reset_num_timesteps=False,
        )


class _Mean(nn.Module):
    """A policy whose output is its deterministic actions."""

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Tensor) -> Tensor:
        """Actions ``[E, A]`` for ``obs [E, O]``."""
        return self.policy._predict(obs, deterministic=True)


class Sb3Policy(Policy):
    """stable-baselines3's policies of one form, as a function of flat parameters ``[1, P]``."""

    def __init__(self, policy: BasePolicy) -> None:
        self._form = _Mean(copy.deepcopy(policy))
        self._form.train(False)

    def flat(self, policy: BasePolicy) -> Tensor:
        """All that a policy consists of, as one row."""
        pieces = [value.detach().reshape(-1) for value in _values(_Mean(policy)).values()]
        return torch.cat(pieces)[None]

    def __call__(self, params: Tensor, obs: Tensor) -> Decided:
        """The deterministic actions for raw observations ``[1, E, O]``."""
        form = _values(self._form)
        pieces = params[0].split([value.numel() for value in form.values()])
        named = {
            name: piece.reshape(value.shape).to(value.dtype)
            for (name, value), piece in zip(form.items(), pieces, strict=True)
        }
        with torch.no_grad():
            return Decided(functional_call(self._form, named, (obs[0],))[None])


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
