"""The direction of imports, what may be imported where, and what must stay cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# (who, what it must not import, why)
NEVER = [
    (
        "envs",
        {"agent", "scripts", "torch", "hydra", "omegaconf"},
        "environments know nothing of learners",
    ),
    ("agent", {"scripts", "tests", "mujoco"}, "scripts call it; physics is for envs"),
    (
        "agent/learners",
        {"agent.continual", "agent.report", "agent.cli", "agent.commands"},
        "learners are below",
    ),
    ("agent/memory", {"agent.learners", "agent.continual", "envs"}, "memory is below learners"),
    ("agent/report", {"torch", "envs", "agent.learners", "agent.run"}, "a report reads files"),
]
ONLY_IN = {  # within agent/ and envs/
    "hydra": {"agent/cli.py"},
    "omegaconf": {"agent/cli.py"},
}
# Where agent touches envs.simulators; all else may know tasks and families, which are values.
OPENS_SIMULATORS = {"agent/rollout.py", "agent/env_tools.py"}


def sources(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "configs" not in p.parts)


def imported(path: Path) -> set[str]:
    """Dotted names of all imports of a file, wherever in it they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def matches(name: str, forbidden: str) -> bool:
    return name == forbidden or name.startswith(forbidden + ".")


@pytest.mark.parametrize(("folder", "forbidden", "why"), NEVER)
def test_imports_run_downwards(folder: str, forbidden: set[str], why: str):
    assert sources(folder)
    for path in sources(folder):
        wrong = {n for n in imported(path) for f in forbidden if matches(n, f)}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, but {why}"


def test_agents_meet_gymnasium_only_in_its_adapters():
    users = {p.name for p in sources("agent") if any(matches(n, "gymnasium") for n in imported(p))}
    assert users == {"sb3.py", "sb3_env.py", "env_tools.py"}


@pytest.mark.parametrize(("package", "allowed"), ONLY_IN.items())
def test_some_packages_have_one_door(package: str, allowed: set[str]):
    users = {
        str(path.relative_to(ROOT))
        for folder in ("agent", "envs")
        for path in sources(folder)
        if any(matches(n, package) for n in imported(path))
    }
    assert users == allowed


def test_only_rollout_opens_simulators():
    users = {
        str(p.relative_to(ROOT))
        for p in sources("agent")
        if ".open(" in (text := p.read_text()) and "family.open(" in text
    }
    assert users == OPENS_SIMULATORS


def test_no_pickle_and_no_torch_load():
    for folder in ("agent", "envs", "scripts"):
        for path in sources(folder):
            text = path.read_text()
            assert "torch.load" not in text and "pickle" not in imported(path), path
            assert not any(matches(n, "pickle") or matches(n, "joblib") for n in imported(path)), (
                path
            )


def test_help_and_composing_do_not_pay_for_torch():
    code = (
        "import sys; from agent.cli import main, configure; "
        "main(['train', '--help']); configure('train', []); "
        "names = {'torch', 'mujoco', 'gymnasium', 'stable_baselines3', 'matplotlib'}; "
        "heavy = names & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_foreign_envs_package_is_named(tmp_path: Path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import agent"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "another package named 'envs'" in done.stderr and str(tmp_path) in done.stderr
