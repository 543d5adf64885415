"""Protection: what goes too far is shortened, what does harm is taken back, the rest stays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agent.continual.agents import Finetune, MetaInit, PolicyAgent
from agent.continual.engram import Engram
from agent.continual.visit import Segment, Visit
from agent.learners.maml import Maml
from agent.policy import GaussianMlp, PolicyConfig
from agent.protect import Course, Protection, lead, progressed, shortened
from agent.seeding import generator
from agent.train import Calibration, make_policy, new_learner, probe_twice
from agent.types import Trajectories
from envs.navigation import Navigation
from tests.conftest import made_up_episodes

POLICY = GaussianMlp(3, 1, PolicyConfig(hidden=[], log_std=0.0))


def paying(returns: list[list[float]], horizon: int = 4) -> Trajectories:
    """Episodes ``[T, E]`` of these returns, spread evenly over the steps; NaN: it diverged."""
    wanted = torch.tensor(returns)
    tasks, episodes = wanted.shape
    made = made_up_episodes(POLICY, torch.zeros(tasks, 5), tasks, episodes, horizon)
    diverged = wanted.isnan()
    reward = (wanted.nan_to_num() / horizon)[..., None].expand(-1, -1, horizon).clone()
    mask = (~diverged).float()[..., None].expand_as(reward).clone()
    return replace(made, reward=reward, mask=mask, diverged=diverged, advantage=None)


class Counting:
    """A step that adds 1, and remembers what it was made from."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.seen: list[Trajectories] = []

    def __call__(self, params: Tensor, episodes: Trajectories, number: int) -> Tensor:
        """One more."""
        self.made.append((number, int((~episodes.diverged).sum())))
        self.seen.append(episodes)
        return params + 1


def goes(protection: Protection, *batches: list[list[float]], step: Any = None) -> list[Course]:
    """The courses after batches of returns ``[T, E]``."""
    course, out = Course.begin(torch.zeros(len(batches[0]), 5)), []
    for returns in batches:
        course = protection.step(POLICY, course, paying(returns), step or Counting())
        out.append(course)
    return out


def test_a_step_is_halved_until_the_divergence_of_two_gaussians_allows_it():
    # Means of a linear policy move by the bias; KL = shift^2 / 2 for unit variance.
    params, moved = torch.zeros(3, 5), torch.zeros(3, 5)
    moved[:, 3] = torch.tensor([4.0, 0.9, 3.0])
    episodes = paying([[1.0, 2.0]] * 3)
    out = shortened(POLICY, params, moved, episodes, 0.5, 10)
    assert out[:, 3].tolist() == pytest.approx([1.0, 0.9, 0.75])
    assert not out[:, [0, 1, 2, 4]].any()
    assert torch.equal(shortened(POLICY, params, moved, episodes, 8.0, 1), moved)
    apart = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]).expand(3, 5)
    other = shortened(POLICY, apart, apart + moved, episodes, 0.5, 10)
    torch.testing.assert_close(other, apart + out)
    few = shortened(POLICY, params, moved, episodes, 0.5, 1)
    assert few[:, 3].tolist() == pytest.approx([0.0, 0.9, 0.0])  # not made at all
    moved[1, 3] = torch.nan
    assert shortened(POLICY, params, moved, episodes, 0.5, 3)[1].tolist() == [0.0] * 5


def test_only_valid_steps_count_in_the_divergence():
    episodes = paying([[1.0, 1.0]])
    episodes.obs[0, 1] = 1e3
    params, moved = torch.zeros(1, 5), torch.zeros(1, 5)
    moved[0, 0] = 1.0
    valid = replace(episodes, mask=episodes.mask * torch.tensor([1.0, 0.0])[None, :, None])
    alone = shortened(POLICY, params, moved, valid.episodes(slice(1)), 0.1, 10)
    assert torch.equal(shortened(POLICY, params, moved, valid, 0.1, 10), alone)
    assert not torch.equal(shortened(POLICY, params, moved, episodes, 0.1, 20), alone)


def test_the_lead_is_students_statistic():
    ahead = lead(paying([[1.0, 3.0], [5.0, math.nan]]), paying([[2.0, 2.0, 5.0], [1.0, 2.0, 3.0]]))
    # variances (2 + 6) / 3 and (0 + 2) / 2
    by_hand = [-1 / math.sqrt(8 / 3 * (1 / 2 + 1 / 3)), 3 / math.sqrt(1 * (1 + 1 / 3))]
    assert ahead.tolist() == pytest.approx(by_hand)
    lost, kept = paying([[math.nan, math.nan]]), paying([[1.0, 2.0]])
    assert float(lead(lost, kept)) == -math.inf and float(lead(kept, lost)) == math.inf
    assert float(lead(paying([[2.0, 2.0]]), paying([[2.0, 2.0]]))) == 0.0


