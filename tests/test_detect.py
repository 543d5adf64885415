"""When nobody says that the task has changed: tests by hand, a model by its oracle, and a life."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass

from agent.config import ConfigError, build
from agent.continual.agents import Finetune, MetaInit, StreamAgent
from agent.continual.detect import Detector, LikelihoodRatio, PageHinkley, Surprise
from agent.continual.detecting import Detecting, Detection
from agent.continual.engram import Engram
from agent.continual.evaluation import digest
from agent.continual.life import Life
from agent.continual.visit import Visit
from agent.learners.base import MetaLearner
from agent.memory.probes import TrainingProbes
from agent.policy import ObsNormalizer
from agent.types import Trajectories
from envs.half_cheetah import HalfCheetah
from tests import test_continual
from tests.test_continual import HIDDEN, Born, believing, lived, world

family, born = test_continual.family, test_continual.born


def test_page_hinkley_by_hand():
    test = PageHinkley(tolerance=0.3, threshold=1.5, clip=1.0, warm_up=2)
    # Two to begin with; then 1 - .3 at most is added to the sum for each.
    assert [test.see(x) for x in (0.0, 0.0, 2.0, 2.0)] == [False] * 4
    assert test.state_dict() == pytest.approx({"n": 4, "mean": 1.0, "sum": 1.4, "least": 0.0})
    assert test.see(2.0)
    test.reset()
    assert [test.see(x) for x in (0.0, 0.0, -1.0, math.nan)] == [False] * 4
    # Low numbers lower the minimum, from which the sum then counts; NaN is none.
    wanted = {"n": 3, "mean": -1 / 3, "sum": -1.3, "least": -1.3}
    assert test.state_dict() == pytest.approx(wanted)
    assert not test.see(1.0) and test.sum - test.least == pytest.approx(0.7)
    assert not test.see(1.0)  # mean 0 by now: .7 again
    assert test.see(1.0)  # mean .2: .5 more are 1.9


def test_page_hinkley_takes_one_odd_number_for_no_change_and_a_rise_within_tolerance():
    test = PageHinkley(tolerance=0.3, threshold=1.5, clip=1.0, warm_up=4)
    assert not any(test.see(x) for x in [0.0] * 8 + [100.0] + [0.0] * 8)
    test.reset()
    assert not any(test.see(x) for x in [0.0] * 8 + [0.3] * 100)


def test_the_likelihood_ratio_by_hand():
    test = LikelihoodRatio(rise=0.6, least_sd=0.15, threshold=8.0, clip=5.0, warm_up=2)
    assert [test.see(x) for x in (1.0, -1.0, 1.0)] == [False] * 3
    # Variance 2: .6 (1 - .3) / 2 = .21; an excursion leaves "before" as it was.
    assert test.state_dict() == pytest.approx({"n": 2, "mean": 0.0, "square": 2.0, "ratio": 0.21})
    assert not test.see(-2.0) and test.ratio == 0.0  # over, and taken in
    assert test.state_dict() == pytest.approx(
        {"n": 3, "mean": -2 / 3, "square": 2 + 8 / 3, "ratio": 0.0}
    )
    test.reset()
    # Less spread than is believed: sd .15, .6 (.6 - .3) / .0225 = 8, of which 5 count.
    assert [test.see(x) for x in (0.1, -0.1, 0.6)] == [False] * 3 and test.ratio == 5.0
    assert not test.see(math.nan) and test.see(0.6)
    test.reset()
    assert not any(test.see(x) for x in [0.0] * 4 + [0.29] * 50)  # less than half the rise


DETECTORS: list[Any] = [PageHinkley, LikelihoodRatio]


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_goes_on_from_what_it_has_seen(kind: type[Detector]):
    numbers = [0.1, -0.2, 0.0, 0.2, 0.5, -0.1, 0.9, 1.0, 0.8, 1.1, 1.2, 0.9]
    whole = kind()
    wanted = [whole.see(x) for x in numbers]
    assert any(wanted) and not any(wanted[:6])
    for n in range(len(numbers)):
        first, second = kind(), kind()
        found = [first.see(x) for x in numbers[:n]]
        second.load_state_dict(first.state_dict())
        assert found + [second.see(x) for x in numbers[n:]] == wanted
    whole.reset()
    assert whole.state_dict() == kind().state_dict()


NOISE = 0.1
STEPS = 200


def linear_episodes(
    episodes: int, pay: float = 1.0, keep: float = 0.5, seed: int = 0
) -> Trajectories:
    """``x' = keep x + u`` with noise, reward ``pay x`` with noise: a world that is linear."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.zeros(episodes, STEPS + 1, 1)
    action = 2 * torch.rand(episodes, STEPS, 1, generator=rng) - 1
    shocks = NOISE * torch.randn(episodes, STEPS, 1, generator=rng)
    for h in range(STEPS):
        x[:, h + 1] = keep * x[:, h] + action[:, h] + shocks[:, h]
    blur = NOISE * torch.randn(episodes, STEPS, generator=rng)
    return Trajectories(
        obs=x[None, :, :-1],
        action=action[None],
        log_prob=torch.zeros(1, episodes, STEPS),
        reward=(pay * x[:, :-1, 0] + blur)[None],
        mask=torch.ones(1, episodes, STEPS),
        final_obs=x[None, :, -1],
        terminated=torch.zeros(1, episodes, dtype=torch.bool),
        diverged=torch.zeros(1, episodes, dtype=torch.bool),
    )


