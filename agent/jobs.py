"""Lifetimes as jobs: in this process or several, here or on machines that share a folder."""

from __future__ import annotations

import dataclasses
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from agent import train as training
from agent.assemble import build_agents, build_stream, check_fits, check_not_oracle, load_trained
from agent.config import build
from agent.continual.cohort import Cohort, Kind, content_hash, live_one
from agent.continual.diary import Diary
from agent.continual.life import Life
from agent.continual.lifetime import Watch
from agent.continual.results import REFERENCES
from agent.files import read_json, write_json
from agent.progress import Live, Stopped, console, stop_on_signals
from agent.run import BusyError, Run, RunError
from agent.settings import ContinualSettings

REFERENCE_AGENTS: Mapping[Kind, dict[str, Any]] = {
    "random": {"_target_": "agent.continual.methods.simple.Random"},
    "scratch": {"_target_": "agent.continual.methods.simple.Scratch"},
    "expert": {"_target_": "agent.continual.agents.MetaInit"},
}
"""Who lives the lifetimes that scores are scaled by."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A lifetime to be lived."""

    name: str
    """Of the agent."""
    seed: int
    folder: str
    kind: Kind = "life"
    env_steps: int = 0
    """Of its visits."""


@dataclasses.dataclass
class Workshop:
    """What it takes to live lifetimes: built once in each process, from the settings alone."""

    settings: ContinualSettings
    init: str

    def __post_init__(self) -> None:
        """Load the meta-initialisation, and build the family and the agents."""
        family, stream = build_stream(self.settings)
        self.agents = build_agents(self.settings)
        trained = load_trained(Run(self.init), self.settings)
        check_not_oracle(trained.learner, f"init={self.init}")
        check_fits(trained.family, family)
        probes = training.load_probes(Run(self.init), trained.learner)
        detection, times = self.settings.detection, self.settings.expert_times
        self.cohort = Cohort(stream, family, trained.learner, probes, detection, times)

    def agent(self, job: Job) -> Any:
        """The agent of a job, unborn."""
        if job.kind == "life":
            return self.agents[job.name]
        return build(REFERENCE_AGENTS[job.kind], job.kind)

    def live(self, job: Job, watch: Watch) -> Life | None:
        """Live a lifetime, or what is left of it."""
        agent = self.agent(job)
        return live_one(job.name, agent, job.seed, self.cohort, Path(job.folder), job.kind, watch)

    def jobs(self, run: Path) -> list[Job]:
        """The lifetimes of this command; with a shard, only its own."""
        part, parts = self.settings.shard_of
        return self.all_jobs(run)[part - 1 :: parts]

    def all_jobs(self, run: Path) -> list[Job]:
        """The lifetimes of this command in all shards, those of a seed after its references."""
        settings, out = self.settings, []
        for seed in settings.lifetimes:
            if settings.references is not None:
                out += [self._reference(kind, seed) for kind in REFERENCE_AGENTS]
            for name in self.agents:
                folder = run / "lifetimes" / f"{name}-{seed}"
                out.append(Job(name, seed, str(folder), "life", self._steps(seed, "life")))
        return out

    def _reference(self, kind: Kind, seed: int) -> Job:
        """A reference is found again by what it is made from, whichever run asks for it."""
        job = Job(kind, seed, "", kind)
        name = content_hash(self.cohort.describe(self.agent(job), seed, kind))
        folder = Path(self.settings.references or "") / f"{kind}-{name}"
        return dataclasses.replace(job, folder=str(folder), env_steps=self._steps(seed, kind))

    def _steps(self, seed: int, kind: Kind) -> int:
        episodes = sum(v.episodes for v in self.cohort.world(seed, kind).plan.visits)
        return episodes * self.cohort.family.horizon


def live_all(settings: ContinualSettings, init: str, run: Run) -> tuple[list[Life], int]:
    """Every lifetime of the command; those that are over, and how many others are living.

    Raises:
        Stopped: Somebody asked to stop; everything is saved.
        RunError: The folder of a lifetime holds one of other settings.
    """
    workshop = Workshop(settings, init)
    jobs = workshop.jobs(run.folder)
    _note_references(workshop.all_jobs(run.folder), run.folder)
    lives: list[Life] = []
    elsewhere = 0
    with Live("stream", sum(job.env_steps for job in jobs)) as progress, stop_on_signals() as stop:
        board = _Board(progress)
        pool = _here(workshop, jobs, board, lambda: stop.requested)
        if settings.jobs > 1:
            pool = _pooled(settings, init, jobs, board, lambda: stop.requested)
        for job, life in pool:
            if isinstance(life, BusyError):  # another process, perhaps on another machine
                elsewhere += 1
                console.print(f"[yellow]{job.name} seed {job.seed}[/]: {life}")
            elif life is not None:
                lives.append(life)
                board.finished(job, life)
        if stop.requested:
            raise Stopped(
                f"Stopped; every lifetime is saved in {run.folder}. The same command continues.",
                stop.signal,
            )
    return lives, elsewhere


