"""Results as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def evaluation_table(result: dict[str, Any]) -> Table:
    """One row per task: returns before and after each adaptation step, with the references beside them."""
    steps = len(result["mean"]["meta"]) - 1
    table = Table(
        title=f"Return per episode of {result['horizon']} steps on {result['split']} tasks of {result['family']} "
        f"({result['draws']} draws, {result['eval_episodes']} episodes each, {result['episodes_per_step']} episodes a "
        "step)",
        caption=result["held_out"],
    )
    table.add_column("task")
    for name in ("before", *(f"step {n}" for n in range(1, steps + 1)), "random"):
        table.add_column(name, justify="right")
    table.add_column(f"scratch, {steps} steps", justify="right")
    table.add_column("oracle", justify="right")
    for task in result["tasks"]:
        rest = (task["random"], task["scratch"][-1], task["oracle"])
        table.add_row(task["label"], *(_number(x) for x in (*task["returns"], *rest)))
    mean = result["mean"]
    table.add_section()
    rest = (mean["random"], mean["scratch"][-1], mean["oracle"])
    table.add_row("mean", *(_number(x) for x in (*mean["meta"], *rest)), style="bold")
    return table


def stream_table(summary: dict[str, Any]) -> Table:
    """Return at the start (before any gradient step) and at the end of every visit, agent by agent."""
    stream, agents = summary["stream"], summary["agents"]
    lifetimes = len(summary["seeds"])
    table = Table(
        title=f"Stream {stream['name']}: return at the start (before any gradient step) -> at the end of each visit of "
        f"{stream['budget_episodes']} episodes; mean of {lifetimes} lifetimes"
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
        table.add_row(f"{kind} visits", *cells, style="bold")
    return table


def _mean(visits: list[dict[str, Any]], key: str) -> str:
    values = [v[key] for v in visits if v[key] is not None]
    return _number(sum(values) / len(values)) if values else "n/a"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"
