"""A fake accelerator: tensors that count as on a device of their own, so that mixing is an error.

``device=cuda`` should run everything, and where there is no GPU nothing would say that it does not:
on a CPU a forgotten ``.to(device)`` goes unnoticed. Here tensors of the device hold a CPU tensor
that does the work, and every operation is looked at before it is carried out.

It catches, as CUDA would: operations on tensors of both sides (but with numbers, indices and copies
where CUDA takes them from the CPU), a CPU tensor indexed by one of the device, a CPU generator for
random numbers on the device, NumPy views of device memory, and an RNN's state that is not
contiguous, which cuDNN refuses.

It cannot catch what lies in CUDA's kernels: operations or dtypes that have none, fused optimisers,
cuDNN's other demands and its gradients, other rounding, races, memory. RNNs are written out here.

It renames a backend for the whole process and changes torch while it is in use: for processes of
their own, not for one that other tests run in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "fakegpu"
SETUP = "_setup_privateuseone_for_python_backend"
"""What torch needs to have in ``backend_registration``; it is experimental there."""
# Where CUDA takes a CPU tensor beside its own: copies, and indices (of bool or integers).
_COPIES = ("aten.copy_", "aten._to_copy")
_INDEXED = ("aten.index.", "aten._unsafe_index.", "aten.index_put", "aten._index_put")
_LISTS = ("aten.cat.", "aten.stack.")


class DeviceError(RuntimeError):
    """What CUDA would have refused."""


class DeviceTensor(Tensor):
    """Of the fake device; ``held`` is the CPU tensor behind it."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], held: Tensor) -> DeviceTensor:
        """Around ``held``, with which it shares its memory."""
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    def __repr__(self, **_: Any) -> str:
        """Without the values."""
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An operation."""
        return _carried_out(func, args, kwargs or {})


class _Watch(TorchDispatchMode):
    """Sees also the operations that make tensors from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An operation."""
        return _carried_out(func, args, kwargs or {})


@contextmanager
def fake_accelerator() -> Iterator[torch.device]:
    """A device that can be given to everything inside of the ``with``."""
    _registered()
    with ExitStack() as stack:
        for place, name, replacement in _replacements():
            stack.enter_context(patch.object(place, name, replacement))
        stack.enter_context(_Watch())
        yield torch.device(NAME, 0)


def on_device(value: Tensor) -> bool:
    """Whether a tensor is the fake device's."""
    return value.device.type == NAME


@cache
def _registered() -> None:
    getattr(backend_registration, SETUP)(NAME)