def test_of_single_episodes_the_pieces_say_how_much_returns_vary():
    one, other = paying([[0.0]]), paying([[0.0]])
    one.reward[0, 0] = torch.tensor([1.0, 2, 3, 4])
    other.reward[0, 0] = torch.tensor([0.0, 2, 2, 0])
    # four pieces of one step each: variances 4 * 5/3 and 4 * 4/3
    assert float(lead(one, other)) == pytest.approx(6 / math.sqrt(12))
    # Of twenty steps there are ten pieces.
    ten = replace(paying([[0.0]], 20), reward=torch.tensor([[[1.0, 0.0] * 10]]))
    flat = replace(ten, reward=torch.zeros(1, 1, 20))
    assert float(lead(ten, flat)) > 1e6  # every piece pays the same: nothing varies


def test_what_does_no_harm_is_left_alone():
    batches = [[[0.0, 2.0]], [[4.0, 6.0]], [[3.0, 6.5]], [[9.0, 9.5]]]
    step, plain = Counting(), Counting()
    courses = goes(Protection(), *batches, step=step)
    course = Course.begin(torch.zeros(1, 5))
    for returns, protected in zip(batches, courses, strict=True):
        course = progressed(POLICY, course, paying(returns), plain, None)
        assert torch.equal(course.params, protected.params)
    assert step.made == plain.made == [(0, 2), (1, 2), (2, 2), (3, 2)]
    for ours, theirs in zip(step.seen, plain.seen, strict=True):
        assert torch.equal(ours.reward, theirs.reward)
    # The third was less than the second, if not clearly: that one stays the best meanwhile.
    assert [float(c.best[0, 0]) for c in courses] == [0, 1, 1, 3]


def test_a_step_that_did_harm_is_taken_back_and_made_anew_from_more_episodes():
    step = Counting()
    batches = [[[4.0, 6.0]], [[-4.0, -6.0]], [[4.0, 5.0]], [[8.0, 9.0]]]
    courses = goes(Protection(tries=2), *batches, step=step)
    assert [float(c.params[0, 0]) for c in courses] == [1, 0, 1, 2]
    assert [int(c.number) for c in courses] == [1, 0, 1, 2]
    assert [int(c.failed) for c in courses] == [0, 1, 1, 0]
    # Step 0, step 0 from what was bad (not kept), step 0 from both good batches, step 1.
    assert step.made[0] == (0, 2) and step.made[2:] == [(0, 4), (1, 2)]
    assert step.seen[2].returns()[0].tolist() == pytest.approx([4, 6, 4, 5])


def test_a_second_batch_of_the_best_is_no_verdict_on_it():
    courses = goes(Protection(), [[4.0, 6.0]], [[-4.0, -6.0]], [[-8.0, -9.0]])
    assert [float(c.params[0, 0]) for c in courses] == [1, 0, 1]
    assert int(courses[-1].failed) == 1


def test_after_a_few_steps_that_did_harm_the_best_stays():
    bad, good = [[-4.0, -6.0]], [[4.0, 6.0]]
    courses = goes(Protection(tries=2), good, bad, good, bad, good, good)
    assert [float(c.params[0, 0]) for c in courses] == [1, 0, 1, 0, 0, 0]
    assert [int(c.failed) for c in courses] == [0, 1, 1, 2, 2, 2]
    never = goes(Protection(harm=None), good, bad, good, bad)
    assert [float(c.params[0, 0]) for c in never] == [1, 2, 3, 4]
    assert float(goes(Protection(harm=50.0), good, bad)[-1].params[0, 0]) == 2


def test_it_goes_back_to_the_best_and_not_to_the_one_before():
    # 5 -> 20 -> 19.5 (not clearly less) -> 5: clearly less than 20
    courses = goes(Protection(), [[4.0, 6.0]], [[18.0, 22.0]], [[17.0, 22.0]], [[4.0, 6.0]])
    assert float(courses[-1].params[0, 0]) == 1 and int(courses[-1].number) == 1


def test_what_diverged_is_taken_back():
    lost = [[math.nan, math.nan]]
    assert float(goes(Protection(), [[1.0, 2.0]], lost)[-1].params[0, 0]) == 0
    found = goes(Protection(), lost, [[1.0, 2.0]])  # the start itself diverges
    assert float(found[-1].params[0, 0]) == 2 and float(found[-1].best[0, 0]) == 1


