# pyright: reportAttributeAccessIssue=false
"""Pictures: the drawer agrees with the pinhole formula, with MuJoCo's own rays and with OpenGL."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, cast

import mujoco
import numpy as np
import pytest
from PIL import Image

from envs import pictures
from envs.drawing import camera, opengl
from envs.drawing.camera import Camera, View
from envs.drawing.drawer import Drawer
from envs.drawing.shapes import shape_of
from envs.drawing.sheets import card, fit, point_picture, side_by_side
from envs.simulation import load_gymnasium_model
from envs.task import TaskError
from envs.vector_tasks import VectorTasks

ROOT = Path(__file__).parents[1]
FOVY = 45.0
FOCAL = 120.0 / math.tan(math.radians(FOVY / 2))  # pixels, at a height of 240
HUES = {"sphere": "100", "capsule": "010", "box": "001"}
HUES |= {"cylinder": "110", "ellipsoid": "011", "mesh": "101"}


@pytest.fixture
def with_opengl() -> None:
    if opengl.find_library()[0] is None:
        pytest.skip("no OpenGL here")


@pytest.fixture(params=["software", "opengl"])
def renderer(request: pytest.FixtureRequest) -> Any:
    if request.param == "opengl":
        request.getfixturevalue("with_opengl")
    return request.param


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What the camera logs in this test."""
    monkeypatch.setattr(camera, "_said", set())
    caplog.set_level(logging.INFO, "engram.pictures")
    return caplog


