"""TaskBatch: the only view a learner has of the world. It acts, and it counts every step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from agent.distributed import own_part
from agent.memory.guard import Guard
from agent.policy import DiagonalGaussian, GaussianMlp, Policy
from agent.types import Trajectories
from envs.task import Task, TaskDistribution


class TaskBatch:
    """T opened tasks, E parallel episodes each. A context manager: simulators close with it.

    With ``reveal`` the tasks' descriptors are appended to the observation: for oracles only. Tasks
    that are ``divided`` among the processes that train together are given to each as a whole; the
    batch then is this process's part of them, whose episodes go as if it had all.
    """

    def __init__(
        self,
        family: TaskDistribution,
        tasks: Sequence[Task],
        episodes: int,
        policy: GaussianMlp,
        rng: np.random.Generator,
        reveal: bool = False,
        divided: bool = False,
        trials: int = 1,
    ) -> None:
        self._part = own_part(len(tasks)) if divided else slice(0, len(tasks))
        self._whole, tasks = len(tasks), list(tasks)[self._part]
        self.tasks, self.policy, self.episodes = tasks, policy, episodes
        self.trials = trials
        """Tasks in succession that are one task, for learners of trials."""
        self._family, self._rng = family, rng
        low, high = family.action_range
        self._scale, self._middle = (high - low) / 2, (high + low) / 2
        self._descriptors = family.describe(tasks) if reveal else None
        self.simulators = family.open(self.tasks, episodes)
        self.simulators.be_part(self._part.start * episodes, self._whole * episodes)
        self.steps_used = 0
        """Env steps taken since the batch was opened, of all tasks and episodes together."""
        self.act_s: list[float] = []
        """Wall seconds of each decision, for all tasks and episodes together."""

    def __enter__(self) -> Self:
        """Use the batch in a ``with`` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the simulators."""
        self.simulators.close()

    def draw(self, below: int) -> int:
        """A random number from 0 to ``below`` - 1, of the stream that the episodes come from."""
        return int(self._rng.integers(below))

    @property
    def physics_s(self) -> float:
        """Wall seconds spent inside the simulator so far."""
        return self.simulators.physics_s

    @torch.no_grad()
    def collect(
        self,
        params: Tensor,
        deterministic: bool = False,
        guard: Guard | None = None,
        policy: Policy | None = None,
        rng: np.random.Generator | None = None,
    ) -> Trajectories:
        """Run E whole episodes of each task with that task's parameters ``[T, P]``.

        An episode that ``guard`` stops goes on with its fallback; ``switched`` says from where.
        ``policy`` and ``rng`` stand in for the batch's own.
        """
        shape = (len(self.tasks), self.episodes, self._family.horizon)
        policy, rng = policy or self.policy, rng or self._rng
        seed, noise_seed = (int(s) for s in rng.integers(2**62, size=2))
        noise = self._noise((shape[2], shape[1], self.policy.action_size), noise_seed)
        obs = np.empty((*shape, self.policy.obs_size), dtype=np.float32)
        reward, mask = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        actions, log_probs = [], []
        terminated = np.zeros(shape[:2], dtype=bool)
        current, diverged = self.seen(self.simulators.reset(seed))
        alive = ~diverged
        watch = None if guard is None else guard.watch(self.episodes, shape[2])
        carry = policy.begin(params, self.episodes)
        spare = None if guard is None else policy.begin(guard.fallback, self.episodes)
        for h in range(shape[2]):
            obs[:, :, h], asked = current, time.perf_counter()
            seen = self._tensor(current)
            distribution, carry = policy.act(params, seen, carry)
            if (
                guard is not None
                and watch is not None
                and (spare is not None or watch.tripped.any())
            ):
                # A fallback that remembers must have seen the episode from its start.
                instead, spare = policy.act(guard.fallback, seen, spare)
                distribution = _where(watch.tripped, instead, distribution)
            action = distribution.mean if deterministic else distribution.sample(noise[h])
            log_probs.append(distribution.log_prob(action))
            actions.append(action)
            applied = self.applied(action.cpu().numpy())
            self.act_s.append(time.perf_counter() - asked)
            raw, reward[:, :, h], ended, truncated = self.simulators.step(applied)
            paid = self._tensor(reward[:, :, h])
            carry, spare = policy.heard(carry, action, paid), policy.heard(spare, action, paid)
            mask[:, :, h] = alive
            self.steps_used += int(alive.sum())
            current, broken = self.seen(raw)
            broken |= self.simulators.diverged | ~np.isfinite(reward[:, :, h])
            diverged |= alive & broken  # what happens after an episode's end cannot spoil it
            terminated |= alive & ended
            alive &= ~(ended | truncated | diverged)
            if watch is not None:
                watch.step(
                    self._tensor(obs[:, :, h]),
                    action,
                    paid,
                    self._tensor(current),
                    self._bool(alive),
                )
        mask[diverged], obs[diverged], current[diverged] = 0.0, 0.0, 0.0
        reward[mask == 0] = 0.0
        success = self.simulators.success
        return Trajectories(
            obs=self._tensor(obs),
            action=torch.stack(actions, dim=2),
            log_prob=torch.stack(log_probs, dim=2),
            reward=self._tensor(reward),
            mask=self._tensor(mask),
            final_obs=self._tensor(current),
            terminated=self._bool(terminated),
            diverged=self._bool(diverged),
            success=None if success is None else self._bool(success),
            switched=None if watch is None else watch.switched,
        )

    def actor(self, params: Tensor) -> Acting:
        """The deterministic policies as a function of raw observations, to be watched."""
        return Acting(self, params)

    def applied(self, action: np.ndarray) -> np.ndarray:
        """What the simulator gets: the policy's action clipped to +-1, in the action's units."""
        return self._scale * np.clip(action, -1.0, 1.0) + self._middle

    def _noise(self, shape: tuple[int, int, int], seed: int) -> Tensor:
        """The batch's part ``[H, T, E, A]`` of what is drawn for the whole; from H, E and A."""
        generator = torch.Generator().manual_seed(seed)
        whole = torch.randn((shape[0], self._whole, *shape[1:]), generator=generator)
        return whole[:, self._part].to(self.policy.device)

    def seen(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the policy is shown of the raw observation ``[T, E, O]``.

        Also ``[T, E]`` bool: where that was not finite; a policy is shown zeros instead, since one
        NaN, even a masked one, would make a loss NaN.
        """
        if self._descriptors is not None:
            shape = (*obs.shape[:2], self._descriptors.shape[1])
            obs = np.concatenate([obs, np.broadcast_to(self._descriptors[:, None], shape)], axis=-1)
        with np.errstate(over="ignore"):
            shown = obs.astype(np.float32)
        broken = np.asarray(~np.isfinite(shown).all(axis=-1))
        shown[broken] = 0.0
        return shown, broken

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.policy.device)

    def _bool(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.policy.device)


class Acting:
    """Deterministic policies in an episode that somebody else steps through."""

    def __init__(self, batch: TaskBatch, params: Tensor) -> None:
        self._batch, self._params = batch, params
        self._carry = batch.policy.begin(params, batch.episodes)
        self._action = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """From ``[T, E, O]`` to actions ``[T, E, A]`` in the simulators' units."""
        shown = torch.as_tensor(self._batch.seen(obs)[0], device=self._batch.policy.device)
        acts, self._carry = self._batch.policy.act(self._params, shown, self._carry)
        self._action = acts.mean
        return self._batch.applied(acts.mean.cpu().numpy())

    def hear(self, reward: np.ndarray) -> None:
        """Be told what the last actions paid, ``[T, E]``."""
        paid = torch.as_tensor(reward, dtype=torch.float32, device=self._action.device)
        self._carry = self._batch.policy.heard(self._carry, self._action, paid)


def _where(
    tripped: Tensor, instead: DiagonalGaussian, planned: DiagonalGaussian
) -> DiagonalGaussian:
    """``instead`` where ``tripped [T, E]``."""
    return DiagonalGaussian(
        torch.where(tripped[..., None], instead.mean, planned.mean),
        torch.where(tripped[..., None], instead.log_std, planned.log_std),
    )
