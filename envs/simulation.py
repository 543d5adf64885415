# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""The native engine: many MuJoCo simulations stepped on a thread pool by ``mujoco.batch.Batch``.

Measured beside ``mujoco.rollout`` (``scripts/benchmark.py``): as fast, and the only one of the two
that keeps the solver's warm start, so that it equals gymnasium's own environments bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
from mujoco import batch

from envs.task import Param, Task, TaskDistribution, TaskError, VectorTasks

_log = logging.getLogger("engram.mujoco")
# MuJoCo would print each warning and append it to MUJOCO_LOG.TXT in the user's folder. Divergence,
# the one that matters, is read from the warning counters instead (see SimulatedTasks.step).
mujoco.set_mju_user_warning(_log.debug)

UNSTABLE = [
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
]
"""Warning counters of a simulation that blew up."""
_TARGET = re.compile(r"(?P<field>\w+)(\[(?P<key>[^\]]+)\])?$")
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


@functools.cache
def load_gymnasium_model(file: str) -> mujoco.MjModel:
    """The model that gymnasium ships for its own MuJoCo environments."""
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gymnasium is not installed; its model files are needed")
    path = Path(spec.origin).parent / "envs" / "mujoco" / "assets" / file
    return mujoco.MjModel.from_xml_path(str(path))


@contextlib.contextmanager
def naming(family: str, name: str) -> Iterator[None]:
    """Errors inside say which parameter of which family they are about."""
    try:
        yield
    except ValueError as error:
        raise TaskError(f"{family}.params.{name}: {error}") from error


def apply_op(op: str, nominal: np.ndarray | float, values: np.ndarray) -> np.ndarray:
    """The nominal value set to, scaled or shifted by ``values [B]``: ``[B, *nominal.shape]``."""
    nominal = np.asarray(nominal, dtype=np.float64)
    column = values.reshape(-1, *[1] * nominal.ndim)
    if op == "scale":
        return nominal * column
    if op == "add":
        return nominal + column
    return np.broadcast_to(column, (len(values), *nominal.shape))


def write_model_param(
    param: Param, values: np.ndarray, model: mujoco.MjModel, rows: Callable[[str], np.ndarray]
) -> None:
    """Write one ``model:`` or ``option:`` parameter of B simulations.

    Args:
        param: Where the values land.
        values: ``[B]``, each simulation's value.
        model: The nominal model, only read: applying a task twice equals applying it once.
        rows: Gives the writable array ``[B, ...]`` of a field, by name (options: ``opt.gravity``).

    Scaling a body's mass scales its inertia alike: the same shape of a denser material.
    """
    kind, _, target = param.to.partition(":")
    match = _TARGET.match(target)
    if match is None:
        raise TaskError(f"{param.to!r}: expected {kind}:FIELD or {kind}:FIELD[NAME]")
    name, key = match["field"], match["key"]
    source = model.opt if kind == "option" else model
    whole = np.asarray(getattr(source, name, None))
    if whole.dtype.kind != "f":  # integers are structure (ids, flags), or would cut a value short
        raise TaskError(f"{param.to!r}: MuJoCo's {kind} has no field of real numbers {name!r}")
    index = () if key is None else (_row(model, name, key),)
    if index and (whole.ndim == 0 or index[0] >= len(whole)):
        raise TaskError(f"{param.to!r}: {name} has no such row; its shape is {whole.shape}")
    fields = [name, "body_inertia"] if (name, param.op) == ("body_mass", "scale") else [name]
    for each in fields:
        nominal = np.asarray(getattr(source, each))[index]
        target_rows = rows(f"opt.{each}" if kind == "option" else each)
        target_rows[:, *index] = apply_op(param.op, nominal, values)


def write_one_model(
    model: mujoco.MjModel, param: Param, value: float, nominal: mujoco.MjModel
) -> None:
    """Write one ``model:`` or ``option:`` parameter, relative to nominal, into a model."""
    numbers = {}  # MuJoCo hands single numbers out by value, so they are written back below

    def rows(field: str) -> np.ndarray:
        source, name = (model.opt, field[4:]) if field.startswith("opt.") else (model, field)
        found = getattr(source, name)
        return found[None] if np.ndim(found) else numbers.setdefault(name, np.zeros(1))

    write_model_param(param, np.array([value]), nominal, rows)
    for name, number in numbers.items():
        setattr(model.opt, name, float(number[0]))