def simulation(xml: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{xml}</mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def robot(file: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = copy.copy(load_gymnasium_model(file))  # tests paint it
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def ball(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> tuple[mujoco.MjModel, mujoco.MjData]:
    return simulation(
        f'<worldbody><light pos="0 -5 5"/><geom pos="{x} {y} {z}" size=".3" rgba="1 0 0 1"/>'
        "</worldbody>"
    )


def red(frame: np.ndarray) -> np.ndarray:
    r, g, b = frame.astype(int).transpose(2, 0, 1)
    return (r > 2 * g) & (r > 2 * b)


def middle(mask: np.ndarray) -> tuple[float, float]:
    """Column and row of a blob's centre, in pixels from the picture's upper left corner."""
    rows, columns = np.nonzero(mask)
    return columns.mean() + 0.5, rows.mean() + 0.5


def test_a_ball_is_drawn_where_and_as_large_as_the_pinhole_says(renderer: Any):
    view = View((0.0, 0.0, 0.0), 3.0, 90.0, 0.0)
    with Camera(320, 240, renderer) as eye:
        mask = red(eye.frame(*ball(), view))
        assert middle(mask) == pytest.approx((160.0, 120.0), abs=0.5)
        radius = FOCAL * 0.3 / math.sqrt(3.0**2 - 0.3**2)
        assert math.sqrt(mask.sum() / math.pi) == pytest.approx(radius, abs=0.7)
        # To the right, upwards, and farther away; seen from -y.
        moved = middle(red(eye.frame(*ball(x=0.5, y=2.0, z=0.25), view)))
        expected = 160.0 + FOCAL * 0.5 / 5.0, 120.0 - FOCAL * 0.25 / 5.0
        assert moved == pytest.approx(expected, abs=0.6)
        assert not red(eye.frame(*ball(y=-5.0), view)).any()  # behind the eye


def crowd() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Two of each shape, turned at random, in front of and into each other, over a floor."""
    rng = np.random.default_rng(3)
    geoms = []
    for kind in list(HUES) * 2:
        place = rng.uniform([-0.8, -0.8, 0.3], [0.8, 0.8, 1.0])
        turn, size = rng.normal(size=4), rng.uniform(0.1, 0.35, 3)
        colour = " ".join(HUES[kind])
        shape = 'type="mesh" mesh="brick"' if kind == "mesh" else f'type="{kind}"'
        geoms.append(
            f'<geom {shape} rgba="{colour} 1" pos="{_text(place)}" quat="{_text(turn)}"'
            f' size="{_text(size)}"/>'
        )
    corners = " ".join(f"{x} {y} {z}" for x in (0, 0.5) for y in (-0.2, 0) for z in (0, 0.3))
    return simulation(
        f'<asset><mesh name="brick" vertex="{corners}"/></asset><worldbody>'
        f'<geom type="plane" size="0 0 1"/>{"".join(geoms)}</worldbody>'
    )


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)


def scene_from(
    model: mujoco.MjModel, data: mujoco.MjData, azimuth: float, elevation: float
) -> mujoco.MjvScene:
    scene, eye = mujoco.MjvScene(model, 100), mujoco.MjvCamera()
    eye.lookat[:], eye.distance, eye.azimuth, eye.elevation = (0, 0, 0.5), 3.0, azimuth, elevation
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, eye, 7, scene)
    return scene


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, -5), (70, -30), (200, -60), (300, -90)])
def test_the_nearest_shape_is_seen_as_mujocos_own_rays_say(azimuth: float, elevation: float):
    model, data = crowd()
    width, height = 160, 120
    frame = Drawer(width, height).draw(model, scene_from(model, data, azimuth, elevation), 0.5)
    bright = frame.max(axis=2, keepdims=True)
    drawn = (frame > 0.5 * bright).astype(int)  # of a pure hue; 1 1 1 is floor or sky
    a, e = math.radians(azimuth), math.radians(elevation)
    forward = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([math.sin(a), -math.cos(a), 0.0])
    up, eye = np.cross(right, forward), np.array([0, 0, 0.5]) - 3.0 * forward
    slope, geom = math.tan(math.radians(FOVY / 2)) / (height / 2), np.zeros(1, np.int32)
    wrong = seen = 0
    for row in range(0, height, 2):
        for column in range(0, width, 2):
            x, y = (column + 0.5 - width / 2) * slope, (height / 2 - row - 0.5) * slope
            ray = forward + x * right + y * up
            mujoco.mj_ray(model, data, eye, ray, None, 1, -1, geom, None)
            hue = model.geom_rgba[geom[0], :3] if geom[0] > 0 else np.ones(3)
            seen += geom[0] > 0
            wrong += not np.array_equal(drawn[row, column], hue)
    assert seen > 500
    assert wrong <= 0.003 * 60 * 80  # rounding at outlines


def test_surfaces_are_met_and_face_as_mujocos_own_rays_say():
    model, data = crowd()
    scene, rng = scene_from(model, data, 70.0, -30.0), np.random.default_rng(0)
    met = set()
    for _ in range(1500):
        eye, target = rng.normal(size=3) * 2.0, rng.uniform([-0.8, -0.8, 0.0], [0.8, 0.8, 1.0])
        ray, geom, normal = target - eye, np.zeros(1, np.int32), np.zeros(3)
        distance = mujoco.mj_ray(model, data, eye, ray, None, 1, -1, geom, normal)
        shape = shape_of(model, scene.geoms[geom[0]]) if geom[0] > 0 else None
        if shape is None or normal @ ray > -0.05 * np.linalg.norm(ray):  # inside, or grazing
            continue
        o, d = shape.turn.T @ (eye - shape.place), shape.turn.T @ ray
        t = shape.meet(o.tolist(), list(d[:, None]))
        assert t == pytest.approx(distance, abs=1e-6)
        facing = shape.turn @ shape.normals((o + t * d)[:, None])
        assert facing[:, 0] == pytest.approx(normal, abs=1e-4)
        met.add(geom[0])
    assert len(met) == 2 * len(HUES)


def test_a_mesh_is_drawn_as_the_box_around_it():
    wedge = "0 0 0  1 0 0  0 .5 0  0 0 .2"
    model, data = simulation(
        f'<asset><mesh name="wedge" vertex="{wedge}"/></asset><worldbody>'
        '<geom type="mesh" mesh="wedge" pos="3 2 1" euler="10 20 30"/></worldbody>'
    )
    shape = shape_of(model, scene_from(model, data, 0.0, 0.0).geoms[0])
    assert shape is not None
    corners = np.array(model.mesh_vert) @ shape.turn.T + data.geom_xpos[0]
    local = (corners - shape.place) @ shape.turn
    assert local.max(axis=0) == pytest.approx(shape.half, abs=1e-6)
    assert local.min(axis=0) == pytest.approx(-shape.half, abs=1e-6)


def test_what_can_be_seen_through_shows_what_is_behind():
    behind = '<geom size=".3" pos="0 1 0" rgba="1 0 0 1"/>'
    glass = '<geom type="box" size=".5 .01 .5" rgba="0 0 1 .5"/>'
    view = View((0.0, 0.0, 0.0), 3.0, 90.0, 0.0)
    with Camera(64, 48, "software") as eye:

        def centre(*geoms: str) -> np.ndarray:
            model = simulation(f"<worldbody>{''.join(geoms)}</worldbody>")
            return eye.frame(*model, view)[24, 32].astype(float)

        both = centre(glass, behind)
        alone, solid = centre(behind), centre(glass.replace('.5"/>', '1"/>'))
        assert both == pytest.approx((alone + solid) / 2, abs=1.5)
        assert np.array_equal(centre(behind, glass), both)
        # A rod whose middle is nearer than the glass, but not the part that is seen through it.
        rod = '<geom type="capsule" fromto="0 1 0 -2 -2 0" size=".1" rgba="1 0 0 1"/>'
        seen = centre(glass.replace(".5 .01 .5", ".2 .01 .2"), rod)
        assert min(seen[0], seen[2]) > seen[1] + 30
        far = '<geom type="box" size=".5 .01 .5" pos="0 .5 0" rgba="0 1 0 .5"/>'
        blue, green, sky = solid, centre(far.replace(' .5"/>', ' 1"/>')), centre()
        layers = 0.5 * blue + 0.25 * green + 0.25 * sky
        assert centre(glass, far) == pytest.approx(layers, abs=2.0)


def test_the_floor_shows_motion_and_has_no_edge(renderer: Any):
    model, data = robot("half_cheetah.xml")
    frames = []
    with Camera(96, 72, renderer) as eye:
        for x in (0.0, 0.3, 0.0, 1000.0):
            data.qpos[0] = x
            mujoco.mj_forward(model, data)
            frames.append(eye.frame(model, data).astype(int))
    start, moved, again, far = frames
    assert np.array_equal(start, again)
    changed = np.abs(start - moved).max(axis=2) > 20
    assert changed[50:].mean() > 0.05  # the tiles
    assert not changed[:22].any()  # the sky
    assert np.abs(start[60:].mean() - far[60:].mean()) < 30
    assert far[60:].std() > 8.0  # tiles there too


def test_a_body_casts_a_shadow_below_itself_that_fades_with_height():
    lightest = []
    with Camera(64, 48, "software") as eye:
        for z in (0.2, 1.0, 20.0):
            with_ball, without = (
                eye.frame(
                    *simulation(
                        '<worldbody><geom type="plane" size="0 0 1"/>'
                        f'<geom size=".2" pos="0 0 {z}" rgba="1 0 0 {alpha}"/></worldbody>'
                    ),
                    View((0.2, 0.2, 0.0), 3.0, 90.0, -40.0),
                ).astype(float)
                for alpha in (1, 0)
            )
            ratio = with_ball / without
            grey = np.ptp(ratio, axis=2) < 0.02  # of the floor; the ball is red
            lightest.append(ratio[grey].min())
    assert lightest[0] < 0.75
    assert lightest[0] + 0.1 < lightest[1] < 0.98
    assert lightest[2] == 1.0


ROBOTS = {
    "half_cheetah.xml": (90.0, -8.0),
    "hopper.xml": (90.0, -8.0),
    "walker2d_v5.xml": (90.0, -8.0),
    "swimmer.xml": (90.0, -60.0),
    "reacher.xml": (90.0, -60.0),
    "ant.xml": (120.0, -20.0),
    "humanoid.xml": (120.0, -20.0),
    "pusher_v5.xml": (120.0, -20.0),
}


@pytest.mark.parametrize("file", ROBOTS)
def test_the_whole_robot_is_in_its_picture_wherever_it_goes(file: str):
    model, data = robot(file)
    travels = file not in ("reacher.xml", "pusher_v5.xml")
    with Camera(96, 72, "software") as eye:
        home = eye.follow(model, data)
        assert (home.azimuth, home.elevation) == ROBOTS[file]
        start = eye.frame(model, data)
        moving = np.flatnonzero(model.body_weldid[model.geom_bodyid] != 0)
        plain = model.geom_rgba.copy()
        model.geom_rgba[moving] = [1, 0, 0, 1]
        mask = red(eye.frame(model, data))
        model.geom_rgba[:] = plain
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert mask.sum() > 80
        assert not edge.any()
        if file == "reacher.xml":
            data.qpos[0] = math.pi  # the other way round
            mujoco.mj_forward(model, data)
            model.geom_rgba[moving] = [1, 0, 0, 1]
            turned = red(eye.frame(model, data))
            assert eye.follow(model, data) == home
            assert middle(turned)[0] + 15 < middle(mask)[0]
            assert not turned[:, :10].any()
        if travels:
            data.qpos[0] += 4.0  # the tiles' period divides it
            mujoco.mj_forward(model, data)
            there = eye.follow(model, data)
            assert there.lookat == pytest.approx((home.lookat[0] + 4.0, *home.lookat[1:]))
            assert np.abs(eye.frame(model, data).astype(int) - start).mean() < 1.0


def test_a_hop_shows_and_a_flight_is_followed():
    model, data = robot("hopper.xml")
    with Camera(96, 72, "software") as eye:
        home = eye.follow(model, data)
        data.qpos[1] += 0.3
        mujoco.mj_forward(model, data)
        assert eye.follow(model, data) == home
        data.qpos[1] += 50.0
        mujoco.mj_forward(model, data)
        assert data.xpos[1, 2] - eye.follow(model, data).lookat[2] < 2.0


def test_a_picture_leaves_the_simulation_alone(renderer: Any):
    model, data = robot("ant.xml")
    data.qvel[:] = 1.0
    mujoco.mj_step(model, data)
    size = mujoco.mj_stateSize(model, int(mujoco.mjtState.mjSTATE_INTEGRATION))

    def state() -> tuple[np.ndarray, ...]:
        now = np.zeros(size)
        mujoco.mj_getState(model, data, now, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        visual = np.array([model.vis.quality.offsamples, model.vis.global_.offwidth])
        return now, data.xpos.copy(), data.cfrc_ext.copy(), model.geom_size.copy(), visual

    before = state()
    with Camera(64, 48, renderer) as eye:
        eye.frame(model, data)
    assert all(np.array_equal(a, b) for a, b in zip(before, state(), strict=True))


def test_tasks_of_one_robot_differ_in_the_picture(renderer: Any):
    model, data = robot("half_cheetah.xml")
    torso = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "torso")
    nominal = model.geom_size[torso, 0]
    areas = []
    with Camera(96, 72, renderer) as eye:
        view = eye.follow(model, data)
        model.geom_rgba[torso], model.geom_matid[torso] = [1, 0, 0, 1], -1
        for scale in (1.0, 3.0):
            model.geom_size[torso, 0] = scale * nominal
            areas.append(red(eye.frame(model, data)).sum())
            assert eye.follow(model, data) == view
    assert areas[1] > 2 * areas[0]


def test_one_camera_serves_different_robots(renderer: Any):
    small = '<worldbody><body><freejoint/><geom size=".1" rgba="1 0 0 1"/></body></worldbody>'
    large = '<worldbody><body><freejoint/><geom size="1"/><geom size="1"/></body></worldbody>'
    with Camera(64, 48, renderer) as both, Camera(64, 48, renderer) as one:
        view = both.follow(*simulation(large))
        both.frame(*simulation(large))
        assert np.array_equal(both.frame(*simulation(small)), one.frame(*simulation(small)))
        assert both.follow(*simulation(small)).distance == pytest.approx(view.distance / 10)


@pytest.mark.parametrize("file", ["half_cheetah.xml", "ant.xml", "humanoid.xml"])
def test_both_renderers_draw_the_same_outline(file: str, with_opengl: None):
    model, data = robot(file)
    model.geom_matid[:], model.geom_rgba[:] = -1, [1, 0, 0, 1]
    model.geom_rgba[0, 3] = 0.0  # the floor
    scene, theirs = scene_from(model, data, 70.0, -10.0), opengl.Renderer(320, 240)
    masks = [red(each.draw(model, scene, 0.5)) for each in (Drawer(320, 240), theirs)]
    theirs.close()
    assert masks[0].sum() > 1000
    assert (masks[0] ^ masks[1]).sum() / masks[0].sum() < 0.03


def test_without_opengl_the_drawer_steps_in_and_says_so_once(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opengl, "find_library", lambda: (None, "there is none"))
    model, data = robot("hopper.xml")
    with Camera(64, 48, "software") as eye:
        expected = eye.frame(model, data)
    for _ in range(2):
        with Camera(64, 48) as eye:
            assert np.array_equal(eye.frame(model, data), expected)
    assert said.messages == ["pictures come from the software drawer: there is none"]
    sims = Numbers()
    sims.look = lambda row: cast(Any, (model, data))
    with Camera(64, 48, "opengl") as eye:
        for draw in (lambda: eye.frame(model, data), lambda: eye.look(sims, 0)):
            with pytest.raises(opengl.NoOpenGlError, match="there is none"):
                draw()


def test_opengl_that_fails_while_drawing_gives_way(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    class Broken(opengl.Renderer):
        def __init__(self, width: int, height: int) -> None:
            self.close = lambda: None

        def draw(self, *_: object) -> np.ndarray:
            raise mujoco.FatalError("gone")

    monkeypatch.setattr(opengl, "Renderer", Broken)
    with Camera(64, 48) as eye, Camera(64, 48, "software") as plain:
        for _ in range(2):
            frame = eye.frame(*robot("hopper.xml"))
        assert np.array_equal(frame, plain.frame(*robot("hopper.xml")))
    assert said.messages == [
        "pictures come from the software drawer: OpenGL failed while drawing: gone"
    ]


DRAW = """
import logging, sys
logging.basicConfig(format="%(message)s")
from envs.drawing.camera import Camera
from envs.simulation import load_gymnasium_model
import mujoco
model = load_gymnasium_model("hopper.xml")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
eye = Camera(64, 48, sys.argv[1])  # never closed, as users do
assert eye.frame(model, data).std() > 10
"""


def draw_elsewhere(renderer: str, path: Path, **environment: str) -> list[str]:
    """What a process of its own prints when it makes a picture."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, renderer],
        capture_output=True,
        text=True,
        env={**clean, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **environment},
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("print('noise'); raise ImportError('no such library')", "no such library"),
        ("import os; os.kill(os.getpid(), 11)", "exit status -11"),
    ],
)
def test_a_driver_that_fails_or_crashes_does_no_harm(tmp_path: Path, bad: str, reason: str):
    package = tmp_path / "OpenGL"
    package.mkdir()
    (package / "__init__.py").write_text(bad)
    lines = draw_elsewhere("auto", tmp_path)
    assert len(lines) == 1, lines
    assert lines[0].startswith("pictures come from the software drawer: OpenGL does not work")
    assert reason in lines[0]


def test_mujocos_own_switch_is_obeyed(tmp_path: Path):
    lines = draw_elsewhere("auto", tmp_path, MUJOCO_GL="disable")
    assert lines == ["pictures come from the software drawer: MUJOCO_GL=disable rules OpenGL out"]


def test_opengl_opens_long_after_mujoco_and_silently(tmp_path: Path, with_opengl: None):
    assert draw_elsewhere("opengl", tmp_path) == []


class Numbers(VectorTasks):
    """Rows whose pictures are plain: 20 times the row plus the step; row 1 ends after 3 steps."""

    def __init__(self, rows: int = 3, blow_up: bool = False) -> None:
        self.tasks, self.copies, self.physics_s = cast(Any, [None] * rows), 1, 0.0
        self.rows, self.now, self.blow_up, self.closed = rows, 0, blow_up, False
        self.actions: list[np.ndarray] = []

    def reset(self, seed: int) -> np.ndarray:
        """Count from 0."""
        self.now = 0
        return np.full((self.rows, 1, 1), float(seed))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        """Count on."""
        self.now += 1
        self.actions.append(action)
        ended = np.zeros((self.rows, 1), dtype=bool)
        ended[1] = self.now >= 3 and not self.blow_up
        return np.full((self.rows, 1, 1), float(self.now)), ended * 1.0, ended, ended & False

    @property
    def diverged(self) -> np.ndarray:
        """Row 1, if it should."""
        flags = np.zeros((self.rows, 1), dtype=bool)
        flags[1] = self.blow_up and self.now >= 3
        return flags

    def look(self, row: int) -> np.ndarray:
        """Row and step as a shade."""
        return np.full((48, 64, 3), 20 * row + self.now, np.uint8)

    def close(self) -> None:
        """Note it."""
        self.closed = True


def values(frames: list[np.ndarray]) -> list[int]:
    assert all((frame == frame[0, 0, 0]).all() for frame in frames)
    return [int(frame[0, 0, 0]) for frame in frames]


def test_a_film_is_an_episode_of_the_policy():
    sims, seen = Numbers(), []

    def act(obs: np.ndarray) -> np.ndarray:
        seen.append(obs[0, 0, 0])
        return obs

    with Camera(64, 48) as eye:
        assert values(pictures.film(sims, act, 5, eye, row=2, seed=7)) == [40, 41, 42, 43, 44, 45]
        assert seen == [7, 1, 2, 3, 4]
        assert values(pictures.film(sims, act, 9, eye, row=1)) == [20, 21, 22, 23]  # it ended
        assert values(pictures.film(sims, act, 7, eye, every=3)) == [0, 3, 6, 7]
        frames = pictures.film(Numbers(blow_up=True), act, 9, eye, row=1)
        assert values(frames[:3]) == [20, 21, 22]
        assert np.array_equal(frames[3], card("the simulation blew up", 64, 48))
        assert len(frames) == 4


def test_a_sheet_of_tasks_shows_each_under_its_label():
    sims = Numbers()
    family = types.SimpleNamespace(
        id="numbers:v1",
        action_range=(np.array([-1.0, 0.0]), np.array([0.0, 2.0])),
        open=lambda tasks, copies: sims,
        label=lambda task: f"task {task}",
    )
    with Camera(64, 48) as eye:
        sheet = pictures.task_sheet(cast(Any, family), cast(Any, [4, 5, 6]), eye, steps=10)
    expected = side_by_side(
        [np.full((48, 64, 3), value, np.uint8) for value in (10, 23, 50)],
        ["task 4", "task 5", "task 6"],
        title="numbers:v1",
    )
    assert np.array_equal(np.asarray(sheet), np.asarray(expected))
    assert sims.closed
    moves = np.stack(sims.actions)
    assert moves.shape == (10, 3, 1, 2)
    assert np.array_equal(moves[:, 0], moves[:, 1])  # what differs is the tasks
    assert moves[..., 0].max() <= 0.0 <= moves[..., 1].min()
    assert moves[..., 1].max() > 1.0
    assert len(np.unique(moves[:, 0, 0, 0])) == 10


def test_a_camera_looks_at_whatever_there_is(said: pytest.LogCaptureFixture):
    class Odd(Numbers):
        def look(self, row: int) -> Any:
            if row == 0:
                return None
            if row == 1:
                return np.full((10, 40, 3), 200, np.uint8)
            if row == 2:
                raise ZeroDivisionError("their render() is broken")
            model, data = robot("hopper.xml")
            data.qpos[0] = np.nan
            mujoco.mj_kinematics(model, data)
            return model, data

    with Camera(64, 48) as eye:
        nothing, pixels, broken, blown = (eye.look(Odd(), row) for row in range(4))
    assert np.array_equal(nothing, card("no picture", 64, 48))
    assert (pixels[16:32] == 200).all()  # 40 x 10 becomes 64 x 16, in the middle
    assert not (pixels[[0, 15, 32, 47]] == 200).any()
    assert np.array_equal(broken, card("no picture: their render() is broken", 64, 48))
    assert blown.shape == (48, 64, 3)
    assert said.messages[0] == "no picture: ZeroDivisionError: their render() is broken"
    assert "not finite" in said.messages[1]
    assert fit(pixels, 64, 48) is not pixels


def test_frames_can_be_written_to():
    with Camera(64, 48) as eye:
        for frame in (eye.look(Numbers(), 1), eye.frame(*robot("hopper.xml")), card("x")):
            frame[:] = 0


@pytest.mark.parametrize("settings", [{"width": 0}, {"height": 0}, {"renderer": "vulkan"}])
def test_a_camera_that_cannot_be_is_refused(settings: Any):
    with pytest.raises(TaskError, match=next(iter(settings))):
        Camera(**settings)


def plain(*levels: int) -> list[np.ndarray]:
    return [np.full((20, 30, 3), level, np.uint8) for level in levels]


def test_a_sheet_keeps_order_and_writes_below():
    sheet = np.asarray(side_by_side(plain(10, 20, 30, 40, 50), list("abcde"), columns=3)).astype(
        int
    )
    for i, level in enumerate((10, 20, 30, 40, 50)):
        here = np.argwhere((sheet == level).all(axis=2))
        assert len(here) >= 20 * 30
        top = here[0]
        area = sheet[top[0] : top[0] + 20, top[1] : top[1] + 30]
        assert (area == level).all()
        assert tuple(top) == (6 + (len(sheet) - 6) // 2 * (i // 3), 6 + 36 * (i % 3))
        below = sheet[top[0] + 20 : top[0] + 36, top[1] : top[1] + 30]
        assert below.min() < 120 < below.mean()  # ink on paper
    bare = np.asarray(side_by_side(plain(10, 20)))
    assert bare.shape == (20 + 12, 2 * 36 + 6, 3)


def test_long_labels_are_broken_into_lines_that_fit():
    short = side_by_side(plain(0), ["a"])
    for label in ("several words in it", "oneverylongword"):
        sheet = side_by_side(plain(0), [label])
        assert sheet.height > short.height
        ink = np.asarray(sheet)[26:].min(axis=2) < 128
        assert ink.any()
        assert not ink[:, :4].any()
        assert not ink[:, -4:].any()
    assert side_by_side(plain(0), [""]).width == short.width


@pytest.mark.parametrize(
    ("frames", "labels"),
    [([], []), (plain(1, 2), ["one"]), ([*plain(1), np.zeros((5, 5, 3), np.uint8)], [])],
)
def test_a_sheet_that_cannot_be_is_refused(frames: Any, labels: Any):
    with pytest.raises(TaskError, match="expected frames of one shape, and a label for each"):
        side_by_side(frames, labels)


def test_a_point_and_its_goals_are_where_they_should_be():
    goals = np.array([[1.0, 0.5], [-1.0, 0.5]])
    frame = point_picture(
        np.array([0.5, -0.5]), goals, [[0.0, 0.0]], reach=1.25, width=300, height=200
    )
    scale = 100 / 1.25
    for place, colour in (([0.5, -0.5], "blue"), (goals[0], "red"), (goals[1], "red")):
        column, row = 150 + place[0] * scale, 100 - place[1] * scale
        r, _, b = frame[round(row), round(column)].astype(int)
        assert (r > b + 50) if colour == "red" else (b > r + 50)
    on_trail = frame[round(100 + 0.25 * scale), round(150 + 0.25 * scale)].astype(int)
    off_trail = frame[round(100 - 0.25 * scale), round(150 + 0.25 * scale)].astype(int)
    assert on_trail[2] - on_trail[0] > 40
    assert abs(off_trail[2] - off_trail[0]) < 10
    ring = point_picture(np.zeros(2), np.array([0.5, 0.5]), width=300, height=200, tolerance=0.2)
    edge = ring[
        round(100 - 0.5 * scale), round(150 + 0.7 * scale) - 1 : round(150 + 0.7 * scale) + 2
    ]
    assert (edge[:, 0].astype(int) - edge[:, 2] > 30).any()


def moving(count: int) -> list[np.ndarray]:
    """Frames that all differ, brighter and brighter."""
    frames = []
    for i in range(count):
        frame = np.full((31, 41, 3), 8 * i, np.uint8)
        frame[:, 3 * i : 3 * i + 3] = 255 - 8 * i
        frames.append(frame)
    return frames


@pytest.mark.parametrize(("suffix", "tolerance_ms"), [(".webp", 1), (".gif", 10)])
@pytest.mark.parametrize("fps", [12.5, 30, 60])
def test_a_video_has_its_frames_in_order_and_at_their_pace(
    tmp_path: Path, suffix: str, tolerance_ms: int, fps: float
):
    path, frames = tmp_path / "deep" / f"film{suffix}", moving(12)
    pictures.write_video(path, frames, fps)
    with Image.open(path) as video:
        assert (video.n_frames, video.size, video.info["loop"]) == (12, (41, 31), 0)
        total = 0.0
        for i, frame in enumerate(frames):
            video.seek(i)
            shown = np.asarray(video.convert("RGB")).astype(int)
            assert np.abs(shown - frame).mean() < 12
            total += video.info["duration"]
            assert abs(total - (i + 1) * 1000 / fps) <= tolerance_ms / 2 + 1e-9
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_picture_is_written_without_loss(tmp_path: Path):
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for image in (frame, Image.fromarray(frame)):
        pictures.write_png(tmp_path / "a.png", image)
        with Image.open(tmp_path / "a.png") as read:
            assert np.array_equal(np.asarray(read), frame)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "film.webp"
    path.write_text("old")

    def cut_off(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(OSError, match="disk full"):
        pictures.write_video(path, moving(2), 10)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["film.webp"]


def test_an_mp4_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(TaskError, match=r"pip install 'engram-rl\[video\]'"):
        pictures.write_video(tmp_path / "film.mp4", moving(2), 10)
    assert list(tmp_path.iterdir()) == []


def test_an_mp4_gets_every_frame_with_even_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    got: list[Any] = []

    def write_frames(path: str, size: tuple[int, int], fps: float, **_: object) -> Any:
        got.append((size, fps))
        try:
            while True:
                got.append((yield))
        finally:
            Path(path).write_text("film")

    fake = types.SimpleNamespace(write_frames=write_frames)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", cast(Any, fake))
    pictures.write_video(tmp_path / "film.mp4", moving(3), 25)
    assert got[0] == ((40, 30), 25)
    assert len(got) == 4
    for written, frame in zip(got[1:], moving(3), strict=True):
        assert np.array_equal(written, frame[:30, :40])
        assert written.flags.c_contiguous
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(
    ("name", "count", "fps", "message"),
    [
        ("a.avi", 2, 10, r"one of .webp, .gif, .mp4, got '.avi'"),
        ("a", 2, 10, "got ''"),
        ("a.webp", 0, 10, "0 frames"),
        ("a.webp", 2, 0, "fps=0"),
        ("a.webp", 2, math.nan, "fps=nan"),
    ],
)
def test_a_video_that_cannot_be_is_refused(
    tmp_path: Path, name: str, count: int, fps: float, message: str
):
    with pytest.raises(TaskError, match=message):
        pictures.write_video(tmp_path / name, moving(count), fps)


def test_a_picture_is_a_png(tmp_path: Path):
    with pytest.raises(TaskError, match=r"written as .png, got '.jpg'"):
        pictures.write_png(tmp_path / "a.jpg", plain(1)[0])


def test_a_view_can_be_changed():
    model, data = robot("half_cheetah.xml")
    with Camera(96, 72, "software") as eye:
        view = eye.follow(model, data)
        near = dataclasses.replace(view, distance=view.distance / 2)
        areas = []
        model.geom_rgba[1:] = [1, 0, 0, 1]
        areas = [red(eye.frame(model, data, v)).sum() for v in (view, near)]
    assert areas[1] > 2 * areas[0]
