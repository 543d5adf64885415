# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""Shapes of bodies, and where rays of light meet them.

A ray is ``o + t d``, in the shape's own frame: ``o`` three numbers, ``d`` three arrays (a picture's
pixels). ``meet`` gives ``t``, infinite where the shape is missed; ``normals`` the outward
directions at points of its surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX, MESH = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}"))
    for name in ("PLANE", "SPHERE", "CAPSULE", "ELLIPSOID", "CYLINDER", "BOX", "MESH")
)
Vector = Sequence[float]
Ray = Sequence[np.ndarray]
Structure = tuple[int | bytes, ...]


@dataclass(frozen=True)
class Shape:
    """One shape of a scene, placed in the world."""

    kind: int
    """mjtGeom."""
    size: Vector
    """As in a scene of MuJoCo: half sizes; the third of a capsule leaves out its round ends."""
    place: np.ndarray
    """Centre, ``[3]``."""
    turn: np.ndarray
    """Its axes in the world as columns, ``[3, 3]``."""
    colour: np.ndarray
    """Red, green, blue, alpha; 0 to 1."""

    @property
    def half(self) -> np.ndarray:
        """Half sizes of the box around it, in its own frame."""
        ends = self.size[0] if self.kind == CAPSULE else 0.0
        return np.array([self.size[0], self.size[1], self.size[2] + ends])

    @property
    def is_floor(self) -> bool:
        """Whether it is a plane that faces upwards."""
        return self.kind == PLANE and self.turn[2, 2] > 0.999

    def meet(self, o: Vector, d: Ray) -> np.ndarray:
        """``t`` of the nearest point of the surface along each ray."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return _MEET[self.kind](o, d, self.size)

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Outward directions, of length 1, at ``points [3, n]`` of the surface."""
        x, y, z = points
        a, b, c = self.size
        if self.kind == BOX:
            face = np.abs([x / a, y / b, z / c]).argmax(axis=0)
            return np.sign(points) * (np.arange(3)[:, None] == face)
        if self.kind == PLANE:
            return np.stack([np.zeros_like(z), np.zeros_like(z), np.ones_like(z)])
        if self.kind == CAPSULE:
            normal = np.stack([x, y, z - np.clip(z, -c, c)])
        elif self.kind == CYLINDER:
            lid = np.abs(z) >= c * (1.0 - 1e-4)
            normal = np.stack([np.where(lid, 0.0, x), np.where(lid, 0.0, y), np.where(lid, z, 0.0)])
        else:
            normal = np.stack([x / a**2, y / b**2, z / c**2])
        return normal / np.sqrt((normal * normal).sum(axis=0))


def structure(model: mujoco.MjModel) -> Structure:
    """What models of one robot share, whatever their masses and sizes: to keep things prepared."""
    return model.signature, model.names, model.nmeshvert, model.ntexdata


def shape_of(model: mujoco.MjModel, geom: mujoco.MjvGeom) -> Shape | None:
    """One entry of MuJoCo's scene; None for what has no shape here or cannot be seen."""
    kind, size = int(geom.type), np.array(geom.size, np.float64)
    place, turn = np.array(geom.pos, np.float64), np.array(geom.mat, np.float64)
    if kind == MESH and int(geom.objtype) == int(mujoco.mjtObj.mjOBJ_GEOM):
        box = np.asarray(model.geom_aabb[geom.objid])
        kind, size, place = BOX, box[3:], place + turn @ box[:3]
    if kind not in _MEET or geom.rgba[3] < 0.05:
        return None
    return Shape(kind, size.tolist(), place, turn, np.array(geom.rgba, np.float64))


def _meet_ball(o: Vector, d: Ray, size: Vector) -> np.ndarray:
    """An ellipsoid is a ball of radius 1 in coordinates that are measured in its half sizes."""
    o = [o[k] / size[k] for k in range(3)]
    d = [d[k] / size[k] for k in range(3)]
    return _first_root(_dot(d, d), _dot(d, o), _dot(o, o) - 1.0)


def _meet_capsule(o: Vector, d: Ray, size: Vector) -> np.ndarray:
    radius, half = size[0], size[2]
    t, z = _meet_tube(o, d, radius)
    # A ray that enters the tube beyond the capsule can only meet the ball at that end.
    high = o[2] - np.copysign(np.float32(half), z)
    ball = _first_root(
        _dot(d, d),
        o[0] * d[0] + o[1] * d[1] + high * d[2],
        o[0] ** 2 + o[1] ** 2 - radius**2 + high * high,
    )
    return np.where(np.abs(z) <= half, t, ball)


def _meet_cylinder(o: Vector, d: Ray, size: Vector) -> np.ndarray:
    radius, half = size[0], size[2]
    t, z = _meet_tube(o, d, radius)
    lid = (np.copysign(np.float32(half), z) - o[2]) / d[2]
    inside = (o[0] + lid * d[0]) ** 2 + (o[1] + lid * d[1]) ** 2 <= radius**2
    return np.where(np.abs(z) <= half, t, np.where(inside & np.isfinite(t), lid, np.inf))


def _meet_tube(o: Vector, d: Ray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter an endless cylinder along z: ``t``, and the height there."""
    across = np.maximum(d[0] * d[0] + d[1] * d[1], np.float32(1e-12))
    inwards = o[0] * d[0] + o[1] * d[1]
    t = _first_root(across, inwards, o[0] ** 2 + o[1] ** 2 - radius**2)
    return t, o[2] + t * d[2]


def _meet_box(o: Vector, d: Ray, size: Vector) -> np.ndarray:
    enter, leave = np.float32(-np.inf), np.float32(np.inf)
    for k in range(3):
        middle, half = -o[k] / d[k], np.abs(size[k] / d[k])
        enter, leave = np.maximum(enter, middle - half), np.minimum(leave, middle + half)
    return np.where(enter <= leave, enter, np.inf)


def _meet_plane(o: Vector, d: Ray, size: Vector) -> np.ndarray:
    """A plane is seen from its front only; a size of 0 is endless."""
    if o[2] <= 0.0:
        return np.full_like(d[2], np.inf)
    t = -o[2] / d[2]
    for k in range(2):
        if size[k] > 0.0:
            t = np.where(np.abs(o[k] + t * d[k]) <= size[k], t, np.inf)
    return t


def _first_root(a: np.ndarray, b: np.ndarray, c: np.ndarray | float) -> np.ndarray:
    """The smaller root of ``a t^2 + 2 b t + c``, infinite where there is none."""
    inner = b * b - a * c
    return np.where(inner >= 0.0, (-b - np.sqrt(np.maximum(inner, 0.0))) / a, np.inf)


def _dot(a: Ray | Vector, b: Ray | Vector) -> np.ndarray:
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


_MEET: dict[int, Callable[[Vector, Ray, Vector], np.ndarray]] = {
    PLANE: _meet_plane,
    SPHERE: _meet_ball,
    ELLIPSOID: _meet_ball,
    CAPSULE: _meet_capsule,
    CYLINDER: _meet_cylinder,
    BOX: _meet_box,
}
