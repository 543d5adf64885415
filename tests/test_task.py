"""Parameters, tasks and how a family draws and splits them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.navigation import Navigation
from envs.task import SPLITS, Param, Task

ROOT = Path(__file__).parent.parent
ANGLE = Param(to="attr:angle", low=-3.0, high=3.0)


class Family(Navigation):
    """Navigation without its check of the parameters: only drawing is tested here."""

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
        ({"to": "angle", "low": 0.0, "high": 1.0}, "to='angle': expected attr:NAME"),
        ({"to": "attr:", "low": 0.0, "high": 1.0}, "to='attr:'"),
        ({"to": "reset:x", "low": 0.0, "high": 1.0}, "to='reset:x'"),
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
