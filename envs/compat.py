# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""Suites of other people on current MuJoCo: import one here and what MuJoCo changed is mended.

Each function tries the package's own code first and mends it only if that fails, so a version that
was fixed is left alone, a second call does nothing, and code of an unknown form is an error.
Measured with mujoco 4.0.0: Meta-World 3.1.1, dm_control 1.0.50, Gymnasium-Robotics 1.4.2.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import mujoco
import numpy as np

from envs.param import TaskError

INSTALL = {
    # Its pin of mujoco==3.3.0 would undo MuJoCo 4; all else that it needs is installed already.
    "metaworld": "pip install --no-deps metaworld==3.1.1",
    "dm_control": "pip install dm_control==1.0.50 shimmy==2.0.1",
    "shimmy": "pip install shimmy==2.0.1",
    "gymnasium_robotics": "pip install gymnasium_robotics==1.4.2",
}
"""How to install the versions that are known here, by the name of the package."""

_WELD = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0]
"""Meta-World's weld between its mocap body and the hand: anchor, relative pose, torque scale."""
_HINGE = "<mujoco><worldbody><body><joint name='j'/><geom size='1'/></body></worldbody></mujoco>"


def missing(package: str) -> str:
    """What is missing and how to install it; empty if the package is there."""
    if find_spec(package) is not None:
        return ""
    return f"{package} is not installed; install it with: {INSTALL[package]}"


def import_package(package: str) -> ModuleType:
    """The package, or an error with the command that installs it."""
    if message := missing(package):
        raise TaskError(message)
    return importlib.import_module(package)


def import_metaworld() -> ModuleType:
    """Meta-World, which writes rows of 11 numbers into ``eq_data``, where MuJoCo has 12 by now.

    The twelfth says that ``mj_setConst`` may choose the relative pose; here it must not.
    """
    package = import_package("metaworld")
    base = _part("metaworld", "sawyer_xyz_env").SawyerMocapBase
    _mend(package, lambda: _welds(base), lambda: setattr(base, "reset_mocap_welds", _reset_welds))
    return package


def import_dm_control() -> ModuleType:
    """dm_control, which asks MuJoCo for arrays that it has no longer."""
    package = import_package("dm_control")
    known = _part("dm_control", "mujoco.wrapper.mjbindings.sizes").array_sizes
    owners = {"mjmodel": mujoco.MjModel, "mjdata": mujoco.MjData}

    def gone() -> list[tuple[str, str]]:
        return [(k, name) for k, c in owners.items() for name in known[k] if not hasattr(c, name)]

    def forget() -> None:
        for kind, name in gone():
            del known[kind][name]

    _mend(package, lambda: not gone(), forget)
    return package


def import_gymnasium_robotics() -> ModuleType:
    """Gymnasium-Robotics, which looks a joint's type up in a tuple of MuJoCo's enumeration.

    An element of an array equals a member of the enumeration only if it stands on the left.
    """
    package = import_package("gymnasium_robotics")
    utils = _part("gymnasium_robotics", "utils.mujoco_utils")

    def compare_numbers() -> None:
        with_numbers = ModuleType("mujoco")
        vars(with_numbers).update(vars(mujoco))
        members = mujoco.mjtJoint.__members__
        vars(with_numbers)["mjtJoint"] = SimpleNamespace(**{k: int(v) for k, v in members.items()})
        utils.mujoco = with_numbers

    _mend(package, lambda: _finds_hinges(utils), compare_numbers)
    return package


def _part(package: str, module: str) -> Any:
    try:
        return importlib.import_module(f"{package}.{module}")
    except ModuleNotFoundError as error:
        raise _unknown(package, f"it has no module {module}") from error


def _mend(package: ModuleType, works: Callable[[], bool], mend: Callable[[], None]) -> None:
    """Call ``mend`` if the package does not work; an error if it does not work even then."""
    name = package.__name__
    try:
        if not works():
            mend()
        mended = works()
    except (AttributeError, KeyError, TypeError) as error:
        raise _unknown(name, f"{type(error).__name__}: {error}") from error
    if not mended:
        raise _unknown(name, "its known defect is there, but not in the known form")


def _unknown(package: str, what: str) -> TaskError:
    return TaskError(
        f"{package} {version(package)} with mujoco {mujoco.__version__}: {what}. "
        f"envs/compat.py makes another version work: {INSTALL[package]}"
    )


def _welds(base: Any) -> bool:
    """Whether Meta-World's class can write its weld into the rows that MuJoCo has."""
    weld = np.array([int(mujoco.mjtEq.mjEQ_WELD)], dtype=np.int32)
    model = SimpleNamespace(nmocap=1, neq=1, eq_type=weld, eq_data=np.ones((1, mujoco.mjNEQDATA)))
    try:
        base.reset_mocap_welds(SimpleNamespace(model=model))
    except ValueError:  # could not broadcast 11 numbers into 12
        return False
    return model.eq_data[0].tolist() == _WELD + [0.0] * (mujoco.mjNEQDATA - len(_WELD))


def _reset_welds(env: Any) -> None:
    """What ``SawyerMocapBase.reset_mocap_welds`` becomes."""
    rows = np.equal(env.model.eq_type, int(mujoco.mjtEq.mjEQ_WELD))
    if env.model.nmocap > 0:
        env.model.eq_data[rows] = 0.0
        env.model.eq_data[rows, : len(_WELD)] = _WELD


def _finds_hinges(utils: Any) -> bool:
    model = mujoco.MjModel.from_xml_string(_HINGE)
    try:
        utils.get_joint_qpos(model, mujoco.MjData(model), "j")
    except AssertionError:  # neither hinge nor slide
        return False
    return True
