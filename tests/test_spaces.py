"""Spaces as rows of numbers: gymnasium's own flattening is the oracle, and nothing is broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Space,
    Text,
    Tuple,
)
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from envs.task import TaskError
from envs.wrapped.spaces import LARGEST_OBSERVATION, ActionMap, ObservationMap

GOAL = Dict(position=Box(-2.0, 3.0, (2,)), kind=Discrete(3, start=1))
NESTED = Dict({"z": Box(0, 255, (2, 2), np.uint8), "goal": GOAL, "arms": Tuple([Box(-1, 1, ())])})
SPACES = [
    Box(-1.0, 1.0, (3,), np.float64),
    Box(-1.0, 1.0, (2, 1, 2)),
    Box(-5, 5, (), np.int32),
    Discrete(4),
    Discrete(3, start=-1),
    MultiDiscrete([3, 2]),
    MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 0], [-2, 5]])),
    MultiBinary(3),
    MultiBinary([2, 2]),
    NESTED,
    Tuple([Discrete(2), NESTED, MultiBinary(1)]),
]


def samples(space: Space, n: int = 20) -> list[Any]:
    space.seed(0)
    return [space.sample() for _ in range(n)]


def flat(space: Space, value: Any) -> np.ndarray:
    return np.asarray(flatten(space, value)).astype(np.float64)


def box(low: list[float], high: list[float]) -> Box:
    return Box(np.array(low, np.float32), np.array(high, np.float32))


def batched(space: Space, items: Sequence[Any]) -> Any:
    return concatenate(space, items, create_empty_array(space, len(items)))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_flatten_as_gymnasium_does(space: Space):
    mapping, items = ObservationMap(space), samples(space)
    rows = np.stack([mapping.flatten(item) for item in items])
    expected = np.stack([flat(space, item) for item in items])
    assert rows.dtype == np.float64 and rows.shape == (20, mapping.size)
    assert np.array_equal(rows, expected)
    assert np.array_equal(mapping.flatten_rows(batched(space, items), 20), expected)


def test_discrete_observations_count_from_their_start():
    mapping = ObservationMap(Discrete(3, start=-1))
    assert [mapping.flatten(i).tolist() for i in (-1, np.int64(1))] == [[1, 0, 0], [0, 0, 1]]
    many = ObservationMap(MultiDiscrete([2, 3], start=[5, -1]))
    assert many.flatten(np.array([6, -1])).tolist() == [0, 1, 1, 0, 0]


def test_a_flattened_observation_is_a_copy():
    obs = np.zeros(3)
    row = ObservationMap(SPACES[0]).flatten(obs)
    obs[:] = 7.0
    assert not row.any()


def test_the_table_says_where_each_part_lies():
    mapping = ObservationMap(NESTED)
    table = mapping.table()
    # gymnasium sorts the keys of a plain dictionary.
    assert [(e.name, e.where.start, e.where.stop) for e in table] == [
        ("arms[0]", 0, 1),
        ("goal.position", 1, 3),
        ("goal.kind", 3, 6),
        ("z", 6, 10),
    ]
    assert table[1].low.tolist() == [-2, -2] and table[1].high.tolist() == [3, 3]
    assert table[2].low.tolist() == [0, 0, 0] and table[2].high.tolist() == [1, 1, 1]
    obs = {**samples(NESTED, 1)[0], "goal": {"position": np.array([0.5, 2.0]), "kind": 3}}
    row = mapping.flatten(obs)
    assert row[table[1].where].tolist() == [0.5, 2.0]
    assert row[table[2].where].tolist() == [0.0, 0.0, 1.0]
    assert [e.name for e in ObservationMap(Discrete(2)).table()] == ["observation"]
    assert [e.name for e in ActionMap(Discrete(2)).table()] == ["action"]


GOOD = {"position": np.zeros(2), "kind": 1}


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (SPACES[0], np.zeros((3, 1)), r"'observation': .*\(3,\), as its space Box.*\(3, 1\)"),
        (SPACES[0], np.zeros(1), r"shape \(3,\).* got ndarray of shape \(1,\)"),
        (SPACES[0], 1.0, r"shape \(3,\).* got float 1\.0"),
        (SPACES[0], None, "numbers of shape .* got None"),
        (SPACES[0], [[1.0], [1.0, 2.0]], "'observation' is no array"),
        (SPACES[0], ["a", "b", "c"], "expected numbers"),
        (Discrete(3), 3, r"'observation': ndarray .*array\(3\) is not in its space Discrete\(3\)"),
        (Discrete(3, start=1), 0, "is not in its space Discrete"),
        (Discrete(3), 1.0, "expected whole numbers of shape"),
        (Discrete(3), np.zeros(1, int), r"expected whole numbers of shape \(\)"),
        (MultiDiscrete([2, 2]), np.array([0, 2]), "is not in its space MultiDiscrete"),
        (GOAL, {"position": np.zeros(2)}, r"the keys \['kind', 'position'\].*got \['position'\]"),
        (GOAL, {**GOOD, "more": 1}, r"the observation: expected .* got \['kind', 'more', 'pos"),
        (GOAL, np.zeros(3), "expected a dictionary .* got ndarray"),
        (GOAL, {**GOOD, "position": np.zeros(3)}, "observation 'position': expected numbers"),
        (Dict(a=GOAL), {"a": None}, "observation 'a': expected a dictionary .* got None"),
        (Tuple([GOAL, GOAL]), (GOOD,), "expected a tuple of the 2 parts of its space, got 1"),
        (Tuple([GOAL]), {0: GOOD}, "expected a tuple .* got dict"),
        (Dict(a=Tuple([GOAL])), {"a": ({**GOOD, "kind": 9},)}, r"observation 'a\[0\].kind'"),
    ],
)
def test_an_observation_of_another_form_is_never_broadcast(space: Space, obs: Any, message: str):
    with pytest.raises(TaskError, match=message):
        ObservationMap(space).flatten(obs)


def test_rows_of_another_number_are_refused():
    with pytest.raises(TaskError, match=r"shape \(4, 3\).* shape \(3, 3\)"):
        ObservationMap(SPACES[0]).flatten_rows(np.zeros((3, 3)), 4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Text(5), r"the observation space has Text\(.* supported are Box, Discrete"),
        (Dict(a=spaces.Sequence(Discrete(2))), "has Sequence.* at 'a', which is no fixed number"),
        (Tuple([Graph(Discrete(2), None)]), r"Graph.* at '\[0\]'.*Give wrappers"),
        (Dict({}), "holds no numbers"),
        (Box(0, 255, (84, 84, 3), np.uint8), "flattens to 21,168 numbers, more than 10,000"),
    ],
)
def test_what_is_not_supported_is_said(space: Space, message: str):
    with pytest.raises(TaskError, match=message):
        ObservationMap(space)


def test_the_largest_observation_still_fits():
    assert ObservationMap(Box(0, 1, (LARGEST_OBSERVATION,))).size == LARGEST_OBSERVATION


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_row_within_the_range_is_an_action_of_the_space(space: Space):
    mapping = ActionMap(space)
    generator = np.random.default_rng(0)
    rows = generator.uniform(mapping.low, mapping.high, (20, mapping.size))
    actions = [mapping.to_env(row) for row in rows]
    assert all(space.contains(action) for action in actions)
    # Several at once are the same ones, in gymnasium's form for a vector environment.
    together = mapping.rows_to_env(rows)
    apart = list(iterate(batch_space(space, 20), together))
    for action, other in zip(actions, apart, strict=True):
        assert np.array_equal(flat(space, action), flat(space, other))


def test_box_actions_are_the_numbers_themselves():
    mapping = ActionMap(box([-2.0, 0.0], [2.0, 5.0]))
    assert (mapping.low.tolist(), mapping.high.tolist()) == ([-2, 0], [2, 5])
    action = mapping.to_env(np.array([0.5, 4.0]))
    assert action.tolist() == [0.5, 4.0] and action.dtype == np.float32
    assert mapping.to_env(np.array([-3.0, 9.0])).tolist() == [-2.0, 5.0]
    whole = ActionMap(Box(0, 3, (2,), np.int64)).to_env(np.array([1.6, 9.0]))
    assert whole.tolist() == [2, 3] and whole.dtype == np.int64


def test_the_highest_score_is_the_discrete_action():
    mapping = ActionMap(Discrete(3, start=5))
    assert (mapping.low.tolist(), mapping.high.tolist()) == ([-1] * 3, [1] * 3)
    assert mapping.to_env(np.array([-0.9, 0.2, 0.1])) == 6
    assert isinstance(mapping.to_env(np.zeros(3)), np.integer)
    many = ActionMap(MultiDiscrete([2, 3], start=[0, 10]))
    assert many.to_env(np.array([0.1, 0.2, 0.9, 0.1, 0.3])).tolist() == [1, 10]
    assert ActionMap(MultiBinary(3)).to_env(np.array([0.1, -0.1, 1.0])).tolist() == [1, 0, 1]


def test_nested_actions_are_taken_from_their_slices():
    mapping = ActionMap(Dict(move=Box(-1, 1, (2,)), jump=Tuple([Discrete(2), MultiBinary(1)])))
    # gymnasium keeps the order of keyword arguments.
    action = mapping.to_env(np.array([0.25, -0.5, -1.0, 1.0, -1.0]))
    assert action["move"].tolist() == [0.25, -0.5]
    assert action["jump"][0] == 1 and action["jump"][1].tolist() == [0]
    assert [entry.name for entry in mapping.table()] == ["move", "jump[0]", "jump[1]"]


def test_limits_bound_what_a_space_leaves_open():
    space = box([-np.inf, -1.0], [np.inf, 1.0])
    mapping = ActionMap(space, (-5.0, 0.5))
    assert (mapping.low.tolist(), mapping.high.tolist()) == ([-5, -1], [0.5, 0.5])
    assert mapping.to_env(np.array([9.0, 9.0])).tolist() == [0.5, 0.5]
    with pytest.raises(TaskError, match=r"without finite bounds, .* give action_limits: \[low"):
        ActionMap(space)
    with pytest.raises(TaskError, match=r"action_limits=\[2.0, 3.0\] leave nothing of Box"):
        ActionMap(space, (2.0, 3.0))
    with pytest.raises(TaskError, match="has no Box"):
        ActionMap(Discrete(2), (-1.0, 1.0))


@pytest.mark.parametrize("row", [np.zeros(3), np.zeros((1, 2)), np.array([np.nan, 0.0])])
def test_a_bad_action_is_refused(row: np.ndarray):
    with pytest.raises(TaskError, match="where 2 finite numbers are expected"):
        ActionMap(Box(-1, 1, (2,))).to_env(row)
