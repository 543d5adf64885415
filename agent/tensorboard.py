"""The metrics of a run for TensorBoard, beside ``metrics.jsonl``; optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from agent.config import ConfigError


def require_tensorboard() -> None:
    """Say what is missing before anything is trained.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard=true: the package tensorboard is not installed; "
            "pip install 'engram-rl[tensorboard]', or use tensorboard=false"
        )


@contextmanager
def tensorboard_log(
    folder: Path | None, env_steps: int
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """A function of (metrics, env steps) that adds to the log in ``folder``; None: adds nothing.

    What the log holds of more than ``env_steps`` is withdrawn: it was made after the checkpoint
    that training continues from.
    """
    if folder is None:
        yield lambda metrics, env_steps: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=env_steps + 1) as writer:

        def add(metrics: Mapping[str, float], env_steps: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, env_steps)
            writer.flush()

        yield add
