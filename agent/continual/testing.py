"""The contract of an agent as tests, to be inherited by the tests of an agent of your own.

    class TestMyAgent(AgentContract):
        def make_agent(self):
            return Stepwise(agent={"_target_": "my_agent.HillClimber"})

pytest then runs every ``test_`` method; nothing here needs pytest. Lives are a few visits to points
that look for goals; define ``make_world`` for others.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.continual.agents import StreamAgent
from agent.continual.diary import Diary
from agent.continual.evaluation import Evaluator, digest
from agent.continual.life import Life, read_episodes
from agent.continual.lifetime import Watch, World, live
from agent.continual.stream import Stream, Told
from agent.continual.visit import Hint
from agent.learners.base import MetaLearner
from agent.learners.maml import Maml
from agent.memory.probes import TrainingProbes
from agent.policy import PolicyConfig
from agent.run import Run
from agent.train import Calibration, make_policy, new_learner, probe_twice
from envs.navigation import Navigation
from envs.task import TaskDistribution


@dataclasses.dataclass(frozen=True)
class Lived:
    """A life that is over, and what tells it from another."""

    life: Life
    episodes: str
    """As they were written down."""
    returns: str
    """Of all evaluations, and at the end of all visits."""
    state: str
    """Content hash of all that the agent was in the end."""

    def differs(self, other: Lived) -> str:
        """In what the lives are not the same, bit for bit; nothing if they are."""
        names = ("episodes", "returns", "state")
        return ", ".join(n for n in names if getattr(self, n) != getattr(other, n))


class AgentContract:
    """What every agent has to keep. Subclass it and define ``make_agent``."""

    order: str = "ABA"
    """Tasks of the visits."""
    budget: int = 14
    """Episodes of a visit; best no multiple of what the agent acts in at once."""

    def make_agent(self) -> Any:
        """The agent under test, with its settings and not yet set up; made anew at each call."""
        raise NotImplementedError(f"{type(self).__name__} must define make_agent()")

    def make_family(self) -> TaskDistribution:
        """Where tasks come from."""
        return Navigation(name="contract", horizon=8)

    def make_learner(self, family: TaskDistribution) -> tuple[MetaLearner, TrainingProbes]:
        """What agents are born with: here an untrained initialisation, and probes by it."""
        policy = make_policy(family, PolicyConfig(hidden=[8]), False, "cpu")
        learner = new_learner(Maml(), policy, 0)
        return learner, probe_twice(learner, family, Calibration(tasks=24, episodes=2), 0)[0]

    def test_budgets_are_spent_exactly(self) -> None:
        """In every visit, to the episode and to the step."""
        with tempfile.TemporaryDirectory() as folder:
            life = self._lived(Path(folder)).life
            episodes = read_episodes(Path(folder))
        assert life.deviations == [], life.deviations
        for number, visit in enumerate(life.visits):
            own = [episode for episode in episodes if episode.visit == number]
            assert visit.episodes == self.budget, f"{visit.episodes} episodes of {self.budget}"
            assert [episode.episode for episode in own] == list(range(self.budget))
            steps, told = sum(episode.length for episode in own), sum(visit.env_steps.values())
            assert steps == told, f"{told} env steps were charged, {steps} taken"

    def test_being_evaluated_teaches_nothing(self) -> None:
        """An agent that is measured after every batch lives as one that is not."""
        agent, world = self._born(), self._world()
        knows, tasks = world.knows(agent), world.plan.tasks

        def measure(diary: Diary) -> None:
            scores = []
            for _ in range(2):
                with Evaluator(world.family, world.policy, 2, world.seed) as evaluator:
                    for name, task in tasks.items():
                        hint = Hint(name) if knows.task else None
                        entry = evaluator.evaluate(agent, name, task, 0, hint)
                        scores.append(json.dumps(entry.returns))
            half = len(scores) // 2
            assert scores[:half] == scores[half:], f"measured twice, not the same: {scores}"

        differs = self._lived(agent=agent, show=measure).differs(self._lived())
        assert not differs, f"an agent that was measured more often has other {differs}"

    def test_it_goes_on_from_any_moment(self) -> None:
        """Stopped between any two batches and continued, it lives on bit for bit."""
        seen: list[Diary] = []
        whole = self._lived(show=seen.append)
        for batches in range(1, len(seen)):
            with tempfile.TemporaryDirectory() as folder:
                done: list[Diary] = []
                watch = Watch(done.append, lambda done=done, n=batches: len(done) == n)
                path = Path(folder)
                stopped = live(self._born(), self._world(), Run(path), "agent", watch)
                assert stopped is None, f"could not be stopped after {batches} batches"
                differs = self._lived(path).differs(whole)
                assert not differs, f"continued after {batches} batches, it has other {differs}"

    def test_what_was_saved_stays_as_it_was(self) -> None:
        """A state is a copy: it does not change when the agent goes on."""
        agent, saved = self._born(), []

        def save(diary: Diary) -> None:
            state = agent.state_dict()
            saved.append((state, digest(state)))

        self._lived(agent=agent, show=save)
        for number, (state, before) in enumerate(saved, 1):
            assert digest(state) == before, f"the state after batch {number} changed later"

    def test_the_same_seed_is_the_same_life(self) -> None:
        """Whatever state the global random numbers are in; they are left alone."""
        first = self._lived()
        for draw in (random.random, np.random.random, torch.default_generator.seed):
            draw()
        before = _global_randomness()
        differs = self._lived().differs(first)
        assert not differs, f"lived again with the same seed, it has other {differs}"
        assert _global_randomness() == before, "it draws from global random numbers"

    def test_it_lives_without_boundaries_and_names(self) -> None:
        """In one endless visit, unless it cannot do without being told."""
        life = self._lived(told=Told(task="hidden", boundary="hidden")).life
        assert life.deviations == [], life.deviations

    def test_it_lives_when_it_is_told_all(self) -> None:
        """Which task, and when it changes."""
        life = self._lived(told=Told(task="told", boundary="told")).life
        assert life.deviations == [], life.deviations

    def _world(self, told: Told | None = None) -> World:
        family = self.make_family()
        stream = Stream(
            name="contract",
            order=list(self.order),
            budget_episodes=self.budget,
            eval_episodes=2,
            told=told or Told(),
        )
        return World.of(stream, family, self.make_learner(family)[0].policy, 0)

    def _born(self) -> StreamAgent:
        agent = self.make_agent()
        agent.setup(*self.make_learner(self.make_family()), 0)
        return agent

    def _lived(
        self,
        folder: Path | None = None,
        agent: StreamAgent | None = None,
        show: Callable[[Diary], None] = lambda diary: None,
        told: Told | None = None,
    ) -> Lived:
        """A life to its end, from wherever the folder has got to."""
        if folder is None:
            with tempfile.TemporaryDirectory() as own:
                return self._lived(Path(own), agent, show, told)
        run, agent = Run(folder), agent or self._born()
        life = live(agent, self._world(told), run, "agent", Watch(show))
        assert life is not None and life.status == "done"
        returns = [entry.returns for entry in life.evaluations] + [v.end for v in life.visits]
        episodes = (folder / "episodes.jsonl").read_text()
        return Lived(life, episodes, json.dumps(returns), digest(agent.state_dict()))


def _global_randomness() -> tuple[str, ...]:
    """The states of the generators that a library might draw from."""
    drawn = np.random.get_state(legacy=False)
    return str(random.getstate()), str(drawn), str(torch.get_rng_state().tolist())
