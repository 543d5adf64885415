"""What an agent of your own has to be, and how what it says is checked and stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | np.generic | Tensor
OURS = "adapter."
"""How the names begin that the adapter keeps for itself."""
_NUMPY = ".numpy"


@dataclasses.dataclass(frozen=True)
class Body:
    """What an agent is born into."""

    obs_size: int
    action_low: np.ndarray
    """Lowest action ``[A]``, in the simulator's units."""
    action_high: np.ndarray
    """Highest action ``[A]``."""
    horizon: int
    """Most steps of an episode."""
    seed: int
    """Of all that the agent draws: the same seed, the same life."""


@dataclasses.dataclass(frozen=True)
class Transition:
    """One step of the E episodes that go on."""

    obs: np.ndarray
    """``[E, O]``, what was acted on."""
    action: np.ndarray
    """``[E, A]``, what was asked for; the simulator clips it to its range."""
    reward: np.ndarray
    """``[E]``."""
    next_obs: np.ndarray
    """``[E, O]``."""
    terminated: np.ndarray
    """``[E]`` bool: ended by the task."""
    truncated: np.ndarray
    """``[E]`` bool: cut off by the horizon, or because the simulation blew up."""
    row: np.ndarray
    """``[E]``, which of the episodes that began together this is: those that are over are left
    out."""


class StepAgent(Protocol):
    """What is asked of an agent of your own; name a dataclass, so that its settings are checked."""

    def setup(self, body: Body) -> None:
        """Be born; called once, before all else."""
        ...

    def begin(self, hint: str | None) -> None:
        """A visit begins; ``hint`` names its task where that is told."""
        ...

    def act(self, obs: np.ndarray, deterministic: bool) -> np.ndarray:
        """Actions ``[E, A]``, in the simulator's units, for ``obs [E, O]``; E may change.

        When ``deterministic``, they follow from ``obs`` alone and nothing is remembered.
        """
        ...

    def observe(self, transition: Transition) -> None:
        """What came of the last actions: the place to learn."""
        ...

    def end(self) -> None:
        """The visit is over."""
        ...

    def state_dict(self) -> Mapping[str, Array]:
        """Everything that it goes on from, between two batches of episodes."""
        ...

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Go on from a saved state, arrays as they were given."""
        ...


VERBS = ("setup", "begin", "act", "observe", "end", "state_dict", "load_state_dict")


@dataclasses.dataclass(frozen=True)
class Decided:
    """Actions ``mean [..., A]`` without any chance in them."""

    mean: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The same actions."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Zero: there is nothing to be learned from it."""
        return torch.zeros_like(action[..., 0])


def act(own: StepAgent, obs: np.ndarray, body: Body, deterministic: bool) -> np.ndarray:
    """The agent's actions ``[E, A]``, checked."""
    action = np.asarray(own.act(obs.copy(), deterministic))
    expected = (len(obs), len(body.action_low))
    if action.shape != expected or not np.isfinite(action).all():
        raise ValueError(
            f"{type(own).__name__}.act: expected finite actions of shape {expected} for "
            f"{len(obs)} observations, got shape {action.shape}: {action}"
        )
    return action


def to_unit(action: np.ndarray, body: Body) -> np.ndarray:
    """From the simulator's units to +-1, as policies act."""
    middle = (body.action_high + body.action_low) / 2
    return (action - middle) / ((body.action_high - body.action_low) / 2)


def tensors(state: Mapping[str, Array]) -> dict[str, Tensor]:
    """An agent's state as tensors; the names of what were arrays say so."""
    out = {}
    for name, value in state.items():
        if name.startswith(OURS) or name.endswith(_NUMPY):
            raise ValueError(f"state_dict: {name!r} is a name of the adapter's; choose another")
        if not isinstance(value, Array):
            raise TypeError(
                f"state_dict: {name!r} is a {type(value).__name__}; expected an array or a tensor, "
                "such as numpy.array(value)"
            )
        if isinstance(value, Tensor):
            out[name] = value.detach().clone()
        else:
            out[name + _NUMPY] = torch.tensor(value)
    return out


def arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """The inverse of ``tensors``."""
    return {
        name.removesuffix(_NUMPY): value.cpu().numpy().copy()
        if name.endswith(_NUMPY)
        else value.clone()
        for name, value in state.items()
    }
