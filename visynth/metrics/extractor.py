"""An extractor: a frozen network as a function from images to feature maps, and how images are prepared for it.

Images enter whole, at native scale or shrunk to a resolution in both directions alike, padded by reflection to a
multiple of 32: a fully convolutional network needs neither cropping nor squashing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visynth.core.errors import UsageError
from visynth.core.pictures import resize

Array = NDArray[Any]
Floats = NDArray[np.float32]
K = TypeVar("K")
T = TypeVar("T")
STRIDE = 32
NATIVE_LIMIT = 512  # pixels of the square of equal area above which even "native" shrinks
POOLS = ("mean", "max")  # of the last maps
PATCH = 64  # numbers of a patch
PIXELS = 200_000  # of the images that one core takes at a time, and
MOST = 4  # of them
FINER = ("max", "min")  # of those at finer strides: a small defect is a peak or a hole there, and lost in a mean


@dataclass(frozen=True)
class Described:
    """What one pass gives of N images.

    Attributes:
        pooled: float32 ``[N, sum of widths]``: mean and maximum of the last maps, then maximum and minimum of those at finer
            strides.
        maps: the last ones, float32 ``[N, D, h, w]``.
        patches: float16 ``[N, P, PATCH]``, see :func:`patches_of`; None where they were not asked for, or cannot be had.
    """

    pooled: Tensor
    maps: Tensor
    patches: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A frozen convolutional network as a function from images to feature maps.

    Attributes:
        name: what results and caches are named by.
        network: float32 ``[N, 3, H, W]`` in [-1, 1] or ImageNet-normalised -> ``[N, D, H / 32, W / 32]``.
        width: D.
        trunk: the network up to its last blocks, and
        tail: the rest, or None where it cannot be parted.
        stages: the network in parts that end at finer strides and at the last; empty where only the last maps are had.
        finer: strides and channels of the parts before the last.
        mean: subtracted from values in [0, 1].
        std: then divided by.
        resizes: whether it brings images to a size by itself; then it gets them as they are.
        turned: whether its maps, and those of its parts, come out turned by 180 degrees; what this class returns is turned back,
            but for activations that only its own tail is fed with.
        threads: whether it keeps nothing from one call to the next, so that several threads may call it at once.
    """

    name: str
    network: nn.Module
    width: int
    mean: float = 0.5
    std: float = 0.5
    trunk: nn.Module | None = None
    tail: nn.Module | None = None
    resizes: bool = False
    stages: tuple[nn.Module, ...] = ()
    finer: tuple[tuple[int, int], ...] = ()
    turned: bool = False
    threads: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Eight hex digits of its weights: what was kept of other weights under the same name is not its own."""
        digest = sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:8]

    @property
    def pools(self) -> tuple[tuple[str, int], ...]:
        """Names and widths of the pooled features, in order."""
        last = tuple((pool, self.width) for pool in POOLS)
        return last + tuple((f"{pool}@{stride}", width) for stride, width in self.finer for pool in FINER)

    def described(self, images: Sequence[Floats], *, patches: bool = False) -> Described:
        """All that is had of images by one pass; they are as :meth:`maps` takes them.

        Args:
            images: ``[H, W, 1 or 3]`` of one size.
            patches: whether those are wanted.
        """
        if not self.stages:
            maps = self.maps(images)
            return Described(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1), maps)

        def describe(values: Tensor) -> tuple[Tensor, ...]:
            parts, finer = [], []
            for stage in self.stages:
                values = stage(values)
                finer.append(self._upright(values))
                parts += [values.amax(dim=(2, 3)), values.amin(dim=(2, 3))]
            parts = [values.mean(dim=(2, 3)), parts[-2], *parts[:-2]]
            found = (patches_of(finer[:-1]),) if patches and len(finer) > 1 else ()
            return torch.cat(parts, dim=1).float(), finer[-1].float(), *found

        return Described(*self._by_parts(describe, images))

    def trunk_of(self, images: Sequence[Floats]) -> Tensor:
        """Activations before the last blocks, ``[N, C, h, w]``: input of fine-tuning."""
        if self.trunk is None:
            raise UsageError(f"{self.name} does not say where its last blocks begin, so they cannot be fine-tuned.")
        trunk = self.trunk
        (activations,) = self._by_parts(lambda values: (trunk(values).float(),), images)
        return activations

    def maps(self, images: Sequence[Floats]) -> Tensor:
        """Feature maps ``[N, D, h, w]`` of images ``[H, W, 1 or 3]`` of one size with values in [0, 1]."""
        (maps,) = self._by_parts(lambda values: (self._upright(self.network(values)).float(),), images)
        return maps

    def prepare(self, image: Array, resolution: int) -> Floats:
        """An image as :meth:`maps` takes it, see :func:`prepare`."""
        if self.resizes:
            return (image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]).astype(np.float32) / np.float32(
                np.iinfo(image.dtype).max
            )
        return prepare(image, resolution)

    def each(self, calls: Iterable[tuple[K, Callable[[], T]]], ahead: int = 8) -> Iterator[tuple[K, T]]:
        """What comes of calls on this extractor, in their order, each with its key: on a CPU as many run at a time as there are
        cores, each on one; elsewhere one after the other.

        Images of many sizes make small batches, of which one does not keep several cores busy.

        Args:
            calls: with their keys; they are asked for as they are needed.
            ahead: that wait for a core, or to be taken, at most.
        """
        cores, device = torch.get_num_threads(), next((p.device.type for p in self.network.parameters()), "cpu")
        if cores == 1 or not self.threads or device != "cpu":
            yield from ((key, call()) for key, call in calls)
            return
        due: deque[tuple[K, Future[T]]] = deque()
        # Threads of this work alone: those of a kept pool would be missing in a forked process.
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for key, call in calls:
                    due.append((key, pool.submit(call)))
                    if len(due) > ahead:
                        first, found = due.popleft()
                        yield first, found.result()
                yield from ((key, found.result()) for key, found in due)
        finally:
            torch.set_num_threads(cores)

    def _upright(self, maps: Tensor) -> Tensor:
        return maps.flip(2, 3) if self.turned else maps

    def _by_parts(self, work: Callable[[Tensor], tuple[Tensor, ...]], images: Sequence[Floats]) -> tuple[Tensor, ...]:
        """What work gives of all images. On a CPU each core takes a few of them: a core's cache holds the maps of few images,
        and one image's small maps do not keep several cores busy."""
        batch = self._batch(images)
        few = max(1, min(MOST, PIXELS // max(batch.shape[2] * batch.shape[3], 1)))

        def run(part: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return tuple(value.cpu() for value in work(part))

        if batch.device.type != "cpu":
            return run(batch)
        parts = torch.split(batch, few)
        if len(parts) == 1:
            return run(batch)
        found = [values for _, values in self.each((k, partial(run, part)) for k, part in enumerate(parts))]
        return tuple(torch.cat(values) for values in zip(*found, strict=True))

    def _batch(self, images: Sequence[Floats]) -> Tensor:
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        device = next((p.device for p in self.network.parameters()), batch.device)
        values = ((batch.to(device) - self.mean) / self.std).expand(-1, 3, -1, -1)
        return values.contiguous(memory_format=torch.channels_last)


def patches_of(maps: Sequence[Tensor]) -> Tensor:
    """Patches of images: their maps at finer strides on the grid of the last of them, averaged over 3x3 places.

    Of a map with smaller places mean and maximum are taken, since a defect of few pixels is a peak there. All are projected
    to :data:`PATCH` numbers by one fixed random matrix, which keeps distances (Johnson and Lindenstrauss, 1984).

    Args:
        maps: ``[N, C, h, w]`` each, from fine to coarse.

    Returns:
        float16 ``[N, h * w of the last, PATCH]``.
    """
    side = int(maps[-1].shape[2]), int(maps[-1].shape[3])
    blocks = []
    for values in maps:
        small = nn.functional.adaptive_avg_pool2d(values, side) if tuple(values.shape[2:]) != side else values
        blocks.append(nn.functional.avg_pool2d(small, 3, 1, 1, count_include_pad=False))
        if tuple(values.shape[2:]) != side:
            blocks.append(nn.functional.adaptive_max_pool2d(values, side))
    joined = torch.cat([block.float() / block.shape[1] ** 0.5 for block in blocks], dim=1)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(joined.shape[1], PATCH, generator=generator).to(joined.device) / PATCH**0.5
    patches: Tensor = joined.flatten(2).transpose(1, 2) @ matrix
    return patches.to(torch.float16)


def prepare(image: Array, resolution: int) -> Floats:
    """An image as float32 ``[H', W', 1 or 3]`` in [0, 1], whole, its proportions kept.

    Args:
        image: ``[H, W, C]`` uint8 or uint16. Of two channels the first, of more than three the first three are used.
        resolution: side of the square of equal area to shrink or grow to; 0 keeps native scale up to 512.
    """
    height, width = image.shape[:2]
    scale = resolution / (height * width) ** 0.5 if resolution else min(1.0, NATIVE_LIMIT / (height * width) ** 0.5)
    channels = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
    top = np.float32(np.iinfo(image.dtype).max)
    values: Array = channels.astype(np.float32) / top
    if scale != 1.0:
        side = max(1, round(width * scale)), max(1, round(height * scale))
        values = resize(values, (side[1], side[0]))
    bottom, right = (-length % STRIDE for length in values.shape[:2])
    # Reflected by index, so that it works in an image smaller than its padding, too.
    rows, columns = (
        _reflected(length, length + more) for length, more in zip(values.shape[:2], (bottom, right), strict=True)
    )
    return np.ascontiguousarray(values[rows][:, columns])


def prepare_square(image: Array, side: int) -> Floats:
    """An image on a ``side`` x ``side`` square: its longer side fits, the shorter one is padded by reflection."""
    height, width = image.shape[:2]
    small = (
        prepare(image, 0)
        if side <= 0
        else prepare(image, max(1, round(side * (height * width) ** 0.5 / max(height, width))))
    )
    rows, columns = (_reflected(length, side) for length in small.shape[:2])
    return np.ascontiguousarray(small[rows][:, columns])


def _reflected(length: int, wanted: int) -> NDArray[np.int64]:
    """Positions 0 .. wanted - 1 folded back into a row of ``length``, without repeating the border."""
    period = max(2 * (length - 1), 1)
    positions = np.arange(wanted) % period
    return np.where(positions >= length, period - positions, positions)
