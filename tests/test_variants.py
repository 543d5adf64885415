"""What a variant, a class and a YAML file together make of a family's settings."""

from __future__ import annotations

from typing import Any

import pytest

from envs.variants import complete

RANGE = {"speed": {"to": "attr:speed", "low": 0.0, "high": 3.0, "ood": [3.0, 4.0]}}
CHOICES = {"way": {"to": "attr:way", "choices": [-1.0, 1.0], "ood": [2.0]}}
VARIANTS = {"first": {"cost": 1}, "second": {"cost": 2, "params": {"speed": {"high": 2.0}}}}


def completed(**given: Any) -> dict[str, Any]:
    return dict(complete(VARIANTS, RANGE | CHOICES, given).kwargs or {})


def test_the_first_variant_is_the_default_and_what_is_given_wins():
    assert completed() == {"variant": "first", "cost": 1, "params": RANGE | CHOICES}
    second = completed(variant="second", cost=5)
    assert second["cost"] == 5
    assert second["params"]["speed"] == RANGE["speed"] | {"high": 2.0}
    given = completed(variant="second", params={"speed": {"low": 1.0}, "mass": {"to": "x"}})
    assert given["params"]["speed"] == RANGE["speed"] | {"low": 1.0, "high": 2.0}
    assert list(given["params"]) == ["speed", "way", "mass"]


def test_a_range_replaces_choices_and_choices_a_range():
    params = {"speed": {"choices": [1.0]}, "way": {"low": 0.0, "high": 1.0}}
    assert completed(params=params)["params"] == {
        "speed": {"to": "attr:speed", "choices": [1.0]},
        "way": {"to": "attr:way", "low": 0.0, "high": 1.0},
    }


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="variant='third': expected one of first, second"):
        completed(variant="third")
