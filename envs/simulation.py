# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""The native engine: many MuJoCo simulations stepped on a thread pool by ``mujoco.batch.Batch``.

Measured beside ``mujoco.rollout`` (``scripts/benchmark.py``): as fast, and the only one of the two
that keeps the solver's warm start, so that it equals gymnasium's own environments bit for bit.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import mujoco
import numpy as np
from mujoco import batch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.model_fields import couples_inertia, naming, write_field
from envs.param import apply_op
from envs.task import Task, TaskDistribution, TaskError, VectorTasks
from envs.variants import Settings, complete

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
Integrator = Literal["model", "Euler", "implicitfast", "RK4"]
# A sensor of this name makes MuJoCo compute contact forces (cfrc_ext) within mj_step.
_CONTACT_SENSOR = "engram_contact_forces"


@functools.cache
def load_model(
    path: Path,
    integrator: Integrator = "model",
    resized: bool = False,
    contact_sensor: bool = False,
) -> mujoco.MjModel:
    """A compiled model, shared by all who ask for the same; nobody may write to it.

    Args:
        path: XML file.
        integrator: What to replace the model's own by.
        resized: Whether geoms will change in size, which MuJoCo's mid-phase would not notice.
        contact_sensor: Whether ``mj_step`` shall compute contact forces.
    """
    if contact_sensor:
        spec = mujoco.MjSpec.from_file(str(path))
        spec.add_sensor(
            name=_CONTACT_SENSOR,
            type=mujoco.mjtSensor.mjSENS_FRAMELINACC,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            objname=spec.bodies[1].name,
        )
        model = spec.compile()
    else:
        model = mujoco.MjModel.from_xml_path(str(path))
    if resized:
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
    if integrator != "model":
        model.opt.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator.upper()}")
    return model


def gymnasium_asset(file: str) -> Path:
    """A model file that gymnasium ships for its own MuJoCo environments."""
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gymnasium is not installed; its model files are needed")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets" / file


def load_gymnasium_model(file: str) -> mujoco.MjModel:
    """The model of one of gymnasium's own MuJoCo environments."""
    return load_model(gymnasium_asset(file))


