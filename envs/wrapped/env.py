# pyright: reportAttributeAccessIssue=false
# (MuJoCo's bindings come without type stubs.)
"""One Gymnasium environment with one task written into it, as a row of numbers in and out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import mujoco
import numpy as np

from envs.model_fields import couples_inertia, naming, write_one_model
from envs.parallel.chunk import Outcome
from envs.param import TaskError
from envs.simulation import UNSTABLE
from envs.wrapped.make import hint, make_env
from envs.wrapped.spaces import ActionMap, ObservationMap
from envs.wrapped.targets import Access, Attributes, numbers_of, passed

if TYPE_CHECKING:
    from envs.gym_tasks import GymTasks

SUCCESS_KEYS = ("success", "is_success", "solved")
"""Where environments tell in ``info`` that a task is solved; the first that is there counts."""


class TaskEnv:
    """A Gymnasium environment and its task, which every reset keeps.

    ``attr:``, ``model:`` and ``option:`` values are written on top of what the environment was made
    with, so that writing twice equals writing once; they are checked, and ``reset:`` and ``call:``
    values passed on, at each reset.
    """

    def __init__(self, family: GymTasks, values: Mapping[str, float]) -> None:
        self._family, self._values = family, dict(values)
        self._make()

    def set_task(self, values: Mapping[str, float]) -> None:
        """Another task from the next reset on; the environment is made anew if ``kwarg:`` asks."""
        again = any(values[name] != self._values[name] for name in self._family.kwarg_params)
        self._values = dict(values)
        if again:
            self.close()
            self._make()
        else:
            self._write()

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode of the task. Obs ``[O]``."""
        self._succeeded, self._keys = False, set()
        self._attributes.write(self._values)
        if self._lost_fields():  # an episode may have changed them
            self._write_model()
        for name, value in passed(self._family.params, self._values, "call").items():
            self._method(name)(value)
        if (data := self._data()) is not None:  # not every reset calls mj_resetData
            data.warning.number[:] = 0
        # A new dictionary each time: some environments take entries out of it.
        options = passed(self._family.params, self._values, "reset") or None
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise TaskError(f"reset() gave {result!r:.200}, expected (observation, info)")
        self._attributes.check()
        if lost := self._lost_fields():
            raise TaskError(
                f"{self._family.name}: reset() of {self._owner} wrote over {', '.join(lost)} of "
                "its MuJoCo model, so the task would be lost"
            )
        self._keys |= set(result[1])
        return self.observation.flatten(result[0])

    def step(self, action: np.ndarray) -> Outcome:
        """One step."""
        data = self._data()
        before = 0.0 if data is None else data.time
        obs, reward, terminated, truncated, info = self.env.step(self.action.to_env(action))
        self._note_success(info, bool(terminated) or bool(truncated))
        row = self.observation.flatten(obs)
        if (data := self._data()) is not None and (
            _was_reset(data, before) or (_odd(row, reward) and _is_void(data))
        ):
            return Outcome(row, 0.0, False, False, True, False)
        # What the rest is, bool or not, is checked where all rows meet.
        return Outcome(row, cast(float, reward), terminated, truncated, False, self._succeeded)

    def look(self) -> tuple[Any, Any] | np.ndarray | None:
        """MuJoCo's model and data, or pixels ``[height, width, 3]``, or None: nothing to see."""
        if (data := self._data()) is not None:
            return self._inner.model, data
        return np.asarray(self.env.render()) if self.env.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    @property
    def reports_success(self) -> bool:
        """Whether an ``info`` of this episode has told of success or failure so far."""
        return any(key in self._keys for key in self._family.success_keys)

    def _make(self) -> None:
        family = self._family
        self.env: gymnasium.Env = make_env(family, passed(family.params, self._values, "kwarg"))
        """The environment, in its wrappers."""
        self._inner: Any = self.env.unwrapped  # asked in every step, through all wrappers
        self._owner = type(self._inner).__name__
        self._succeeded, self._keys = False, set[str]()
        with ExitStack() as undo:
            undo.callback(self.env.close)
            with _about(family):
                self.observation = ObservationMap(self.env.observation_space)
                self.action = ActionMap(self.env.action_space, family.action_limits)
            access = Access(
                self._owner,
                self.env.get_wrapper_attr,
                self.env.set_wrapper_attr,
                lambda: numbers_of(self._inner),
            )
            self._attributes = Attributes(family.name, family.params, access)
            self._nominal = copy.copy(self._model()) if family.model_params else None
            for name in family.model_params:  # each alone, for errors that name it
                with naming(family.name, name):
                    write_one_model(self._model(), self._nominal, self._changes([name]))
            for name in passed(family.params, self._values, "call"):
                self._method(name)
            self._write()
            undo.pop_all()  # nothing failed: keep it open

    def _write(self) -> None:
        self._attributes.write(self._values)
        self._write_model()

    def _write_model(self) -> None:
        """Make the model nominal but for the task, and keep what was written."""
        self._fields: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if self._nominal is None:
            return
        model, changes = self._model(), self._changes(self._family.model_params)
        couple = couples_inertia(self._family.params)
        write_one_model(model, self._nominal, changes, couple_inertia=couple)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        for target, _, _ in changes:
            field = target.partition("[")[0]
            self._fields[field] = (_field(self._nominal, field), _field(model, field))

    def _changes(self, names: Iterable[str]) -> list[tuple[str, str, float]]:
        """What these parameters change in the model: (target, op, value)."""
        family = self._family
        return [
            (target, family.params[name].op, self._values[name])
            for name in names
            for target in family.model_params[name]
        ]

    def _lost_fields(self) -> list[str]:
        """Fields whose values are no longer the task's, where the task differs from nominal."""
        lost = []
        for field, (nominal, written) in self._fields.items():
            found, changed = _field(self._model(), field), nominal != written
            if found.shape != written.shape or (found[changed] != written[changed]).any():
                lost.append(field)
        return lost

    def _method(self, name: str) -> Any:
        if not self.env.has_wrapper_attr(name) or not callable(
            method := self.env.get_wrapper_attr(name)
        ):
            inner = self._inner
            known = [n for n in dir(inner) if n[0] != "_" and callable(getattr(inner, n, None))]
            raise TaskError(
                f"{self._family.name}: 'call:{name}': {self._owner} has no method {name!r}"
                + hint(name, set(known) - set(dir(gymnasium.Env)))
            )
        return method

    def _model(self) -> mujoco.MjModel:
        model = getattr(self._inner, "model", None)
        if not isinstance(model, mujoco.MjModel):
            name = next(iter(self._family.model_params))
            raise TaskError(
                f"{self._family.name}.params.{name}: {self._owner} has no MuJoCo model to change"
            )
        return model

    def _data(self) -> Any:
        """The environment's MuJoCo data; None where it has none."""
        data = getattr(self._inner, "data", None)
        return data if isinstance(data, mujoco.MjData) else None

    def _note_success(self, info: Mapping[str, Any], ended: bool) -> None:
        self._keys |= info.keys()
        for key in self._family.success_keys:
            if key in info:
                self._succeeded |= bool(np.any(info[key]))
                break
        key = self._family.success_key
        if ended and key is not None and key not in self._keys:
            raise TaskError(
                f"{self._family.name}: success_key {key!r} was in no info of a whole episode"
                + hint(key, self._keys)
            )


@contextmanager
def _about(family: GymTasks) -> Iterator[None]:
    try:
        yield
    except TaskError as error:
        raise TaskError(f"{family.name}: {family.env_id!r}: {error}") from error


def _was_reset(data: Any, time_before: float) -> bool:
    """Whether MuJoCo has reset what blew up, which looks healthy afterwards.

    Its counters tell, or its clock where an environment has cleared them.
    """
    counts = data.warning.number
    return any(counts[i] for i in UNSTABLE) or data.time < time_before


def _odd(row: np.ndarray, reward: Any) -> bool:
    """Whether something may not be finite: a quick look, in each step of each row."""
    number = reward if isinstance(reward, float | np.floating) else 0.0
    return not (math.isfinite(row @ row) and math.isfinite(number))


def _is_void(data: Any) -> bool:
    """Whether a simulation has blown up in its last physics step, which MuJoCo sees a step late."""
    return not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all())


def _field(model: mujoco.MjModel, field: str) -> np.ndarray:
    """A copy of ``model:FIELD`` or ``option:FIELD``."""
    kind, _, name = field.partition(":")
    return np.array(getattr(model.opt if kind == "option" else model, name))
