"""Changes to all rows at once, made to what ``Log.dump`` gives before another log takes it in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agent.memory.key.base import Key
from agent.memory.packing import json_bytes, json_value
from agent.memory.row import Row, Transitions
from agent.types import Trajectories

State = dict[str, Tensor]


def with_lineage(state: State, old: str, new: str) -> State:
    """The rows of lineage ``old`` are of ``new``, the others as they were."""
    text = json_value(state["text"])
    own = torch.tensor([name == old for name in text["names"]], dtype=torch.bool)
    lineage = torch.where(own[state["lineage"]], len(text["names"]), state["lineage"])
    text["names"].append(new)
    return state | {"lineage": lineage, "text": json_bytes(text)}


def with_keys(state: State, key: Key, rows: Sequence[Row], device: torch.device) -> State:
    """All keys made anew from the rows' probes; NaN where a row has none."""
    text = json_value(state["text"])
    text["names"].append(key.version)
    return state | {
        "key": encoded(key, [row.probe for row in rows], device),
        "encoder": torch.full_like(state["encoder"], len(text["names"]) - 1),
        "other_key": torch.full_like(state["other_key"], -1),
        "other_keys": torch.zeros(0),
        "text": json_bytes(text),
    }


def encoded(key: Key, probes: Sequence[Transitions], device: torch.device) -> Tensor:
    """Evidence ``[N, D]`` of stored probes; those of the same shape are encoded together.

    ``device`` is where the key works.
    """
    keys = torch.full((len(probes), key.size), torch.nan)
    alike: dict[tuple[int, ...], list[tuple[int, Trajectories]]] = {}
    for i, probe in enumerate(probes):
        if len(probe.reward):
            episodes = probe.trajectories()
            alike.setdefault(tuple(episodes.reward.shape), []).append((i, episodes))
    for members in alike.values():
        where = torch.tensor([i for i, _ in members])
        keys[where] = key.encode(_stacked([e for _, e in members], device)).float().cpu()
    return keys


def _stacked(tasks: Sequence[Trajectories], device: torch.device) -> Trajectories:
    """Episodes of one task each as those of T tasks."""
    names = ("obs", "action", "log_prob", "reward", "mask", "final_obs", "terminated", "diverged")
    return Trajectories(
        **{n: torch.cat([getattr(task, n) for task in tasks]).to(device) for n in names}
    )
