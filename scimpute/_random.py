"""Random generators and seeds. This module neither reads nor changes the global generators of numpy and torch."""

from __future__ import annotations

import numpy as np

from . import _check


def generator(random_state: int | np.random.Generator | None) -> np.random.Generator:
    """The generator for all random numbers of a run."""
    if random_state is None or isinstance(random_state, np.random.Generator):
        return np.random.default_rng(random_state)
    if isinstance(random_state, bool | np.bool_) or not isinstance(random_state, int | np.integer):
        raise TypeError(
            f"random_state must be an int, a numpy.random.Generator or None, got {random_state!r} of type {type(random_state).__name__}"
        )
    if random_state > _check.HIGHEST:
        # The result records the seed, and files could not hold a larger number.
        raise ValueError("random_state must be at most 2^63 - 1; pass numpy.random.default_rng(seed) for a seed with more digits")
    if random_state < 0:
        raise ValueError(f"random_state must not be negative, got {random_state if random_state >= -_check.HIGHEST else 'less than -2^63'}")
    return np.random.default_rng(int(random_state))


def seed(rng: np.random.Generator) -> int:
    """A seed for a library that needs an int."""
    return int(rng.integers(2**31 - 1))


def describe(random_state: int | np.random.Generator | None) -> int | str:
    """The entry of ``uns`` for ``random_state``: the seed, or the name of its type."""
    return int(random_state) if isinstance(random_state, int | np.integer) else type(random_state).__name__
