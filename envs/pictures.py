"""Pictures and films of tasks, and the files they go into.

A picture always comes out: with no OpenGL the software drawer makes it, and where there is nothing
to see, or looking fails, a card says so.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.drawing.camera import Camera, View
from envs.drawing.sheets import card, point_picture, side_by_side
from envs.task import Task, TaskDistribution, TaskError
from envs.vector_tasks import VectorTasks

__all__ = [
    "VIDEO_SUFFIXES",
    "Camera",
    "View",
    "card",
    "film",
    "point_picture",
    "side_by_side",
    "task_sheet",
    "write_png",
    "write_video",
]
VIDEO_SUFFIXES = (".webp", ".gif", ".mp4")
_WEBP_QUALITY = 75


def task_sheet(
    family: TaskDistribution,
    tasks: Sequence[Task],
    camera: Camera,
    steps: int = 30,
    seed: int = 0,
    columns: int = 4,
) -> Image.Image:
    """One labelled picture of each task, side by side, after the same random actions in all.

    An episode that ends before is shown as it ended.
    """
    low, high = family.action_range
    rng = np.random.default_rng(seed)
    simulators = family.open(tasks, 1)
    try:
        simulators.reset(seed)
        frames: dict[int, np.ndarray] = {}
        for _ in range(steps):
            action = np.tile(rng.uniform(low, high), (len(tasks), 1, 1))
            _, _, terminated, truncated = simulators.step(action)
            ended = (terminated | truncated | simulators.diverged)[:, 0]
            for row in set(np.flatnonzero(ended).tolist()) - set(frames):
                frames[row] = _shot(camera, simulators, row)
        for row in set(range(len(tasks))) - set(frames):
            frames[row] = _shot(camera, simulators, row)
    finally:
        simulators.close()
    labels = [family.label(task) for task in tasks]
    pictures = [frames[row] for row in range(len(tasks))]
    return side_by_side(pictures, labels, columns, title=family.id)


def film(
    simulators: VectorTasks,
    act: Callable[[np.ndarray], np.ndarray],
    steps: int,
    camera: Camera,
    row: int = 0,
    seed: int = 0,
    every: int = 1,
    hear: Callable[[np.ndarray], None] | None = None,
) -> list[np.ndarray]:
    """An episode of a policy as pictures ``uint8 [height, width, 3]``, the start included.

    Args:
        simulators: What to play in, in all rows at once; it is reset first.
        act: From observations ``[T, E, O]`` to actions ``[T, E, A]``.
        steps: Control steps at most; the film ends with the episode.
        camera: Makes the pictures.
        row: Which of the T x E episodes to show.
        seed: Of the episodes' starts.
        every: Control steps from one picture to the next.
        hear: Told each step's rewards ``[T, E]``, for policies that see them.
    """
    obs = simulators.reset(seed)
    frames = [_shot(camera, simulators, row)]
    for step in range(1, steps + 1):
        obs, reward, terminated, truncated = simulators.step(act(obs))
        if hear is not None:
            hear(reward)
        ended = (terminated | truncated | simulators.diverged).reshape(-1)[row]
        if ended or step == steps or step % every == 0:
            frames.append(_shot(camera, simulators, row))
        if ended:
            break
    return frames


def _shot(camera: Camera, simulators: VectorTasks, row: int) -> np.ndarray:
    if simulators.diverged.reshape(-1)[row]:  # what it shows now is void
        return card("the simulation blew up", camera.width, camera.height)
    return camera.look(simulators, row)


def write_png(path: Path | str, image: Image.Image | np.ndarray) -> None:
    """Write one picture; at any moment the path holds the old contents or the new, whole."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise TaskError(f"{path}: a picture is written as .png, got {path.suffix or 'no suffix'!r}")
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with _replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def write_video(path: Path | str, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write an animation: ``.webp`` or ``.gif``, and ``.mp4`` with the extra ``video``.

    At any moment the path holds the old contents or the new, whole.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        known = ", ".join(VIDEO_SUFFIXES)
        raise TaskError(f"{path}: a video is written as one of {known}, got {path.suffix!r}")
    if not frames or not 0.0 < fps <= 1000.0:
        raise TaskError(f"{path}: {len(frames)} frames at fps={fps:g}; expected some, at 0 to 1000")
    with _replacing(path) as temporary:
        if suffix == ".mp4":
            _write_mp4(temporary, frames, fps)
        else:
            _write_animation(temporary, frames, fps, suffix)


def _write_animation(path: Path, frames: Sequence[np.ndarray], fps: float, suffix: str) -> None:
    # Both formats keep whole units only; rounding the moments, not the spans, keeps the pace.
    unit_ms = 10 if suffix == ".gif" else 1
    moments = np.round(np.arange(len(frames) + 1) * 1000.0 / fps / unit_ms) * unit_ms
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options: dict[str, Any] = {"quality": _WEBP_QUALITY, "method": 2} if suffix == ".webp" else {}
    first.save(
        path,
        format=suffix[1:].upper(),
        save_all=True,
        append_images=rest,
        duration=np.diff(moments).astype(int).tolist(),
        loop=0,
        **options,
    )


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    try:
        ffmpeg = importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise TaskError(
            "an .mp4 needs ffmpeg: pip install 'engram-rl[video]', or write a .webp"
        ) from error
    height, width = (side - side % 2 for side in frames[0].shape[:2])  # its codec wants even sides
    writer = ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2)
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
    finally:
        writer.close()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
