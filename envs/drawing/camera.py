# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""The camera: where it stands, and which renderer makes its pictures.

MuJoCo's own renderer draws where OpenGL works without a screen; elsewhere the software drawer does,
so that a picture always comes out.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal, Self

import mujoco
import numpy as np
from PIL import Image

from envs.drawing import opengl
from envs.drawing.drawer import Drawer
from envs.drawing.shapes import Structure, structure
from envs.drawing.sheets import card, fit
from envs.param import TaskError
from envs.vector_tasks import VectorTasks

_log = logging.getLogger("engram.pictures")
_FINER = 2  # pictures are drawn this many times larger and reduced, which smooths their edges
_MAX_SHAPES = 10_000
_FREE, _BALL, _SLIDE, _HINGE = (
    int(getattr(mujoco.mjtJoint, f"mjJNT_{name}")) for name in ("FREE", "BALL", "SLIDE", "HINGE")
)


@dataclass(frozen=True)
class View:
    """Where a camera stands, in MuJoCo's terms."""

    lookat: tuple[float, float, float]
    """The point in the middle of the picture, in metres."""
    distance: float
    """Metres from there to the eye."""
    azimuth: float = 120.0
    """Degrees; 90 looks along the world's y axis, with x to the right."""
    elevation: float = -20.0
    """Degrees; negative looks down."""


@dataclass(frozen=True)
class _Home:
    """A robot in its initial posture: what its views have in common."""

    root: int
    travels: bool
    root_place: np.ndarray
    centre: np.ndarray
    radius: float


class Camera:
    """Pictures of MuJoCo simulations, made without a screen; use it in a ``with`` block.

    It belongs to the thread that makes its first picture.
    """

    def __init__(
        self,
        width: int = 320,
        height: int = 240,
        renderer: Literal["auto", "opengl", "software"] = "auto",
    ) -> None:
        if width < 1 or height < 1:
            raise TaskError(f"width={width}, height={height}: a picture needs at least one pixel")
        if renderer not in ("auto", "opengl", "software"):
            raise TaskError(f"renderer={renderer!r}: expected auto, opengl or software")
        self.width, self.height, self.renderer = width, height, renderer
        self._drawer: Drawer | opengl.Renderer | None = None
        self._scenes: dict[Structure, mujoco.MjvScene] = {}
        self._homes: dict[Structure, _Home] = {}

    def __enter__(self) -> Self:
        """Nothing is opened before the first picture."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free what the renderer holds."""
        self.close()

    def close(self) -> None:
        """Free what the renderer holds; the camera can go on and opens it again."""
        if self._drawer is not None:
            self._drawer.close()
        self._drawer = None
        self._scenes.clear()

    def look(self, simulators: VectorTasks, row: int) -> np.ndarray:
        """A picture ``uint8 [height, width, 3]`` of one of T x E simulations, whatever it shows.

        Where there is nothing to see, or looking fails, it is a card that says so: nobody should
        lose a training to a picture.
        """
        try:
            seen = simulators.look(row)
            if seen is None:
                return card("no picture", self.width, self.height)
            if isinstance(seen, np.ndarray):
                return fit(seen, self.width, self.height)
            return self.frame(*seen)
        except opengl.NoOpenGlError:  # asked for and not there: that is no mishap
            raise
        except Exception as error:  # an environment's render() may raise anything
            _say_once(f"no picture: {type(error).__name__}: {error}")
            return card(f"no picture: {error}"[:200], self.width, self.height)

    def frame(
        self, model: mujoco.MjModel, data: mujoco.MjData, view: View | None = None
    ) -> np.ndarray:
        """A picture ``uint8 [height, width, 3]``, from the robot's side unless a view is given.

        ``data`` is only read: bodies are where the last ``mj_forward`` or ``mj_step`` put them.
        """
        if not np.isfinite(data.geom_xpos).all():
            raise TaskError("bodies are at places that are not finite numbers; did it blow up?")
        view = view or self.follow(model, data)
        kind = structure(model)
        scene = self._scenes.get(kind)
        if scene is None:
            scene = self._scenes[kind] = mujoco.MjvScene(model, _MAX_SHAPES)
        eye = mujoco.MjvCamera()
        eye.lookat[:], eye.distance = view.lookat, view.distance
        eye.azimuth, eye.elevation = view.azimuth, view.elevation
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, eye, every, scene)
        large = self._draw(model, scene, 2.0 ** round(math.log2(view.distance / 5.0)))
        return np.array(Image.fromarray(large).reduce(_FINER))

    def _draw(self, model: mujoco.MjModel, scene: mujoco.MjvScene, tile: float) -> np.ndarray:
        if self._drawer is None:
            self._drawer = self._open()
        if isinstance(self._drawer, opengl.Renderer) and self.renderer == "auto":
            try:
                return self._drawer.draw(model, scene, tile)
            except opengl.failures() as error:
                self._drawer.close()
                self._drawer = self._software(f"OpenGL failed while drawing: {error}")
        return self._drawer.draw(model, scene, tile)

    def _open(self) -> Drawer | opengl.Renderer:
        if self.renderer == "software":
            return Drawer(self.width * _FINER, self.height * _FINER)
        try:
            return opengl.Renderer(self.width * _FINER, self.height * _FINER)
        except opengl.NoOpenGlError as error:
            if self.renderer == "opengl":
                raise
            return self._software(str(error))

    def _software(self, reason: str) -> Drawer:
        _say_once(f"pictures come from the software drawer: {reason}")
        return Drawer(self.width * _FINER, self.height * _FINER)

    def follow(self, model: mujoco.MjModel, data: mujoco.MjData) -> View:
        """The view that shows the robot best and goes with it.

        From the side (or from above) if all its hinges turn in one plane, else a three-quarter
        view.
        """
        kind = structure(model)
        home = self._homes.get(kind)
        if home is None:
            home = self._homes[kind] = _home(model)
        centre = home.centre.copy()
        if home.travels:
            moved = data.xpos[home.root] - home.root_place
            centre[:2] += moved[:2]
            # Hops must show against the floor; only what leaves the picture is followed upwards.
            centre[2] += math.copysign(max(abs(moved[2]) - home.radius, 0.0), moved[2])
        x, y, z = centre.tolist()
        return View((x, y, z), 2.5 * home.radius, *_angles(model, data))


