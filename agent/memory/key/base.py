"""What every key is: evidence of a task that adds up, and a score of "the same task" from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from agent.policy import ObsNormalizer
from agent.types import Trajectories

FEWEST_TASKS = 8
"""Training tasks below which nothing can be said of how tasks differ."""


class IndistinguishableTasksError(ValueError):
    """Probes of different tasks are no further apart than probes of the same task."""


class NotFittedError(RuntimeError):
    """A key was used before it had seen the training tasks, or loaded what it had learned."""


class Key(Protocol):
    """Says which task it is. Settings are fields; what was fitted is in ``state_dict``.

    An evidence is a flat float32 vector, so that a row of any memory can hold it. A row of NaN is
    the evidence of a task of which nothing is known.
    """

    @property
    def size(self) -> int:
        """D: numbers in one evidence. Known once fitted."""
        ...

    @property
    def version(self) -> str:
        """Digest of the kind, the settings and all that was fitted.

        Evidence of different versions is never compared (see ``score_rows``).
        """
        ...

    def fit(
        self,
        probes: Sequence[Trajectories],
        normalizer: ObsNormalizer,
        given: Tensor | None = None,
    ) -> None:
        """Learn how tasks differ, from at least two independent probes of the same M tasks.

        Each probe is ``[M, E, H]``. ``given [M, d]`` are the descriptors: keys that are no oracles
        may use them here, to see which training tasks are one and the same, and nowhere else. The
        normaliser is copied: what it learns later does not change the key.

        Raises:
            IndistinguishableTasksError: Fewer than ``FEWEST_TASKS`` known tasks, or all look alike.
        """
        ...

    def encode(self, episodes: Trajectories, given: Tensor | None = None) -> Tensor:
        """Evidence ``[T, D]`` float32; a row of NaN where nothing is known (all diverged)."""
        ...

    def joined(self, first: Tensor, more: Tensor) -> Tensor:
        """The evidence ``[T, D]`` of both together, as if their episodes had come at once.

        A row of NaN adds nothing to the other.
        """
        ...

    def score(self, query: Tensor, rows: Tensor) -> Tensor:
        """Log-likelihood ratio ``[T, N]`` of "the same task as the row" to "a new task".

        From ``query [T, D]`` and ``rows [N, D]``; not calibrated (see ``posterior.Calibration``).
        -inf where the query or the row is not finite.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that was fitted, as plain tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another key of the same kind and settings learned."""
        ...


def digest(kind: str, settings: Mapping[str, object], state: Mapping[str, Tensor]) -> str:
    """A short hex name of exactly this key, for ``Key.version``.

    ``settings`` must be plain values; the device that the state lies on makes no difference.
    """
    told = hashlib.sha256(repr((kind, sorted(settings.items()))).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        told.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        told.update(value.numpy().tobytes())
    return told.hexdigest()[:16]


def known(episodes: Trajectories) -> Tensor:
    """``[T]`` bool: whether a task has any step that can be learned from."""
    return episodes.mask.sum((1, 2)) > 0


def finite(evidence: Tensor) -> Tensor:
    """``[T]`` bool: whether an evidence ``[T, D]`` says anything."""
    return torch.isfinite(evidence).all(-1)


def same_probes(evidence: Sequence[Tensor]) -> Tensor:
    """Evidence ``[R, M, D]`` of R probes of the tasks of which all probes say something.

    Raises:
        IndistinguishableTasksError: They are not at least two probes of ``FEWEST_TASKS`` tasks.
    """
    shapes = [tuple(e.shape) for e in evidence]
    if len(evidence) < 2 or len(set(shapes)) > 1:
        raise IndistinguishableTasksError(
            f"need at least two independent probes of the same tasks, got evidence {shapes}"
        )
    stacked = torch.stack(list(evidence))
    stacked = stacked[:, torch.isfinite(stacked).all(-1).all(0)]
    if stacked.shape[1] < FEWEST_TASKS:
        raise IndistinguishableTasksError(
            f"need two probes of at least {FEWEST_TASKS} tasks that did not all diverge, "
            f"got {stacked.shape[1]} of {shapes[0][0]}"
        )
    return stacked


def same_task(given: Tensor | None, kept: Tensor) -> Tensor:
    """``[M, M]`` bool: which of the training tasks that are kept (``kept [m]`` bool) are one task.

    Those with the same descriptors ``given [m, d]``; without descriptors, each with itself alone.
    """
    if given is None:
        return torch.eye(int(kept.sum()), dtype=torch.bool, device=kept.device)
    told = given[kept]
    return (told[:, None] == told[None]).all(-1)


def where_known(score: Tensor, query: Tensor, rows: Tensor) -> Tensor:
    """The score ``[T, N]`` with -inf wherever the query or the row says nothing."""
    sound = finite(query)[:, None] & finite(rows)[None] & torch.isfinite(score)
    return score.masked_fill(~sound, -torch.inf)


def score_rows(key: Key, query: Tensor, rows: Tensor, versions: Sequence[str]) -> Tensor:
    """``key.score`` where a row was made by this very key, else -inf: never compared.

    ``versions`` name the key that made each of the N rows. Rows of other versions may hold anything
    in their ``[N, D]``; they are not looked at.
    """
    if len(versions) != len(rows):
        raise ValueError(f"{len(rows)} rows, but {len(versions)} versions of their keys")
    version = key.version
    if set(versions) == {version}:  # the usual case, without a copy of all rows
        return key.score(query, rows[:, : key.size]).double()
    own = [i for i, made_by in enumerate(versions) if made_by == version]
    score = torch.full(
        (len(query), len(rows)), -torch.inf, dtype=torch.float64, device=query.device
    )
    if own:
        index = torch.tensor(own, device=rows.device)
        score[:, index.to(score.device)] = key.score(query, rows[index][:, : key.size]).double()
    return score
