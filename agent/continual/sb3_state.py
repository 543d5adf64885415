"""Everything that a stable-baselines3 model goes on from, as tensors by name, and back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from torch import Tensor

_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")


@contextmanager
def own_randomness(rng: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Let code draw from the global generators, seeded for it, and put them back as they were.

    stable-baselines3 draws from those of Python, numpy and torch, and from no others.
    """
    seeds = [int(seed) for seed in rng.integers(2**32, size=3)]
    before, before_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            random.seed(seeds[0])
            np.random.seed(seeds[1])
            torch.manual_seed(seeds[2])
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def state_of(model: BaseAlgorithm) -> dict[str, Tensor]:
    """The policy, optimisers and other variables, the replay buffer and the counters."""
    modules, optimisers, variables = _parts(model)
    out = {
        f"{part}.{name}": value
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    }
    for part, optimiser in optimisers.items():
        for i, values in optimiser.state_dict()["state"].items():
            out |= {f"optimiser.{part}/{i}/{k}": torch.as_tensor(v) for k, v in values.items()}
    out |= {f"variable.{name}": value for name, value in variables.items()}
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        used = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
        out |= {f"replay.{k}": torch.from_numpy(v[:used]) for k, v in _arrays(buffer).items()}
        out["replay.position"] = torch.tensor([buffer.pos, int(buffer.full)])
    out |= {f"counter.{k}": torch.tensor(getattr(model, k)) for k in _counters(model)}
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def restore(model: BaseAlgorithm, state: Mapping[str, Tensor]) -> None:
    """The inverse of ``state_of``, on a model made from the same settings."""
    modules, optimisers, variables = _parts(model)
    for part, module in modules.items():
        module.load_state_dict(_under(f"{part}.", state))
    for part, optimiser in optimisers.items():
        values: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(f"optimiser.{part}/", state).items():
            number, _, key = name.partition("/")
            values.setdefault(int(number), {})[key] = value.clone()
        groups = optimiser.state_dict()["param_groups"]  # follow from the settings
        optimiser.load_state_dict({"state": values, "param_groups": groups})
    with torch.no_grad():
        for name, variable in variables.items():
            variable.copy_(state[f"variable.{name}"])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name, array in _arrays(buffer).items():
            saved = state[f"replay.{name}"].cpu().numpy()
            array[: len(saved)] = saved
        position, full = state["replay.position"].tolist()
        buffer.pos, buffer.full = position, bool(full)
    for name in _counters(model):
        setattr(model, name, int(state[f"counter.{name}"]))


def _parts(
    model: BaseAlgorithm,
) -> tuple[dict[str, torch.nn.Module], dict[str, torch.optim.Optimizer], dict[str, Tensor]]:
    """By the names under which the model itself would save them."""
    names, variables = model._get_torch_save_params()
    found: dict[str, Any] = {name: recursive_getattr(model, name) for name in names}
    modules = {k: v for k, v in found.items() if isinstance(v, torch.nn.Module)}
    optimisers = {k: v for k, v in found.items() if isinstance(v, torch.optim.Optimizer)}
    return modules, optimisers, {name: recursive_getattr(model, name) for name in variables}


def _arrays(buffer: Any) -> dict[str, np.ndarray]:
    """What a replay buffer holds, a row for each step."""
    return {k: v for k, v in vars(buffer).items() if isinstance(v, np.ndarray)}


def _counters(model: BaseAlgorithm) -> list[str]:
    return [name for name in _COUNTERS if hasattr(model, name)]


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
