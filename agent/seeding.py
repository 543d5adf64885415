"""Randomness: one seed, spawned into named streams by purpose and counter, and none global.

A stream is a function of (seed, purpose, counters) alone, so no generator's state has to be saved,
and how long training took does not change an evaluation.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

Purpose = Literal[
    "init",
    "train",
    "calibration",
    "tasks",
    "evaluation",
    "adaptation",
    "stream",
    "visit",
    "reader",
]
_PURPOSES = get_args(Purpose)


def generator(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """The stream of random numbers for one purpose, such as training iteration 7."""
    key = (_PURPOSES.index(purpose), *counters)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def torch_generator(seed: int, purpose: Purpose, *counters: int) -> torch.Generator:
    """The same for torch, on the CPU."""
    return torch.Generator().manual_seed(int(generator(seed, purpose, *counters).integers(2**62)))
