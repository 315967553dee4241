"""Training data of generators: every image once in memory at one size, met in an endless seeded stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytorch_lightning
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visynth.callbacks.checkpoint import ignore_signals
from visynth.core import distributed
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.files import hash_file, hash_json
from visynth.core.members import Member
from visynth.core.pictures import FITS, fit_to, to_channels
from visynth.data.imageset import ImageSet, Item, in_threads
from visynth.data.reading import read_images, tell
from visynth.lightning_modules.data_checks import check_classes, hold_out, hold_out_alone
from visynth.lightning_modules.facts import Facts, Pool, measure
from visynth.lightning_modules.samplers import Stream, StreamOrder
from visynth.privacy.poisson import PlacedGroups, PlacedRows, PoissonBatches, PoissonLoader, collated

Array = NDArray[Any]
FEW = 50  # images in a class below which a generator from scratch rarely helps


class StreamImages(Dataset[dict[str, Tensor]]):
    """A pool seen through stream positions; a list of positions gives a whole batch at once."""

    def __init__(self, pool: Pool, order: StreamOrder | PlacedRows | PlacedGroups) -> None:
        self.pool, self.order = pool, order

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        rows = np.array([self.order.index(p) for p in positions], np.int64)
        return {
            "image": torch.from_numpy(self.pool.images[rows]),
            "label": torch.from_numpy(self.pool.labels[rows]),
            "position": torch.tensor(list(positions), dtype=torch.int64),
        }

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([position]).items()}


class StreamData(pytorch_lightning.LightningDataModule):
    """Base class of the generators' datamodules: the endless stream, the facts and the fingerprints.

    Subclasses write ``setup``, which sets ``_facts``, and ``reference``; ``images`` is None for sets in memory.
    """

    data: str
    masks: str | None
    groups: str | None
    group_pattern: str | None
    max_bad_fraction: float
    held_out: float
    seed: int
    batch_size: int
    epoch_images: int
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self.images: ImageSet | None = None
        self._facts: Facts | None = None
        self._state: dict[str, list[str]] | None = None
        self.private = False
        self.one_site = False
        self.counts_here: dict[str, int] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read what is trained on, once."""
        raise NotImplementedError

    def read(self, classes: list[str] | None = None) -> ImageSet:
        """The set that the arguments name; what is left out is told once, on the first rank."""
        images = read_images(
            self.data,
            masks=self.masks,
            groups=self.groups,
            group_pattern=self.group_pattern,
            classes=classes,
            max_bad_fraction=self.max_bad_fraction,
        )
        several = sum(len(item.labels) != 1 for item in images.items)
        if several:
            note = (
                f"{several} images with no class or several are not trained on: a class-conditional generator takes one"
            )
            images = replace(images, notes=(*images.notes, note))
        if distributed.is_main():
            tell(images)
        return images

    def stream(self, dataset: Dataset[dict[str, Tensor]]) -> DataLoader[dict[str, Tensor]]:
        """A loader of an endless stream over a dataset of positions."""
        return StreamLoader(
            dataset,
            self.batch_size,
            sampler=Stream(self._images_seen, self.epoch_images),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
            drop_last=True,  # every batch is whole, so images_seen moves in equal steps on every rank
            persistent_workers=self.num_workers > 0,
        )

    def _images_seen(self) -> int:
        """Position of the stream: the images that the module has counted, or 0 without one."""
        return int(getattr(getattr(self.trainer, "lightning_module", None), "images_seen", 0))

    @property
    def facts(self) -> Facts:
        self.setup()
        assert self._facts is not None
        return self._facts

    def state(self) -> dict[str, list[str]]:
        """Identity of the data, for a checkpoint: ``{name: [class, split, sha256 of the file, group, hash of mask and
        outlines]}``; empty for images in memory, and for private ones."""
        if self.images is None or self.private:
            return {}
        if self._state is None:
            self._state = dict(in_threads(_row, self.images.items))
        return self._state

    def forget_statistics(self) -> None:
        """For a training with differential privacy: mean, deviation and class counts of the images become constants, and
        no fingerprints are given.

        Raises:
            UsageError: properties of the images that were measured and must be named.
        """
        self._facts = self.facts.public()
        self.private = True

    def join_federation(self) -> None:
        """For one site of a federated training: classes may have no images here, and what is measured of the images stays
        here, but for their counts, which :attr:`counts_here` keeps for who is allowed to ask."""
        self.one_site = True

    def members(self) -> list[Member]:
        """Fingerprints of every image that was trained on or held out (none for images in memory, or private ones)."""
        if self.private:
            return []
        return [] if self.images is None else self.images.members(lambda item: item.split or "train")


