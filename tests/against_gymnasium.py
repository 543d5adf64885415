# pyright: reportAttributeAccessIssue=false
"""The oracle of the native robots: gymnasium's own environment, from the same states on."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np

from envs.simulation import SimulatedFamily, SimulatedTasks
from envs.task import Task


class Gaps(NamedTuple):
    """Largest absolute differences, and how many episodes ended before the last step."""

    obs: float
    reward: float
    ended: int


def compare(
    family: SimulatedFamily,
    env_id: str,
    values: dict[str, float] | None = None,
    episodes: int = 4,
    steps: int = 200,
    scale: float = 1.0,
    **kwargs: Any,
) -> Gaps:
    """Both from the same starts under the same random actions; terminations must be equal.

    ``scale`` shrinks the actions, so that robots that fall live longer.
    """
    env: Any = gymnasium.make(env_id, **kwargs).unwrapped
    sims = family.simulate([Task(family.id, values or {})], episodes)
    assert isinstance(sims, SimulatedTasks)
    obs = sims.reset(seed=1)
    starts = [(sims.qpos[e].copy(), sims.qvel[e].copy()) for e in range(episodes)]
    low, high = family.action_range
    rng = np.random.default_rng(0)
    moves = scale * rng.uniform(low, high, (steps, 1, episodes, family.action_size))
    ours = [(obs, np.zeros((1, episodes)), np.zeros((1, episodes), bool))]
    ours += [sims.step(move)[:3] for move in moves]
    obs_gap = reward_gap = 0.0
    ended = 0
    for e, (qpos, qvel) in enumerate(starts):
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(qpos, qvel)
        obs_gap = max(obs_gap, float(np.abs(ours[0][0][0, e] - env._get_obs()).max()))
        for h, move in enumerate(moves):
            theirs, reward, terminated, *_ = env.step(move[0, e])
            assert ours[h + 1][2][0, e] == terminated, (e, h)
            obs_gap = max(obs_gap, float(np.abs(ours[h + 1][0][0, e] - theirs).max()))
            reward_gap = max(reward_gap, float(abs(ours[h + 1][1][0, e] - reward)))
            if terminated:
                ended += 1
                break
    env.close()
    return Gaps(obs_gap, reward_gap, ended)
