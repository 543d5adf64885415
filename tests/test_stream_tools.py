"""``engram compare``, ``engram power`` and ``engram export`` on run folders made up for it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import stream_tools
from agent.config import ConfigError
from agent.files import BadFileError
from tests.lives import make_life, make_matrix, make_references, write_run

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six seeds: ``engram`` keeps 90, 91, ... of 100 and ``finetune`` 10, 12, 14, ..., each."""
    monkeypatch.setattr(stream_tools.console, "width", 200)
    lives = []
    for seed in range(6):
        for agent, kept in (("engram", 0.9 + 0.01 * seed), ("finetune", 0.1 + 0.02 * seed)):
            matrix = make_matrix("ABAB", kept=kept)
            lives.append(make_life(agent, seed, matrix=matrix))
    return write_run(tmp_path / "run", lives, [make_references(lives[2 * s]) for s in range(6)])


def call(command: str, **changes: Any) -> None:
    config = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text()) | changes
    getattr(stream_tools, command)(config, f"engram {command}")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_compare_prints_the_difference(run: Path, capsys: pytest.CaptureFixture[str]):
    call("compare", run=f"{run}", agents=["engram", "finetune"], metric="ap.final")
    out = said(capsys)
    # Final: B at 1, A at what is kept. Means (1 + .925) / 2 and (1 + .15) / 2; the difference is
    # .4 - .005 seed, its SD .005 sqrt(3.5) = .00935, the half width 2.5706 SD / sqrt(6) = .0098.
    assert "ap.final 6 0.9625 0.575 0.3875 0.031 1.00" in out
    # p is 2 of 2^6 sign changes, and alone.
    assert "[0.9527, 0.9723] [0.555, 0.595] [0.3777, 0.3973] (0.031) [0.61, 1.00]" in out
    assert "exploratory: ap.final (finetune)" in out and "Low is better" not in out


def test_compare_takes_several_metrics_and_all_agents(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    call("compare", run=f"{run}", metric=["ap.final", "forget.end"])
    out = said(capsys)
    assert "(0.062)" in out and "Low is better: forget.end." in out and "exploratory: all" in out
    call("compare", run=f"{run}", paired=False, interval="bootstrap_t")
    out = said(capsys)
    assert "ap.final" in out and "recall.savings" in out and "not paired" in out


def test_power_from_a_pilot(run: Path, capsys: pytest.CaptureFixture[str]):
    call("power", run=f"{run}", metric="ap.final", delta=0.01)
    out = said(capsys)
    # SD of differences .00935: delta / SD 1.07 takes 9; pooled SD of the agents
    # sqrt((.00935^2 + .01871^2) / 2) = .0148: delta / SD .676 takes 36 each.
    assert "engram - finetune same seeds 6 0.00935 9 17 " in out
    assert "engram - finetune seeds of their own 6 0.0148 36 57 " in out


def test_power_of_one_agent_and_of_a_given_spread(run: Path, capsys: pytest.CaptureFixture[str]):
    call("power", run=f"{run}", agents=["engram"], metric="ap.final", delta=0.01)
    assert "engram seeds of their own 6 0.00935 15 31 " in said(capsys)
    call("power", sd=0.1, delta=0.05)
    out = said(capsys)
    assert (
        "n/a n/a" not in out and "same seeds 0.1 34" in out and "seeds of their own 0.1 64" in out
    )


def test_a_pilot_without_spread_says_nothing(run: Path, capsys: pytest.CaptureFixture[str]):
    call("power", run=f"{run}", metric="recall.savings", delta=0.1)
    assert "same seeds 6 0 n/a n/a" in said(capsys)


def test_export_writes_what_is_asked_for(run: Path, capsys: pytest.CaptureFixture[str]):
    call("export", run=f"{run}", csv=f"{run}/n.csv", latex=f"{run}/t.tex", metric="ap.final")
    assert "n.csv" in said(capsys)
    with (run / "n.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "ap.final"]
    finals = {(row["agent"], row["seed"]): float(row["value"]) for row in rows}
    assert len(finals) == 12
    assert finals["engram", "3"] == pytest.approx((1 + 0.93) / 2)
    assert r"engram & 6 & $0.9625$ \\" in (run / "t.tex").read_text()
    call("export", run=f"{run}", latex=f"{run}/all.tex")
    assert r"\texttt{recall.savings}" in (run / "all.tex").read_text()


def test_a_crashed_lifetime_is_counted(run: Path, capsys: pytest.CaptureFixture[str]):
    write_run(run, [make_life("finetune", 5).model_copy(update={"status": "crashed"})])
    call("compare", run=f"{run}", metric="ap.final")
    out = said(capsys)
    assert "1 of 6 crashed, counted with no value: ap.final (finetune)" in out
    assert "ap.final 6 0.9625 n/a n/a n/a n/a" in out
    write_run(run, [make_life("random", s, matrix=make_matrix("ABAB", end=0.0)) for s in range(6)])
    call("compare", run=f"{run}", agents=["engram", "finetune"], metric="ap.final")
    out = said(capsys)
    assert "stand-in's score" in out
    # Random's 0 for the crash: (.55 + .56 + .57 + .58 + .59 + 0) / 6.
    assert "ap.final 6 0.9625 0.48 " in out


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("compare", {"metric": "recall.saving"}, "did you mean 'recall.savings'"),
        ("compare", {"agents": ["engram", "finetun"]}, "did you mean 'finetune'"),
        ("compare", {"agents": ["xyz"]}, "'xyz' is not in the run; known are engram, finetune"),
        ("compare", {"agents": ["engram", "engram"]}, "expected two or more"),
        ("compare", {"metric": []}, "metric=.*expected an id"),
        ("compare", {"level": 95}, "level=95"),
        ("compare", {"interval": "z"}, "interval='z'"),
        ("power", {"delta": None}, "delta: the difference"),
        ("power", {"delta": 0.1, "sd": 0.1}, "run, sd: expected one of them"),
        ("power", {"delta": 1e-9, "metric": "ap.final"}, "too small beside sd"),
        ("export", {}, "csv, latex: expected a file"),
    ],
)
def test_bad_settings_are_named(run: Path, command: str, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        call(command, **{"run": f"{run}"} | changes)


def test_a_folder_without_lifetimes_and_lifetimes_that_do_not_belong_together(
    run: Path, tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFileError, match=r"empty: has no lifetimes"):
        call("compare", run=f"{tmp_path}/empty")
    write_run(run, [make_life("finetune", 0, horizon=7)])
    with pytest.raises(BadFileError, match="horizon of their protocols differs"):
        call("compare", run=f"{run}", metric="ap.final")
