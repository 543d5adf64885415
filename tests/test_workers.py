"""Rows of Python environments: the same data from workers, and one clear error for every fault."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.parallel import workers
from envs.parallel.workers import Outcomes, RowEnv, RowError, SerialRows, WorkerRows
from envs.task import TaskError
from tests.faulty_envs import (
    ACTION,
    CLOSE,
    MAKE,
    OBS,
    RESET,
    Census,
    Counter,
    GymRow,
    Unloadable,
)

ROOT = Path(__file__).parent.parent
LABELS = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu"]
BAD = 2
"""The row that misbehaves: of four, the first of the second worker."""


def counters(n: int = 4, fault: str = "", at: int = 3) -> list[Callable[[], RowEnv]]:
    return [functools.partial(Counter, row, fault * (row == BAD), at) for row in range(n)]


def in_workers(
    makers: Sequence[Callable[[], RowEnv]],
    obs_size: int = OBS,
    action_size: int = ACTION,
    processes: int = 2,
    deadline_s: float = 20.0,
) -> WorkerRows:
    return WorkerRows(
        makers,
        LABELS[: len(makers)],
        obs_size,
        workers=processes,
        action_size=action_size,
        deadline_s=deadline_s,
    )


def serial(makers: Sequence[Callable[[], RowEnv]], obs_size: int = OBS) -> SerialRows:
    return SerialRows(makers, LABELS[: len(makers)], obs_size)


def steps(rows: WorkerRows | SerialRows, count: int, n: int = 4) -> Outcomes | None:
    outcomes = None
    for _ in range(count):
        outcomes = rows.step(np.ones((n, ACTION)), np.ones(n, dtype=bool))
    return outcomes


def ended(pid: int) -> bool:
    with contextlib.suppress(OSError):  # a zombie that nobody has waited for yet has ended too
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def pids(rows: WorkerRows) -> list[int]:
    return [worker.process.pid for worker in rows._workers]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test does, its workers are gone when it ends."""
    yield
    assert multiprocessing.active_children() == []


# The same data, whichever way.


@pytest.mark.parametrize(("n", "processes"), [(7, 3), (2, 3), (5, 1)])
def test_each_row_gets_its_own_data_of_this_step(n: int, processes: int):
    """Against counts kept here, under random masks, over several episodes."""
    generator = np.random.default_rng(n)
    both = [in_workers(counters(n), processes=processes), serial(counters(n))]
    for seed in (10, 20):
        seeds = [seed + row for row in range(n)]
        obs = np.stack([range(n), seeds, np.zeros(n)], axis=1)
        for rows in both:
            assert np.array_equal(rows.reset(seeds), obs)
        count, total = np.zeros(n), np.zeros(n)
        for _ in range(40):
            running = generator.random(n) < 0.6
            actions = generator.normal(size=(n, ACTION))
            count, total = count + running, total + running * actions.sum(1)
            obs[:, 2] = count
            for rows in both:
                found = rows.step(actions, running)
                assert np.array_equal(found.obs, obs)
                assert found.reward == pytest.approx(running * total)
                assert np.array_equal(found.terminated, running & (count % 2 == 0))
                assert np.array_equal(found.truncated, running & (count % 2 == 1))
                assert np.array_equal(found.success, running & (count % 3 == 0))
                assert found.success.dtype == bool and not found.diverged.any()
    for rows in both:
        rows.close()


