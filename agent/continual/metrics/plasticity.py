"""Whether the agent can still learn: of its network, and of how its visits went."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.policy import GaussianMlp

SATURATED = 0.95
"""Absolute value of a tanh unit above which it hardly passes a gradient on (below 10 %)."""


@torch.no_grad()
def plasticity(policy: GaussianMlp, params: Tensor, obs: Tensor) -> dict[str, float]:
    """What a policy's network has left to learn with.

    Args:
        policy: Sizes and functions of the network.
        params: One set of parameters ``[1, P]``.
        obs: Raw observations ``[n, O]`` of the task that it was trained on.

    Returns:
        ``dormant`` and ``dormant_0.1``: share of the hidden units whose mean absolute activation is
        at most .025 (.1) of the mean of their layer (Sokar et al. 2023). ``effective_rank``: of the
        last hidden layer's activations ``[n, width]``, exp of the entropy of the singular values
        divided by their sum (Roy & Vetterli 2007). ``stable_rank``: the least number of singular
        values with 99 % of their sum (Kumar et al. 2021). ``saturated``: share of all activations
        above .95 in absolute value. ``weight_norm``: root mean square of weights and biases; of a
        linear policy, which has no hidden units, only that.
    """
    if params.shape != (1, policy.num_params):
        raise ValueError(
            f"plasticity is of one policy: expected params [1, {policy.num_params}], got "
            f"{list(params.shape)}"
        )
    if obs.ndim != 2 or obs.shape[1] != policy.obs_size or len(obs) < 1:
        raise ValueError(
            f"expected observations [n, {policy.obs_size}] with n >= 1, got {list(obs.shape)}; "
            "are episodes and steps still apart?"
        )
    weights = params[0, : policy.num_params - policy.action_size]
    norm = {"weight_norm": float(weights.double().square().mean().sqrt())}
    layers = _activations(policy, params, obs)
    if not layers:  # a linear policy has no units to lose
        return norm
    size = torch.cat(
        [layer.abs().mean(0) / layer.abs().mean().clamp(min=1e-12) for layer in layers]
    )
    values = torch.linalg.svdvals(layers[-1].double())
    share = values / values.sum().clamp(min=1e-12)
    kept = share[share > 0]
    total = torch.cat([layer.flatten() for layer in layers])
    return norm | {
        "dormant": float((size <= 0.025).double().mean()),
        "dormant_0.1": float((size <= 0.1).double().mean()),
        "effective_rank": float(torch.exp(-(kept * kept.log()).sum())) if len(kept) else 0.0,
        "stable_rank": float((share.cumsum(0) < 0.99).sum() + 1) if len(kept) else 0.0,
        "saturated": float((total.abs() > SATURATED).double().mean()),
    }


def _activations(policy: GaussianMlp, params: Tensor, obs: Tensor) -> list[Tensor]:
    """Of each hidden layer ``[n, width]``."""
    layers, _ = policy.unflatten(params)
    x, out = policy.normalizer(obs), []
    for weight, bias in layers[:-1]:
        x = torch.tanh(x @ weight[0] + bias[0])
        out.append(x)
    return out
