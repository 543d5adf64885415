"""Every learner, and lives, on a fake accelerator, where a forgotten device is an error.

The accelerator changes torch, so all cases are run by one process of their own, this file as a
program; each is told of in a line of JSON, by which its test passes or fails.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration

from agent.cli import configure
from agent.config import build
from agent.continual.engram import Engram
from agent.continual.methods.matching import Matching
from agent.continual.methods.reptile import ReptileOnline
from agent.evaluate import EvaluationSize, adaptation_curves, evaluate
from agent.learners.anil import Anil
from agent.learners.context import Context
from agent.learners.maml import Maml
from agent.learners.rl2 import Rl2
from agent.learners.varibad import Varibad
from agent.memory.consolidate import ConsolidateConfig
from agent.memory.key.base import IndistinguishableTasksError
from agent.memory.key.likelihood import Likelihood
from agent.memory.probes import TrainingProbes
from agent.policy import PolicyConfig
from agent.protect import Protection
from agent.run import Checkpoints
from agent.seeding import generator
from agent.settings import TrainSettings
from agent.train import (
    BatchSize,
    Calibration,
    make_policy,
    meta_iteration,
    new_learner,
    probe_twice,
)
from envs.navigation import Navigation
from envs.task import Param
from tests.fake_accelerator import SETUP, DeviceError, fake_accelerator, on_device
from tests.test_distill import remember, teacher
from tests.test_memory_learners import keeps_all, visit

ROOT = Path(__file__).parents[1]
LEARNERS = sorted(path.stem for path in (ROOT / "configs" / "learner").glob("*.yaml"))
VARIANTS = {"rl2": ["cell=lstm", "deltas=true"], "context": ["deltas=true"]}
ON_CPU = re.compile(r"adam\.\d+\.step|updates|noise")
"""Torch keeps Adam's count of steps there; a count of updates; where a CPU generator stands."""
BATCH = BatchSize(tasks=2, episodes=2)
POLICY = PolicyConfig(hidden=[8])


def family(horizon: int) -> Navigation:
    """Goals on the unit circle."""
    angle = Param(to="attr:angle", low=0.0, high=2 * math.pi)
    return Navigation(name="navigation", horizon=horizon, params={"angle": angle})


def check_placed(state: Mapping[str, Tensor]) -> None:
    """That a state is on the device."""
    wrong = [k for k, v in state.items() if not on_device(v) and not ON_CPU.fullmatch(k)]
    assert not wrong, f"not on the device: {wrong}"


def shortened(learner: Any) -> Any:
    """A learner that passes over its episodes a few times only."""
    for name in {"outer_epochs", "minibatches"} & vars(learner).keys():
        setattr(learner, name, min(2, getattr(learner, name)))
    return learner


def learns(name: str, setting: str | None, device: torch.device, folder: Path) -> None:
    """Train, evaluate, calibrate, save, load, go on."""
    typed = ["env=navigation", f"learner={name}"]
    typed += [f"learner.{setting}"] if setting else []
    if name == "distill":
        random = torch.Generator().manual_seed(0)
        policies = [teacher([8], side) for side in (-1.0, 1.0)]
        rows = [(p, p.init(random), torch.randn(9, 2, generator=random)) for p in policies]
        typed.append(f"learner.memory={remember(folder / 'memory', rows)}")
    config = build(configure("train", typed), "", TrainSettings)
    tasks = family(4)

    def made() -> Any:
        learner = shortened(build(config.learner, "learner"))
        policy = make_policy(tasks, POLICY, learner.sees_task, device, learner.make_policy)
        return new_learner(learner, policy, 0)

    learner = made()
    for n in range(2):
        meta_iteration(learner, tasks, BATCH, 0, n)
    check_placed(learner.state_dict())
    protection = Protection(kl=0.1)
    size = EvaluationSize(
        tasks=2, steps=2, episodes=2, draws=1, eval_episodes=1, protection=protection
    )
    if learner.sees_task:  # it is shown what the beginner beside it in ``evaluate`` is not
        chosen, start = tasks.sample(2, generator(0, "tasks"), "heldout"), learner.theta.detach()
        adaptation_curves(learner, tasks, chosen, start.expand(2, -1), size, 0)
    else:
        evaluate(learner, tasks, size, "heldout", 0)
    state = learner.state_dict()
    if not learner.sees_task:
        probes = probe_twice(learner, tasks, Calibration(tasks=8, episodes=1), 0)[0]
        with suppress(IndistinguishableTasksError):  # as training does
            probes.fit(Likelihood())
        state |= {f"probes.{k}": v for k, v in probes.state_dict().items()}
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(state, {})
    saved = checkpoints.load()
    assert saved is not None and not any(on_device(value) for value in saved[0].values())
    learner = made()
    learner.load_state_dict(saved[0])
    check_placed(learner.state_dict())
    meta_iteration(learner, tasks, BATCH, 0, 2)
    check_placed(learner.state_dict())
    own = {k.removeprefix("probes."): v for k, v in saved[0].items() if k.startswith("probes.")}
    if own:
        check_placed(TrainingProbes.from_state(own, learner.policy.normalizer).state_dict())


