"""Where the values of a Gymnasium task land: what is passed, and which attributes are written.

``KIND:NAME`` takes one value, ``KIND:NAME[INDEX]`` one entry of an array.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.model_fields import naming
from envs.param import Param, TaskError, apply_op
from envs.wrapped.make import hint

PASSED = ("kwarg", "reset", "call")
"""Kinds of target whose nominal value is not known, so that they can only be set."""

_TARGET = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<index>\d+(,\d+)*)\])?$")


def check_params(family: str, params: Mapping[str, Param]) -> None:
    """Refuse targets that can never be written, before any environment is made."""
    for name, param in params.items():
        for target in param.targets:
            kind, _, rest = target.partition(":")
            with naming(family, name):
                if kind in ("attr", *PASSED):
                    _parsed(rest, target)
                if kind in PASSED and param.op != "set":
                    raise TaskError(
                        f"{target!r} takes op=set only, got op={param.op}: what it is by default is"
                        " not known; use attr: to change a nominal value"
                    )
    for kind in PASSED:
        passed(params, {name: 0.0 for name in params}, kind)


def passed(params: Mapping[str, Param], values: Mapping[str, float], kind: str) -> dict[str, Any]:
    """What the targets of one kind pass on, by name: numbers, or arrays of numbers.

    Whole numbers among ``choices`` are passed as integers: they may be counts or indices.
    """
    single: dict[str, float | int] = {}
    entries: dict[str, dict[tuple[int, ...], float]] = {}
    for param_name, param in params.items():
        value = values[param_name]
        whole = param.choices is not None and float(value).is_integer()
        for target in param.targets:
            if target.partition(":")[0] == kind:
                name, index = _parsed(target.partition(":")[2], target)
                if index:
                    entries.setdefault(name, {})[index] = value
                else:
                    single[name] = int(value) if whole else float(value)
    arrays = {name: _assembled(f"{kind}:{name}", given) for name, given in entries.items()}
    if both := single.keys() & arrays.keys():
        raise TaskError(f"{kind}: {sorted(both)} are given both whole and entry by entry")
    return {**single, **arrays}


def _assembled(target: str, given: dict[tuple[int, ...], float]) -> np.ndarray:
    shape = tuple(max(axis) + 1 for axis in zip(*given, strict=False))
    array = np.full(shape, np.nan)
    if any(len(index) != len(shape) for index in given):
        raise TaskError(f"{target}: some entries have one index and some have more")
    for index, value in given.items():
        array[index] = value
    if np.isnan(array).any():
        raise TaskError(f"{target}: entry {np.argwhere(np.isnan(array))[0].tolist()} has no value")
    return array


def _parsed(rest: str, target: str) -> tuple[str, tuple[int, ...]]:
    match = _TARGET.match(rest)
    if match is None:
        raise TaskError(f"{target!r}: expected KIND:NAME or KIND:NAME[INDEX]")
    index = match["index"]
    return match["name"], tuple(map(int, index.split(","))) if index else ()


@dataclass
class Access:
    """How the attributes of an environment are reached."""

    owner: str
    """What holds them, for errors."""
    get: Callable[[str], Any]
    """The attribute of that name, or an AttributeError."""
    set: Callable[[str, Any], Any]
    known: Callable[[], list[str]]
    """Names that can be suggested."""


class Attributes:
    """The attributes of one environment that tasks change, on top of their values when it was made.

    They are written anew before each reset, since an episode may change them.
    """

    def __init__(self, family: str, params: Mapping[str, Param], access: Access) -> None:
        self._access = access
        self._changes: list[tuple[str, Param, str, tuple[int, ...]]] = []
        self._nominal: dict[str, Any] = {}
        for param_name, param in params.items():
            for target in param.targets:
                if target.startswith("attr:"):
                    name, index = _parsed(target.partition(":")[2], target)
                    with naming(family, param_name):
                        if name not in self._nominal:
                            self._nominal[name] = self._read(name, target)
                        _check_index(self._nominal[name], index, target)
                    self._changes.append((param_name, param, name, index))
        self._family = family
        self._written: dict[str, np.ndarray] = {}

    def write(self, values: Mapping[str, float]) -> None:
        """Give the attributes a task's values."""
        arrays = {name: _array(nominal) for name, nominal in self._nominal.items()}
        for param_name, param, name, index in self._changes:
            # Parameters of one attribute compose, as those of one field of a model do.
            at, value = index or ..., np.array([values[param_name]])
            arrays[name][at] = apply_op(param.op, arrays[name][at][None], value)[0]
        for param_name, _, name, _ in self._changes:
            value = _like(self._nominal[name], arrays[name])
            self._written[name] = np.array(value)
            try:
                self._access.set(name, value)
            except AttributeError as error:
                raise TaskError(
                    f"{self._family}.params.{param_name}: 'attr:{name}' cannot be set: {error}"
                ) from error

    def check(self) -> None:
        """Raise an error if a reset has changed what the task has written."""
        for param_name, _, name, index in self._changes:
            at = index or ...
            found = np.asarray(self._access.get(name))
            expected = self._written[name]
            if found.shape != expected.shape or not np.array_equal(found[at], expected[at]):
                raise TaskError(
                    f"{self._family}.params.{param_name}: reset() of {self._access.owner} wrote "
                    f"over its attribute {name!r}, so the task would be lost; use reset: or call: "
                    "if it takes the value there, or kwarg:"
                )

    def _read(self, name: str, target: str) -> Any:
        try:
            nominal = self._access.get(name)
        except AttributeError:
            nominal = None
        if nominal is None or _kind(nominal) not in "biuf":
            raise TaskError(
                f"{target!r}: {self._access.owner} has no number or array {name!r}"
                + hint(name, [each for each in self._access.known() if each != name])
            )
        return copy.deepcopy(nominal)


def numbers_of(holder: Any) -> list[str]:
    """Names of an object's own attributes that are numbers or arrays of them."""
    return [
        name
        for name, value in vars(holder).items()
        if not name.startswith("_") and value is not None and _kind(value) in "biuf"
    ]


def _kind(value: Any) -> str:
    if not isinstance(value, bool | int | float | list | tuple | np.ndarray | np.generic):
        return "O"
    try:
        return np.asarray(value).dtype.kind
    except ValueError:  # lists of unequal lengths
        return "O"


def _array(nominal: Any) -> np.ndarray:
    return np.array(nominal, dtype=np.float64)


def _check_index(nominal: Any, index: tuple[int, ...], target: str) -> None:
    shape = np.shape(nominal)
    if not index:
        return
    if len(index) != len(shape) or any(i >= n for i, n in zip(index, shape, strict=True)):
        raise TaskError(f"{target!r}: no such entry; its shape is {shape}")


def _like(nominal: Any, array: np.ndarray) -> Any:
    """The numbers in the form of the nominal value; counts stay counts if they are whole."""
    kind = np.asarray(nominal).dtype
    fits = kind.kind == "f" or np.array_equal(array, array.astype(kind))
    array = array.astype(kind if fits else np.float64)
    if isinstance(nominal, np.ndarray):
        return array
    if isinstance(nominal, np.generic):
        return array[()]
    return type(nominal)(array.tolist()) if isinstance(nominal, list | tuple) else array.item()
