"""In which order names come: written down, generated from gaps, dealt anew for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from agent.seeding import generator

Shuffle = Literal["fixed", "per_seed", "latin"]


@dataclass(kw_only=True, config={"extra": "forbid"})
class Spaced:
    """An order in which tasks come back after given gaps, each gap about equally often."""

    tasks: Annotated[int, Field(ge=1)]
    """How many; they are called T1, T2, ..."""
    gaps: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Visits to other tasks between a visit and the re-visit."""


def written_out(order: Any) -> Any:
    """The order as a list of names, where it was given as ``{tasks: ..., gaps: [...]}``."""
    if not isinstance(order, Mapping):
        return order
    try:
        settings = TypeAdapter(Spaced).validate_python(dict(order))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{key}: {first['msg']}; expected a list of names, or tasks and gaps, such as "
            "{tasks: 50, gaps: [1, 2, 4]}"
        ) from None
    return spaced(settings.tasks, settings.gaps)


def spaced(tasks: int, gaps: Sequence[int]) -> list[str]:
    """Visits to T1, T2, ..., each of which comes back; every re-visit after one of the gaps.

    A task is new whenever none is due; once all are known, what is not due is a further re-visit.
    """
    names = [f"T{number}" for number in range(1, tasks + 1)]
    places: dict[int, str] = {}
    uses = dict.fromkeys(sorted(gaps, reverse=True), 0)  # on a tie, the longest
    new, place = list(names), 0
    while new or place < len(places):
        if place not in places:
            ahead = [g for g in uses if place + g + 1 not in places] if new else []
            back = [g for g in uses if _free_to_return(places, place - g - 1)]
            if not ahead and not back:
                raise ValueError(
                    f"{tasks} tasks are too few, or the gaps too alike, for re-visits after just "
                    f"{list(gaps)} other visits; take more tasks or a smaller gap"
                )
            gap = min(ahead or back, key=uses.__getitem__)
            uses[gap] += 1
            places[place] = new.pop(0) if ahead else places[place - gap - 1]
            if ahead:
                places[place + gap + 1] = places[place]
        place += 1
    return [places[i] for i in range(place)]


def _free_to_return(places: Mapping[int, str], last: int) -> bool:
    """Whether a task was visited at this place and is not to come back to any later one."""
    return last in places and all(name != places[last] for at, name in places.items() if at > last)


def dealt(order: Sequence[str], shuffle: Shuffle, seed: int) -> list[str]:
    """The order of a lifetime: which name stands where, the pattern of re-visits kept.

    ``latin``: over as many seeds in a row as there are names, each name has each place once; and
    over an even number of names (twice as many seeds otherwise) each follows each other equally
    often (Williams 1949).
    """
    names = list(dict.fromkeys(order))
    count = len(names)
    if shuffle == "fixed":
        return list(order)
    if shuffle == "latin":
        zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
        row = [names[(step + seed) % count] for step in zigzag]
        if count % 2 and seed // count % 2:
            row.reverse()
    else:
        row = [names[i] for i in generator(seed, "stream", 1).permutation(count)]
    stands_for = dict(zip(names, row, strict=True))
    return [stands_for[name] for name in order]
