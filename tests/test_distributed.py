"""Training in several processes equals training in one, and one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from agent import distributed
from agent.assemble import build_family
from agent.cli import configure, main
from agent.distributed import TogetherError, fingerprint, mean_gradients, moments
from agent.onlooker import Onlooker
from agent.policy import GaussianMlp, PolicyConfig
from agent.rollout import TaskBatch
from agent.run import Run
from agent.seeding import generator
from tests.test_distill import remember

ROOT = Path(__file__).parent.parent
TRAIN = (
    "train env=navigation device=cpu batch.tasks=4 batch.episodes=3 policy.hidden=[8] "
    "calibration.tasks=8 curve.every=400 curve.size.tasks=2 curve.size.steps=1"
).split()
STEPS = 2 * 4 * 3 * 20  # of an iteration


# Threads of the group that outlive it abort the process, now and then, as the interpreter ends.
# They are looked for on Linux only, where a process can read their names.
ALL_ENDED = """
from pathlib import Path
threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


def together(folder: Path, code: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """What torchrun makes of the code of a process."""
    script = folder / "process.py"
    script.write_text(f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}{ALL_ENDED}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc-per-node={processes}", str(script)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(launch, capture_output=True, text=True, timeout=300, env=one_thread)


# The commands are given one after the other, since starting processes takes longer than they do.
# Each process is told folders of its own, so that one sees who wrote.
STAGES = """
import json, signal
from contextlib import nullcontext
import agent.commands, agent.learners.maml as maml, agent.policy as policy, agent.train as training
from agent.cli import main
from agent.distributed import joined

rank, codes = os.environ["RANK"], {}

def stage(name, run, iterations, *arguments):
    settings = [f"run={FOLDER}/{run}-{rank}", f"budget.env_steps={iterations * STEPS}"]
    codes[name] = main([*TRAIN, *settings, *arguments])

codes["evaluate"] = main(["evaluate", "run=none"])
codes["typo"] = main([*TRAIN, "batch.tsks=3"])
with joined("cpu"):
    agent.commands.joined = lambda device: nullcontext()
    stage("indivisible", "no", 2, "batch.tasks=3")
    for learner in LEARNERS:
        stage(learner, learner, 2, f"learner={learner}")
        stage(f"{learner} resumed", learner, 4, f"learner={learner}")
    for learner, settings in ONCE.items():
        settings = [each.replace("MEMORY", f"{FOLDER}/memory") for each in settings]
        stage(learner, learner, 1, f"learner={learner}", *settings)

    shared, maml.mean_gradients = maml.mean_gradients, lambda leaves: None
    stage("gradients", "gradients", 2)
    maml.mean_gradients = shared
    shared, policy.moments = policy.moments, lambda x: (len(x), x.mean(0), x.var(0, correction=0))
    stage("moments", "moments", 2)
    policy.moments = shared

    iteration = training.meta_iteration
    def interrupted(*arguments):
        if arguments[-1] == 1 and rank == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return iteration(*arguments)
    training.meta_iteration = interrupted
    stage("signal", "signal", 9)
with open(f"{FOLDER}/codes-{rank}.json", "w") as file:
    json.dump(codes, file)
"""
LEARNERS = ["meta_sgd", "maml"]
# Not the trust region's: its conjugate gradient in float32 makes 3e-4 of a 1e-8 (in one process
# too), so that its sharing is tested in float64, below.
ONCE = {
    "fomaml": [],
    "anil": [],
    "meta_lstm": [],
    "reptile": [],
    "multitask": [],
    "finetune": [],
    "zero_shot": [],
    "scratch": [],
    "oracle": [],
    "matching": [],
    "context": ["learner.outer_epochs=2"],
    "rl2": ["learner.outer_epochs=2", "learner.minibatches=2"],
    "varibad": ["learner.outer_epochs=2", "learner.minibatches=2", "learner.cell=lstm"],
    "distill": ["learner.outer_epochs=2", "learner.memory=MEMORY"],
}
"""One iteration, with few outer steps: of a gradient that is nearly zero Adam makes 1e-3."""


class Together(NamedTuple):
    """What the stages left."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    def codes(self, stage: str) -> list[int]:
        """The exit codes of both processes."""
        files = [self.folder / f"codes-{rank}.json" for rank in range(2)]
        return [json.loads(file.read_text())[stage] for file in files]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """All stages, carried out once."""
    folder = tmp_path_factory.mktemp("together")
    teach(folder)
    given = f"TRAIN, STEPS, FOLDER = {TRAIN!r}, {STEPS}, {str(folder)!r}\n"
    given += f"LEARNERS, ONCE = {LEARNERS!r}, {ONCE!r}\n"
    done = together(folder, given + STAGES)
    assert done.returncode == 0, done.stderr
    return Together(folder, done)


def teach(folder: Path) -> None:
    """A memory of two policies in ``folder/memory``, for the student."""
    made = []
    for n in range(2):
        random = torch.Generator().manual_seed(n)
        policy = GaussianMlp(2, 2, PolicyConfig(hidden=[6]))
        made.append((policy, policy.init(random), torch.randn(50, 2, generator=random)))
    remember(folder / "memory", made)


def logged(run: Path) -> list[dict[str, float]]:
    """The metrics that do not depend on the machine's speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")}
        for line in lines
    ]


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
def test_two_processes_with_a_break_equal_one(stages: Together, tmp_path: Path, learner: str):
    budget = f"budget.env_steps={4 * STEPS}"
    assert main([*TRAIN, f"learner={learner}", f"run={tmp_path}", budget]) == 0
    assert stages.codes(learner) == stages.codes(f"{learner} resumed") == [0, 0]
    run = stages.folder / f"{learner}-0"
    one, other = (Run(path).checkpoints.load() for path in (tmp_path, run))
    assert one is not None and other is not None and one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, atol=2e-5, rtol=1e-4, msg=name)
    for key in ("iteration", "env_steps", "key_at", "key_failure"):
        assert one[1][key] == other[1][key], key
    alone, shared = logged(tmp_path), logged(run)
    assert [line["iteration"] for line in shared] == [1, 2, 3, 4]
    for line, same in zip(alone, shared, strict=True):
        assert line.keys() == same.keys()
        assert same == pytest.approx(line, abs=2e-4)
    assert "curve/after_1" in shared[-1]


