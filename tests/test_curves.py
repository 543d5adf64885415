"""``engram curves`` on made-up runs whose curves are known in closed form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from agent.cli import main
from agent.config import ConfigError
from agent.curves import band, grouped, steps_to
from agent.report.learning import spread_out
from agent.run_curve import read_curve

ENV = {"name": "half_cheetah_vel", "variant": "finn2017", "horizon": 200}


def make_run(
    folder: Path, seed: int = 0, learner: str = "maml", every: int = 2, **other: Any
) -> Path:
    """Ten iterations of 1000 steps in 2 s (3 s of CPU, a quarter of the wall time physics).

    A point of the curve in the first and every ``every``-th one: -100 before, and after k steps
    -100 + 5 k * iteration + seed.
    """
    folder.mkdir(parents=True)
    config = {"run": str(folder), "seed": seed, "env": ENV, "learner": {"_target_": learner}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | other))
    lines = []
    for i in range(1, 11):
        line = {"iteration": i, "env_steps": 1000 * i, "seconds": 2.0 * i}
        line |= {"time/cpu_seconds": 3.0 * i, "time/physics_share": 0.25}
        if i == 1 or i % every == 0:
            line |= {f"curve/after_{k}": -100.0 + 5 * k * i + seed * (k > 0) for k in range(3)}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_curve_is_read_back(tmp_path: Path):
    run = read_curve(make_run(tmp_path / "a", seed=3, every=5))
    assert run.seed == 3 and run.family == "half_cheetah_vel:finn2017" and run.horizon == 200
    assert run.env_steps.tolist() == [1000, 5000, 10_000]
    assert run.seconds.tolist() == [2, 10, 20] and run.cpu_seconds.tolist() == [3, 15, 30]
    assert run.returns.tolist() == [[-100, -92, -87], [-100, -72, -47], [-100, -47, 3]]
    assert (run.total_steps, run.wall, run.cpu, run.physics) == (10_000, 20, 30, 5)


def test_a_run_that_is_being_written_is_read_and_a_damaged_one_is_named(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    log = folder / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"iteration": 11, "env_')
    assert read_curve(folder).total_steps == 10_000
    log.write_text(whole.replace('{"iteration": 4', "{iteration: 4"))
    assert main(["curves", str(folder), f"out={tmp_path}/x.svg"]) == 1
    with pytest.raises(ValueError, match="line 4: not valid JSON"):
        read_curve(folder)


def test_seeds_of_one_learner_are_one_line(tmp_path: Path):
    paths = [make_run(tmp_path / f"vel_maml_{seed}", seed) for seed in (0, 1)]
    paths += [make_run(tmp_path / "vel_rl2", 0, "rl2"), make_run(tmp_path / "vel_maml_b", 0, "b")]
    paths += [make_run(tmp_path / "vel_maml_7" / "2", 2, budget=3, device="cuda")]
    groups = grouped([read_curve(path) for path in paths], [])
    assert [group.label for group in groups] == ["maml", "rl2", "maml_b"]
    assert [run.seed for run in groups[0].runs] == [0, 1, 2]
    named = grouped([read_curve(path) for path in paths], ["x", "x", "y", "z", "w"])
    assert [(g.label, len(g.runs)) for g in named] == [("x", 2), ("y", 1), ("z", 1), ("w", 1)]
    with pytest.raises(ConfigError, match="2 names for 5 runs"):
        grouped([read_curve(path) for path in paths], ["x", "y"])
    with pytest.raises(ConfigError, match=r"vel_maml_0.*vel_rl2.*the same seed"):
        grouped([read_curve(paths[i]) for i in (0, 2)], ["x", "x"])


def test_names_that_tell_nothing_apart_become_paths(tmp_path: Path):
    runs = [make_run(tmp_path / a / "run", 0, a) for a in ("maml", "rl2")]
    labels = [group.label for group in grouped([read_curve(path) for path in runs], [])]
    assert labels == [str(path) for path in runs]


def test_the_mean_and_the_range_are_taken_where_all_seeds_have_been():
    xs = [np.array([0.0, 2.0, 6.0]), np.array([1.0, 5.0])]
    ys = [np.array([0.0, 2.0, 6.0]), np.array([3.0, 7.0])]  # y = x, y = x + 2
    found = band(xs, ys)
    assert found.x.tolist() == [1, 2, 5]
    assert found.mean.tolist() == [2, 3, 6]
    assert found.low.tolist() == [1, 2, 5] and found.high.tolist() == [3, 4, 7]
    with pytest.raises(ConfigError, match="no part of their curves in common"):
        band([np.array([0.0, 1.0]), np.array([2.0, 3.0])], [np.zeros(2)] * 2)


def test_steps_to_a_threshold_are_those_of_the_first_point_there(tmp_path: Path):
    run = read_curve(make_run(tmp_path / "a"))
    assert steps_to(run, 1, -80.0) == 4000  # exactly -80 there
    assert steps_to(run, 1, -79.0) == 6000
    assert steps_to(run, 2, -80.0) == 2000
    assert steps_to(run, 0, -80.0) is None


def test_labels_are_moved_apart_as_little_as_possible():
    assert spread_out([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_out([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread_out([0.52, 0.5, 0.9], 0.1) == pytest.approx([0.56, 0.46, 0.9])
    assert spread_out([1.0, 0.98], 0.1) == pytest.approx([1.0, 0.9])  # within the panel
    assert spread_out([-0.2, 0.0], 0.1) == pytest.approx([0.0, 0.1])
    many = spread_out([0.5] * 40, 0.1)
    assert (min(many), max(many)) == pytest.approx((0.0, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = rng.random(8)
        found = np.array(spread_out(wanted.tolist(), 0.05))
        assert (np.diff(found[np.argsort(wanted)]) > 0.05 - 1e-9).all()
        cost = np.square(found - wanted).sum()
        for _ in range(50):  # no allowed position nearby is better
            other = np.clip(found + 0.02 * rng.standard_normal(8), 0, 1)
            if (np.diff(other[np.argsort(wanted)]) >= 0.05).all():
                assert np.square(other - wanted).sum() >= cost - 1e-9


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [str(make_run(tmp_path / f"maml_{seed}", seed)) for seed in (0, 4)]
    runs += [str(make_run(tmp_path / "rl2", 0, "rl2", every=10))]
    out = [f"out={tmp_path}/p.svg", f"csv={tmp_path}/p.csv"]
    asked = ["threshold=-46", "lines={published: -79, oracle: -55}"]
    assert main(["curves", *runs, *out, *asked]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    # n, steps, min, before, after 1 and 2, best, to the threshold, steps a second, of simulation
    maml = "maml 2 10k 0.50 -100 -48.0 2.00 -48.0 10k (1 of 2) 500 25%".split()
    assert maml in table
    assert "rl2 1 10k 0.50 -100 -50.0 0.00 -50.0 never 500 25%".split() in table
    picture = (tmp_path / "p.svg").read_text()
    for text in ("half_cheetah_vel:finn2017", "published -79", "oracle -55", "range of seeds"):
        assert text in picture
    for text in ("after 1 step", "CPU seconds of meta-training", "env steps of meta-training"):
        assert text in picture
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 6 + 6 + 2
    assert rows[7] == {
        "learner": "maml",
        "run": runs[1],
        "seed": "4",
        "env_steps": "2000",
        "seconds": "4.0",
        "cpu_seconds": "6.0",
        "after_0": "-100.0",
        "after_1": "-86.0",
        "after_2": "-76.0",
    }
    assert main(["curves", *runs, *out]) == 0
    again = (tmp_path / "p.svg").read_text()
    assert main(["curves", *runs, *out]) == 0
    assert (tmp_path / "p.svg").read_text() == again  # the same bytes


def test_the_lines_are_drawn_where_the_numbers_are(tmp_path: Path):
    """By the colour of the pixels: the solid line of a learner rises to its last return."""
    run = make_run(tmp_path / "maml")
    target = tmp_path / "p.png"
    assert main(["curves", str(run), f"out={target}", "lines={top: 0, floor: -100}"]) == 0
    pixels = np.asarray(Image.open(target).convert("RGB")).astype(int)
    blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(-1) < 30
    left = blue[:, : blue.shape[1] // 2]
    columns = np.flatnonzero(left.sum(0))
    rows = [np.flatnonzero(left[:, column]).mean() for column in columns]
    assert rows[0] - rows[columns.size // 2] > 50  # upwards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "out=x.jpg"], "out='x.jpg': expected a name ending in .svg, .png or .pdf"),
        (["{a}", "steps=5"], "was evaluated after up to 2 (curve.size.steps)"),
        (["{a}", "{hopper}"], "is of hopper (200 steps)"),
        (["{a}", "{old}"], "has no CPU time in its log; use time=wall"),
        (["{a}", "time=sun"], "time='sun'"),
        ([], "runs: name some run folders"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    make_run(tmp_path / "a")
    make_run(tmp_path / "hopper", env=ENV | {"name": "hopper", "variant": ""})
    old = make_run(tmp_path / "old", 0, "old") / "metrics.jsonl"
    old.write_text(old.read_text().replace("time/cpu_seconds", "other"))
    names = {name: str(tmp_path / name) for name in ("a", "hopper", "old")}
    given = [argument.format(**names) for argument in arguments]
    out = [] if any(x.startswith("out=") for x in given) else [f"out={tmp_path}/p.svg"]
    assert main(["curves", *given, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.svg").exists()


def test_runs_without_a_curve_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["curves", str(tmp_path / "none")]) == 1
    assert "none: not a meta-training run" in capsys.readouterr().err
    log = make_run(tmp_path / "a") / "metrics.jsonl"
    log.write_text(log.read_text().replace("curve/", "other/"))
    assert main(["curves", str(tmp_path / "a")]) == 1
    assert "a: has no learning curve yet" in capsys.readouterr().err
