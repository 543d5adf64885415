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


def _merged(variant: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both are mappings (parameters, by name), their union; else what is given."""
    merged = dict(variant) | dict(given)
    for key in variant.keys() & given.keys():
        if isinstance(variant[key], Mapping) and isinstance(given[key], Mapping):
            merged[key] = _merged(variant[key], given[key])
    return merged
