"""Learned keys on made-up robots with curved dynamics, and their formulas against brute force."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from agent.memory.key.base import IndistinguishableTasksError, Key, NotFittedError
from agent.memory.key.contrastive import Contrastive
from agent.memory.key.features import LearnedFeatures
from agent.memory.key.likelihood import Likelihood
from agent.memory.key.networks import linear, train
from agent.memory.key.steps import CLIP, Steps, StepScaler
from agent.memory.key.summed import Seen
from agent.memory.key.vae import Vae
from agent.memory.scoring import auroc, precision_at
from agent.policy import ObsNormalizer
from agent.types import Trajectories

OBS, ACTIONS, TASKS = 3, 2, 48
NORMALIZER = ObsNormalizer(OBS)
QUICK: dict[str, dict[str, Any]] = {
    "contrastive": {"width": 24, "latent": 16, "updates": 120, "steps": 20, "rate": 1e-2},
    "vae": {"width": 24, "latent": 8, "updates": 250, "steps": 20, "rate": 1e-2},
}
CLASSES: dict[str, Any] = {"contrastive": Contrastive, "vae": Vae}


def robots(tasks: int, seed: int, differ: float = 1.0) -> Tensor:
    """What M robots are: gains of the curved dynamics ``[M, O]``, then prices ``[M, A]``."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + differ * torch.randn(tasks, OBS + ACTIONS, generator=generator)


def probe(what: Tensor, seed: int, episodes: int = 1, horizon: int = 40) -> Trajectories:
    """Random actions; ``ds = -s/2 + .7 gain cos(1.5 s) + a + noise``, reward = price a."""
    generator, tasks = torch.Generator().manual_seed(seed), len(what)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gain, price = what[:, None, :OBS], what[:, None, OBS:]
    state, columns = normal(tasks, episodes, OBS), []
    for _ in range(horizon):
        action = normal(tasks, episodes, ACTIONS).clamp(-1, 1)
        columns.append((state, action, (price * action).sum(-1) + 0.05 * normal(tasks, episodes)))
        push = torch.nn.functional.pad(action, (0, OBS - ACTIONS))
        curved = 0.7 * gain * torch.cos(1.5 * state)
        state = 0.5 * state + curved + push + 0.05 * normal(*state.shape)
    obs, action, reward = (torch.stack(c, 2) for c in zip(*columns, strict=True))
    none, mask = torch.zeros(tasks, episodes, dtype=torch.bool), torch.ones_like(reward)
    return Trajectories(obs, action, torch.zeros_like(mask), reward, mask, state, none, none)


TRAIN, HELD = robots(TASKS, 0), robots(20, 1)
PROBES = [probe(TRAIN, seed) for seed in (1, 2)]


def fitted(kind: str, probes: list[Trajectories] = PROBES, **settings: Any) -> Any:
    key = CLASSES[kind](**QUICK[kind] | settings)
    key.fit(probes, NORMALIZER)
    return key


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    return {kind: fitted(kind) for kind in CLASSES}


def blown_up(episodes: Trajectories, task: int) -> Trajectories:
    mask, obs = episodes.mask.clone(), episodes.obs.clone()
    mask[task], obs[task] = 0, torch.nan
    return dataclasses.replace(episodes, mask=mask, obs=obs)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_steps(obs: Tensor, surprise: Tensor, mask: Tensor) -> Steps:
    action = torch.zeros(*mask.shape, ACTIONS)
    return Steps(obs, action, torch.zeros_like(obs), surprise, mask)


# Steps.


