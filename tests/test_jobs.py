"""Lifetimes as jobs: shards, processes, crashes, locks, and references that are found again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from agent.cli import configure, main
from agent.config import build
from agent.continual.agents import Finetune
from agent.continual.life import Life, read_episodes, read_life
from agent.continual.methods.simple import Random
from agent.continual.results import read_references
from agent.continual.visit import Visit
from agent.doctor import timeless
from agent.jobs import Workshop, live_all
from agent.progress import Stopped, console
from agent.run import Run, RunError
from agent.settings import ContinualSettings

VISITS, BUDGET = 3, 6
TUNED = {"_target_": "agent.continual.agents.Finetune"}


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A meta-training run, hardly trained."""
    folder = tmp_path_factory.mktemp("init")
    size = ["budget.env_steps=500", "batch.tasks=3", "batch.episodes=4", "calibration.tasks=12"]
    assert main(["train", "env=navigation", *size, f"run={folder}"]) == 0
    return str(folder)


def settings(init: str, run: Path, *overrides: str, **changes: Any) -> ContinualSettings:
    """A short ``point_recall``: two goals, one of them twice."""
    typed = ["stream=point_recall", "stream.order=[A,B,A]", f"stream.budget_episodes={BUDGET}"]
    typed += ["agents=[engram,finetune]", "seeds=[0]", f"init={init}", f"run={run}"]
    config = configure("continual", [*typed, *overrides]) | {"references": None} | changes
    return build(config, "", ContinualSettings)


def lived(wanted: ContinualSettings, init: str) -> dict[str, Life]:
    lives, elsewhere = live_all(wanted, init, Run(wanted.run))
    assert elsewhere == 0
    return {f"{life.agent}-{life.seed}": life for life in lives}


def own(name: str, **node: Any) -> dict[str, Any]:
    """An agent of this file beside one that is shipped."""
    node = {"_target_": f"tests.test_jobs.{name}"} | node
    return {"agents": [name, "finetune"], "agent": {name: node, "finetune": TUNED}}


def test_shards_are_disjoint_and_complete(init: str, tmp_path: Path):
    changes: dict[str, Any] = {"seeds": 3, "references": str(tmp_path / "references")}
    whole = Workshop(settings(init, tmp_path, **changes), init).jobs(tmp_path)
    assert len(whole) == len({job.folder for job in whole}) == 3 * (2 + 3)
    for parts in (1, 2, 4):
        shards = [
            Workshop(settings(init, tmp_path, **changes, shard=f"{i}/{parts}"), init).jobs(tmp_path)
            for i in range(1, parts + 1)
        ]
        folders = [job.folder for shard in shards for job in shard]
        assert sorted(folders) == sorted(job.folder for job in whole)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert sum(j.env_steps for j in whole if j.name == "engram") == 3 * VISITS * BUDGET * 20


def test_in_two_processes_lifetimes_are_the_same(init: str, tmp_path: Path):
    changes = {"seeds": [0, 1]}
    one = lived(settings(init, tmp_path / "one", **changes), init)
    two = lived(settings(init, tmp_path / "two", **changes, jobs=2), init)
    assert one.keys() == two.keys() == {f"{a}-{s}" for a in ("engram", "finetune") for s in (0, 1)}
    for name, life in one.items():
        assert timeless(two[name]) == timeless(life) and life.status == "done"
        folders = [tmp_path / run / "lifetimes" / name for run in ("one", "two")]
        assert read_episodes(folders[0]) == read_episodes(folders[1])
        assert timeless(read_life(folders[1])) == timeless(life)
    ids = [[t.id for t in one[f"engram-{seed}"].protocol.tasks.values()] for seed in (0, 1)]
    assert not {*ids[0]} & {*ids[1]}


@dataclass(kw_only=True, config={"extra": "forbid"})
class Failing(Finetune):
    """Fails, or asks the process to stop, in its second visit, while a file is there."""

    marker: str
    stop: bool = False
    number: int = 15  # SIGTERM

    def improve(self, visit: Visit) -> None:
        """If it can."""
        if visit.segment == 1 and Path(self.marker).exists():
            if not self.stop:
                raise ZeroDivisionError("one by [red]nothing")
            Path(self.marker).unlink()
            os.kill(os.getpid(), self.number)
        super().improve(visit)


def test_a_crash_is_a_lifetime_and_the_others_go_on(init: str, tmp_path: Path):
    marker = tmp_path / "marker"
    marker.touch()
    wanted = settings(init, tmp_path / "run", **own("Failing", marker=str(marker)))
    lives = lived(wanted, init)
    crashed = lives["Failing-0"]
    folder = tmp_path / "run/lifetimes/Failing-0"
    assert [life.status for life in lives.values()] == ["crashed", "done"]
    assert crashed.error is not None and "ZeroDivisionError: one by [red]nothing" in crashed.error
    assert "test_jobs.py:" in crashed.error  # where
    assert "Traceback" in (folder / "crash.txt").read_text()
    assert timeless(read_life(folder)) == timeless(crashed)
    assert [v.visit for v in crashed.visits] == [0] and len(read_episodes(folder)) == BUDGET
    assert crashed.job and crashed.protocol == lives["finetune-0"].protocol
    # The same command tries again, from where it was.
    marker.unlink()
    again = lived(wanted, init)["Failing-0"]
    assert again.status == "done" and again.error is None and not (folder / "crash.txt").exists()
    assert timeless(again)["visits"] == timeless(lives["finetune-0"])["visits"]