@pytest.mark.slow
@pytest.mark.parametrize("learner", ONCE)
def test_an_iteration_of_two_processes_is_that_of_one(
    stages: Together, tmp_path: Path, learner: str
):
    settings = [f"learner={learner}", f"run={tmp_path}", f"budget.env_steps={STEPS}"]
    more = [each.replace("MEMORY", f"{stages.folder}/memory") for each in ONCE[learner]]
    assert main([*TRAIN, *settings, *more]) == 0
    assert stages.codes(learner) == [0, 0]
    one, other = (Run(p).checkpoints.load() for p in (tmp_path, stages.folder / f"{learner}-0"))
    assert one is not None and other is not None and one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_the_first_process_alone_writes_and_prints(stages: Together):
    written = {path.name for path in stages.folder.iterdir() if path.is_dir()} - {"memory"}
    trained = {*LEARNERS, *ONCE, "gradients", "moments", "signal"}
    assert written == {f"{name}-0" for name in trained}
    assert stages.done.stdout.count("Trained: ") == 2 * len(LEARNERS) + len(ONCE)


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["gradients", "moments"])
def test_what_is_not_shared_is_found_out(stages: Together, forgotten: str):
    assert stages.codes(forgotten) == [1, 1]
    assert "processes [1] hold another learner than process 0" in stages.done.stderr
    assert len(logged(stages.folder / f"{forgotten}-0")) == 1
    assert Run(stages.folder / f"{forgotten}-0").progress() is None


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_iteration(stages: Together):
    assert stages.codes("signal") == [143, 143]
    assert stages.done.stdout.count("Stopped after iteration 2; saved") == 1
    progress = Run(stages.folder / "signal-0").progress()
    assert progress is not None and progress["iteration"] == 2


