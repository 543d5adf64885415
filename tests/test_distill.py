"""Distillation: a student does what a memory's policies do, on states of theirs and of its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agent.config import ConfigError, build
from agent.learners.distill import Distill, TeacherError, teachers_of
from agent.learners.transfer import ZeroShot
from agent.memory.files import MemoryFolder
from agent.memory.row import Row, Transitions
from agent.policy import DiagonalGaussian, GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.seeding import generator, torch_generator
from agent.train import BatchSize, meta_iteration
from envs.navigation import Navigation
from envs.task import Param
from tests.memory_rows import record

SIDES = (-1.0, 1.0)


def teacher(hidden: list[int], shift: float) -> GaussianMlp:
    """A make of policy with a normaliser of its own."""
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=hidden))
    policy.normalizer.mean = torch.tensor([shift, 0.3])
    policy.normalizer.var = torch.tensor([2.0, 0.5])
    return policy


def probe_at(states: Tensor) -> Transitions:
    """A probe of one episode that saw the states ``[M, 2]``."""
    first = torch.zeros(len(states), dtype=torch.bool)
    first[0] = True
    zeros = torch.zeros_like(states)
    return Transitions(states, zeros, torch.zeros(len(states)), states, first)


def remember(folder: Path, made: list[tuple[GaussianMlp, Tensor, Tensor]]) -> Path:
    """A memory of policies, each of its own lineage, with the states of their probes."""
    with MemoryFolder(folder).writer() as writer:
        writer.set_encoder("v1", {}, {}, current=True)
        for n, (policy, params, states) in enumerate(made):
            state, segments = policy.normalizer.state_dict(), {"segments": policy.segments}
            anchor = torch.zeros(policy.num_params)
            writer.set_lineage(f"lineage {n}", anchor, state, segments, current=True)
            row = Row(
                key=torch.ones(2),
                encoder="v1",
                params=params,
                lineage=f"lineage {n}",
                record=record(1.0),
                baseline=0.0,
                probe=probe_at(states),
            )
            writer.append(row)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two teachers of different sizes who know different halves of the plane."""
    made = []
    for n, side in enumerate(SIDES):
        policy = teacher([[24], [16, 8]][n], side)
        random = torch.Generator().manual_seed(n)
        params = policy.init(random)
        params += 0.2 * torch.randn(len(params), generator=random)
        params[-2:] = torch.tensor([-1.0, -0.5])
        states = torch.randn(200, 2, generator=random) * 0.4 + torch.tensor([2.0 * side, 0.0])
        made.append((policy, params, states))
    return remember(tmp_path / "memory", made)


def student(folder: Path, hidden: list[int], **settings: float) -> Distill:
    learner = Distill(memory=str(folder), **settings)  # pyright: ignore[reportArgumentType]
    learner.setup(GaussianMlp(2, 2, PolicyConfig(hidden=hidden)), torch_generator(0, "init"))
    return learner


def trained(learner: Distill, navigation: Navigation, updates: int) -> None:
    for i in range(updates):
        meta_iteration(learner, navigation, BatchSize(tasks=2, episodes=2), 0, i)


def divergence(learner: Distill, folder: Path) -> float:
    """The largest mean KL from a teacher to the student, in the teacher's own states, in nats."""
    found = []
    for each in teachers_of(folder, learner.policy):
        now = learner.policy(learner.theta.detach()[None], each.probe[None])
        mine = DiagonalGaussian(now.mean[0], now.log_std[0])
        found.append(float(each(each.probe).kl(mine).mean()))
    return max(found)


@pytest.mark.parametrize("hidden", [[32, 32], [6]])
def test_a_student_matches_two_teachers_who_do_not_conflict(
    two: Path, navigation: Navigation, hidden: list[int]
):
    learner = student(two, hidden, visited=0.0, outer_rate=1e-2)
    untaught = divergence(learner, two)
    trained(learner, navigation, 15)
    assert untaught > 0.5
    assert divergence(learner, two) < 0.05


def test_teachers_do_what_they_did_under_their_own_normalisers_and_sizes(two: Path):
    contents = MemoryFolder(two).contents()
    for n, (each, side) in enumerate(zip(teachers_of(two, GaussianMlp(2, 2)), SIDES, strict=True)):
        theirs, row = teacher([[24], [16, 8]][n], side), contents.row(contents.uids[n])
        obs = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(9))
        expected = theirs(row.params[None], obs[None])
        assert torch.equal(each(obs).mean, expected.mean[0])
        assert torch.equal(each(obs).log_std, expected.log_std[0].expand(5, 3, 2))
        assert torch.equal(each.probe, row.probe.obs)


