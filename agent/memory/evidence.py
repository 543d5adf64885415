"""Bayesian linear regression: how likely data is under one linear model drawn from a prior.

Each of M targets is ``y = x'w + noise``, ``noise ~ N(0, v)``, ``w ~ N(0, v / precision)``, with one
precision per feature. One precision for all targets means one factorisation for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from agent.memory.sums import Sums

_RIDGE = 1e-2
_ROUNDS = 30
_SMALLEST_PRIOR = 1e-6


@dataclass(frozen=True)
class Head:
    """A prior over linear models of one thing, with the units in which it is written.

    Features are centred and scaled, and targets are what the average task's model leaves over, in
    units of their own spread: what is summed is then of order one, and float32 holds it.
    """

    middle: Tensor
    """``[F]``, subtracted from the features; 0 for one that never changes, such as the constant."""
    spread: Tensor
    """``[F]``, divides them."""
    target_spread: Tensor
    """``[M]``, divides the targets."""
    average: Tensor
    """``[F, M]``, the average task's coefficients, in these units."""
    precision: Tensor
    """``[F]``, of the prior, in steps: how many steps it counts as."""
    noise: Tensor
    """``[M]``, variance of a step."""

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, mask: Tensor, floor: float) -> Head:
        """By empirical Bayes from R probes of each of M tasks: ``x [R, M, n, F]``, ``y`` likewise.

        The precision maximises the evidence of the tasks (each with all its probes). The noise is
        the larger of what is left over within a probe and of what makes the difference between two
        probes of one task as large as it is: real dynamics are not linear, so that two probes
        differ by more than the residuals of either would say.
        """
        valid = mask > 0
        middle, spread = _centre(x[valid])
        _, target_spread = _centre(y[valid])
        units = cls(
            middle,
            spread,
            target_spread,
            torch.zeros(x.shape[-1], y.shape[-1], dtype=torch.float64, device=x.device),
            torch.ones_like(middle),
            torch.ones_like(target_spread),
        )
        everything = units.sums(x.flatten(0, 2), y.flatten(0, 2), mask.flatten())
        head = replace(units, average=_ridge(everything))
        probes = head.sums(x, y, mask)
        squares = torch.where(valid[..., None], head.targets(x, y), 0.0).square().sum(-2)
        head = head._with_prior(probes, squares, valid.sum().double())
        between = _between_probes(probes, head.precision)
        return replace(head, noise=torch.maximum(head.noise, between).clamp(min=floor))

    def _with_prior(self, probes: Sums, squares: Tensor, steps: Tensor) -> Head:
        """The precision and the noise of the greatest evidence, by expectation-maximisation."""
        tasks = Sums(probes.gram.sum(0), probes.cross.sum(0))
        head = self
        for _ in range(_ROUNDS):
            covariance = torch.linalg.inv(tasks.gram + torch.diag(head.precision))
            mean = covariance @ tasks.cross
            unexplained = squares.sum((0, 1)) - (tasks.cross * mean).sum((0, 1))
            noise = (unexplained / steps).clamp(min=1e-12)
            size = (mean.square() / noise).mean((0, 2)) + covariance.diagonal(0, -2, -1).mean(0)
            head = replace(head, precision=1 / size.clamp(min=_SMALLEST_PRIOR), noise=noise)
        return head

    def sharpened(self, factor: float) -> Head:
        """As if every step counted ``factor`` times in the model, and the prior once."""
        return replace(self, precision=self.precision / factor, noise=self.noise / factor)

    def targets(self, x: Tensor, y: Tensor) -> Tensor:
        """What the average task's model leaves of ``y [..., M]``, in units of its spread."""
        scaled = (x.double() - self.middle) / self.spread
        return y.double() / self.target_spread - scaled @ self.average

    def sums(self, x: Tensor, y: Tensor, mask: Tensor) -> Sums:
        """Of raw features ``x [..., n, F]`` and targets ``y [..., n, M]``."""
        return Sums.of((x.double() - self.middle) / self.spread, self.targets(x, y), mask)

    def log_evidence(self, sums: Sums) -> Tensor:
        """Log-density ``[...]`` of the data, less terms that no linear model changes.

        Those are of the targets and their number alone, so that they cancel wherever the same data
        stands on both sides of a ratio; no data has log-evidence 0.
        """
        factor, info = torch.linalg.cholesky_ex(sums.gram + torch.diag(self.precision))
        fitted = torch.linalg.solve_triangular(factor, sums.cross, upper=False)
        explained = (fitted.square() / self.noise).sum((-2, -1)) / 2
        volume = factor.diagonal(0, -2, -1).log().sum(-1) - self.precision.log().sum() / 2
        found = explained - len(self.noise) * volume
        return found.masked_fill(info != 0, torch.nan)

    def coefficients(self, sums: Sums) -> Tensor:
        """Posterior mean ``[..., F, M]``, relative to the average task."""
        factor, info = torch.linalg.cholesky_ex(sums.gram + torch.diag(self.precision))
        found = torch.cholesky_solve(sums.cross, factor)
        return found.masked_fill((info != 0)[..., None, None], torch.nan)

    @property
    def sizes(self) -> tuple[int, int]:
        """F and M."""
        return len(self.middle), len(self.target_spread)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Head:
        """The inverse of ``state_dict``."""
        return cls(**{f.name: state[f.name] for f in fields(cls)})


def log_ratio(head: Head, query: Sums, rows: Sums) -> Tensor:
    """``log p(query | rows' task) - log p(query | a new task)``, exact for linear tasks."""
    alone = head.log_evidence(query) + head.log_evidence(rows)
    return head.log_evidence(query + rows) - alone


def _centre(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread ``[F]`` of ``values [n, F]``; 0 and 1 where a column never changes."""
    mean, spread = values.double().mean(0), values.double().std(0)
    constant = spread < 1e-8 * (1 + mean.abs())
    return mean.masked_fill(constant, 0.0), spread.masked_fill(constant, 1.0)


def _ridge(sums: Sums) -> Tensor:
    eye = torch.eye(sums.gram.shape[-1], dtype=torch.float64, device=sums.gram.device)
    return torch.linalg.solve(sums.gram + _RIDGE * eye, sums.cross)


def _between_probes(probes: Sums, precision: Tensor) -> Tensor:
    """Variance ``[M]`` of a step that explains how much probes of one task differ.

    Coefficients of two probes differ by ``N(0, v (G1^-1 + G2^-1))``; hardly any prior is added,
    since shrinking both towards one point would hide their difference.
    """
    covariance = torch.linalg.inv(probes.gram + 1e-3 * torch.diag(precision))
    found = covariance @ probes.cross
    apart, expected = found[1:] - found[:-1], covariance[1:] + covariance[:-1]
    squares = (apart * torch.linalg.solve(expected, apart)).sum(-2)
    return squares.mean((0, 1)) / probes.gram.shape[-1]
