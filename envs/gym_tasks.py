"""Any Gymnasium environment, plus the parameters in which its tasks differ, as a family of tasks.

Nothing is edited: a YAML file outside of this project names the environment and says where each
parameter lands. Wrappers, gymnasium's own TimeLimit among them, stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.param import Finite, TaskError
from envs.task import Task, TaskDistribution
from envs.wrapped.env import SUCCESS_KEYS, TaskEnv
from envs.wrapped.make import Wrapper
from envs.wrapped.rows import GymVectorTasks
from envs.wrapped.spaces import ActionMap, ObservationMap
from envs.wrapped.targets import check_params
from envs.wrapped.vector import VectorTask

__all__ = ["GymTasks", "GymVectorTasks", "Probe", "Wrapper"]


class Probe(NamedTuple):
    """What one environment of a family tells of all of them."""

    observation: ObservationMap
    action: ActionMap


@dataclass(kw_only=True, config={"extra": "forbid"})
class GymTasks(TaskDistribution):
    """One Gymnasium environment whose ``params`` differ from task to task.

    Targets: ``attr:NAME`` (of the environment or a wrapper; it must exist), ``kwarg:NAME`` (of
    ``gymnasium.make``), ``reset:NAME`` (``reset(options={NAME: value})``, at every reset),
    ``call:NAME`` (a method, called before every reset), ``model:`` and ``option:`` of a MuJoCo
    environment. ``NAME[INDEX]`` is one entry of an array. Whole numbers among ``choices`` are
    passed as integers.
    """

    env_id: Annotated[str, Field(min_length=1)]
    """Id for ``gymnasium.make``; ``"my_pkg.envs:Thing-v0"`` imports that module first."""
    import_path: list[str] = field(default_factory=list)
    """Folders appended to ``sys.path``, so that they cannot hide an installed package."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``gymnasium.make`` for every task; ``kwarg:`` values come on top."""
    wrappers: list[str | Wrapper] = field(default_factory=list)
    """Wrappers put around the environment in this order: ``package.module:Name``, or ``path`` and
    ``kwargs``."""
    success_key: Annotated[str, Field(min_length=1)] | None = None
    """Entry of ``info`` that is true once the task is solved; by default the first of ``success``,
    ``is_success`` and ``solved`` that is there."""
    action_limits: tuple[Finite, Finite] | None = None
    """Lowest and highest number of a Box action, within the space's own bounds."""
    vectorized: bool = False
    """Whether the environment is made by its own ``vector_entry_point``, E rows at once."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that step the environments; 1: they are stepped in this one."""
    deadline_s: Annotated[Finite, Field(gt=0)] = 60.0
    """Longest time that making, resetting or stepping all rows may take in workers, in seconds."""

    def __post_init__(self) -> None:
        """Check what needs no environment."""
        check_params(self.name, self.params)
        if self.action_limits is not None and self.action_limits[0] >= self.action_limits[1]:
            raise TaskError(f"action_limits={list(self.action_limits)}: expected [low, high]")
        if self.vectorized and self.workers > 1:
            raise TaskError(
                f"workers={self.workers} and vectorized=true: an environment that is vectorised "
                "itself runs in this process; give one of the two"
            )
        if self.vectorized and self.model_params:
            name, targets = next(iter(self.model_params.items()))
            raise TaskError(
                f"{self.name}.params.{name}: {targets[0]!r} cannot be written into an environment "
                "that is vectorised itself; use kwarg:, attr:, reset: or call:"
            )

    @property
    def success_keys(self) -> tuple[str, ...]:
        """Entries of ``info`` that may tell of success, in the order in which they are tried."""
        return SUCCESS_KEYS if self.success_key is None else (self.success_key,)

    @property
    def kwarg_params(self) -> list[str]:
        """Names of the parameters for which an environment has to be made anew."""
        return [n for n, p in self.params.items() if any(t[:6] == "kwarg:" for t in p.targets)]

    @property
    def model_params(self) -> dict[str, list[str]]:
        """Targets in a MuJoCo model, of the parameters that have any."""
        targets = {
            name: [t for t in param.targets if t.partition(":")[0] in ("model", "option")]
            for name, param in self.params.items()
        }
        return {name: found for name, found in targets.items() if found}

    @property
    def raw_obs_size(self) -> int:
        """Numbers in an observation, flattened (see ``probe.observation.table()``)."""
        return self.probe.observation.size

    @property
    def action_size(self) -> int:
        """Numbers that stand for an action (see ``envs.wrapped.spaces.ActionMap``)."""
        return self.probe.action.size

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest of these numbers."""
        return self.probe.action.low.copy(), self.probe.action.high.copy()

    @functools.cached_property
    def probe(self) -> Probe:
        """The spaces as rows of numbers, read from an environment that is closed at once."""
        env = self._any_task()
        env.close()
        return Probe(env.observation, env.action)

    @functools.cached_property
    def reports_success(self) -> bool:
        """Whether the environment tells of success: ``success_key``, or seen in a first step."""
        if self.success_key is not None:
            return True
        env = self._any_task()
        try:
            env.reset(seed=0)
            middle = (env.action.low + env.action.high) / 2
            env.step(middle if isinstance(env, TaskEnv) else middle[None])
            return env.reports_success
        finally:
            env.close()

    def make(self, values: Mapping[str, float]) -> TaskEnv:
        """One environment with one task written into it; ``.env`` is gymnasium's."""
        env = TaskEnv(self, values)
        try:
            self._check_spaces(env)
        except TaskError:
            env.close()
            raise
        return env

    def make_vector(self, values: Mapping[str, float], copies: int) -> VectorTask:
        """One environment of E rows that is vectorised itself, with one task."""
        env = VectorTask(self, values, copies)
        try:
            self._check_spaces(env)
        except TaskError:
            env.close()
            raise
        return env

    def simulate(self, tasks: Sequence[Task], copies: int) -> GymVectorTasks:
        """Environments for ``copies`` episodes of each task."""
        return GymVectorTasks(self, tasks, copies)

    def _any_task(self) -> TaskEnv | VectorTask:
        values = {}
        for name, param in self.params.items():
            first = param.choices[0] if param.choices else param.low
            values[name] = float((first or 0.0) if param.neutral is None else param.neutral)
        return VectorTask(self, values, 1) if self.vectorized else TaskEnv(self, values)

    def _check_spaces(self, env: TaskEnv | VectorTask) -> None:
        """Refuse tasks that change what a policy sees or how it acts."""
        expected = self.probe
        for what in ("observation", "action"):
            found, first = getattr(env, what), getattr(expected, what)
            if found.layout != first.layout:
                raise TaskError(
                    f"{self.name}: its tasks change the {what} space of {self.env_id!r}: "
                    f"{found.space} here, {first.space} elsewhere. One policy cannot serve both; "
                    "give wrappers: one that pads it, or make two families"
                )
        if not (
            np.array_equal(env.action.low, expected.action.low)
            and np.array_equal(env.action.high, expected.action.high)
        ):
            raise TaskError(
                f"{self.name}: its tasks change the bounds of the action space of {self.env_id!r}: "
                f"{env.action.space} here, {expected.action.space} elsewhere; give action_limits: "
                "[low, high] that all of them hold"
            )
