"""Builds a run's ``report.html``: one file that needs no network, from the results that exist."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import statistics
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError

from agent.continual.results import Results, read_results
from agent.files import BadFileError, write_atomic
from agent.report import Command, Evaluation, Iteration, plots
from agent.report.stream import section
from agent.report.stream.comparison import arrow
from agent.report.stream.data import PRIMARY, View, view_of
from agent.report.stream.tables import TASK_COLUMNS
from agent.report.style import AGENT_COLOURS, address, agent_colours, number

MADE_BY = {
    "metrics.jsonl": "engram train",
    "evaluation.json": "engram evaluate",
    "lifetimes": "engram continual",
}
"""The data files and folders, and the command that makes each."""
_CONFIGS = ("config.yaml", "continual.yaml")

T = TypeVar("T")


def write_report(run: Path) -> Path:
    """Build ``report.html`` in the run folder from the results that are there; returns its path.

    Raises:
        FileNotFoundError: None of the three data files is there.
        BadFileError: A file is malformed or lacks a key; the message names both.
    """
    if not any((run / name).exists() for name in MADE_BY):
        expected = ", ".join(f"{name} (made by `{command}`)" for name, command in MADE_BY.items())
        raise FileNotFoundError(f"{run}: nothing to report on; expected at least one of {expected}")
    log = read_metrics(run / "metrics.jsonl")
    evaluation = _read(run / "evaluation.json", Evaluation)
    results = read_results(run) if (run / "lifetimes").is_dir() else None
    provenance = _provenance(run)
    script = resources.files("agent.report").joinpath("sort.js").read_text(encoding="utf-8")
    page = _template().render(
        run=run.resolve().name,
        log=log,
        evaluation=evaluation,
        stream=section(results) if results else None,
        cards=headline(log, evaluation, results),
        figures=_figures(log, evaluation),
        colours=agent_colours(AGENT_COLOURS),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **provenance,
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
    log: list[Iteration], evaluation: Evaluation | None, results: Results | None
) -> list[dict[str, str]]:
    """The few numbers that stand first on the page, each with what it is and a note."""
    speeds = [line.speed for line in log if math.isfinite(line.speed)]
    speed = statistics.median(speeds) if speeds else math.nan
    values = {}
    if evaluation:
        gain = _signed(evaluation.gain_after_one_step)
        values["return gained by the first adaptation step"] = (gain, _gain_note(evaluation))
    if results and results.lives:
        kept = _kept(results)
        if kept[0] != "n/a" or kept[1]:
            what = "of the first visit's end return is what engram has when a re-visit starts"
            values[what] = kept
        values["lifetimes"] = _lived(results)
    if log:
        values["env steps per second in training"] = (number(speed, 0), "median over iterations")
    values["env steps in total"] = _total_steps(log, evaluation, results)
    return [{"what": what, "value": value, "note": note} for what, (value, note) in values.items()]


def kept_share(start: float, end: float) -> str:
    """Start of a re-visit as percent of the first visit's end; ``n/a`` unless that is above 0."""
    share = start / end if end > 0 else math.nan
    return f"{number(100 * share, 0)}%" if math.isfinite(share) else "n/a"


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _gain_note(evaluation: Evaluation) -> str:
    path = " → ".join(number(value) for value in evaluation.mean.meta[:2])
    tasks = f"mean of tasks: {len(evaluation.tasks)}"
    return f"{path} after {evaluation.episodes_per_step} episodes; {tasks}"


def _lived(results: Results) -> tuple[str, str]:
    seeds = len({life.seed for life in results.lives})
    counts = Counter(life.status for life in results.lives)
    states = [("crashed", "crashed"), ("stopped", "unfinished")]
    odd = [f"{counts[status]} {word}" for status, word in states if counts[status]]
    what = f"agents: {len(results.agents)}, seeds: {seeds}"
    return number(len(results.lives)), "; ".join([what, *odd])


def _kept(results: Results) -> tuple[str, str]:
    """Engram's share, and those of the agents that it is drawn with as the note beside it."""
    view = view_of(results)
    shares = {name: kept_share(*_ends(view, name)) for name in view.drawn}
    own = shares.pop(PRIMARY, "n/a")
    return own, ", ".join(f"{name} {share}" for name, share in shares.items() if share != "n/a")


def _ends(view: View, agent: str) -> tuple[float, float]:
    values = (view.values(key, agent) for key in ("revisit.start", "first.end"))
    start, end = (float(each.mean()) if each.size else math.nan for each in values)
    return start, end


def _total_steps(
    log: list[Iteration], evaluation: Evaluation | None, results: Results | None
) -> tuple[str, str]:
    oracle = evaluation.oracle_env_steps if evaluation else math.nan
    # Counts the probes of the key calibration too, which the log does not.
    meta = int(evaluation.meta_env_steps) if evaluation else 0
    lives = results.lives if results else []
    lived = sum(sum(visit.env_steps.values()) for life in lives for visit in life.visits)
    parts = {
        "training": max(log[-1].env_steps if log else 0, meta),
        "oracle": int(oracle) if math.isfinite(oracle) else 0,
        "evaluation": evaluation.env_steps if evaluation else 0,
        "stream": lived + sum(life.evaluation_env_steps for life in lives),
    }
    note = ", ".join(f"{name} {number(steps)}" for name, steps in parts.items() if steps)
    return number(sum(parts.values())), note


def _figures(log: list[Iteration], evaluation: Evaluation | None) -> dict[str, str]:
    """The figures that there is data for, as ``data:`` addresses."""
    horizon = evaluation.horizon if evaluation else None
    svg = {
        "learning": plots.learning_curve(log, horizon) if log else "",
        "adaptation": plots.adaptation_curves(evaluation) if evaluation else "",
    }
    return {name: address(text) for name, text in svg.items() if text}


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
        loader=jinja2.PackageLoader("agent.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["told_in"] = lambda agent, view: view.told(agent)
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.globals |= {
        "arrow": arrow,
        "made_by": MADE_BY,
        "max_panels": plots.MAX_PANELS,
        "task_columns": TASK_COLUMNS,
        "window": plots.smoothing_window,
    }
    return environment.get_template("page.html.j2")


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
