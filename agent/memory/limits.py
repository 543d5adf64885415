"""What a bank may hold: its settings, and what it refuses."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.memory.codec import Kind
from agent.memory.log import Sizes
from agent.memory.row import Row, Transitions
from agent.memory.tiers import TierName


class BankFullError(RuntimeError):
    """The capacity is reached: something must be removed before anything is written."""


class LineageMismatchError(ValueError):
    """A saved memory is of another lineage than the policy that it would be added to."""


@dataclass(kw_only=True, config={"extra": "forbid"})
class BankConfig:
    """Settings of the bank."""

    rows: Annotated[int, Field(ge=1)] = 256
    """Rows at most."""
    bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes of all rows together at most, with all that is kept of them; null: any number."""
    codec: Kind = "int8"
    """How a policy's delta is coded; more bits where a check asks for them."""
    block: Annotated[int, Field(ge=1)] = 64
    """Parameters that share a scale in ``int8`` and ``int4``."""
    probe_steps: Annotated[int, Field(ge=1)] = 256
    """Probe transitions of a row at most; the first ones are kept."""
    tiers: Annotated[list[TierName], Field(min_length=1)] = field(
        default_factory=lambda: ["device", "host", "disk"]
    )
    """Where policies and bands lie; the next one once there is no room. (Keys and returns, which
    every read looks at, are always on the device; probes, which reading never needs, never are
    unless that is the only tier.)"""
    device_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes of policies and bands on the device at most; null: until it refuses."""
    folder: str | None = None
    """Folder of the disk tier; null: the system's temporary one. Its files are never seen."""
    chunk_rows: Annotated[int, Field(ge=1)] = 256
    """Rows that space is reserved for at a time."""


def refuse_unlike(row: Row, sizes: Sizes, encoder: str) -> None:
    """Raise a ValueError that says in what a row is not like those of a bank."""
    probe, own = row.probe, row.encoder == encoder
    shapes = {
        "params": (row.params.shape, (sizes.params,)),
        "key": (row.key.shape, (sizes.key if own else row.key.numel(),)),
        "so_far": (row.record.so_far.shape, (sizes.horizon,)),
        "so_far_sd": (row.record.so_far_sd.shape, (sizes.horizon,)),
        "probe.obs": (probe.obs.shape, (len(probe.reward), sizes.obs)),
        "probe.action": (probe.action.shape, (len(probe.reward), sizes.action)),
    }
    for name, (got, want) in shapes.items():
        if tuple(got) != want:
            raise ValueError(f"a row's {name} must be {want} in this bank, got {tuple(got)}")
    for name, value in (("params", row.params), ("key", row.key)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"a row whose {name} are not finite could never be of use")


def shortened(probe: Transitions, most: int) -> Transitions:
    """Its first steps, ``most`` at most."""
    columns = (probe.obs, probe.action, probe.reward, probe.next_obs, probe.first)
    return Transitions(*(column[:most] for column in columns))