@pytest.mark.parametrize(("env_id", "obs_size"), [("CartPole-v1", 4), ("Pendulum-v1", 3)])
def test_workers_equal_serial_equals_gymnasium_bit_for_bit(env_id: str, obs_size: int):
    makers, generator = [functools.partial(GymRow, env_id)] * 5, np.random.default_rng(0)
    both = [in_workers(makers, obs_size, 1), serial(makers, obs_size)]
    envs = [gymnasium.make(env_id) for _ in makers]
    discrete = isinstance(envs[0].action_space, gymnasium.spaces.Discrete)
    seeds = [int(s) for s in np.random.SeedSequence(0).generate_state(5)]
    expected = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)])
    expected = expected.astype(np.float64)
    for rows in both:
        assert np.array_equal(rows.reset(seeds), expected)
    running = np.ones(5, dtype=bool)
    for _ in range(60):
        actions = generator.uniform(-2, 2, (5, 1))
        reward, ends = np.zeros(5), np.zeros(5, dtype=bool)
        for i in np.flatnonzero(running):
            move = int(actions[i, 0] > 0) if discrete else actions[i]
            expected[i], reward[i], ends[i] = envs[i].step(move)[:3]
        for rows in both:
            found = rows.step(actions, running)
            assert np.array_equal(found.obs, expected) and np.array_equal(found.reward, reward)
            assert np.array_equal(found.terminated, ends) and not found.truncated.any()
        running &= ~ends
    assert running.all() != discrete  # CartPole fell over somewhere
    for each in [*both, *envs]:
        each.close()


def test_what_was_handed_out_is_not_written_to_again():
    for rows in (in_workers(counters()), serial(counters())):
        start = rows.reset(range(4))
        first = steps(rows, 1)
        assert first is not None
        steps(rows, 1)
        rows.close()
        assert start[:, 2].tolist() == [0] * 4 and first.obs[:, 2].tolist() == [1] * 4
        assert first.truncated.all() and first.reward.tolist() == [2.0] * 4


def test_a_diverged_row_is_void_but_no_error_and_float32_is_widened():
    for rows in (in_workers(counters(4, "diverges")), serial(counters(4, "diverges"))):
        rows.reset([9] * 4)
        found = steps(rows, 3)
        assert found is not None and found.diverged.tolist() == [False, False, True, False]
        assert found.obs[BAD].tolist() == [0, 0, 0] and found.reward[BAD] == 0
        assert found.obs[3].tolist() == [3, 9, 3] and found.reward[3] == 6
        rows.close()
    rows = serial(counters(4, "float32"))
    rows.reset([9] * 4)
    found = steps(rows, 3)
    assert found is not None and found.obs[BAD].tolist() == [2, 9, 3]
    assert found.obs.dtype == np.float64


# One clear error for every fault.

SAYS = {
    "raises": "ValueError: the elbow broke",
    "raises with two arguments": "TwoArgumentsError: knee at 0.5",
    "raises what cannot be pickled": "UnpicklableError: it holds a lambda",
    "raises a long text": "ValueError: x{900}",
    "sys.exit": "SystemExit: 3",
    "NaN observation": r"the observation\[1\] is nan.*diverged=True",
    "infinite reward": "the reward is -inf",
    "overflow": r"the observation\[0\] is inf",
    "too long": r"the observation has the shape \(4,\), expected \(3,\)",
    "column": r"the observation has the shape \(3, 1\), expected \(3,\)",
    "one number": r"the observation has the shape \(1,\), expected \(3,\)",
    "scalar": r"the observation has the shape \(\), expected \(3,\)",
    "None": r"step\(\) gave None, expected an Outcome.*`return`",
    "None observation": "the observation is None",
    "None reward": "the reward is None",
    "None flag": "truncated is None, expected a bool",
    "text": "the observation is not made of real numbers: .'a'",
    "ragged": "the observation is not made of real numbers",
    "complex": "the observation is not made of real numbers",
    "reward of one element": r"the reward has the shape \(1,\), expected \(\)",
    "another tuple": r"step\(\) gave a tuple, expected an Outcome",
}
CROSSES = {
    fault for fault in SAYS if fault.startswith(("raises", "sys.exit", "NaN", "inf", "scal"))
}
"""What is tried in workers too; they refuse a result in the same function, so a few are enough."""
ENDS_THE_PROCESS = {
    "os._exit": "process ended with exit code 3",
    "is killed": r"process was ended by signal 9 \(Killed\).*memory",
    "leaves a child": "process ended with exit code 3",
    "hangs": "no answer within 0.4 s.*an environment that hangs",
    "hangs, deaf to SIGTERM": "no answer within 0.4 s",
    "is slow": "no answer within 0.4 s.*a deadline that is too short for the 2 rows",
}