def test_what_every_task_has_is_no_surprise():
    seen = Seen.of(probe(robots(8, 0, differ=0.0), 1), NORMALIZER)
    exact = dataclasses.replace(seen, change=2 * seen.obs, reward=seen.obs[..., :1] - 7)
    steps = StepScaler.fit(exact)(exact)
    assert float(steps.surprise.abs().max()) < 0.1
    scaler = StepScaler.fit(seen)
    steps = scaler(seen)
    assert steps.inputs().shape == (8, 40, 2 * OBS + ACTIONS + 1)
    unclipped = steps.surprise[steps.surprise.abs().amax(-1) < CLIP]
    torch.testing.assert_close(unclipped.std(0), torch.ones(1 + OBS), rtol=0, atol=0.1)
    torch.testing.assert_close(unclipped.mean(0), torch.zeros(1 + OBS), rtol=0, atol=0.05)
    far = dataclasses.replace(seen, reward=seen.reward + 1e6)
    assert float(scaler(far).surprise.max()) == CLIP


def test_masked_steps_are_zero_and_are_not_drawn():
    episodes = blown_up(PROBES[0], 3)
    seen = Seen.of(episodes, NORMALIZER)
    scaler = StepScaler.fit(seen)
    steps = scaler(seen)
    assert all(float(column[3].abs().max()) == 0 for column in vars(steps).values())
    mask = torch.zeros(2, 5, 6)
    mask[1, :, 2:5] = 1
    numbered = torch.arange(6.0).expand(2, 5, 6)[..., None]
    three = some_steps(numbered, numbered, mask).drawn(1, 3, torch.Generator().manual_seed(0))
    assert sorted(three.obs[0, :, 0].tolist()) == [2.0, 3.0, 4.0]
    assert bool((three.mask == 1).all()) and torch.equal(three.obs, three.surprise)
    many = some_steps(numbered, numbered, mask).drawn(1, 99, torch.Generator().manual_seed(0))
    assert many.mask.sum(-1).tolist() == [3.0] * 5


# Both kinds of key.


@pytest.mark.parametrize("kind", CLASSES)
def test_tasks_never_met_are_told_apart(keys: dict[str, Any], kind: str):
    rows, query = (keys[kind].encode(probe(HELD, seed)) for seed in (3, 4))
    own, score = torch.arange(20), keys[kind].score(query, rows)
    assert precision_at(score, own, 1) >= 0.7 and precision_at(score, own, 5) >= 0.95
    # And what is new is known to be new: log-odds of its best row are lower.
    strangers = score.masked_fill(torch.eye(20, dtype=torch.bool), -torch.inf).amax(-1)
    assert auroc(score.amax(-1), strangers) > 0.75
    assert float(score.diagonal().median()) > 0 > float(score.median())


@pytest.mark.parametrize("kind", CLASSES)
def test_neither_order_nor_streaming_makes_a_difference(keys: dict[str, Any], kind: str):
    key: Key = keys[kind]
    whole = probe(HELD, 3, episodes=3)
    parts = [key.encode(whole.episodes(slice(i, i + 1))) for i in range(3)]
    shuffled = key.encode(whole.episodes(torch.tensor([2, 0, 1])))
    one_way = key.joined(key.joined(parts[0], parts[1]), parts[2])
    other_way = key.joined(parts[2], key.joined(parts[1], parts[0]))
    for evidence in (shuffled, one_way, other_way):
        torch.testing.assert_close(evidence, key.encode(whole), rtol=1e-3, atol=1e-3)
    # Nor do steps that were never taken.
    mask = whole.mask.clone()
    mask[:, 1:] = 0
    masked = key.encode(dataclasses.replace(whole, mask=mask))
    torch.testing.assert_close(masked, parts[0], rtol=1e-3, atol=1e-3)
    rows = key.encode(probe(HELD, 4))
    more, less = (key.score(q, rows).diagonal().mean() for q in (one_way, parts[0]))
    assert more > less


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_not_known_has_no_score(keys: dict[str, Any], kind: str):
    key: Key = keys[kind]
    rows, query = (key.encode(blown_up(p, 2 + i)) for i, p in enumerate(PROBES))
    assert torch.isnan(rows[2]).all() and torch.isfinite(rows[3]).all()
    score = key.score(query, rows)
    assert torch.isneginf(score[:, 2]).all() and torch.isneginf(score[3]).all()
    kept = [i for i in range(TASKS) if i not in (2, 3)]
    assert torch.isfinite(score[kept][:, kept]).all()
    joined = key.joined(rows, query)
    assert torch.equal(joined[2], query[2]) and torch.equal(joined[3], rows[3])
    assert key.score(query, rows[:0]).shape == (TASKS, 0)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_key_goes_and_comes_back(keys: dict[str, Any], kind: str):
    with pytest.raises(NotFittedError):
        _ = CLASSES[kind]().size
    key, other = keys[kind], CLASSES[kind](**QUICK[kind])
    other.load_state_dict({name: value.clone() for name, value in key.state_dict().items()})
    rows = key.encode(PROBES[0])
    assert rows.shape == (TASKS, key.size) and rows.dtype == torch.float32
    assert not rows.requires_grad and other.version == key.version
    assert torch.equal(other.encode(PROBES[0]), rows)
    assert torch.equal(other.score(rows, rows), key.score(rows, rows))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_seed_alone_decides(kind: str):
    before = torch.get_rng_state()
    with torch.no_grad():  # no matter what the caller does
        made = [fitted(kind, updates=40, seed=s) for s in (0, 0, 1)]
    assert made[0].version == made[1].version != made[2].version
    for name in ("network.step.0.both.weight", "scaler.reward"):  # drawn, and who was held out
        first, _, other = (key.state_dict()[name] for key in made)
        assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", CLASSES)
