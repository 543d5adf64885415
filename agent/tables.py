"""Results as tables for the terminal."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from agent.continual.life import Life, finite_mean
from agent.continual.metrics.catalog import METRICS, RAW
from agent.continual.results import Results

HEADLINE = ("recall.0", "recall.savings", "ap.final", "forget.end", "ft.auc_diff")
_MOST_VISITS = 24


def evaluation_table(result: dict[str, Any], width: int = 80) -> Table:
    """One row per task: returns before and after each adaptation step, beside the references."""
    steps = len(result["mean"]["meta"]) - 1
    table = Table(
        title=f"Return per episode of {result['horizon']} steps on {result['split']} tasks of "
        f"{result['family']}; mean of {result['draws']} draws x {result['eval_episodes']} episodes",
        caption=f"A step is made from {result['episodes_per_step']} episodes. scratch: {steps} "
        f"steps from an untrained policy; oracle: is told the task. {result['held_out']}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task", no_wrap=True, max_width=max(20, width - 60))
    told = result["mean"]["oracle"] is not None
    names = ["before", *(f"step {n}" for n in range(1, steps + 1)), "random", "scratch"]
    names += ["oracle"] if told else []
    goal = result["mean"].get("success") is not None
    for name in [*names, "success"] if goal else names:
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    mean = {"returns": result["mean"]["meta"], "label": "mean"} | result["mean"]
    for task in [*result["tasks"], mean]:
        rest = [task["random"], task["scratch"][-1], *([task["oracle"]] if told else [])]
        style = "bold" if task is mean else None
        if task is mean:
            table.add_section()
        cells = [*map(_number, [*task["returns"], *rest])]
        if goal:
            cells.append(f"{task['success'][0]:.0%} -> {task['success'][-1]:.0%}")
        table.add_row(task["label"], *cells, style=style)
    return table


def stream_table(results: Results) -> Table:
    """What agents have at the start and reach by the end of every visit, and the headline."""
    lives = [life for life in results.lives if life.visits]
    table = Table(
        title="Return at the start (before any gradient step) -> at the end of each visit, and "
        f"what it comes to; means over lifetimes ({_counts(results)})",
        caption="* was told the task",
        box=box.SIMPLE_HEAD,
    )
    told = {life.agent for life in results.lives if life.knew.task}
    table.add_column("visit")
    for name in results.agents:
        table.add_column(escape(name) + (" *" if name in told else ""), justify="right")
    schedule = lives[0].protocol.schedule if lives else []
    for number, planned in enumerate(schedule[:_MOST_VISITS]):
        again = planned.task in [v.task for v in schedule[:number]]
        cells = [
            _start_to_end([life for life in lives if life.agent == name], number)
            for name in results.agents
        ]
        table.add_row(f"{number + 1}: {escape(planned.task)}" + (" again" if again else ""), *cells)
    table.add_section()
    for metric in ("first.start", "first.end", "revisit.start", "revisit.end", *_headline(results)):
        cells = [_number(_finite(results.values(metric, name))) for name in results.agents]
        table.add_row(metric, *cells, style="bold")
    return table


def _headline(results: Results) -> list[str]:
    """Ids of the headline; where there is nothing to scale scores by, those in returns."""
    out = []
    for metric in HEADLINE:
        raw = metric + RAW
        scaled = [_finite(results.values(metric, name)) for name in results.agents]
        known = any(math.isfinite(value) for value in scaled)
        out.append(metric if known or raw not in METRICS else raw)
    return out


def _counts(results: Results) -> str:
    each = [sum(life.agent == name for life in results.lives) for name in results.agents]
    return f"{min(each)} to {max(each)}" if len(set(each)) > 1 else f"{each[0] if each else 0}"


def _start_to_end(lives: list[Life], number: int) -> str:
    starts, ends = [], []
    for life in lives:
        starts += [
            e.mean
            for e in life.evaluations
            if e.checkpoint == number and e.task == life.protocol.schedule[number].task
        ]
        ends += [v.end_mean for v in life.visits if v.visit == number]
    return f"{_number(finite_mean(starts))} -> {_number(finite_mean(ends))}"


def _finite(values: dict[int, float]) -> float:
    return finite_mean(list(values.values()))


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"