def expect_one_error(rows: WorkerRows | SerialRows, says: str, deadline_s: float = 20.0) -> None:
    """At the third step of row 2, in time; then nothing but its echo."""
    steps(rows, 2)
    started = time.monotonic()
    with pytest.raises(RowError) as caught:
        steps(rows, 1)
    assert time.monotonic() - started < deadline_s + 1.5
    first_line = str(caught.value).splitlines()[0]
    assert first_line.startswith("row 2 (task 'cat'), step 3, seed 12: ")
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    assert "\nLikely cause: " in str(caught.value) and len(str(caught.value)) < 10_000
    assert str(caught.value).endswith(caught.value.traceback.rstrip())
    for call in (lambda: steps(rows, 1), lambda: rows.reset([0] * 4)):
        with pytest.raises(TaskError, match="closed after an earlier failure: ") as echo:
            call()
        assert first_line in str(echo.value)
    rows.close()
    rows.close()


@pytest.mark.parametrize("fault", SAYS)
def test_a_fault_is_one_error_that_names_the_row(fault: str):
    ways = [serial, in_workers] if fault in CROSSES else [serial]
    for way in ways:
        rows = way(counters(4, fault))
        rows.reset([10, 11, 12, 13])
        expect_one_error(rows, SAYS[fault])


@pytest.mark.parametrize("fault", ENDS_THE_PROCESS)
def test_a_process_that_ends_or_hangs_is_one_error_too(fault: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "GRACE_S", 0.5 if fault == "hangs, deaf to SIGTERM" else 3.0)
    rows = in_workers(counters(4, fault))
    members = pids(rows)
    rows.reset([10, 11, 12, 13])
    rows.deadline_s = 0.4
    expect_one_error(rows, ENDS_THE_PROCESS[fault], rows.deadline_s)
    assert all(ended(pid) for pid in members)


def test_the_original_traceback_is_there():
    rows = in_workers(counters(4, "raises"))
    rows.reset([0] * 4)
    with pytest.raises(RowError) as caught:
        steps(rows, 3)
    assert "tests/faulty_envs.py" in caught.value.traceback
    assert caught.value.traceback.endswith("ValueError: the elbow broke\n")
    there = serial(counters(4, "raises"))
    there.reset([0] * 4)
    with pytest.raises(RowError) as caught:
        steps(there, 3)
    assert isinstance(caught.value.__cause__, ValueError)  # itself, for a debugger


def test_slow_within_the_deadline_is_no_error():
    rows = in_workers(counters(4, "is slow"))
    rows.reset([0] * 4)
    found = steps(rows, 4)
    assert found is not None and found.obs[:, 2].tolist() == [4] * 4
    rows.close()


@pytest.mark.parametrize("fault", ["raises", "os._exit", "None observation", "hangs"])
def test_a_reset_can_fail_as_well(fault: str):
    rows = in_workers(counters(4, fault, RESET))
    rows.deadline_s = 0.4 if fault == "hangs" else 20.0
    with pytest.raises(RowError, match=r"row 2 \(task 'cat'\), step 0 \(reset\), seed 5: "):
        rows.reset([5] * 4)


@pytest.mark.parametrize("fault", ["raises", "os._exit", "hangs"])
def test_a_constructor_can_fail_as_well(fault: str):
    deadline_s = 1.5 if fault == "hangs" else 20.0  # the worker has to start within it
    with pytest.raises(RowError, match=r"row 2 \(task 'cat'\), while being made: "):
        in_workers(counters(4, fault, MAKE), deadline_s=deadline_s)