def test_tasks_do_not_know_of_each_other():
    drawn = 10 * torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))

    def step(params: Tensor, episodes: Trajectories, number: int) -> Tensor:
        return params + episodes.mean_return()[:, None] + number

    def last(rows: Tensor) -> list[Course]:
        return goes(Protection(tries=3), *(batch.tolist() for batch in rows), step=step)

    together = last(drawn)
    assert {int(f) for c in together for f in c.failed} >= {0, 1, 2}  # something happens
    for task in range(5):
        alone = last(drawn[:, task : task + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one.params[0], all_of_them.params[task])
            assert int(one.number) == int(all_of_them.number[task])


def test_what_is_kept_of_the_best_is_bounded():
    good = [[4.0, 6.0] * 10]
    still = goes(Protection(), *[good] * 6, step=lambda params, *_: params)
    assert still[-1].episodes is not None and still[-1].episodes.reward.shape[1] == 64


BUDGET = 30


def world(navigation: Navigation, number: int) -> Visit:
    """A visit to one of two goals."""
    tasks = navigation.sample(2, generator(0, "stream"), distinct=True)
    segment = Segment(number, "AB"[number % 2], tasks[number % 2], BUDGET)
    policy = make_policy(navigation, PolicyConfig(hidden=[8]), False, "cpu")
    return Visit(navigation, [segment], policy, generator(0, "visit", number))


def lives(agent: PolicyAgent, navigation: Navigation, learner: Any, restart: bool) -> list[Tensor]:
    """Through two visits; after each batch the agent may be replaced by a copy from its state."""
    probes, _ = probe_twice(learner, navigation, Calibration(tasks=8, episodes=2), 0)
    agent.setup(learner, probes, 0)
    out = []
    for number in range(2):
        with world(navigation, number) as visit:
            agent.begin(visit)
            while visit.remaining > 0:
                agent.improve(visit)
                out.append(agent.params)
                if restart:
                    saved = {name: value.clone() for name, value in agent.state_dict().items()}
                    agent = type(agent)(episodes=agent.episodes, protect=agent.protect)
                    agent.setup(learner, probes, 0)
                    agent.load_state_dict(saved)
            agent.end()
    return out


class Wrong(Maml):
    """Every step of it after the first also runs away from the first visit's goal."""

    goal: Tensor

    def step(self, params: Tensor, episodes: Trajectories, n: int, *more: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Plain at first."""
        moved = super().step(params, episodes, n, *more).clone()
        if n > 0:
            moved[:, -4:-2] -= 5 * self.goal
        return moved


@pytest.mark.parametrize("kind", [MetaInit, Finetune])
def test_an_agent_that_is_protected_forgets_its_record_with_the_visit_and_goes_on_from_a_state(
    navigation: Navigation, kind: type[PolicyAgent]
):
    policy = make_policy(navigation, PolicyConfig(hidden=[8]), False, "cpu")
    wrong: Any = Wrong()
    learner: Any = new_learner(wrong, policy, 0)
    angle = navigation.sample(2, generator(0, "stream"), distinct=True)[0].values["angle"]
    wrong.goal = torch.tensor([math.cos(angle), math.sin(angle)])
    whole = lives(kind(episodes=5, protect=Protection()), navigation, learner, False)
    again = lives(kind(episodes=5, protect=Protection()), navigation, learner, True)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    plain = lives(kind(episodes=5), navigation, learner, False)
    assert torch.equal(plain[0], whole[0]) and torch.equal(plain[1], whole[1])
    assert float((plain[5] - plain[0]).abs().max()) > 10
    apart = [float((p - whole[0]).abs().max()) for p in whole[:6]]
    # Steps 1 and 2 went off and were taken back; then there were no more.
    assert [a > 3 for a in apart] == [False, True, False, True, False, False]
    # The second visit has a record of its own: its first step is made.
    assert float((whole[6] - whole[5]).abs().max()) > (3 if kind is Finetune else 0)


def test_a_row_is_of_the_policy_that_was_put_back_with_its_own_record(navigation: Navigation):
    policy = make_policy(navigation, PolicyConfig(hidden=[8]), False, "cpu")
    wrong: Any = Wrong()
    learner: Any = new_learner(wrong, policy, 0)
    angle = navigation.sample(2, generator(0, "stream"), distinct=True)[0].values["angle"]
    wrong.goal = torch.tensor([math.cos(angle), math.sin(angle)])
    agent = Engram(episodes=5, protect=Protection(tries=1))
    agent.setup(learner, probe_twice(learner, navigation, Calibration(tasks=8), 0)[0], 0)
    with world(navigation, 0) as visit:
        agent.begin(visit)
        while float(agent.params[0, -4:-2].abs().max()) < 3:  # until a step went wrong
            agent.improve(visit)
            best, far = agent.params, agent._acted
        agent.improve(visit)  # which its episodes tell
    assert far is not None and agent._acted is not None and agent._course is not None
    assert torch.equal(agent._acted[0], agent.params) and float((best - agent.params).norm()) > 3
    assert torch.equal(agent.params, far[0])  # what acted before the step
    assert float(agent._acted[1].mean_return()) == pytest.approx(float(far[1].mean_return()))


def test_without_protection_there_is_nothing_more_in_the_state(navigation: Navigation):
    learner = new_learner(
        Maml(), make_policy(navigation, PolicyConfig(hidden=[8]), False, "cpu"), 0
    )
    agent: Any = MetaInit()
    agent.setup(learner, None, 0)
    assert agent.state_dict().keys() == {"policy.params", "step", "score"}
