"""Values of a visit in progress as named tensors, so that a life can be saved in the middle of one.

What is no tensor is written down as JSON in one tensor of bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agent.memory.row import ReturnRecord
from agent.memory.use import PosteriorRecall
from agent.types import Recall, Trajectories

_CLASSES = {each.__name__: each for each in (Trajectories, ReturnRecord, Recall, PosteriorRecall)}
_FORM = "form"


def pack(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors, numbers, None, lists, tuples, and dataclasses of these, as tensors by name."""
    tensors: dict[str, Tensor] = {}
    form = {name: _packed(value, name, tensors) for name, value in values.items()}
    written = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
    return tensors | {_FORM: written}


def unpack(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """What was packed, on a device."""
    form = json.loads(bytes(tensors[_FORM].tolist()))
    return {name: _unpacked(value, tensors, device) for name, value in form.items()}


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value).__name__ in _CLASSES:
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        inner = {k: _packed(v, f"{name}.{k}", tensors) for k, v in fields.items()}
        return {"class": type(value).__name__, "fields": inner}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{name}: a {type(value).__name__} cannot be saved in the middle of a visit")


def _unpacked(form: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if "tensor" in form:
        return tensors[form["tensor"]].to(device)
    if "class" in form:
        inner = {k: _unpacked(v, tensors, device) for k, v in form["fields"].items()}
        return _CLASSES[form["class"]](**inner)
    if "value" in form:
        return form["value"]
    ((kind, items),) = form.items()
    values = [_unpacked(item, tensors, device) for item in items]
    return tuple(values) if kind == "tuple" else values
