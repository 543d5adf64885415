"""What one asks of streams before anything is lived: ``engram streams list | show | preview``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich import box
from rich.markup import escape
from rich.table import Table

from agent.assemble import build_family, extend_path
from agent.config import ConfigError, build
from agent.continual.cost import Cost, cost_of, steps_per_cpu_second
from agent.continual.plan import Plan
from agent.continual.stream import Stream, Told
from agent.progress import console
from envs.task import TaskDistribution

_SHARE_TO_WARN = 0.2
_COST = re.compile(r"\d[\d,]* env steps[^.;:]*")


@dataclass(kw_only=True, config={"extra": "forbid"})
class StreamsSettings:
    """``engram streams``."""

    action: Literal["list", "show", "preview"]
    """What to do."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Preview: of the lifetimes."""
    import_path: list[str]
    """Folders of the user's own code, appended to ``sys.path``."""
    stream: dict[str, Any] | None = None
    """The stream, and under ``family`` where its tasks come from."""


def streams(config: dict[str, Any], typed: str) -> None:
    """List the presets, show one, or preview its lifetimes and their cost."""
    settings = build(config, "", StreamsSettings)
    if settings.action == "list":
        console.print(presets_table())
        return
    if settings.stream is None:
        raise ConfigError(
            f"stream: expected engram streams {settings.action} NAME; known are "
            + ", ".join(name for name, _ in presets())
        )
    extend_path(settings.import_path)
    node = dict(settings.stream)
    family = build_family(node.pop("family", None), "stream.family")
    stream = build(node, "stream", Stream)
    if settings.action == "show":
        _show(settings.stream, stream)
    else:
        _preview(stream, family, settings.seeds)


def presets() -> Iterator[tuple[str, str]]:
    """Name and opening comment of every stream that ships, by name."""
    folder = files("agent.configs") / "stream"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            yield path.name.removesuffix(".yaml"), opening_comment(path.read_text())


def opening_comment(text: str) -> str:
    """The comment with which a file begins, as one paragraph."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def presets_table() -> Table:
    """A line for each preset: what it is for, and what a lifetime costs."""
    table = Table("stream", "what it is", "a lifetime", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, comment in presets():
        cost = _COST.search(comment)
        what = comment.partition(". ")[0]
        table.add_row(name, escape(what), escape(cost.group() if cost else ""))
    return table


def timeline(plan: Plan, width: int) -> list[str]:
    """The schedule as lines: a row for each task, a column for each visit.

    O is the first visit to a task, # a re-visit, ~ a step of a drift.
    """
    names = list(dict.fromkeys(v.task for v in plan.visits if not v.drifting))
    rows: dict[str, str] = {name: "" for name in names}
    if any(visit.drifting for visit in plan.visits):
        rows["(drift)"] = ""
    for number, visit in enumerate(plan.visits):
        here = "(drift)" if visit.drifting else visit.task
        mark = "~" if visit.drifting else "#" if plan.revisit(number) else "O"
        rows = {name: row + (mark if name == here else ".") for name, row in rows.items()}
    indent = max(map(len, rows))
    per_line = max(10, width - indent - 2)
    lines = []
    for start in range(0, len(plan.visits), per_line):
        end = min(start + per_line, len(plan.visits))
        lines.append(f"visits {start + 1} to {end}")
        for name, row in rows.items():
            part = row[start:end]
            if len(plan.visits) <= per_line or part.strip("."):
                lines.append(f"{name:<{indent}}  {part}")
    return lines


def told(what: Told, plan: Plan) -> str:
    """What the agents know of the schedule, in a sentence or two."""
    hints = what.hints
    if hints.task:
        return "Agents are told when a visit begins and ends, and which task it is."
    if hints.boundary:
        return "Agents are told when a visit begins and ends, but not which task it is."
    drift = ", most often in small steps" if any(v.drifting for v in plan.visits) else ""
    return (
        f"Agents are told neither when the task changes{drift}, nor which task it is. Those that "
        "cannot do without are told, and marked."
    )


def _show(node: Mapping[str, Any], stream: Stream) -> None:
    """The preset's comment, and the stream as it was composed."""
    if comment := dict(presets()).get(stream.name):
        console.print(escape(comment) + "\n")
    console.print(escape(yaml.safe_dump(dict(node), sort_keys=False, width=100)), end="")


def _preview(stream: Stream, family: TaskDistribution, seeds: Sequence[int]) -> None:
    """Schedules, tasks, what is told, cost: all before anything is lived."""
    plans = {seed: stream.plan(family, seed) for seed in seeds}
    shown: dict[tuple[Any, ...], list[int]] = {}
    for seed, plan in plans.items():
        schedule = tuple((v.task, v.episodes) for v in plan.visits)
        shown.setdefault(schedule, []).append(seed)
    console.print(f"[bold]{escape(stream.name)}[/] on {escape(family.id)}")
    for same in shown.values():
        plan = plans[same[0]]
        console.print(f"\nSeed{'s' if len(same) > 1 else ''} {', '.join(map(str, same))}")
        console.print(escape("\n".join(timeline(plan, console.width))))
        console.print(_lengths(plan))
    console.print("O first visit, # re-visit, ~ step of a drift")
    console.print(_tasks_table(plans, family))
    plan = plans[seeds[0]]
    console.print(told(stream.told, plan))
    cost = cost_of(stream, family, plan)
    console.print(_cost_table(cost, family, plan))
    if cost.evaluation_share > _SHARE_TO_WARN:
        console.print(
            f"Evaluation may take {cost.evaluation_share:.0%} of the env steps of training: fewer "
            "eval_episodes, longer visits or evaluate=around make it less."
        )


def _lengths(plan: Plan) -> str:
    lengths = [visit.episodes for visit in plan.visits]
    if len(set(lengths)) == 1:
        return f"{lengths[0]} episodes each"
    return f"episodes: {' '.join(map(str, lengths))}"


def _tasks_table(plans: Mapping[int, Plan], family: TaskDistribution) -> Table:
    """The task behind each name for each seed; those of a drift lie between them."""
    first = next(iter(plans.values()))
    columns = {f"seed {seed}": plan for seed, plan in plans.items()}
    if all(plan.tasks == first.tasks for plan in plans.values()):
        columns = {"whatever the seed" if len(plans) > 1 else next(iter(columns)): first}
    table = Table("task", *columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in first.scored():
        tasks = [plan.tasks[name] for plan in columns.values()]
        held = " (never visited)" if name in first.held_out else ""
        cells = [f"{family.label(task)} ({task.id})" for task in tasks]
        table.add_row(escape(name + held), *map(escape, cells))
    return table


def _cost_table(cost: Cost, family: TaskDistribution, plan: Plan) -> Table:
    """Of one lifetime."""
    table = Table("a lifetime of one agent", "", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("visits", f"{cost.visits:,}")
    table.add_row("episodes", f"{cost.episodes:,}")
    table.add_row("env steps, at most", f"{cost.env_steps:,}")
    share = f"{cost.evaluation_env_steps:,} ({cost.evaluation_share:.0%})"
    table.add_row("env steps of evaluation, at most, without an agent's own probes", share)
    if needed := family.missing():
        table.add_row("CPU time of the simulator", escape(f"not measured: {needed}"))
    else:
        rate = steps_per_cpu_second(family, plan.tasks[plan.visits[0].task])
        table.add_row("env steps a CPU second, measured now", f"{rate:,.0f}")
        table.add_row("CPU minutes of the simulator", f"{cost.cpu_minutes(rate):,.2f}")
    table.add_row("MB stored, beside what the agent keeps", f"{cost.stored_mb:,.2f}")
    return table
