"""What is read from a run folder, whole or not."""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from agent.continual.metrics.catalog import METRICS
from agent.continual.results import read_results
from agent.files import BadFileError, write_json
from tests.lives import make_life, make_references, write_life, write_run


def test_the_lifetimes_of_a_run_with_their_numbers(tmp_path: Path):
    lives = [make_life("zeta", seed) for seed in (10, 2)]
    lives += [make_life("alpha", 2, status="crashed"), make_life("alpha", 10)]
    references = [make_references(lives[0]), make_references(lives[1], expert=200)]
    results = read_results(write_run(tmp_path, lives, references))
    keys = [("alpha", 2), ("alpha", 10), ("zeta", 2), ("zeta", 10)]
    assert [(life.agent, life.seed) for life in results.lives] == keys
    assert list(results.metrics) == list(results.episodes) == list(results.notes) == keys
    assert results.agents == ["alpha", "zeta"]
    assert results.values("ap.final", "zeta") == {2: 0.475, 10: 0.95}
    crashed = results.values("ap.final", "alpha")
    assert math.isnan(crashed[2])
    assert crashed[10] == 0.95
    assert len(results.episodes["zeta", 2]) == 4 * 25
    assert sorted(results.references) == [
        (kind, seed) for kind in ("expert", "random", "scratch") for seed in (2, 10)
    ]
    assert "crashed" in results.notes["alpha", 2][0]
    assert results.notes["zeta", 2] == []


def test_a_metric_that_there_is_not_is_named(tmp_path: Path):
    results = read_results(write_run(tmp_path, [make_life()]))
    with pytest.raises(ValueError, match=r"no metric 'ap.fin'.*ap\.final"):
        results.values("ap.fin", "engram")
    assert results.values("ap.final.raw", "nobody") == {}


def test_an_empty_folder_has_no_lifetimes(tmp_path: Path):
    results = read_results(tmp_path)
    assert results.lives == results.agents == []


def test_a_lifetime_that_is_being_lived_is_left_out(tmp_path: Path):
    run = write_run(tmp_path, [make_life(status="stopped"), make_life("done")])
    lock = run / "lifetimes" / "engram-0" / ".lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read_results(run).agents == ["done"]
    results = read_results(run)  # now it is one that was stopped
    assert results.agents == ["done", "engram"]
    assert set(map(math.isnan, results.metrics["engram", 0].values())) == {True}
    (run / "lifetimes" / "born-0").mkdir()
    assert read_results(run).agents == ["done", "engram"]


def test_references_that_are_not_there_yet_are_none(tmp_path: Path):
    life = make_life()
    full = make_references(life)
    run = write_run(tmp_path, [life], [full])
    (run / "references" / "expert-0" / "life.json").unlink()
    results = read_results(run)
    assert sorted(results.references) == [("random", 0), ("scratch", 0)]
    assert "expert" in results.notes["engram", 0][0]
    # An absolute folder elsewhere does as well.
    write_life(tmp_path / "elsewhere", full["expert"])
    index = json.loads((run / "references.json").read_text())
    write_json(
        run / "references.json", index | {"expert": {"0": str(tmp_path.resolve() / "elsewhere")}}
    )
    assert read_results(run).values("ap.final", "engram") == {0: 0.95}


@pytest.mark.parametrize(
    ("index", "why"),
    [({"oracle": {}}, "random, scratch, expert"), ({"random": "a"}, "random: expected a folder")],
)
def test_a_list_of_references_that_is_none_is_named(tmp_path: Path, index: object, why: str):
    run = write_run(tmp_path, [make_life()])
    write_json(run / "references.json", index)
    with pytest.raises(BadFileError, match=why):
        read_results(run)


def test_a_folder_that_was_copied_is_named(tmp_path: Path):
    run = write_run(tmp_path, [make_life()])
    write_life(run / "lifetimes" / "again", make_life())
    with pytest.raises(BadFileError, match=r"engram-0 and .*again are both agent 'engram'"):
        read_results(run)


def test_episodes_that_are_gone_are_named(tmp_path: Path):
    run = write_run(tmp_path, [make_life(), make_life("x", status="crashed")])
    (run / "lifetimes" / "x-0" / "episodes.jsonl").unlink()
    assert read_results(run).episodes["x", 0] == []
    (run / "lifetimes" / "engram-0" / "episodes.jsonl").unlink()
    with pytest.raises(BadFileError, match=r"engram-0.*no episodes\.jsonl"):
        read_results(run)


def test_reading_results_does_not_pay_for_torch():
    code = "import sys, agent.continual.results; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_numbers_go_through_files_unchanged(tmp_path: Path):
    life = make_life(spread=1 / 3)
    life.evaluations[3].returns[0] = math.nan
    results = read_results(write_run(tmp_path, [life], [make_references(life)]))
    assert set(results.metrics["engram", 0]) == set(METRICS)
    (stored,) = results.lives
    assert stored.evaluations[3].mean == life.evaluations[3].mean
