"""Streams: how orders, budgets and tasks are made, and that every preset is what it says."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cli import configure
from agent.config import ConfigError, build
from agent.continual.cost import cost_of, steps_per_cpu_second
from agent.continual.orders import dealt, spaced
from agent.continual.plan import Plan
from agent.continual.stream import Stream, Told
from agent.stream_presets import presets, presets_table, streams, timeline, told
from envs.checks.recording import Recording, changes, explore, opened, record
from envs.half_cheetah import HalfCheetahDir, HalfCheetahFaults
from envs.navigation import Navigation, NavigationSquare
from envs.task import Param, Task, TaskDistribution, TaskError

CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "stream").glob("*.yaml"))
POINTS = Navigation(name="points", horizon=20)
SQUARE = NavigationSquare(name="square")
FAULTS = HalfCheetahFaults(name="faults")
COPIES, STEPS = 3, 40


@functools.cache
def preset(name: str) -> tuple[Stream, TaskDistribution]:
    node = dict(configure("continual", [f"stream={name}"])["stream"])
    family = build(node.pop("family"), "stream.family")
    return build(node, "stream", Stream), family


def stream(order: Any = "AB", **settings: Any) -> Stream:
    order = list(order) if isinstance(order, str) else order
    return build({"name": "s", "order": order, **settings}, "stream", Stream)


def names(plan: Plan) -> list[str]:
    return [visit.task for visit in plan.visits]


def episodes(plan: Plan) -> list[int]:
    return [visit.episodes for visit in plan.visits]


# Presets.


@pytest.mark.parametrize("name", PRESETS)
def test_presets_plan_and_repeats_repeat(name: str):
    what, family = preset(name)
    assert what.name == name
    for seed in range(3):
        plan = what.plan(family, seed)
        assert plan == what.plan(family, seed)
        assert all(visit.episodes >= 1 for visit in plan.visits)
        assert {*names(plan), *plan.held_out} == plan.tasks.keys()
        executed = [plan.infos(family)[task].id for task in names(plan)]
        length = len(plan.visits) // what.repeats
        for visit in range(length, len(plan.visits)):
            assert plan.visits[visit] == plan.visits[visit - length] and plan.revisit(visit)
            assert executed[visit] == executed[visit - length]


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_comment_tells_its_cost_and_an_initialisation_that_fits(name: str):
    what, family = preset(name)
    comment = dict(presets())[name]
    stated = re.search(r"([\d,]+) env steps", comment)
    assert stated is not None
    cost = cost_of(what, family, what.plan(family, 0))
    if what.dwell:  # of the mean length
        assert len(what.order) * sum(what.dwell) / 2 * family.horizon == 104_000
        assert "104,000 env steps in the mean" in comment
    else:
        assert int(stated.group(1).replace(",", "")) == cost.env_steps
    assert cost.evaluation_share < (0.27 if name == "cheetah_faults" else 0.2)
    recommended = re.search(r"Initialisation: env=(\w+)", comment)
    assert recommended is not None
    trained_on = build(configure("train", [f"env={recommended.group(1)}"])["env"], "env")
    assert trained_on.obs_size == family.obs_size
    assert trained_on.action_size == family.action_size


def played(family: TaskDistribution, task: Task, sign: float = 1.0) -> Recording:
    actions = explore(family, min(STEPS, family.horizon), 1, COPIES, seed=0)
    with opened(family, [task], COPIES) as simulators:
        return record(simulators, sign * actions, seed=0)


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.startswith("cw")])
def test_all_tasks_of_a_preset_differ_and_every_modifier_changes_something(name: str):
    what, family = preset(name)
    plan = what.plan(family, 0)
    tasks = {task.id: task for task in plan.tasks.values()}
    recordings = [played(family, task) for task in tasks.values()]
    for i, one in enumerate(recordings):
        assert all(changes(one, other) for other in recordings[:i]), list(tasks.values())[i]
    for task in [plan.tasks[given] for given in what.tasks]:
        for key, value in task.values.items():
            neutral = family.params[key].neutral
            if neutral is not None and value != neutral:
                without = family.task({**task.values, key: neutral})
                assert changes(played(family, task), played(family, without)), (task, key)


def compiled(name: str, task: str) -> tuple[Any, Any]:
    """The model of a task of a preset, and the nominal one."""
    what, family = preset(name)
    with opened(family, [what.plan(family, 0).tasks[task]]) as simulators:
        simulators.reset(0)
        seen: Any = simulators.look(0)
        return seen[0], getattr(family, "model")  # noqa: B009


def test_published_perturbations_reach_the_compiled_model():
    for name in ("cheetah_body", "csp_cheetah_forgetting"):
        moon, nominal = compiled(name, "moon")
        assert moon.opt.gravity[2] == pytest.approx(0.15 * -9.81)
        rain, _ = compiled(name, "rainfall")
        assert np.allclose(rain.geom_friction, 0.4 * nominal.geom_friction)
        load, _ = compiled(name, "carry_stuff")
        ratio = load.body_mass[1:] / nominal.body_mass[1:]
        assert ratio == pytest.approx([4.0, 1, 1, 1, 1, 1, 1])
        feet, _ = compiled(name, "hugefoot")
        assert feet.body("bfoot").mass[0] == pytest.approx(1.5 * nominal.body("bfoot").mass[0])
        assert feet.geom("ffoot").size[0] == pytest.approx(1.5 * nominal.geom("ffoot").size[0])
    both, nominal = compiled("csp_cheetah_composability", "tinyfoot_moon")
    assert both.opt.gravity[2] == pytest.approx(0.15 * -9.81)
    assert both.geom("bfoot").size[0] == pytest.approx(0.5 * nominal.geom("bfoot").size[0])
    ant, nominal = compiled("csp_ant_composability", "disabled_hard1")
    assert np.flatnonzero(ant.actuator_gear[:, 0]).tolist() == [2, 3]  # one leg is left
    ant, nominal = compiled("csp_ant_transfer", "disabled_first_diagonal")
    alive = np.flatnonzero(ant.actuator_gear[:, 0])
    joints = [nominal.actuator_trnid[motor, 0] for motor in alive[::2]]
    places = [nominal.body_pos[nominal.jnt_bodyid[joint]][:2] for joint in joints]
    assert places[0] == pytest.approx(-places[1])  # the two legs left lie opposite each other
    ice, nominal = compiled("slippery_ant", "F01")
    assert np.allclose(ice.geom_friction[1:] / nominal.geom_friction[1:], ice.geom_friction[1, 0])


def test_inverted_actions_are_the_normal_task_with_the_opposite_actions():
    for name in ("csp_cheetah_distraction", "csp_ant_distraction"):
        what, family = preset(name)
        tasks = what.plan(family, 0).tasks
        one = played(family, tasks["inverted_actions"], sign=-1.0)
        assert not changes(one, played(family, tasks["normal"]))


def test_the_defective_module_shows_zeros_and_changes_nothing_else():
    what, family = preset("csp_cheetah_transfer")
    broken = played(family, what.plan(family, 0).tasks["defective_module"])
    whole = played(family, family.task({}))
    assert not broken.obs[..., 1:16:2].any() and np.array_equal(broken.reward, whole.reward)
    assert np.array_equal(broken.obs[..., 0::2], whole.obs[..., 0::2])


def test_the_speeds_of_cheetah_vel_are_held_out():
    what, family = preset("cheetah_vel")
    splits = {name: family.split_of(values) for name, values in what.tasks.items()}
    assert splits.pop("beyond") == "ood" and set(splits.values()) == {"heldout"}


def test_cw20_counts_the_second_pass_as_new_and_cw20_recall_does_not():
    for name, new in (("cw20", 20), ("cw20_recall", 10)):
        what, family = preset(name)
        plan = what.plan(family, 0)
        ids = [plan.tasks[task].id for task in names(plan)]
        assert ids[:10] == ids[10:] and len(set(ids)) == 10
        assert sum(not plan.revisit(visit) for visit in range(20)) == new
        assert episodes(plan) == [5000] * 20
        labels = [family.label(plan.tasks[task]).split()[0] for task in names(plan)[:10]]
        assert labels == [f"{task.replace('_', '-')}-v3" for task in names(plan)[:10]]


# Orders.


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_latin_orders_are_a_latin_square_over_seeds_in_which_all_follow_all(count: int):
    order = list("ABCDEF"[:count])
    rows = [dealt(order, "latin", seed) for seed in range(7 * count, 9 * count)]
    for square in (rows[:count], rows[count:]):
        assert all(sorted(row) == order for row in square)
        assert all(sorted(column) == order for column in zip(*square, strict=True))
    follows = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert len(follows) == count * (count - 1) and set(follows.values()) == {2}


def test_shuffles_keep_the_pattern_of_revisits():
    rows = ["".join(dealt("ABCACB", "per_seed", seed)) for seed in range(40)]
    assert len(set(rows)) == 6 and rows == [
        "".join(dealt("ABCACB", "per_seed", s)) for s in range(40)
    ]
    for row in [*rows, "".join(dealt("ABCACB", "latin", 1))]:
        a, b, c, *rest = row
        assert rest == [a, c, b] and len({a, b, c}) == 3
    assert dealt("ABCACB", "fixed", 5) == list("ABCACB")
    plan = stream("ABA", shuffle="per_seed", repeats=2).plan(POINTS, 3)
    assert names(plan)[:3] == names(plan)[3:]


@pytest.mark.parametrize(
    ("tasks", "gaps"), [(50, [1, 2, 4, 8, 16, 32]), (3, [1]), (2, [0]), (9, [1, 3])]
)
def test_in_a_spaced_order_every_revisit_keeps_a_gap(tasks: int, gaps: list[int]):
    order = spaced(tasks, gaps)
    first = [name for i, name in enumerate(order) if name not in order[:i]]
    assert first == [f"T{n}" for n in range(1, tasks + 1)]
    assert min(Counter(order).values()) >= 2
    last: dict[str, int] = {}
    found: Counter[int] = Counter()
    for i, name in enumerate(order):
        if name in last:
            found[i - last[name] - 1] += 1
        last[name] = i
    assert found.keys() == set(gaps)
    assert max(found.values()) - min(found.values()) <= 2
    assert stream({"tasks": tasks, "gaps": gaps}).order == order


# Tasks.


def test_a_drift_passes_between_its_ends_at_the_declared_pace():
    ends = {"A": {"angle": 1.0}, "B": {"angle": 3.0}}
    for shape, shares in (
        ("linear", [0.25, 0.5, 0.75]),
        ("sine", [0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125)]),
    ):
        plan = stream("ABBA", tasks=ends, drift={"steps": 3, "shape": shape}).plan(POINTS, 0)
        there, back = [f"A>B {i}/4" for i in (1, 2, 3)], [f"B>A {i}/4" for i in (1, 2, 3)]
        assert names(plan) == ["A", *there, "B", "B", *back, "A"]
        assert [v.drifting for v in plan.visits] == [">" in name for name in names(plan)]
        angles = [plan.tasks[name].values["angle"] for name in there]
        assert angles == pytest.approx([1.0 + 2.0 * share for share in shares])
        backwards = [plan.tasks[name].values["angle"] for name in back]
        assert backwards == pytest.approx(angles[::-1])
        assert plan.scored() == ["A", "B"]


def test_a_drift_is_as_long_as_it_says_and_even_in_the_logarithm():
    family = Navigation(
        name="p", params={"gain": Param(to="action:0", op="scale", low=0.01, high=1.0, log=True)}
    )
    ends = {"A": {"angle": 1.0, "gain": 0.01}, "B": {"angle": 1.0, "gain": 1.0}}
    for own, expected in ((None, [7, 9, 9]), (2, [7, 2, 9])):
        settings: dict[str, Any] = {"tasks": ends, "place_episodes": [7, 9]}
        plan = stream("AB", drift={"steps": 1, "episodes": own}, **settings).plan(family, 0)
        assert episodes(plan) == expected
        assert plan.tasks["A>B 1/2"].values == pytest.approx({"angle": 1.0, "gain": 0.1})


def test_near_misses_move_by_the_share_of_the_range_and_stay_inside():
    signs = set()
    for seed in range(20):
        plan = stream("AB", near={"B": {"of": "A", "share": 0.25}}).plan(SQUARE, seed)
        one, other = (np.array(list(plan.tasks[name].values.values())) for name in "AB")
        assert np.abs(other - one) == pytest.approx(0.25) and np.abs(other).max() <= 0.5
        signs.add(tuple(np.sign(other - one)))
        alone = stream("A").plan(SQUARE, seed)
        assert alone.tasks["A"] == plan.tasks["A"]  # a near-miss more, the same tasks otherwise
    assert len(signs) == 4


def test_a_near_miss_among_choices_changes_one_broken_part():
    for family in (FAULTS, preset("cheetah_faults")[1]):  # in the latter not the direction
        for seed in range(10):
            tasks = stream("AB", near={"B": {"of": "A"}}).plan(family, seed).tasks
            one, other = tasks["A"].values, tasks["B"].values
            changed = [key for key in one if one[key] != other[key]]
            assert len(changed) == 1 and changed[0].startswith("gear_")
            assert 1.0 not in (one[changed[0]], other[changed[0]])


def test_in_a_family_with_few_changes_at_once_a_near_miss_has_the_same_ones():
    _, family = preset("long_recall")
    one, other = (
        stream("AB", near={"B": {"of": "A", "share": 0.1}}).plan(family, 0).tasks[name].values
        for name in "AB"
    )
    moved = {key: abs(one[key] - other[key]) for key in one if one[key] != other[key]}
    assert set(moved) == {k for k in one if k != "direction" and one[k] != 1.0} and len(moved) == 2
    assert list(moved.values()) == pytest.approx([0.2, 0.2])


def test_novel_tasks_come_from_their_own_split():
    plan = stream("ABAC", novel_split="ood", held_out=["D"]).plan(SQUARE, 0)
    splits = {name: SQUARE.split_of(task.values) for name, task in plan.tasks.items()}
    assert splits == {"A": "heldout", "B": "ood", "C": "ood", "D": "heldout"}


def test_what_is_drawn_is_never_what_is_given():
    family = HalfCheetahDir(name="dir")
    for seed in range(10):
        tasks = stream("AB", tasks={"A": {"direction": 1.0}}).plan(family, seed).tasks
        assert tasks["B"].values == {"direction": -1.0}
    with pytest.raises(TaskError, match=r"draws 2 tasks, but 'dir' has only 1 others than those"):
        stream("ABC", tasks={"A": {"direction": 1.0}}).plan(family, 0)


def test_lifetimes_meet_other_tasks_unless_a_seed_for_them_is_given():
    own = [stream("ABC").plan(POINTS, seed).tasks for seed in (0, 1)]
    assert own[0] != own[1]
    shared = [stream("ABC", tasks_seed=7, shuffle="latin").plan(POINTS, seed) for seed in (0, 1, 7)]
    assert shared[0].tasks == shared[1].tasks == stream("ABC").plan(POINTS, 7).tasks
    assert names(shared[0]) != names(shared[1])


# Budgets, evaluations, cost.


def test_budgets_in_whichever_way_they_are_given():
    assert episodes(stream("AB").plan(POINTS, 0)) == [60, 60]
    assert episodes(stream("AB", budget_episodes=5).plan(POINTS, 0)) == [5, 5]
    assert episodes(stream("AB", budget_env_steps=100).plan(POINTS, 0)) == [5, 5]
    many = stream("AB", place_episodes=[1, 2], repeats=2, shuffle="latin").plan(POINTS, 1)
    assert episodes(many) == [1, 2, 1, 2] and names(many) == list("BABA")
    drawn = [episodes(stream("AB" * 50, dwell=[3, 5]).plan(POINTS, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {*drawn[0]} == {3, 4, 5}


def test_what_is_evaluated_when():
    plan = stream("ABAC", held_out=["H"]).plan(POINTS, 0)
    rows = ["".join(plan.evaluated(checkpoint)) for checkpoint in range(5)]
    assert rows == ["ABCH", "AB", "AB", "ABC", "ABCH"]
    plan = stream("ABAC", held_out=["H"], evaluate="around").plan(POINTS, 0)
    rows = ["".join(plan.evaluated(checkpoint)) for checkpoint in range(5)]
    assert rows == ["ABCH", "AB", "BA", "AC", "ABCH"]
    plan = stream("ABA", drift={"steps": 2}).plan(POINTS, 0)  # A ~ ~ B ~ ~ A
    rows = ["".join(plan.evaluated(checkpoint)) for checkpoint in range(8)]
    assert rows == ["AB", "A", "", "AB", "AB", "", "AB", "AB"]


def test_cost_by_hand():
    what = stream("ABAC", held_out=["H"], budget_episodes=5, eval_episodes=2)
    cost = cost_of(what, POINTS, what.plan(POINTS, 0))
    assert (cost.visits, cost.episodes, cost.env_steps) == (4, 20, 400)
    assert cost.evaluations == 4 + 2 + 2 + 3 + 4 + 4  # the rows above, and each visit's end
    assert cost.evaluation_env_steps == 19 * 2 * 20
    assert cost.evaluation_share == 1.9
    assert cost.cpu_minutes(rate=9.0) == pytest.approx((400 + 760) / 9 / 60)
    more = stream("ABAC", held_out=["H"], budget_episodes=1005, eval_episodes=2)
    longer = cost_of(more, POINTS, more.plan(POINTS, 0))
    assert longer.stored_mb - cost.stored_mb == pytest.approx(4000 * 160 / 1e6, rel=0.1)
    assert steps_per_cpu_second(POINTS, what.plan(POINTS, 0).tasks["A"]) > 1000


# Mistakes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ordr": []}, r"stream\.ordr: unknown key; did you mean 'order'"),
        ({"order": {"tasks": 2, "gap": [1]}}, r"stream\.order: gap.* expected a list of names, or"),
        ({"order": {"tasks": 2, "gaps": [4]}}, r"stream\.order: 2 tasks are too few"),
        ({"order": ["A", ""]}, r"stream\.order\.1"),
        ({"tasks": {"C": {}}}, r"tasks\.C: is neither in order nor in held_out"),
        ({"tasks": {"A": {"angle": math.inf}}}, r"stream\.tasks\.A\.angle"),
        ({"near": {"C": {"of": "A"}}}, r"near\.C: is neither"),
        ({"near": {"B": {"of": "C"}}}, r"near\.B\.of='C': expected a name"),
        ({"near": {"B": {"of": "A"}, "A": {"of": "B"}}}, r"near\.B\.of='A': .* not itself made"),
        ({"near": {"B": {"of": "A"}}, "tasks": {"B": {"angle": 1.0}}}, r"near\.B: its parameters"),
        ({"near": {"B": {"of": "A", "share": 0.6}}}, r"stream\.near\.B\.share=0\.6"),
        ({"held_out": ["A"]}, r"held_out: 'A' is visited too"),
        ({"held_out": ["C", "C"]}, r"held_out=.*a name is given twice"),
        ({"novel_split": "ood", "repeats": 2}, r"novel_split=ood: no task .*repeats=2"),
        ({"budget_episodes": 4, "budget_env_steps": 80}, r"budget_episodes=4 and budget_env_steps"),
        ({"budget_episodes": 4, "dwell": [1, 2]}, r"budget_episodes=4 and dwell=\[1, 2\]"),
        ({"place_episodes": [1, 2, 3]}, r"place_episodes: has 3 entries, but order has 2 places"),
        ({"dwell": [5, 3]}, r"dwell=\[5, 3\]: expected \[fewest, most\]"),
        ({"drift": {"steps": 0}}, r"stream\.drift\.steps=0"),
        ({"told": {"boundaries": "hidden"}}, r"stream\.told\.boundaries: unknown key"),
    ],
)
def test_mistakes_in_a_stream_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        stream(**{"order": ["A", "B"], **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_env_steps": 90}, r"budget_env_steps=90 is no whole .*horizon=20.* 80 or 100"),
        ({"budget_env_steps": 10}, r"budget_env_steps=10 is no whole .*expected 20"),
        ({"tasks": {"A": {"angel": 1.0}}}, r"stream 's': tasks\.A: points: no parameter 'angel'"),
    ],
)
def test_mistakes_that_only_the_family_shows_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(TaskError, match=message):
        stream("AB", **settings).plan(POINTS, 0)


def test_what_has_no_between_and_no_near_is_refused():
    both = {"A": {"direction": 1.0}, "B": {"direction": -1.0}}
    with pytest.raises(TaskError, match=r"drift: parameter 'direction' .* has choices"):
        stream("AB", tasks=both, drift={"steps": 1}).plan(HalfCheetahDir(name="dir"), 0)
    what, family = preset("cw10")
    for change in ({"drift": {"steps": 1}}, {"near": {"N": {"of": "push"}}, "held_out": ["N"]}):
        given = {"tasks": what.tasks, **change}
        with pytest.raises(TaskError, match=r"belong together"):
            stream(what.order, **given).plan(family, 0)


# The command.


def test_the_timeline_marks_first_visits_revisits_and_drifts():
    plan = stream(["A", "long", "A"], drift={"steps": 2}).plan(POINTS, 0)
    shown = timeline(plan, width=80)
    assert shown == [
        "visits 1 to 7",
        "A        O.....#",
        "long     ...O...",
        "(drift)  .~~.~~.",
    ]
    plan = stream("A" * 11 + "B").plan(POINTS, 0)
    assert timeline(plan, width=5) == [  # lines too short to be read are not made
        "visits 1 to 10", "A  O#########", "visits 11 to 12", "A  #.", "B  .O",
    ]  # fmt: skip


def test_what_agents_are_told_is_said():
    plan = stream("AB").plan(POINTS, 0)
    assert "but not which" in told(Told(), plan)
    assert "and which task" in told(Told(task="told", boundary="hidden"), plan)
    hidden = told(Told(boundary="hidden"), plan)
    assert hidden.startswith("Agents are told neither when the task changes, nor which task it is.")
    drifting = stream("AB", drift={"steps": 1}).plan(POINTS, 0)
    assert "in small steps" in told(Told(boundary="hidden"), drifting)


def test_the_command_lists_shows_and_previews(capsys: pytest.CaptureFixture[str]):
    def run(action: str, *overrides: str) -> str:
        streams(configure("streams", overrides) | {"action": action}, "engram streams")
        return " ".join(capsys.readouterr().out.split())

    listed = run("list")
    assert all(name in listed for name in PRESETS)
    assert len(presets_table().rows) == len(PRESETS)
    assert all(cell for column in presets_table().columns for cell in column.cells)
    shown = run("show", "stream=point_recall", "stream.repeats=2")
    assert "three goals on a circle" in shown and "repeats: 2" in shown
    told_of = run("preview", "stream=point_recall", "seeds=[0,5]")
    what, family = preset("point_recall")
    for seed in (0, 5):
        assert f"({what.plan(family, seed).tasks['A'].id})" in told_of
    assert "Seeds 0, 5 visits 1 to 6 A O..#.. B .O..#. C ..O..# 32 episodes each" in told_of
    assert "3,840" in told_of and "Evaluation may take" not in told_of
    assert "Evaluation may take" in run("preview", "stream=point_recall", "stream.eval_episodes=9")
    same = run("preview", "stream=cheetah_vel", "seeds=[0,1]")
    assert "whatever the seed" in same and "beyond (never visited)" in same
    with pytest.raises(ConfigError, match=r"engram streams preview NAME; known are cheetah_body"):
        run("preview")