def lives(
    kind: Callable[[], Any], agent: Callable[[], Any], device: torch.device, folder: Path
) -> None:
    """Two visits, one more after the agent has been saved and loaded, and consolidation."""
    tasks, learner = family(8), shortened(kind())
    policy = make_policy(tasks, POLICY, False, device, learner.make_policy)
    new_learner(learner, policy, 0)
    meta_iteration(learner, tasks, BATCH, 0, 0)
    probes = probe_twice(learner, tasks, Calibration(tasks=8, episodes=2), 0)[0]

    def visits(agent: Any, names: str, first: int) -> Any:
        for number, name in enumerate(names, first):
            with visit(tasks, policy, name, number) as here:
                agent.begin(here)
                while here.remaining > 0 or getattr(agent, "pending", False):
                    agent.improve(here)
                agent.end()
        return agent

    one, other = agent(), agent()
    one.setup(learner, probes, 0)
    visits(one, "AB", 0)
    state = {name: value.detach().cpu().clone() for name, value in one.state_dict().items()}
    other.setup(learner, probes, 0)
    other.load_state_dict(state)
    visits(other, "A", 2)
    assert on_device(other.params)
    if isinstance(other, Engram):
        assert len(other.store) > 0
        learner.consolidate(other.store.bank, ConsolidateConfig(frequent=1))
        assert on_device(learner.theta)


@contextmanager
def refused(kinds: type[Exception] = DeviceError) -> Iterator[None]:
    """That an operation is."""
    try:
        yield
    except kinds:
        return
    raise AssertionError("not refused")


def refuses(device: torch.device, folder: Path) -> None:
    """What CUDA refuses, the fake does; what CUDA takes, it does too."""
    here, there, one = torch.ones(3, device=device), torch.ones(3), torch.tensor(1.0)
    index = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close((here * one + 2.0).cpu(), there * 3)
    assert here[index].tolist() == [1.0, 1.0] and on_device(here[index])
    here[index] = one
    here.copy_(there)
    for operation in (
        lambda: here + there,
        lambda: torch.stack([here.sum(), one]),
        lambda: one.add_(here.sum()),
        lambda: there[index.to(device)],
        lambda: here.index_put_((index,), there[:2]),
        lambda: here.gather(0, index),
        lambda: torch.rand(2, device=device, generator=torch.Generator()),
        lambda: here.normal_(generator=torch.Generator()),
    ):
        with refused():
            operation()
    with refused(Exception):
        here.numpy()


def recurs(device: torch.device, folder: Path) -> None:
    """The RNNs are torch's; the state must be contiguous."""
    random = torch.Generator().manual_seed(0)
    x, state = (torch.randn(*shape, generator=random) for shape in ((4, 5, 2), (1, 4, 3)))
    gru, cell = nn.GRU(2, 3, batch_first=True), nn.LSTMCell(2, 3)
    outputs = [*gru(x, state), *cell(x[:, 0], (state[0], 2 * state[0]))]
    x, state, gru, cell = x.to(device), state.to(device), gru.to(device), cell.to(device)
    found = [*gru(x, state), *cell(x[:, 0], (state[0], 2 * state[0]))]
    for one, other in zip(found, outputs, strict=True):
        assert on_device(one)
        torch.testing.assert_close(one.cpu(), other)
    with refused():
        gru(x, state[:, :1].expand(-1, 4, -1))


LIVES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "engram of maml": (Maml, keeps_all),
    "engram of anil": (Anil, keeps_all),
    "engram of context": (Context, keeps_all),
    "engram of context with deltas": (partial(Context, deltas=True), keeps_all),
    "engram of rl2": (Rl2, keeps_all),
    "engram of rl2 with an lstm": (partial(Rl2, cell="lstm"), keeps_all),
    "engram of rl2 with deltas": (partial(Rl2, deltas=True), keeps_all),
    "engram of varibad": (Varibad, keeps_all),
    "engram, protected": (Maml, partial(Engram, episodes=4, protect=Protection(kl=0.1))),
    "matching of maml": (Maml, partial(keeps_all, Matching)),
    "matching of context": (Context, partial(keeps_all, Matching)),
    "reptile": (Maml, ReptileOnline),
}
CASES: dict[str, Callable[[torch.device, Path], None]] = {
    "the fake refuses what CUDA does": refuses,
    "RNNs": recurs,
    **{name: partial(learns, name, None) for name in LEARNERS},
    **{
        f"{name} {more}": partial(learns, name, more)
        for name in VARIANTS
        for more in VARIANTS[name]
    },
    **{name: partial(lives, *made) for name, made in LIVES.items()},
}


def outcome(case: str, device: torch.device) -> dict[str, Any]:
    """What became of a case; ``error`` is None if it passed."""
    began, error = time.process_time(), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            CASES[case](device, Path(folder))
        except Exception:
            error = traceback.format_exc()
    return {"case": case, "error": error, "seconds": time.process_time() - began}


class ShortLbfgs(torch.optim.LBFGS):
    """Of few iterations: each is thousands of operations."""

    def __init__(self, params: Any, **settings: Any) -> None:
        settings["max_iter"] = 20
        super().__init__(params, **settings)


def main(cases: list[str]) -> None:
    """Run cases; a line of JSON for each."""
    torch.set_num_threads(1)
    with fake_accelerator() as device, patch.object(torch.optim, "LBFGS", ShortLbfgs):
        for case in cases or CASES:
            print(json.dumps(outcome(case, device)), flush=True)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """The errors of the cases that are asked for."""
    if not hasattr(backend_registration, SETUP):
        pytest.skip(f"this torch has no backend_registration.{SETUP}")
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    cases = [call.params["case"] for call in calls if call and call.params.get("case") in CASES]
    command = [sys.executable, "-m", "tests.test_accelerator", *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    found = {line["case"]: line["error"] for line in told}
    return {case: f"no result: {done.stderr[-3000:]}" for case in cases} | found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_runs_on_an_accelerator(outcomes: dict[str, str | None], case: str):
    error = outcomes[case]
    assert error is None, error


if __name__ == "__main__":
    main(sys.argv[1:])
