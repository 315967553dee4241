"""Random numbers of rows: a row's own numbers follow from (seed, row number, attempt, what they are for) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.tabular.columns import Floats

Rows = NDArray[np.int64]
BLOCK = 1024  # rows computed together
FAR = 2**48  # more than any row's number: keeps the attempts of a row apart


@dataclass(frozen=True)
class Draw:
    """Random numbers of one block of rows.

    Attributes:
        keys: one number for each row and attempt, int64 ``[N]``.
        seed: of the sample.
        group: number of the block, -1 for redraws: what rows of a block share follows from it.
    """

    keys: Rows
    seed: int
    group: int

    def uniforms(self, count: int, stream: str) -> Floats:
        """Uniform numbers ``[N, count]`` in (0, 1).

        Over the rows of a whole block, each of the ``count`` numbers falls once into each of as many equal parts (Latin
        hypercube sampling: McKay, Beckman and Conover, Technometrics 1979): shares come out nearer to what they should be than
        with independent rows. Redraws are independent.
        """
        if self.group < 0:
            return seeding.uniforms(self.seed, self.keys, count, stream)
        block = self.group * BLOCK + np.arange(BLOCK)
        rank = seeding.uniforms(self.seed, block, count, f"{stream}/part").argsort(axis=0).argsort(axis=0)
        inside = seeding.uniforms(self.seed, block, count, stream)
        return np.asarray((rank + inside)[self.keys - self.group * BLOCK] / BLOCK)

    def normals(self, count: int, stream: str) -> Floats:
        """Standard normal numbers ``[N, count]``."""
        from scipy.special import ndtri

        return np.asarray(ndtri(self.uniforms(count, stream)), np.float64)

    def shared(self, stream: str) -> np.random.Generator:
        """A generator that all rows of the block share."""
        return seeding.rng(self.seed, f"{stream}/{self.group}")


def check_count(n: object) -> None:
    """Refuse what is no number of rows.

    Raises:
        UsageError: it is no whole number, or below 1.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise UsageError(f"n must be a whole number of at least 1, but got {n!r}.")
