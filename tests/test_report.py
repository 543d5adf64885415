"""The report is one safe offline page, made from whichever result files a run has."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from agent.report import Agent, Scores, Visit, page, plots

HOSTILE = """\x01$\\frac{1$<script>alert(1)</script> "><img onerror=x> {{ 7 * 7 }}"""
SCORES = {"first.start": -10.0, "first.end": 200.0, "revisit.start": 150.0, "revisit.end": 210.0}


def iteration(i: int) -> dict[str, Any]:
    returns = {"train/return_before": -20.0, "train/return_after": 3.0 * i}
    return {"env_steps": 1000 * i, "time/env_steps_per_s": 25000.0 + i, **returns}


def evaluation(steps: int = 3) -> dict[str, Any]:
    returns, scratch = [10.0 * k for k in range(steps + 1)], [-5.0] * (steps + 1)
    others = {"scratch": scratch, "random": -6.5, "oracle": None}
    task = {"id": "ab12", "label": "direction 1", "returns": returns, "returns_sd": scratch}
    counts = {"episodes_per_step": 10, "draws": 3, "eval_episodes": 8, "horizon": 100}
    costs = {"env_steps": 500, "seconds": 9.1, "meta_env_steps": 3000, "oracle_env_steps": None}
    names = {"family": "cheetah", "split": "heldout", "held_out": "All.", "seed": 0, "seeds": {}}
    results = {"mean": {"meta": returns, **others}, "tasks": [task | others]}
    return {**names, **counts, **costs, **results, "gain_after_one_step": 10.0}


def visit(seed: int, k: int, name: str, recalled: dict[str, Any]) -> dict[str, Any]:
    curve = [{"episodes": 8 * j, "return": 10.0 * j + seed} for j in (1, 2, 3)]
    place = {"seed": seed, "visit": k, "name": name, "task": {"id": "x", "label": "gear x0.5"}}
    return {**place, "start": -4.0, "end": 31.5, "curve": curve, "recalled": recalled}


def agent(seeds: list[int], memory: bool) -> dict[str, Any]:
    new = {"row": None, "of_visit": None, "weight": None, "rows": 0}
    old = {"row": 0, "of_visit": 0, "weight": 0.9, "rows": 2}  # right for A, wrong for B
    told = [(k, name, (old if k > 1 else new) if memory else {}) for k, name in enumerate("ABAB")]
    row = {"row": 0, "written_at_visit": 0, "score": 33.25, "gain": 1, "visits": 2, "task": "gear"}
    return {
        "visits": [visit(seed, *rest) for seed in seeds for rest in told],
        "metrics": SCORES | ({} if memory else {"revisit.start": -20.0}),
        "intervals": {key: [value - 1, value + 1] for key, value in SCORES.items()},
        "memory": [{"seed": seed, **row} for seed in seeds] if memory else [],
    }


def summary(*seeds: int) -> dict[str, Any]:
    stream = {"name": "faults", "family": "cheetah", "split": "heldout", "order": list("ABAB")}
    stream |= {"budget_episodes": 24, "horizon": 100}
    agents = {name: agent([*seeds], name == "engram") for name in ("engram", "meta_init", "zeta")}
    return {"stream": stream, "seeds": seeds, "env_steps": 700, "seconds": 2.0, "agents": agents}


def fill(run: Path, **files: object) -> Path:
    """A run folder with the standard files; some of them replaced, or left out where None."""
    contents: dict[str, object] = {
        "metrics.jsonl": "".join(json.dumps(iteration(i)) + "\n" for i in range(1, 41)),
        "evaluation.json": evaluation(),
        "summary.json": summary(0, 1),
        "config.yaml": "seed: 0\n",
        "versions.json": {"python": "3.11", "packages": {"torch": "2.13.0"}},
        "commands.json": [{"command": "make demo", "what": "train", "seconds": 1, "env_steps": 9}],
    }
    for name, content in (contents | {k.replace("__", "."): v for k, v in files.items()}).items():
        if content is not None:
            (run / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return run


def html_of(run: Path) -> str:
    return page.write_report(run).read_text(encoding="utf-8")


def images(html: str) -> list[str]:
    found = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="[^"]+">', html)
    decoded = [base64.b64decode(text).decode() for text in found]
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in decoded)
    return decoded


def test_full_page_is_offline_has_every_section_and_is_the_same_each_time(tmp_path: Path):
    html = html_of(fill(tmp_path))
    assert not re.search(r"https?://|src=\"//|url\(|@import|<script|<link", html)
    assert len(images(html)) == html.count("<img") == 3 and "makes it" not in html
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    for text in ("make demo", "2.13.0", "seed: 0", "33.2", "gear", "direction 1", "[149.0, 151.0]"):
        assert text in html
    assert html == html_of(tmp_path)


