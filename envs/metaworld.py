"""Meta-World's ML1, ML10 and ML45: a robot arm with a gripper, tasks on a table, the goal hidden.

A task is an environment (its number in ``ENVIRONMENTS``) and its ``rand_vec``: the numbers that
place object and goal, 3 or 6 of them. The goals are those of ``metaworld.ML10(seed=goals_seed)``
and so on to the last bit, but drawn here by the environments' own ``reset`` from a generator of our
own: Meta-World keeps its tasks as pickles, seeds numpy's global generator and ignores
``reset(seed)``. Nothing in an episode is random: the task alone gives its start.

Observation ``[39]``: hand (m), opening of the gripper, objects (m, quaternions); the same of the
step before; zeros for the goal. Action ``[4]``: the hand's move along x, y, z (cm at 1) and the
gripper's effort. Reward 0 to 10 a step (variant "v2"; "v1" is the older one). Success is Meta-World's
flag at any step of an episode.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import mujoco
import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from envs.compat import import_metaworld, missing
from envs.metaworld_env import ACTION_SIZE, OBS_SIZE, STEPS, MetaWorldTasks, goals_of, place
from envs.param import Param, TaskError
