"""Recurrent learners: acting equals re-evaluation, trials carry their state, the bound is one."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch

from agent.advantage import estimate, gae, returns_to_go
from agent.distributed import TogetherError
from agent.learners.rl2 import Rl2, TrialAdaptation, shares_of_steps
from agent.learners.varibad import LatentPolicy, Varibad, elbo
from agent.policy import DiagonalGaussian, PolicyConfig
from agent.recurrent import Cell, RecurrentPolicy
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.train import BatchSize, make_policy, meta_iteration, new_learner
from agent.types import Trajectories
from envs.navigation import Navigation, NavigationSquare
from envs.task import Param

SMALL = PolicyConfig(hidden=[8])


def drawn(
    obs: int = 2, chunk: int | None = None, latent: bool = False, cell: Cell = "gru"
) -> RecurrentPolicy:
    make = LatentPolicy if latent else RecurrentPolicy
    policy = make(obs, 2, SMALL, cell=cell, hidden=6, embed=5, chunk=chunk)
    policy.draw(torch_generator(0, "init"))
    policy.reward_normalizer.mean.fill_(-0.5)
    policy.normalizer.var.fill_(0.3)
    return policy


def square(horizon: int = 12) -> NavigationSquare:
    """Goals near enough that some episodes end early."""
    params = {axis: Param(to=f"attr:{axis}", low=-0.1, high=0.1) for axis in "xy"}
    return NavigationSquare(name="square", horizon=horizon, params=params, box=0.08)


def trial(
    policy: RecurrentPolicy, family: Navigation | NavigationSquare, episodes: int = 2
) -> tuple[list[Trajectories], list[torch.Tensor]]:
    """Episodes one after the other with the state carried through, and the rows they began with."""
    tasks = family.sample(4, generator(0, "train"))
    rows, seen = [torch.zeros(4, policy.num_params)], []
    with TaskBatch(family, tasks, 1, policy, generator(0, "train", 1)) as batch:
        for _ in range(episodes):
            seen.append(batch.collect(rows[-1]))
            rows.append(policy.read(rows[-1], seen[-1]).detach())
    return seen, rows


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_the_rollout_equals_its_re_evaluation(
    navigation: Navigation, chunk: int | None, latent: bool, cell: Cell
):
    policy = drawn(chunk=chunk, latent=latent, cell=cell)
    for family in (navigation, square()):
        for one, row in zip(*trial(policy, family), strict=False):
            again = policy.along(row, one).log_prob(one.action)
            torch.testing.assert_close(again * one.mask, one.log_prob * one.mask, atol=2e-5, rtol=0)


def test_re_evaluation_notices_a_changed_past(navigation: Navigation):
    policy = drawn()
    (one, _), (row, *_) = trial(policy, navigation)
    reward = one.reward.clone()
    reward[:, :, 3] += 1.0
    changed = policy.along(row, dataclasses.replace(one, reward=reward)).mean
    same = (changed == policy.along(row, one).mean).all(-1).all(0)[0]
    assert same[:4].all() and not same[4:].any()  # what was paid at step 3 is seen at step 4


def test_the_state_equals_a_gru_stepped_by_hand(navigation: Navigation):
    policy = drawn()
    (one, _), (row, after, _) = trial(policy, navigation)
    reader = policy.encoder
    weight_i, weight_h, bias_i, bias_h = (
        reader.get_submodule("recurrence").get_parameter(f"{kind}_l0")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden, zero = row, torch.zeros(4, 1)
    obs = torch.cat([one.obs[:, 0], one.final_obs], 1)
    for h in range(21):
        first = torch.full((4, 1), float(h == 0))
        action = one.action[:, 0, h - 1].clamp(-1, 1) if h else torch.zeros(4, 2)
        paid = policy.reward_normalizer(one.reward[:, 0, h - 1 : h]) if h else zero
        seen = torch.cat([policy.normalizer(obs[:, h]), action, paid, first], 1)
        x = torch.tanh(reader.get_submodule("embed")(seen))
        (r, z, n), (hr, hz, hn) = (
            (x @ weight_i.T + bias_i).chunk(3, 1),
            (hidden @ weight_h.T + bias_h).chunk(3, 1),
        )
        gate = torch.sigmoid(z + hz)
        new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        hidden = (1 - gate) * new + gate * hidden
    torch.testing.assert_close(hidden, after)


def test_an_lstm_is_torchs_and_shows_its_output_alone(navigation: Navigation):
    policy = drawn(cell="lstm")
    assert policy.segments == [6, 6]
    (one, _), (row, after, _) = trial(policy, navigation)
    states, cell = policy.states(row, one)[:, 0], policy.encoder.get_submodule("recurrence.cell")
    layer = torch.nn.LSTM(5, 6, batch_first=True)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    bias = layer.get_parameter("bias_ih_l0")
    assert bias.reshape(4, 6).mean(1).tolist() == [0, 1, 0, 0]  # of the forget gates: 1
    seen: list[torch.Tensor] = []
    hook = policy.encoder.get_submodule("recurrence").register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    policy.states(row, one)
    hook.remove()
    output, (_, last) = layer(seen[0])
    torch.testing.assert_close(states[..., :6], output)
    torch.testing.assert_close(after, torch.cat([output[:, -1], last[0]], -1).detach())
    assert torch.equal(policy.shown(after), after[:, :6])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_state_stops_where_an_episode_ends(cell: Cell):
    policy, family = drawn(cell=cell), square()
    (one, _), (row, after, _) = trial(policy, family)
    lengths = one.mask[:, 0].sum(-1).long()
    assert bool((lengths < 12).any()) and bool(one.terminated.any())
    states = policy.states(row, one)
    for task, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(after[task], states[task, 0, length].detach())
    later = one.obs.clone()
    for task, length in enumerate(lengths.tolist()):
        later[task, :, length + 1 :] = 99.0  # after its last observation nothing is read
    changed = dataclasses.replace(one, obs=later)
    kept = lengths < 12
    torch.testing.assert_close(policy.read(row, changed)[kept], after[kept])


def test_a_trial_carries_its_state_and_a_new_task_starts_from_the_prior(navigation: Navigation):
    policy = drawn()
    seen, rows = trial(policy, navigation, 3)
    assert torch.equal(rows[0], torch.zeros_like(rows[0]))
    assert not torch.equal(rows[1], rows[2])
    fresh = policy.begin(rows[0], 1)
    carried = policy.begin(rows[1], 1)
    assert torch.equal(carried.hidden[:, 0], rows[1]) and float(carried.first.min()) == 1.0
    assert torch.equal(fresh.action, carried.action)  # of the last episode only the state is left
    both = seen[0].joined(seen[1])  # read side by side: as if one had followed the other
    torch.testing.assert_close(policy.read(rows[0], both), rows[2])


def test_a_diverged_episode_leaves_no_trace(navigation: Navigation):
    policy = drawn()
    (one, _), (row, *_) = trial(policy, navigation)
    mask = one.mask.clone()
    mask[1] = 0.0
    broken = dataclasses.replace(one, mask=mask)
    read = policy.read(row + 0.3, broken)
    assert torch.equal(read[1], row[1] + 0.3) and not torch.equal(read[0], row[0] + 0.3)


def test_chunks_cut_gradients_and_nothing_else(navigation: Navigation):
    whole, cut = drawn(), drawn(chunk=5)
    (one, _), _ = trial(whole, navigation)
    gradients = []
    for policy in (whole, cut):
        row = torch.zeros(4, policy.num_params, requires_grad=True)
        acts = policy.along(row, one)
        late, early = acts.mean[:, :, 5:].sum(), acts.mean[:, :, :5].sum()
        gradients.append(
            [
                torch.autograd.grad(x, row, retain_graph=True, allow_unused=True)[0]
                for x in (late, early)
            ]
        )
    torch.testing.assert_close(gradients[0][1], gradients[1][1])
    assert float(gradients[0][0].abs().sum()) > 0 and float(gradients[1][0].abs().sum()) == 0


def test_advantages_reach_across_the_boundary_of_a_trial():
    reward, value = torch.tensor([[[1.0, 2.0, 0.0, 4.0]]]), torch.tensor([[[0.5, 1.0, 9.0, 2.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0, 1.0]]])  # the first episode ended a step early
    last = 4.0 - 2.0
    middle = 2.0 + 0.9 * 2.0 - 1.0 + 0.9 * 0.8 * last
    first = 1.0 + 0.9 * 1.0 - 0.5 + 0.9 * 0.8 * middle
    found = gae(reward, value, mask, 0.9, 0.8)
    torch.testing.assert_close(found, torch.tensor([[[first, middle, 0.0, last]]]))


def test_returns_reach_across_the_boundary_as_advantages_do():
    reward, mask = torch.tensor([[[1.0, 2.0, 7.0, 4.0]]]), torch.tensor([[[1.0, 1.0, 0.0, 1.0]]])
    last, middle = 4.0, 2.0 + 0.5 * 4.0
    expected = torch.tensor([[[1.0 + 0.5 * middle, middle, 0.0, last]]])
    torch.testing.assert_close(returns_to_go(reward, mask, 0.5), expected)
    plain = gae(reward, torch.zeros_like(reward), mask, 0.5, 1.0)
    torch.testing.assert_close(plain, expected)  # without a baseline they are the same


def test_a_step_counts_alike_in_short_and_long_episodes():
    family = square()
    learner = make(family, Rl2(trial_episodes=3, clip=0.2))
    tasks = family.sample(2, generator(0, "train"))
    tasks = [task for task in tasks for _ in range(3)]
    with TaskBatch(family, tasks, 1, learner.policy, generator(0, "train", 1)) as batch:
        adaptation = learner.adapt(batch)
        episodes = [*adaptation.support, batch.collect(adaptation.params)]
    lengths = torch.stack([one.mask.sum((1, 2)) for one in episodes])
    assert len(set(lengths.flatten().tolist())) > 2
    trial = learner.with_advantages(episodes, 3)
    assert float(losses(learner, trial, 3)["policy"].detach()) == pytest.approx(0.0, abs=1e-5)
    # By hand: the mean over all steps of a task, wherever they were made.
    weight = torch.linspace(0.5, 1.5, 6)[:, None, None]
    moved = [
        one.with_advantage(weight * one.advantage.square())
        for one in trial
        if one.advantage is not None
    ]
    expected = 0.0
    for task in (slice(0, 3), slice(3, 6)):
        total = sum(
            float((x.advantage * x.mask)[task].sum()) for x in moved if x.advantage is not None
        )
        expected -= total / float(lengths[:, task].sum()) / 2
    whole = losses(learner, moved, 3)["policy"]
    assert float(whole.detach()) == pytest.approx(expected, rel=1e-5)
    # The mean of the minibatches is the whole.
    shares, parts = shares_of_steps(moved, 3), (torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]))
    split = [
        learner.losses(some, shares[:, part], learner.states(some))["policy"]
        for part in parts
        for some in [[one.tasks(part) for one in moved]]
    ]
    torch.testing.assert_close(torch.stack(split).mean(), whole)


def make(navigation: Navigation | NavigationSquare, learner: Rl2, seed: int = 0) -> Rl2:
    policy = make_policy(navigation, PolicyConfig(), False, "cpu", learner.make_policy)
    new_learner(learner, policy, seed)
    return learner


def collected(navigation: Navigation, learner: Rl2) -> list[Trajectories]:
    tasks = navigation.sample(4, generator(0, "train"))
    with TaskBatch(navigation, tasks, 1, learner.policy, generator(0, "train", 1)) as batch:
        adaptation = learner.adapt(batch)
        return [*adaptation.support, batch.collect(adaptation.params)]


def losses(learner: Rl2, trial: list[Trajectories], trials: int = 1) -> dict[str, torch.Tensor]:
    return learner.losses(trial, shares_of_steps(trial, trials), learner.states(trial))


def test_before_the_first_epoch_the_ratio_is_one_and_later_rewards_count_in_earlier_episodes(
    navigation: Navigation,
):
    learner = make(navigation, Rl2(trial_episodes=2))
    episodes = collected(navigation, learner)
    trial = learner.with_advantages(episodes, 2)
    advantage = torch.cat([one.advantage for one in trial if one.advantage is not None], -1)
    by_task = advantage.reshape(2, -1)
    torch.testing.assert_close(by_task.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_task.std(1, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)
    # With ratio 1 everywhere the surrogate is the mean advantage: of both episodes together, 0.
    assert float(losses(learner, trial, 2)["policy"].detach()) == pytest.approx(0.0, abs=1e-4)
    first, second = episodes
    bonus = torch.eye(4)[0][:, None, None]  # in the first trial's second episode
    richer = dataclasses.replace(second, reward=second.reward + bonus)
    found = learner.with_advantages([first, richer], 2)[0].advantage
    assert found is not None and trial[0].advantage is not None
    moved = (found - trial[0].advantage)[:, 0]
    assert float(moved[0].abs().max()) > 0.1  # in its first episode
    assert torch.equal(moved[2:], torch.zeros_like(moved[2:]))  # another task


def test_advantages_of_a_trial_are_those_of_one_long_episode(navigation: Navigation):
    learner = make(navigation, Rl2(trial_episodes=3, gamma=0.9, gae_lambda=0.7))
    episodes = collected(navigation, learner)
    learner.policy.normalizer.mean.fill_(0.2)
    names = ("obs", "action", "log_prob", "reward", "mask")
    long = {name: torch.cat([getattr(one, name) for one in episodes], 2) for name in names}
    long = {name: torch.cat([x[:2], x[2:]], 1) for name, x in long.items()}  # 2 trials a task
    ends = {name: getattr(episodes[-1], name) for name in ("final_obs", "terminated", "diverged")}
    ends = {name: torch.cat([x[:2], x[2:]], 1) for name, x in ends.items()}
    oracle = estimate(Trajectories(**long, **ends), learner.policy.normalizer, 0.9, 0.7).advantage
    assert oracle is not None
    order = torch.tensor([0, 2, 1, 3])  # trials of one task stand in succession
    found = learner.with_advantages([one.tasks(order) for one in episodes], 2)
    expected = torch.cat([oracle[:1, :1], oracle[:1, 1:], oracle[1:, :1], oracle[1:, 1:]])
    for one, part in zip(found, expected.split(20, -1), strict=True):
        torch.testing.assert_close(one.advantage, part)


def test_a_batch_says_which_trials_are_of_one_task(navigation: Navigation):
    learner = make(navigation, Rl2())
    seen: list[int] = []
    adapt = Rl2.adapt

    def spy(self: Rl2, batch: TaskBatch) -> TrialAdaptation:
        assert batch.tasks[0] == batch.tasks[3] != batch.tasks[4]
        seen.append(batch.trials)
        return adapt(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rl2, "adapt", spy)
        meta_iteration(learner, navigation, BatchSize(tasks=3, episodes=4), 0, 0)
    assert seen == [4]


def test_the_returns_gradient_does_not_enter_the_belief_of_varibad(navigation: Navigation):
    for learner, enters in ((Rl2(), True), (Varibad(), False)):
        make(navigation, learner)
        found = losses(learner, learner.with_advantages(collected(navigation, learner)))
        encoder = list(learner.policy.encoder.parameters())

        for name in found.keys() - {"entropy"}:
            grads = torch.autograd.grad(found[name], encoder, retain_graph=True, allow_unused=True)
            reached = any(g is not None and bool(g.abs().sum() > 0) for g in grads)
            assert reached == (enters or name == "elbo"), name


def test_a_rare_large_gradient_makes_no_leap_of_beliefs(navigation: Navigation):
    """Adam by hand: 400 gradients of 1e-6, then one of .001."""
    learner = make(navigation, Varibad())
    leaves = learner.leaves
    before = [leaf.detach().clone() for leaf in leaves]
    gradients = [1e-6] * 400 + [1e-3]
    for gradient in gradients:
        last = [leaf.detach().clone() for leaf in leaves]
        learner.descend(gradient * torch.stack([leaf.sum() for leaf in leaves]).sum())
    leaps = [
        float((leaf - old).detach().abs().median()) for leaf, old in zip(leaves, last, strict=True)
    ]

    def leap(decay: float) -> float:
        mean = square = 0.0
        for gradient in gradients:
            mean = 0.9 * mean + 0.1 * gradient
            square = decay * square + (1 - decay) * gradient**2
        corrected = square / (1 - decay ** len(gradients))
        return learner.outer_rate * mean / (corrected**0.5 + 1e-8)

    assert leaps[0] == pytest.approx(leap(0.999), rel=1e-2)
    assert leaps[1:] == pytest.approx([leap(0.95)] * (len(leaves) - 1), rel=1e-2)
    assert leap(0.999) > 4 * leap(0.95)
    assert not any(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


def linear_gaussian(
    data: torch.Tensor, slope: torch.Tensor
) -> tuple[float, DiagonalGaussian, DiagonalGaussian]:
    """Log evidence, prior and posterior of x_j = slope_j z + N(0, 1) with z ~ N(0, 1)."""
    covariance = torch.eye(len(data)) + torch.outer(slope, slope)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(data)), covariance)
    precision = 1 + slope.square().sum()
    mean = (slope * data).sum() / precision
    posterior = DiagonalGaussian(mean[None], -0.5 * precision.log()[None])
    prior = DiagonalGaussian(torch.zeros(1), torch.zeros(1))
    return float(evidence.log_prob(data)), prior, posterior


def test_the_bound_is_the_evidence_at_the_posterior_and_less_by_the_kl_elsewhere():
    data, slope = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.7, 0.2, 1.1])
    evidence, prior, posterior = linear_gaussian(data, slope)
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))

    def log_likelihood(z: torch.Tensor) -> torch.Tensor:
        error = (data - slope * z).square()
        return -0.5 * (error + math.log(2 * math.pi)).sum(-1)

    assert float(elbo(posterior, prior, noise, log_likelihood)) == pytest.approx(evidence, abs=0.02)
    other = DiagonalGaussian(posterior.mean + 0.4, posterior.log_std + 0.3)
    gap = float(other.kl(posterior))
    assert gap > 0.1
    found = float(elbo(other, prior, noise, log_likelihood))
    assert found == pytest.approx(evidence - gap, abs=0.02)
    half = float(elbo(other, prior, noise, log_likelihood, kl_weight=0.5))
    assert half - found == pytest.approx(0.5 * float(other.kl(prior)), abs=1e-5)


def predicting(learner: Varibad, policy: LatentPolicy) -> Varibad:
    """The learner with this policy, a decoder, and noise from seed 0."""
    learner.policy, learner._noise = policy, torch.Generator().manual_seed(0)
    learner.theta = torch.zeros(policy.num_params)
    learner.heads = learner.make_heads(torch_generator(0, "init"))
    return learner


def test_the_bound_holds_each_belief_to_the_one_before_and_nothing_after_an_end_counts():
    policy = drawn(latent=True)
    assert isinstance(policy, LatentPolicy)
    learner = predicting(Varibad(bounds=6, decoded=200), policy)
    episodes, rows = trial(policy, square())
    lengths = [one.mask[:, 0].sum(-1).long().tolist() for one in episodes]
    assert min(map(min, lengths)) < 12

    def bound(weight: float, given: list[Trajectories]) -> float:
        learner.kl_weight = weight
        learner._noise.manual_seed(0)
        return float(learner.bound(given, learner.states(given)).detach())

    picked = torch.linspace(0, 25, 12).long().tolist()  # of 13 states each
    total = 0.0
    for task in range(4):
        beliefs = []
        for one, row, length in zip(episodes, rows, lengths, strict=False):
            latents = policy.posterior(policy.states(row, one)[task, 0])
            for h in range(13):
                at = min(h, length[task])
                beliefs.append((latents.mean[at], latents.log_std[at].exp()))
        normals = [torch.distributions.Normal(*belief) for belief in beliefs]
        normals.insert(0, torch.distributions.Normal(torch.zeros(5), torch.ones(5)))
        kls = [torch.distributions.kl_divergence(normals[t + 1], normals[t]).sum() for t in picked]
        total += float(torch.stack(kls).mean().detach()) / sum(x[task] for x in lengths) / 4
    assert total > 1e-3
    assert bound(0.0, episodes) - bound(1.0, episodes) == pytest.approx(total, rel=1e-3)
    changed = []
    for one, length in zip(episodes, lengths, strict=True):
        later = one.obs.clone()
        for task in range(4):
            later[task, :, length[task] + 1 :] = 99.0
        changed.append(dataclasses.replace(one, obs=later))
    assert bound(1.0, changed) == pytest.approx(bound(1.0, episodes), rel=1e-6)


@pytest.mark.parametrize("decodes", ["reward", "change"])
def test_the_bound_without_its_kl_is_the_log_density_of_every_step_made(
    decodes: Literal["reward", "change"],
):
    policy = drawn(latent=True)
    assert isinstance(policy, LatentPolicy)
    # Scales of their own for what is seen and paid, so that nothing is near zero or unscaled.
    policy.normalizer.mean[:] = torch.tensor([0.02, -0.03])
    policy.normalizer.var[:] = torch.tensor([0.003, 0.005])
    policy.reward_normalizer.mean.fill_(-0.05)
    policy.reward_normalizer.var.fill_(0.002)
    episodes, rows = trial(policy, square())
    lengths = [one.mask[:, 0].sum(-1).long().tolist() for one in episodes]
    assert len({sum(pair) for pair in zip(*lengths, strict=True)}) > 2  # 24 steps, or fewer
    learner = predicting(Varibad(bounds=3, decoded=24, kl_weight=0, decodes=decodes), policy)
    decoder = learner.heads.get_submodule("decoder")

    def seen(obs: torch.Tensor) -> torch.Tensor:
        return (obs - policy.normalizer.mean) / (policy.normalizer.var + 1e-6).sqrt()

    picked = torch.linspace(0, 25, 6).long().tolist()  # of 13 states each
    noise = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))[0]
    beliefs, totals, bounds = torch.zeros(4, 6, 5), torch.zeros(4, 6), []
    for task in range(4):
        made = sum(lengths[e][task] for e in range(2))
        for k, time in enumerate(picked):
            e, h = divmod(time, 13)
            state = policy.states(rows[e], episodes[e])[task, 0, min(h, lengths[e][task])]
            belief = policy.posterior(state)
            z = belief.mean + belief.log_std.exp() * noise[task, k]
            beliefs[task, k], total = z.detach(), 0.0
            for one, length in zip(episodes, lengths, strict=True):
                obs = torch.cat([one.obs[task, 0], one.final_obs[task]])
                for step in range(length[task]):
                    now, change = seen(obs[step]), seen(obs[step + 1]) - seen(obs[step])
                    action = one.action[task, 0, step].clamp(-1, 1)
                    paid = (one.reward[task, 0, step] + 0.05) / (0.002 + 1e-6) ** 0.5
                    known = torch.cat([now, action])
                    if decodes == "reward":
                        known, target = torch.cat([known, change]), paid[None]
                    else:
                        target = change
                    guess = decoder(torch.cat([known, z]))
                    density = torch.distributions.Normal(guess, 1.0).log_prob(target)
                    total += float(density.mean().detach())
            totals[task, k] = total
            bounds.append(total / made)
    found = float(learner.bound(episodes, learner.states(episodes)).detach())
    assert found == pytest.approx(sum(bounds) / len(bounds), rel=1e-5)
    each = learner.log_likelihood(beliefs[None], episodes).detach()
    torch.testing.assert_close(each, totals[None], rtol=1e-5, atol=0)


def test_latents_are_shown_on_one_scale_that_training_leaves_behind(navigation: Navigation):
    policy = drawn(latent=True)
    assert isinstance(policy, LatentPolicy)
    states, mask = torch.randn(50, 1, 20, 6), torch.ones(50, 1, 20)
    with torch.no_grad():
        policy.encoder.get_submodule("posterior").get_parameter("weight").mul_(30)
        for _ in range(40):
            policy.update_latents(states, mask)
        shown = policy.shown(states).flatten(0, 2)
        moderate = shown.abs().amax(0) < 9.9  # not at a bound of the normaliser
        torch.testing.assert_close(shown.mean(0), torch.zeros(10), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            shown.std(0)[moderate], torch.ones(10)[moderate], atol=0.02, rtol=0
        )
        policy.encoder.get_submodule("posterior").get_parameter("bias")[:5] += 8.0
        for _ in range(40):
            policy.update_latents(states, mask)
        again = policy.shown(states).flatten(0, 2)
    torch.testing.assert_close(again.mean(0), torch.zeros(10), atol=0.05, rtol=0)
    saved = policy.shared()
    counted = float(saved["latent.count"])
    policy.update_latents(states, mask * 0)
    assert float(saved["latent.count"]) == counted  # what was saved stays
    other = drawn(latent=True)
    assert isinstance(other, LatentPolicy)
    other.load_shared(policy.shared())
    assert torch.equal(other.shown(states), policy.shown(states))


def test_a_state_is_given_to_the_gru_as_cudnn_takes_it(
    navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    given: list[bool] = []
    forward = torch.nn.GRU.forward

    def spy(self: torch.nn.GRU, x: torch.Tensor, hx: torch.Tensor) -> object:
        given.append(hx.is_contiguous())
        return forward(self, x, hx)

    monkeypatch.setattr(torch.nn.GRU, "forward", spy)
    learner = make(navigation, Rl2(deltas=True))
    learner.update(TrialAdaptation(learner.prior(4), [], 1), collected(navigation, learner)[1])
    assert given and all(given)


def test_trials_that_minibatches_do_not_divide_are_refused_in_several_processes(
    navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    learner = make(navigation, Rl2(minibatches=3))
    episodes = collected(navigation, learner)
    monkeypatch.setattr("agent.learners.rl2.world_size", lambda: 2)
    with pytest.raises(TogetherError, match=r"minibatches=3 does not divide the 4 trials"):
        learner.update(TrialAdaptation(learner.prior(4), episodes[:1], 1), episodes[1])


def test_the_first_belief_is_held_to_the_standard_normal_and_the_next_to_the_one_before(
    navigation: Navigation,
):
    learner = make(navigation, Varibad(bounds=2, kl_weight=1e3))
    assert isinstance(learner, Varibad)
    trials = learner.with_advantages(collected(navigation, learner))
    with torch.no_grad():
        head = learner.policy.encoder.get_submodule("posterior")
        for value in head.parameters():
            value.zero_()
        constant = float(learner.bound(trials, learner.states(trials)))
        head.get_parameter("bias").fill_(1.0)  # always the same belief, but not N(0, 1)
        shifted = float(learner.bound(trials, learner.states(trials)))
    # Of the four times picked only the first is held to N(0, 1); the others repeat what was.
    one = DiagonalGaussian(torch.ones(5), torch.ones(5)).kl(
        DiagonalGaussian(torch.zeros(5), torch.zeros(5))
    )
    assert (constant - shifted) / 1e3 == pytest.approx(float(one) / 4 / 40, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "iterations", "bar"),
    [(Rl2(), 20, -12.0), (Rl2(cell="lstm"), 20, -12.0), (Varibad(), 16, -15.0)],
    ids=["rl2", "rl2-lstm", "varibad"],
)
def test_it_learns_to_use_what_it_saw(
    navigation: Navigation, learner: Rl2, iterations: int, bar: float
):
    make(navigation, learner)
    for i in range(iterations):
        meta_iteration(learner, navigation, BatchSize(tasks=20, episodes=10), 0, i)
    tasks = navigation.sample(20, generator(0, "tasks"), "heldout")
    with TaskBatch(navigation, tasks, 1, learner.policy, generator(0, "evaluation")) as batch:
        start = learner.prior(20)
        seen = batch.collect(start)
        second = batch.collect(learner.step(start, seen, 0), deterministic=True)
        other = seen.tasks(torch.arange(20).roll(7))
        # Sabotage: the state of another task. Within the episode it has to be unlearned.
        swapped = batch.collect(learner.step(start, other, 0), deterministic=True)
    good, bad = float(second.mean_return().mean()), float(swapped.mean_return().mean())
    assert good > bar and good - bad > 2


def test_what_is_filmed_acts_as_what_is_collected(navigation: Navigation):
    policy = drawn()
    row, tasks = torch.randn(2, 6), navigation.sample(2, generator(0, "train"))
    with TaskBatch(navigation, tasks, 1, policy, generator(0, "train", 1)) as batch:
        collected = batch.collect(row, deterministic=True)
        acting = batch.actor(row)
        for h in range(20):
            action = acting(collected.obs[:, :, h].numpy())
            torch.testing.assert_close(
                torch.as_tensor(action), batch_action(batch, collected, h), rtol=1e-4, atol=1e-5
            )
            acting.hear(collected.reward[:, :, h].numpy())


def batch_action(batch: TaskBatch, collected: Trajectories, step: int) -> torch.Tensor:
    return torch.as_tensor(batch.applied(collected.action[:, :, step].numpy()))


def test_no_more_is_read_than_a_trial_had_in_training(navigation: Navigation):
    learner = make(navigation, Rl2(trial_episodes=3))
    episodes = collected(navigation, learner)
    four = episodes[0].joined(episodes[1]).joined(episodes[2])
    read = learner.step(learner.prior(4), four, 0)
    newest, more = episodes[1].joined(episodes[2]), four
    assert torch.equal(read, learner.policy.read(learner.prior(4), newest).detach())
    assert not torch.equal(read, learner.policy.read(learner.prior(4), more).detach())
    mask = four.mask.clone()
    mask[0, 1], mask[1] = 0, 0  # one diverged; all of a task's
    some = learner.step(learner.prior(4), dataclasses.replace(four, mask=mask), 0)
    others = learner.policy.read(learner.prior(4), episodes[0].joined(episodes[2])).detach()
    torch.testing.assert_close(some[0], others[0])
    assert torch.equal(some[1], learner.prior(4)[1]) and torch.equal(some[2:], read[2:])


def test_two_processes_have_the_noise_of_one(
    navigation: Navigation, monkeypatch: pytest.MonkeyPatch
):
    learner = make(navigation, Varibad())
    assert isinstance(learner, Varibad)
    trial, start = learner.with_advantages(collected(navigation, learner)), learner.state_dict()
    with torch.no_grad():
        whole = learner.bound(trial, learner.states(trial))
        halves = []
        for part in (slice(0, 2), slice(2, 4)):
            learner.load_state_dict(start)
            monkeypatch.setattr("agent.learners.varibad.world_size", lambda: 2)
            monkeypatch.setattr("agent.learners.varibad.own_part", lambda rows, own=part: own)
            half = [one.tasks(part) for one in trial]
            halves.append(learner.bound(half, learner.states(half)))
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