@pytest.fixture
def surprise() -> Surprise:
    """A model that has seen twenty episodes."""
    model = Surprise(1, 1, ObsNormalizer(1))
    assert bool(model.of(linear_episodes(2)).isnan().all()) and model.of(
        linear_episodes(2)
    ).shape == (2, 2)
    model.take(linear_episodes(20))
    return model


def test_nothing_surprises_in_a_world_that_stays_as_it_was(surprise: Surprise):
    same = linear_episodes(50, seed=1)
    # log(chi2_n / n) has mean -1/n; .001 of an output's mean square is held to be noise too.
    outputs = torch.stack([same.reward, (same.next_obs() - same.obs)[..., 0]])
    held = 1e-3 * outputs.square().mean((1, 2, 3)) / NOISE**2
    wanted = [-math.log(1 + noise) - 1 / STEPS for noise in held.tolist()]
    assert surprise.of(same).mean(0).tolist() == pytest.approx(wanted, abs=0.04)
    assert float(surprise.of(same).abs().max()) < 0.5


def test_the_surprise_of_a_change_is_the_log_of_what_it_adds_to_the_error(surprise: Surprise):
    other = linear_episodes(50, pay=1.5, seed=2)
    away = (0.5**2 * other.obs.square().mean()) / NOISE**2
    reward, dynamics = surprise.of(other).mean(0).tolist()
    assert reward == pytest.approx(math.log(1 + away), abs=0.15) and dynamics < 0.05
    other = linear_episodes(50, keep=-0.5, seed=3)
    away = other.obs.square().mean() / NOISE**2
    reward, dynamics = surprise.of(other).mean(0).tolist()
    assert dynamics == pytest.approx(math.log(1 + away), abs=0.15) and abs(reward) < 0.05


def test_what_lies_outside_of_an_episode_does_not_count(surprise: Surprise):
    whole = linear_episodes(1, seed=4)
    mask = whole.mask.clone()
    mask[..., 50:] = 0.0
    spoilt = whole.reward.clone()
    spoilt[..., 50:] = 1e6
    cut = Trajectories(**(vars(whole) | {"mask": mask}))
    dirty = Trajectories(**(vars(whole) | {"mask": mask, "reward": spoilt}))
    assert torch.equal(surprise.of(dirty), surprise.of(cut))
    assert not torch.equal(surprise.of(cut), surprise.of(whole))
    before = surprise.state_dict()
    nothing = Trajectories(**(vars(whole) | {"mask": torch.zeros_like(mask)}))
    assert bool(surprise.of(nothing).isnan().all())
    surprise.take(nothing)
    assert digest(before) == digest(surprise.state_dict())


def test_the_model_goes_on_from_saved_sums(surprise: Surprise):
    fresh = Surprise(1, 1, ObsNormalizer(1))
    fresh.load_state_dict(surprise.state_dict())
    for model in (fresh, surprise):
        model.take(linear_episodes(1, seed=5))
    other = linear_episodes(1, seed=6)
    assert torch.equal(fresh.of(other), surprise.of(other))


# Lives.


@dataclass(kw_only=True, config={"extra": "forbid"})
class Alarm:
    """Rings at one number."""

    at: int

    def __post_init__(self) -> None:
        """Nothing has been seen."""
        self.n = 0

    def reset(self) -> None:
        """It rings once."""
        self.n = self.at

    def see(self, value: float) -> bool:
        """Whatever it is."""
        self.n += 1
        return self.n == self.at

    def state_dict(self) -> dict[str, float]:
        """How many it has seen."""
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self.n = int(state["n"])