def test_a_worker_that_cannot_start_or_read_its_makers(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RowError, match=r"rows 2 to 3, the first .*made: ImportError: no module"):
        in_workers([*counters(2), Unloadable(), Unloadable()])  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        RowError, match=r"rows 0 to 1, .*pickle.*\nLikely cause: a maker that holds"
    ):
        in_workers([lambda: Counter(0)] * 4)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    with pytest.raises(RowError, match=r"rows . to ., .* its process ended with exit code 1"):
        in_workers(counters())
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/no/such/python")
    with pytest.raises(RowError, match=r"rows . to ., .* its process ended with exit code"):
        in_workers(counters())


def test_a_worker_killed_between_two_steps():
    rows = in_workers(counters())
    rows.reset([5] * 4)
    steps(rows, 2)
    os.kill(pids(rows)[1], signal.SIGKILL)
    with pytest.raises(RowError, match=r"rows 2 to 3, .*'cat'\), step 3, seed 5: .*signal 9"):
        steps(rows, 1)
    idle = in_workers(counters())
    os.kill(pids(idle)[0], signal.SIGKILL)
    idle.close()


def test_an_answer_to_an_earlier_question_is_never_read():
    rows = in_workers(counters())
    rows.reset([5] * 4)
    rows._workers[1].pipe.send((rows._sequence, "step"))  # as if asked twice
    with pytest.raises(RowError, match="answer 2 came to question 3; it is not used"):
        steps(rows, 1)


# How they end.


def test_close_ends_everything_whatever_the_environments_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(workers, "GRACE_S", 0.5)
    for fault in ("raises", "hangs, deaf to SIGTERM", "os._exit"):
        rows = in_workers(counters(4, fault, CLOSE))
        members, started = pids(rows), time.monotonic()
        rows.close()
        rows.close()
        assert time.monotonic() - started < 3.0 and all(ended(pid) for pid in members)
        with pytest.raises(TaskError, match="closed: open new ones"):
            rows.reset([0] * 4)
    monkeypatch.setenv("NOTE", str(tmp_path / "note"))
    in_workers(counters(4, "leaves a note", CLOSE)).close()
    assert (tmp_path / "note").exists()
    there = serial(counters(4, "raises", CLOSE))
    envs: list[Any] = list(there.envs)
    with caplog.at_level(logging.WARNING):
        there.close()
    assert [env.obs[2] for env in envs] == [CLOSE] * 4 and not there.envs
    assert "row 2: close() failed: ValueError('the elbow broke')" in caplog.text


def test_rows_that_are_dropped_leave_nothing():
    def cycle(drop: bool) -> list[int]:
        rows = in_workers(counters())
        rows.reset([0] * 4)
        members = pids(rows)
        if not drop:
            rows.close()
        return members

    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    cycle(drop=False)
    before, names = open_files(), set(os.listdir("/dev/shm"))
    members = [pid for drop in (True, False, True) for pid in cycle(drop)]
    assert open_files() <= before
    assert set(os.listdir("/dev/shm")) <= names
    assert all(ended(pid) for pid in members)


def test_a_fork_of_this_process_does_not_end_the_workers():
    rows = in_workers(counters())
    child = os.fork()
    if child == 0:
        rows.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert rows.reset([7] * 4)[:, 1].tolist() == [7] * 4
    rows.close()


SCRIPT = """
import multiprocessing, os, signal, time
from functools import partial
from envs.parallel.workers import WorkerRows
from tests.faulty_envs import Counter
import numpy as np
print("the script runs", flush=True)
rows = WorkerRows([partial(Counter, row, "hangs" * (row == 2)) for row in range(4)], "abcd", 3,
                  workers=2, action_size=2, deadline_s=100.0)
rows.reset(range(4))
print(*[worker.process.pid for worker in rows._workers], flush=True)
if os.fork() == 0:  # a fork of the parent, which holds on to the workers' pipes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(0, 3)
    time.sleep(20)
    os._exit(0)
try:
    for _ in range(3):
        rows.step(np.ones((4, 2)), np.ones(4, dtype=bool))
except KeyboardInterrupt:
    rows.close()
    print("closed", multiprocessing.active_children(), flush=True)
    rows.reset(range(4))
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A running script whose third step hangs, with no guard around it; and its workers' ids."""
    (tmp_path / "script.py").write_text(SCRIPT)
    # In the background of a shell SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "the script runs\n"
    members = [int(pid) for pid in process.stdout.readline().split()]
    assert len(members) == 2
    time.sleep(0.2)  # two steps, and into the third
    yield process, members
    with contextlib.suppress(ProcessLookupError):  # a test may have done it
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_workers_end_when_the_parent_is_killed(script: tuple[subprocess.Popen, list[int]]):
    process, members = script
    assert not any(ended(pid) for pid in members)
    process.kill()
    until = time.monotonic() + 6.0
    while not all(ended(pid) for pid in members):
        assert time.monotonic() < until, "orphans"
        time.sleep(0.05)