@pytest.mark.slow
def test_what_cannot_be_done_together_is_said(stages: Together):
    assert stages.codes("evaluate") == stages.codes("typo") == [2, 2]
    assert stages.codes("indivisible") == [1, 1]
    error = stages.done.stderr
    assert error.count("evaluate is no work for 2 processes") == 1
    assert error.count("batch.tsks: unknown key") == 1
    assert "batch.tasks=3 cannot be divided among 2 processes" in error


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path: Path):
    code = """
import torch
from agent import distributed as d
from agent.learners import maml_trpo
from agent.learners.maml_trpo import MamlTrpo
from agent.policy import GaussianMlp, PolicyConfig
from agent.train import _mean_of_all, _of_all
from agent.trust_region import TrustRegion, trust_region_step
from tests.conftest import made_up_episodes
torch.manual_seed(0)
rows = 3 + 2 * torch.randn(100, 4)
with d.joined("cpu"):
    me = d.rank()
    own = (rows[:0], rows[:70], rows[70:])[me]
    count, mean, var = d.moments(own)
    assert count == 100
    torch.testing.assert_close(mean, rows.mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(var, rows.var(0, unbiased=False), atol=1e-5, rtol=1e-5)
    assert len({d.fingerprint({"x": x}) for x in d.gathered(torch.cat([mean, var]))}) == 1
    assert d.moments(rows[:0])[0] == 0
    assert d.from_first(b"first" if me == 0 else b"") == b"first"
    leaf, other = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    leaf.grad = torch.full((2, 3), float(me))
    d.mean_gradients([leaf, other])
    assert (leaf.grad == 1).all() and (other.grad == 0).all()
    assert d.agreed(15 * (me == 2), lambda: {"x": torch.ones(3)}) == 15
    assert d.agreed(0, lambda: {"x": torch.ones(3)}) == 0
    try:
        d.agreed(0, lambda: {"x": torch.tensor([0.0, me == 1])})
        raise SystemExit("not found out")
    except d.OutOfStepError as error:
        assert "processes [1] hold" in str(error)
    scales = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    start, aim = torch.ones(2, dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    def step(scale, mean):
        def loss(x): return scale * (x - aim).square().sum()
        def divergence(x): return scale * ((x - start) * (1 + start)).square().sum()
        return trust_region_step(start, loss, divergence, TrustRegion(), mean)
    alone = step(scales.mean(), lambda x: x)
    shared = step(scales[me], d.mean_over_processes)
    torch.testing.assert_close(shared.point, alone.point, atol=1e-12, rtol=0)
    assert shared.tries == alone.tries > 0 and abs(shared.loss - alone.loss) < 1e-12
    policy = GaussianMlp(3, 2, PolicyConfig(hidden=[5, 4]))
    def improved(tasks, mean):
        maml_trpo.mean_over_processes = mean
        learner = MamlTrpo()
        learner.setup(policy, torch.Generator().manual_seed(0))
        learner.theta = learner.theta.detach().double().requires_grad_(True)
        learner.rates = torch.full_like(learner.theta, 0.1)
        acting = learner.theta.detach().expand(6, -1)
        support, query = (made_up_episodes(policy, acting, 6, 3, 6, seed=n) for n in (1, 2))
        learner._improve([support.tasks(tasks)], query.tasks(tasks))
        return learner.theta.detach()
    alone = improved(torch.arange(6), lambda x: x)
    shared = improved(torch.arange(2 * me, 2 * me + 2), d.mean_over_processes)
    torch.testing.assert_close(shared, alone, atol=1e-9, rtol=0)
    assert not torch.equal(improved(torch.arange(2), lambda x: x), alone)
    returns = torch.tensor([[float("nan"), 1.0], [4.0, 4.0]][me % 2])
    assert _mean_of_all(returns) == (1 + 4 + 4 + 1) / 4
    merged = _of_all({"iteration_steps": 10.0, "seconds": float(me), "physics_s": float(me)})
    assert merged == {"iteration_steps": 30.0, "seconds": 2.0, "physics_s": 1.0}
    torch.optim.Adam([leaf])  # imports much, some of which would hold the group
    assert "torch._dynamo" in sys.modules
    if me == 2:
        sys.exit(0)  # without a word
    try:
        d.total_over_processes(torch.ones(1))
    except d.LostProcessError as error:
        assert f"process {me} waited in vain" in str(error)
    else:
        raise SystemExit("nobody was missed")
"""
    done = together(tmp_path, code, processes=3)
    assert done.returncode == 0, done.stderr