class GeneratorData(StreamData):
    """The images that a generator is trained on, from a folder or list of yours.

    A batch is a dict of ``image`` (uint8 or uint16 ``[N, C, H, W]``), ``label`` and ``position`` (int64 ``[N]``), the
    place of each draw in an endless stream. The stream starts at the module's ``images_seen``, so a resumed run goes on
    where it stopped.

    Args:
        data: as :func:`visynth.read_images` takes it.
        size: height and width, or one number for both.
        batch_size: per process.
        channels: 1 (grey), 3 (RGB), 2 or 4 (with alpha); by default 1 if every image is grey, else 3.
        fit: how other proportions become ``size``: ``"crop"`` the middle, ``"pad"`` by reflection, or ``"squash"``.
        temper: classes are drawn with q ~ n^temper (1: natural, 0: balanced).
        classes: names in label order; by default all, sorted.
        masks: folder of masks, for modules that need them.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        held_out: share of the images, by group, that are not trained on but kept for ``visynth evaluate``.
        epoch_images: draws in one epoch over all ranks; it decides nothing but how often epochs end.
        seed: of the draws and the held-out images.
        num_workers: of the loader.
        max_bad_fraction: share of unusable files up to which they are left out.
        one_class: allow a single class (an unconditional generator).

    Raises:
        DataError: one class only, a class without images, images of several value types.
        UsageError: a size or way of fitting that does not exist.
    """

    def __init__(
        self,
        data: str,
        size: int | list[int],
        batch_size: int = 64,
        channels: int | None = None,
        fit: Literal["crop", "pad", "squash"] = "crop",
        temper: float = 0.5,
        classes: list[str] | None = None,
        masks: str | None = None,
        groups: str | None = None,
        group_pattern: str | None = None,
        held_out: float = 0.0,
        epoch_images: int = 20_000,
        seed: int = 0,
        num_workers: int = 0,
        max_bad_fraction: float = 0.05,
        one_class: bool = False,
    ) -> None:
        super().__init__()
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or min(sides) < 4:
            raise UsageError(f"size must be one number or [height, width] of at least 4, but got {size}.")
        if fit not in FITS:
            raise UsageError(f"fit must be one of {choices(FITS)}, but got {fit!r}.")
        if not 0 <= held_out < 0.9 or batch_size < 1 or channels not in (None, 1, 2, 3, 4):
            raise UsageError(
                f"held_out must be in [0, 0.9), batch_size at least 1 and channels 1 to 4, but got {held_out}, "
                f"{batch_size}, {channels}."
            )
        self.data, self.size, self.batch_size, self.channels, self.fit = (
            data,
            (sides[0], sides[1]),
            batch_size,
            channels,
            fit,
        )
        self.temper, self.classes, self.masks, self.groups = temper, classes, masks, groups
        self.group_pattern, self.held_out, self.epoch_images, self.seed = group_pattern, held_out, epoch_images, seed
        self.num_workers, self.max_bad_fraction, self.one_class = num_workers, max_bad_fraction, one_class
        self.pool: Pool | None = None
        self._read_images: ImageSet | None = None

    @classmethod
    def of(cls, images: ImageSet, size: int | list[int], **kwargs: Any) -> GeneratorData:
        """The same, of a set that is read already; its splits decide what is trained on."""
        data = cls(str(images.root), size, **kwargs)
        data.images = images
        return data

    @classmethod
    def of_pool(cls, pool: Pool, facts: Facts, **kwargs: Any) -> GeneratorData:
        """The same, of images in memory that were measured already."""
        data = cls("", list(facts.size), **kwargs)
        data.pool, data._facts = pool, facts
        return data

    # -- Lightning -----------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if self.pool is not None:
            return
        images = self._read_images = self.images or self.read(self.classes)
        if self.classes is None and self.images is not None:  # who gives a set names its classes
            self.classes = list(images.classes)
        if self.classes is not None and tuple(self.classes) != tuple(images.classes):
            raise UsageError(
                f"classes are {choices(self.classes)}, but those of the given set are {choices(images.classes)}."
            )
        self._use((hold_out_alone if self.one_site else hold_out)(images, self.held_out, self.seed))
        if self.one_site:
            assert self._facts is not None
            self.counts_here = dict(zip(self._facts.classes, self._facts.counts, strict=True))
            self.forget_statistics()

    def _use(self, images: ImageSet) -> None:
        """Take the training images of a set."""
        self.images = images
        check_classes(images, self.one_class, absent=self.one_site)
        self.pool = self.make_pool([item for item in images.items if item.split in ("", "train")])
        self._facts = measure(self.pool, images.classes)

    def forget_statistics(self) -> None:
        self.setup()
        if self.private:
            return
        if self._read_images is not None:
            declared = self.declared_facts()  # an error where something was measured instead of named
            assert self._facts is not None
            if (
                self.held_out > 0 and not self.one_site
            ):  # balanced over classes, the split of one image would depend on all others
                self._use(hold_out_alone(self._read_images, self.held_out, self.seed))
            self._facts = replace(declared, dtype=self._facts.dtype)
        super().forget_statistics()

    def declared_facts(self) -> Facts:
        """Facts that need no image: what all sites of a federated training share, and what a private one may know for free.

        Raises:
            UsageError: the classes or the channels are not named.
        """
        missing = [name for name in ("classes", "channels") if getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"the data must name {' and '.join(missing)}: what a private training measures of its images is not paid for, and of a "
                "federated one nobody sees the images of all sites."
            )
        classes, channels = tuple(self.classes or ()), int(self.channels or 0)
        nothing = Facts(classes, (0,) * len(classes), channels, self.size, "uint8", (0.0,) * channels, 1.0)
        return nothing.public()

    def make_pool(self, items: Sequence[Item]) -> Pool:
        """The training images in memory."""
        assert self.images is not None
        images = self.images
        fitted = in_threads(lambda item: self._fitted(images, item), items)
        dtypes = sorted({image.dtype.name for image in fitted})
        if len(dtypes) > 1:
            raise DataError(f"{images.root} mixes images of {choices(dtypes)}: convert them to one value type.")
        channels = self.channels or (1 if all(image.shape[2] == 1 for image in fitted) else 3)
        fitted = [to_channels(image, channels) for image in fitted]
        labels = np.array([images.classes.index(item.label) for item in items], dtype=np.int64)
        named = any(item.group for item in items)
        groups = tuple(item.group or item.name for item in items) if named else None
        return Pool(np.ascontiguousarray(np.stack(fitted).transpose(0, 3, 1, 2)), labels, groups)

    def _fitted(self, images: ImageSet, item: Item) -> Array:
        """One image at the training's size: each is fitted as it is decoded, so that a set of large photographs needs
        no memory for them."""
        enough = 2 * self.size[0], 2 * self.size[1]
        image = images.image(item, enough)
        # Channels are settled first where the arguments do, so that colour is weighed before it is averaged.
        image = image if self.channels is None else to_channels(image, self.channels)
        return np.array(fit_to(image, self.size, self.fit))  # a copy: a crop would keep the whole image alive

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        assert self.pool is not None
        dataset = StreamImages(self.pool, StreamOrder(self.pool.labels.tolist(), temper=self.temper, seed=self.seed))
        return self.stream(dataset)

    def reference(self) -> tuple[list[Array], NDArray[np.int64], tuple[str, ...]]:
        """The training images ``[H, W, C]``, their labels ``[N]`` and the class names: what quality is measured
        against."""
        classes = self.facts.classes
        assert self.pool is not None
        return [image.transpose(1, 2, 0) for image in self.pool.images], self.pool.labels, classes