def test_teachers_who_disagree_everywhere_are_covered(tmp_path: Path, navigation: Navigation):
    """The moments of the mixture: the KL's minimum among normal distributions."""
    policy, made = GaussianMlp(2, 2, PolicyConfig(hidden=[])), []
    states = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    for side in SIDES:
        params = torch.zeros(policy.num_params)
        params[-4:] = torch.tensor([0.5 * side, 0.2, -1.0, -1.0])  # biases, then log-stds
        made.append((policy, params, states))
    folder = remember(tmp_path / "memory", made)
    for visited in (0.0, 1.0):
        learner = student(folder, [], outer_rate=3e-2, visited=visited, outer_epochs=20)
        trained(learner, navigation, 15)
        now = learner.policy(learner.theta.detach()[None], torch.zeros(1, 1, 2))
        torch.testing.assert_close(now.mean[0, 0], torch.tensor([0.0, 0.2]), atol=0.05, rtol=0)
        sd = torch.tensor([math.sqrt(math.exp(-2.0) + 0.25), math.exp(-1.0)])
        torch.testing.assert_close(now.log_std[0, 0].exp(), sd, atol=0.05, rtol=0)


def test_in_states_that_it_comes_to_the_rows_speak_together_or_in_turns(
    two: Path, navigation: Navigation
):
    tasks = navigation.sample(3, generator(0, "tasks"))
    asked = []
    for voices in (1, 2):
        learner = student(two, [4], voices=voices)
        with TaskBatch(navigation, tasks, 2, learner.policy, generator(0, "train")) as batch:
            for _ in range(3):
                query = batch.collect(learner.adapt(batch).params)
                wanted = learner._wanted(query)
                did = [each(query.obs) for each in teachers_of(two, learner.policy)]
                asked += [n for n in (0, 1) if torch.allclose(wanted.mean, did[n].mean)]
                for n in asked[-1:] if voices == 1 else ():
                    torch.testing.assert_close(wanted.log_std, did[n].log_std)
                learner.update(learner.adapt(batch), query)
    assert asked == [0, 1, 0]
    # Together: the gradient of the mean KL is that of the KL from the mixture's moments.
    gradients = []
    for loss in ((did[0].kl, did[1].kl), (wanted.kl,)):
        point = learner.theta.detach().clone().requires_grad_(True)
        now = learner.policy(point.expand(3, -1), query.obs)
        mean = torch.stack([kl(now).mean() for kl in loss]).mean()
        gradients.append(torch.autograd.grad(mean, point)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("visited", [0.0, 1.0])
def test_the_weight_decides_which_states_teach(two: Path, navigation: Navigation, visited: float):
    learner = student(two, [8], visited=visited, outer_epochs=1, outer_rate=1e-3, max_grad_norm=1e9)
    tasks = navigation.sample(2, generator(0, "tasks"))
    with TaskBatch(navigation, tasks, 2, learner.policy, generator(0, "train")) as batch:
        adaptation = learner.adapt(batch)
        query = batch.collect(adaptation.params)
    teachers = teachers_of(two, learner.policy)
    learner.policy.normalizer.update(torch.cat([t.probe for t in teachers]), torch.ones(400))
    point = learner.theta.detach().clone().requires_grad_(True)
    obs = [query.obs if visited else each.probe for each in teachers]
    total, count = point.new_zeros(()), 0
    for each, states in zip(teachers, obs, strict=True):
        now = learner.policy(point[None], states[None])
        mine = DiagonalGaussian(now.mean[0], now.log_std[0])
        total = total + each(states).kl(mine).sum()
        count += states[..., 0].numel()
    (gradient,) = torch.autograd.grad(total / count, point)
    learner.update(adaptation, query)
    torch.testing.assert_close(learner.state_dict()["adam.0.exp_avg"], 0.1 * gradient)


def test_the_normaliser_takes_in_the_probes_once_and_all_that_is_visited(
    two: Path, navigation: Navigation
):
    learner = student(two, [8])
    for updates in (1, 2):
        trained(learner, navigation, 1)
        assert float(learner.policy.normalizer.count) == 2 * 200 + updates * 2 * 2 * 20


def test_the_gradient_is_clipped_and_one_that_is_not_finite_refused(
    two: Path, navigation: Navigation
):
    learner = student(two, [8], outer_epochs=1, max_grad_norm=1e-3)
    trained(learner, navigation, 1)
    assert float(learner.state_dict()["adam.0.exp_avg"].norm()) == pytest.approx(1e-4, rel=1e-2)
    with torch.no_grad():
        learner.theta[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        trained(learner, navigation, 1)


def test_few_states_at_a_time_still_are_all_of_them(two: Path):
    learner = student(two, [4], states=150)
    learner._meet_teachers()
    losses = [float(learner._probe_loss(step).detach()) for step in range(4)]
    learner.states = 1000
    whole = float(learner._probe_loss(0).detach())
    sizes = torch.tensor([134.0, 133.0, 133.0]) / 400
    assert float(sizes @ torch.tensor(losses[:3])) == pytest.approx(whole, rel=1e-5)
    assert losses[3] == losses[0] and len(set(losses[:3])) == 3


def test_the_student_is_a_meta_initialisation_without_the_memory(two: Path, navigation: Navigation):
    learner = student(two, [8])
    trained(learner, navigation, 2)
    other = student(two.parent / "gone", [8])
    other.load_state_dict({k: v.clone() for k, v in learner.state_dict().items()})
    tasks = navigation.sample(3, generator(0, "tasks"))
    with TaskBatch(navigation, tasks, 4, other.policy, generator(0, "evaluation")) as batch:
        start = other.theta.detach().expand(3, -1)
        episodes = batch.collect(start)
    moved = other.step(start, episodes, 0)
    assert torch.equal(moved, learner.step(start, episodes, 0))
    ready = other.advantages(episodes)
    assert torch.equal(moved, other.task_adapter.step(other.policy, start, ready))


def test_training_goes_on_from_a_checkpoint_bit_for_bit(two: Path, navigation: Navigation):
    one, other = student(two, [8]), student(two, [8])
    trained(one, navigation, 2)
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    for learner in (one, other):
        meta_iteration(learner, navigation, BatchSize(tasks=2, episodes=2), 0, 2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_what_cannot_teach_is_refused(two: Path, tmp_path: Path, navigation: Navigation):
    with pytest.raises(ConfigError, match="memory: missing"):
        build({"_target_": "agent.learners.distill.Distill"}, "learner")
    empty = remember(tmp_path / "empty", [])
    with pytest.raises(TeacherError, match="has no rows"):
        teachers_of(empty, GaussianMlp(2, 2))
    with pytest.raises(TeacherError, match=r"sizes \(2, 2\), the student's are \(3, 2\)"):
        teachers_of(two, GaussianMlp(3, 2))
    learner = student(tmp_path / "nothing", [4])
    with pytest.raises(TeacherError, match=r"no memory here.* expected the memory folder"):
        trained(learner, navigation, 1)


def test_rows_that_are_no_networks_are_refused(tmp_path: Path):
    folder = tmp_path / "memory"
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=[4]))
    remember(folder, [(policy, torch.zeros(policy.num_params), torch.zeros(3, 2))])
    with MemoryFolder(folder).writer() as writer:
        state = policy.normalizer.state_dict()
        writer.set_lineage("belief", torch.zeros(5), state, {"segments": [5]}, current=True)
        row = MemoryFolder(folder).contents().row(0)
        writer.append(row.with_(lineage="belief", params=torch.zeros(5)))
    with pytest.raises(TeacherError, match="row 1: is not the weights of a plain network"):
        teachers_of(folder, policy)


def test_rows_without_a_normaliser_are_refused(tmp_path: Path):
    folder = tmp_path / "memory"
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=[4]))
    remember(folder, [(policy, torch.zeros(policy.num_params), torch.zeros(3, 2))])
    with MemoryFolder(folder).writer() as writer:
        anchor = torch.zeros(policy.num_params)
        writer.set_lineage("bare", anchor, {}, {"segments": policy.segments}, current=True)
        row = MemoryFolder(folder).contents().row(0)
        writer.append(row.with_(lineage="bare"))
    with pytest.raises(TeacherError, match="row 1: the observation normaliser is missing"):
        teachers_of(folder, policy)


