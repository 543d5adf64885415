# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""The software drawer: a MuJoCo scene seen through a pinhole, in numpy, with no OpenGL.

One ray per pixel meets each body's exact shape inside of the rectangle that the body can cover, and
the nearest surface wins. Meshes are drawn as the boxes around them; height fields, skins and
textures are left out.
"""

from __future__ import annotations

import itertools
import math

import mujoco
import numpy as np

from envs.drawing.shapes import PLANE, Shape, shape_of

_HORIZON = np.array([0.95, 0.97, 0.98])
_ZENITH = np.array([0.70, 0.81, 0.92])
_TILES = np.array([[0.74, 0.76, 0.78], [0.83, 0.85, 0.86]], np.float32)
_LIGHT = np.array([-0.35, 0.8, -0.5]) / np.linalg.norm([-0.35, 0.8, -0.5])
"""Towards the light: right, up, forward of the camera."""
_SHADOW = 0.4  # how much light a shadow takes away
_NEAREST = 1e-3  # metres; what is closer to the eye is not drawn
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
Window = tuple[slice, slice]


class Drawer:
    """Draws scenes of one picture size."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    def draw(self, model: mujoco.MjModel, scene: mujoco.MjvScene, tile: float) -> np.ndarray:
        """The scene as ``uint8 [height, width, 3]``; ``tile`` is the floor's pattern in metres."""
        canvas = _Canvas(scene, self.width, self.height)
        shapes = [s for i in range(scene.ngeom) if (s := shape_of(model, scene.geoms[i]))]
        bodies = [shape for shape in shapes if not shape.is_floor]
        for shape in shapes:
            if shape.is_floor:
                canvas.floor(float(shape.place[2]), tile, bodies)
        # What can be seen through comes last, far before near.
        for body in sorted(bodies, key=lambda b: (b.colour[3] < 1.0, -canvas.depth_of(b.place))):
            canvas.body(body)
        return (np.clip(canvas.pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def close(self) -> None:
        """Nothing to free; the OpenGL renderer has."""


def sky(scene: mujoco.MjvScene, height: int) -> np.ndarray:
    """The background's colour in each row of a picture, ``[height, 3]``, 0 to 1."""
    camera = scene.camera[0]
    slope = camera.frustum_top / camera.frustum_near
    y = slope * (1.0 - 2.0 * (np.arange(height) + 0.5) / height)
    climb = camera.forward[2] + camera.up[2] * y
    return _HORIZON + (_ZENITH - _HORIZON) * np.clip(climb / 0.4, 0.0, 1.0)[:, None]


class _Canvas:
    """Pixels, how deep each of them is, and the camera between them and the world."""

    def __init__(self, scene: mujoco.MjvScene, width: int, height: int) -> None:
        left, right = scene.camera[0], scene.camera[1]  # two eyes; the picture's is between them
        self.eye = (np.array(left.pos, np.float64) + right.pos) / 2.0
        forward, up = np.array(left.forward, np.float64), np.array(left.up, np.float64)
        self.axes = np.stack([np.cross(forward, up), up, forward])  # rows: right, up, forward
        self.focal = height / 2.0 * left.frustum_near / left.frustum_top  # pixels
        # Slopes of the rays through the pixels' centres.
        self.x = ((np.arange(width) + 0.5 - width / 2.0) / self.focal).astype(np.float32)
        self.y = ((height / 2.0 - np.arange(height) - 0.5) / self.focal).astype(np.float32)
        self.depth = np.full((height, width), np.inf, np.float32)
        self.pixels = np.empty((height, width, 3), np.float32)
        self.pixels[:] = sky(scene, height)[:, None]

    def depth_of(self, point: np.ndarray) -> float:
        """How far a point is, along the view."""
        return float(self.axes[2] @ (point - self.eye))

    def window(self, points: np.ndarray) -> Window | None:
        """Rows and columns that hold what lies between ``points [n, 3]``; None if it is behind."""
        right, up, depth = self.axes @ (points - self.eye).T
        if depth.max() <= _NEAREST:
            return None
        if depth.min() <= _NEAREST:
            return slice(0, len(self.y)), slice(0, len(self.x))
        rows = len(self.y) / 2.0 - up / depth * self.focal
        columns = len(self.x) / 2.0 + right / depth * self.focal
        return _span(rows, len(self.y)), _span(columns, len(self.x))

    def body(self, body: Shape) -> None:
        """Paint what is visible of one body."""
        window = slice(0, len(self.y)), slice(0, len(self.x))
        if body.kind != PLANE:
            window = self.window(body.place + (_CORNERS * body.half) @ body.turn.T)
        if window is None:
            return
        o = (body.turn.T @ (self.eye - body.place)).tolist()
        to_body = (body.turn.T @ self.axes.T).tolist()
        x, y = self.x[window[1]], self.y[window[0], None]
        d = [right * x + (up * y + forward) for right, up, forward in to_body]
        t = body.meet(o, d)
        seen = (t < self.depth[window]) & (t > _NEAREST)
        if not seen.any():
            return
        rays = np.stack([axis[seen] for axis in d])  # [3, pixels]
        normals = body.normals(np.array(o)[:, None] + t[seen] * rays)
        bright = _bright(normals, rays, body.turn.T @ self.axes.T @ _LIGHT)
        colour, alpha = bright[:, None] * body.colour[:3], float(body.colour[3])
        pixels = self.pixels[window]
        pixels[seen] = alpha * colour + (1.0 - alpha) * pixels[seen]
        self.depth[window][seen] = t[seen]

    def floor(self, level: float, tile: float, bodies: list[Shape]) -> None:
        """Paint an endless tiled floor and, on it, the bodies' shadows."""
        above = float(self.eye[2] - level)
        # A camera is never rolled, so that a row of pixels sees one depth of the floor.
        falls = self.axes[1, 2] * self.y + self.axes[2, 2]
        rows = np.flatnonzero(falls < -1e-3)
        if above <= 0.0 or len(rows) == 0:  # from below, or only sky
            return
        window = slice(rows[0], rows[-1] + 1), slice(0, len(self.x))
        y, t = self.y[window[0], None], (-above / falls[window[0], None]).astype(np.float32)
        places = []  # of the floor's points, [rows, columns] each
        for k in range(2):
            ahead = self.eye[k] + t * (self.axes[1, k] * y + self.axes[2, k])
            places.append((ahead + t * self.axes[0, k] * self.x).astype(np.float32))
        odd = (np.floor(places[0] / tile) + np.floor(places[1] / tile)) % 2.0
        # Tiles smaller than a pixel would flicker: fade to their mean, and that to the horizon.
        clear = np.clip(1.5 - t * t / (self.focal * above * tile), 0.0, 1.0)
        mist = np.clip(t / (40.0 * tile) - 0.5, 0.0, 1.0)[..., None]
        light = 1.0 - _SHADOW * self._shadows(level, places, window, bodies)
        colour = _TILES[0] + (_TILES[1] - _TILES[0]) * (0.5 + (odd - 0.5) * clear)[..., None]
        colour = colour * light[..., None] * (1.0 - mist) + (_HORIZON * mist).astype(np.float32)
        nearer = t < self.depth[window]
        self.pixels[window] = np.where(nearer[..., None], colour, self.pixels[window])
        self.depth[window] = np.where(nearer, t, self.depth[window])

    def _shadows(
        self, level: float, places: list[np.ndarray], floor: Window, bodies: list[Shape]
    ) -> np.ndarray:
        """How dark the floor is, 0 to 1: below each body's spine, fainter from high up."""
        dark = np.zeros(places[0].shape, np.float32)
        for body in bodies:
            radius = float(np.median(body.half))
            spine = body.turn[:, 2] * max(body.half[2] - radius, 0.0)
            height = body.place[2] - abs(spine[2]) - radius - level
            box = body.place + _CORNERS * (np.abs(spine) + 1.5 * radius)
            box[:, 2] = level
            window = self.window(box)
            if window is None or body.kind == PLANE or height < -2.0 * radius:
                continue
            first = floor[0].start
            rows = slice(max(window[0].start - first, 0), max(window[0].stop - first, 0))
            here = rows, window[1]
            x, y = places[0][here] - body.place[0], places[1][here] - body.place[1]
            length = max(float(spine[0] ** 2 + spine[1] ** 2), 1e-12)
            along = np.clip((x * spine[0] + y * spine[1]) / length, -1.0, 1.0)
            away = np.hypot(x - along * spine[0], y - along * spine[1]) / radius
            strength = float(body.colour[3]) * math.exp(-max(height, 0.0) / (6.0 * radius))
            dark[here] = np.maximum(dark[here], strength * np.clip(1.5 - away, 0.0, 1.0))
        return dark


def _bright(normals: np.ndarray, rays: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Lit from above the camera's shoulder, and darker towards the outline, ``[pixels]``."""
    facing = -(normals * rays).sum(axis=0) / np.sqrt((rays * rays).sum(axis=0))
    lit = np.maximum(light @ normals, 0.0)
    return (0.5 + 0.6 * lit) * np.clip(0.55 + 1.2 * facing, 0.0, 1.0)


def _span(edges: np.ndarray, size: int) -> slice:
    low, high = math.floor(float(edges.min())), math.ceil(float(edges.max()))
    return slice(min(max(low, 0), size), min(max(high, 0), size))