def test_hostile_text_is_escaped_everywhere(tmp_path: Path):
    results, stream = evaluation(), summary(0)
    results |= {k: HOSTILE for k in ("family", "held_out", "split")} | {"seeds": {HOSTILE: HOSTILE}}
    results["tasks"][0]["label"] = stream["stream"]["name"] = HOSTILE
    stream["agents"] = {"engram": agent([0], memory=True), HOSTILE: agent([0], memory=True)}
    stream["agents"]["engram"]["memory"][0]["task"] = stream["stream"]["order"][3] = HOSTILE
    command = {"command": HOSTILE, "what": HOSTILE, "seconds": 1, "env_steps": 1}
    data = {"evaluation__json": results, "summary__json": stream, "commands__json": [command]}
    data |= {"versions__json": {HOSTILE: {HOSTILE: HOSTILE}}, "config__yaml": HOSTILE}
    html = html_of(fill(tmp_path, **data))
    assert "<script" not in html and "<img onerror" not in html and len(images(html)) == 3
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 18
    assert "{{ 7 * 7 }}" in html  # data is never read as a template


@pytest.mark.parametrize("kept", page.MADE_BY)
def test_sections_without_a_file_say_which_command_makes_it(tmp_path: Path, kept: str):
    every = {*page.MADE_BY, "commands.json", "versions.json", "config.yaml"}
    html = html_of(fill(tmp_path, **dict.fromkeys(every - {kept})))
    assert len(images(html)) == 1
    for name, command in page.MADE_BY.items():
        sentence = f"There is no <code>{name}</code> here yet: <code>{command}</code> makes it."
        assert (sentence in html) == (name != kept)


