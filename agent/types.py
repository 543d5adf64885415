"""The values that pass between the parts, and the one shape alphabet they are written in.

    T tasks in a batch   E episodes per task   H steps of an episode   O observation   A action
    P policy parameters  N memory rows         K recalled rows         D key

The order is always task, episode, step, feature. T is never time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Whole episodes of T tasks; ``mask`` is 1 for steps really taken that may be learned from."""

    obs: Tensor
    """``[T, E, H, O]``, raw (not normalised)."""
    action: Tensor
    """``[T, E, H, A]``, as the policy drew it; clipped to +-1, then scaled, when applied."""
    log_prob: Tensor
    """``[T, E, H]``, under the policy that acted."""
    reward: Tensor
    """``[T, E, H]``."""
    mask: Tensor
    """``[T, E, H]``, 1 up to and including the last step; 0 throughout where it diverged."""
    final_obs: Tensor
    """``[T, E, O]``, after step H."""
    terminated: Tensor
    """``[T, E]`` bool: ended by the task rather than by the horizon."""
    diverged: Tensor
    """``[T, E]`` bool: the physics blew up; excluded from learning and from returns."""
    success: Tensor | None = None
    """``[T, E]`` bool: reached the task's goal at any step; None where the family has no goal."""
    advantage: Tensor | None = None
    """``[T, E, H]``, normalised per task; set by ``advantage.estimate``."""
    switched: Tensor | None = None
    """``[T, E]`` first step acted by a guard's fallback, H where there is none; None: no guard."""

    def __post_init__(self) -> None:
        """Check the shapes once, so that nothing downstream broadcasts by accident."""
        leading = self.reward.shape
        ok = len(leading) == 3 and self.obs.shape[:3] == self.action.shape[:3] == leading
        ok = ok and self.log_prob.shape == self.mask.shape == leading
        ok = (
            ok
            and self.final_obs.shape[:2]
            == self.terminated.shape
            == self.diverged.shape
            == leading[:2]
        )
        if not ok or (self.advantage is not None and self.advantage.shape != leading):
            shapes = {
                f.name: tuple(getattr(self, f.name).shape)
                for f in fields(self)
                if f.name not in ("advantage", "success", "switched")
            }
            raise ValueError(f"trajectories must agree in [T, E, H], got {shapes}")

    def returns(self) -> Tensor:
        """Undiscounted return of each episode ``[T, E]``; NaN where the simulation diverged."""
        total = (self.reward * self.mask).sum(-1)
        return total.masked_fill(self.diverged, torch.nan)

    def mean_return(self) -> Tensor:
        """Mean return per task ``[T]`` over the episodes that did not diverge."""
        return self.returns().nanmean(-1)

    def success_rate(self) -> Tensor | None:
        """Share of each task's episodes ``[T]`` that succeeded; a diverged one did not."""
        if self.success is None:
            return None
        return (self.success & ~self.diverged).float().mean(-1)

    def next_obs(self) -> Tensor:
        """The observation after each step, ``[T, E, H, O]``."""
        return torch.cat([self.obs[:, :, 1:], self.final_obs[:, :, None]], dim=2)

    def episodes(self, index: Tensor | slice) -> Trajectories:
        """Some of the E episodes of every task."""
        return self._map(lambda x: x[:, index])

    def tasks(self, index: Tensor | slice) -> Trajectories:
        """All episodes of some of the T tasks."""
        return self._map(lambda x: x[index])

    def joined(self, more: Trajectories) -> Trajectories:
        """These episodes and ``more`` of the same tasks, without advantages."""
        both = (self, more)
        if (self.switched is None) != (more.switched is None):
            both = tuple(replace(x, switched=x.switch_step()) for x in both)
        names = [f.name for f in fields(self) if f.name != "advantage"]
        pairs = {name: tuple(getattr(x, name) for x in both) for name in names}
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        return Trajectories(**{name: torch.cat(pair, dim=1) for name, pair in known.items()})

    def switch_step(self) -> Tensor:
        """``switched``, with H throughout where no guard watched."""
        if self.switched is not None:
            return self.switched
        return torch.full_like(self.diverged, self.reward.shape[-1], dtype=torch.int64)

    def stopped(self) -> Tensor:
        """``[T, E]`` bool: the guard stopped the policy and its fallback acted on."""
        return self.switch_step() < self.reward.shape[-1]

    def before_switch(self) -> Trajectories:
        """Only the steps of the guarded policy: all that may be learned about it."""
        return self._acted(self._steps() < self.switch_step()[..., None], ~self.stopped())

    def after_switch(self) -> Trajectories:
        """Only the steps of the guard's fallback."""
        return self._acted(self._steps() >= self.switch_step()[..., None], self.stopped())

    def _steps(self) -> Tensor:
        return torch.arange(self.reward.shape[-1], device=self.reward.device)

    def _acted(self, steps: Tensor, last: Tensor) -> Trajectories:
        """Some steps; ``last [T, E]`` where the end of the episode is among them."""
        return replace(self, mask=self.mask * steps, terminated=self.terminated & last)

    def with_advantage(self, advantage: Tensor) -> Trajectories:
        """The same episodes with advantages ``[T, E, H]``."""
        return replace(self, advantage=advantage)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Trajectories:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if v is not None})


@dataclass(frozen=True)
class Recall:
    """What a read of the memory brought up, best row first."""

    index: Tensor
    """``[T, K]`` rows of the memory; meaningless where the weight is 0."""
    distance: Tensor
    """``[T, K]``; up to about 1 between two visits to one task, inf where there is no row."""
    weights: Tensor
    """``[T, K]``, non-negative; sum to 1 where something was recalled, to 0 where nothing was."""
    params: Tensor
    """``[T, K, P]``, the recalled policies."""

    @property
    def accepted(self) -> Tensor:
        """``[T]`` bool: whether anything was recalled; if not, start at the meta-initialisation."""
        return self.weights.sum(-1) > 0

    def pull(self, params: Tensor) -> Tensor:
        """``sum_i w_i (theta_i - theta)``, ``params [T, P]``; exactly 0 if nothing was recalled."""
        mix = torch.einsum("tk,tkp->tp", self.weights, self.params)
        return mix - self.weights.sum(-1, keepdim=True) * params


@dataclass(frozen=True)
class Adaptation:
    """What happened while T tasks were adapted to."""

    params: Tensor
    """``[T, P]`` adapted parameters."""
    support: list[Trajectories]
    """The episodes that each step was made from, in order."""
