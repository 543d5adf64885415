"""The learning curve of one meta-training run, read back from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.files import BadFileError, plain, read_yaml

_NOT_THE_LEARNER = {"run", "seed", "budget", "device", "threads", "checkpoint_every"}
_NOT_THE_LEARNER |= {"import_path", "tensorboard", "calibration", "curve"}
_POINT = "curve/after_"


@dataclass(frozen=True)
class RunCurve:
    """n points, each after 0, 1, ... k adaptation steps."""

    folder: Path
    settings: str
    """What runs with other seeds have in common."""
    seed: int
    family: str
    horizon: int
    env_steps: NDArray[np.float64]
    """``[n]``, of training."""
    seconds: NDArray[np.float64]
    """``[n]``, of training, without evaluations."""
    cpu_seconds: NDArray[np.float64]
    """``[n]``; NaN where the log does not tell."""
    returns: NDArray[np.float64]
    """``[n, k + 1]``."""
    total_steps: int
    """In the whole log, beyond the last point too; and so are these:"""
    wall: float
    """Seconds."""
    cpu: float
    """Seconds."""
    physics: float
    """Wall seconds in the simulator."""


def read_curve(folder: Path) -> RunCurve:
    """The curve of a run folder, also of one that is being trained.

    Raises:
        FileNotFoundError: It is not a meta-training run, or there is no curve in its log.
        BadFileError: The log is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: not a meta-training run (no config.yaml); make one with: "
            f"engram train run={folder} curve.every=100000"
        )
    config, lines = read_yaml(path), _lines(folder / "metrics.jsonl")
    points = [line for line in lines if f"{_POINT}0" in line]
    if not points:
        raise FileNotFoundError(
            f"{folder}: has no learning curve yet; it is measured during training, with "
            "curve.every=100000 (env steps from one point to the next)"
        )
    env = config["env"]
    same = {key: value for key, value in config.items() if key not in _NOT_THE_LEARNER}
    steps = len([name for name in points[0] if name.startswith(_POINT)])
    seconds = _column(lines, "seconds")
    return RunCurve(
        folder=folder,
        settings=json.dumps(plain(same), sort_keys=True),
        seed=int(config["seed"]),
        family=f"{env['name']}:{env['variant']}" if env.get("variant") else str(env["name"]),
        horizon=int(env["horizon"]),
        env_steps=_column(points, "env_steps"),
        seconds=_column(points, "seconds"),
        cpu_seconds=_column(points, "time/cpu_seconds"),
        returns=np.stack([_column(points, f"{_POINT}{n}") for n in range(steps)], axis=1),
        total_steps=int(lines[-1]["env_steps"]),
        wall=float(seconds[-1]),
        cpu=float(_column(lines, "time/cpu_seconds")[-1]),
        physics=float(np.diff(seconds, prepend=0.0) @ _column(lines, "time/physics_share")),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; the last one may be just being written."""
    texts = path.read_text().splitlines() if path.is_file() else []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise BadFileError(
                    f"{path} line {number}: not valid JSON ({error}); was it edited?"
                ) from None
    return lines


def _column(lines: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """``[n]``; NaN where there is no such entry, or no finite one."""
    return np.array([line.get(name) for line in lines], dtype=np.float64)