def test_tasks_that_are_all_alike_are_refused(kind: str):
    alike = robots(TASKS, 0, differ=0.0)
    with pytest.raises(IndistinguishableTasksError, match="hardly more alike"):
        fitted(kind, [probe(alike, seed) for seed in (1, 2)])
    with pytest.raises(IndistinguishableTasksError, match="got 2 of 7"):
        fitted(kind, [probe(TRAIN[:7], seed) for seed in (1, 2)])
    with pytest.raises(IndistinguishableTasksError, match="got 1 of 48"):
        fitted(kind, PROBES[:1])


def test_training_tasks_that_diverged_are_left_out():
    spoiled = [blown_up(PROBES[0], 5), blown_up(PROBES[1], 9)]
    key = fitted("contrastive", spoiled, updates=60)
    assert all(torch.isfinite(value.double()).all() for value in key.state_dict().values())


# Contrastive.


def test_contrastive_terms_by_hand(keys: dict[str, Any]):
    key = keys["contrastive"]
    rows, query = (key.encode(p)[:4] for p in PROBES)
    points, asked = rows[:, :16].double(), query[:, :16].double()
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(4).double())
    scale = float(key.state_dict()["network.log_scale"].exp())
    usual = (scale * asked @ key.state_dict()["others"].double().T).exp().mean(-1).log()
    weight, offset = key.state_dict()["weight"], key.state_dict()["offset"]
    expected = weight[0] * scale * asked @ points.T - weight[1] * usual[:, None] + offset
    torch.testing.assert_close(key.score(query, rows), expected, rtol=1e-4, atol=1e-4)
    assert len(key.state_dict()["others"]) == TASKS - round(0.2 * TASKS)  # the rest is held out


def test_probes_of_one_task_in_two_places_do_not_repel_each_other():
    key = Contrastive(width=4, latent=4, updates=1)
    generator = torch.Generator().manual_seed(0)
    key._network = key.network(OBS, ACTIONS, generator)
    seen = [Seen.of(probe(TRAIN[:3], seed), NORMALIZER) for seed in (1, 2)]
    first, second = (StepScaler.fit(seen[0])(s) for s in seen)
    points = [key.view(key.summed(s.inputs(), s.mask)) for s in (first, second)]
    alike = (math.exp(1.5) * points[0] @ points[1].mT).exp()
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    total = 0.0
    for way in (alike, alike.mT):
        share = way / way.sum(-1, keepdim=True)
        right = [share[0, 0] + share[0, 1], share[1, 0] + share[1, 1], share[2, 2]]
        total -= float(torch.stack(right).log().mean().detach()) / 2
    assert key.loss(first, second, same, generator).item() == pytest.approx(total, rel=1e-4)


