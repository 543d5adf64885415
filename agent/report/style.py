"""What all figures share: one colour, line and marker per agent, and SVG text of the same bytes."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

# Okabe and Ito's palette: told apart by colour-blind readers too.
AGENT_COLOURS = {
    "engram": "#0072B2",
    "meta_init": "#E69F00",
    "finetune": "#CC79A7",
    "scratch": "#D55E00",
    "random": "#7F7F7F",
    "oracle": "#000000",
    "oracle_library": "#009E73",
}
_OTHER_COLOURS = ("#56B4E9", "#882255", "#999933", "#332288", "#44AA99", "#AA4499")
GREY = "#8A8A8A"
"""Of an agent that is in the tables and dot plots, but not in the line plots."""
_LINES: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ((0, (5, 1.5)), "s"),
    ((0, (1.3, 1.2)), "^"),
    ((0, (7, 1.5, 1.3, 1.5)), "D"),
    ((0, (3, 1, 1, 1, 1, 1)), "v"),
    ((0, (9, 3)), "P"),
)
RING: dict[str, Any] = {"mfc": "white", "mew": 1.6, "ms": 5.5}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.hashsalt": "engram",  # the same run makes the same bytes
    "text.parse_math": False,  # a label may hold dollar signs
}
styled = mpl.rc_context(_STYLE)


@dataclasses.dataclass(frozen=True)
class Look:
    """How an agent is drawn; the line and the marker tell it apart in black and white too."""

    colour: str
    line: Any
    marker: str


def agent_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each agent; unknown names get spare ones, in sorted order."""
    wanted = set(names)
    others = sorted(wanted - AGENT_COLOURS.keys())
    spare = {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: spare.get(name) or AGENT_COLOURS[name] for name in sorted(wanted)}


def looks(agents: Sequence[str], drawn: Sequence[str]) -> dict[str, Look]:
    """The look of every agent: its own if it is drawn in line plots, grey otherwise."""
    colours = agent_colours(drawn)
    own = {name: Look(colours[name], *_LINES[i % len(_LINES)]) for i, name in enumerate(drawn)}
    return {name: own.get(name, Look(GREY, "-", "o")) for name in agents}


def finite_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Mean over the first axis of what is finite; NaN where nothing is."""
    return np.ma.masked_invalid(values).mean(0, keepdims=True).filled(np.nan)[0]


def number(value: float | None, digits: int = 1) -> str:
    """A number as the page shows it: thousands separated, ``n/a`` where there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:,.{0 if isinstance(value, int) else digits}f}"
    zero = not any(c in "123456789" for c in text)  # no minus before a rounded zero
    return (text.lstrip("-") if zero else text).replace("-", "\N{MINUS SIGN}")


def digits_for(values: Iterable[float]) -> int:
    """Decimals that give the largest of the values three significant digits, at most four."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(4, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 2


def short(text: str, width: int) -> str:
    """One printable line, cut to ``width``: a control character would make the SVG unreadable."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def svg(figure: Figure) -> str:
    """The figure as SVG text."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def address(text: str) -> str:
    """SVG text as a ``data:`` address."""
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
