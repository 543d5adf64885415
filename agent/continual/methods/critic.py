"""Fine-tuning with a learned critic, which goes on from visit to visit or is reset."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.advantage import gae, normalize, returns_to_go
from agent.continual.agents import Finetune
from agent.continual.life import Hints
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import GaussianMlp, PolicyConfig
from agent.seeding import torch_generator
from agent.types import Recall, Trajectories


@dataclass(kw_only=True, config={"extra": "forbid"})
class FinetuneCritic(Finetune):
    """Actor-critic PPO (Schulman 2017), one actor fine-tuned visit after visit.

    Other agents here fit a linear baseline to each batch anew. This one has a value network, as PPO
    has elsewhere: it estimates advantages with what it learned from earlier batches. A critic of
    the last task misleads the actor on the next one, so it is reset when a visit begins.
    """

    needs: ClassVar[Hints] = Hints(task=False, boundary=True)

    reset_critic: bool = True
    """Begin each visit with a random critic; else it goes on as the actor does."""
    hidden: list[Annotated[int, Field(ge=1)]] = field(default_factory=lambda: [64, 64])
    """Widths of the critic's tanh layers."""
    critic_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Adam's step size for the critic."""
    critic_steps: Annotated[int, Field(ge=0)] = 40
    """Steps of Adam for the critic on each batch of episodes."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """GAE's lambda."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Start out with the meta-initialisation and a random critic."""
        super().setup(learner, probes, seed)
        policy, config = learner.policy, PolicyConfig(hidden=self.hidden)
        self._critic = GaussianMlp(policy.obs_size + 1, 1, config, policy.device)
        self._visits = 0
        self._fresh_critic()

    def begin(self, visit: Visit) -> dict[str, Any]:
        """Go on with the same actor."""
        if self.reset_critic:
            self._fresh_critic()
        return {}

    def end(self) -> dict[str, Any]:
        """Nothing is kept but actor and critic."""
        self._visits += 1
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Actor and critic."""
        own = {"critic.params": self._value_params, "critic.range": self._range}
        return super().state_dict() | own | {"visits": torch.tensor(self._visits)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Actor and critic."""
        super().load_state_dict(state)
        self._value_params = state["critic.params"].to(self.params.device)
        self._range = state["critic.range"].to(self.params.device)
        self._visits = int(state["visits"])

    def values(self, episodes: Trajectories) -> Tensor:
        """What the critic expects from each step on, ``[T, E, H]``."""
        with torch.no_grad():
            middle, spread = self._range
            return middle + spread * self._scaled(self._value_params, self._seen(episodes))

    def _fresh_critic(self) -> None:
        drawn = self._critic.init(torch_generator(self.seed, "init", 1, self._visits))
        self._value_params = drawn[None]
        self._range = drawn.new_full((2,), torch.nan)
        """Mean and sd of the first returns that it saw, in which units it learns."""

    def _learn(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        target = returns_to_go(episodes.reward, episodes.mask, self.gamma)
        valid = target[episodes.mask > 0]
        if len(valid) == 0:  # all of it diverged
            return super()._learn(episodes, recall, beta)
        if not torch.isfinite(self._range).all():
            self._range = torch.stack([valid.mean(), valid.std(unbiased=False).clamp(min=1e-6)])
        if self._step < self.learner.meta_steps:
            super()._learn(episodes, recall, beta)  # with the baseline that this step was made for
        else:
            self._ppo(episodes, recall, beta)
        self._fit_critic(episodes, target)
        return None

    def _ppo(self, episodes: Trajectories, recall: Recall | None, beta: float) -> None:
        value, mask = self.values(episodes), episodes.mask
        advantage = normalize(gae(episodes.reward, value, mask, self.gamma, self.gae_lambda), mask)
        ready = episodes.with_advantage(advantage)
        self.score = float(episodes.mean_return())
        adapter, constraint = self.learner.task_adapter, self.constraint()
        self.params = adapter.step(
            self.learner.policy, self.params, ready, recall, beta, constraint
        )
        self._step += 1

    def _fit_critic(self, episodes: Trajectories, target: Tensor) -> None:
        seen, mask = self._seen(episodes), episodes.mask
        scaled = (target - self._range[0]) / self._range[1]

        with torch.enable_grad():
            point = self._value_params.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([point], lr=self.critic_rate)
            for _ in range(self.critic_steps):
                error = (self._scaled(point, seen) - scaled).square()
                (point.grad,) = torch.autograd.grad((error * mask).sum() / mask.sum(), point)
                optimizer.step()
        self._value_params = point.detach()

    def _scaled(self, point: Tensor, seen: Tensor) -> Tensor:
        return self._critic(point, seen).mean[..., 0]

    def _seen(self, episodes: Trajectories) -> Tensor:
        """Normalised observations and the share of the episode that is over."""
        obs = self.learner.policy.normalizer(episodes.obs)
        time = torch.linspace(0, 1, obs.shape[2] + 1, device=obs.device)[:-1]
        return torch.cat([obs, time.expand(obs.shape[:3])[..., None]], -1)
