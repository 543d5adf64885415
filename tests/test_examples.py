"""The example of a robot of one's own runs as the README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_robot_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLES / "my_robot")
    path = list(sys.path)
    common = ["--config-dir", "conf", "import_path=[.]"]
    train = ["train", *common, "env=my_robot", f"run={tmp_path / 'cart'}", "batch.tasks=4"]
    assert main([*train, "budget.env_steps=6000"]) == 0
    assert main(["evaluate", f"run={tmp_path / 'cart'}", "evaluation.tasks=2"]) == 0
    live = ["continual", *common, "stream=point_recall", "env@stream.family=my_robot", "seeds=[0]"]
    live += [f"init={tmp_path / 'cart'}", f"run={tmp_path / 'life'}", "stream.budget_episodes=8"]
    live += [f"references={tmp_path / 'references'}"]
    assert main(live) == 0
    assert (tmp_path / "life" / "summary.json").is_file()
    sys.path[:] = path


def test_a_robot_with_a_model_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLES / "my_arm")
    path = list(sys.path)
    common = ["--config-dir", "conf", "import_path=[.]", "env=my_arm"]
    run = f"run={tmp_path / 'arm'}"
    assert main(["check_env", *common]) == 0
    train = ["train", *common, "learner=meta_sgd", run, "batch.tasks=4", "calibration.tasks=8"]
    assert main([*train, "budget.env_steps=3000"]) == 0
    assert main(["evaluate", run, "evaluation.tasks=2", "evaluation.draws=1"]) == 0
    result = json.loads((tmp_path / "arm" / "evaluation.json").read_text())
    assert result["family"] == "my_arm"
    sys.path[:] = path


def test_an_agent_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLES / "my_agent")
    path = list(sys.path)
    live = ["continual", "--config-dir", "conf", "import_path=[.]", "stream=point_recall"]
    live += ["env=navigation", "budget.env_steps=4000", "agents=[my_agent,meta_init]", "seeds=[0]"]
    live += ["stream.budget_episodes=8", "batch.tasks=4", "calibration.tasks=20"]
    live += [f"run={tmp_path / 'mine'}", f"references={tmp_path / 'references'}"]
    assert main(live) == 0
    lives = json.loads((tmp_path / "mine" / "summary.json").read_text())["agents"]
    assert set(lives) == {"my_agent", "meta_init"} and not any(a["failed"] for a in lives.values())
    sys.path[:] = path


@pytest.mark.parametrize("example", ["my_arm", "my_agent"])
def test_the_tests_that_the_example_shows_pass(example: str):
    """In a process of their own, as a user would run them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=EXAMPLES / example, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