@pytest.mark.slow
@pytest.mark.parametrize(("taught", "low", "high"), [(True, -11.0, -3.0), (False, -40.0, -17.7)])
def test_a_student_is_as_good_as_its_teacher(tmp_path: Path, taught: bool, low: float, high: float):
    """A trained teacher and, as sabotage, an untrained one; the student has a fifth of its size."""
    angle = Param(to="attr:angle", low=0.0, high=math.pi / 2)
    ahead = Navigation(name="navigation", horizon=20, params={"angle": angle})
    learner = ZeroShot()
    policy = GaussianMlp(2, 2, PolicyConfig(hidden=[32, 32]))
    learner.setup(policy, torch_generator(0, "init"))
    for i in range(30 if taught else 0):
        meta_iteration(learner, ahead, BatchSize(tasks=20, episodes=10), 0, i)
    tasks = ahead.sample(20, generator(0, "tasks"), "heldout")

    def returned(policy: GaussianMlp, params: Tensor) -> tuple[float, Tensor]:
        with TaskBatch(ahead, tasks, 5, policy, generator(0, "evaluation")) as batch:
            episodes = batch.collect(params.detach().expand(20, -1))
        return float(episodes.mean_return().mean()), episodes.obs.reshape(-1, 2)

    expected, states = returned(policy, learner.theta)
    folder = remember(tmp_path / "memory", [(policy, learner.theta.detach(), states)])
    pupil = student(folder, [12])
    trained(pupil, ahead, 15)
    found, _ = returned(pupil.policy, pupil.theta)
    assert low < found < high and found == pytest.approx(expected, abs=1.0)
