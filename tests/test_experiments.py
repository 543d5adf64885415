"""Experiments: settings that belong together, chosen by one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.assemble import build_family
from agent.cli import configure, main
from agent.config import build
from agent.learners.context import Context
from agent.settings import ContinualSettings, TrainSettings

NAMES = sorted(
    path.stem for path in (Path(__file__).parent.parent / "configs/experiment").iterdir()
)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_can_be_trained(name: str):
    config = configure("train", [f"experiment={name}"])
    settings = build(config, "", TrainSettings)
    build_family(settings.env, "env")
    build(settings.learner, "learner")
    assert "experiment" not in config


def test_an_experiment_chooses_and_what_is_typed_wins():
    plain = configure("train", [])
    chosen = configure("train", ["experiment=half_cheetah_vel"])
    assert plain["env"]["name"] == "half_cheetah_dir_body"
    assert chosen["env"]["name"] == "half_cheetah_vel"
    settings = build(chosen, "", TrainSettings)
    assert isinstance(build(settings.learner, "learner"), Context)
    assert (settings.batch.tasks, settings.batch.episodes) == (10, 8)
    assert settings.budget.env_steps == 2_000_000 and settings.run == "runs/train"
    typed = ["env=navigation", "learner=multitask", "batch.tasks=3", "experiment=half_cheetah_vel"]
    other = configure("train", [*typed, "budget.env_steps=null", "budget.minutes=2"])
    assert other["env"]["name"] == "navigation" and other["learner"]["inner_steps"] == 0
    assert other["batch"] == {"tasks": 3, "episodes": 8}
    assert other["budget"] == {"env_steps": None, "minutes": 2}


def test_an_experiment_chooses_the_variant_too():
    env = build_family(configure("train", ["experiment=ant_dir"])["env"], "env")
    assert env.variant == "finn2017"
    assert (
        build_family(configure("train", ["experiment=finn2017_point"])["env"], "env").horizon == 100
    )


def test_a_stream_can_begin_with_the_meta_training_of_an_experiment():
    config = configure("continual", ["experiment=half_cheetah_vel", "agents=[meta_init]"])
    settings = build(config, "", ContinualSettings)
    assert settings.env["name"] == "half_cheetah_vel" and settings.budget.env_steps == 2_000_000
    assert configure("continual", [])["env"]["name"] == "half_cheetah_dir_body"


def test_experiments_are_in_the_help_and_typos_are_explained(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert f"experiment={'|'.join(NAMES)}" in out and "experiment: null" in out
    assert main(["train", "experiment=half_chetah_dir"]) == 2
    error = capsys.readouterr().err
    assert "experiment=half_chetah_dir: unknown; did you mean 'half_cheetah_dir'?" in error


def test_ones_own_experiments(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /env: navigation\nbatch: {tasks: 2}\n"
    )
    config = configure("train", ["--config-dir", str(tmp_path), "experiment=mine"])
    assert config["env"]["name"] == "navigation"
    assert config["batch"] == {"tasks": 2, "episodes": 10}