# Vae.


def test_vae_score_is_the_bayes_factor_of_one_latent(keys: dict[str, Any]):
    key = keys["vae"]
    rows, query = (key.encode(p)[:3] for p in PROBES)
    grid = torch.linspace(-12, 12, 40_001).double()
    prior = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])

    # Two probes' latents differ by more than each is uncertain: added to each one's variance.
    apart = key.state_dict()["apart"]
    assert (apart >= 0).all() and (apart > 0).any()

    def factors_of(evidence: Tensor) -> Tensor:
        shift, precision = evidence[1:].double().chunk(2)
        variance = 1 / precision + apart
        return torch.cat([shift / precision / variance, 1 / variance])

    def log_normaliser(natural: Tensor) -> Tensor:
        shift, precision = natural.chunk(2)
        factors = shift[:, None] * grid - precision[:, None] * grid.square() / 2
        return (factors + prior.log()).logsumexp(-1).sum()

    weight, offset = key.state_dict()["weight"][0], key.state_dict()["offset"]
    for i in range(3):
        for j in range(3):
            asked, row = factors_of(query[i]), factors_of(rows[j])
            alone = log_normaliser(asked) + log_normaliser(row)
            ratio = log_normaliser(asked + row) - alone
            score = key.score(query, rows)[i, j]
            torch.testing.assert_close(score, weight * ratio + offset, rtol=1e-3, atol=1e-2)


