"""The numbers of a run for other tools: a table of values as CSV, one of estimates as LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from agent.continual.metrics.catalog import METRICS
from agent.continual.results import Results
from agent.continual.statistics.estimate import Estimate, estimate
from agent.continual.statistics.lifetimes import STAND_IN, sample_of
from agent.continual.statistics.text import MISSING, parts, remarks
from agent.continual.summary import known_metrics

_COLUMNS = ["agent", "seed", "status", "metric", "value", "unit"]
_SEED = 0
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{character: f"{{{character}}}" for character in "[]*"},  # arguments of a \\ before
    }
)


def values_csv(results: Results) -> str:
    """A row per agent, seed and metric, every digit kept; no value, an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    metrics = known_metrics(results)
    for life in results.lives:
        numbers = results.metrics.get((life.agent, life.seed), {})
        for metric in metrics:
            value = numbers.get(metric, math.nan)
            cell = repr(float(value)) if math.isfinite(value) else ""
            unit = METRICS[metric].unit
            writer.writerow([life.agent, life.seed, life.status, metric, cell, unit])
    return text.getvalue()


def estimates_latex(
    results: Results,
    metrics: Sequence[str],
    level: float = 0.95,
    stand_in: str | None = STAND_IN,
) -> str:
    """A booktabs table: a row per agent, a column per metric with its interval underneath."""
    rng = np.random.default_rng(_SEED)
    told = {life.agent for life in results.lives if life.knew.task}
    notes = {}
    rows = []
    for agent in results.agents:
        found = {
            metric: estimate(sample_of(results, metric, agent, stand_in), rng, level)
            for metric in metrics
        }
        notes |= {f"{agent} {metric}": number.note for metric, number in found.items()}
        mark = r"\textsuperscript{*}" if agent in told else ""
        means, intervals = zip(*map(_cells, found.values()), strict=True)
        rows.append(" & ".join([escaped(agent) + mark, _counts(results, agent), *means]))
        if any(intervals):
            rows.append(f" & & {' & '.join(intervals)}")
    titles = [rf"\texttt{{{escaped(metric)}}}{_arrow(metric)}" for metric in metrics]
    stream = results.lives[0].protocol.stream if results.lives else "none"
    below = [*(["* was told which task it was in"] if told else []), *remarks(notes)]
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}.",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{Stream \texttt{{{escaped(stream)}}}: mean over lifetimes "
            rf"[{level:.0%}".replace("%", r"\%")
            + " interval].}",
            rf"\begin{{tabular}}{{lr{'c' * len(metrics)}}}",
            r"\toprule",
            " & ".join(["agent", "$n$", *titles]) + r" \\",
            r"\midrule",
            *(row + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escaped(remark)}" for remark in below),
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """The text so that LaTeX prints it as it is; one line."""
    return " ".join(text.split()).translate(_LATEX)


def _cells(found: Estimate) -> tuple[str, str]:
    """The mean, and what stands underneath."""
    mean, low, high = (
        "--" if text == MISSING else f"${text.replace(',', '{,}')}$" for text in parts(found)
    )
    return mean, "" if low == high == "--" else rf"{{\footnotesize [{low}, {high}]}}"


def _counts(results: Results, agent: str) -> str:
    status = [life.status for life in results.lives if life.agent == agent]
    failed = status.count("crashed")
    n = len(status) - status.count("stopped")
    return f"{n} ({failed} failed)" if failed else f"{n}"


def _arrow(metric: str) -> str:
    return {"high": r" $\uparrow$", "low": r" $\downarrow$"}.get(METRICS[metric].better, "")
