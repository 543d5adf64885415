"""Policies that go on inferring the task while they act: a GRU's or LSTM's state is the belief.

A trial is several episodes of one task. Within an episode the state is the carry; from one episode
to the next it is a row of parameters, so a trial can be stopped, remembered and taken up again.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from agent.belief import BeliefPolicy
from agent.networks import Lstm, gru, linear
from agent.policy import DiagonalGaussian, PolicyConfig
from agent.types import Trajectories

Cell = Literal["gru", "lstm"]
"""Kind of recurrence. An LSTM's state is twice as wide: what it shows, and what it keeps."""


class Carry(NamedTuple):
    """What a recurrent policy knows in the middle of an episode."""

    hidden: Tensor
    """``[T, E, B]``."""
    action: Tensor
    """``[T, E, A]``, the last one; zeros at the start of an episode."""
    reward: Tensor
    """``[T, E]``, raw, what it paid."""
    first: Tensor
    """``[T, E]``, 1 at the first step of an episode."""


class _Reader(nn.Module):
    """Embedding and recurrence, over (s, last action, last reward, first step of an episode?)."""

    def __init__(
        self, inputs: int, embed: int, hidden: int, cell: Cell, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.embed = linear(inputs, embed, generator)
        self.recurrence = (Lstm if cell == "lstm" else gru)(embed, hidden, generator)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """States ``[N, H, B]`` after each of the inputs ``[N, H, inputs]``, from ``[N, B]``."""
        out, _ = self.recurrence(torch.tanh(self.embed(x)), hidden[None])
        return out


class RecurrentPolicy(BeliefPolicy):
    """The state is updated at every step, before acting; the head is shown it, and the observation.

    Resets between tasks, not between episodes: the state at an episode's end is ``read`` into the
    row, and the next episode starts there, told that it is a first step.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        cell: Cell = "gru",
        hidden: int = 64,
        embed: int = 64,
        shown: int | None = None,
        chunk: int | None = None,
        deltas: bool = False,
    ) -> None:
        """``chunk``: steps after which gradients are cut off (truncated BPTT); None: never."""
        self.cell: Cell = cell
        self.hidden, self.embed, self.chunk = hidden, embed, chunk
        super().__init__(
            obs_size,
            action_size,
            config,
            device,
            belief=[hidden, hidden] if cell == "lstm" else [hidden],
            shown=hidden if shown is None else shown,
            deltas=deltas,
        )

    def draw(self, generator: torch.Generator) -> None:
        """Fresh shared weights."""
        super().draw(generator)
        inputs = self.obs_size + self.action_size + 2
        reader = _Reader(inputs, self.embed, self.hidden, self.cell, generator)
        self.encoder = reader.to(self.device)

    def shown(self, belief: Tensor) -> Tensor:
        """The state's output; an LSTM's cell is not shown."""
        return belief[..., : self.hidden]

    def begin(self, params: Tensor, episodes: int) -> Carry:
        """The belief, at the first step of E episodes of each task."""
        shape = (len(params), episodes)
        return Carry(
            params[:, None, : self.belief_size].expand(-1, episodes, -1),
            params.new_zeros(*shape, self.action_size),
            params.new_zeros(shape),
            params.new_ones(shape),
        )

    def act(self, params: Tensor, obs: Tensor, carry: Carry) -> tuple[DiagonalGaussian, Carry]:
        """Take in what has just been seen, then act on it."""
        inputs = self._inputs(obs, carry.action, carry.reward, carry.first)
        before = carry.hidden.flatten(0, 1).contiguous()  # cuDNN takes no expanded states
        hidden = self.encoder(inputs.flatten(0, 1)[:, None], before)
        hidden = hidden.unflatten(0, obs.shape[:2])[:, :, 0]
        return self.decide(params, obs, self.shown(hidden)), carry._replace(hidden=hidden)

    def heard(self, carry: Carry | None, action: Tensor, reward: Tensor) -> Carry | None:
        """The last action and what it paid are seen with the next observation."""
        if carry is None:
            return None
        paid = reward.nan_to_num(0.0, 0.0, 0.0)
        return Carry(carry.hidden, action, paid, torch.zeros_like(carry.first))

    def along(self, params: Tensor, episodes: Trajectories) -> DiagonalGaussian:
        """The distributions at every step of stored episodes."""
        hidden = self.states(params, episodes)[:, :, :-1]
        return self.decide(params, episodes.obs, self.shown(hidden))

    def read(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """The state after the episodes, one after the other; diverged ones leave no trace.

        Episodes that were acted side by side are read as if each had followed the one before.
        """
        for e in range(episodes.reward.shape[1]):
            one = episodes.episodes(slice(e, e + 1))
            params = self.after(params, one, self.states(params, one))
        return params

    def after(self, params: Tensor, one: Trajectories, states: Tensor) -> Tensor:
        """The row after one episode of each task, whose ``states`` are known."""
        length = one.mask[:, 0].sum(-1).long()
        last = states[torch.arange(len(states), device=states.device), 0, length]
        belief = torch.where(length[:, None] > 0, last, params[:, : self.belief_size])
        return torch.cat([belief, params[:, self.belief_size :]], -1)

    def settled(self, one: Trajectories, states: Tensor) -> Tensor:
        """``states [T, 1, H + 1, B]`` of one episode, staying what they are once it has ended."""
        length = one.mask[:, 0].sum(-1).long()
        step = torch.arange(states.shape[2], device=states.device)
        index = torch.minimum(step, length[:, None])[:, None, :, None]
        return states.gather(2, index.expand_as(states))

    def states(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """The state at every step of stored episodes and after the last, ``[T, E, H + 1, B]``.

        Entry h is the state in which step h is acted; what has been seen last is in entry H, or
        earlier where an episode ended earlier.
        """
        zero = torch.zeros_like(episodes.action[:, :, :1])
        action = torch.cat([zero, episodes.action], 2)
        reward = torch.cat([zero[..., 0], episodes.reward], 2)
        first = torch.zeros_like(reward)
        first[:, :, 0] = 1.0
        obs = torch.cat([episodes.obs, episodes.final_obs[:, :, None]], 2)
        inputs = self._inputs(obs, action, reward, first).flatten(0, 1)
        hidden = params[:, None, : self.belief_size].expand(-1, obs.shape[1], -1).flatten(0, 1)
        parts = []
        for part in inputs.split(self.chunk or inputs.shape[1], 1):
            hidden = hidden.detach() if parts else hidden
            parts.append(self.encoder(part, hidden.contiguous()))
            hidden = parts[-1][:, -1]
        return torch.cat(parts, 1).unflatten(0, obs.shape[:2])

    def _inputs(self, obs: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        """What the recurrence sees, ``[..., O + A + 2]``; nothing was paid before a first step."""
        paid = self.reward_normalizer(reward[..., None]) * (1 - first)[..., None]
        parts = [self.normalizer(obs), action.clamp(-1.0, 1.0), paid, first[..., None]]
        return torch.cat(parts, -1)