def _carried_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on CPU tensors, if the device would have done it."""
    found: list[Tensor] = []
    _collect(args, found)
    _collect(tuple(kwargs.values()), found)
    own = [x for x in found if isinstance(x, DeviceTensor)]
    target = kwargs.get("device")
    made_here = bool(own) if target is None else torch.device(target).type == NAME
    if not own and not made_here:
        return func(*args, **kwargs)
    if own and len(own) < len(found):
        _refuse_mixture(str(func), args, [x for x in found if not isinstance(x, DeviceTensor)])
    if kwargs.get("generator") is not None:
        raise DeviceError(f"{func}: a CPU generator for a tensor of the device")
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*_held(args), **{key: _held(value) for key, value in kwargs.items()})
    if torch.Tag.inplace_view in func.tags:  # squeeze_ and such: of the wrapper too
        with no_dispatch():
            func(*args, **kwargs)
    return _wrapped(result, own) if made_here else result


def _collect(values: Any, found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            _collect(value, found)


def _held(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(_held(item) for item in value)
    return value


def _wrapped(result: Any, own: list[DeviceTensor]) -> Any:
    """Results on the device; what was changed in place is the tensor that was given."""
    if isinstance(result, list | tuple):
        return type(result)(_wrapped(item, own) for item in result)
    if not isinstance(result, Tensor):
        return result
    for given in own:
        if given.held is result:
            return given
    return DeviceTensor(result)


def _refuse_mixture(name: str, args: tuple[Any, ...], others: list[Tensor]) -> None:
    """Unless CUDA takes these ``others``, of the CPU, beside tensors of its own."""
    if name.startswith(_COPIES):
        return
    if name.startswith(_INDEXED):
        if not isinstance(args[0], DeviceTensor):
            raise DeviceError(f"{name}: a CPU tensor indexed by, or given, what is on the device")
        value = next(iter(args[2:]), None)
        others = (
            [value] if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else []
        )
    changed = _changes(name) and any(args[0] is x for x in others)
    if changed or any(x.ndim > 0 or name.startswith(_LISTS) for x in others):
        shapes = [tuple(x.shape) for x in others]
        raise DeviceError(f"{name}: tensors of the device and of the CPU, those {shapes}")


def _changes(name: str) -> bool:
    """Whether an operation, ``aten.add_.Tensor``, changes its first argument."""
    return name.split(".")[1].endswith("_")


def _replacements() -> list[tuple[Any, str, Callable[..., Any]]]:
    """What torch does in C++ where no operation is seen: (where, name, by what)."""
    tensor, as_tensor, full_like = torch.tensor, torch.as_tensor, torch.full_like
    tolist, gru, lstm = Tensor.tolist, nn.GRU.forward, nn.LSTMCell.forward

    def made(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False):  # noqa: ANN202
        return tensor(data, dtype=dtype).to(device or "cpu").requires_grad_(requires_grad)

    def like(
        self: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **more: Any
    ) -> Tensor:
        return made(data, dtype=dtype or self.dtype, device=device or self.device, **more)

    def taken(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        found = data if isinstance(data, Tensor) else as_tensor(data)
        return found.to(device or found.device, dtype or found.dtype)

    def filled(values: Tensor, value: Any, **more: Any) -> Tensor:
        return full_like(values, value.item() if isinstance(value, Tensor) else value, **more)

    def listed(self: Tensor) -> Any:
        return tolist(self.detach().cpu())

    def run_gru(self: nn.GRU, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return _gru(self, x, state) if on_device(x) else gru(self, x, state)

    def run_lstm(self: nn.LSTMCell, x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        return _lstm_cell(self, x, state) if on_device(x) else lstm(self, x, state)

    return [
        (torch, "tensor", made),
        (torch, "as_tensor", taken),
        (torch, "full_like", filled),
        (Tensor, "new_tensor", like),
        (Tensor, "tolist", listed),
        (nn.GRU, "forward", run_gru),
        (nn.LSTMCell, "forward", run_lstm),
    ]


def _gru(layer: nn.GRU, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One layer, one direction, the batch first."""
    if layer.num_layers != 1 or layer.bidirectional or not layer.batch_first:
        raise NotImplementedError("a GRU of another make")
    if not state.is_contiguous():
        raise DeviceError("rnn: hx is not contiguous")  # cuDNN's words
    (into, keep), (into_bias, keep_bias) = _weights(layer, "_l0")
    hidden, states = state[0], []
    for step in x.unbind(1):
        given = nn.functional.linear(step, into, into_bias)
        kept = nn.functional.linear(hidden, keep, keep_bias)
        reset, update, new = given.chunk(3, -1)
        reset_kept, update_kept, new_kept = kept.chunk(3, -1)
        share = torch.sigmoid(update + update_kept)
        proposed = torch.tanh(new + torch.sigmoid(reset + reset_kept) * new_kept)
        hidden = (1 - share) * proposed + share * hidden
        states.append(hidden)
    return torch.stack(states, 1), hidden[None]


def _lstm_cell(
    layer: nn.LSTMCell, x: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One step."""
    (into, keep), (into_bias, keep_bias) = _weights(layer, "")
    output, cell = state
    given = nn.functional.linear(x, into, into_bias)
    gates = given + nn.functional.linear(output, keep, keep_bias)
    take, forget, new, show = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def _weights(layer: nn.Module, suffix: str) -> list[list[Tensor]]:
    """Weights and biases, each of the input and of the state."""
    kinds, sides = ("weight", "bias"), ("ih", "hh")
    return [[layer.get_parameter(f"{k}_{side}{suffix}") for side in sides] for k in kinds]
