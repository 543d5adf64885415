"""What the page does not show, found in the data."""

from __future__ import annotations

import math
import re
from collections import Counter

from agent.continual.metrics.catalog import RAW
from agent.continual.statistics.estimate import EXPLORATORY, SMOKE
from agent.continual.statistics.lifetimes import protocol_hash
from agent.report.stream.data import View
from agent.report.style import number

_MAX_DOUBTS = 6
_FEW_EPISODES = 20
"""Below this, one entry of R is noisy: ten episodes of a coin have a standard error of .16."""


def limits(view: View) -> list[str]:
    """Sentences, the gravest first."""
    return [*_failed(view), *_lifetimes(view), *_comparable(view), *_measured(view), *_always(view)]


def _failed(view: View) -> list[str]:
    out = []
    for life in view.results.lives:
        where = f"{life.agent}, seed {life.seed}"
        visits = f"{len(life.visits)} of {len(life.protocol.schedule)} visits"
        if life.status == "crashed":
            out.append(f"{where} crashed after {visits}: {life.error or 'no word why'}.")
        if life.status == "stopped":
            out.append(f"{where} is not finished: {visits}.")
        out += [f"{where} deviates from its protocol: {d}." for d in life.deviations]
    return out


def _lifetimes(view: View) -> list[str]:
    count = {a: sum(x.status == "done" for x in view.lives(a)) for a in view.agents}
    fewest = min(count.values())
    out = []
    if fewest <= SMOKE:
        out.append(f"Smoke, no claim: as few as {fewest} finished lifetimes of an agent.")
    elif fewest <= EXPLORATORY:
        out.append(
            f"Exploratory: as few as {fewest} finished lifetimes of an agent."
            " 10 are the least for a claim."
        )
    seeds = {a: {x.seed for x in view.lives(a)} for a in view.agents}
    every = set.union(*seeds.values())
    if unpaired := [a for a in view.agents if seeds[a] != every]:
        out.append(
            f"Not every seed was lived by {', '.join(unpaired)}: comparisons use shared seeds only."
        )
    return out


def _comparable(view: View) -> list[str]:
    out, first = [], view.protocol
    protocols = [life.protocol for life in view.results.lives]
    orders = {tuple(p.task for p in protocol.schedule) for protocol in protocols}
    if len(orders) == 1:
        out.append("One order of tasks: whether another order ranks the agents alike is not shown.")
    if len({protocol_hash(protocol) for protocol in protocols}) > 1:
        out.append("Lifetimes of different protocols are on this page; see the hashes.")
    if told := [a for a in view.agents if view.told(a)]:
        out.append(f"Told the task id, and so not to be ranked with the others: {', '.join(told)}.")
    if first.told.boundary:
        out.append("Agents were told when a visit began; noticing it was not asked of them.")
    return out


def _measured(view: View) -> list[str]:
    out, p = _doubts(view), view.protocol
    if any(metric.endswith(RAW) for metric in view.headline):
        out.append(
            "Metrics ending in .raw are of returns as they are: tasks of large returns weigh most."
        )
    if p.eval_episodes < _FEW_EPISODES:
        out.append(f"Each entry of R is the mean of only {p.eval_episodes} episodes.")
    returns = [r for x in view.results.lives for e in x.evaluations for r in e.returns]
    if lost := sum(not math.isfinite(value) for value in returns):
        share = number(100 * lost / len(returns), 1)
        out.append(f"{share}% of the test episodes diverged and are left out of their means.")
    names = [planned.task for planned in p.schedule if not planned.drifting]
    if len(set(names)) == len(names):
        out.append("No task comes again: recall is not measured.")
    if not p.held_out:
        out.append("No held-out task was evaluated: nothing is said of tasks outside the stream.")
    return out


def _doubts(view: View) -> list[str]:
    """What lifetimes that were lived to the end lack a metric for, or make one doubtful."""
    done = [life for life in view.results.lives if life.status == "done" and not life.deviations]
    found: Counter[str] = Counter()
    for life in done:
        notes = view.results.notes.get((life.agent, life.seed), [])
        found.update({re.sub(r" of seed \d+", "", note) for note in notes})
    count = len(done)
    lines = [f"{n[:1].upper()}{n[1:]} ({k} of {count} lifetimes)." for n, k in found.most_common()]
    more = [f"And {len(lines) - _MAX_DOUBTS} more of this kind."] if lines[_MAX_DOUBTS:] else []
    return lines[:_MAX_DOUBTS] + more


def _always(view: View) -> list[str]:
    return [
        f"One family of tasks ({view.protocol.family}), simulated; not a robot.",
        "How each agent's settings were found, and what that cost, is not stored with lifetimes.",
        "Intervals are of the mean over lifetimes, each metric by itself: no correction for many "
        "comparisons is made on this page.",
    ]
