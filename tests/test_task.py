"""Parameters, tasks and how a family draws and splits them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from envs.navigation import Navigation
from envs.task import SPLITS, Param, Task, TaskDistribution
from envs.variants import Settings

ROOT = Path(__file__).parent.parent
ANGLE = Param(to="attr:angle", low=-3.0, high=3.0)


@dataclass(kw_only=True, config={"extra": "forbid"})
class Family(Navigation):
    """Navigation without its own parameter and check: only drawing is tested here."""

    PARAMS: ClassVar[Settings] = {}

    def __post_init__(self) -> None:
        """Take any parameters."""


def family(**params: Param) -> Family:
    return Family(name="test", params=params)


def rich_family() -> Family:
    return family(
        direction=Param(to="attr:direction", choices=[1.0, -1.0]),
        mass=Param(to="model:body_mass", op="scale", low=0.5, high=2.0, log=True),
        wind=Param(to="attr:wind", op="add", low=-1.0, high=1.0),
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"to": "angle", "low": 0.0, "high": 1.0}, "to='angle': expected KIND:NAME"),
        ({"to": "attr:", "low": 0.0, "high": 1.0}, "to='attr:'"),
        ({"to": "rest:x", "low": 0.0, "high": 1.0}, "to='rest:x'"),
        ({"to": ["attr:x", "y"], "low": 0.0, "high": 1.0}, "to='y'"),
        ({"to": [], "low": 0.0, "high": 1.0}, "at least one target"),
        ({"to": "attr:x", "low": 0.0, "high": 1.0, "ood": [0.9, 2.0]}, "does not overlap"),
        ({"to": "attr:x", "low": 0.0, "high": 1.0, "ood": [2.0]}, "the two ends"),
        ({"to": "attr:x", "choices": [1.0], "ood": [1.0]}, "not among the choices"),
        ({"to": "attr:x", "op": "scale", "choices": [2.0], "ood": [1.0]}, "not among the choices"),
        ({"to": "attr:x"}, "give both low and high, or choices"),
        ({"to": "attr:x", "low": 0.0}, "give both low and high, or choices"),
        ({"to": "attr:x", "low": 1.0, "high": 1.0}, "low=1 must be below high=1"),
        ({"to": "attr:x", "low": 0.0, "high": 1.0, "log": True}, "log=true needs low > 0"),
        ({"to": "attr:x", "choices": []}, "choices is empty"),
        ({"to": "attr:x", "choices": [1.0], "low": 0.0}, "either choices or low/high/log"),
        ({"to": "attr:x", "choices": [1.0], "log": True}, "either choices or low/high/log"),
    ],
)
def test_a_param_that_cannot_be_drawn_is_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Param(**fields)


def test_draws_fill_the_range_and_stay_in_it():
    draws = np.array([ANGLE.draw(generator) for generator in [rng()] for _ in range(2000)])
    assert draws.min() >= -3.0 and draws.max() < 3.0
    assert draws.min() < -2.9 and draws.max() > 2.9
    assert abs(draws.mean()) < 0.15


def test_log_draws_are_even_in_the_logarithm():
    param = Param(to="attr:x", op="scale", low=0.1, high=10.0, log=True)
    generator = rng()
    draws = np.array([param.draw(generator) for _ in range(2000)])
    assert draws.min() >= 0.1 and draws.max() <= 10.0
    assert np.mean(draws < 1.0) == pytest.approx(0.5, abs=0.04)
    assert param.unit(1.0) == pytest.approx(0.0)


def test_every_choice_is_drawn_and_nothing_else():
    param = Param(to="attr:x", choices=[3.0, -1.0, 0.5])
    generator = rng()
    counts = Counter(param.draw(generator) for _ in range(300))
    assert set(counts) == {3.0, -1.0, 0.5}
    assert min(counts.values()) > 60


def test_units_and_cells_of_ranges_and_choices():
    assert (ANGLE.unit(-3.0), ANGLE.unit(0.0), ANGLE.unit(3.0)) == (-1.0, 0.0, 1.0)
    assert (ANGLE.cell(-3.0), ANGLE.cell(0.0), ANGLE.cell(3.0)) == (0, 32, 63)
    assert (ANGLE.cell(-99.0), ANGLE.cell(99.0), ANGLE.cells) == (0, 63, 64)
    choices = Param(to="attr:x", choices=[5.0, 1.0, 3.0])
    assert [choices.unit(v) for v in (1.0, 3.0, 5.0)] == [-1.0, 0.0, 1.0]
    assert [choices.cell(v) for v in (5.0, 1.0, 3.0, 2.0)] == [0, 1, 2, 3]
    assert Param(to="attr:x", choices=[5.0]).unit(5.0) == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), split=st.sampled_from(SPLITS))
def test_sampled_tasks_belong_to_the_split_asked_for(seed: int, split: str):
    tasks = rich_family().sample(8, rng(seed), split)  # pyright: ignore[reportArgumentType]
    assert {rich_family().split_of(task.values) for task in tasks} == {split}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
def test_splits_never_share_a_cell(seed: int, other: int):
    tasks = rich_family()

    def cells(drawn: list[Task]) -> set[tuple[int, ...]]:
        return {tuple(p.cell(t.values[n]) for n, p in tasks.params.items()) for t in drawn}

    train = cells(tasks.sample(20, rng(seed), "train"))
    assert not train & cells(tasks.sample(20, rng(other), "heldout"))
    assert not train & cells(tasks.sample(20, rng(other), "validation"))


@given(x=st.floats(-2.9999, 2.9999), y=st.floats(0.0, 1.0, exclude_max=True))
def test_all_values_of_a_cell_are_in_one_split(x: float, y: float):
    tasks = family(angle=ANGLE)
    start = -3.0 + ANGLE.cell(x) * 6.0 / 64
    neighbour = start + y * 6.0 / 64
    if ANGLE.cell(neighbour) == ANGLE.cell(x):  # not rounded over the border
        assert tasks.split_of({"angle": neighbour}) == tasks.split_of({"angle": x})


def test_shares_of_the_splits_are_as_promised():
    tasks, generator = rich_family(), rng()
    counts = Counter(tasks.split_of(tasks.draw(generator)) for _ in range(3000))
    assert counts["train"] / 3000 == pytest.approx(0.8, abs=0.05)
    assert counts["heldout"] / 3000 == pytest.approx(0.1, abs=0.04)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split='test': expected one of train, validation"):
        rich_family().sample(1, rng(), "test")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("n", [2, 7, 20])
def test_draws_are_spread_evenly_over_the_first_discrete_parameter(n: int):
    tasks = rich_family().sample(n, rng(n))
    counts = Counter(task.values["direction"] for task in tasks)
    assert abs(counts[1.0] - counts[-1.0]) == n % 2


def test_a_single_draw_is_not_always_the_first_choice():
    drawn = {rich_family().sample(1, rng(seed))[0].values["direction"] for seed in range(20)}
    assert drawn == {1.0, -1.0}


def test_a_family_of_two_tasks_cannot_hold_any_back():
    tasks = family(direction=Param(to="attr:direction", choices=[1.0, -1.0]))
    assert not tasks.holds_out
    assert rich_family().holds_out
    for split in SPLITS:
        drawn = tasks.sample(5, rng(), split, distinct=True)
        assert sorted(task.values["direction"] for task in drawn) == [-1.0, 1.0]


def test_distinct_finds_every_task_of_a_small_family():
    tasks = family(
        a=Param(to="attr:a", choices=[1.0, 2.0, 3.0]), b=Param(to="attr:b", choices=[0.0, 1.0])
    )
    for seed in range(5):
        assert len(set(tasks.sample(6, rng(seed), distinct=True))) == 6
    repeats = tasks.sample(60, rng(), distinct=False)
    assert (len(repeats), len(set(repeats))) == (60, 6)


def test_more_distinct_tasks_than_a_split_has_is_an_error():
    grid = [float(i) for i in range(80)]
    tasks = family(a=Param(to="attr:a", choices=grid))
    with pytest.raises(ValueError, match="no further task of 'test' in split 'heldout'"):
        tasks.sample(30, rng(), "heldout", distinct=True)


def test_equal_seeds_draw_equal_tasks():
    first, second = (rich_family().sample(6, rng(3)) for _ in range(2))
    assert first == second
    assert first != rich_family().sample(6, rng(4))


def test_a_tasks_id_is_the_same_on_every_machine():
    assert Task("test", {"a": 0.1, "b": -2.0}).id == "4b48301e"
    code = "from envs.task import Task; print(Task('test', {'b': -2.0, 'a': 0.1}).id)"
    out = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert out.strip() == "4b48301e"


@pytest.mark.parametrize("values", [{"a": 1}, {"a": np.float64(1.0)}, {"a": np.float32(1.0)}])
def test_equal_values_are_the_same_task(values: dict):
    assert Task("test", values) == Task("test", {"a": 1.0})
    assert len({Task("test", values), Task("test", {"a": 1.0})}) == 1
    assert Task("test", {"a": -0.0}).id == Task("test", {"a": 0.0}).id


def test_other_values_or_families_are_other_tasks():
    ids = {Task("test", {"a": 1.0}).id, Task("test", {"a": 1.1}).id, Task("x", {"a": 1.0}).id}
    assert len(ids) == 3


def test_descriptors_lie_between_minus_one_and_one():
    tasks = rich_family()
    rows = tasks.describe(tasks.sample(200, rng()))
    assert rows.shape == (200, 3)
    assert np.abs(rows).max() <= 1.0
    assert rows.min(axis=0) == pytest.approx([-1.0, -1.0, -1.0], abs=0.1)
    assert rows.max(axis=0) == pytest.approx([1.0, 1.0, 1.0], abs=0.1)
    assert tasks.describe([]).shape == (0, 3)


def test_a_label_names_what_differs_most_from_nominal():
    tasks = rich_family()
    values = {"direction": -1.0, "mass": 1.5, "wind": 0.25}
    assert tasks.label(Task("test", values)) == "direction -1, mass x1.5, wind 0.25"
    assert tasks.label(Task("test", values), most=1) == "direction -1, +2 more"
    nominal = family(mass=rich_family().params["mass"])
    assert nominal.label(Task("test", {"mass": 1.0})) == "nominal"


def test_fixed_values_are_taken_as_they_are():
    values = rich_family().draw(rng(), {"wind": 0.125})
    assert values["wind"] == 0.125
    assert math.isclose(abs(values["direction"]), 1.0)


SPEED = Param(to="attr:speed", low=0.0, high=3.0, ood=[3.0, 4.0])
LOG_MASS = Param(to="attr:mass", op="scale", low=0.5, high=2.0, log=True, ood=[2.0, 8.0])
LEVEL = Param(to="attr:level", choices=[1.0, 2.0], ood=[3.0, 5.0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tasks_out_of_distribution_lie_beyond_every_other_split(seed: int):
    tasks = family(speed=SPEED, mass=LOG_MASS, level=LEVEL, wind=ANGLE)
    for task in tasks.sample(10, rng(seed), "ood"):
        assert 3.0 <= task.values["speed"] <= 4.0
        assert 2.0 <= task.values["mass"] <= 8.0
        assert task.values["level"] in (3.0, 5.0)
        assert abs(task.values["wind"]) <= 3.0  # has no range beyond its own
        assert tasks.split_of(task.values) == "ood"
    for split in SPLITS:
        for task in tasks.sample(5, rng(seed), split):
            assert task.values["speed"] <= 3.0 and tasks.split_of(task.values) == split


def test_out_of_distribution_works_in_a_family_too_small_to_hold_out():
    tasks = family(level=LEVEL)
    assert {t.values["level"] for t in tasks.sample(20, rng(), "ood")} == {3.0, 5.0}
    assert {t.values["level"] for t in tasks.sample(20, rng(), "train")} == {1.0, 2.0}
    with pytest.raises(ValueError, match="no parameter declares an 'ood' range"):
        rich_family().sample(1, rng(), "ood")


def test_the_ends_of_a_logarithmic_range_are_inside_of_it():
    param = Param(to="attr:x", op="scale", low=1.5**-3, high=1.5**3, log=True)
    ends = [math.exp(math.log(end)) for end in (1.5**-3, 1.5**3)]
    assert not any(param.beyond(end) for end in ends)
    assert param.beyond(3.4) and not param.beyond(1.0)


def test_a_pool_is_a_fixed_set_of_its_split():
    tasks = family(angle=ANGLE)
    tasks.pool = {"train": 5, "heldout": 3}
    drawn = {t for seed in range(30) for t in tasks.sample(4, rng(seed), "train")}
    assert len(drawn) == 5 and {tasks.split_of(t.values) for t in drawn} == {"train"}
    assert len(set(tasks.sample(5, rng(0), "train", distinct=True))) == 5
    assert len(set(tasks.sample(50, rng(0), "validation"))) == 50  # has no pool
    with pytest.raises(ValueError, match="4 distinct tasks of 'test': the pool of 'heldout' has 3"):
        tasks.sample(4, rng(0), "heldout", distinct=True)


def motors(count: int, perturbed: int | None, **others: Param) -> TaskDistribution:
    gears = {
        f"gear_{i}": Param(to=f"attr:gear_{i}", op="scale", choices=[-1.0, 0.2])
        for i in range(count)
    }
    return Family(name="test", perturbed=perturbed, params=gears | others)


@pytest.mark.parametrize("perturbed", [1, 2, 4])
def test_exactly_the_asked_number_of_parameters_leaves_nominal(perturbed: int):
    tasks = motors(6, perturbed, direction=Param(to="attr:direction", choices=[1.0, -1.0]))
    drawn = [tasks.draw(generator) for generator in [rng()] for _ in range(200)]
    changed = [{n for n, v in d.items() if n.startswith("gear_") and v != 1.0} for d in drawn]
    assert {len(names) for names in changed} == {perturbed}
    assert set.union(*changed) == {f"gear_{i}" for i in range(6)}
    assert {t.values["direction"] for t in tasks.sample(4, rng())} == {1.0, -1.0}


def test_whether_a_perturbed_family_holds_out_counts_its_tasks_not_its_cells():
    # C(6, 2) * 2 * 2 = 60 tasks, C(7, 2) * 2 * 2 = 84
    assert not motors(6, 2).holds_out and motors(7, 2).holds_out
    with pytest.raises(ValueError, match="perturbed=3 but only 2 parameters have a nominal value"):
        motors(2, 3)


def test_a_task_of_given_values_is_nominal_otherwise():
    tasks = motors(3, 1, angle=ANGLE)
    made = tasks.task({"gear_1": -1.0, "angle": 2})
    assert made == Task("test", {"gear_0": 1.0, "gear_1": -1.0, "gear_2": 1.0, "angle": 2.0})
    with pytest.raises(ValueError, match="no parameter 'gear_9'"):
        tasks.task({"gear_9": 1.0, "angle": 2.0})
    with pytest.raises(ValueError, match="parameter 'angle' needs a value"):
        tasks.task({})
