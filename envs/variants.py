"""Published definitions of a family: its settings by variant, its parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import ArgsKwargs

Settings = Mapping[str, Mapping[str, Any]]
"""Settings of a family by variant, or of its parameters by name, as a YAML file would give them."""


def complete(variants: Settings, params: Settings, given: Any) -> ArgsKwargs:
    """What pydantic got for a family, with its variant and parameters filled in where not given.

    The first variant is the default.
    """
    settings = dict((given.kwargs if isinstance(given, ArgsKwargs) else given) or {})
    if variants:
        variant = settings.get("variant") or next(iter(variants))
        if variant not in variants:
            raise ValueError(f"variant={variant!r}: expected one of {', '.join(variants)}")
        settings = _merged(variants[variant], settings) | {"variant": variant}
    if params:
        settings = _merged({"params": params}, settings)
    return ArgsKwargs((), settings)


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both are mappings (parameters, by name), their union; else what is given."""
    merged = dict(base) | dict(given)
    for key in base.keys() & given.keys():
        if isinstance(base[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = _merged(base[key], given[key])
    # A parameter has a range or choices; to give the one means not to want the other's default.
    if "choices" in given:
        unwanted = {"low", "high", "log", "ood"}
    elif "choices" in base and {"low", "high"} & given.keys():
        unwanted = {"choices", "ood"}
    else:
        unwanted = set()
    return {key: value for key, value in merged.items() if key in given or key not in unwanted}
