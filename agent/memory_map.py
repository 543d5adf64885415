"""The map of a memory: a picture of its keys in two dimensions, coloured by task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agent.config import ConfigError, build
from agent.memory.files import Contents, Encoder
from agent.memory.manifest import MemoryFolderError

Points = NDArray[np.float64]
_MOST_SCORED = 2000
_MOST_LABELS = 20
_MOST_NAMED = 60
_STRONG_FIRST = np.r_[0:20:2, 1:20:2]
# A memory is data: what may be built of its words are Engram's own keys and nothing else.
_KEYS = re.compile(r"agent\.memory\.key\.\w+\.\w+")


def draw_map(contents: Contents, path: Path) -> str:
    """Write the picture; what it shows. Keys of different encoders are drawn side by side.

    Raises:
        MemoryFolderError: There are not two rows to be drawn.
    """
    facts = {uid: contents.facts(uid) for uid in contents.uids}
    encoders = Counter(str(fact.get("encoder")) for fact in facts.values())
    panels = []
    for encoder, _ in encoders.most_common(4):
        uids = known_rows(contents, encoder)
        if len(uids) > 1:
            points, how = placed(contents, encoder)
            panels.append((encoder, how, uids, points))
    if not panels:
        raise MemoryFolderError(f"{contents.folder}: no two rows with keys that can be compared")
    labels = sorted({label_of(fact.get("info")) for fact in facts.values()})
    with mpl.rc_context({"font.size": 8.5, "text.parse_math": False, "svg.hashsalt": "engram"}):
        figure = Figure(figsize=(6.5 * len(panels), 5.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (encoder, how, uids, points) in zip(axes, panels, strict=True):
            named = {uid: label_of(facts[uid].get("info")) for uid in uids}
            _draw(ax, points, named, labels)
            ax.set_title(f"{len(uids)} keys of encoder {encoder}\n{how}", loc="left")
        if len(labels) <= _MOST_LABELS:
            handles = {h.get_label(): h for ax in axes for h in ax.collections}
            figure.legend(handles=list(handles.values()), loc="outside right upper", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    shown = sum(len(uids) for _, _, uids, _ in panels)
    return f"{shown} of {len(facts)} rows, {len(labels)} tasks"


def known_rows(contents: Contents, encoder: str) -> list[int]:
    """Rows whose keys this version made, and say something."""
    return [
        uid
        for uid in contents.uids
        if contents.facts(uid).get("encoder") == encoder
        and bool(torch.isfinite(contents.key(uid)).all())
    ]


def placed(contents: Contents, encoder: str) -> tuple[Points, str]:
    """Where ``known_rows`` go, ``[N, 2]``, and how that was found, in words."""
    keys = torch.stack([contents.key(uid) for uid in known_rows(contents, encoder)])
    if len(keys) <= _MOST_SCORED and encoder in contents.manifest.encoders:
        key = restored_key(contents.encoder(encoder))
        if key is not None:
            scores = key.score(keys, keys).double().cpu().numpy()
            if np.isfinite(scores).all():
                return scaled(scores), "the nearer, the likelier the same task (classical scaling)"
    return principal(keys.double().numpy()), "principal components"


def label_of(info: object) -> str:
    """What a row's task is called, by what its writer noted; for readers only."""
    if not isinstance(info, Mapping):
        return "-"
    task = info.get("task")
    label = task.get("label") if isinstance(task, Mapping) else task
    return str(info.get("label") or label or "-")


def scaled(scores: Points) -> Points:
    """Classical scaling: points ``[N, 2]`` whose distances are nearest to those of the scores.

    ``scores [N, N]`` are taken for inner products, so that two rows are as far apart as each fits
    itself better than the other: d^2 = s_ii + s_jj - s_ij - s_ji, if that is positive.
    """
    own = np.diag(scores)
    squared = np.maximum(own[:, None] + own[None] - scores - scores.T, 0.0)
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    return _upright(vectors[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0.0)))


def principal(keys: Points) -> Points:
    """The first two principal components ``[N, 2]`` of standardised ``keys [N, D]``."""
    spread = keys.std(0)
    used = spread > 1e-12 * np.abs(keys).max()
    if not used.any():
        return np.zeros((len(keys), 2))
    standard = (keys[:, used] - keys[:, used].mean(0)) / spread[used]
    left, lengths, _ = np.linalg.svd(standard, full_matrices=False)
    points = (left * lengths)[:, :2]
    return _upright(np.pad(points, ((0, 0), (0, 2 - points.shape[1]))))


def _upright(points: Points) -> Points:
    """One of the mirror images, always the same one."""
    columns = np.arange(points.shape[1])
    signs = np.sign(points[np.abs(points).argmax(0), columns])
    return points * np.where(signs == 0, 1.0, signs)


def restored_key(encoder: Encoder) -> Any:
    """The key that an encoder's settings and state describe; None if they do not say."""
    target = encoder.settings.get("_target_")
    if not isinstance(target, str) or not _KEYS.fullmatch(target):
        return None
    try:
        key = build(encoder.settings, "encoder")
        key.load_state_dict(encoder.state)
    except (ConfigError, KeyError, ValueError, RuntimeError):
        return None  # of another version of Engram; the picture says how it was made
    return key if key.version == encoder.version else None


def _draw(ax: Axes, points: Points, named: dict[int, str], labels: list[str]) -> None:
    colours = mpl.colormaps["tab20"](_STRONG_FIRST[np.arange(len(labels)) % 20])
    for label, colour in zip(labels, colours, strict=True):
        mine = [i for i, name in enumerate(named.values()) if name == label]
        if mine:
            ax.scatter(*points[mine].T, s=28, color=[colour], label=label, edgecolor="white")
    if len(named) <= _MOST_NAMED:
        for uid, point in zip(named, points, strict=True):
            ax.annotate(str(uid), tuple(point), (3, 3), textcoords="offset points", fontsize=6.5)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