def _home(model: mujoco.MjModel) -> _Home:
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = model.body_weldid[model.geom_bodyid] != 0
    shown = moving if moving.any() else model.geom_rbound > 0.0
    places, radii = data.geom_xpos[shown], model.geom_rbound[shown, None]
    low, high = -np.ones(3), np.ones(3)  # for a model without bodies
    if len(places):
        low, high = (places - radii).min(axis=0), (places + radii).max(axis=0)
    first = np.flatnonzero((model.body_parentid == 0) & (np.arange(model.nbody) > 0))
    root = int(first[model.body_subtreemass[first].argmax()]) if len(first) else 0
    joints = (model.jnt_bodyid == root) & (model.jnt_limited == 0)
    travels = bool(np.isin(model.jnt_type[joints], [_FREE, _SLIDE]).any())
    sweeps = bool((model.jnt_type[joints] == _HINGE).any())
    centre, radius = (low + high) / 2.0, float(np.linalg.norm(high - low)) / 2.0
    if sweeps and not travels:  # an arm that can turn all around: the circle that it reaches
        centre = data.xpos[root].copy()
        radius = float((np.linalg.norm(places - centre, axis=1) + radii[:, 0]).max())
    return _Home(root, travels, data.xpos[root].copy(), centre, max(radius, 1e-3))


def _angles(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[float, float]:
    """Azimuth and elevation: along the axis that all hinges share, where they share one."""
    kinds = model.jnt_type
    axes, free = data.xaxis[kinds == _HINGE], np.isin(kinds, [_FREE, _BALL])
    if free.any() or len(axes) == 0 or (np.abs(axes @ axes[0]) < 0.99).any():
        return 120.0, -20.0
    if abs(axes[0, 2]) > 0.99:
        return 90.0, -60.0
    if abs(axes[0, 2]) > 0.01:
        return 120.0, -20.0
    along = axes[0] * (1.0 if axes[0, 1] >= 0.0 else -1.0)  # x, or else y, points to the right
    return math.degrees(math.atan2(along[1], along[0])), -8.0


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning(line)