class SimulatedTasks(VectorTasks):
    """T x E simulations of one MuJoCo model, each with its task's model fields.

    A robot's subclass has four parts: constants with their units, readings of the physics, reward
    and observation made of them, and what tasks can change (attributes that are real numbers).
    Everything is in ``B = T * E`` rows, task by task. A simulation whose episode has ended keeps
    its place and is not stepped: it returns its last observation, reward 0 and no flags.
    """

    READINGS: ClassVar[tuple[str, ...]] = ("position", "velocity")
    """Methods that can be named in a family's ``observation``; each gives ``[B, n]``."""

    def __init__(self, family: SimulatedFamily, tasks: Sequence[Task], copies: int) -> None:
        self.family, self.copies, self.physics_s = family, copies, 0.0
        self.tasks: list[Task] = list(tasks)
        self.model = family.model
        rows = len(tasks) * copies
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        # torchrun's processes share the cores.
        threads = -(-threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        # MuJoCo's own integrators compute no contact forces but through a sensor, which RK4 asks
        # too early: there each simulation's whole data is kept and asked afterwards.
        self._forces_by_hand = family.needs_contact_forces and not _has_contact_sensor(self.model)
        self._batch = batch.Batch(
            self.model, nsim=rows, nthread=threads, persistent=self._forces_by_hand
        )
        self._data = mujoco.MjData(self.model) if self._forces_by_hand else None
        self.qpos, self.qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        """``[B, nq]`` and ``[B, nv]``, live."""
        self._ctrl, self._time = self._batch.bind("ctrl"), self._batch.bind("time")
        self._steps = np.zeros(rows, dtype=np.int64)
        self._ended, self._diverged = np.ones(rows, dtype=bool), np.zeros(rows, dtype=bool)
        if family.needs_contact_forces:
            self._contact_forces = np.zeros((rows, self.model.nbody, 6))
        self._bound = False
        self._changed: set[str] = set()
        self._changed_attributes: set[str] = set()
        self._write_params(np.arange(rows), np.repeat(np.arange(len(tasks)), copies))

    def read(self, field: str) -> np.ndarray:
        """A live field ``[B, ...]`` of MuJoCo's data, such as ``xpos``.

        As in gymnasium's environments, fields derived from the state lag one physics step behind
        it after ``step``.
        """
        return self._batch.bind(field)

    def read_model(self, field: str) -> np.ndarray:
        """A field of the model, ``[B, ...]`` or, where tasks share it, ``[1, ...]``."""
        values = self._batch.expanded(field)
        return np.asarray(getattr(self.model, field))[None] if values is None else values

    @property
    def contact_forces(self) -> np.ndarray:
        """``[B, nbody, 6]`` torque and force on each body in the last step (``cfrc_ext``; N m, N).

        Zero at reset, as in gymnasium's environments.
        """
        return self._contact_forces

    @property
    def dt(self) -> float | np.ndarray:
        """Seconds per control step; ``[B]`` where tasks differ in it."""
        timestep = self._batch.expanded("opt.timestep")
        return (self.model.opt.timestep if timestep is None else timestep) * self.family.frame_skip

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in every simulation."""
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        qpos, qvel = self.sample_reset(np.random.default_rng(seed), self.rows_drawn)
        self._begin(np.arange(len(self.qpos)), self.own(qpos), self.own(qvel))
        return self._shaped(self.observe())

    def restart(
        self, rows: np.ndarray, tasks: Sequence[Task], rngs: Sequence[np.random.Generator]
    ) -> np.ndarray:
        """New episodes, of new tasks, in some rows; obs ``[n, O]``."""
        if self.copies != 1:
            raise TaskError(f"restart needs copies=1, where rows are tasks; copies={self.copies}")
        if len(rows):
            for row, task in zip(rows.tolist(), tasks, strict=True):
                self.tasks[row] = task
            self._write_params(rows, rows)
            self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE)
            starts = [self.sample_reset(rng, 1) for rng in rngs]
            qpos, qvel = (np.concatenate(part) for part in zip(*starts, strict=True))
            self._begin(rows, qpos, qvel)
        return self.observe()[rows]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One control step of every simulation whose episode still runs."""
        running = ~self._ended
        ids = None if running.all() else np.flatnonzero(running)
        flat = action.reshape(len(self.qpos), -1)
        before = self.before_step()
        self._ctrl[:] = flat
        time_before = self._time.copy()
        started = time.perf_counter()
        if ids is None or len(ids):
            self._batch.step(ids, nstep=self.family.frame_skip)
            self._read_contact_forces(running)
        self.physics_s += time.perf_counter() - started
        # A blown-up simulation is reset by MuJoCo without a word and looks healthy afterwards: only
        # its counters (cleared by that same reset, so at most 1) and its clock, set back to zero,
        # tell.
        unstable = self._batch.warning[:, UNSTABLE, 1].any(axis=1) | (self._time < time_before)
        self._diverged |= running & unstable
        reward = np.where(running & ~self._diverged, self.reward(before, flat), 0.0)
        self._steps += running
        terminated = running & ~self._diverged & self.terminated()
        truncated = running & (self._diverged | (self._steps >= self.family.horizon))
        self._ended |= terminated | truncated
        return (
            self._shaped(self.observe()),
            self._shaped(reward),
            self._shaped(terminated),
            self._shaped(truncated),
        )

    @property
    def diverged(self) -> np.ndarray:
        """``[T, E]``: simulations that MuJoCo had to reset since the last ``reset``."""
        return self._shaped(self._diverged)

    def look(self, row: int) -> tuple[Any, Any]:
        """The row's own model, and its data with everything computed."""
        model = self._batch.get_model(row)
        data = self._batch.get_data(row)
        mujoco.mj_forward(model, data)
        return model, data

    def sample_reset(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Starting ``qpos [n, nq]`` and ``qvel [n, nv]`` of n simulations; nominal by default."""
        return np.tile(self.model.qpos0, (n, 1)), np.zeros((n, self.model.nv))

    def observe(self) -> np.ndarray:
        """Observation ``[B, O]``: the readings that the family names, side by side."""
        return np.concatenate([getattr(self, name)() for name in self.family.observation], axis=1)

    @abstractmethod
    def before_step(self) -> np.ndarray:
        """Whatever ``reward`` needs to know of the state before the step (a copy)."""

    @abstractmethod
    def reward(self, before: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Reward ``[B]`` of the step just made with ``action [B, A]``."""

    def terminated(self) -> np.ndarray:
        """``[B]`` bool: episodes that the task itself has ended; never, unless a family says so."""
        return np.zeros(len(self.qpos), dtype=bool)

    def _begin(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        self.qpos[rows], self.qvel[rows] = qpos, qvel
        self._diverged[rows], self._ended[rows], self._steps[rows] = False, False, 0
        if self.family.needs_contact_forces:
            self._contact_forces[rows] = 0.0
        if not self._bound:
            self._bind_all()
        self._batch.forward(rows)

    def _bind_all(self) -> None:
        """Ask once for all that will be read: MuJoCo fills a bound field at the next call only."""
        with np.errstate(all="ignore"):
            self.observe()
            self.reward(self.before_step(), self._ctrl)
            self.terminated()
        self._bound = True

    def _read_contact_forces(self, running: np.ndarray) -> None:
        if not self.family.needs_contact_forces:
            return
        if self._data is None:
            self._contact_forces[running] = self._batch.bind("cfrc_ext")[running]
            return
        for row in np.flatnonzero(running).tolist():
            self._batch.get_data(row, self._data)
            mujoco.mj_rnePostConstraint(self.model, self._data)
            self._contact_forces[row] = self._data.cfrc_ext

    def _write_params(self, rows: np.ndarray, tasks: np.ndarray) -> None:
        """Give rows ``[n]`` the model fields and attributes of the tasks with these indices."""
        for name in self._changed:  # parameters are applied to what is nominal
            self._batch.expand(name)[rows] = _nominal_field(self.model, name)
        for name in self._changed_attributes:
            getattr(self, name)[rows] = getattr(type(self), name)
        for name, param in self.family.params.items():
            values = np.array([self.tasks[task].values[name] for task in tasks])
            for target in param.targets:
                with naming(self.family.name, name):
                    self._write_param(target, param.op, values, rows)
        if self._changed:
            self._batch.set_const(rows)

    def _write_param(self, target: str, op: str, values: np.ndarray, rows: np.ndarray) -> None:
        kind, _, name = target.partition(":")
        nominal = getattr(type(self), name, None)
        if kind == "attr" and isinstance(nominal, float):
            if name not in self._changed_attributes:
                setattr(self, name, np.full(len(self.qpos), nominal))
                self._changed_attributes.add(name)
            attribute = getattr(self, name)
            attribute[rows] = apply_op(op, attribute[rows], values)
        elif kind in ("model", "option"):
            coupled = couples_inertia(self.family.params)
            write_field(target, op, values, self.model, self._expand, rows, coupled)
        elif kind not in ("action", "obs"):  # those two are for ConnectedTasks
            raise TaskError(
                f"{target!r} is nothing that this native family can change; use model:, option:, "
                "action:, obs:, or attr: with an attribute of the family"
            )

    def _expand(self, field: str) -> np.ndarray:
        self._changed.add(field)
        return self._batch.expand(field)

    def _shaped(self, rows: np.ndarray) -> np.ndarray:
        """``[B, ...] -> [T, E, ...]``, a copy that later steps do not change."""
        return rows.reshape(len(self.tasks), self.copies, *rows.shape[1:]).copy()


@dataclass(kw_only=True, config={"extra": "forbid"})
class SimulatedFamily(TaskDistribution):
    """A robot on the native engine, its tasks and the definitions that papers have of them.

    A variant is a named set of values of the settings below; what is given by hand wins.
    """

    VARIANTS: ClassVar[Settings] = {}
    """Settings by variant; the first is the default."""
    PARAMS: ClassVar[Settings] = {}
    """The parameters in which its tasks differ; what ``params`` gives is added or comes on top."""
    ASSET: ClassVar[str]
    """Model file among those that gymnasium ships."""
    SIMULATORS: ClassVar[type[SimulatedTasks]]
    """What simulates it."""

    integrator: Integrator = "model"
    """Of the physics; other than the model's own it is other physics, and part of the family's id.
    RK4 robots run 2.5 to 3.5 times as fast with implicitfast."""
    frame_skip: Annotated[int, Field(ge=1)] = 5
    """Physics steps per control step."""
    observation: list[str] = field(default_factory=lambda: ["position", "velocity"])
    """Readings of the physics that are observed, in order: methods of the simulators."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Fill the variant's settings in where none are given."""
        return complete(cls.VARIANTS, cls.PARAMS, given)

    @model_validator(mode="after")
    def _check_observation(self) -> Self:
        known = self.SIMULATORS.READINGS
        for name in self.observation:
            if name not in known:
                raise ValueError(
                    f"observation={self.observation}: {name!r} is no reading of this robot; "
                    f"expected {', '.join(known)}"
                )
        return self

    @property
    def id(self) -> str:
        """Name, variant, and the integrator where it is not the model's own."""
        return super().id + ("" if self.integrator == "model" else f"+{self.integrator}")

    @property
    def needs_contact_forces(self) -> bool:
        """Whether observation or reward read them; they cost time."""
        return "contact_forces" in " ".join(self.observation)

    @functools.cached_property
    def model(self) -> mujoco.MjModel:
        """The nominal model."""
        path = gymnasium_asset(self.ASSET)
        targets = [target for param in self.params.values() for target in param.targets]
        resized = any(target.startswith("model:geom_size") for target in targets)
        plain = load_model(path, self.integrator, resized)
        rk4 = int(plain.opt.integrator) == int(mujoco.mjtIntegrator.mjINT_RK4)
        if self.needs_contact_forces and not rk4:
            return load_model(path, self.integrator, resized, contact_sensor=True)
        return plain

    @functools.cached_property
    def raw_obs_size(self) -> int:
        """Numbers in an observation, counted in one."""
        any_task = Task(self.id, self.draw(np.random.default_rng(0)))
        return self.simulate([any_task], 1).reset(0).shape[-1]

    @property
    def dt(self) -> float:
        """Seconds per control step of the nominal model."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def action_size(self) -> int:
        """Motors."""
        return int(self.model.nu)

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The motors' control ranges."""
        return tuple(self.model.actuator_ctrlrange.T.copy())

    def simulate(self, tasks: Sequence[Task], copies: int) -> SimulatedTasks:
        """Simulators for ``copies`` parallel episodes of each task."""
        return self.SIMULATORS(self, tasks, copies)


def _nominal_field(model: mujoco.MjModel, name: str) -> np.ndarray | float:
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)


def _has_contact_sensor(model: mujoco.MjModel) -> bool:
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SENSOR, _CONTACT_SENSOR) >= 0