def test_vae_scores_are_the_same_in_pieces(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    rows, query = (keys["vae"].encode(p) for p in PROBES)
    whole = keys["vae"].score(query, rows)
    monkeypatch.setattr("agent.memory.key.vae._PAIRS_AT_ONCE", 5 * TASKS)
    torch.testing.assert_close(keys["vae"].score(query, rows), whole)


def test_vae_loss_is_the_lower_bound_per_step():
    key = Vae(width=4, latent=2, beta=0.5)
    key._network = key.network(OBS, ACTIONS, torch.Generator().manual_seed(0)).requires_grad_(False)
    key._network.log_var.copy_(torch.tensor([0.3, -0.5, 0.0, 1.0]))
    key._probe_steps = 60.0
    seen = [Seen.of(probe(TRAIN[:3], seed), NORMALIZER) for seed in (1, 2)]
    first, second = (StepScaler.fit(seen[0])(s) for s in seen)
    shift, precision = key.summed(first.inputs(), first.mask).chunk(2, -1)
    belief = Normal(shift / (1 + precision), (1 + precision).rsqrt())
    drawn = belief.mean + belief.stddev * torch.randn(3, 2, generator=generator_of(7))
    noise = Normal(key._decoded(drawn, second), (key._network.log_var / 2).exp())
    fit = (noise.log_prob(second.surprise) + math.log(2 * math.pi) / 2).sum(-1).mean()
    divergence = kl_divergence(belief, Normal(0.0, 1.0)).sum(-1).mean()
    loss = key.loss(first, second, torch.eye(3) > 0, generator_of(7))
    torch.testing.assert_close(loss, 0.5 * divergence / 60 - fit)


def test_what_two_probes_differ_by_beyond_what_they_claim_is_learned(
    monkeypatch: pytest.MonkeyPatch,
):
    key = Vae(latent=2)
    told = iter([torch.tensor([[2.0, 0.0, 2.0, 1.0]]), torch.tensor([[6.0, 0.5, 2.0, 1.0]])])
    monkeypatch.setattr(key, "summed", lambda inputs, mask: next(told))
    two = torch.zeros(2, 1, 4, OBS)
    steps = some_steps(two, torch.zeros(2, 1, 4, 1 + OBS), torch.ones(2, 1, 4))
    key.trained(steps, steps)
    # means 1 and 3, 0 and .5; variances 1/2 and 1/2, 1 and 1
    assert key._apart.tolist() == [pytest.approx((4 - 1) / 2), 0.0]


def test_vae_predicts_what_the_average_task_cannot():
    key = fitted("vae")
    steps = [key._scaler(Seen.of(probe(HELD, seed), NORMALIZER)) for seed in (3, 4)]
    shift, precision = key.summed(steps[0].inputs(), steps[0].mask).chunk(2, -1)
    decoded = key._decoded(shift / (1 + precision), steps[1])
    error = (steps[1].surprise - decoded).square().mean((0, 1))
    usual = steps[1].surprise.square().mean((0, 1))
    assert (error < 0.5 * usual).all()
    prior = key._decoded(torch.zeros_like(shift), steps[1])
    assert ((steps[1].surprise - prior).square().mean((0, 1)) > error).all()


# Networks and features.


def test_training_stops_at_a_loss_that_is_not_finite():
    layer = linear(1, 1, torch.Generator().manual_seed(0))
    with pytest.raises(FloatingPointError, match="update 0"):
        train(layer, lambda: layer(torch.full((1, 1), torch.nan)).sum(), 3, 0.1)
    target = torch.tensor([[3.0]])
    last = train(
        layer, lambda: (layer(torch.ones(1, 1)) - target).square().sum(), 300, 0.1, weight_decay=0
    )
    assert last < 1e-3 and not layer.weight.requires_grad


def ridge_error(features: Any, likelihood: Likelihood) -> Tensor:
    """Squared error of the change on one probe, per step, of a ridge fitted on another."""
    likelihood._use(NORMALIZER.state_dict())
    one, other = (Seen.of(probe(HELD, seed, 2), NORMALIZER) for seed in (3, 4))
    x = features.dynamics(one.obs, one.action)
    gram = x.mT @ x + 0.1 * torch.eye(x.shape[-1]).double()
    weight = torch.linalg.solve(gram, x.mT @ one.change)
    new = features.dynamics(other.obs, other.action)
    return (other.change - new @ weight).square().mean()


def test_learned_features_make_the_curved_robot_linear():
    learned = LearnedFeatures(learned=8, width=24, updates=150, steps=30, rate=1e-2)
    plain = Likelihood()
    with pytest.raises(NotFittedError):
        learned.dynamics(torch.zeros(1, OBS), torch.zeros(1, ACTIONS))
    key = Likelihood(features=learned)
    key.fit(PROBES, NORMALIZER)
    plain.fit(PROBES, NORMALIZER)
    assert ridge_error(learned, key) < 0.3 * ridge_error(plain.features, plain)
    obs, action = torch.zeros(4, 5, OBS).double(), torch.zeros(4, 5, ACTIONS).double()
    assert learned.dynamics(obs, action).shape == (4, 5, OBS + ACTIONS + 1 + 8)
    assert learned.reward(obs, action, obs).shape == (4, 5, 2 * OBS + ACTIONS + 2 + 8)
    far = learned.dynamics(obs + 1e4, action)[..., OBS + ACTIONS + 1 :]
    assert float(far.abs().max()) <= 1
    other = Likelihood(features=dataclasses.replace(learned))
    other.load_state_dict(key.state_dict())
    rows, query = (key.encode(probe(HELD, seed)) for seed in (3, 4))
    assert other.version == key.version and torch.equal(other.encode(probe(HELD, 3)), rows)
    assert precision_at(key.score(query, rows), torch.arange(20), 1) >= 0.9


def test_learned_features_need_a_task_that_did_not_diverge():
    spoiled = dataclasses.replace(PROBES[0], mask=torch.zeros_like(PROBES[0].mask))
    with pytest.raises(ValueError, match="nothing to learn from"):
        LearnedFeatures().fit([spoiled, PROBES[1]], NORMALIZER)
