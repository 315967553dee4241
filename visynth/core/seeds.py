"""Per-sample randomness: an image is a function of its seed, never of the batch, the order or the rank.

Seeds are int64 in [0, 2**63). Noise comes from numpy's Philox counter generator keyed by (seed, stream):
``torch.manual_seed`` keeps only the low 32 bits of a seed and its ``randn`` depends on the CPU's kernels, so
it is not used for samples. A *stream* is a word that keeps uses of one seed apart ("latent", "placement").
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), the Philox-4x64-10 generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import UsageError

if TYPE_CHECKING:
    import torch

LIMIT = 2**63


class Grouped(Protocol):
    """Whatever belongs to a group."""

    @property
    def group(self) -> str: ...


T = TypeVar("T", bound=Grouped)
U = TypeVar("U")


def derive(*parts: object) -> int:
    """A seed in [0, 2**63) from any parts that print the same way every time.

    Example:
        >>> derive("plan", 7) == derive("plan", 7), derive("plan", 7) == derive("plan", 8)
        (True, False)
    """
    digest = blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def checked(seed: int) -> int:
    """A seed, if it is in [0, 2**63).

    Raises:
        UsageError: it is not.
    """
    if not 0 <= int(seed) < LIMIT:
        raise UsageError(f"seed must be in [0, 2**63), but got {seed}.")
    return int(seed)


def rng(seed: int, stream: str = "") -> np.random.Generator:
    """The numpy generator of one sample; global random state is neither read nor changed.

    Args:
        seed: in [0, 2**63). Seeds that differ only above bit 32 differ here too.
        stream: keeps independent uses of one seed apart.

    Example:
        >>> float(rng(1).random()) == float(rng(1 + 2**32).random())
        False
    """
    key = np.array([checked(seed), derive("stream", stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def rngs(seeds: Iterable[int], stream: str = "") -> Iterator[np.random.Generator]:
    """The generators of several samples, one after the other: each is :func:`rng`'s, and valid until the next one.

    One generator is set anew for each seed, which takes a tenth of the time that making one does.

    Example:
        >>> [float(one.random()) for one in rngs([5, 6])] == [float(rng(5).random()), float(rng(6).random())]
        True
    """
    generator = rng(0, stream)
    fresh: Any = generator.bit_generator.state
    for seed in seeds:
        fresh["state"]["key"][0] = checked(seed)
        generator.bit_generator.state = fresh
        yield generator


def noise(seeds: Sequence[int] | torch.Tensor, shape: Sequence[int], stream: str = "noise") -> torch.Tensor:
    """Standard normal noise, one independent draw per seed.

    Args:
        seeds: N integers in [0, 2**63).
        shape: the shape of one sample, for instance ``(3, 64, 64)``.
        stream: keeps independent uses of one seed apart.

    Returns:
        float32 tensor ``[N, *shape]`` on the CPU. Row i depends on ``seeds[i]`` alone.

    Example:
        >>> both = noise([5, 6], (2, 2))
        >>> bool((both[1] == noise([6], (2, 2))[0]).all())
        True
    """
    import torch

    rows = [own.standard_normal(tuple(shape)).astype(np.float32) for own in rngs(map(int, seeds), stream)]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape))


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, rows: NDArray[np.int64], count: int, stream: str = "uniforms") -> NDArray[np.float64]:
    """Uniform numbers of many rows at once: those of a row depend on (seed, stream, row) alone.

    A counter is hashed by SplitMix64's finaliser: Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators" (OOPSLA 2014), figure 17, with the multipliers of its reference implementation. One numpy generator a row
    (:func:`rng`) costs 20 microseconds; this costs about 20 nanoseconds a number.

    Args:
        seed: in [0, 2**63).
        rows: int64 ``[N]`` in [0, 2**63).
        count: numbers a row.
        stream: keeps independent uses of one seed apart.

    Returns:
        float64 ``[N, count]`` in the open interval (0, 1): multiples of 2**-52 plus 2**-53.

    Example:
        >>> both = uniforms(7, np.array([3, 2**40]), 2)
        >>> bool((both[1] == uniforms(7, np.array([2**40]), 2)[0]).all()), both.shape
        (True, (2, 2))
    """
    key = np.uint64(derive(stream, checked(seed)))
    row_keys = _mixed(_mixed(np.asarray(rows, np.uint64) + GOLDEN) ^ key)
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    bits = _mixed(row_keys[:, None] + steps[None, :]) >> np.uint64(12)
    return np.asarray((bits.astype(np.float64) + 0.5) * 2.0**-52)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def by_group(items: Iterable[T]) -> list[list[T]]:
    """Items with a ``group``, one list a group, sorted by the group's name: what :func:`draw_even` draws from."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return [groups[name] for name in sorted(groups)]


def draw_even(groups: Sequence[Sequence[U]], generator: np.random.Generator) -> U:
    """One item, evenly over groups and then within the group: a tile shot twelve times counts no more than one shot
    twice.

    Example:
        >>> sorted({draw_even([["a"], ["b", "c"]], rng(seed)) for seed in range(20)})
        ['a', 'b', 'c']
    """
    group = groups[int(generator.integers(len(groups)))]
    return group[int(generator.integers(len(group)))]


def parse_range(text: str) -> list[int]:
    """Seeds written as ``"0-9,20,30-31"``.

    Example:
        >>> parse_range("0-3,8")
        [0, 1, 2, 3, 8]
    """
    seeds: list[int] = []
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise UsageError(f"seeds must look like '0-99' or '1,5,8-9', but got {text!r}.")
        seeds.extend(range(int(first), int(last if dash else first) + 1))
    return seeds