class Telling(Engram):
    """Notes what is asked of it, and what it was at the time."""

    def setup(self, learner: MetaLearner, probes: TrainingProbes, seed: int) -> None:
        """Nothing has been asked."""
        self.asked: list[tuple[str, str]] = []
        super().setup(learner, probes, seed)

    def begin(self, visit: Visit) -> dict[str, Any]:
        """As asked."""
        self.asked.append(("begin", ""))
        return super().begin(visit)

    def improve(self, visit: Visit) -> None:
        """As asked."""
        self.asked.append(("improve", digest(self.state_dict())))
        super().improve(visit)

    def end(self) -> dict[str, Any]:
        """As asked."""
        self.asked.append(("end", digest(self.state_dict())))
        return super().end()


def ringing(agent: StreamAgent, at: int) -> Detecting:
    node = {"_target_": "tests.test_detect.Alarm", "at": at}
    return Detecting(agent, Detection(detector=node, settle_episodes=2))


def hidden(
    agent: StreamAgent,
    family: HalfCheetah,
    born: Born,
    folder: Path,
    order: str = "ABA",
    **told: Any,
) -> Life:
    return lived(agent, world(family, born[0], order, told=HIDDEN, **told), born, folder)


def test_a_batch_that_gave_a_change_away_is_taken_back(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    inner = Telling(reader=believing().reader, memory=believing().memory)
    # Episodes 3 and on are looked at: probe 2, batches 4 and 6, and the alarm in the third batch.
    life = hidden(ringing(inner, 11), family, born, tmp_path, "AB")
    assert life.detected == [18]
    verbs = [verb for verb, _ in inner.asked]
    at = verbs.index("end")
    assert verbs[: at + 2] == ["begin", "improve", "improve", "improve", "end", "begin"]
    assert inner.asked[at][1] == inner.asked[at - 1][1]  # as it was before the third batch
    assert verbs.count("begin") == verbs.count("end") == 2
    assert life.inferred == [0] * 18 + [life.inferred[-1]] * 10


def test_a_change_noticed_when_all_is_over_ends_no_visit_twice(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    inner = Telling(reader=believing().reader, memory=believing().memory)
    life = hidden(ringing(inner, BUDGET), family, born, tmp_path, "A", budget_episodes=BUDGET + 2)
    verbs = [verb for verb, _ in inner.asked]
    assert life.detected == [BUDGET + 2] == [len(life.inferred)]
    assert verbs.count("begin") == verbs.count("end") == 1 and len(inner.store) == 1
    assert inner.asked[-1][1] == inner.asked[-2][1]


BUDGET = test_continual.BUDGET
FORWARD = {f"gear_{name}": 1.0 for name in ("bthigh", "fthigh", "bshin")}
REVERSED = {name: -1.0 for name in FORWARD}


@pytest.mark.parametrize("kind", [PageHinkley, LikelihoodRatio])
def test_reversed_motors_are_noticed_and_known_again(
    tmp_path: Path, family: HalfCheetah, born: Born, kind: type[Detector]
):
    detection = Detection(detector={"_target_": f"agent.continual.detect.{kind.__name__}"})
    agent = Detecting(believing(), detection)
    each = 36
    life = hidden(
        agent,
        family,
        born,
        tmp_path,
        tasks={"A": FORWARD, "B": REVERSED},
        budget_episodes=each,
    )
    assert len(life.detected) == 2
    for found, true in zip(life.detected, (each, 2 * each), strict=True):
        assert true < found <= true + 2 * 6
    first, second = life.detected
    labels = [life.inferred[:first], life.inferred[first:second], life.inferred[second:]]
    assert [set(part) for part in labels] == [{0}, {1}, {0}] and len(life.inferred) == 3 * each
    assert len(agent.memory_facts()) == 2


class Still(Finetune):
    """Acts and does not learn."""

    def _learn(self, episodes: Trajectories, *memory: Any) -> None:
        self.score = float(episodes.mean_return())


def test_without_a_change_there_is_none(tmp_path: Path, family: HalfCheetah, born: Born):
    """In episodes of 100 steps; those of 20 say so little that an alarm may be false."""
    longer = replace(family, horizon=100)
    for seed in range(2):
        agent = Detecting(Still(), Detection())
        around = world(longer, born[0], "A", seed, told=HIDDEN, budget_episodes=120)
        life = lived(agent, around, born, tmp_path / str(seed))
        assert life.detected == [] and life.inferred == [-1] * 120


def test_an_agent_without_memory_gives_each_stretch_a_number_of_its_own(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    life = hidden(ringing(MetaInit(), 11), family, born, tmp_path, "AB")
    (change,) = life.detected
    assert life.inferred == [-1] * change + [-2] * (28 - change)


def test_a_detector_of_bad_settings_is_refused_at_once():
    node = {"_target_": "agent.continual.detect.PageHinkley", "treshold": 1}
    with pytest.raises(ConfigError, match=r"detection\.detector\.treshold: unknown key"):
        build({"detector": node}, "detection", Detection)
