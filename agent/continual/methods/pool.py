"""A bounded pool of parameter vectors, who made them, and how each task combines them."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.continual.methods.common import packed, unpacked


class Pool:
    """Vectors ``[K, P]``, who made them, and how each task combines them.

    A task's policy is ``theta_0 + sum_j softmax(beta)_j v_j + v_own``; beta is -inf for vectors
    that it does not use.
    """

    def __init__(self, size: int) -> None:
        self.vectors = torch.zeros(0, size)
        self.makers: list[list[int]] = []
        """Of each vector, the visits that it is the mean of."""
        self.betas: dict[str, Tensor] = {}
        """Of each task, ``[K]``."""
        self.own: dict[str, int] = {}
        """Of each task, the row that its last visit made."""

    def add(self, task: str, vector: Tensor, beta: Tensor, visit: int) -> None:
        """A task's new vector ``[P]``, and the weights ``[K]`` it gives to those there are."""
        self.betas[task] = beta
        absent = beta.new_full((1,), -torch.inf)
        self.betas = {name: torch.cat([each, absent]) for name, each in self.betas.items()}
        self.own[task] = len(self.vectors)
        self.vectors = torch.cat([self.vectors, vector[None]])
        self.makers.append([visit])

    def drop_unused(self) -> None:
        """Forget the vectors that no task's policy is made of any more."""
        used = torch.stack(list(self.betas.values())).isfinite().any(0)
        used[list(self.own.values())] = True
        self._keep([row for row in range(len(self.vectors)) if used[row]])

    def merge_most_similar(self) -> None:
        """Put the mean of the two vectors of highest cosine in the place of the first.

        Whole vectors, each counted as often as visits made it. A task that used both gives the
        mean their common weight, so merging equal vectors changes no policy.
        """
        unit = torch.nn.functional.normalize(self.vectors, dim=1)
        cosine = (unit @ unit.T).triu(1) - 2 * torch.ones(len(unit), len(unit)).tril().to(unit)
        i, j = divmod(int(cosine.argmax()), len(unit))
        share = len(self.makers[i]) / len(self.makers[i] + self.makers[j])
        self.vectors[i] = share * self.vectors[i] + (1 - share) * self.vectors[j]
        self.makers[i] = self.makers[i] + self.makers[j]
        for beta in self.betas.values():
            beta[i] = torch.logaddexp(beta[i], beta[j])
        self.own = {name: i if row == j else row for name, row in self.own.items()}
        self._keep([row for row in range(len(unit)) if row != j])

    def _keep(self, rows: list[int]) -> None:
        self.vectors, self.makers = self.vectors[rows], [self.makers[row] for row in rows]
        self.betas = {name: beta[rows] for name, beta in self.betas.items()}
        self.own = {name: rows.index(row) for name, row in self.own.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything."""
        tasks = list(self.betas)
        kept = {
            "vectors": self.vectors,
            "makers": self.makers,
            "tasks": tasks,
            "betas": list(self.betas.values()),
            "own": [self.own[name] for name in tasks],
        }
        return packed("pool", kept)

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """The same."""
        kept = unpacked("pool", state, device)
        self.vectors, self.makers = kept["vectors"], kept["makers"]
        self.betas = dict(zip(kept["tasks"], kept["betas"], strict=True))
        self.own = dict(zip(kept["tasks"], kept["own"], strict=True))
