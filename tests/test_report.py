"""The report is one safe offline page, made from whichever result files a run has."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from agent.continual.life import Life
from agent.continual.results import read_results
from agent.report import Evaluation, Iteration, page, plots, style
from tests.lives import make_life, make_matrix, write_life, write_run

HOSTILE = """\x01$\\frac{1$<script>alert(1)</script> "><img onerror=x> {{ 7 * 7 }}"""


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


def lives(*names: str) -> list[Life]:
    """Engram keeps 75 % of what it learned, the others turn it round."""
    kept = {name: 0.75 if name == "engram" else -0.1 for name in names}
    matrices = {name: make_matrix("ABAB", kept=kept[name]) for name in names}
    return [make_life(name, seed, matrix=matrices[name]) for name in names for seed in (0, 1)]


def fill(run: Path, lived: list[Life] | None = None, **files: object) -> Path:
    """A run folder with the standard files; some of them replaced, or left out where None."""
    contents: dict[str, object] = {
        "metrics.jsonl": "".join(json.dumps(iteration(i)) + "\n" for i in range(1, 41)),
        "evaluation.json": evaluation(),
        "config.yaml": "seed: 0\n",
        "versions.json": {"python": "3.11", "packages": {"torch": "2.13.0"}},
        "commands.json": [{"command": "make demo", "what": "train", "seconds": 1, "env_steps": 9}],
        "lifetimes": "",
    }
    contents |= {name.replace("__", "."): content for name, content in files.items()}
    if contents.pop("lifetimes") is not None:
        write_run(run, lives("engram", "meta_init", "zeta") if lived is None else lived)
    for name, content in contents.items():
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
    assert not re.search(r"https?://|src=\"//|url\(|@import|<link|fetch|XMLHttp", html)
    assert len(images(html)) == html.count("<img") > 8 and "makes it" not in html
    for text in ("make demo", "2.13.0", "seed: 0", "direction 1", "What this does not show"):
        assert text in html
    assert html == html_of(tmp_path)


def test_only_the_pages_own_script_may_run(tmp_path: Path):
    html = html_of(fill(tmp_path, lifetimes=None))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
    policy += f"'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert html.count("<script") == 1


def test_hostile_text_is_escaped_everywhere(tmp_path: Path):
    results, name = evaluation(), json.dumps(HOSTILE)
    results |= {k: HOSTILE for k in ("family", "held_out", "split")} | {"seeds": {HOSTILE: HOSTILE}}
    results["tasks"][0]["label"] = HOSTILE
    weights = {2: {"row": 0, "of_task": "A", "weights": {"A": 0.9}, "null": 0.1}}
    changes = {"recalled": weights, "deviations": [HOSTILE], "status": "crashed", "error": HOSTILE}
    life = make_life(held_out="P", **changes)
    life.agent = life.protocol.stream = life.protocol.family = life.protocol.init = HOSTILE
    life.protocol.tasks["A"].label = HOSTILE
    life.protocol.tasks["B"].values = {HOSTILE: 1.0}
    life = Life.model_validate_json(life.model_dump_json(by_alias=True).replace('"A"', name))
    command = {"command": HOSTILE, "what": HOSTILE, "seconds": 1, "env_steps": 1}
    data = {"evaluation__json": results, "commands__json": [command], "config__yaml": HOSTILE}
    data |= {"versions__json": {HOSTILE: {HOSTILE: HOSTILE}}}
    run = fill(tmp_path, **data)
    write_life(run / "lifetimes" / "hostile", life)
    html = html_of(run)
    assert html.count("<script") == 1 and "<img onerror" not in html
    assert len(images(html)) == html.count("<img")
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 25
    assert "{{ 7 * 7 }}" in html  # data is never read as a template


@pytest.mark.parametrize("kept", page.MADE_BY)
def test_sections_without_a_file_say_which_command_makes_it(tmp_path: Path, kept: str):
    every = {*page.MADE_BY, "commands.json", "versions.json", "config.yaml"}
    html = html_of(fill(tmp_path, **dict.fromkeys(every - {kept})))
    assert (len(images(html)) > 1) == (kept == "lifetimes")
    for name, command in page.MADE_BY.items():
        sentence = f"There is no <code>{name}</code> here yet: <code>{command}</code> makes it."
        assert (sentence in html) == (name != kept)
    assert "<b>n/a</b>" not in html


def test_nothing_to_report_on_names_the_folder_and_what_was_expected(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        page.write_report(fill(tmp_path, **dict.fromkeys(page.MADE_BY)))
    for text in (str(tmp_path), *page.MADE_BY, *page.MADE_BY.values()):
        assert text in str(caught.value)


def test_a_folder_without_lifetimes_has_none_yet(tmp_path: Path):
    (tmp_path / "lifetimes").mkdir()
    assert "<code>engram continual</code> makes it" in html_of(fill(tmp_path, lifetimes=None))


def test_numbers_that_do_not_exist_are_shown_as_not_available(tmp_path: Path):
    results = evaluation()
    results["tasks"][0] |= {"returns": [None, 1.0, float("nan"), 2.0], "random": None}
    line = json.dumps(iteration(1) | {"train/return_after": None, "time/env_steps_per_s": None})
    run = fill(tmp_path, metrics__jsonl=line, evaluation__json=results, lifetimes=None)
    html = html_of(run)
    # The task's two returns, random and oracle; the mean's oracle.
    assert len(re.findall(r"<td[^>]*>n/a</td>", html)) == 4 + 1
    assert "<b>n/a</b>env steps per second" in html and ">nan" not in html.lower()


@pytest.mark.parametrize(
    ("content", "message"),
    {
        '{"family": ': "evaluation.json: is not valid JSON",
        "[]": "lifetimes/engram-0/life.json: the whole: ",
        '\n{"env_steps": 1}\n': "metrics.jsonl line 2: train/return_before: Field required",
        '[{"what": "x"}]': "commands.json: 0.command: Field required",
    }.items(),
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str):
    (fill(tmp_path) / re.split(r":| line", message)[0]).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        page.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_inconsistent_keys_are_named(tmp_path: Path):
    results = evaluation()
    results["tasks"][0]["scratch"] = [1.0]
    with pytest.raises(ValueError, match=r"tasks.0.scratch has 1 numbers, but mean.meta has 4"):
        page.write_report(fill(tmp_path, evaluation__json=results))


def test_a_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = html_of(fill(tmp_path, lifetimes=None))
    monkeypatch.setattr("agent.files.os.replace", lambda *_: 1 / 0)
    (tmp_path / "config.yaml").write_text("changed: 1")
    with pytest.raises(ZeroDivisionError):
        page.write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == old and not list(tmp_path.glob(".*"))


def test_headline_numbers_against_hand_computed_ones(tmp_path: Path):
    log = [Iteration.model_validate(iteration(i)) for i in range(1, 41)]
    results = read_results(fill(tmp_path))
    told = Evaluation.model_validate(evaluation() | {"oracle_env_steps": 800})
    cards = page.headline(log, told, results)
    # A lifetime: 4 visits of 25 episodes of 100 steps, and 2 episodes x 2 tasks x 5 checkpoints.
    assert [(card["value"], card["note"].replace("\N{MINUS SIGN}", "-")) for card in cards] == [
        ("+10.0", "0.0 → 10.0 after 10 episodes; mean of tasks: 1"),
        ("75%", "meta_init -10%, zeta -10%"),
        ("6", "agents: 3, seeds: 2"),
        ("25,020", "median over iterations"),
        ("113,300", "training 40,000, oracle 800, evaluation 500, stream 72,000"),
    ]
    untold = Evaluation.model_validate(evaluation())
    assert page.headline([], untold, None)[-1]["note"] == "training 3,000, evaluation 500"
    assert [page.kept_share(50.0, end) for end in (0.0, -50.0, 200.0)] == ["n/a", "n/a", "25%"]


def test_one_colour_per_agent_everywhere(tmp_path: Path):
    html, names = html_of(fill(tmp_path)), [*style.AGENT_COLOURS, "zeta"]
    colours, svgs = style.agent_colours(names), images(html)
    assert len({*colours.values()}) == len(names)
    for name in ("engram", "scratch", "meta_init", "zeta"):
        assert f'style="background:{colours[name]}"></span>{name}' in html
    assert [colours["engram"].lower() in svg for svg in svgs[:2]] == [True, True]
    assert [colours["scratch"].lower() in svg for svg in svgs[:2]] == [False, True]
    assert all(colours["zeta"].lower() in svg for svg in svgs[2:5])  # dots, visits, recall


def test_any_number_of_steps_and_tasks(tmp_path: Path):
    results = evaluation(steps=1)
    results["tasks"] *= plots.MAX_PANELS + 1
    html = html_of(fill(tmp_path, evaluation__json=results, lifetimes=None))
    assert "The first 12 tasks are drawn" in html and html.count(">direction 1</td>") == 13


def test_means_leave_out_what_is_not_there():
    values = [[10, 15, 20], [np.nan, 40, np.nan], [np.nan, np.nan, np.nan]]
    np.testing.assert_allclose(style.finite_mean(values), [10, 27.5, 20])
    assert np.isnan(style.finite_mean([np.nan]))
    assert [plots.smoothing_window(n) for n in (1, 40, 60, 100)] == [1, 3, 3, 5]
    np.testing.assert_allclose(plots.smooth([0, 3, np.nan, 9], 3), [1.5, 1.5, 6, 9])


def test_numbers_in_words():
    minus = "\N{MINUS SIGN}"
    shown = [style.number(v, 2) for v in (1234.5, -0.5, -0.001, float("nan"), None)]
    assert shown == ["1,234.50", f"{minus}0.50", "0.00", "n/a", "n/a"]
    assert style.number(-12) == f"{minus}12"
    cases = [([150.0, -3.0], 0), ([99.9], 1), ([1.0], 2), ([0.98], 3), ([1e-9], 4), ([0.0], 2)]
    for values, digits in cases:
        assert style.digits_for([*values, float("nan")]) == digits


def test_report_needs_neither_torch_nor_a_simulator():
    code = "import sys, agent.report.page; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "mujoco", "gymnasium", "hydra", "matplotlib.pyplot"]
    assert subprocess.check_output([sys.executable, "-c", code, *heavy], text=True) == "[]\n"
