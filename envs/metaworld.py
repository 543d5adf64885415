"""Meta-World's ML1, ML10 and ML45: an arm with a gripper at a table; what to do there is hidden.

A task is an environment and its ``rand_vec``, the 3 or 6 numbers that place object and goal. The
goals of a benchmark are to the last bit those of ``metaworld.ML10(seed=goals_seed)`` and the like,
but drawn by ``draw_goals`` instead of unpickled. Nothing in an episode is random: the task alone
gives its start (Meta-World ignores ``reset(seed)`` just as well).

Reward per step: 0 to 10 (variant "v2"), or the older and unbounded one of 2019 ("v1"). An episode
succeeds if Meta-World's flag is up at any of its steps. Needs the package metaworld, which pins
mujoco==3.3.0: ``envs/compat.py`` says how to install it beside MuJoCo 4, and makes it work there.

Official evaluation (``MetaWorld.protocol``): on each of 40 goals of every test environment, one
adaptation to 10 episodes, then 3 episodes to measure success::

    engram evaluate run=runs/ml10 split=heldout evaluation.tasks=200 evaluation.draws=1 \
        evaluation.steps=1 evaluation.episodes=10 evaluation.eval_episodes=3
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from envs.compat import import_metaworld, missing
from envs.metaworld_env import (
    ACTION_SIZE,
    ENVIRONMENTS,
    GOALS,
    OBS_SIZE,
    STEPS,
    MetaWorldEnv,
    SharedModel,
    benchmark_goals,
)
from envs.parallel.row_tasks import RowTasks, open_rows
from envs.param import Finite, Param, TaskError
from envs.task import SPLITS, Split, Task, TaskDistribution
from envs.wrapped.make import hint

_NAMES = list(ENVIRONMENTS)
_LONGEST = max(ENVIRONMENTS.values())
# Along x, y and z, m: a little more than any environment draws, and the 0 of unused places.
_RANGES = ((-0.4, 0.5), (0.0, 1.0), (-0.05, 0.35))


@dataclass(kw_only=True, config={"extra": "forbid"})
class MetaWorld(TaskDistribution):
    """One of Meta-World's benchmarks for meta-learning, with its own tasks and splits.

    Splits: "train" and "validation" are parts of the goals of the training environments, "heldout"
    are goals of the test environments (ML1: other goals of the same one). ``params`` gets
    ``environment`` and ``rand_vec_0`` ... ``rand_vec_5`` (0 where an environment has three only);
    ``action:`` and ``obs:`` parameters may be added.
    """

    independent_params: ClassVar[bool] = False
    """One parameter changed alone need not give a task: the numbers of a goal belong together."""

    variant: Literal["v2", "v1"] = "v2"
    """Which of Meta-World's reward functions."""
    horizon: Annotated[int, Field(ge=1, le=STEPS)] = STEPS
    """Steps of an episode."""
    benchmark: Literal["ML1", "ML10", "ML45"]
    """ML1: one environment. ML10, ML45: 10 or 45 to learn on, 5 others to be tested on."""
    env_name: str | None = None
    """ML1's environment, such as ``reach-v3``; for ML1 only."""
    goals_seed: Annotated[int, Field(ge=0, lt=2**32 - 1)] = 0
    """Meta-World's seed of the goals."""
    validation_goals: Annotated[int, Field(ge=0, lt=GOALS)] = 5
    """Of the 50 goals of each training environment, how many are kept apart (the last ones)."""
    heldout_goals: Annotated[int, Field(ge=1, le=GOALS)] = 40
    """Of the 50 goals of each test environment, how many are used (the first ones)."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that step the environments; 1: they are stepped in this one."""
    deadline_s: Annotated[Finite, Field(gt=0)] = 60.0
    """Longest time that making, resetting or stepping all rows may take in workers, in seconds."""

    def __post_init__(self) -> None:
        """Add the parameters that make a task."""
        if (self.benchmark == "ML1") != (self.env_name is not None):
            raise ValueError(
                f"benchmark={self.benchmark} with env_name={self.env_name}: ML1 needs the name of "
                "an environment, such as reach-v3, and the others have their own"
            )
        if self.env_name is not None and self.env_name not in ENVIRONMENTS:
            raise ValueError(
                f"env_name={self.env_name!r} is no environment of Meta-World"
                + hint(self.env_name, ENVIRONMENTS)
            )
        if self.pool:
            raise ValueError("pool: Meta-World's goals are fixed sets; see heldout_goals")
        own, reserved = _own_params(self.env_name), _own_params(None)
        for name, param in self.params.items():
            if name in own and param == own[name]:
                continue  # dataclasses.replace() hands them back
            kinds = {target.partition(":")[0] for target in param.targets}
            if name in reserved or not kinds <= {"action", "obs"}:
                raise ValueError(f"params.{name}: only action: and obs: targets can be added")
        self.params = own | self.params

    def held_out_note(self, split: Split) -> str:
        """What is held out of training, in a sentence."""
        if self.benchmark == "ML1":
            return "Held-out and validation goals of the one environment are not trained on."
        return "Held-out tasks are goals of five test environments that are not trained on at all."

    def missing(self) -> str:
        """What has to be installed first, with the command; empty if it is there."""
        return missing("metaworld")

    @property
    def raw_obs_size(self) -> int:
        """39: hand, gripper and objects now and a step ago, zeros for the goal."""
        return OBS_SIZE

    @property
    def action_size(self) -> int:
        """4: the hand's move and the gripper's effort."""
        return ACTION_SIZE

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """A centimetre along x, y and z, and all of the gripper's effort."""
        return -np.ones(ACTION_SIZE), np.ones(ACTION_SIZE)

    @property
    def holds_out(self) -> bool:
        """True: Meta-World tells training from test."""
        return True

    @property
    def protocol(self) -> dict[str, int]:
        """The official evaluation, as the settings ``evaluation`` of ``engram evaluate``."""
        tasks = sum(len(goals) for goals in self.goals("heldout").values())
        return {"tasks": tasks, "draws": 1, "steps": 1, "episodes": 10, "eval_episodes": 3}

    def goals(self, split: Split) -> dict[str, np.ndarray]:
        """Every ``rand_vec`` of a split, ``[goals, 3 or 6]``, by the name of its environment."""
        if split not in SPLITS:
            raise TaskError(f"split={split!r}: {self.name} has {', '.join(SPLITS)}")
        part = "test" if split == "heldout" else "train"
        every = benchmark_goals(self.benchmark, self.env_name, self.goals_seed, part)
        end = GOALS - self.validation_goals
        chosen = {
            "train": slice(end),
            "validation": slice(end, GOALS),
            "heldout": slice(self.heldout_goals),
        }[split]
        return {name: goals[chosen] for name, goals in every.items()}

    def task_of(self, env_name: str, rand_vec: Sequence[float], **others: float) -> Task:
        """The task of an environment and a ``rand_vec`` of its; other parameters by name."""
        if len(rand_vec) != ENVIRONMENTS.get(env_name):
            raise TaskError(
                f"{env_name} with a rand_vec of {len(rand_vec)} numbers: expected an environment "
                f"of Meta-World and {ENVIRONMENTS.get(env_name, 'its')} numbers"
            )
        values = dict.fromkeys(_own_params(self.env_name), 0.0)
        values |= {f"rand_vec_{i}": float(number) for i, number in enumerate(rand_vec)}
        return self.task({**values, "environment": float(_NAMES.index(env_name)), **others})

    def sample(
        self, n: int, rng: np.random.Generator, split: Split = "train", distinct: bool = False
    ) -> list[Task]:
        """Draw ``n`` tasks of a split, as evenly over its environments as ``n`` allows."""
        goals = self.goals(split)
        names = [name for name, of_one in goals.items() if len(of_one)]
        if not names:
            raise TaskError(f"{self.name}: split {split!r} is empty (validation_goals=0)")
        decks = {name: rng.permutation(len(goals[name])).tolist() for name in names}
        tasks = []
        for i in rng.permutation(len(names))[rng.permutation(n) % len(names)]:
            name = names[i]
            if distinct and not decks[name]:
                raise TaskError(
                    f"{n} distinct tasks of {self.name!r} in split {split!r}: it has only "
                    f"{len(goals[name])} goals of {name}"
                )
            goal = decks[name].pop() if distinct else rng.integers(len(goals[name]))
            task = self.task_of(name, goals[name][goal], **self._drawn_others(rng))
            tasks.append(task)
        return tasks

    def _drawn_others(self, rng: np.random.Generator) -> dict[str, float]:
        own = _own_params(self.env_name)
        drawn = self.draw(rng, fixed=dict.fromkeys(own, 0.0))
        return {name: value for name, value in drawn.items() if name not in own}

    def split_of(self, values: Mapping[str, float]) -> Split:
        """The split that has this goal; "ood" for a goal that is none of the benchmark's."""
        name, rand_vec = self._place(values)
        for split in SPLITS:
            if rand_vec in self.goals(split).get(name, np.zeros((0, 0))).tolist():
                return split
        return "ood"

    def label(self, task: Task, most: int = 3) -> str:
        """The environment and the goal's numbers, in metres."""
        name, rand_vec = self._place(task.values)
        return f"{name} {' '.join(f'{number:.3f}' for number in rand_vec)}"

    def simulate(self, tasks: Sequence[Task], copies: int) -> RowTasks:
        """Environments for ``copies`` episodes of each task."""
        import_metaworld()  # first of all, for its errors are plainer here than in workers
        makers = []
        for task in tasks:
            maker = functools.partial(
                MetaWorldEnv, SharedModel(), *self._place(task.values), self.variant
            )
            makers += [maker] * copies
        labels = [self.label(task) for task in tasks for _ in range(copies)]
        rows = open_rows(makers, labels, self, self.workers, self.deadline_s)
        return RowTasks(tasks, copies, self.horizon, rows)

    def _place(self, values: Mapping[str, float]) -> tuple[str, list[float]]:
        """Name of the environment and ``rand_vec`` of a task."""
        number = values["environment"]
        if number not in range(len(_NAMES)):
            raise TaskError(f"{self.name}: environment={number:g}; expected 0 to {len(_NAMES) - 1}")
        name = _NAMES[int(number)]
        rand_vec = [values.get(f"rand_vec_{i}", 0.0) for i in range(_LONGEST)]
        if any(rand_vec[ENVIRONMENTS[name] :]):
            raise TaskError(
                f"{self.name}: {name} has a rand_vec of {ENVIRONMENTS[name]} numbers, got "
                f"{rand_vec}; what it does not have must be 0"
            )
        return name, rand_vec[: ENVIRONMENTS[name]]


def _own_params(env_name: str | None) -> dict[str, Param]:
    """The parameters of a task of one environment, or of any."""
    numbers = [_NAMES.index(env_name)] if env_name else range(len(_NAMES))
    size = ENVIRONMENTS[env_name] if env_name else _LONGEST
    choices: list[Any] = [float(number) for number in numbers]
    return {
        "environment": Param(to="attr:environment", choices=choices, inert=len(choices) == 1),
        **{
            f"rand_vec_{i}": Param(
                to=f"attr:rand_vec[{i}]", low=_RANGES[i % 3][0], high=_RANGES[i % 3][1]
            )
            for i in range(size)
        },
    }
