"""``engram check_env`` and ``engram show_env``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from agent.cli import main
from agent.env_tools import _every, _fps, check, findings_table
from agent.policy import PolicyConfig
from agent.rollout import TaskBatch
from agent.train import make_policy
from envs.navigation import Navigation
from envs.walkers import HopperVel
from tests.test_rollout import TASKS, scripted

TINY = ["width=64", "height=48", "tasks=2", "renderer=software"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames(path: Path) -> int:
    with Image.open(path) as film:
        return getattr(film, "n_frames", 1)


def test_a_sound_environment_passes_and_says_what_was_seen(capsys: pytest.CaptureFixture[str]):
    assert main(["check_env", "env=half_cheetah_vel", "env.horizon=20"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "half_cheetah_vel:promp" in out and "stable-baselines3's checker" in out
    assert "effect of speed" in out and " failed" not in out


def test_a_failure_is_told_with_what_to_do_and_fails_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "env").mkdir()
    params = {"nothing": {"to": "model:geom_solmix[torso]", "op": "scale", "low": 0.5, "high": 1.5}}
    node: dict[str, Any] = {"_target_": "envs.half_cheetah.HalfCheetah", "name": "numb"}
    node |= {"horizon": 20, "params": params}
    (folder / "env" / "numb.yaml").write_text(yaml.safe_dump(node))
    assert main(["check_env", "--config-dir", ".", "env=numb"]) == 1
    captured = capsys.readouterr()
    assert "numb:v5 fails: effect of nothing" in captured.err
    assert "->" in captured.out and "geom_solmix[torso]" in " ".join(captured.out.split())


def test_findings_are_counted():
    found = check(Navigation(name="nav", horizon=5), 2, 0)
    table = findings_table("nav", found)
    assert table.row_count == len(found)
    assert f"{sum(f.status == 'ok' for f in found)} ok" in str(table.caption)


def test_pictures_of_tasks_and_a_film_of_chance(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show_env", "env=hopper_vel", "out=here", "film=gif", *TINY]) == 0
    assert "here/hopper_vel.png and here/hopper_vel.gif" in capsys.readouterr().out
    with Image.open(folder / "here" / "hopper_vel.png") as sheet:
        assert sheet.width >= 2 * 64 and np.asarray(sheet).std() > 5
    assert frames(folder / "here" / "hopper_vel.gif") > 1


def test_a_film_of_a_runs_policy(folder: Path):
    train = ["train", "env=navigation", "run=runs/a", "budget.env_steps=2000"]
    small = ["batch.tasks=2", "batch.episodes=2", "policy.hidden=[8]", "calibration.tasks=8"]
    assert main([*train, *small]) == 0
    assert main(["show_env", "run=runs/a", "split=heldout", *TINY]) == 0
    assert frames(folder / "pictures" / "navigation.webp") == 21  # the start and 20 steps
    assert main(["show_env", "run=runs/a", "film=none", "out=other", *TINY]) == 0
    assert [path.name for path in (folder / "other").iterdir()] == ["navigation.png"]


def test_a_watched_policy_acts_as_a_measured_one():
    family = scripted()
    policy = make_policy(family, PolicyConfig(hidden=[8]), False, "cpu")
    params = torch.randn(2, policy.num_params, generator=torch.Generator().manual_seed(0))
    with TaskBatch(family, TASKS, 2, policy, np.random.default_rng(0)) as batch:
        obs = batch.collect(params, deterministic=True).obs[:, :, 0].numpy()
        np.testing.assert_allclose(
            batch.actor(params)(obs), family.simulators.actions[0], rtol=1e-6
        )


def test_films_run_as_fast_as_the_robot():
    hopper = HopperVel(name="hopper")  # a control step is 8 ms
    assert (_every(hopper), _fps(hopper)) == (5, pytest.approx(25.0))
    assert (_every(Navigation(name="nav")), _fps(Navigation(name="nav"))) == (1, 25.0)