def test_a_killed_process_ends_the_command_and_loses_nothing(init: str, tmp_path: Path):
    marker = tmp_path / "marker"
    marker.touch()
    node = {"marker": str(marker), "stop": True, "number": int(signal.SIGKILL)}
    wanted = settings(init, tmp_path / "run", **own("Failing", **node), jobs=2)
    with pytest.raises(RunError, match=r"a process that lived a lifetime was killed"):
        live_all(wanted, init, Run(wanted.run))
    lives = lived(settings(init, tmp_path / "run", **own("Failing", **node)), init)
    assert {life.status for life in lives.values()} == {"done"}
    assert timeless(lives["Failing-0"])["visits"] == timeless(lives["finetune-0"])["visits"]


def test_one_that_cannot_even_be_born_is_a_lifetime_too(init: str, tmp_path: Path):
    wanted = settings(init, tmp_path, "agent.engram.open_from=nowhere", agents=["engram"])
    wanted.agent.pop("finetune")
    crashed = lived(wanted, init)["engram-0"]
    assert crashed.status == "crashed" and "nowhere" in (crashed.error or "")
    assert crashed.visits == [] and read_episodes(tmp_path / "lifetimes/engram-0") == []


def test_stopped_the_command_says_so_and_goes_on_where_it_was(init: str, tmp_path: Path):
    marker = tmp_path / "marker"
    node = own("Failing", marker=str(marker), stop=True)
    marker.touch()
    wanted = settings(init, tmp_path / "run", **node)
    with pytest.raises(Stopped, match="every lifetime is saved") as stopped:
        live_all(wanted, init, Run(wanted.run))
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    half = read_life(tmp_path / "run/lifetimes/Failing-0")
    assert (half.status, len(half.visits)) == ("stopped", 1)
    assert not (tmp_path / "run/lifetimes/finetune-0").exists()
    lives = lived(wanted, init)
    assert timeless(lives["Failing-0"])["visits"] == timeless(lives["finetune-0"])["visits"]


def test_a_lifetime_that_another_process_lives_is_left_to_it(
    init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "width", 400)
    wanted = settings(init, tmp_path)
    with Run(tmp_path / "lifetimes/engram-0").lock():
        lives, elsewhere = live_all(wanted, init, Run(tmp_path))
    assert [life.agent for life in lives] == ["finetune"] and elsewhere == 1
    out = capsys.readouterr().out
    assert "engram seed 0: " in out and "another process is working in this run folder" in out
    assert not (tmp_path / "lifetimes/engram-0/life.json").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_folder_of_other_settings_is_no_other_process(init: str, tmp_path: Path, jobs: int):
    alone = {"agents": ["finetune"]}
    lived(settings(init, tmp_path, **alone, agent={"finetune": TUNED}), init)
    node = TUNED | {"episodes": 3}
    other = settings(init, tmp_path, **alone, agent={"finetune": node}, jobs=jobs)
    with pytest.raises(RunError, match=r"agent\.episodes=6 \(now 3\)"):
        live_all(other, init, Run(tmp_path))


def test_references_are_lived_once_for_all_runs_and_found_again(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shared = tmp_path / "references"
    changes: dict[str, Any] = {"agents": ["finetune"], "agent": {"finetune": TUNED}}
    changes |= {"references": str(shared)}
    lives, _ = live_all(settings(init, tmp_path / "one", **changes), init, Run(tmp_path / "one"))
    assert [life.agent for life in lives] == ["random", "scratch", "expert", "finetune"]
    random, scratch, expert, mine = lives
    schedule = mine.protocol.schedule
    assert scratch.protocol.schedule == schedule
    assert [(v.task, v.episodes) for v in expert.protocol.schedule] == [
        (name, 5 * BUDGET) for name in "AB"
    ]
    assert sorted(e.task for e in random.evaluations if e.checkpoint == 0) == ["A", "B"]
    first = json.loads((tmp_path / "one/references.json").read_text())
    assert {kind: Path(folders["0"]).parent for kind, folders in first.items()} == dict.fromkeys(
        ("random", "scratch", "expert"), shared
    )
    monkeypatch.setattr(Random, "_learn", None)  # it would not survive to be lived again
    lives, _ = live_all(settings(init, tmp_path / "two", **changes), init, Run(tmp_path / "two"))
    assert [life.status for life in lives] == ["done"] * 4
    assert json.loads((tmp_path / "two/references.json").read_text()) == first
    assert read_references(tmp_path / "two").keys() == {(kind, 0) for kind in first}
    assert len(list(shared.iterdir())) == 3
    # An expert of another budget is another lifetime; the others are not made from it.
    found = Workshop(settings(init, tmp_path / "two", **changes, expert_times=2), init)
    folders = {job.name: job.folder for job in found.jobs(tmp_path) if job.kind != "life"}
    same = {kind: folders[kind] == first[kind]["0"] for kind in first}
    assert same == {"random": True, "scratch": True, "expert": False}


def test_shards_and_later_seeds_name_each_others_references(init: str, tmp_path: Path):
    changes: dict[str, Any] = {"references": str(tmp_path / "references")}
    for more in ({"seeds": [0], "shard": "5/5"}, {"seeds": [1], "shard": "5/5"}):
        live_all(settings(init, tmp_path / "run", **changes, **more), init, Run(tmp_path / "run"))
    written = json.loads((tmp_path / "run/references.json").read_text())
    assert {kind: sorted(folders) for kind, folders in written.items()} == {
        kind: ["0", "1"] for kind in ("random", "scratch", "expert")
    }
