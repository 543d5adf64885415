"""The one door through which configuration enters: plain data in, checked and typed objects out.

A config node names its class with ``_target_``; the fields of that dataclass are the known keys,
their annotations the types and ranges (pydantic). Everything wrong with a node is said at once,
before anything is built from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")
_UNION_TAG = re.compile(r"(constrained-|list\[|function-)")


class ConfigError(ValueError):
    """A configuration that cannot be used, with every reason, fit to be shown to the user."""


@overload
def build(node: object, path: str) -> Any: ...
@overload
def build(node: object, path: str, expected: type[T]) -> T: ...
def build(node: object, path: str, expected: type | None = None) -> Any:
    """The object that a config node describes.

    Args:
        node: A mapping with the fields of ``expected`` or of the class named by its ``_target_``.
        path: Where the node sits in the whole configuration; errors name keys from there.
        expected: The class, for nodes without ``_target_``.

    Raises:
        ConfigError: Naming each bad key in full, its value, what is allowed, the nearest known key.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"{path or 'configuration'}: expected settings of {_name(expected)}, got {node!r}"
        )
    values = dict(node)
    target = values.pop("_target_", None)
    cls = _find(target, f"{path}._target_") if target is not None else expected
    if cls is None:
        raise ConfigError(
            f"{path}._target_ is missing: name the class, such as envs.gym_tasks.GymTasks"
        )
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        problems = [_explain(item, cls, path) for item in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def resolved(node: Mapping[str, Any], built: Any) -> dict[str, Any]:
    """The node with every default filled in, as it should be written down."""
    target = {"_target_": node["_target_"]} if "_target_" in node else {}
    return target | dataclasses.asdict(built)


def _find(target: object, path: str) -> type:
    """The class at a dotted path, as it stands in a config."""
    module_name, _, name = str(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{path}={target!r}: cannot be imported ({error}); expected a class's dotted path, "
            "and its folder on the path (import_path=[~/my_folder])"
        ) from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(
            f"{path}={target!r}: is not a dataclass, so its settings cannot be checked"
        )
    return found


def _explain(item: ErrorDetails, cls: type, path: str) -> str:
    """One pydantic error as a sentence."""
    # Of a field that may be of several types, pydantic names the one that it tried.
    location = tuple(part for part in item["loc"] if not _UNION_TAG.match(str(part)))
    key = ".".join(map(str, [path, *location] if path else location))
    kind, value = item["type"], item.get("input")
    if kind == "unexpected_keyword_argument":
        return f"{key}: {_unknown(str(location[-1]), _fields_at(cls, location[:-1]))}"
    if kind in ("missing", "missing_keyword_only_argument"):
        return f"{key}: missing; it has no default"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # from a __post_init__, which speaks for itself
        return f"{key}: {message}"
    return f"{key}={value!r}: {message[0].lower()}{message[1:]}"


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key; {hint}known are {', '.join(sorted(known))}"


def _fields_at(cls: object, location: Sequence[object]) -> list[str]:
    """Names of the fields of the dataclass that sits at ``location`` inside of ``cls``."""
    for part in location:
        hint = get_type_hints(cls).get(str(part)) if dataclasses.is_dataclass(cls) else None
        # Inside of a container (dict[str, Param]) the location's part is a key, and the dataclass
        # its last argument.
        inner = [a for a in get_args(hint) if dataclasses.is_dataclass(a)]
        if hint is not None:
            cls = inner[-1] if inner else hint
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _name(cls: type | None) -> str:
    return "a class" if cls is None else cls.__name__
