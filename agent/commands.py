"""What each command does: the composition root. Below this module nothing sees a config."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from agent import train as training
from agent.assemble import (
    build_agents,
    build_family,
    build_stream,
    check_not_oracle,
    check_oracle,
    extend_path,
    load_trained,
    set_up,
    untrained,
)
from agent.config import build
from agent.continual.results import read_results
from agent.continual.summary import summarise
from agent.distributed import TogetherError, check_divisible, joined, rank
from agent.evaluate import evaluate as evaluate_learner
from agent.files import BadFileError, write_json
from agent.jobs import live_all
from agent.memory.key.base import IndistinguishableTasksError
from agent.onlooker import Onlooker
from agent.progress import console
from agent.run import CorruptCheckpointError, Run, RunError
from agent.settings import (
    CheckEnvSettings,
    ContinualSettings,
    DemoSettings,
    EvaluateSettings,
    Machine,
    ReportSettings,
    ShowEnvSettings,
    TrainSettings,
)
from agent.tables import evaluation_table, stream_table
from agent.tensorboard import require_tensorboard
from envs.task import TaskError

Config = dict[str, Any]
EXPECTED_FAILURES = (
    CorruptCheckpointError,
    RunError,
    FileNotFoundError,
    FloatingPointError,
    IndistinguishableTasksError,
    BadFileError,
    TaskError,
    TogetherError,
)
# May differ between a run and its continuation without making it another experiment.
_MAY_CHANGE = {
    "run",
    "budget",
    "curve",
    "device",
    "threads",
    "checkpoint_every",
    "tensorboard",
    "import_path",
}


def train(config: Config, typed: str) -> None:
    """Meta-train to the budget, or on from where the run folder is."""
    settings = build(config, "", TrainSettings)
    if settings.tensorboard:
        require_tensorboard()
    with joined(settings.device):
        _train(settings, typed)


def _train(settings: TrainSettings, typed: str) -> None:
    """The same, once this process and any others that share the work have met."""
    check_divisible(settings.batch.tasks)
    trained = untrained(settings)
    console.quiet = rank() > 0
    run = Onlooker(settings.run) if rank() > 0 else Run(settings.run)
    with run.lock():
        begun = (run.folder / "metrics.jsonl").exists()
        run.claim(trained.config, _MAY_CHANGE, begun=begun)
        before = run.progress()
        progress = training.train(
            trained.learner,
            trained.family,
            run,
            size=settings.batch,
            budget=settings.budget,
            calibration=settings.calibration,
            checkpoint_every=settings.checkpoint_every,
            seed=settings.seed,
            curve=settings.curve,
            tensorboard=settings.tensorboard,
        )
        if progress == before:
            console.print(
                f"{run.folder} is finished: {progress['iteration']} iterations, "
                f"{progress['env_steps']:,} env steps. A larger budget goes on from here."
            )
            return
        steps, seconds = progress["env_steps"] + progress["key_steps"], progress["seconds"]
        run.note_command(typed, f"meta-training in {run.folder}", seconds, steps)
    rate, physics = progress["env_steps"] / seconds, progress["physics_s"] / seconds
    console.print(
        f"Trained: {steps:,} env steps in {seconds:.0f} s ({rate:,.0f} a second with learning, "
        f"{physics:.0%} of the time in the simulator). All of it is in {run.folder}"
    )


def evaluate(config: Config, typed: str) -> None:
    """Adapt to tasks of a split, print the table, write ``evaluation.json``."""
    settings = build(config, "", EvaluateSettings)
    run = Run(settings.run)
    oracle = Run(settings.oracle) if settings.oracle else None
    trained = load_trained(run, settings)
    check_not_oracle(trained.learner, settings.run)
    told = load_trained(oracle, settings) if oracle else None
    if told is not None:
        check_oracle(trained, told)
    started, size = time.perf_counter(), settings.evaluation
    with console.status(f"adapting to {size.tasks} {settings.split} tasks"):
        result = evaluate_learner(
            trained.learner,
            trained.family,
            size,
            settings.split,
            settings.seed,
            told.learner if told else None,
        )
    seconds = time.perf_counter() - started
    result |= {
        "seconds": seconds,
        "seeds": {"training": trained.config["seed"], "evaluation": settings.seed},
        "meta_env_steps": _steps_of(run),
        "oracle_env_steps": _steps_of(oracle) if oracle else None,
    }
    write_json(run.folder / "evaluation.json", result)
    run.note_command(typed, "evaluation", seconds, result["env_steps"])
    console.print(evaluation_table(result, console.width))
    console.print(f"Wrote {run.folder / 'evaluation.json'}")


def continual(config: Config, typed: str) -> None:
    """Live the stream with every agent and seed, print the table, write ``summary.json``."""
    settings = build(config, "", ContinualSettings)
    set_up(settings)
    build_stream(settings)  # errors of settings are found before anything is trained
    build_agents(settings)
    check_not_oracle(untrained(settings).learner, "learner")
    run = Run(settings.run)
    init = settings.init or str(_train_init(config, run, typed).folder)
    started = time.perf_counter()
    run.describe(config, "continual.yaml")
    lives, elsewhere = live_all(settings, init, run)
    results = read_results(run.folder)
    write_json(run.folder / "summary.json", summarise(results))
    seconds = time.perf_counter() - started
    steps = sum(sum(v.env_steps.values()) for life in lives for v in life.visits)
    run.note_command(typed, "stream", seconds, steps)
    console.print(stream_table(results))
    for life in results.lives:
        if life.status == "crashed":
            console.print(f"[red]{life.agent} seed {life.seed} crashed[/]: {life.error}")
    if elsewhere:
        console.print(f"{elsewhere} lifetimes are being lived by other processes.")
    console.print(f"Wrote {run.folder / 'summary.json'}; a page: engram report run={run.folder}")
    crashed = sum(life.status == "crashed" for life in results.lives)
    if crashed:
        raise RunError(
            f"{crashed} of {len(results.lives)} lifetimes crashed; crash.txt beside each"
        )


def report(config: Config, typed: str) -> None:
    """Write ``report.html`` from what the run folder holds."""
    from agent.report.page import write_report

    settings = build(config, "", ReportSettings)
    console.print(f"Report: {write_report(Path(settings.run)).resolve()}")


def check_env(config: Config, typed: str) -> None:
    """Check a family, print the findings; a failed check is a failed command."""
    from agent.env_tools import check, findings_table

    settings = build(config, "", CheckEnvSettings)
    extend_path(settings.import_path)
    family = build_family(settings.env, "env")
    with console.status(f"checking {family.id}"):
        findings = check(family, settings.episodes, settings.seed)
    console.print(findings_table(family.id, findings))
    failures = [finding.name for finding in findings if finding.status == "failed"]
    if failures:
        raise TaskError(f"{family.id} fails: {', '.join(failures)}")


def show_env(config: Config, typed: str) -> None:
    """Write a picture of a few tasks side by side and a film of an episode."""
    from agent.env_tools import draw

    settings = build(config, "", ShowEnvSettings)
    extend_path(settings.import_path)
    trained = None
    if settings.run is not None:
        machine = Machine(run=settings.run, import_path=settings.import_path)
        trained = load_trained(Run(settings.run), machine)
    family = build_family(settings.env, "env") if trained is None else trained.family
    with console.status(f"drawing {family.id}"):
        written = draw(family, trained, settings)
    console.print("Wrote " + " and ".join(str(path) for path in written))


def demo(config: Config, typed: str) -> None:
    """The main job, stage by stage; each is a command that could be typed alone."""
    from agent.cli import configure

    settings = build(config, "", DemoSettings)
    run, started = settings.run, time.perf_counter()
    common = [f"{key}={getattr(settings, key)}" for key in ("seed", "device", "threads")]
    family = ["env=half_cheetah_dir_body", f"budget.env_steps={settings.env_steps}"]
    told = [*family, "learner=oracle", "batch.episodes=20"]  # as many steps an iteration as MAML
    lives = [f"{key}=[{','.join(map(str, getattr(settings, key)))}]" for key in ("agents", "seeds")]
    lives = ["stream=cheetah_faults", *lives, f"init={run}", f"run={run}"]
    lives += ["jobs=2", "expert_times=2"]  # about a minute
    stages = [
        ("Meta-training", train, ["train", *family, "learner=meta_sgd", f"run={run}", *common]),
        ("An oracle", train, ["train", *told, f"run={run}/oracle", *common]),
        ("Held-out tasks", evaluate, ["evaluate", f"run={run}", f"oracle={run}/oracle", *common]),
        ("A stream of faults", continual, ["continual", *lives, *common]),
        ("Report", report, ["report", f"run={run}"]),
    ]
    for number, (title, stage, arguments) in enumerate(stages, 1):
        console.rule(f"[bold]{number}/{len(stages)} {title}", align="left")
        stage(configure(arguments[0], arguments[1:]), "engram " + shlex.join(arguments))
    console.print(f"Done in {(time.perf_counter() - started) / 60:.1f} min.")


def _train_init(config: Config, run: Run, typed: str) -> Run:
    """The meta-initialisation that the agents are born from, trained here and now."""
    not_trained_on = {f.name for f in dataclasses.fields(ContinualSettings)} - {
        f.name for f in dataclasses.fields(TrainSettings)
    }
    own = {key: value for key, value in config.items() if key not in not_trained_on}
    train(own | {"run": str(run.folder / "init")}, typed)
    return Run(run.folder / "init")


def _steps_of(run: Run) -> int:
    progress = run.progress()
    return 0 if progress is None else progress["env_steps"] + progress.get("key_steps", 0)
