"""What was run: the stream, its tasks, who knew what, and what measuring it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from agent.continual.life import Life, Protocol
from agent.continual.statistics.lifetimes import protocol_hash
from agent.report.stream.data import View, offsets, task_names
from agent.report.style import number


def box(view: View) -> list[tuple[str, list[str]]]:
    """The lines of the protocol box: a term, and what there is to say of it."""
    p, lives = view.protocol, view.results.lives
    seeds = sorted({life.seed for life in lives})
    deviations = list(
        dict.fromkeys(f"{x.agent}, seed {x.seed}: {d}" for x in lives for d in x.deviations)
    )
    told = [
        name for name, yes in (("the task id", p.told.task), ("boundaries", p.told.boundary)) if yes
    ]
    hints = {agent: _told_more(view, agent) for agent in view.agents}
    more = [
        f"also {what}: {', '.join(a for a in hints if hints[a] == what)}"
        for what in dict.fromkeys(filter(None, hints.values()))
    ]
    return [
        (
            "stream",
            [f"{p.stream}, tasks of {p.family} (split {p.split}), episodes of {p.horizon} steps"],
        ),
        ("schedule", [schedule(p), *_drift(p), *_orders(lives)]),
        ("tasks", tasks(view)),
        (
            "seeds",
            [f"{len(seeds)}: {_ranges(seeds)}", *([f"born from {p.init}"] if p.init else [])],
        ),
        (
            "agents knew",
            [" and ".join(told) if told else "neither the task id nor boundaries", *more],
        ),
        ("budget", budgets(view)),
        ("evaluation", evaluation_cost(view)),
        ("references", [_references(view, kind) for kind in ("random", "scratch", "expert")]),
        ("protocol hash", hashes(lives)),
        ("deviations", deviations or ["none: what was executed is what was declared"]),
    ]


def schedule(protocol: Protocol) -> str:
    """Tasks and episodes in order, equal budgets said once; a wave is a step of a drift."""
    budgets_ = {planned.episodes for planned in protocol.schedule}
    names = [f"{p.task}{'~' if p.drifting else ''}" for p in protocol.schedule]
    if len(budgets_) == 1:
        return f"{' → '.join(names)}, {budgets_.pop()} episodes each"
    pairs = zip(names, protocol.schedule, strict=True)
    return " → ".join(f"{name} ({planned.episodes} episodes)" for name, planned in pairs)


def tasks(view: View) -> list[str]:
    """Each task with its values; a range where seeds drew different ones."""
    found: list[str] = []
    for name in task_names(view.protocol):
        infos = [x.protocol.tasks[name] for x in view.results.lives if name in x.protocol.tasks]
        labels = list(dict.fromkeys(info.label for info in infos if info.label))
        keys = dict.fromkeys(key for info in infos for key in info.values)
        values = [_range(key, [i.values[key] for i in infos if key in i.values]) for key in keys]
        label = (
            labels[0]
            if len(labels) == 1
            else f"{len({i.id for i in infos})} different ones, by seed"
        )
        held = " (held out)" if name in view.protocol.held_out else ""
        found.append(
            ": ".join(
                filter(None, [name + held, "; ".join(filter(None, [label, ", ".join(values)]))])
            )
        )
    return found


def budgets(view: View) -> list[str]:
    """Env steps that a lifetime took, and what for."""
    steps: Counter[str] = Counter()
    done = [life for life in view.results.lives if life.status == "done"]
    for life in done:
        for visit in life.visits:
            steps.update({str(purpose): n for purpose, n in visit.env_steps.items()})
    planned = f"{offsets(view.protocol)[-1]} episodes a lifetime"
    if not done:
        return [planned]
    total = sum(steps.values())
    shares = [f"{purpose} {number(100 * n / total, 1)}%" for purpose, n in steps.items() if total]
    each = number(total / len(done), 0)
    return [f"{planned}, {each} env steps on average: {', '.join(shares)}"]


def evaluation_cost(view: View) -> list[str]:
    """Env steps and seconds of measuring, against those of living."""
    lives = [life for life in view.results.lives if life.visits]
    measured = sum(life.evaluation_env_steps for life in lives)
    lived = sum(sum(visit.env_steps.values()) for life in lives for visit in life.visits)
    seconds = _total(v.seconds for x in lives for v in x.visits)
    extra = _total(v.evaluation_s for x in lives for v in x.visits)
    share = number(100 * measured / lived, 1) + "%" if lived else "n/a"
    time = f", {number(100 * extra / seconds, 1)}% of their seconds" if seconds > 0 else ""
    episodes = f"{view.protocol.eval_episodes} episodes of the deterministic policy per entry of R"
    return [episodes, f"{number(measured)} env steps: {share} of those lived{time}"]


def hashes(lives: list[Life]) -> list[str]:
    """Digests of what lifetimes must share to be compared; who has another than the first."""
    found = {(life.agent, life.seed): protocol_hash(life.protocol) for life in lives}
    first, *others = dict.fromkeys(found.values())
    who = {
        other: [f"{a}, seed {s}" for (a, s), h in found.items() if h == other] for other in others
    }
    return [first, *(f"{other}, not to be compared: {'; '.join(who[other])}" for other in others)]


def _drift(protocol: Protocol) -> list[str]:
    drifting = any(planned.drifting for planned in protocol.schedule)
    return ["~: on the way from one task to the next, and in no score"] if drifting else []


def _orders(lives: list[Life]) -> list[str]:
    orders = {tuple(p.task for p in life.protocol.schedule) for life in lives}
    return (
        [f"{len(orders)} orders over the seeds; the one above is the first's"]
        if len(orders) > 1
        else []
    )


def _told_more(view: View, agent: str) -> str:
    told, lives = view.protocol.told, view.lives(agent)
    more = (
        any(life.knew.task and not told.task for life in lives),
        any(life.knew.boundary and not told.boundary for life in lives),
    )
    names = [name for name, yes in zip(("the task id", "boundaries"), more, strict=True) if yes]
    return "told " + " and ".join(names) if names else ""


def _references(view: View, kind: str) -> str:
    seeds = [life.seed for life in view.references(kind)]
    return f"{kind}: {f'{len(seeds)} lifetimes (seeds {_ranges(seeds)})' if seeds else 'none'}"


def _range(key: str, values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{key} {low:g}" if low == high else f"{key} {low:g} to {high:g}"


def _ranges(seeds: list[int]) -> str:
    """Seeds with runs of neighbours written as ranges."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and parts[-1][-1] == seed - 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}\N{EN DASH}{p[-1]}" for p in parts)


def _total(values: Iterable[float]) -> float:
    return sum(value for value in values if math.isfinite(value))
