"""The example of a robot of one's own runs as the README says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.cli import main

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_robot"


def test_a_robot_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(EXAMPLE)
    path = list(sys.path)
    common = ["--config-dir", "conf", "import_path=[.]"]
    train = ["train", *common, "env=my_robot", f"run={tmp_path / 'cart'}", "batch.tasks=4"]
    assert main([*train, "budget.env_steps=6000"]) == 0
    assert main(["evaluate", f"run={tmp_path / 'cart'}", "evaluation.tasks=2"]) == 0
    live = ["continual", *common, "stream=point_recall", "env@stream.family=my_robot", "seeds=[0]"]
    live += [f"init={tmp_path / 'cart'}", f"run={tmp_path / 'life'}", "stream.budget_episodes=8"]
    assert main(live) == 0
    assert (tmp_path / "life" / "summary.json").is_file()
    sys.path[:] = path