class StreamLoader(DataLoader[dict[str, Tensor]]):
    """A loader that Lightning may resume in the middle of an epoch: its stream starts where the module's count
    stands."""

    @property
    def rows(self) -> int:
        """Images of the pool."""
        return len(self._images.pool.labels)

    @property
    def groups(self) -> Sequence[str] | None:
        """The group of each image, if there are groups."""
        return self._images.pool.groups

    @property
    def expected(self) -> int:
        return int(self.batch_size or 1)

    @property
    def epoch_rows(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    @property
    def _images(self) -> StreamImages:
        assert isinstance(self.dataset, StreamImages)
        return self.dataset

    def privacy_problems(self) -> list[str]:
        """Why this loader cannot be replaced by one of Poisson samples."""
        if not isinstance(self.dataset, StreamImages):
            return [
                f"{type(self.dataset).__name__} puts parts of several images together, so that one image has no gradient of "
                "its own: train on whole images"
            ]
        order = self._images.order
        if isinstance(order, StreamOrder) and np.ptp(order.probabilities) > 1e-12:
            return [
                "temper draws rare classes more often, which epsilon does not count: set temper: 1.0, and balance the classes "
                "when images are rendered"
            ]
        return []

    def private(self, batches: PoissonBatches) -> PoissonLoader:
        """The same images, in batches of Poisson samples."""
        return PoissonLoader(
            StreamImages(self._images.pool, batches.rows),
            batch_sampler=batches,
            collate_fn=collated(_as_it_is),
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
            persistent_workers=self.num_workers > 0,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"resumes": "by images_seen"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the count is in the module."""


def _row(item: Item) -> tuple[str, list[str]]:
    mask = hash_file(item.mask) if item.mask is not None else ""
    outlines = hash_json([mask, [list(region) for region in item.regions]]) if mask or item.regions else ""
    return item.name, [",".join(item.labels), item.split or "train", hash_file(item.path), item.group, outlines]


def _as_it_is(batch: Any) -> Any:
    return batch
