"""Policies whose parameters are what they believe the task to be.

The weights of the network are shared by all tasks and belong to the policy; what adapts, and what
the memory keeps, is a row of a few numbers. So a task is recalled by putting its belief back: one
forward pass, no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.policy import DiagonalGaussian, GaussianMlp, ObsNormalizer, PolicyConfig
from agent.types import Trajectories


class BeliefPolicy(GaussianMlp):
    """Acts on the observation and on what ``shown`` makes of the belief.

    P is B, the belief's size; with ``deltas``, B and then changes to the shared weights, for task
    adaptation beyond the belief.
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        config: PolicyConfig | None = None,
        device: torch.device | str = "cpu",
        *,
        belief: list[int],
        shown: int,
        deltas: bool = False,
    ) -> None:
        """``belief`` says how B divides into pieces of one scale, ``shown`` what the policy sees.

        The shared weights are zeros until ``draw``.
        """
        super().__init__(obs_size, action_size, config, device)
        self._plain = GaussianMlp(obs_size, action_size, self.config, device)
        self._plain.normalizer = self.normalizer
        self.head = GaussianMlp(obs_size + shown, action_size, self.config, device)
        self.weights = torch.zeros(self.head.num_params, device=self.device, requires_grad=True)
        """Of the head, shared by all tasks."""
        self.belief_size = sum(belief)
        """B."""
        self.segments = [*belief, *(self.head.segments if deltas else [])]
        self.num_params = sum(self.segments)
        self.reward_normalizer = ObsNormalizer(1, device)
        """Rewards are inputs here, and are normalised as observations are."""
        self.encoder = nn.Module()
        """What reads episodes; set by ``draw``."""

    @property
    def plain(self) -> GaussianMlp:
        """A network of the same form with weights of its own, for learning from scratch."""
        return self._plain

    def draw(self, generator: torch.Generator) -> None:
        """Fresh shared weights, in place. Extensions draw the encoder too."""
        with torch.no_grad():
            self.weights.copy_(self.draw_weights(generator))

    def draw_weights(self, generator: torch.Generator) -> Tensor:
        """What ``weights`` begins as."""
        return self.head.init(generator)

    def init(self, generator: torch.Generator) -> Tensor:
        """The prior belief ``[P]``: nothing is known."""
        return torch.zeros(self.num_params, device=self.device)

    def shown(self, belief: Tensor) -> Tensor:
        """What the head sees of beliefs ``[..., B]``."""
        raise NotImplementedError

    def read(self, params: Tensor, episodes: Trajectories) -> Tensor:
        """The beliefs ``[T, P]`` after also having seen these episodes, in the graph."""
        raise NotImplementedError

    def shared(self) -> dict[str, Tensor]:
        """Weights, encoder and normalisers: without them a belief means nothing."""
        state = {"weights": self.weights.detach()}
        state |= {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        state |= {f"obs.{k}": v for k, v in self.normalizer.state_dict().items()}
        return state | {f"reward.{k}": v for k, v in self.reward_normalizer.state_dict().items()}

    def load_shared(self, state: dict[str, Tensor]) -> None:
        """Take over what ``shared`` gave."""
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        parts = {
            part: {n[len(part) :]: v for n, v in state.items() if n.startswith(part)}
            for part in ("encoder.", "obs.", "reward.")
        }
        self.encoder.load_state_dict(parts["encoder."])
        self.normalizer.load_state_dict(parts["obs."])
        self.reward_normalizer.load_state_dict(parts["reward."])

    def update_normalizers(self, episodes: Trajectories) -> None:
        """Take in the observations and rewards of some episodes; between iterations only."""
        self.normalizer.update(episodes.obs, episodes.mask)
        self.reward_normalizer.update(episodes.reward[..., None], episodes.mask)

    def renormalised(self, params: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Not possible: a belief of other weights and normalisers says nothing to these.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a belief cannot be carried over to another training run: its numbers mean something "
            "only to the encoder and the weights that it was made with"
        )

    def __call__(self, params: Tensor, obs: Tensor) -> DiagonalGaussian:
        """Each task's action distribution, as long as its belief stays what it is."""
        return self.decide(params, obs, self.shown(params[:, : self.belief_size]))

    def decide(self, params: Tensor, obs: Tensor, shown: Tensor) -> DiagonalGaussian:
        """Actions at raw ``obs [T, ..., O]`` where the head is shown ``[T, ..., Z]``.

        Where that has fewer dimensions, it is the same along those that are missing.
        """
        while shown.ndim < obs.ndim:
            shown = shown.unsqueeze(-2)
        shown = shown.expand(*obs.shape[:-1], -1)
        inputs = torch.cat([self.normalizer(obs), shown], -1)
        if params.shape[1] > self.belief_size:
            return self.head.network(self.weights + params[:, self.belief_size :], inputs)
        # The weights are the same for all tasks: one product instead of T.
        flat = self.head.network(self.weights[None], inputs.flatten(0, -2)[None])
        return DiagonalGaussian(flat.mean.reshape(*obs.shape[:-1], -1), flat.log_std[0])


def step_features(policy: BeliefPolicy, episodes: Trajectories) -> Tensor:
    """What an encoder sees of every step ``[T, E, H, 2 O + A + 1]``: s, a, r and the change of s.

    Zero where the mask is: what did not happen must not be seen.
    """
    now, after = policy.normalizer(episodes.obs), policy.normalizer(episodes.next_obs())
    reward = policy.reward_normalizer(episodes.reward[..., None])
    action = episodes.action.clamp(-1.0, 1.0)
    return torch.cat([now, action, reward, after - now], -1) * episodes.mask[..., None]