def _row(model: mujoco.MjModel, field: str, key: str) -> int:
    """Index of the row that ``key``, a number or a MuJoCo name, stands for."""
    if key.isdigit():
        return int(key)
    kind = _ROWS_OF.get(field.split("_")[0])
    index = -1 if kind is None else mujoco.mj_name2id(model, kind, key)
    if kind is None or index < 0:
        raise TaskError(
            f"{field}[{key}]: no row of that name in the model; use a name from the XML or a number"
        )
    if field.startswith("dof"):  # a joint's name stands for its first degree of freedom
        return int(model.jnt_dofadr[index])
    return index


class SimulatedTasks(VectorTasks):
    """T x E simulations of one MuJoCo model, each with its task's model fields.

    Subclasses read the state and say what is observed and rewarded: ``B = T * E`` rows, task by
    task.
    """

    frame_skip: int = 1
    """Physics steps per control step."""

    def __init__(
        self, model: mujoco.MjModel, family: TaskDistribution, tasks: Sequence[Task], copies: int
    ) -> None:
        self.tasks, self.copies, self.physics_s = tasks, copies, 0.0
        self._horizon, self._steps = family.horizon, 0
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        self._batch = batch.Batch(model, nsim=len(tasks) * copies, nthread=threads)
        self.model = model
        self.qpos, self.qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._time = self._batch.bind("time")
        self._diverged = np.zeros(len(tasks) * copies, dtype=bool)
        self._write_params(family)
        timestep = self._batch.expanded("opt.timestep")
        self.dt = (model.opt.timestep if timestep is None else timestep.copy()) * self.frame_skip
        """Seconds per control step; ``[B]`` where tasks differ in it."""

    def _write_params(self, family: TaskDistribution) -> None:
        """Give each simulation its task's model fields and attributes (arrays ``[B]``)."""
        for name, param in family.params.items():
            values = np.repeat([task.values[name] for task in self.tasks], self.copies)
            with naming(family.name, name):
                self._write_param(param, values)
        self._batch.set_const()

    def _write_param(self, param: Param, values: np.ndarray) -> None:
        kind, _, target = param.to.partition(":")
        nominal = getattr(type(self), target, None)
        if kind == "attr" and isinstance(nominal, float):
            setattr(self, target, apply_op(param.op, nominal, values))
        elif kind in ("model", "option"):
            write_model_param(param, values, self.model, self._batch.expand)
        else:
            raise TaskError(
                f"{param.to!r} is nothing that this native family can change; "
                "use model:, option:, or attr: with an attribute of the family"
            )

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every simulation."""
        rng = np.random.default_rng(seed)
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._diverged[:] = False
        self._steps = 0
        self.sample_reset(rng)
        self._batch.forward()
        return self._shaped(self.observe())

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One control step of every simulation."""
        flat = action.reshape(len(self.qpos), -1)
        before = self.before_step()
        self._ctrl[:] = flat
        time_before = self._time.copy()
        started = time.perf_counter()
        self._batch.step(nstep=self.frame_skip)
        self.physics_s += time.perf_counter() - started
        # A blown-up simulation is reset by MuJoCo without a word and looks healthy afterwards: only
        # its counters (cleared by that same reset, so at most 1) and its clock, set back to zero,
        # tell.
        unstable = self._batch.warning[:, UNSTABLE, 1].any(axis=1) | (self._time < time_before)
        self._diverged |= unstable
        reward = self.reward(before, flat)
        reward[self._diverged] = 0.0
        self._steps += 1
        truncated = np.full(len(flat), self._steps >= self._horizon)
        return (
            self._shaped(self.observe()),
            self._shaped(reward),
            self._shaped(self.terminated()),
            self._shaped(truncated),
        )

    @property
    def diverged(self) -> np.ndarray:
        """``[T, E]``: simulations that MuJoCo had to reset since the last ``reset``."""
        return self._shaped(self._diverged)

    @abstractmethod
    def sample_reset(self, rng: np.random.Generator) -> None:
        """Write the starting ``qpos`` and ``qvel`` of all B simulations."""

    @abstractmethod
    def before_step(self) -> np.ndarray:
        """Whatever ``reward`` needs to know of the state before the step (a copy)."""

    @abstractmethod
    def observe(self) -> np.ndarray:
        """Observation ``[B, O]``."""

    @abstractmethod
    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Reward ``[B]`` of the step just made with ``action [B, A]``."""

    def terminated(self) -> np.ndarray:
        """``[B]`` bool: episodes that the task itself has ended; never, unless a family says so."""
        return np.zeros(len(self.qpos), dtype=bool)

    def _shaped(self, rows: np.ndarray) -> np.ndarray:
        """``[B, ...] -> [T, E, ...]``, a copy that later steps do not change."""
        return rows.reshape(len(self.tasks), self.copies, *rows.shape[1:]).copy()
