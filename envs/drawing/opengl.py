# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""MuJoCo's own renderer without a screen, opened late, quietly, and only where it works.

``mujoco.Renderer`` takes the OpenGL library that ``MUJOCO_GL`` named when mujoco was imported. The
parts used here (``mujoco.egl``, ``mujoco.osmesa``) can be imported at any later time; which of them
works is tried out in a process of its own, because a bad driver prints, hangs or crashes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import subprocess
import sys
import weakref
from typing import Any

import mujoco
import numpy as np

from envs.drawing.drawer import sky
from envs.drawing.shapes import Structure, shape_of, structure
from envs.param import TaskError

_PATIENCE_S = 60.0
_TRY = """
import importlib, sys, mujoco
mujoco.set_mju_user_warning(lambda *_: None)
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(8, 8)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100).free()
context.free()
"""
# On a CPU a frame takes 700 ms with these and with smooth edges, 4 ms without (at 640x480).
_OFF = ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE")


class NoOpenGlError(TaskError):
    """No OpenGL that draws without a screen; the message says what was tried."""


def failures() -> tuple[type[Exception], ...]:
    """What the drivers and their bindings are known to raise."""
    known = [ImportError, AttributeError, OSError, RuntimeError, ValueError, mujoco.FatalError]
    with contextlib.suppress(ImportError, AttributeError, OSError):
        known.append(importlib.import_module("OpenGL.error").Error)
    return tuple(known)


@functools.cache
def find_library() -> tuple[str | None, str]:
    """Which part of the mujoco package draws here (egl, osmesa, glfw, cgl), or why none does."""
    wanted = _candidates()
    if not wanted:
        return None, f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} rules OpenGL out"
    tried = []
    for library in wanted:
        failure = _try(library)
        if failure is None:
            return library, ""
        tried.append(f"{library} {failure}")
    return None, f"OpenGL does not work without a screen here ({'; '.join(tried)})"


def _candidates() -> list[str]:
    """What to try, best first; what the user or an earlier import has decided stands."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in ("disable", "disabled", "off", "false", "0"):
        return []
    if asked in ("egl", "osmesa", "cgl"):
        return [asked]
    if sys.platform == "darwin":
        return ["cgl"]
    if sys.platform == "win32" or asked == "glfw":
        return ["glfw"]
    screen = ["glfw"] if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") else []
    # PyOpenGL serves one library per process.
    loaded = os.environ.get("PYOPENGL_PLATFORM", "").lower()
    headless = [each for each in ("egl", "osmesa") if loaded in ("", each)]
    return [*headless, *screen]


def _try(library: str) -> str | None:
    """Open the library in another process; what went wrong, or None."""
    # mujoco must not load the library that MUJOCO_GL names before this one.
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    command = [sys.executable, "-P", "-c", _TRY, library]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"hung for {_PATIENCE_S:g} s"
    except OSError as error:
        return f"could not be tried: {error}"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"failed: {lines[-1]}" if lines else f"ended with exit status {done.returncode}"


class Renderer:
    """Draws scenes of one picture size through OpenGL, without what is slow on a CPU."""

    def __init__(self, width: int, height: int) -> None:
        library, reason = find_library()
        if library is None:
            raise NoOpenGlError(reason)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._contexts: dict[Structure, mujoco.MjrContext] = {}
        try:
            self._window: Any = importlib.import_module(f"mujoco.{library}").GLContext(
                width, height
            )
            self._window.make_current()
        except failures() as error:
            raise NoOpenGlError(f"{library} worked on trial but not here: {error}") from error
        # Drivers complain when they are torn down together with the interpreter.
        self.close = weakref.finalize(self, _free, self._window, self._contexts)

    def draw(self, model: mujoco.MjModel, scene: mujoco.MjvScene, tile: float) -> np.ndarray:
        """The scene as ``uint8 [height, width, 3]``; the floor's pattern is the model's own."""
        self._window.make_current()
        kind = structure(model)
        context = self._contexts.get(kind)
        if context is None:
            context = self._contexts[kind] = self._prepare(model)
        for name in _OFF:
            scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = 0
        eye = np.array(scene.camera[0].pos, np.float64)
        for i in range(scene.ngeom):
            _carry_floor(model, scene.geoms[i], eye, widest=20.0 * tile)
        shape = self._rect.height, self._rect.width
        pixels, depth = np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32)
        mujoco.mjr_render(self._rect, scene, context)
        mujoco.mjr_readPixels(pixels, depth, self._rect, context)
        pixels, empty = pixels[::-1], depth[::-1, :, None] == 0.0  # OpenGL's rows go upwards
        behind = (sky(scene, shape[0]) * 255.0 + 0.5).astype(np.uint8)[:, None]
        return np.where(empty, behind, pixels)

    def _prepare(self, model: mujoco.MjModel) -> mujoco.MjrContext:
        """Meshes and textures on their way to the driver; the caller's model is left alone."""
        model = copy.copy(model)
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = (
            self._rect.width,
            self._rect.height,
        )
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # nothing seen: exactly 0
        return context


def _carry_floor(
    model: mujoco.MjModel, geom: mujoco.MjvGeom, eye: np.ndarray, widest: float
) -> None:
    """Move a wide floor after the camera, by whole patterns: in physics it has no edge."""
    shape = shape_of(model, geom)
    if shape is None or not shape.is_floor or min(shape.size[:2]) < widest:
        return
    size, period = np.array(shape.size[:2]), np.ones(2)
    if geom.matid >= 0:
        repeats = np.maximum(np.asarray(model.mat_texrepeat[geom.matid], np.float64), 1e-3)
        period = 1.0 / repeats if model.mat_texuniform[geom.matid] else 2.0 * size / repeats
    away = shape.turn.T @ (eye - shape.place)
    stride = period * np.maximum(np.floor(size / 2.0 / period), 1.0)  # seldom: its light jumps
    away[:2] = np.round(away[:2] / stride) * stride
    away[2] = 0.0
    geom.pos = shape.place + shape.turn @ away


def _free(window: Any, contexts: dict[Structure, mujoco.MjrContext]) -> None:
    with contextlib.suppress(*failures()):
        window.make_current()
        for context in contexts.values():
            context.free()
        contexts.clear()
        window.free()
