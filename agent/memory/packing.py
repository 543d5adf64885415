"""Probe transitions and plain values as bytes, losslessly."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from agent.memory.row import Transitions


def packed(probe: Transitions) -> Tensor:
    """A probe as uint8 ``[bytes]`` on the CPU: ``unpacked`` gives it back, bit for bit.

    The observation after a step is nearly always the one before the next step, so only the others
    (an episode's last, as a rule) are kept besides.
    """
    obs, after = probe.obs.float().cpu(), probe.next_obs.float().cpu()
    parts = [obs, probe.action.float().cpu(), probe.reward.float().cpu()]
    apart = _apart(obs, after)
    flags = probe.first.cpu().to(torch.uint8) | (apart.to(torch.uint8) << 1)
    columns = [*(p.contiguous().view(torch.uint8) for p in (*parts, after[apart])), flags]
    return torch.cat([c.flatten() for c in columns])


def unpacked(data: Tensor, steps: int, obs: int, action: int) -> Transitions:
    """The probe of ``steps`` steps that ``packed`` made bytes of."""
    flags = data[len(data) - steps :]
    apart, first = (flags & 2) > 0, (flags & 1) > 0
    sizes = [steps * obs, steps * action, steps, int(apart.sum()) * obs]
    numbers = data[: 4 * sum(sizes)].clone().view(torch.float32).split(sizes)
    before = numbers[0].reshape(steps, obs).clone()
    after = torch.cat([before[1:], before[:0].new_zeros(min(steps, 1), obs)])
    after[apart] = numbers[3].reshape(-1, obs)
    return Transitions(
        before, numbers[1].reshape(steps, action).clone(), numbers[2].clone(), after, first
    )


def _apart(obs: Tensor, after: Tensor) -> Tensor:
    """``[M]`` bool: after these steps comes an observation that no other step begins with."""
    apart = torch.ones(len(obs), dtype=torch.bool)
    bits = obs.contiguous().view(torch.int32), after.contiguous().view(torch.int32)
    apart[:-1] = (bits[1][:-1] != bits[0][1:]).any(-1)
    return apart


def json_bytes(value: object) -> Tensor:
    """A plain value as JSON in a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def json_value(text: Tensor) -> Any:
    """What ``json_bytes`` made bytes of."""
    return json.loads(text.cpu().numpy().tobytes())
