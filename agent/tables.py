"""Results as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table


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


def stream_table(summary: dict[str, Any]) -> Table:
    """Return at the start (before any gradient step) and the end of every visit, by agent."""
    stream, agents = summary["stream"], summary["agents"]
    lifetimes = len(summary["seeds"])
    table = Table(
        title=f"Stream {stream['name']}: return at the start (before any gradient step) -> at the "
        f"end of each visit of {stream['budget_episodes']} episodes; mean of {lifetimes} lifetimes",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("visit")
    for name in agents:
        table.add_column(name, justify="right")
    for number, task in enumerate(stream["order"]):
        again = " again" if task in stream["order"][:number] else ""
        cells = []
        for agent in agents.values():
            visits = [v for v in agent["visits"] if v["visit"] == number]
            cells.append(f"{_mean(visits, 'start')} -> {_mean(visits, 'end')}")
        table.add_row(f"{number + 1}: {task}{again}", *cells)
    table.add_section()
    for kind in ("first", "revisit"):
        cells = [
            f"{_number(a['metrics'][f'{kind}.start'])} -> {_number(a['metrics'][f'{kind}.end'])}"
            for a in agents.values()
        ]
        label = "first visits" if kind == "first" else "re-visits"
        table.add_row(label, *cells, style="bold")
    return table


def _mean(visits: list[dict[str, Any]], key: str) -> str:
    values = [v[key] for v in visits if v[key] is not None]
    return _number(sum(values) / len(values)) if values else "n/a"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"
