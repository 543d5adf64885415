# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""Task parameters written into MuJoCo models: one model, or a field of many simulations at once.

A task is applied to nominal fields, its parameters one after the other, so that applying it twice
equals applying it once, and parameters of one field compose.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import mujoco
import numpy as np

from envs.param import Param, TaskError, apply_op

_TARGET = re.compile(r"(?P<field>\w+)(\[(?P<row>[^\],]+)(,(?P<element>\d+))?\])?$")
# Which named things the rows of a model field belong to, by the field's first word.
_ROWS_OF = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "dof": mujoco.mjtObj.mjOBJ_JOINT,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "tendon": mujoco.mjtObj.mjOBJ_TENDON,
}
_SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX = (
    int(kind)
    for kind in (
        mujoco.mjtGeom.mjGEOM_SPHERE,
        mujoco.mjtGeom.mjGEOM_CAPSULE,
        mujoco.mjtGeom.mjGEOM_ELLIPSOID,
        mujoco.mjtGeom.mjGEOM_CYLINDER,
        mujoco.mjtGeom.mjGEOM_BOX,
    )
)

Rows = Callable[[str], np.ndarray]
"""Gives the writable array ``[B, ...]`` of a model field by name (options: ``opt.gravity``)."""


@contextlib.contextmanager
def naming(family: str, name: str) -> Iterator[None]:
    """Errors inside say which parameter of which family they are about."""
    try:
        yield
    except ValueError as error:
        raise TaskError(f"{family}.params.{name}: {error}") from error


def couples_inertia(params: Mapping[str, Param]) -> bool:
    """Whether scaling a body's mass scales its inertia alike: a denser material, the same shape.

    It does unless a family has parameters for inertia itself.
    """
    targets = [target for param in params.values() for target in param.targets]
    return not any(target.startswith("model:body_inertia") for target in targets)


def write_field(
    target: str,
    op: str,
    values: np.ndarray,
    model: mujoco.MjModel,
    rows: Rows,
    at: slice | np.ndarray = slice(None),
    couple_inertia: bool = True,
) -> None:
    """Write a ``model:`` or ``option:`` target of some simulations, on top of what is there.

    Args:
        target: Such as ``model:body_mass[torso]``, ``model:geom_size[bfoot,0]``,
            ``option:gravity[2]``; without brackets, the whole field.
        op: ``set``, ``scale`` or ``add``.
        values: ``[n]``, each simulation's value.
        model: A model to look names and types up in.
        rows: The writable fields of all B simulations.
        at: Which n of the B simulations.
        couple_inertia: Whether scaling a mass scales the inertia too (see ``couples_inertia``).

    A geom's new size moves its bounding volumes with it.
    """
    kind, _, path = target.partition(":")
    match = _TARGET.match(path)
    if match is None:
        raise TaskError(
            f"{target!r}: expected {kind}:FIELD, {kind}:FIELD[ROW] or {kind}:FIELD[ROW,ELEMENT]"
        )
    name = match["field"]
    source = model.opt if kind == "option" else model
    whole = np.asarray(getattr(source, name, None))
    if whole.dtype.kind != "f":  # integers are structure (ids, flags), or would cut a value short
        raise TaskError(
            f"{target!r}: MuJoCo's {kind} has no field of real numbers {name!r}"
            + _near(source, name)
        )
    index = _index(target, model, match, whole)
    coupled = couple_inertia and (name, op) == ("body_mass", "scale")
    for each in [name, "body_inertia"] if coupled else [name]:
        field = rows(f"opt.{each}" if kind == "option" else each)
        field[(at, *index)] = apply_op(op, field[(at, *index)], values)
    if name == "geom_size":
        _write_bounds(model, rows, at)