class _Board:
    """What is shown of all lifetimes together."""

    def __init__(self, progress: Live) -> None:
        self._progress = progress
        self._steps: dict[str, int] = {}

    def moved(self, job: Job, steps: int, note: str) -> None:
        """A lifetime has got so far."""
        self._steps[job.folder] = steps
        self._progress.update(sum(self._steps.values()), note)

    def finished(self, job: Job, life: Life) -> None:
        """A lifetime is over."""
        failed = f": [red]{life.error}[/]" if life.status == "crashed" else ""
        self.moved(job, job.env_steps, f"{job.name} seed {job.seed} {life.status}{failed}")


def _here(
    workshop: Workshop, jobs: list[Job], board: _Board, should_stop: Callable[[], bool]
) -> Iterator[tuple[Job, Life | BusyError | None]]:
    """One lifetime after another in this process."""
    for job in jobs:
        if should_stop():
            return

        def show(diary: Diary, job: Job = job) -> None:
            board.moved(job, *_position(job, diary, workshop.cohort.family.horizon))

        watch = Watch(show, should_stop, workshop.settings.save_every_s)
        try:
            yield job, workshop.live(job, watch)
        except BusyError as error:
            yield job, error


def _pooled(
    settings: ContinualSettings,
    init: str,
    jobs: list[Job],
    board: _Board,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Job, Life | BusyError | None]]:
    """Lifetimes in a pool of processes, torch on one thread in each."""
    context = multiprocessing.get_context("spawn")
    stop, news = context.Event(), context.Queue()
    with ProcessPoolExecutor(
        settings.jobs, context, initializer=_born, initargs=(settings, init, stop, news)
    ) as pool:
        waiting: dict[Future[Life | BusyError | None], Job] = {
            pool.submit(_work, job): job for job in jobs
        }
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                if should_stop():
                    stop.set()
                for job, steps, note in _drained(news):
                    board.moved(job, steps, note)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise RunError(
                "a process that lived a lifetime was killed (out of memory? fewer jobs= need "
                "less); the same command goes on from the last saves"
            ) from None
        finally:  # whatever went wrong in one, the others are saved first
            stop.set()
            pool.shutdown(cancel_futures=True)


_process: dict[str, Any] = {}
"""What a process of the pool was born with."""


def _born(settings: ContinualSettings, init: str, stop: Any, news: Any) -> None:
    """Start a process of the pool; Ctrl-C is the parent's, who tells when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from agent.assemble import set_up

    set_up(settings)
    _process.update(workshop=Workshop(settings, init), stop=stop, news=news)


def _work(job: Job) -> Life | BusyError | None:
    """Live one lifetime in a process of the pool."""
    workshop, stop, news = _process["workshop"], _process["stop"], _process["news"]
    if stop.is_set():
        return None

    def show(diary: Diary) -> None:
        news.put((job, *_position(job, diary, workshop.cohort.family.horizon)))

    try:
        return workshop.live(job, Watch(show, stop.is_set, workshop.settings.save_every_s))
    except BusyError as error:
        return error


def _position(job: Job, diary: Diary, horizon: int) -> tuple[int, str]:
    """Env steps lived, at most, and a few words."""
    now, visits = diary.current, len(diary.life.protocol.schedule)
    value = now.curve[-1].value if now.curve else float("nan")
    what = f"{job.name} seed {job.seed} visit {now.visit + 1}/{visits} ({now.task})"
    return len(diary.episodes) * horizon, f"{what} | return {value:.1f}"


def _drained(news: Any) -> Iterator[tuple[Job, int, str]]:
    while True:
        try:
            yield news.get_nowait()
        except queue.Empty:
            return


def _note_references(jobs: list[Job], run: Path) -> None:
    """Write down where the references of this run are, beside those of other seeds."""
    path = run / REFERENCES
    where: dict[str, dict[str, str]] = read_json(path) if path.is_file() else {}
    for job in jobs:
        if job.kind != "life":
            where.setdefault(job.kind, {})[str(job.seed)] = str(Path(job.folder).resolve())
    if where:
        write_json(path, where)
