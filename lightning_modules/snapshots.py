"""Stored weight averages of a run, and any other average made of them afterwards (EDM2, section 3.2).

A snapshot is ``<run>/ema/<images>-<std>.safetensors``. Snapshots are taken on a geometric ladder of images seen,
because a power-function average only asks for times relative to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from visynth.core.errors import DataError, UsageError
from visynth.core.files import write_bytes
from visynth.networks.ema import gamma_of, posthoc

RATIO = 1.25  # between the times of neighbouring snapshots
STDS = (0.05, 0.10)  # EDM2, section 3.2: two widths are enough to make the others
KEPT = 30.0  # snapshots older than the last one by this factor weigh nothing and are removed


def rung(images: int, first: int) -> int:
    """The number of the last rung of the ladder at or below ``images``; -1 below the first.

    Example:
        >>> rung(99, 100), rung(100, 100), rung(156, 100), rung(157, 100)
        (-1, 0, 1, 2)
    """
    count = -1
    while first * RATIO ** (count + 1) <= images:
        count += 1
    return count


def write(folder: Path, images: int, std: float, weights: Mapping[str, Tensor]) -> None:
    """Store one average, and remove those that are too old to matter."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_bytes(folder / f"{images:012d}-{std:.3f}.safetensors", save(kept))
    for path, (time, _) in stored(folder).items():
        if time * KEPT < images:
            path.unlink(missing_ok=True)


def stored(folder: Path) -> dict[Path, tuple[int, float]]:
    """(images, std) of every snapshot."""
    return {
        path: (int(path.stem.split("-")[0]), float(path.stem.split("-")[1]))
        for path in sorted(folder.glob("*.safetensors"))
    }


def reconstruct(folder: Path, images: int, std: float, now: Mapping[float, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights averaged with relative width ``std`` over training up to ``images``.

    Args:
        folder: of snapshots; those after ``images`` are passed over.
        images: when the average ends.
        std: in (0, 0.28).
        now: the averages held at ``images``, by their std.

    Raises:
        UsageError: an impossible width.
        DataError: a width other than those held, without any snapshot.
    """
    if not 0 < std <= 0.28:
        raise UsageError(f"the relative width of a weight average must be in (0, 0.28], but got {std}.")
    if std in now:
        return {name: tensor.detach().cpu().clone() for name, tensor in now[std].items()}
    snapshots = {path: key for path, key in stored(folder).items() if key[0] < images}
    if not snapshots:
        raise DataError(
            f"{folder} holds no snapshots from before image {images}, so only the averages of std {sorted(now)} can be "
            "had. Train longer, or choose one of those."
        )
    times = [(float(t), gamma_of(s)) for t, s in snapshots.values()] + [(float(images), gamma_of(s)) for s in now]
    factors = posthoc(times, float(images), gamma_of(std))
    total: dict[str, Tensor] = {}
    readers: list[Callable[[], Mapping[str, Tensor]]] = [partial(_read, path) for path in snapshots]
    readers += [partial(dict, weights) for weights in now.values()]
    for factor, read in zip(factors, readers, strict=True):
        for name, tensor in read().items():
            part = tensor.detach().cpu().to(torch.float64) * factor
            total[name] = total[name] + part if name in total else part
    return {name: tensor.to(torch.float32) for name, tensor in total.items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(path.read_bytes())
