"""The nearest of very many vectors, exactly: one pass over them, at the speed of the memory."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256
# From so many rows on, choosing the best of all takes longer than first choosing the best blocks.
_MANY = 16384


class Nearest:
    """Looks for the nearest of ``keys [N, D]``, which must not change.

    The keys lie column by column, with minus their squared length below them, so that one product
    with ``(2 q, 1)`` gives each row's ``2 q.k - |k|^2``, the negative squared distance but for what
    is the query's alone.
    """

    def __init__(self, keys: Tensor) -> None:
        """A row of NaN is never found."""
        self._keys, (n, size) = keys, keys.shape
        padded = n if n < _MANY else -(-n // _BLOCK) * _BLOCK
        self._table = keys.new_zeros(size + 1, padded)
        finite = torch.isfinite(keys).all(-1)
        self._table[:size, :n] = keys.mT.masked_fill(~finite, 0.0)
        self._table[size, :n] = -keys.square().sum(-1).masked_fill(~finite, torch.inf)
        self._table[size, n:] = -torch.inf

    def search(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances and indices ``[T, k]`` of the nearest to ``query [T, D]``, in order.

        Where there is none (k > N, or the query is not finite): infinitely far, and index -1.
        """
        known = torch.isfinite(query).all(-1, keepdim=True)
        if not bool(known.all()):
            apart, index = self.search(query.masked_fill(~known, 0.0), k)
            return apart.masked_fill(~known, torch.inf), index.masked_fill(~known, -1)
        values, index = self._best(self._product(query), min(k, len(self._keys)))
        apart, order = (self._keys[index] - query[:, None]).square_().sum(-1).sort(-1)
        index = index.gather(-1, order)
        if bool((values[:, -1:] == -torch.inf).any()):  # fewer rows are known than asked for
            apart = apart.nan_to_num(nan=torch.inf)
            index = index.masked_fill(apart == torch.inf, -1)
        missing = (0, k - index.shape[1])
        if missing[1] == 0:
            return apart, index
        pad = torch.nn.functional.pad
        return pad(apart, missing, value=torch.inf), pad(index, missing, value=-1)

    def _product(self, query: Tensor) -> Tensor:
        """Of each row, what is larger the nearer it is, ``[T, N]``; never NaN."""
        asked = torch.nn.functional.pad(2 * query, (0, 1), value=1.0)
        if len(asked) == 1 and asked.device.type == "cpu":
            # For one vector numpy's BLAS is faster than torch's (MKL) on AMD processors.
            return torch.from_numpy(asked[0].numpy() @ self._table.numpy())[None]
        return asked @ self._table

    def _best(self, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``topk``; over many rows by blocks, since the best k lie in k blocks at most."""
        n = score.shape[-1]
        if n < _MANY or k * _BLOCK > n or k == 0:
            return score.topk(k, dim=-1)
        blocks = score.unflatten(-1, (-1, _BLOCK))
        best = blocks.amax(-1).topk(k, dim=-1).indices
        among = blocks.gather(-2, best[..., None].expand(-1, -1, _BLOCK)).flatten(-2)
        values, place = among.topk(k, dim=-1)
        index = best.gather(-1, place // _BLOCK) * _BLOCK + place % _BLOCK
        return values, index.clamp(max=len(self._keys) - 1)
