"""The trust-region step: its closed form on quadratics, its limit, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agent.trust_region import TrustRegion, conjugate_gradient, trust_region_step


def positive(size: int, seed: int = 0) -> Tensor:
    """A positive definite matrix of moderate condition."""
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=random, dtype=torch.float64)
    return root @ root.T / size + torch.eye(size, dtype=torch.float64)


def same(value: Tensor) -> Tensor:
    return value


def quadratic(matrix: Tensor, start: Tensor) -> Callable[[Tensor], Tensor]:
    """KL-like: ``(x - start)' matrix (x - start) / 2``."""
    return lambda x: 0.5 * (x - start) @ matrix @ (x - start)


START = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_conjugate_gradient_solves_a_system_in_as_many_iterations_as_it_has_unknowns(size: int):
    matrix, target = positive(size), torch.arange(1.0, size + 1, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, target, size)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target))
    if size > 1:
        early = conjugate_gradient(lambda v: matrix @ v, target, 1)
        along = target * (target @ target) / (target @ matrix @ target)
        torch.testing.assert_close(early, along)  # steepest descent with an exact length


def test_conjugate_gradient_stops_at_the_solution_and_leaves_zero_at_zero():
    calls: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return 2.0 * v

    torch.testing.assert_close(conjugate_gradient(product, SLOPE, 50), SLOPE / 2)
    assert len(calls) == 1
    assert torch.equal(conjugate_gradient(product, torch.zeros(4), 5), torch.zeros(4))


def test_a_linear_loss_in_a_quadratic_region_has_a_closed_form():
    matrix = positive(4)
    config = TrustRegion(delta=0.02, damping=0.0)
    stepped = trust_region_step(START, lambda x: SLOPE @ x, quadratic(matrix, START), config, same)
    natural = torch.linalg.solve(matrix, SLOPE)
    expected = START - math.sqrt(2 * 0.02 / float(SLOPE @ natural)) * natural
    # A hair longer than the limit in floating point: then it is shortened once.
    share = 0.8 ** (stepped.tries - 1)
    assert stepped.tries <= 2
    torch.testing.assert_close(stepped.point, START + share * (expected - START))
    assert stepped.divergence == pytest.approx(0.02 * share**2, rel=1e-6)
    assert stepped.loss == pytest.approx(float(SLOPE @ stepped.point))


def test_damping_turns_the_step_towards_steepest_descent():
    matrix, damping = positive(4), 1e4
    config = TrustRegion(damping=damping)
    stepped = trust_region_step(START, lambda x: SLOPE @ x, quadratic(matrix, START), config, same)
    direction = torch.nn.functional.normalize(START - stepped.point, dim=0)
    torch.testing.assert_close(
        direction, torch.nn.functional.normalize(SLOPE, dim=0), atol=1e-3, rtol=0
    )


def test_a_step_that_goes_too_far_is_shortened_until_it_keeps_the_limit():
    """The KL grows faster than its curvature at the start says."""
    base = quadratic(positive(4), START)
    config = TrustRegion(delta=0.5)

    def steep(x: Tensor) -> Tensor:
        return base(x) + 4 * base(x).square()

    stepped = trust_region_step(START, lambda x: SLOPE @ x, steep, config, same)
    assert stepped.tries > 2 and 0 < stepped.divergence <= 0.5
    # Had it been tried once less often, it would have gone too far.
    full = START + (stepped.point - START) / 0.8
    assert float(steep(full)) > 0.5
    assert float(steep(stepped.point)) == pytest.approx(stepped.divergence)


def test_a_step_that_makes_the_loss_worse_is_shortened_or_refused():
    matrix = positive(4)
    region = quadratic(matrix, START)

    def curved(weight: float) -> Callable[[Tensor], Tensor]:
        return lambda x: SLOPE @ (x - START) + weight * (x - START).square().sum()

    gentle = trust_region_step(START, curved(10.0), region, TrustRegion(delta=1.0), same)
    assert gentle.tries > 1 and gentle.loss < 0
    assert gentle.loss == pytest.approx(float(curved(10.0)(gentle.point)))
    few = TrustRegion(delta=1.0, tries=1)
    refused = trust_region_step(START, curved(10.0), region, few, same)
    assert torch.equal(refused.point, START)
    assert (refused.tries, refused.loss, refused.divergence) == (0, 0.0, 0.0)


def test_nothing_to_gain_is_no_step():
    flat = trust_region_step(
        START, lambda x: (0 * x).sum() + 3, quadratic(positive(4), START), TrustRegion(), same
    )
    assert torch.equal(flat.point, START) and flat.tries == 0 and flat.loss == 3


def test_a_gradient_that_is_not_finite_is_refused():
    def broken(x: Tensor) -> Tensor:
        return (x * torch.nan).sum()

    with pytest.raises(FloatingPointError, match="not finite"):
        trust_region_step(START, broken, quadratic(positive(4), START), TrustRegion(), same)


def test_what_processes_share_is_averaged():
    """Where all have the same, a mean that doubles tells what goes through it.

    Gradient and curvature doubled leave the direction, and shorten the step by the root of 2; loss
    and divergence are told doubled.
    """
    matrix = positive(4)
    config = TrustRegion(delta=0.02, damping=0.0)
    problem = (START, lambda x: SLOPE @ x, quadratic(matrix, START))
    one = trust_region_step(*problem, config, same)
    doubled = trust_region_step(*problem, config, lambda value: 2 * value)
    share = 0.8 ** (doubled.tries - one.tries)
    torch.testing.assert_close(doubled.point - START, share * (one.point - START) / math.sqrt(2))
    assert doubled.loss == pytest.approx(2 * float(SLOPE @ doubled.point))
    true = float(quadratic(matrix, START)(doubled.point))
    assert doubled.divergence == pytest.approx(2 * true)


def test_the_gradient_is_what_processes_have_on_average():
    """Of two that hold the same but for a mirrored slope; here the other one is made up."""
    ball, config = quadratic(torch.eye(4, dtype=torch.float64), START), TrustRegion()

    def both(value: Tensor) -> Tensor:
        return (value + value.flip(0)) / 2 if value.ndim else value

    middle = (SLOPE + SLOPE.flip(0)) / 2
    alone = trust_region_step(START, lambda x: middle @ x, ball, config, same)
    shared = trust_region_step(START, lambda x: SLOPE @ x, ball, config, both)
    torch.testing.assert_close(shared.point, alone.point)