def test_ctrl_c_reaches_the_parent_alone(script: tuple[subprocess.Popen, list[int]]):
    process, members = script
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=30)
    assert all(ended(pid) for pid in members)
    os.killpg(process.pid, signal.SIGKILL)  # the fork
    out, errors = process.communicate()
    assert out == "closed []\n"
    assert errors.endswith("TaskError: closed after an earlier failure: KeyboardInterrupt\n")
    assert errors.count("Traceback") == 2  # the script's own, with its cause; none of a worker


# What a worker is.


def test_a_worker_is_lean_and_leaves_the_parent_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before, script = dict(os.environ), sys.modules["__main__"]
    rows = in_workers([functools.partial(Census, 0)] * 4)
    assert os.environ == before and sys.modules["__main__"] is script
    found = rows.reset([0] * 4)
    assert found[:, 0].tolist() == [0] * 4  # nothing heavy was imported
    assert found[:, 1].tolist() == [1] * 4
    assert found[:, 2].tolist() == np.repeat(pids(rows), 2).tolist()
    rows.close()


OWN_MAKER = """
from envs.parallel.workers import WorkerRows
from tests.faulty_envs import Counter
class Mine(Counter):
    pass
def make():
    return Mine(5)
if GUARD:
    rows = WorkerRows([make], ["mine"], 3, workers=1, action_size=2, deadline_s=20.0)
    print(rows.reset([1]))
"""


@pytest.mark.parametrize(("guard", "says"), [('__name__ == "__main__"', "[[5. 1. 0.]]"), ("1", "")])
def test_a_maker_defined_in_the_script_works_in_one_that_is_guarded(
    tmp_path: Path, guard: str, says: str
):
    (tmp_path / "script.py").write_text(OWN_MAKER.replace("GUARD", guard))
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=20,
    )
    assert done.stdout.strip() == says
    assert bool(says) or "process ended with exit code 1" in done.stderr


def test_arguments_that_do_not_fit_are_refused_and_nothing_is_lost():
    with pytest.raises(TaskError, match="workers=0"):
        in_workers(counters(), processes=0)
    with pytest.raises(TaskError, match="0 makers and 0 labels"):
        in_workers([])
    with pytest.raises(TaskError, match="4 makers and 1 labels"):
        SerialRows(counters(), ["a"], OBS)
    everything = np.ones(4, dtype=bool)
    for rows in (in_workers(counters()), serial(counters())):
        with pytest.raises(TaskError, match="before reset"):
            rows.step(np.zeros((4, ACTION)), everything)
        with pytest.raises(TaskError, match="3 seeds for 4 rows"):
            rows.reset([1, 2, 3])
        rows.reset([0] * 4)
        rows.step(np.zeros((4, ACTION)), everything)
        for actions in (np.zeros((3, ACTION)), np.zeros((4, ACTION + 1)), np.zeros(ACTION)):
            with pytest.raises(TaskError, match=r"expected \(4, 2\)"):
                rows.step(actions, everything)
        for running in (everything[:3], np.ones(4)):
            with pytest.raises(TaskError, match=r"expected bool \(4,\)"):
                rows.step(np.zeros((4, ACTION)), running)
        assert rows.step(np.zeros((4, ACTION)), everything).obs[:, 2].tolist() == [2] * 4
        rows.close()
