"""Lifetimes: budgets are kept, memory recalls, hidden boundaries stay so, resuming is exact."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.adapter import Pull
from agent.continual.agents import Finetune, MetaInit, StreamAgent
from agent.continual.cohort import Cohort, live_one
from agent.continual.detecting import Detecting, Detection
from agent.continual.diary import Diary
from agent.continual.engram import Engram
from agent.continual.evaluation import Actor, Evaluator, digest
from agent.continual.life import Hints, Life, finite_mean, read_episodes, read_life
from agent.continual.lifetime import IdleAgentError, Watch, World, live
from agent.continual.stream import Stream
from agent.continual.visit import Segment, Visit
from agent.doctor import timeless
from agent.learners.maml import Maml
from agent.memory.bank import BankConfig
from agent.memory.decide import WriteConfig
from agent.memory.memory import MemoryConfig
from agent.memory.probes import TrainingProbes
from agent.policy import PolicyConfig
from agent.run import Run, RunError
from agent.seeding import generator
from agent.train import Calibration, make_policy, new_learner, probe_twice
from envs.half_cheetah import HalfCheetah
from envs.task import Param

BUDGET = 14
HIDDEN = {"boundary": "hidden"}
Born = tuple[Maml, TrainingProbes]


@pytest.fixture(scope="module")
def family() -> HalfCheetah:
    """A cheetah of very different motors, 20 steps an episode: easily recognised and simulated."""
    gears = {
        f"gear_{name}": Param(to=f"model:actuator_gear[{name}]", op="scale", low=-1.0, high=1.0)
        for name in ("bthigh", "fthigh", "bshin")
    }
    return HalfCheetah(name="motors", horizon=20, params=gears)


@pytest.fixture(scope="module")
def born(family: HalfCheetah) -> Born:
    """An untrained meta-initialisation, and probes to tell tasks by."""
    learner = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[16]), False, "cpu"), 0)
    assert isinstance(learner, Maml)
    probes, _ = probe_twice(learner, family, Calibration(tasks=60, episodes=2), 0)
    return learner, probes


def believing(reader: str = "Top1", **settings: Any) -> Engram:
    """An Engram for episodes of 20 steps, whose returns are noise: it writes whatever it learned.

    And it believes its keys, as there is nothing to hold a trial against.
    """
    memory = MemoryConfig(write=WriteConfig(when="novelty"), bank=BankConfig(codec="float32"))
    node = {"_target_": f"agent.memory.reader.simple.{reader}"}
    return Engram(reader=node, memory=memory, **settings)


def world(
    family: HalfCheetah, learner: Maml, order: str = "ABAB", seed: int = 0, **settings: Any
) -> World:
    """A short stream."""
    settings = {"budget_episodes": BUDGET, "eval_episodes": 2} | settings
    stream = Stream(name="test", order=list(order), **settings)
    return World.of(stream, family, learner.policy, seed)


def lived(agent: StreamAgent, around: World, born: Born, folder: Path) -> Life:
    """A life from birth to end."""
    agent.setup(*born, around.seed)
    life = live(agent, around, Run(folder), "agent")
    assert life is not None and life.status == "done" and not life.deviations
    return life


def scores(life: Life, task: str) -> dict[int, float]:
    """A column of R: by checkpoint, the agent on a task."""
    return {entry.checkpoint: entry.mean for entry in life.evaluations if entry.task == task}


def starts(life: Life) -> list[float]:
    """R at the start of each visit, of the task that is visited."""
    return [scores(life, visit.task)[visit.visit] for visit in life.visits]


def measured(around: World, task: str, params: torch.Tensor) -> float:
    """The score of a policy ``[1, P]`` on a task of the world."""
    size = around.stream.eval_episodes
    with Evaluator(around.family, around.policy, size, around.seed) as evaluator:
        acted = evaluator.measure(around.plan.tasks[task], Actor(around.policy, params))
    return finite_mean(acted.returns()[0].tolist())


def test_every_agent_gets_the_same_budget_to_the_step(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    for agent in (Engram(), MetaInit(), Finetune(), MetaInit(episodes=5)):
        folder = tmp_path / str(id(agent))
        life = lived(agent, world(family, born[0]), born, folder)
        assert [sum(v.env_steps.values()) for v in life.visits] == [BUDGET * 20] * 4
        assert [v.curve[-1].episodes for v in life.visits] == [BUDGET] * 4
        assert [v.episodes for v in life.visits] == [BUDGET] * 4
        told = [(e.visit, e.task, e.episode) for e in read_episodes(folder)]
        assert told == [(v, "ABAB"[v], e) for v in range(4) for e in range(BUDGET)]
        assert read_life(folder) == life or timeless(read_life(folder)) == timeless(life)


def test_a_visit_refuses_more_than_its_budget(family: HalfCheetah, born: Born):
    learner = born[0]
    params, task = learner.theta.detach()[None], family.sample(1, generator(0, "stream"))[0]
    segments = [Segment(0, "A", task, 3)]
    with Visit(family, segments, learner.policy, generator(0, "visit")) as visit:
        visit.collect(params, 2)
        for episodes in (2, 0):
            with pytest.raises(ValueError, match=f"for {episodes} episodes, but .* has 1 left"):
                visit.collect(params, episodes)
        assert (visit.used, visit.remaining, visit.steps_used) == (2, 1, 40)


def test_what_tells_the_agents_apart(tmp_path: Path, family: HalfCheetah, born: Born):
    around = world(family, born[0])
    meta = lived(MetaInit(), around, born, tmp_path / "meta")
    tuned = lived(Finetune(), around, born, tmp_path / "tuned")
    assert starts(meta)[2] == starts(meta)[0]  # back to the meta-initialisation
    assert starts(tuned)[2] != starts(tuned)[0]  # on from where it was
    assert tuned.visits[0].curve == meta.visits[0].curve
    assert tuned.visits[0].end == meta.visits[0].end
    # Without memory nothing outlives a visit; a fine-tuned policy is its end.
    assert scores(meta, "A")[1] == scores(meta, "A")[0] != meta.visits[0].end_mean
    assert scores(tuned, "A")[1] == tuned.visits[0].end_mean


def test_what_is_evaluated_when(tmp_path: Path, family: HalfCheetah, born: Born):
    around = world(family, born[0], "ABA", held_out=["C"])
    life = lived(MetaInit(), around, born, tmp_path)
    rows = [[e.task for e in life.evaluations if e.checkpoint == c] for c in range(4)]
    assert rows == [["A", "B", "C"], ["A", "B"], ["A", "B"], ["A", "B", "C"]]
    assert len(life.evaluations) == sum(map(len, rows))
    assert all(len(entry.returns) == 2 for entry in life.evaluations)
    paid = sum(entry.env_steps for entry in life.evaluations)
    # What each visit led to was measured as well, and that is all.
    ends = len({tuple(visit.end) for visit in life.visits}) * 2 * 20
    assert life.evaluation_env_steps == paid + ends
    assert paid == 3 * 2 * 20  # one policy on three tasks; all else is known


def test_memory_recalls_on_revisits_and_not_on_first_visits(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    agent, around = believing(), world(family, born[0])
    life = lived(agent, around, born, tmp_path)
    recalled = [visit.recalled for visit in life.visits]
    assert [r.row for r in recalled] == [None, None, 0, 1]
    assert [r.of_visit for r in recalled] == [None, None, 0, 1]
    assert [r.of_task for r in recalled] == [None, None, "A", "B"]
    assert [r.ranked[:1] for r in recalled] == [[], ["A"], ["A"], ["B"]]
    assert recalled[2].weights.keys() == recalled[3].weights.keys() == {"A", "B"}
    assert recalled[2].weights["A"] == recalled[2].weight
    assert recalled[2].weights["A"] > 0.9
    assert [v.written["rows"] for v in life.visits] == [1, 2, 2, 2]
    # What is stored is the policy that acted last, and that is where the re-visit starts.
    again = believing()
    first = lived(again, world(family, born[0], "A"), born, tmp_path / "first")
    assert first.visits[0].written["score"] == life.visits[0].written["score"]
    stored = measured(around, "A", again.store.bank.row(0).params[None])
    assert stored == starts(life)[2] != starts(life)[0]
    assert [v.curve[0].episodes for v in life.visits] == [6, 6, 2 + 6, 2 + 6]
    assert len(agent.store) == len(agent.memory_facts()) == 2
    steps = [v.env_steps for v in life.visits]
    assert steps == [{"probe": 40, "learn": 240}] * 4


def test_engram_that_can_recall_nothing_is_the_agent_without_memory(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    # Tasks never met count so much that nothing is believed to come back.
    around = world(family, born[0])
    closed = lived(Engram(memory=MemoryConfig(novelty=1e300)), around, born, tmp_path / "closed")
    meta = lived(MetaInit(), around, born, tmp_path / "meta")
    assert [e.returns for e in closed.evaluations] == [e.returns for e in meta.evaluations]
    assert all(v.recalled.row is None for v in closed.visits)
    # The probe is part of the first batch: both learn from as many episodes in as many steps.
    steps = [[point.episodes for point in life.visits[0].curve] for life in (closed, meta)]
    assert steps[0] == steps[1] == [6, 14]  # 8 left are one step: 2 would say too little


def test_the_literal_rule_pulls_without_jumping(tmp_path: Path, family: HalfCheetah, born: Born):
    ends = []
    for pull in (Pull(), Pull(kind="constant", beta=0.0), Pull(kind="constant", beta=0.9)):
        agent, folder = believing("SeedLiteral", pull=pull), tmp_path / str(len(ends))
        life = lived(agent, world(family, born[0], "AA"), born, folder)
        assert starts(life)[1] == starts(life)[0]
        assert life.visits[1].recalled.likeliest == 0 and life.visits[1].recalled.row is None
        ends.append(life.visits[1].end)
    assert ends[0] == ends[1]  # beta = 0 is bit-equal to no pull
    assert ends[0] != ends[2]


def test_trials_are_charged_and_what_they_showed_is_told(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    agent = believing()
    agent.reader = {"_target_": "agent.memory.reader.guarded.Guarded"}
    life = lived(agent, world(family, born[0]), born, tmp_path)
    episodes = read_episodes(tmp_path)
    for visit in life.visits:
        tried = visit.recalled.tried
        own = [e for e in episodes if e.visit == visit.visit and e.purpose == "trial"]
        assert visit.env_steps.get("trial", 0) == 20 * len(tried)
        assert [e.value for e in own] == [each.value for each in tried]
        assert sum(visit.env_steps.values()) == BUDGET * 20
        if visit.recalled.row is not None:
            assert visit.recalled.row in [each.row for each in tried]
        assert len(tried) <= 3
    assert not life.visits[0].recalled.tried  # there was nothing to try
    assert any(visit.recalled.tried for visit in life.visits)


# Resuming.


def born_quickly(agent: Any, born: Born, fits: dict[str, Any]) -> Any:
    """Fitting a key to the probes is most of being born, and the same for all of a kind."""
    inner = getattr(agent, "agent", agent)
    inner._fit = fits.get("key", (None, None))
    agent.setup(*born, 0)
    if isinstance(inner, Engram):
        fits["key"] = inner._fit
    return agent


PULLS: tuple[Any, ...] = ("none", "constant", "decay", "posterior", "function")
RESUMED: dict[str, tuple[Any, dict[str, Any]]] = {
    "meta_init": (MetaInit, {}),
    "finetune": (Finetune, {}),
    "engram": (Engram, {}),
    **{
        f"engram, {kind}": (lambda kind=kind: believing(pull=Pull(kind=kind, beta=0.5)), {})
        for kind in PULLS
    },
    "detecting engram": (lambda: Detecting(believing(), Detection()), {"told": HIDDEN}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_after_every_batch_and_continued_equals_uninterrupted(
    name: str, tmp_path: Path, family: HalfCheetah, born: Born
):
    make, settings = RESUMED[name]
    around = world(family, born[0], "ABA", **settings)
    agent, fits = make(), {}
    whole = lived(agent, around, born, tmp_path / "whole")
    life, pieces, last = None, 0, agent
    while life is None:
        # One of them makes sure that a fresh key is as good.
        last = born_quickly(make(), born, {} if name == "engram" else fits)
        pieces += 1
        assert pieces < 50, "it does not get on"
        stop = Watch(should_stop=lambda: True)
        life = live(last, around, Run(tmp_path / "pieces"), "agent", stop)
    assert pieces >= 7
    assert timeless(life) == timeless(whole)
    assert read_episodes(tmp_path / "pieces") == read_episodes(tmp_path / "whole")
    assert digest(last.state_dict()) == digest(agent.state_dict())
    if "none" in name or "detecting" in name:
        assert 0 in [v.recalled.row for v in whole.visits] + whole.inferred  # it did recall


def test_the_pulls_of_the_test_above_do_pull(tmp_path: Path, family: HalfCheetah, born: Born):
    around = world(family, born[0], "AA")
    ends = []
    for kind in PULLS:
        agent = believing("SeedLiteral", pull=Pull(kind=kind, beta=0.5))
        ends.append(lived(agent, around, born, tmp_path / kind).visits[1].end)
    assert all(end != ends[0] for end in ends[1:])


@pytest.mark.parametrize("told", [{}, HIDDEN])
def test_killed_at_any_save_it_goes_on_from_there(
    tmp_path: Path,
    family: HalfCheetah,
    born: Born,
    told: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Right after each save, wherever in the life that is; what it wrote since is forgotten."""
    around = world(family, born[0], "AB", told=told)
    whole = lived(Finetune(), around, born, tmp_path / "whole")
    save = Run(tmp_path).checkpoints.save.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def killed(self: Any, *arguments: Any) -> Path:
        save(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.run.Checkpoints.save", killed)
    run, deaths, life = Run(tmp_path / "killed"), 0, None
    while life is None:
        agent = Finetune()
        agent.setup(*born, 0)
        try:
            life = live(agent, around, run, "agent", Watch(save_every_s=0.0))
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < 50, "it does not get on"
            (run.folder / "episodes.jsonl").open("a").write("half a li")
    assert deaths > 4
    assert timeless(life) == timeless(whole)


def test_a_life_that_is_over_is_not_lived_again(
    tmp_path: Path, family: HalfCheetah, born: Born, monkeypatch: pytest.MonkeyPatch
):
    first = lived(MetaInit(), world(family, born[0], "A"), born, tmp_path)
    monkeypatch.setattr(MetaInit, "improve", None)
    again = lived(MetaInit(), world(family, born[0], "A"), born, tmp_path)
    assert timeless(first) == timeless(again)


# Hidden boundaries.


class Seeing(Finetune):
    """Notes what a visit lets on to an agent."""

    def begin(self, visit: Visit) -> dict[str, Any]:
        """With what it is told."""
        self.hints = [visit.hint]
        self.left: list[int] = []
        return super().begin(visit)

    def improve(self, visit: Visit) -> None:
        """With how much is left."""
        self.left.append(visit.remaining)
        super().improve(visit)


def test_a_batch_that_crosses_a_hidden_boundary_is_split_at_it(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    agent = Seeing()
    life = lived(agent, world(family, born[0], "ABA", told=HIDDEN), born, tmp_path)
    # One visit of 42 episodes, seven batches of 6: not even their sizes let on where it changes.
    assert agent.left == [42, 36, 30, 24, 18, 12, 6] and agent.hints == [None]
    assert life.knew == Hints(task=False, boundary=False)
    told = [(e.visit, e.task, e.episode) for e in read_episodes(tmp_path)]
    assert told == [(v, "ABA"[v], e) for v in range(3) for e in range(BUDGET)]
    curves = [[point.episodes for point in visit.curve] for visit in life.visits]
    assert curves == [[6, 12, 14], [4, 10, 14], [2, 8, 14]]
    assert [sum(v.env_steps.values()) for v in life.visits] == [BUDGET * 20] * 3
    assert [v.revisit for v in life.visits] == [False, False, True]


def test_episodes_after_a_hidden_boundary_are_of_the_next_task(family: HalfCheetah, born: Born):
    """Which the agent notices by its observations, and by nothing else."""
    policy, params = born[0].policy, born[0].theta.detach()[None]
    one, other = family.sample(2, generator(0, "stream"), distinct=True)
    segments = [Segment(0, "A", one, 2), Segment(1, "B", other, 2)]
    with Visit(family, segments, policy, generator(0, "visit")) as visit:
        both = visit.collect(params, 4)
        assert visit.remaining == 0
    parts = []
    rng = generator(0, "visit")
    for number, task in enumerate((one, other)):
        with Visit(family, [Segment(number, "", task, 2)], policy, rng) as alone:
            parts.append(alone.collect(params, 2))
    assert torch.equal(both.obs, torch.cat([part.obs for part in parts], 1))
    assert torch.equal(both.reward, torch.cat([part.reward for part in parts], 1))


def test_a_batch_longer_than_a_visit_goes_through_all_of_them(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    around = world(family, born[0], "ABAB", told=HIDDEN, budget_episodes=2)
    life = lived(Finetune(episodes=5), around, born, tmp_path)
    assert [[p.episodes for p in v.curve] for v in life.visits] == [[2]] * 4
    assert [len(v.end) for v in life.visits] == [2] * 4
    assert [e.checkpoint for e in life.evaluations if e.task == "A"] == [0, 1, 2, 3, 4]


class Idle(Finetune):
    """Has enough after a few episodes of a visit."""

    def improve(self, visit: Visit) -> None:
        """As long as there are many left."""
        if visit.remaining > 8:
            super().improve(visit)


def test_an_agent_that_leaves_its_budget_unused_is_told_so(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    agent = Idle()
    agent.setup(*born, 0)
    with pytest.raises(IdleAgentError, match=r"visit 0 .* left\): Idle\.improve\(\) acted in none"):
        live(agent, world(family, born[0], "A"), Run(tmp_path), "agent")


def test_what_was_not_executed_as_declared_is_said(tmp_path: Path, family: HalfCheetah, born: Born):
    around = world(family, born[0], "AB")
    life = lived(MetaInit(), around, born, tmp_path)
    ids = [(name, around.plan.tasks[name].id) for name in "AB"]
    episodes = read_episodes(tmp_path)

    def deviations(executed: Any, acted: Any) -> list[str]:
        diary = Diary(life.model_copy(deep=True))
        diary.episodes = acted
        diary.finish(executed)
        return diary.life.deviations

    assert deviations(ids, episodes) == []
    assert deviations(ids, episodes[:-3]) == ["visit 1: 11 episodes, declared 14"]
    assert deviations(ids, [*episodes, episodes[0]]) == ["visit 0: 15 episodes, declared 14"]
    assert deviations(ids[:1], episodes) == ["1 visits were made, 2 declared"]
    swapped = deviations([ids[1], ids[0]], episodes)
    assert "visit 0: was to 'B', declared 'A'" in swapped and len(swapped) == 4
    changed = [ids[0], ("B", "another")]
    assert deviations(changed, episodes) == [f"visit 1: task another, declared {ids[1][1]}"]
    stray = [e.model_copy(update={"task": "A"}) for e in episodes]
    assert deviations(ids, stray) == ["visit 1: has episodes of another task than 'B'"]


# One lifetime in a folder of its own.


def cohort(family: HalfCheetah, born: Born, order: str = "ABA") -> Cohort:
    """What lifetimes share."""
    return Cohort(world(family, born[0], order).stream, family, *born, detection=Detection())


def test_a_lifetime_is_found_again_and_only_by_its_own_settings(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    together = cohort(family, born)
    first = live_one("engram", Engram(), 0, together, tmp_path)
    again = live_one("engram", Engram(), 0, together, tmp_path)
    assert first is not None and again is not None
    assert timeless(first) == timeless(again) and first.job == again.job != ""
    assert [v.revisit for v in first.visits] == [False, False, True]
    other = Engram(memory=MemoryConfig(novelty=7.0))
    with pytest.raises(RunError, match=r"agent\.memory\.novelty=1\.0 \(now 7\.0\)"):
        live_one("engram", other, 0, together, tmp_path)
    with pytest.raises(RunError, match=r"seed=0 \(now 1\)"):
        live_one("engram", Engram(), 1, together, tmp_path)
    longer = cohort(family, born, "ABAB")
    with pytest.raises(RunError, match=r"stream\.order"):
        live_one("engram", Engram(), 0, longer, tmp_path)


def test_lifetimes_of_another_initialisation_are_not_continued(
    tmp_path: Path, family: HalfCheetah, born: Born
):
    live_one("meta_init", MetaInit(), 0, cohort(family, born), tmp_path)
    other = new_learner(Maml(), make_policy(family, PolicyConfig(hidden=[16]), False, "cpu"), 9)
    assert isinstance(other, Maml)
    with pytest.raises(RunError, match="meta_initialisation"):
        live_one("meta_init", MetaInit(), 0, cohort(family, (other, born[1])), tmp_path)


def test_agents_are_compared_on_the_same_tasks_and_seeds_differ(family: HalfCheetah, born: Born):
    together = cohort(family, born)
    hashes = {
        (name, seed): together.describe(agent, seed, "life")
        for name, agent in (("engram", Engram()), ("finetune", Finetune()))
        for seed in (0, 1)
    }
    for one, other in itertools.combinations(hashes.values(), 2):
        assert one != other
    assert hashes["engram", 0]["plan"] == hashes["finetune", 0]["plan"]
    ids = [[t.id for t in together.world(seed).plan.tasks.values()] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] and not {*ids[0]} & {*ids[2]}
