"""Data-parallel training over tasks: what processes that share an outer step must agree on.

Every process draws the whole batch of tasks and their randomness, and simulates its own part of it;
the gradients are the mean over all. One process is the normal case, in which everything here
changes nothing.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from agent.launch import place_on_machine, processes

_PATIENCE = timedelta(hours=2)  # others wait while the first evaluates and calibrates
_SHA_BYTES = 6  # of the fingerprint: as many as a float64 holds exactly


class TogetherError(RuntimeError):
    """Processes that should train together cannot."""


class LostProcessError(TogetherError):
    """Another process ended, so that this one cannot go on."""


class OutOfStepError(TogetherError):
    """Processes that should hold the same learner hold different ones."""


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Train with the other processes that torchrun started; without any, alone.

    Args:
        device: As in the settings: ``auto``, ``cpu`` or ``cuda``. Each process on a machine takes a
            GPU of its own.

    Raises:
        TogetherError: There are fewer GPUs than processes.
    """
    if processes() == 1:
        yield
        return
    # Functions of this module have as default the group there is when it is imported, and torch's
    # optimisers import it. A group held so never ends; its threads may abort the process at exit.
    importlib.import_module("torch.distributed.nn")
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        backend, number = "cpu:gloo,cuda:nccl", place_on_machine()
        if number >= torch.cuda.device_count():
            raise TogetherError(
                f"process {number} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}: start at most as many processes "
                "(torchrun --nproc-per-node), or use device=cpu"
            )
        torch.cuda.set_device(number)
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes."""
    return dist.get_rank() if world_size() > 1 else 0


def check_divisible(tasks: int) -> None:
    """Every process must have as many tasks as the others, or the mean would not be that of all.

    Raises:
        TogetherError: The tasks of a batch cannot be divided so.
    """
    if tasks % world_size():
        raise TogetherError(
            f"batch.tasks={tasks} cannot be divided among {world_size()} processes; give a "
            f"multiple, such as batch.tasks={-(-tasks // world_size()) * world_size()}, or start "
            "another number of processes (torchrun --nproc-per-node)"
        )


def own_part(rows: int) -> slice:
    """Which of the rows of a batch this process works on."""
    each = rows // world_size()
    return slice(rank() * each, (rank() + 1) * each)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of everybody's ``value``, outside of the graph."""
    return total_over_processes(value) / world_size() if world_size() > 1 else value


def total_over_processes(value: Tensor) -> Tensor:
    """The sum of everybody's ``value``, outside of the graph."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    _together(dist.all_reduce, total)
    return total


def mean_gradients(leaves: Sequence[Tensor]) -> None:
    """Make every leaf's gradient the mean over the processes, in place."""
    if world_size() == 1:
        return
    for leaf in leaves:
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of many
    parts = mean_over_processes(flat).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def moments(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean and variance ``[O]`` of everybody's ``rows [n, O]``, the same for everybody.

    The parts are put together in the order of the processes (Chan 1979).
    """
    count = len(rows)
    mean = rows.mean(0) if count else rows.new_zeros(rows.shape[1])
    var = rows.var(0, unbiased=False) if count else rows.new_zeros(rows.shape[1])
    if world_size() == 1:
        return count, mean, var
    own = torch.cat([mean.new_tensor([count], dtype=torch.float64), mean.double(), var.double()])
    total, middle, spread = 0.0, torch.zeros_like(mean).double(), torch.zeros_like(mean).double()
    for part in gathered(own):
        n, (their_mean, their_var) = float(part[0]), part[1:].chunk(2)
        if n == 0:
            continue
        share, delta = n / (total + n), their_mean - middle
        spread = their_var * share + spread * (1 - share) + delta.square() * share * (1 - share)
        middle, total = middle + delta * share, total + n
    return int(total), middle.to(mean), spread.to(var)


def gathered(value: Tensor) -> list[Tensor]:
    """Everybody's ``value``, in the order of the processes."""
    if world_size() == 1:
        return [value]
    out = [torch.empty_like(value) for _ in range(world_size())]
    _together(dist.all_gather, out, value.contiguous())
    return out


def from_first(data: bytes) -> bytes:
    """What the first process gives, for everybody."""
    if world_size() == 1:
        return data
    size = torch.tensor([len(data)])
    _together(dist.broadcast, size, 0)
    buffer = torch.empty(int(size), dtype=torch.uint8)
    if rank() == 0:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    _together(dist.broadcast, buffer, 0)
    return buffer.numpy().tobytes()


def agreed(signal: int, state: Callable[[], Mapping[str, Tensor]]) -> int:
    """A signal that any of the processes got, 0 for none; all hear of it at the same place.

    Raises:
        OutOfStepError: The processes do not hold the same ``state``.
    """
    if world_size() == 1:
        return signal
    own = torch.tensor([signal, fingerprint(state())], dtype=torch.float64)
    rows = torch.stack(gathered(own))
    different = [n for n in range(len(rows)) if rows[n, 1] != rows[0, 1]]
    if different:
        raise OutOfStepError(
            f"processes {different} hold another learner than process 0 after the same outer step: "
            "a gradient or a statistic was not shared, or the machines compute differently. "
            "Checkpoints up to here are process 0's"
        )
    return int(rows[:, 0].max())


def fingerprint(state: Mapping[str, Tensor]) -> int:
    """A number that differs where any bit of the tensors does."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:_SHA_BYTES], "big")


def _together(operation: Callable[..., Any], *arguments: Any) -> None:
    """A collective operation, which fails where another process does not come."""
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise LostProcessError(
            f"process {rank()} waited in vain for another one, which has ended or hangs; what that "
            f"one says is the cause ({str(error).splitlines()[0][:160]})"
        ) from error
