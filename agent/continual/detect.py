"""Has the task changed? Tests on what surprises an agent, for when nobody tells it.

The surprise of an episode is the residual of the agent's own model of the visit so far; a
``Detector`` watches the sequence of surprises.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Surprise:
    """A Bayesian linear model of reward and next observation, fitted to one visit as it goes.

    Features are 1, the normalised observation, the action, and the squares of both. The surprise of
    an episode is the log of its mean squared prediction error over the error to be expected: about
    0 while the task stays what it was, whatever the policy learns meanwhile, and above where reward
    or dynamics are others. The two are kept apart, as a change of one drowns in the noise of the
    other. Held in float64: sums of many episodes are differences of large numbers.
    """

    HEADS = ("reward", "dynamics")
    RIDGE = 1e-2
    _SUMS = ("gram", "moment", "square", "steps")

    def __init__(self, obs_size: int, action_size: int, normalizer: ObsNormalizer) -> None:
        features, outputs = 2 * (obs_size + action_size) + 1, obs_size + 1
        self._normalizer = normalizer
        kind = {"dtype": torch.float64, "device": normalizer.mean.device}
        self.gram = torch.zeros(features, features, **kind)
        self.moment = torch.zeros(features, outputs, **kind)
        self.square = torch.zeros(outputs, **kind)
        self.steps = torch.zeros((), **kind)

    def of(self, episodes: Trajectories) -> Tensor:
        """Surprise ``[E, 2]`` of the episodes (T = 1), by head; NaN before any was taken in."""
        return torch.stack([self._of(*self._data(episodes, e)) for e in self._each(episodes)])

    def take(self, episodes: Trajectories) -> None:
        """Let the model learn from the episodes (T = 1)."""
        for e in self._each(episodes):
            x, y = self._data(episodes, e)
            self.gram = self.gram + x.mT @ x
            self.moment = self.moment + x.mT @ y
            self.square = self.square + y.square().sum(0)
            self.steps = self.steps + len(x)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums that the model is made of."""
        return {name: getattr(self, name) for name in self._SUMS}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from saved sums."""
        for name in self._SUMS:
            setattr(self, name, state[name].to(self.gram))

    def _of(self, x: Tensor, y: Tensor) -> Tensor:
        if self.steps == 0 or len(x) == 0:
            return torch.full((2,), torch.nan, dtype=torch.float64, device=x.device)
        precision = self.gram + self.RIDGE * torch.eye(len(self.gram)).to(self.gram)
        factor = torch.linalg.cholesky(precision)
        weights = torch.cholesky_solve(self.moment, factor)
        # What is left of each output, per step; never quite nothing, or one error were infinite.
        left = (self.square - (weights * self.moment).sum(0)) / self.steps
        variance = left.clamp(min=1e-6) + 1e-3 * self.square / self.steps
        leverage = (x * torch.cholesky_solve(x.mT, factor).mT).sum(-1, keepdim=True)
        error = (y - x @ weights).square() / (variance * (1 + leverage))
        heads = error.mean(0).log()
        return torch.stack([heads[0], heads[1:].mean()])

    def _data(self, episodes: Trajectories, e: int) -> tuple[Tensor, Tensor]:
        """Features ``[n, F]`` and outputs ``[n, O + 1]`` of an episode's valid steps."""
        valid = episodes.mask[0, e] > 0
        obs = self._normalizer(episodes.obs[0, e][valid]).double()
        after = self._normalizer(episodes.next_obs()[0, e][valid]).double()
        action = episodes.action[0, e][valid].clamp(-1.0, 1.0).double()
        reward = episodes.reward[0, e][valid][:, None].double()
        linear = torch.cat([obs, action], -1)
        x = torch.cat([torch.ones_like(reward), linear, linear.square()], -1)
        return x, torch.cat([reward, after - obs], -1)

    @staticmethod
    def _each(episodes: Trajectories) -> range:
        return range(episodes.reward.shape[1])


class Detector(Protocol):
    """A sequential test for a rise in a sequence of numbers."""

    def reset(self) -> None:
        """Nothing has been seen."""
        ...

    def see(self, value: float) -> bool:
        """Take in the next number; whether there has been a change."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What it has seen, in numbers."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        ...


@dataclass(kw_only=True, config={"extra": "forbid"})
class PageHinkley:
    """Page-Hinkley: the sum of how far each number exceeds the mean so far (Page 1954).

    ``m_t = sum_i (x_i - mean_i - tolerance)``; a change where m_t is more than ``threshold`` above
    its minimum. Numbers count no more than ``clip`` above the mean: one odd episode is no change.
    """

    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """A rise of the mean that is not worth noticing."""
    threshold: Positive = 1.5
    """Summed excess that is a change."""
    clip: Positive = 1.0
    """Most that one number can add, before the tolerance is taken off."""
    warm_up: Annotated[int, Field(ge=1)] = 4
    """Numbers seen before a change is believed."""

    def __post_init__(self) -> None:
        """Nothing has been seen."""
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen."""
        self.n, self.mean, self.sum, self.least = 0, 0.0, 0.0, 0.0

    def see(self, value: float) -> bool:
        """Take in the next number; whether there has been a change."""
        if not math.isfinite(value):
            return False
        if self.n >= self.warm_up:
            self.sum += min(value - self.mean, self.clip) - self.tolerance
            self.least = min(self.least, self.sum)
        self.n += 1
        self.mean += (value - self.mean) / self.n
        return self.sum - self.least > self.threshold

    def state_dict(self) -> dict[str, float]:
        """What it has seen."""
        return {"n": self.n, "mean": self.mean, "sum": self.sum, "least": self.least}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        self.n = int(state["n"])
        self.mean, self.sum, self.least = state["mean"], state["sum"], state["least"]


@dataclass(kw_only=True, config={"extra": "forbid"})
class LikelihoodRatio:
    """CUSUM of the log-likelihood ratio of "risen by ``rise``" to "as before" (Page 1954).

    Numbers are taken to be normal around the mean of those before the excursion, with their
    standard deviation, which is held to be at least ``least_sd``.
    """

    rise: Positive = 0.6
    """What the mean rises by under the alternative."""
    least_sd: Positive = 0.15
    """Standard deviations below are not believed."""
    threshold: Positive = 8.0
    """Log-likelihood ratio that is a change: e^8 to 1."""
    clip: Positive = 5.0
    """Most that one number can add."""
    warm_up: Annotated[int, Field(ge=2)] = 4
    """Numbers seen before a change is believed."""

    def __post_init__(self) -> None:
        """Nothing has been seen."""
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen."""
        self.n, self.mean, self.square, self.ratio = 0, 0.0, 0.0, 0.0

    def see(self, value: float) -> bool:
        """Take in the next number; whether there has been a change."""
        if not math.isfinite(value):
            return False
        if self.n >= self.warm_up:
            variance = max(self.square / (self.n - 1), self.least_sd**2)
            gained = self.rise * (value - self.mean - self.rise / 2) / variance
            self.ratio = max(0.0, self.ratio + min(gained, self.clip))
        if self.ratio == 0.0:  # during an excursion "before" stays what it was
            self.n += 1
            away = value - self.mean
            self.mean += away / self.n
            self.square += away * (value - self.mean)
        return self.ratio > self.threshold

    def state_dict(self) -> dict[str, float]:
        """What it has seen."""
        return {"n": self.n, "mean": self.mean, "square": self.square, "ratio": self.ratio}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a saved state."""
        self.n = int(state["n"])
        self.mean, self.square, self.ratio = state["mean"], state["square"], state["ratio"]
