"""What one does with a family of tasks before learning on it: check it, and look at it."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
from rich import box
from rich.table import Table

from agent.assemble import Trained
from agent.rollout import TaskBatch
from agent.seeding import generator
from agent.settings import ShowEnvSettings
from envs.check import check_family
from envs.citizens import NativeEnv
from envs.finding import Finding
from envs.pictures import Camera, film, task_sheet, write_png, write_video
from envs.simulation import SimulatedFamily
from envs.task import Task, TaskDistribution

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_ADAPTATION_EPISODES = 10


def check(family: TaskDistribution, episodes: int, seed: int) -> list[Finding]:
    """All findings, those of stable-baselines3's checker among them."""

    def native_env(task: Task) -> gymnasium.Env:
        return NativeEnv(family, task=task.values)

    make_env = native_env if isinstance(family, SimulatedFamily) else None
    extra = {"stable-baselines3's checker": _sb3_check}
    return check_family(family, episodes, seed, extra, make_env)


def findings_table(name: str, findings: list[Finding]) -> Table:
    """One row per check; what to do about it beneath what was seen."""
    table = Table("check", "", "what was seen", title=f"Check of {name}", box=box.SIMPLE_HEAD)
    for finding in findings:
        style = _STYLES[finding.status]
        text = finding.detail + (f"\n-> {finding.suggestion}" if finding.suggestion else "")
        table.add_row(finding.name, f"[{style}]{finding.status}[/]", text)
    counts = Counter(finding.status for finding in findings)
    table.caption = ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status])
    return table


def draw(
    family: TaskDistribution, trained: Trained | None, settings: ShowEnvSettings
) -> list[Path]:
    """Write the picture and the film; the paths."""
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(settings.seed)
    tasks = family.sample(settings.tasks, rng, settings.split, distinct=True)
    with Camera(settings.width, settings.height, settings.renderer) as camera:
        written = [folder / f"{family.name}.png"]
        sheet = task_sheet(
            family, tasks, camera, min(settings.steps, family.horizon), settings.seed
        )
        write_png(written[0], sheet)
        if settings.film != "none":
            written.append(folder / f"{family.name}.{settings.film}")
            if trained is None:
                frames = _random_film(family, tasks[0], camera, settings.seed)
            else:
                frames = _film(trained, tasks[0], camera, settings)
            write_video(written[1], frames, fps=30)
    return written


def _random_film(
    family: TaskDistribution, task: Task, camera: Camera, seed: int
) -> list[np.ndarray]:
    low, high = family.action_range
    rng = np.random.default_rng(seed)
    simulators = family.open([task], 1)

    def act(obs: np.ndarray) -> np.ndarray:
        return rng.uniform(low, high, (*obs.shape[:2], len(low)))

    try:
        return film(simulators, act, family.horizon, camera, seed=seed)
    finally:
        simulators.close()


def _film(
    trained: Trained, task: Task, camera: Camera, settings: ShowEnvSettings
) -> list[np.ndarray]:
    """The deterministic policy after ``settings.adapt`` adaptation steps on the task."""
    learner, family = trained.learner, trained.family
    params = learner.theta.detach()[None]
    rng = generator(settings.seed, "adaptation")
    reveal = learner.sees_task
    with TaskBatch(family, [task], _ADAPTATION_EPISODES, learner.policy, rng, reveal) as batch:
        for n in range(settings.adapt):
            params = learner.step(params, batch.collect(params), n)
    with TaskBatch(family, [task], 1, learner.policy, rng, reveal) as batch:
        act = batch.actor(params)
        return film(batch.simulators, act, family.horizon, camera, seed=settings.seed)


def _sb3_check(env: gymnasium.Env) -> None:
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        # Our policies scale to any action range, and unbounded observations are normal here.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env, skip_render_check=True)
