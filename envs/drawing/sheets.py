"""Flat pictures, drawn with Pillow: labelled sheets, cards in place of a picture, points."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.param import TaskError

_PAPER, _INK, _PALE = (255, 255, 255), (40, 44, 52), (228, 231, 235)
_GROUND = (247, 248, 250)
_START, _GOAL, _POINT, _TRAIL = (150, 155, 163), (214, 69, 65), (31, 97, 171), (140, 178, 217)
_FINER = 2  # drawn this many times larger and reduced, which smooths the edges
_GAP = 6  # pixels between the pictures of a sheet


def side_by_side(
    frames: Sequence[np.ndarray], labels: Sequence[str] = (), columns: int = 4, title: str = ""
) -> Image.Image:
    """Pictures of one size as a sheet, each with its label below it.

    Args:
        frames: ``uint8 [height, width, 3]`` each.
        labels: One for each frame, or none at all; long ones are broken into lines.
        columns: Pictures in a row, at most.
        title: Line above all of them.
    """
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1 or columns < 1 or len(labels) not in (0, len(frames)):
        raise TaskError(
            f"{len(frames)} frames of shapes {sorted(shapes)} with {len(labels)} labels in "
            f"{columns} columns: expected frames of one shape, and a label for each or none"
        )
    height, width, _ = shapes.pop()
    font = _font(width)
    texts = [_wrap(label, font, width) for label in labels]
    line = math.ceil(font.size * 1.25)
    below = line * max((len(text) for text in texts), default=0) + (4 if labels else 0)
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    heading = _wrap(title, font, columns * (width + _GAP)) if title else []
    top = line * len(heading) + _GAP
    size = columns * (width + _GAP) + _GAP, top + rows * (height + below + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP // 2), "\n".join(heading), _INK, font)
    for i, frame in enumerate(frames):
        row, column = divmod(i, columns)
        x, y = _GAP + column * (width + _GAP), top + row * (height + below + _GAP)
        sheet.paste(Image.fromarray(frame), (x, y))
        for k, text in enumerate(texts[i] if texts else ()):
            middle = x + width / 2, y + height + 2 + line * k
            draw.text(middle, text, _INK, font, anchor="ma")
    return sheet


def card(text: str, width: int = 320, height: int = 240) -> np.ndarray:
    """A plain picture ``uint8 [height, width, 3]`` with some words in the middle."""
    image = Image.new("RGB", (width, height), _PALE)
    font = _font(width)
    lines = _wrap(text, font, int(width * 0.9))
    middle = width / 2, height / 2
    ImageDraw.Draw(image).multiline_text(
        middle, "\n".join(lines), _INK, font, anchor="mm", align="center"
    )
    return np.array(image)


def fit(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture scaled to fit into another size, its proportions kept, on plain ground."""
    image = Image.fromarray(pixels)
    if image.size == (width, height):
        return np.array(image)
    scale = min(width / image.width, height / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    ground = Image.new("RGB", (width, height), _PALE)
    ground.paste(image.resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.array(ground)


def point_picture(
    position: np.ndarray,
    goal: np.ndarray,
    trail: np.ndarray | Sequence[Sequence[float]] = (),
    reach: float = 1.25,
    width: int = 320,
    height: int = 240,
    tolerance: float = 0.0,
) -> np.ndarray:
    """A point in the plane on its way to a goal, ``uint8 [height, width, 3]``.

    Args:
        position: Where the point is, ``[2]``.
        goal: Where it should go, ``[2]``, or several, ``[n, 2]``.
        trail: Where it has been, ``[n, 2]``, oldest first.
        reach: Distance from the origin to the nearer edges of the picture; the unit of all these.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        tolerance: Radius around the goal that counts as having reached it.
    """
    image = Image.new("RGB", (width * _FINER, height * _FINER), _GROUND)
    draw = ImageDraw.Draw(image)
    scale = min(image.size) / (2.0 * reach)
    dot = max(min(image.size) / 50.0, 2.0)

    def pixel(point: np.ndarray | Sequence[float]) -> tuple[float, float]:
        return image.width / 2.0 + point[0] * scale, image.height / 2.0 - point[1] * scale

    step = 2.0 ** round(math.log2(reach / 4.0))
    for k in range(-math.ceil(image.width / (scale * step)), math.ceil(image.width / scale / step)):
        draw.line([pixel((k * step, -9 * reach)), pixel((k * step, 9 * reach))], _PALE, _FINER)
        draw.line([pixel((-9 * reach, k * step)), pixel((9 * reach, k * step))], _PALE, _FINER)
    draw.circle(pixel((0.0, 0.0)), dot * 0.6, _START)
    for each in np.asarray(goal, np.float64).reshape(-1, 2):
        if tolerance > 0.0:
            draw.circle(pixel(each), tolerance * scale, outline=_GOAL, width=_FINER)
        draw.circle(pixel(each), dot, _GOAL)
    path = [pixel(point) for point in np.asarray(trail, np.float64).reshape(-1, 2)]
    path.append(pixel(position))
    draw.line(path, _TRAIL, max(round(dot * 0.6), 1), joint="curve")
    draw.circle(path[-1], dot, _POINT)
    return np.array(image.reduce(_FINER))


@functools.cache
def _font(width: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, of a size that goes with pictures of this width."""
    font = ImageFont.load_default(max(11.0, width / 22.0))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, so that it cannot write text")
    return font


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines that are no wider than this; words that are longer are cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width and len(word) > 1:
            fits = next(
                n
                for n in range(len(word) - 1, 0, -1)
                if n == 1 or font.getlength(word[:n]) <= width
            )
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
