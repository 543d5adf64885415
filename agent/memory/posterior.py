"""From scores to probabilities: which row is this task's, or is it none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How much a log-scale one away from 0 costs: without it, tasks that are all told apart would make
# the scale infinite. Ten times as much makes the posterior less sure than it is right.
_PENALTY = 1e-3
_NEVER = -1e30


@dataclass(frozen=True)
class Posterior:
    """What T queries are, as probabilities; ``weight.sum(-1) + null == 1``, always finite."""

    weight: Tensor
    """``[T, N]``, that it is the task of the row."""
    null: Tensor
    """``[T]``, that it is none of them."""

    def ranked(self, k: int) -> tuple[Tensor, Tensor]:
        """Weights and rows ``[T, min(k, N)]``, likeliest first."""
        found = self.weight.topk(min(k, self.weight.shape[1]), dim=-1)
        return found.values, found.indices


@dataclass(frozen=True)
class Prior:
    """What is believed of a task before it is seen."""

    rows: Tensor
    """``[N]``, that it is the task of the row."""
    null: float
    """That it is none of them; all together sum to 1."""

    @classmethod
    def recurrence(cls, visits: Tensor, novelty: float) -> Prior:
        """``n_i / (n + zeta)`` and ``zeta / (n + zeta)``, of visits ``[N]`` and ``novelty`` zeta.

        What came often comes again (a Chinese restaurant process); zeta counts as so many visits to
        tasks never met.
        """
        if novelty <= 0:
            raise ValueError(f"novelty={novelty}: must be > 0, or nothing could ever be new")
        if bool((visits < 0).any()):
            raise ValueError("visits must not be negative")
        total = float(visits.sum()) + novelty
        return cls(visits.double() / total, novelty / total)

    @classmethod
    def even(cls, rows: int, null: float) -> Prior:
        """The same for every row, and ``null`` for none of them."""
        return cls(torch.full((rows,), (1 - null) / max(rows, 1), dtype=torch.float64), null)


@dataclass(frozen=True)
class Calibration:
    """The log-odds of "same task" to "new task" that a score is worth: ``scale * s + offset``."""

    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def fit(cls, scores: Tensor | Sequence[Tensor], same: Tensor | None = None) -> Calibration:
        """By maximum likelihood on training tasks: row and column i ``[M, M]`` are of one task.

        Every task is met twice: with its row in the memory, and, as a new one, with its row left
        out. ``same [M, M]`` bool says which others are the same task too, where a family has few
        tasks (see ``base.same_task``); they are left out with it. Several matrices (of several
        pairs of probes) are taken together.

        Raises:
            ValueError: Not a square matrix with at least two tasks in it.
        """
        matrices = [scores] if isinstance(scores, Tensor) else list(scores)
        for matrix in matrices:
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
                raise ValueError(f"expected scores of M >= 2 tasks [M, M], got {matrix.shape}")
        parts = torch.stack([m.double() for m in matrices])[..., None]
        weight, offset = fit_weights(parts, same)
        return cls(float(weight[0]), offset)

    def posterior(
        self, scores: Tensor, prior: Tensor | Prior, null_prior: float | None = None
    ) -> Posterior:
        """From uncalibrated scores ``[T, N]``; what has none (-inf or NaN) is not that row.

        The prior is a ``Prior``, or ``[N]`` and ``null_prior``; it is normalised here. With no rows
        or no scores there is nothing to be recognised: null is 1.
        """
        if not isinstance(prior, Prior):
            if null_prior is None:
                raise ValueError("a prior of rows needs the prior of none of them, null_prior")
            prior = Prior(prior, null_prior)
        if prior.null <= 0 or bool((prior.rows < 0).any()):
            raise ValueError(f"priors must be > 0 for none of the rows, got {prior.null}")
        odds = (self.scale * scores.double() + self.offset).nan_to_num(nan=-torch.inf)
        odds = odds.masked_fill(torch.isneginf(scores), -torch.inf)
        rows = odds + prior.rows.to(odds.device).double().log()
        null = odds.new_full((len(odds), 1), math.log(prior.null))
        found = torch.softmax(torch.cat([rows, null], -1), -1)
        return Posterior(found[:, :-1], found[:, -1])

    def state_dict(self) -> dict[str, Tensor]:
        """Scale and offset."""
        return {"calibration": torch.tensor([self.scale, self.offset], dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Calibration:
        """The inverse of ``state_dict``."""
        scale, offset = state["calibration"].tolist()
        return cls(scale, offset)


def fit_weights(parts: Tensor, same: Tensor | None = None) -> tuple[Tensor, float]:
    """Weights ``[L]`` of a score's L terms, and the offset, that recognise tasks best.

    ``parts [B, M, M, L]``, task i in row and column i. What is minimised is the log-loss of
    ``Calibration``'s cases, tasks known and new half of the time each. Weights are positive, since
    no term may speak against what is evidence for it.
    """
    parts = parts.detach()
    unit = parts[torch.isfinite(parts)].square().mean().sqrt()
    unit = torch.where(unit > 0, unit, 1.0)  # where nothing is scored, nothing is to be scaled
    terms = (parts / unit).nan_to_num(nan=_NEVER, neginf=_NEVER, posinf=-_NEVER)
    log_weight = torch.zeros(parts.shape[-1], dtype=terms.dtype, device=terms.device)
    offset = torch.zeros((), dtype=terms.dtype, device=terms.device)
    unknowns = [log_weight.requires_grad_(), offset.requires_grad_()]
    optimiser = torch.optim.LBFGS(unknowns, max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = _PENALTY * log_weight.square().sum() / len(log_weight)
        value = log_loss((terms * log_weight.exp()).sum(-1) + offset, same) + penalty
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return (log_weight.exp() / unit).detach(), float(offset.detach())


def log_loss(odds: Tensor, same: Tensor | None = None) -> Tensor:
    """Mean log-loss of log-odds ``[B, M, M]`` on its cases: each task known, and each left out.

    Every row has the same prior, and a task is known half of the time.
    """
    tasks = odds.shape[-1]
    if same is None:
        same = torch.eye(tasks, dtype=torch.bool, device=odds.device)
    none = torch.zeros_like(odds[..., :1])
    with_rows = torch.cat([odds - math.log(tasks), none], -1).log_softmax(-1)[..., :-1]
    known = with_rows.masked_fill(~same, -torch.inf).logsumexp(-1)
    others = (~same).sum(-1, keepdim=True).clamp(min=1).log()
    without = (odds - others).masked_fill(same, _NEVER)
    new = torch.cat([without, none], -1).log_softmax(-1)[..., -1]
    return -(known.mean() + new.mean()) / 2


def loss_of_chance(tasks: int, same: Tensor | None = None) -> float:
    """The least log-loss of a score that is the same for all rows."""
    shape = (1, tasks, tasks)
    device = None if same is None else same.device
    flat = torch.ones(shape, dtype=torch.float64, device=device)
    losses = [log_loss(flat * b / 2, same) for b in range(-20, 21)]
    return float(torch.stack(losses).min())
