"""Data-parallel training over tasks: what processes that share an outer step must agree on.

One process is the normal case, in which everything here changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of everybody's ``value``, outside of the graph."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_gradients(leaves: Sequence[Tensor]) -> None:
    """Make every leaf's gradient the mean over the processes, in place."""
    if world_size() == 1:
        return
    for leaf in leaves:
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        dist.all_reduce(leaf.grad)
        leaf.grad /= world_size()
