"""What one does with a family of tasks before learning on it: check it, and look at it."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from agent.assemble import Trained
from agent.rollout import TaskBatch
from agent.seeding import generator
from agent.settings import ShowEnvSettings
from envs.check import check_family
from envs.checks.finding import Finding
from envs.citizens import NativeEnv
from envs.pictures import Camera, film, task_sheet, write_png, write_video
from envs.simulation import SimulatedFamily
from envs.task import Task, TaskDistribution
from envs.vector_tasks import VectorTasks

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_ADAPTATION_EPISODES = 10
_LONGEST_FILM = 250
"""Pictures."""
Act = Callable[[np.ndarray], np.ndarray]
Hear = Callable[[np.ndarray], None]
Shoot = Callable[..., list[np.ndarray]]


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
        # Square brackets are MuJoCo's here, not rich's.
        table.add_row(escape(finding.name), f"[{style}]{finding.status}[/]", escape(text))
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
            shoot = functools.partial(_film, camera=camera, seed=settings.seed)
            if trained is None:
                frames = _random_film(family, tasks[0], shoot)
            else:
                frames = _policy_film(trained, tasks[0], settings, shoot)
            write_video(written[1], frames, _fps(family))
    return written


def _every(family: TaskDistribution) -> int:
    """Control steps from one picture to the next, for about 25 pictures a second."""
    return 1 if family.dt is None else max(1, round(1.0 / (25.0 * family.dt)))


def _fps(family: TaskDistribution) -> float:
    """Pictures per second at which a film runs as fast as the robot does."""
    return 25.0 if family.dt is None else 1.0 / (family.dt * _every(family))


def _film(
    family: TaskDistribution,
    simulators: VectorTasks,
    act: Act,
    camera: Camera,
    seed: int,
    hear: Hear | None = None,
) -> list[np.ndarray]:
    steps = min(family.horizon, _LONGEST_FILM * _every(family))
    return film(simulators, act, steps, camera, seed=seed, every=_every(family), hear=hear)


def _random_film(family: TaskDistribution, task: Task, shoot: Shoot) -> list[np.ndarray]:
    low, high = family.action_range
    rng = np.random.default_rng(0)
    simulators = family.open([task], 1)
    try:
        return shoot(family, simulators, lambda obs: rng.uniform(low, high)[None, None])
    finally:
        simulators.close()


def _policy_film(
    trained: Trained, task: Task, settings: ShowEnvSettings, shoot: Shoot
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
        acting = batch.actor(params)
        return shoot(family, batch.simulators, acting, hear=acting.hear)


def _sb3_check(env: gymnasium.Env) -> None:
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        # Our policies scale to any action range, and unbounded observations are normal here.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env, skip_render_check=True)