def test_one_process_changes_nothing():
    rows = torch.randn(50, 3)
    count, mean, var = moments(rows)
    assert count == 50 and torch.equal(mean, rows.mean(0))
    assert torch.equal(var, rows.var(0, unbiased=False))
    leaf = torch.zeros(2, requires_grad=True)
    mean_gradients([leaf])
    assert leaf.grad is None
    assert distributed.own_part(7) == slice(0, 7) and distributed.agreed(2, dict) == 2


def test_the_fingerprint_sees_every_bit_and_name():
    state = {"a": torch.zeros(3), "b": torch.ones((), dtype=torch.int64)}
    other = state | {"a": torch.tensor([0.0, 0.0, -0.0])}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))
    assert len({fingerprint(x) for x in (state, other, {"a": state["a"], "c": state["b"]})}) == 3
    assert float(fingerprint(state)) == fingerprint(state)  # it is sent as one


FAMILIES = ["navigation_corners", "half_cheetah_body", "reacher_goal_inverted", "pendulum"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_batch_is_collected_as_in_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Native, also where motors are changed on the way, and Gymnasium's."""
    family = build_family(configure("train", [f"env={name}", "env.horizon=3"])["env"], "env")
    tasks = family.sample(4, generator(0, "tasks"))
    policy = GaussianMlp(family.obs_size, family.action_size, PolicyConfig(hidden=[4]))
    params = torch.stack([policy.init(torch.Generator().manual_seed(i)) for i in range(4)])

    def collected(divided: bool, rows: slice) -> list[torch.Tensor]:
        rng = generator(0, "train", 3)
        with TaskBatch(family, tasks, 3, policy, rng, divided=divided) as batch:
            assert [task.id for task in batch.tasks] == [task.id for task in tasks[rows]]
            twice = [batch.collect(params[rows]) for _ in range(2)]
        return [x for e in twice for x in (e.obs, e.action, e.reward, e.final_obs)]

    whole = collected(False, slice(0, 4))
    assert not np.allclose(whole[1][:2], whole[1][2:])  # the parts differ from each other
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows = slice(2 * rank, 2 * rank + 2)
        for one, other in zip(whole, collected(True, rows), strict=True):
            torch.testing.assert_close(other, one[rows], atol=1e-6, rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(collected(False, slice(0, 4)), whole, strict=True))


def test_tasks_must_be_divisible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    distributed.check_divisible(8)
    with pytest.raises(TogetherError, match=r"batch.tasks=6 .* among 4 .* batch.tasks=8"):
        distributed.check_divisible(6)


def test_every_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(TogetherError, match="process 2 of this machine has no GPU, there are 2"),
        distributed.joined("auto"),
    ):
        pass


def test_an_onlooker_touches_nothing(tmp_path: Path):
    run = Onlooker(tmp_path / "r")
    with run.lock():
        run.claim({"a": 1})
        run.truncate_log(0)
        run.log({"x": 1.0})
        run.checkpoints.save({"x": torch.ones(1)}, {"iteration": 1})
        run.note_command("c", "w", 1.0, 1)
    assert run.progress() is None and list(tmp_path.iterdir()) == []
