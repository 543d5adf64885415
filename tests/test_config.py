"""The one door: all that is wrong is said, with the full key, before anything is built."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from agent.adapter import PpoAdapter, Pull
from agent.config import ConfigError, build, resolved
from agent.continual.agents import Finetune, MetaInit
from agent.continual.detect import LikelihoodRatio, PageHinkley
from agent.continual.detecting import Detection
from agent.continual.engram import Engram
from agent.continual.stream import Stream
from agent.doctor import DoctorSettings
from agent.evaluate import EvaluationSize
from agent.learners.maml import Maml
from agent.memory.memory import MemoryConfig
from agent.policy import PolicyConfig
from agent.settings import (
    ContinualSettings,
    DemoSettings,
    EvaluateSettings,
    ReportSettings,
    TrainSettings,
)
from agent.train import BatchSize, Budget, Calibration
from envs.half_cheetah import HalfCheetah

MAML = {"_target_": "agent.learners.maml.Maml"}
CHEETAH = {"_target_": "envs.half_cheetah.HalfCheetah", "name": "x"}


def test_a_node_becomes_the_object_it_names():
    learner = build(MAML | {"gamma": 0.5, "task_adapter": {"epochs": 3}}, "learner")
    assert isinstance(learner, Maml)
    assert (learner.gamma, learner.task_adapter.epochs, learner.clip) == (0.5, 3, 0.2)
    assert MAML == {"_target_": "agent.learners.maml.Maml"}  # the node is only read


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            MAML | {"gama": 0.9},
            r"learner\.gama: unknown key; did you mean 'gamma'\? known are clip, ",
        ),
        (MAML | {"gamma": 1.5}, r"learner\.gamma=1\.5: .*less than or equal to 1"),
        (MAML | {"gamma": math.nan}, r"learner\.gamma=nan"),
        (MAML | {"outer_rate": math.inf}, r"learner\.outer_rate=inf"),
        (MAML | {"gamma": "high"}, r"learner\.gamma='high': .*valid number"),
        (MAML | {"outer_epochs": 2.5}, r"learner\.outer_epochs=2\.5: .*valid integer"),
        (
            MAML | {"task_adapter": {"rat": 1}},
            r"learner\.task_adapter\.rat: unknown key; did you mean 'rate'",
        ),
        (MAML | {"task_adapter": 3}, r"learner\.task_adapter"),
        ({"gamma": 0.9}, r"learner\._target_ is missing"),
        ({"_target_": "no.such.Thing"}, r"learner\._target_='no\.such\.Thing': cannot be imported"),
        ({"_target_": "math.pi"}, r"is not a dataclass"),
        ("maml", r"learner: expected settings of .*, got 'maml'"),
    ],
)
def test_each_mistake_is_named(node: object, message: str):
    with pytest.raises(ConfigError, match=message):
        build(node, "learner")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": -5}, r"env\.horizon=-5: .*greater than or equal to 1"),
        ({"horizon": "abc"}, r"env\.horizon='abc'"),
        (
            {"params": {"mass": {"to": "model:x[y]", "low": 2, "high": 1}}},
            r"env\.params\.mass: low=2 must be below",
        ),
        (
            {"params": {"mass": {"to": "modle:x"}}},
            r"env\.params\.mass: to='modle:x': expected KIND:NAME",
        ),
        (
            {"params": {"mass": {"to": "attr:x", "lo": 1}}},
            r"env\.params\.mass\.lo: unknown key; did you mean 'low'",
        ),
    ],
)
def test_mistakes_in_a_family_are_named(change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build(CHEETAH | change, "env")


def test_memory_refuses_no_candidates_and_a_missing_name_is_said():
    with pytest.raises(ConfigError, match=r"memory\.candidates=0"):
        build({"candidates": 0}, "memory", MemoryConfig)
    with pytest.raises(ConfigError, match=r"stream\.order: missing; it has no default"):
        build({"name": "s"}, "stream", Stream)


def test_all_mistakes_are_said_at_once():
    node = {"run": "r", "env": {}, "learner": {}, "sed": 1, "batch": {"tasks": 0}, "device": "tpu"}
    with pytest.raises(ConfigError) as caught:
        build(node, "", TrainSettings)
    lines = str(caught.value).splitlines()
    assert sorted(line.split(":")[0].split("=")[0] for line in lines) == [
        "batch.tasks",
        "device",
        "sed",
    ]


def numeric_fields(cls: type) -> list[str]:
    return [
        f.name
        for f in fields(cls)
        if str(f.type).find("int") >= 0 or str(f.type).find("float") >= 0
    ]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", numeric_fields(Maml))
@pytest.mark.parametrize("value", [math.nan, "x", None, [1]])
def test_no_number_of_the_learner_takes_what_is_not_one(name: str, value: object):
    if value is None and name in ("inner_kl", "later_rate"):  # None: without it
        assert getattr(build(MAML | {name: value}, "learner"), name) is None
        return
    with pytest.raises(ConfigError, match=rf"learner\.{name}"):
        build(MAML | {name: value}, "learner")


def test_resolved_fills_in_every_default():
    node = CHEETAH | {"horizon": 7}
    family = build(node, "env")
    assert isinstance(family, HalfCheetah)
    full = resolved(node, family)
    assert full == node | {
        "variant": "v5",
        "params": {},
        "perturbed": None,
        "pool": {},
        "integrator": "model",
        "frame_skip": 5,
        "observation": ["position", "velocity"],
        "ctrl_cost": 0.1,
        "unpaid_distance": 0.0,
    }
    assert build(full, "env") == family


SETTINGS = [
    Calibration, Engram, EvaluationSize, Finetune, Maml, MemoryConfig, MetaInit, PolicyConfig,
    PpoAdapter, Pull, BatchSize, Budget, Stream, ContinualSettings, DemoSettings, EvaluateSettings,
    ReportSettings, TrainSettings, Detection, DoctorSettings, LikelihoodRatio, PageHinkley,
]  # fmt: skip


@pytest.mark.parametrize("cls", SETTINGS)
def test_no_settings_take_an_unknown_key(cls: type):
    with pytest.raises(ConfigError, match=r"node\.nonsense: unknown key"):
        build({"nonsense": 1}, "node", cls)


@pytest.mark.parametrize(
    ("cls", "key", "bad"),
    [
        (PpoAdapter, "rate", 0),
        (PpoAdapter, "epochs", 0),
        (PpoAdapter, "minibatches", 0),
        (PpoAdapter, "clip", 1),
        (PpoAdapter, "max_grad_norm", 0),
        (Pull, "beta", 1.5),
        (Pull, "halving_steps", 0),
        (Pull, "kind", "often"),
        (MemoryConfig, "novelty", 0),
        (MemoryConfig, "candidates", 0),
        (MemoryConfig, "corrupt_rate", 1.5),
        (Maml, "inner_steps", -1),
        (Maml, "inner_rate", -0.1),
        (Maml, "outer_rate", 0),
        (Maml, "outer_epochs", 0),
        (Maml, "clip", 1.0),
        (Maml, "gae_lambda", 1.1),
        (Maml, "max_grad_norm", 0),
        (Engram, "probe_episodes", 0),
        (MetaInit, "episodes", 0),
        (BatchSize, "tasks", 0),
        (BatchSize, "episodes", 0),
        (Budget, "env_steps", 0),
        (Calibration, "tasks", 2),
        (Calibration, "episodes", 0),
        (EvaluationSize, "draws", 0),
        (EvaluationSize, "steps", 0),
        (EvaluationSize, "eval_episodes", 0),
        (PolicyConfig, "hidden", [0]),
        (PolicyConfig, "log_std", 3),
        (Stream, "budget_episodes", 0),
        (Stream, "order", []),
        (TrainSettings, "checkpoint_every", 0),
        (TrainSettings, "threads", 0),
        (TrainSettings, "seed", -1),
        (ContinualSettings, "jobs", 0),
        (ContinualSettings, "shard", "3/2"),
        (ContinualSettings, "shard", "0/2"),
        (ContinualSettings, "shard", "half"),
        (ContinualSettings, "expert_times", 0),
        (ContinualSettings, "save_every_s", 0),
        (DoctorSettings, "visits", 1),
        (DoctorSettings, "episodes", 1),
        (Detection, "settle_episodes", 0),
        (PageHinkley, "threshold", 0),
        (PageHinkley, "tolerance", -0.1),
        (PageHinkley, "warm_up", 0),
        (LikelihoodRatio, "rise", 0),
        (LikelihoodRatio, "warm_up", 1),
    ],
)
def test_ranges_end_where_the_meaning_does(cls: type, key: str, bad: object):
    with pytest.raises(ConfigError) as caught:
        build({key: bad}, "node", cls)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(f"node.{key}")]
    assert lines and f"{bad!r}".strip("[]") in lines[0]


@pytest.mark.parametrize("bad", [[], 0, [-1], "two"])
def test_seeds_are_a_list_or_how_many(bad: object):
    with pytest.raises(ConfigError, match=r"node\.seeds"):
        build({"seeds": bad}, "node", ContinualSettings)
