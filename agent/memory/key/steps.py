"""Single steps as networks are shown them: standardised, less what the average task would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.memory.key.handmade import HandMade
from agent.memory.key.summed import Seen

CLIP = 5.0
"""Standard deviations beyond which a surprise is cut off: contacts make them heavy-tailed."""
_RIDGE = 1e-6
# A share of its spread that is no surprise, but rounding.
_EXACT = 1e-5


@dataclass(frozen=True)
class Steps:
    """n steps each of some tasks, float32; all is 0 where ``mask`` is."""

    obs: Tensor
    """``[..., n, O]``, normalised."""
    action: Tensor
    """``[..., n, A]``, as applied."""
    change: Tensor
    """``[..., n, O]``, of the normalised observation."""
    surprise: Tensor
    """``[..., n, 1 + O]``: reward and change less what the average task would give; unit sd."""
    mask: Tensor
    """``[..., n]``, 1 where the step may be learned from."""

    def inputs(self) -> Tensor:
        """What a network is shown of every step, ``[..., n, O + A + 1 + O]``."""
        return torch.cat([self.obs, self.action, self.surprise], -1)

    def tasks(self, index: Tensor) -> Steps:
        """Only some tasks (bool or numbers) of probes ``[R, M, n, ...]``."""
        return Steps(*(value[:, index] for value in vars(self).values()))

    def drawn(self, probe: int, count: int, generator: torch.Generator) -> Steps:
        """``count`` different steps of each task, at random, of one of probes ``[R, M, n, ...]``.

        Masked ones only where there are too few others.
        """
        mask = self.mask[probe]
        chance = torch.rand(mask.shape, generator=generator).to(mask.device)
        index = (chance + mask).topk(min(count, mask.shape[-1]), dim=-1).indices
        rows = torch.arange(len(index), device=mask.device)[:, None]
        return Steps(*(value[probe][rows, index] for value in vars(self).values()))


class StepScaler:
    """Turns what is seen into ``Steps``; fitted to the training probes, then fixed."""

    NAMES = ("change", "change_sd", "reward", "reward_sd")

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = {name: state[name] for name in self.NAMES}

    @classmethod
    def fit(cls, seen: Seen) -> StepScaler:
        """One linear model of all training tasks is what the average task would give."""
        state: dict[str, Tensor] = {}
        valid = seen.mask > 0
        every = Seen(*(column[valid] for column in vars(seen).values()))
        for name, inputs in _inputs(every).items():
            target = getattr(every, name)
            gram = inputs.mT @ inputs
            eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            weight = torch.linalg.solve(gram + _RIDGE * eye, inputs.mT @ target)
            spread = target.std(0, unbiased=False)
            sd = (target - inputs @ weight).square().mean(0).sqrt()
            # What the average task predicts exactly surprises in none of them.
            sd = torch.where(sd > _EXACT * (spread + _EXACT), sd, torch.ones_like(sd))
            state |= {name: weight, f"{name}_sd": sd}
        return cls(state)

    def __call__(self, seen: Seen) -> Steps:
        """Every step that was seen."""
        s = self._state
        surprises = [
            (getattr(seen, name) - inputs @ s[name]) / s[f"{name}_sd"]
            for name, inputs in _inputs(seen).items()
        ]
        columns = seen.obs, seen.action, seen.change, torch.cat(surprises, -1).clamp(-CLIP, CLIP)
        invalid = (seen.mask <= 0)[..., None]
        values = [column.masked_fill(invalid, 0.0).float() for column in columns]
        return Steps(*values, mask=(~invalid[..., 0]).float())

    def state_dict(self) -> dict[str, Tensor]:
        """What was fitted."""
        return dict(self._state)


def _inputs(seen: Seen) -> dict[str, Tensor]:
    features = HandMade()
    return {
        "reward": features.reward(seen.obs, seen.action, seen.change),
        "change": features.dynamics(seen.obs, seen.action),
    }