def write_one_model(
    model: mujoco.MjModel,
    nominal: mujoco.MjModel,
    changes: Sequence[tuple[str, str, float]],
    couple_inertia: bool = True,
) -> None:
    """Make one model the nominal one but for the changes ``(target, op, value)``.

    Only fields that a change names are touched, so apply the same targets every time. The caller
    runs ``mj_setConst`` afterwards.
    """
    numbers: dict[str, np.ndarray] = {}  # MuJoCo hands single numbers out by value
    restored: dict[str, np.ndarray] = {}

    def rows(field: str) -> np.ndarray:
        if field not in restored:
            part = field.startswith("opt.")
            source, original = (model.opt, nominal.opt) if part else (model, nominal)
            name = field.removeprefix("opt.")
            found = getattr(source, name)
            if np.ndim(found) == 0:
                numbers[name] = restored[field] = np.array([float(getattr(original, name))])
            else:
                found[:] = getattr(original, name)
                restored[field] = found[None]
        return restored[field]

    for target, op, value in changes:
        write_field(target, op, np.array([value]), nominal, rows, couple_inertia=couple_inertia)
        if target.startswith("model:geom_size"):  # see ``simulation.load_model``
            model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
    for name, number in numbers.items():
        setattr(model.opt, name, float(number[0]))


def _index(
    target: str, model: mujoco.MjModel, match: re.Match[str], whole: np.ndarray
) -> tuple[int, ...]:
    """Row and element that the brackets of a target stand for."""
    if match["row"] is None:
        return ()
    name = match["field"]
    index = (_row(model, name, match["row"]),)
    if match["element"] is not None:
        index = (*index, int(match["element"]))
    fits = whole.ndim >= len(index) and all(i < n for i, n in zip(index, whole.shape, strict=False))
    if not fits:
        raise TaskError(f"{target!r}: {name} has no such entry; its shape is {whole.shape}")
    return index


def _row(model: mujoco.MjModel, field: str, key: str) -> int:
    """Index of the row that ``key``, a number or a MuJoCo name, stands for."""
    if key.isdigit():
        return int(key)
    kind = _ROWS_OF.get(field.split("_")[0])
    index = -1 if kind is None else mujoco.mj_name2id(model, kind, key)
    if kind is None or index < 0:
        raise TaskError(
            f"{field}[{key}]: no row of that name in the model; use a name from the XML or a number"
            + (f" (names here: {_names(model, kind)})" if kind is not None else "")
        )
    if field.startswith("dof"):  # a joint's name stands for its first degree of freedom
        return int(model.jnt_dofadr[index])
    return index


def _names(model: mujoco.MjModel, kind: mujoco.mjtObj) -> str:
    counts = {"BODY": "nbody", "GEOM": "ngeom", "JOINT": "njnt", "ACTUATOR": "nu", "SITE": "nsite"}
    count = getattr(model, counts.get(kind.name.removeprefix("mjOBJ_"), "ntendon"))
    names = [mujoco.mj_id2name(model, kind, i) for i in range(count)]
    return ", ".join(name for name in names if name) or "none"


def _near(source: object, name: str) -> str:
    known = [each for each in dir(source) if not each.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _write_bounds(model: mujoco.MjModel, rows: Rows, at: slice | np.ndarray) -> None:
    """Bounding sphere and box of each geom from its size, or collisions would be missed.

    MuJoCo computes them when it compiles a model and ``mj_setConst`` leaves them alone.
    """
    size = rows("geom_size")[at]
    radius, box = rows("geom_rbound"), rows("geom_aabb")
    for geom in range(model.ngeom):
        kind = int(model.geom_type[geom])
        a, b, c = size[:, geom].T
        half = {
            _SPHERE: (a, a, a),
            _CAPSULE: (a, a, a + b),
            _ELLIPSOID: (a, b, c),
            _CYLINDER: (a, a, b),
            _BOX: (a, b, c),
        }.get(kind)
        if half is None:  # a plane has no bounds, and a mesh's do not follow from its size
            continue
        bound = {
            _SPHERE: a,
            _CAPSULE: a + b,
            _ELLIPSOID: np.maximum(np.maximum(a, b), c),
            _CYLINDER: np.hypot(a, b),
            _BOX: np.sqrt(a**2 + b**2 + c**2),
        }[kind]
        radius[at, geom] = bound
        box[at, geom, 3:] = np.stack(half, axis=-1)
