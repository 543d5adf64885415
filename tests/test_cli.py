"""The commands end to end, with tiny budgets, in a folder of their own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.cli import COMMANDS, main
from scripts import protection

TRAIN = ["train", "env=navigation", "budget.env_steps=2000", "batch.tasks=3", "batch.episodes=4"]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, str]:
    """What is written of lifetimes, by file."""
    files = [*folder.rglob("life.json"), *folder.rglob("episodes.jsonl")]
    return {str(path): path.read_text() for path in files}


def test_train_evaluate_continual_report(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*TRAIN, "run=runs/a"]) == 0
    assert "env steps" in capsys.readouterr().out
    assert main([*TRAIN, "run=runs/a"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["evaluate", "run=runs/a", "split=heldout", "evaluation.tasks=2"]) == 0
    assert "Held-out tasks come from" in " ".join(capsys.readouterr().out.split())
    stream = ["continual", "stream=point_recall", "init=runs/a", "run=runs/a", "seeds=[0,1]"]
    stream += ["stream.budget_episodes=9", "agents=[engram,meta_init,finetune]"]
    assert main(stream) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Return at the start" in out and "recall.0" in out and "4: A again" in out
    run = folder / "runs/a"
    before = everything(run / "lifetimes") | everything(folder / "runs/references")
    assert main(stream) == 0  # nothing is lived twice
    assert everything(run / "lifetimes") | everything(folder / "runs/references") == before
    assert main(["report", "run=runs/a"]) == 0
    expected = {"config.yaml", "versions.json", "metrics.jsonl", "checkpoint", "evaluation.json"}
    assert expected | {"summary.json", "report.html", "lifetimes"} <= {
        p.name for p in run.iterdir()
    }
    assert "summary.json" in {p.name for p in run.iterdir()}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {"tasks", "env_steps", "seeds"} <= evaluation.keys()
    assert all(len(t["returns"]) == 4 and t["values"] for t in evaluation["tasks"])
    summary = json.loads((run / "summary.json").read_text())
    assert sorted(summary["agents"]) == ["engram", "finetune", "meta_init"]
    for agent in summary["agents"].values():
        assert (agent["n"], agent["failed"], agent["unfinished"]) == (2, 0, 0)
        assert {"recall.0", "ap.final", "forget.end", "ft.auc_diff"} <= agent["metrics"].keys()
        assert agent["metrics"]["ap.final"]["values"].keys() == {"0", "1"}
        assert all(math.isfinite(v) for v in agent["metrics"]["ap.final"]["values"].values())
    references = json.loads((run / "references.json").read_text())
    assert {kind: len(seeds) for kind, seeds in references.items()} == {
        "random": 2,
        "scratch": 2,
        "expert": 2,
    }
    page = (run / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert {p.name for p in folder.iterdir()} == {"runs"}  # no MUJOCO_LOG.TXT, no outputs/


@pytest.mark.slow
def test_the_demo_in_small(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["demo", "run=runs/demo", "env_steps=12000", "seeds=[0]", "agents=[engram]"]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "5/5 Report" in out and "report.html" in out and "Done in" in out
    run = folder / "runs/demo"
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["family"] == "half_cheetah_dir_body:v5" and evaluation["split"] == "heldout"
    assert all(isinstance(task["oracle"], float) for task in evaluation["tasks"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stream"] == "cheetah_faults" and summary["agents"]["engram"]["n"] == 1
    commands = json.loads((run / "commands.json").read_text())
    assert [c["what"] for c in commands] == ["meta-training in runs/demo", "evaluation", "stream"]
    assert "engram train env=half_cheetah_dir_body budget.env_steps=12000" in commands[0]["command"]
    assert "engram continual" in (run / "report.html").read_text()
    assert main(arguments) == 0  # nothing is trained or lived twice
    assert " ".join(capsys.readouterr().out.split()).count("is finished") == 2


def test_other_settings_in_the_same_folder_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*TRAIN, "run=r"]) == 0
    assert main([*TRAIN, "run=r", "learner.gamma=0.5"]) == 1
    assert "learner.gamma=0.99 (now 0.5)" in capsys.readouterr().err
    assert main([*TRAIN, "run=r", "budget.env_steps=3000", "threads=2"]) == 0


def test_continual_trains_its_own_initialisation_if_none_is_named(folder: Path):
    arguments = ["continual", "stream=point_recall", "seeds=[0]", "agents=[meta_init]", "run=r"]
    arguments += [*TRAIN[1:], "stream.budget_episodes=4", "references=null"]
    assert main(arguments) == 0
    assert (folder / "r/init/checkpoint").is_dir() and (folder / "r/summary.json").is_file()
    assert not (folder / "r/references.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "learner.gama=1"], "learner.gama: unknown key; did you mean 'gamma'"),
        (["train", "sed=1"], "sed: unknown key; did you mean 'seed'"),
        (["train", "env.horizon=-5"], "env.horizon=-5"),
        (["train", "learner.gamma=1.5"], "learner.gamma=1.5"),
        (["train", "learner.gamma=nan"], "learner.gamma=nan"),
        (
            ["train", "env=half_chetah_dir"],
            "env=half_chetah_dir: unknown; did you mean 'half_cheetah_dir'",
        ),
        (["train", "budget.env_steps=abc"], "budget.env_steps='abc'"),
        (["train", "budget.env_steps=???"], "budget.env_steps"),
        (["train", "import_path=3"], "import_path=3: input should be a valid list"),
        (["train", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["train", "nonsense"], "'nonsense': expected key=value"),
        (["continual", "+agent.engram.memory.candidates=0"], "agent.engram.memory.candidates=0"),
        (["continual", "agents=[engrm]"], "engrm"),
        (["continual", "agent.engrm.probe_episodes=3"], "agent.engrm: no such agent here"),
        (["continual", "seeds=[0,0]"], "seeds=[0, 0]: a seed that is given twice"),
        (["continual", "shard=0/2"], "shard: '0/2': expected i/n"),
        (["continual", "detection.settle_episodes=0"], "detection.settle_episodes=0"),
        (["continual", "learner.gama=1", "init=x"], "learner.gama: unknown key"),
        (["train", "learner.task_adapter.adam_betas=[0.9]"], "learner.task_adapter.adam_betas"),
        (["train", "learner.max_grad_norm=inf"], "learner.max_grad_norm=inf"),
        (["continual", "agents=engram"], "agents='engram': expected a list"),
        (["evaluate", "split=held"], "split='held'"),
        (["fly"], "'fly' is not a command"),
    ],
)
def test_bad_configuration_is_refused_before_anything_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "run=none"], "none: not a meta-training run"),
        (["continual", "init=none"], "none: not a meta-training run"),
        (["report", "run=none"], "none: nothing to report on"),
    ],
)
def test_missing_runs_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_bad_files_and_families_are_one_line_errors(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "evaluation.json").write_text("{")
    assert main(["report", "run=."]) == 1
    assert "evaluation.json: is not valid JSON" in capsys.readouterr().err
    target = "env.params={mass: {to: 'model:body_mass[wing]', op: scale, low: 0.5, high: 2.0}}"
    assert main(["train", "env=half_cheetah_dir", target, "run=r"]) == 1
    error = capsys.readouterr().err
    assert "half_cheetah_dir.params.mass" in error and "wing" in error


def test_an_oracle_is_not_taken_for_an_agent_nor_an_agent_for_an_oracle(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*TRAIN, "run=a"]) == 0
    assert main([*TRAIN, "run=o", "learner=oracle"]) == 0
    assert main([*TRAIN, "run=other", "learner=oracle", "env.radius=2.0"]) == 0
    wrong = {
        "evaluate run=o": "o: is an oracle",
        "evaluate run=a oracle=a": "oracle=a: is no oracle",
        "evaluate run=a oracle=other": "with other settings",
        "continual init=o stream=point_recall": "init=o: is an oracle",
        "continual learner=oracle stream=point_recall": "learner: is an oracle",
    }
    for command, message in wrong.items():
        assert main(command.split()) == 1, command
        assert message in capsys.readouterr().err
    assert main(["evaluate", "run=a", "oracle=o", "evaluation.tasks=2"]) == 0
    # Its learning curve is measured as it acts: told the task.
    assert main([*TRAIN, "run=o2", "learner=oracle", "curve.every=400"]) == 0
    assert "curve/after_0" in (folder / "o2/metrics.jsonl").read_text()


def test_a_failed_start_leaves_the_folder_to_the_next(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*TRAIN, "learner=distill", "learner.memory=nowhere", "run=r"]) == 1
    error = capsys.readouterr().err
    assert "learner.memory=nowhere" in error and "RUN/lifetimes/AGENT-SEED/memory" in error
    assert main([*TRAIN, "run=r"]) == 0
    config = (folder / "r/config.yaml").read_text()
    (folder / "r/config.yaml").write_text(config.replace("inner_rate:", "inner_speed:"))
    assert main(["evaluate", "run=r"]) == 2
    error = capsys.readouterr().err
    assert "r/config.yaml: learner.inner_speed: unknown key" in error and "version" in error


@pytest.mark.slow
def test_a_crashed_lifetime_is_a_failed_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*TRAIN, "calibration.tasks=40", "learner=context", "run=a"]) == 0
    stream = "continual stream=point_recall init=a seeds=1 references=null run=l".split()
    assert main([*stream, "agents=[ewc]"]) == 0  # importance of beliefs, too
    assert main([*stream[:-1], "run=m", "agents=[packnet,finetune]"]) == 1
    assert "1 of 2 lifetimes crashed" in capsys.readouterr().err


def test_an_interruption_outside_of_the_loops_is_no_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.commands.report", interrupted)
    assert main(["report", "run=x"]) == 130
    assert "goes on from there" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_there(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example:" in out and f"engram {command}" in out
    assert main(["--help"]) == 0 and main([]) == 0
    assert command in capsys.readouterr().out


def test_the_composed_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "env=navigation", "seed=7", "--cfg"]) == 0
    out = capsys.readouterr().out
    assert "seed: 7" in out and "envs.navigation.Navigation" in out


def test_a_family_of_ones_own_from_outside(folder: Path):
    (folder / "conf/env").mkdir(parents=True)
    (folder / "lab").mkdir()
    (folder / "lab/my_family.py").write_text(
        "from pydantic.dataclasses import dataclass\nfrom envs.navigation import Navigation\n"
        "@dataclass(kw_only=True, config={'extra': 'forbid'})\n"
        "class Mine(Navigation):\n    depth: int = 3\n"
    )
    (folder / "conf/env/mine.yaml").write_text(
        "_target_: my_family.Mine\nname: mine\nhorizon: 5\n"
        'params: {angle: {to: "attr:angle", low: 0.0, high: 3.0}}\n'
    )
    arguments = ["train", "--config-dir", "conf", "env=mine", "import_path=[lab]", "run=r"]
    assert main([*arguments, "budget.env_steps=500", "batch.tasks=2"]) == 0
    assert "depth: 3" in (folder / "r/config.yaml").read_text()
    assert sys.path.index(str(folder / "lab")) > 0
    # The run remembers where its code lives.
    assert main(["evaluate", "run=r", "evaluation.tasks=2"]) == 0
    sys.path.remove(str(folder / "lab"))


def test_scripts_are_the_commands(folder: Path):
    for command in COMMANDS:
        script = ROOT / "scripts" / f"{command}.py"
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and f"engram {command}" in done.stdout


def test_what_protection_is_worth_is_compared_over_the_same_adaptations(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert main([*TRAIN, "run=r"]) == 0
    monkeypatch.setattr(protection, "TASKS", 3)
    table = protection.compared(["r"])
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["steps"] == ["plain", "protected"] * 2
    assert columns["episodes"] == ["1", "1", "10", "10"]
    for name in ("before", "1"):  # the first step is made in any case
        plain, guarded, *_ = columns[name]
        assert plain == guarded


def test_ctrl_c_saves_and_the_same_command_goes_on(folder: Path):
    command = [sys.executable, str(ROOT / "scripts/train.py"), *TRAIN[1:], "run=r"]
    command[command.index("budget.env_steps=2000")] = "budget.env_steps=100000000"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "r/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The same command continues" in " ".join(out.split())
    steps = json.loads((folder / "r/metrics.jsonl").read_text().splitlines()[-1])["env_steps"]
    assert main([*TRAIN, "run=r", f"budget.env_steps={steps + 1000}"]) == 0
    assert len((folder / "r/metrics.jsonl").read_text().splitlines()) > steps / 480


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["context", "varibad", "anil"])
def test_every_make_of_learner_is_evaluated_lives_and_remembers(folder: Path, learner: str):
    calibrated = "calibration.tasks=40"  # of so few a key can be fitted
    assert main([*TRAIN, calibrated, f"learner={learner}", "run=a"]) == 0
    assert main(["evaluate", "run=a", "evaluation.tasks=2", "evaluation.draws=1"]) == 0
    agents = "agents=[engram,matching,meta_init,scratch]"
    stream = ["continual", "stream=point_recall", "init=a", "run=a", "seeds=[0]", "references=null"]
    assert main([*stream, agents, "stream.budget_episodes=12"]) == 0
    lives = [
        json.loads(path.read_text())
        for path in sorted((folder / "a").glob("lifetimes/*/life.json"))
    ]
    assert [life["agent"] for life in lives] == ["engram", "matching", "meta_init", "scratch"]
    assert [life["status"] for life in lives] == ["done"] * 4
    assert main(["report", "run=a"]) == 0
