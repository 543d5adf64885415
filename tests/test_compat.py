# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""Other people's suites on current MuJoCo: mended where broken, else left alone or named."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

import envs.compat as compat
from envs.param import TaskError


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(compat.missing(package)), reason=compat.missing(package))


@pytest.mark.parametrize("name", ["metaworld", "dm_control", "gymnasium_robotics"])
def test_what_is_missing_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "find_spec", lambda _: None)
    with pytest.raises(TaskError, match=rf"{name} is not installed; .*pip install .*{name}=="):
        getattr(compat, f"import_{name}")()


def stand_in(monkeypatch: pytest.MonkeyPatch, package: str, part: str, **content: Any) -> None:
    """A package of which compat finds nothing but one module with this content."""
    monkeypatch.setattr(compat, "find_spec", lambda _: True)
    monkeypatch.setattr(compat, "version", lambda _: "9.9")
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    names = package.split(".") + part.split(".")
    for i in range(1, len(names) + 1):
        module = ModuleType(".".join(names[:i]))
        vars(module).update(content if i == len(names) else {"__path__": []})
        monkeypatch.setitem(sys.modules, module.__name__, module)


def old_welds(env: Any) -> None:
    env.model.eq_data[0] = np.array([0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5.0])


def new_welds(env: Any) -> None:
    env.model.eq_data[0] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5.0, 0]


def test_welds_are_mended_where_they_are_broken_and_only_there(monkeypatch: pytest.MonkeyPatch):
    for written, mended in ((old_welds, True), (new_welds, False)):
        base: Any = type("SawyerMocapBase", (), {"reset_mocap_welds": written})
        stand_in(monkeypatch, "metaworld", "sawyer_xyz_env", SawyerMocapBase=base)
        compat.import_metaworld()
        first = base.reset_mocap_welds
        assert (first is not written) == mended
        compat.import_metaworld()
        assert base.reset_mocap_welds is first
    types = [int(mujoco.mjtEq.mjEQ_JOINT), int(mujoco.mjtEq.mjEQ_WELD)]
    model = SimpleNamespace(nmocap=1, eq_type=np.array(types), eq_data=np.ones((2, 12)))
    compat._reset_welds(SimpleNamespace(model=model))
    # MuJoCo 4's twelfth number lets mj_setConst choose the pose if it is not 0.
    assert model.eq_data.tolist() == [[1] * 12, [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5, 0]]


def test_arrays_that_mujoco_has_no_longer_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    sizes = {"mjmodel": {"body_mass": ("nbody",), "flex_vertedge": ()}, "mjdata": {"qpos": ("nq",)}}
    part = "mujoco.wrapper.mjbindings.sizes"
    stand_in(monkeypatch, "dm_control", part, array_sizes=sizes)
    for _ in range(2):
        compat.import_dm_control()
        assert sizes == {"mjmodel": {"body_mass": ("nbody",)}, "mjdata": {"qpos": ("nq",)}}


def test_suites_of_an_unknown_form_are_named(monkeypatch: pytest.MonkeyPatch):
    known = f"9.9 with mujoco {mujoco.__version__}: .*another version work: pip install"
    stand_in(monkeypatch, "metaworld", "elsewhere")
    with pytest.raises(TaskError, match=r"metaworld 9.9 .*no module sawyer_xyz_env"):
        compat.import_metaworld()
    stand_in(monkeypatch, "metaworld", "sawyer_xyz_env", SawyerMocapBase=object)
    with pytest.raises(TaskError, match=f"metaworld {known}"):
        compat.import_metaworld()
    stand_in(monkeypatch, "dm_control", "mujoco.wrapper.mjbindings.sizes", array_sizes={})
    with pytest.raises(TaskError, match=f"dm_control {known}"):
        compat.import_dm_control()

    def never(*_: Any) -> None:
        raise AssertionError

    part = "utils.mujoco_utils"
    stand_in(monkeypatch, "gymnasium_robotics", part, get_joint_qpos=never, mujoco=mujoco)
    with pytest.raises(TaskError, match="its known defect is there, but not in the known form"):
        compat.import_gymnasium_robotics()


@needs("gymnasium_robotics")
@pytest.mark.parametrize("name", ["FetchReach-v4", "HandReach-v3", "FrankaKitchen-v1"])
def test_gymnasium_robotics_runs(name: str):
    env: Any = gymnasium.make(f"envs.robotics:{name}")
    starts = [env.reset(seed=0)[0]["observation"].copy() for _ in range(2)]
    assert np.array_equal(starts[0], starts[1])
    moved = [env.step(env.action_space.high)[0]["observation"] for _ in range(10)][-1]
    env.close()
    assert np.abs(moved - starts[1]).max() > 1e-3


@needs("dm_control")
@needs("shimmy")
@pytest.mark.parametrize("name", ["cheetah-run", "reacher-easy"])
def test_dm_control_runs(name: str):
    env: Any = gymnasium.make(f"envs.dm_suite:dm_control/{name}-v0")
    start = env.reset(seed=0)[0]
    for _ in range(10):
        obs, reward, *_ = env.step(env.action_space.high)
    env.close()
    assert 0.0 <= reward <= 1.0
    assert np.abs(obs["position"] - start["position"]).max() > 1e-3
