"""Builds a run's ``report.html``: one file that needs no network, from the results that exist."""

from __future__ import annotations

import base64
import json
import math
import statistics
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from pydantic import TypeAdapter, ValidationError

from agent.files import BadFileError, write_atomic
from agent.report import Command, Evaluation, Iteration, Scores, Summary, plots

MADE_BY = {
    "metrics.jsonl": "engram train",
    "evaluation.json": "engram evaluate",
    "summary.json": "engram continual",
}
"""The data files, and the command that makes each."""
_CONFIGS = ("config.yaml", "continual.yaml")
_SCORES = {alias: name for name, field in Scores.model_fields.items() if (alias := field.alias)}

T = TypeVar("T")


def write_report(run: Path) -> Path:
    """Build ``report.html`` in the run folder from the results that are there; returns its path.

    Raises:
        FileNotFoundError: None of the three data files is there.
        BadFileError: A file is malformed or lacks a key; the message names both.
    """
    if not any((run / name).is_file() for name in MADE_BY):
        expected = ", ".join(f"{name} (made by `{command}`)" for name, command in MADE_BY.items())
        raise FileNotFoundError(f"{run}: nothing to report on; expected at least one of {expected}")
    log = read_metrics(run / "metrics.jsonl")
    evaluation = _read(run / "evaluation.json", Evaluation)
    summary = _read(run / "summary.json", Summary)
    page = _template().render(
        run=run.resolve().name,
        log=log,
        evaluation=evaluation,
        summary=summary,
        cards=headline(log, evaluation, summary),
        figures=_figures(log, evaluation, summary),
        colours=plots.agent_colours({*plots.AGENT_COLOURS, *(summary.agents if summary else ())}),
        **_provenance(run),
    )
    write_atomic(run / "report.html", page.encode())
    return run / "report.html"


def read_metrics(path: Path) -> list[Iteration]:
    """The lines of ``metrics.jsonl``; none if it is not there."""
    lines = _text(path).splitlines()
    adapter = TypeAdapter(Iteration)
    where = ((i, line) for i, line in enumerate(lines, 1) if line.strip())
    return [_parse(line, adapter, f"{path} line {i}") for i, line in where]


def headline(
    log: list[Iteration], evaluation: Evaluation | None, summary: Summary | None
) -> list[dict[str, str]]:
    """The few numbers that stand first on the page, each with what it is and a note."""
    gain = evaluation.gain_after_one_step if evaluation else math.nan
    speeds = [line.speed for line in log if math.isfinite(line.speed)]
    speed = statistics.median(speeds) if speeds else math.nan
    values = {
        "return gained by the first adaptation step": (_signed(gain), _gain_note(evaluation)),
        "of the first visit's end return is what engram has when a re-visit starts": _kept(summary),
        "env steps per second in training": (number(speed, 0), "median over the iterations"),
        "env steps in total": _total_steps(log, evaluation, summary),
    }
    return [{"what": what, "value": value, "note": note} for what, (value, note) in values.items()]


def kept_share(scores: Scores) -> str:
    """Start of a re-visit as percent of the first visit's end; ``n/a`` unless that is above 0."""
    share = scores.revisit_start / scores.first_end if scores.first_end > 0 else math.nan
    return f"{number(100 * share, 0)}%" if math.isfinite(share) else "n/a"


def number(value: float | None, digits: int = 1) -> str:
    """A number as the page shows it: thousands separated, ``n/a`` where there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    digits = 0 if isinstance(value, int) else digits
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _gain_note(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "not evaluated yet"
    path = " → ".join(number(value) for value in evaluation.mean.meta[:2])
    tasks = f"mean of tasks: {len(evaluation.tasks)}"
    return f"{path} after {evaluation.episodes_per_step} episodes; {tasks}"


def _kept(summary: Summary | None) -> tuple[str, str]:
    """Engram's share, and the other agents' as the note beside it."""
    if summary is None:
        return "n/a", "no stream yet"
    shares = {name: kept_share(agent.metrics) for name, agent in summary.agents.items()}
    own = shares.pop("engram", "n/a")
    return own, ", ".join(f"{name} {share}" for name, share in shares.items())


def _total_steps(
    log: list[Iteration], evaluation: Evaluation | None, summary: Summary | None
) -> tuple[str, str]:
    oracle = evaluation.oracle_env_steps if evaluation else math.nan
    # Counts the probes of the key calibration too, which the log does not.
    meta = int(evaluation.meta_env_steps) if evaluation else 0
    parts = {
        "training": max(log[-1].env_steps if log else 0, meta),
        "oracle": int(oracle) if math.isfinite(oracle) else 0,
        "evaluation": evaluation.env_steps if evaluation else 0,
        "stream": summary.env_steps if summary else 0,
    }
    note = ", ".join(f"{name} {number(steps)}" for name, steps in parts.items() if steps)
    return number(sum(parts.values())), note


def _figures(
    log: list[Iteration], evaluation: Evaluation | None, summary: Summary | None
) -> dict[str, str]:
    """The figures that there is data for, as ``data:`` addresses."""
    source = evaluation or (summary.stream if summary else None)
    svg = {
        "learning": plots.learning_curve(log, source.horizon if source else None) if log else "",
        "adaptation": plots.adaptation_curves(evaluation) if evaluation else "",
        "stream": plots.stream_timeline(summary) if summary else "",
    }
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in svg.items() if text}
    return {name: f"data:image/svg+xml;base64,{text}" for name, text in encoded.items()}


def _provenance(run: Path) -> dict[str, Any]:
    """How the run was made: commands, versions and config, as far as they were noted."""
    return {
        "commands": [
            command
            for folder in (run, run / "oracle")
            for command in _read(folder / "commands.json", list[Command]) or []
        ],
        "versions": _read(run / "versions.json", dict[str, Any]) or {},
        "config": "\n".join(filter(None, (_text(run / name) for name in _CONFIGS))),
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.globals |= {
        "made_by": MADE_BY,
        "max_panels": plots.MAX_PANELS,
        "mean": lambda values: float(plots.finite_mean(list(values))) if values else math.nan,
        "recall_colours": plots.RECALL_COLOURS,
        "scores": _SCORES,
        "window": plots.smoothing_window,
    }
    source = resources.files("agent.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path}: is not UTF-8 text ({error})") from None


def _read(path: Path, kind: type[T]) -> T | None:
    """A JSON file as a ``kind``, or None where there is no such file."""
    return _parse(_text(path), TypeAdapter(kind), str(path)) if path.is_file() else None


def _parse(text: str, adapter: TypeAdapter[T], where: str) -> T:
    try:
        return adapter.validate_python(json.loads(text))
    except json.JSONDecodeError as error:
        raise BadFileError(f"{where}: is not valid JSON ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BadFileError(f"{where}: {key}: {first['msg']}") from None
