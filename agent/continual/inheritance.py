"""What a life leaves on disk and another is born with: the rows of a memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.memory.files import MemoryFolder
from agent.memory.memory import EpisodicMemory
from agent.memory.row import Row
from agent.policy import GaussianMlp


def save(
    folder: Path,
    memory: EpisodicMemory,
    policy: GaussianMlp,
    key_settings: Mapping[str, Any],
    labels: Mapping[int, str],
) -> None:
    """Make the folder hold the rows of ``memory``, what they are relative to, and what made keys.

    ``labels`` names rows by uid, for readers; a row without one keeps what was said of it.
    """
    bank, key = memory.bank, memory.key
    rows = {}
    for uid in bank.snapshot().uids.tolist():
        row = bank.row(uid)
        named = {"label": labels[uid]} if labels.get(uid) else {}
        rows[uid] = row.with_(info={"label": ""} | row.info | named)
    settings: dict[str, Any] = {"segments": policy.segments}
    if bank.sizes.free:
        settings["free"] = bank.sizes.free
    with MemoryFolder(folder).writer() as writer:
        writer.set_lineage(
            memory.lineage, bank.anchor, policy.normalizer.state_dict(), settings, current=True
        )
        writer.set_encoder(key.version, key.state_dict(), dict(key_settings), current=True)
        writer.mirror(rows)


def inherited(folder: Path, policy: GaussianMlp, lineage: str) -> Iterator[Row]:
    """The rows of another life, as policies for the normaliser of this one's ``policy``.

    Raises:
        ValueError: They are of networks of another form, or beliefs that other weights were told.
    """
    contents = MemoryFolder(folder).contents()
    for uid in contents.uids:
        row = contents.row(uid)
        origin = contents.lineage(row.lineage)
        form = list(origin.settings.get("segments", policy.segments))
        if form != policy.segments:
            raise ValueError(
                f"{folder}: row {uid} is a network of layers {form}, "
                f"this agent's are {policy.segments}"
            )
        if row.lineage != lineage and policy.shared():
            raise ValueError(
                f"{folder}: row {uid} is a belief of lineage {row.lineage!r}, this agent's weights "
                f"and normalisers are of {lineage!r}, to which its numbers mean nothing. Only rows "
                "that were made from the same training run (init=...) can be taken over"
            )
        if row.lineage != lineage and {"mean", "var"} <= origin.state.keys():
            params = row.params.to(policy.device)
            params = policy.renormalised(params, origin.state["mean"], origin.state["var"])
            row = row.with_(params=params.cpu())
        yield row
