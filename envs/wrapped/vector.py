"""Environments that are vectorised already: E rows of one task each, among the rows of T tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.parallel.chunk import Board, ChunkError
from envs.parallel.rows import Rows
from envs.param import TaskError
from envs.wrapped.make import hint, make_vector_env
from envs.wrapped.spaces import ActionMap, ObservationMap
from envs.wrapped.targets import Access, Attributes, numbers_of, passed

if TYPE_CHECKING:
    from envs.gym_tasks import GymTasks


class Step(NamedTuple):
    """What one step of E rows gave; each array is ``[E]``, the observation ``[E, O]``."""

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray


class VectorTask:
    """One vectorised environment of E rows and its task, which every reset keeps.

    Whatever its autoreset mode, a row whose episode has ended gives that episode's last observation
    and then nothing of use until the next reset: what the environment starts there is nobody's.
    """

    def __init__(self, family: GymTasks, values: Mapping[str, float], copies: int) -> None:
        self._family, self._values, self._copies = family, dict(values), copies
        kwargs = passed(family.params, values, "kwarg")
        self.env: VectorEnv = make_vector_env(family, kwargs, copies)
        """The environment, in its wrappers."""
        inner = self.env.unwrapped
        self._owner, self._keys = type(inner).__name__, set[str]()
        self._ended = np.zeros(copies, dtype=bool)
        with ExitStack() as undo:
            undo.callback(self.env.close)
            self._mode = self.env.metadata.get("autoreset_mode")
            if not isinstance(self._mode, AutoresetMode):
                raise TaskError(
                    f"{family.name}: metadata['autoreset_mode'] of {self._owner} is {self._mode!r},"
                    " expected a gymnasium.vector.AutoresetMode: without it nobody knows which "
                    "episode an observation after its end belongs to"
                )
            self.observation = ObservationMap(self.env.single_observation_space)
            self.action = ActionMap(self.env.single_action_space, family.action_limits)
            access = Access(self._owner, self._get, self._set, lambda: numbers_of(inner))
            self._attributes = Attributes(family.name, family.params, access)
            self._attributes.write(values)
            for name in passed(family.params, values, "call"):
                self._method(name)
            undo.pop_all()  # nothing failed: keep it open

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode in all rows. Obs ``[E, O]``."""
        self._ended[:], self._keys = False, set()
        self._attributes.write(self._values)
        for name, value in passed(self._family.params, self._values, "call").items():
            self._method(name)(value)
        obs, info = self.env.reset(seed=seed, options=self._options() or None)
        self._attributes.check()
        self._keys |= info.keys()
        return self.observation.flatten_rows(obs, self._copies)

    def step(self, actions: np.ndarray) -> Step:
        """One step of all rows with ``actions [E, A]``."""
        if self._mode is AutoresetMode.DISABLED and self._ended.any():
            # It must not be stepped past an end, so these rows go on with an episode of nobody.
            self.env.reset(options={**self._options(), "reset_mask": self._ended.copy()})
        obs, reward, terminated, truncated, info = self.env.step(self.action.rows_to_env(actions))
        rows = self.observation.flatten_rows(obs, self._copies)
        reward = self._numbers("rewards", reward).astype(np.float64)
        terminated, truncated = (
            self._numbers(name, flags).astype(bool)
            for name, flags in (("terminated", terminated), ("truncated", truncated))
        )
        self._ended = terminated | truncated
        success = self._solved(info)
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            if "final_obs" not in info:
                raise TaskError(
                    f"{self._owner} says AutoresetMode.SAME_STEP but gives no info['final_obs']"
                )
            rows[self._ended] = self._final(info["final_obs"])[self._ended]
            success = np.where(self._ended, self._solved(info.get("final_info", {})), success)
        return Step(rows, reward, terminated, truncated, success)

    def look(self, row: int) -> np.ndarray | None:
        """Pixels ``[height, width, 3]`` of one row, or None: nothing to see."""
        if self.env.render_mode != "rgb_array":
            return None
        frames = self.env.render()
        return None if frames is None else np.asarray(frames[row])

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    @property
    def reports_success(self) -> bool:
        """Whether an ``info`` since the last reset has told of success or failure."""
        return any(key in self._keys for key in self._family.success_keys)

    def _options(self) -> dict[str, Any]:
        return passed(self._family.params, self._values, "reset")

    def _solved(self, info: Mapping[str, Any]) -> np.ndarray:
        """Which rows the info calls solved; an entry ``_KEY`` says which rows ``KEY`` is of."""
        self._keys |= info.keys()
        for key in self._family.success_keys:
            if key in info:
                known = self._numbers(f"_{key}", info.get(f"_{key}", np.ones(self._copies)))
                return self._numbers(f"info[{key!r}]", info[key]).astype(bool) & known.astype(bool)
        return np.zeros(self._copies, dtype=bool)

    def _final(self, obs: Any) -> np.ndarray:
        """Last observations ``[E, O]``: batched, or one by one with None for rows that go on."""
        if not (isinstance(obs, np.ndarray) and obs.dtype == object):
            return self.observation.flatten_rows(obs, self._copies)
        rows = np.zeros((self._copies, self.observation.size))
        for row in np.flatnonzero(self._ended):
            rows[row] = self.observation.flatten(obs[row])
        return rows

    def _numbers(self, name: str, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != (self._copies,) or array.dtype.kind not in "biuf":
            raise TaskError(
                f"{self._owner} gave {name} of shape {array.shape} and type {array.dtype}, expected"
                f" one number for each of {self._copies} rows"
            )
        return array

    def _holder(self, name: str) -> Any:
        """The wrapper or environment that has the attribute; None where single ones may have it."""
        layer: Any = self.env
        while not hasattr(layer, name):
            if layer is self.env.unwrapped:
                return None
            layer = layer.env
        return layer

    def _get(self, name: str) -> Any:
        """An attribute; of an environment that holds single ones, that of the first of them."""
        holder, inner = self._holder(name), cast(Any, self.env.unwrapped)
        if holder is None and hasattr(inner, "get_attr"):
            return inner.get_attr(name)[0]
        return getattr(holder or inner, name)

    def _set(self, name: str, value: Any) -> None:
        holder: Any = self._holder(name)
        if holder is None:
            holder = self.env.unwrapped
            holder.set_attr(name, [copy.deepcopy(value) for _ in range(self._copies)])
        else:
            setattr(holder, name, value)

    def _method(self, name: str) -> Callable[[Any], Any]:
        """A method; whether single ones inside have it shows only when it is called."""
        holder, inner = self._holder(name), cast(Any, self.env.unwrapped)
        if holder is None and hasattr(inner, "call"):
            return lambda value: inner.call(name, value)
        if not callable(method := getattr(holder, name, None)):
            known = [n for n in dir(inner) if n[0] != "_" and callable(getattr(inner, n, None))]
            raise TaskError(
                f"{self._family.name}: 'call:{name}': {self._owner} has no method {name!r}"
                + hint(name, set(known) - set(dir(VectorEnv)))
            )
        return method


class VectorRows(Rows):
    """The rows of T tasks in this process, each task an environment that is vectorised itself."""

    def __init__(
        self,
        family: GymTasks,
        values: Sequence[Mapping[str, float]],
        copies: int,
        labels: Sequence[str],
    ) -> None:
        n = len(values) * copies
        layout = Board.layout(n, family.raw_obs_size, family.action_size, processes=1)
        board = Board(**{name: np.zeros(*form) for name, form in layout.items()})
        super().__init__(labels, n, board)
        self._copies = copies
        self.envs: list[VectorTask] = []
        """The environments, task by task."""
        with self._closing_on_failure():
            for task, each in enumerate(values):
                with self._faults(task):
                    self.envs.append(family.make_vector(each, copies))

    def look(self, row: int) -> np.ndarray | None:
        """Pixels of one row, or None."""
        return self.envs[row // self._copies].look(row % self._copies)

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._closed = self._closed or "closed: open new ones to go on"
        while self.envs:
            self.envs.pop().close()

    def _carry_out(self, command: str) -> None:
        for task, env in enumerate(self.envs):
            rows = slice(task * self._copies, (task + 1) * self._copies)
            with self._faults(task):
                if command == "reset":
                    obs = env.reset(int(self._board.seeds[rows][0]))
                    self._refuse_not_finite(rows, obs, np.zeros(self._copies))
                    self._board.obs[rows] = obs
                elif self._board.running[rows].any():
                    self._step(env, rows)

    def _step(self, env: VectorTask, rows: slice) -> None:
        board, running = self._board, self._board.running[rows]
        # Rows without an episode of ours are stepped along; their actions may be anything.
        middle = (env.action.low + env.action.high) / 2
        now = env.step(np.where(running[:, None], board.actions[rows], middle))
        self._refuse_not_finite(
            rows, np.where(running[:, None], now.obs, 0.0), np.where(running, now.reward, 0.0)
        )
        board.obs[rows][running] = now.obs[running]
        board.reward[rows][running] = now.reward[running]
        for i, flags in enumerate((now.terminated, now.truncated, running & False, now.success)):
            board.flags[i, rows] = flags & running

    def _refuse_not_finite(self, rows: slice, obs: np.ndarray, reward: np.ndarray) -> None:
        bad = ~(np.isfinite(obs).all(axis=1) & np.isfinite(reward))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            what = f"observation {obs[row]}, reward {reward[row]}: not all of it is finite"
            cause = "a simulation that blew up, or a division by zero"
            raise ChunkError(rows.start + row, what, cause)

    @contextmanager
    def _faults(self, task: int) -> Iterator[None]:
        """Errors of one task's environment, as errors that name the task and its rows."""
        rows = range(task * self._copies, (task + 1) * self._copies)
        try:
            yield
        except ChunkError as fault:
            raise self._error(fault, rows) from fault
        except Exception as error:  # whatever a user's code may raise
            fault = ChunkError.of(error, None, "an error in the environment's own code")
            raise self._error(fault, rows) from error
