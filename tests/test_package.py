"""The wheel: it builds, and its console entry works from anywhere, with the YAML files on board."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_works_from_the_root_folder(tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"agent", "envs", f"{wheel.name.split('-py3')[0]}.dist-info"}
    for yaml in (ROOT / "configs").rglob("*.yaml"):
        assert f"agent/configs/{yaml.relative_to(ROOT / 'configs')}" in names
    assert "agent/report/page.html.j2" in names
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import agent, envs; print(agent.__file__, envs.__file__)"],
        capture_output=True, text=True, env=environment, cwd="/", check=True,
    )  # fmt: skip
    assert all(str(site) in path for path in where.stdout.split())
    run = [str(site / "bin" / "engram"), "train", "env=navigation", f"run={tmp_path / 'run'}"]
    run += ["budget.env_steps=500", "batch.tasks=2", "batch.episodes=2"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "config.yaml").is_file()
