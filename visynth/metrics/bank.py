"""A bank of pooled features that computes each image once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from visynth.core.errors import UsageError
from visynth.core.files import write_bytes
from visynth.core.members import pixel_hash
from visynth.metrics.extractor import PATCH, Array, Described, Extractor, Floats, prepare, prepare_square
from visynth.verdict.learners import IMAGES

Places = NDArray[np.float16]  # [P, D], the features at every place of one image
PATCHES = ".p16"  # ending of files with patches


class Growing:
    """Rows of one shape in one array that grows by halves, so that adding some does not copy all that are there.

    Example:
        >>> rows = Growing()
        >>> for value in range(5):
        ...     rows.extend(np.full((1, 2), value))
        >>> rows.view()[:, 0].tolist()
        [0, 1, 2, 3, 4]
    """

    def __init__(self) -> None:
        self._array: NDArray[Any] = np.zeros(0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: NDArray[Any]) -> None:
        """Append ``[n, ...]``."""
        if not len(rows):
            return
        needed = self._count + len(rows)
        if needed > len(self._array):
            larger = np.empty((max(needed, len(self._array) * 3 // 2), *rows.shape[1:]), rows.dtype)
            if self._count:
                larger[: self._count] = self._array[: self._count]
            self._array = larger
        self._array[self._count : needed] = rows
        self._count = needed

    def view(self) -> NDArray[Any]:
        """All rows, without a copy; those that are added later are not in it."""
        return self._array[: self._count]


@dataclass
class FeatureBank:
    """Pooled features of images at several resolutions, each image computed once.

    Rows are appended by :meth:`add` and named by their number. With ``cache``, an image's features are kept on
    disk under (pixels' sha256, extractor, its weights, resolution).

    Example:
        >>> from torch import nn
        >>> from visynth.metrics.extractor import Extractor
        >>> from visynth.metrics.bank import FeatureBank
        >>> toy = Extractor("toy", nn.AvgPool2d(32), 3)
        >>> bank = FeatureBank(toy, resolutions=(32,))
        >>> bank.add([np.full((32, 32, 1), 255, np.uint8)])
        array([0])
        >>> bank.get(32, "max").shape
        (1, 3)
    """

    extractor: Extractor
    resolutions: tuple[int, ...] = (160, 0)
    cache: Path | None = None
    trunk: int = 0  # side of the squares whose trunk activations are kept for fine-tuning; 0 keeps none
    keep_patches: bool = False  # of images at native scale, see :attr:`patches`
    keep_images: bool = False  # for learners that see pixels; what is made (``cache=False``) then has no features
    batch: int = 8  # small enough for the caches of a CPU: twice as fast as 16
    computed: int = 0
    patches: dict[int, NDArray[np.float16]] = field(default_factory=dict)  # [P, PATCH] by row
    images: dict[int, Callable[[], Array]] = field(default_factory=dict)  # by row: each is had again, not held twice
    _tables: dict[tuple[int, str], Growing] = field(default_factory=dict)
    _pools: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise UsageError("a feature bank needs at least one resolution.")
        self._pools = dict(self.extractor.pools)
        self._tables = {(resolution, pool): Growing() for resolution in self.resolutions for pool in self._pools}
        if self.trunk:
            self._tables[(self.trunk, "trunk")] = Growing()

    def __len__(self) -> int:
        return len(self._tables[(self.resolutions[0], "mean")])

    def add(
        self, images: Sequence[Array], *, cache: bool = True, places: dict[int, Places] | None = None
    ) -> NDArray[np.int64]:
        """Compute the features of images and return their row numbers; ``cache=False`` keeps them off the disk, and then
        ``places`` gets the features at every place of each by its row, as :meth:`places` gives them.

        Every image is asked for once, and none is kept: a :class:`visynth.data.imageset.Lazy` sequence is decoded as
        it goes.
        """
        start = len(self)
        if self.keep_images:
            self.images |= {start + k: partial(images.__getitem__, k) for k in range(len(images))}
            if not cache:
                return self._add_without_features(len(images))
        keep = self.keep_patches and bool(self.extractor.stages) and 0 in self.resolutions
        pooled: dict[int, list[Floats | None]] = {resolution: [None] * len(images) for resolution in self.resolutions}
        described = self.extractor.described
        calls = (
            ((rows, resolution), partial(described, [i for _, i, _ in rows], patches=keep and resolution == 0))
            for rows, resolution in self._batches(images, start, pooled, keep, cache)
        )
        for (rows, resolution), found in self.extractor.each(calls):
            self._keep(found, rows, pooled[resolution], start, places if resolution == 0 else None)
        for resolution in self.resolutions:
            whole = [row for row in pooled[resolution] if row is not None]
            start_of = 0
            for pool, width in self._pools.items():
                block = [row[start_of : start_of + width] for row in whole]
                self._tables[(resolution, pool)].extend(np.array(block, np.float32))
                start_of += width
        return np.arange(start, start + len(images))

    def _batches(
        self,
        images: Sequence[Array],
        start: int,
        pooled: Mapping[int, list[Floats | None]],
        keep: bool,
        cache: bool,
    ) -> Iterator[tuple[list[tuple[int, Floats, Path | None]], int]]:
        """Images of one prepared shape together, with their resolution; what is kept on disk is read on the way."""
        waiting: dict[tuple[int, tuple[int, ...]], list[tuple[int, Floats, Path | None]]] = defaultdict(list)
        squares: list[Floats] = []
        for index, image in enumerate(images):
            key = pixel_hash(image) if cache and self.cache is not None else ""
            for resolution in self.resolutions:
                path = self._path(key, resolution) if key else None
                wanted = keep and resolution == 0
                if path is not None and self._is_kept(path, wanted):
                    pooled[resolution][index] = np.frombuffer(path.read_bytes(), "<f4").copy()
                    if wanted:
                        kept = np.frombuffer(path.with_suffix(PATCHES).read_bytes(), "<f2")
                        self.patches[start + index] = kept.reshape(-1, PATCH).copy()
                    continue
                prepared = self.extractor.prepare(image, resolution)
                batch = waiting[(resolution, prepared.shape)]
                batch.append((index, prepared, path))
                if len(batch) == self.batch:
                    yield waiting.pop((resolution, prepared.shape)), resolution
            if self.trunk:
                squares.append(prepare_square(image, self.trunk))
                if len(squares) == self.batch or index == len(images) - 1:
                    self._tables[(self.trunk, "trunk")].extend(
                        self.extractor.trunk_of(squares).numpy().astype(np.float16)
                    )
                    squares = []
        for resolution, shape in sorted(waiting):
            yield waiting[(resolution, shape)], resolution

    def _add_without_features(self, count: int) -> NDArray[np.int64]:
        start = len(self)
        for key, table in self._tables.items():
            width = self._pools.get(key[1], 0)
            if not width:
                raise UsageError("images without features cannot stand among trunk activations.")
            table.extend(np.full((count, width), np.nan, np.float32))
        return np.arange(start, start + count)

    def get(self, resolution: int, pool: str) -> Floats:
        """``[rows, D]`` of one resolution and pooling: ``"mean"`` or ``"max"`` over places of the last maps, and where the
        extractor has them ``"max@8"``, ``"min@8"`` and the like of finer ones."""
        return self._tables[(resolution, pool)].view()

    def places(self, images: Sequence[Array]) -> list[NDArray[np.float16]]:
        """Features at every place of images at native scale, ``[P, D]`` each; computed anew, kept nowhere."""
        places_of: dict[int, NDArray[np.float16]] = {}
        shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            shapes[prepare(image, 0).shape].append(index)
        batches = (
            indices[first : first + self.batch]
            for indices in shapes.values()
            for first in range(0, len(indices), self.batch)
        )
        calls = ((some, partial(self._places_of, [prepare(images[i], 0) for i in some])) for some in batches)
        for some, found in self.extractor.each(calls):
            places_of |= zip(some, found, strict=True)
        return [places_of[i] for i in range(len(images))]

    def tables(self) -> dict[tuple[int, str], NDArray[Any]]:
        """All there is, by (resolution, pooling), trunk activations under (side, "trunk"), and with ``keep_images`` under
        :data:`visynth.verdict.learners.IMAGES` functions that give the images."""
        tables: dict[tuple[int, str], Any] = {key: table.view() for key, table in self._tables.items()}
        if self.keep_images:
            given = np.empty(len(self), object)
            given[list(self.images)] = list(self.images.values())
            tables[IMAGES] = given
        return tables

    def name(self, resolution: int) -> str:
        """The extractor's name with its resolution, as caches and reports quote it."""
        return f"{self.extractor.name}@{resolution or 'native'}"

    def _places_of(self, prepared: Sequence[Floats]) -> Places:
        return _by_place(self.extractor.maps(prepared))

    def _keep(
        self,
        found: Described,
        rows: Sequence[tuple[int, Floats, Path | None]],
        rows_of: list[Floats | None],
        start: int,
        places: dict[int, Places] | None,
    ) -> None:
        """What one pass gave of a batch, kept in its places and on disk; patches and places where they are wanted."""
        for k, ((index, _, path), row) in enumerate(zip(rows, found.pooled.numpy(), strict=True)):
            rows_of[index] = row
            self.computed += 1
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, row.astype("<f4").tobytes())
            if found.patches is not None:
                self.patches[start + index] = found.patches[k].numpy()
                if path is not None:
                    write_bytes(path.with_suffix(PATCHES), found.patches[k].numpy().astype("<f2").tobytes())
            if places is not None:
                places[start + index] = _by_place(found.maps[k : k + 1])[0]

    def _is_kept(self, path: Path, patches: bool) -> bool:
        """Whether an image's features are whole on disk, and its patches where they are wanted."""
        if not path.is_file() or path.stat().st_size != 4 * sum(self._pools.values()):
            return False
        beside = path.with_suffix(PATCHES)
        return not patches or (
            beside.is_file() and beside.stat().st_size > 0 and not beside.stat().st_size % (2 * PATCH)
        )

    def _path(self, key: str, resolution: int) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / f"{self.name(resolution)}-{self.extractor.fingerprint}" / key[:2] / f"{key}.f32"


def _by_place(maps: Tensor) -> Places:
    """``[N, D, h, w]`` as ``[N, P, D]``."""
    return np.asarray(maps.flatten(2).transpose(1, 2).numpy(), np.float16)
