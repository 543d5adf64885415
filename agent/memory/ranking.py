"""The best rows of many; what is not a number is never among them."""

from __future__ import annotations

import torch
from torch import Tensor


def top_rows(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of ``score [..., N]``: scores and indices ``[..., k]``, best first.

    NaN counts as -inf (``torch.topk`` would rank it first). A score of -inf means "no row": there
    is nothing left to choose, as also for k > N. Its index is -1.
    """
    if k < 0:
        raise ValueError(f"cannot choose the best {k} rows")
    found = min(k, score.shape[-1])
    clean = torch.where(score.isnan(), -torch.inf, score)
    best = clean.topk(found, dim=-1)
    missing = (0, k - found)
    values = torch.nn.functional.pad(best.values, missing, value=-torch.inf)
    index = torch.nn.functional.pad(best.indices, missing, value=-1)
    return values, index.masked_fill(values == -torch.inf, -1)