def test_nothing_to_report_on_names_the_folder_and_what_was_expected(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        page.write_report(fill(tmp_path, **dict.fromkeys(page.MADE_BY)))
    for text in (str(tmp_path), *page.MADE_BY, *page.MADE_BY.values()):
        assert text in str(caught.value)


def test_numbers_that_do_not_exist_are_shown_as_not_available(tmp_path: Path):
    results, stream = evaluation(), summary(0, 1)
    results["tasks"][0] |= {"returns": [None, 1.0, float("nan"), 2.0], "random": None}
    stream["agents"]["engram"]["visits"][0] |= {"start": None, "end": None, "curve": []}
    stream["agents"]["zeta"]["visits"] = stream["agents"]["zeta"]["visits"][:1]
    line = json.dumps(iteration(1) | {"train/return_after": None, "time/env_steps_per_s": None})
    run = fill(tmp_path, metrics__jsonl=line, evaluation__json=results, summary__json=stream)
    html = html_of(run)
    # The task's two returns, random and oracle; the mean's oracle; three visits zeta never made.
    assert len(re.findall(r"<td[^>]*>n/a</td>", html)) == 4 + 1 + 6
    assert "<b>n/a</b>env steps per second" in html and ">nan" not in html.lower()


@pytest.mark.parametrize(
    ("content", "message"),
    {
        '{"family": ': "evaluation.json: is not valid JSON",
        "[]": "summary.json: the whole: ",
        '\n{"env_steps": 1}\n': "metrics.jsonl line 2: train/return_before: Field required",
        '[{"what": "x"}]': "commands.json: 0.command: Field required",
    }.items(),
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        page.write_report(fill(tmp_path, **{re.split(r":| line", message)[0]: content}))
    assert not (tmp_path / "report.html").exists()


def test_missing_and_inconsistent_keys_are_named(tmp_path: Path):
    stream, results = summary(0), evaluation()
    del stream["agents"]["engram"]["visits"][1]["end"]
    with pytest.raises(ValueError, match=r"summary.json: agents.engram.visits.1.end: Field req"):
        page.write_report(fill(tmp_path, summary__json=stream))
    with pytest.raises(ValueError, match=r"engram.visits.0 \(seed 0, visit 0\) is not in"):
        page.write_report(fill(tmp_path, summary__json=summary(0) | {"seeds": [7]}))
    results["tasks"][0]["scratch"] = [1.0]
    with pytest.raises(ValueError, match=r"tasks.0.scratch has 1 numbers, but mean.meta has 4"):
        page.write_report(fill(tmp_path, evaluation__json=results))


def test_a_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = html_of(fill(tmp_path))
    monkeypatch.setattr("agent.files.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write_report(fill(tmp_path, config__yaml="changed: 1"))
    assert (tmp_path / "report.html").read_text() == old and not list(tmp_path.glob(".*"))


def test_headline_numbers_against_hand_computed_ones(tmp_path: Path):
    html = html_of(fill(tmp_path)).replace("\N{MINUS SIGN}", "-")
    assert re.findall(r'"card"><b>(.*?)</b>.*?<small>(.*?)</small>', html) == [
        ("+10.0", "0.0 → 10.0 after 10 episodes; mean of tasks: 1"),
        ("75%", "meta_init -10%, zeta -10%"),  # 150 / 200 and -20 / 200
        ("25,020", "median over the iterations"),
        ("41,200", "training 40,000, evaluation 500, stream 700"),
    ]
    told = html_of(fill(tmp_path, evaluation__json=evaluation() | {"oracle_env_steps": 800}))
    assert "42,000" in told and "training 40,000, oracle 800, evaluation 500" in told
    for end in (0.0, -50.0, None):
        assert page.kept_share(Scores.model_validate(SCORES | {"first.end": end})) == "n/a"


def test_one_colour_per_agent_everywhere(tmp_path: Path):
    html, names = html_of(fill(tmp_path)), [*plots.AGENT_COLOURS, "zeta"]
    colours = plots.agent_colours(names)
    drawn = {"engram": (1, 1, 1), "scratch": (0, 1, 0), "meta_init": (0, 0, 1), "zeta": (0, 0, 1)}
    assert len({*colours.values()}) == len(names)
    for name, where in drawn.items():  # in the learning curve, the adaptation, the stream
        assert f'style="background:{colours[name]}"></span>{name}' in html
        assert tuple(colours[name].lower() in svg for svg in images(html)) == where


def test_recall_strip_is_right_only_for_the_same_task(tmp_path: Path):
    visits = agent([0], memory=True)["visits"]
    for k, (name, source) in enumerate([("A", 0), ("A", None), ("B", 1)]):  # 1 was B for seed 0
        visits.append(visit(1, k, name, {"row": 0, "of_visit": source, "weight": 1.0}))
    subject = Agent.model_validate({"visits": visits, "metrics": SCORES})
    kinds = [subject.recall_kind(v) for v in subject.visits]
    assert kinds == ["none", "none", "same", "other", "same", "other", "other"]
    stream = images(html_of(fill(tmp_path)))[2]
    assert all(colour.lower() in stream for colour in plots.RECALL_COLOURS.values())
    assert "✓ row 0" in stream and "✗ row 0" in stream and "from visit 0, p 0.90" in stream


def test_one_seed_without_intervals(tmp_path: Path):
    stream = summary(3)
    stream["agents"]["engram"]["intervals"] = None
    stream["agents"]["zeta"]["intervals"] = dict.fromkeys(SCORES)
    html = html_of(fill(tmp_path, summary__json=stream))
    assert html.count("[n/a]") == 8 and "one seed, so no spread" in html


def test_any_number_of_steps_tasks_and_visits_and_no_engram(tmp_path: Path):
    results, stream = evaluation(steps=1), summary(0)
    results["tasks"] *= plots.MAX_PANELS + 1
    stream["stream"]["order"] *= 5
    del stream["agents"]["engram"]
    html = html_of(fill(tmp_path, evaluation__json=results, summary__json=stream))
    assert "The first 12 tasks are drawn" in html and html.count(">direction 1</td>") == 13
    assert "<b>n/a</b>of the first visit" in html and "recalled policy" not in html


def test_means_leave_out_what_is_not_there():
    one, two = visit(0, 0, "A", {}), visit(2, 0, "A", {})
    two["curve"] = [{"episodes": 12, "return": 40}]
    grid, values = plots.over_seeds([Visit.model_validate(v) for v in (one, two)])
    assert grid.tolist() == [8, 12, 16, 24]
    np.testing.assert_allclose(values, [[10, 15, 20, 30], [np.nan, 40, np.nan, np.nan]])
    np.testing.assert_allclose(plots.finite_mean(values), [10, 27.5, 20, 30])
    assert [plots.smoothing_window(n) for n in (1, 40, 60, 100)] == [1, 3, 3, 5]
    np.testing.assert_allclose(plots.smooth([0, 3, np.nan, 9], 3), [1.5, 1.5, 6, 9])


def test_report_needs_neither_torch_nor_a_simulator():
    code = "import sys, agent.report.page; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "mujoco", "gymnasium", "hydra", "matplotlib.pyplot"]
    assert subprocess.check_output([sys.executable, "-c", code, *heavy], text=True) == "[]\n"
