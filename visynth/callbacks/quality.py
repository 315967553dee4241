"""KID and FID of a generator while it trains, per class, beside the real images' own null.

For any LightningModule with ``sample(seeds, labels)``. Real features are computed once and kept on disk. The random
state, the modes and the checkpoints of the training are left as they are; the cost is held below a share of the
training time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback
from torch import nn

from visynth.callbacks.logs import log_grid, log_values
from visynth.callbacks.sampling import Scale, chosen_rows, images_of_loader, sample_images
from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.core.files import cache_folder, hash_json, write_bytes
from visynth.core.members import pixel_hash
from visynth.core.pictures import grid, to_display
from visynth.data.imageset import Lazy
from visynth.data.reading import read_images
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractor import Extractor
from visynth.metrics.extractors import extractor
from visynth.metrics.quality import EVERYTHING, Quality, kid_name, per_class
from visynth.metrics.stats import FeatureReservoir, split

Array = NDArray[Any]


class QualityCallback(Callback):
    """Samples, embeds and compares every ``every_n_steps``; see :class:`KIDCallback` and :class:`FIDCallback`.

    Args:
        features: a registered name, a timm name, or a module ``[N, 3, H, W]`` -> features.
        weights: a local file of the features' weights, for those that would download theirs.
        real: real images to compare with, as :func:`visynth.read_images` takes them; by default what the datamodule's
            ``reference()`` gives, else the images of its training loader.
        count: synthetic images in an evaluation, over all classes and ranks.
        max_real: real images, at most.
        every_n_steps: optimiser steps between evaluations.
        max_cost: an evaluation waits until those before it together took at most this share of the training time; the
            last one, at the end of training, is left out for that reason, too, unless it is the only one.
        grid: images of each class on the sheet.
        resolution: side that the features see; by default 112 on a CPU and 224 on a GPU. It is part of every name.
        options: for ``sample``.
        seed: of the synthetic images; the same at every evaluation, so that sheets can be compared.
        cache: keep real features on disk ($VISYNTH_CACHE, else the user's cache folder).
        value_range: what black and white are in floating-point samples of the module, for instance [0, 1]; [-1, 1]
            shows by itself.
        real_range: the same of the images of its training loader, where those are what is compared with.

    Raises:
        UsageError: features of no known name, numbers that cannot be right, a module without ``sample``.
        DataError: features whose weights cannot be had.
    """

    frechet = False

    @property
    def reads_real_images(self) -> bool:
        """Whether it compares with the images that are trained on."""
        return self.real is None

    def __init__(
        self,
        features: str | nn.Module = "efficientnet_lite0",
        weights: str | None = None,
        real: str | None = None,
        count: int = 300,
        max_real: int = 1000,
        every_n_steps: int = 1000,
        max_cost: float = 0.04,
        grid: int = 8,
        resolution: int | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        cache: bool = True,
        value_range: list[float] | None = None,
        real_range: list[float] | None = None,
    ) -> None:
        super().__init__()
        for name, ranges in (("value_range", value_range), ("real_range", real_range)):
            if ranges is not None and (len(ranges) != 2 or not ranges[0] < ranges[1]):
                raise UsageError(f"{name} must be [black, white], for instance [0, 1], but got {ranges}.")
        self.value_range: Scale = None if value_range is None else (value_range[0], value_range[1])
        self.real_range: Scale = None if real_range is None else (real_range[0], real_range[1])
        if count < 1 or max_real < 1 or every_n_steps < 1 or not 0 < max_cost <= 1 or grid < 0:
            raise UsageError(
                "count, max_real and every_n_steps must be at least 1, max_cost in (0, 1] and grid at least 0, but "
                f"got {count}, {max_real}, {every_n_steps}, {max_cost}, {grid}."
            )
        self.features, self.weights, self.real, self.count, self.max_real = features, weights, real, count, max_real
        self.every_n_steps, self.max_cost, self.grid, self.resolution = every_n_steps, max_cost, grid, resolution
        self.options, self.seed, self.cache = dict(options or {}), seed, cache
        self.latest: list[Quality] = []
        self.seconds = 0.0  # spent in evaluations
        self._extractor: Extractor | None = None
        self._reals: tuple[list[NDArray[np.float32]], tuple[str, ...]] | None = None
        self._samples: dict[str, Any] = {}  # what was sampled last, and from what
        self._begun = 0.0
        self._evaluated = -1

    # -- when ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if not callable(getattr(pl_module, "sample", None)):
            raise UsageError(
                f"{type(pl_module).__name__} has no sample(seeds, labels): {type(self).__name__} needs it to see what "
                "the generator makes."
            )
        self._extractor = extractor(self.features, self.weights)  # now, not at step 1000: an unknown name fails here

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._begun = time.monotonic()
        self._samples = {}  # of another training, perhaps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == 0 or step % self.every_n_steps or step == self._evaluated:
            return
        if self._affordable():
            self._log(trainer, pl_module, self.evaluate(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.global_step or self._evaluated == trainer.global_step:
            return
        asked_to_stop = any(getattr(callback, "stop_requested", False) for callback in trainer.callbacks)
        if not _agreed(not asked_to_stop):  # whoever presses Ctrl-C does not want to wait for a measurement
            return
        if self._evaluated < 0 or self._affordable():  # there is always one
            self._log(trainer, pl_module, self.evaluate(trainer, pl_module), monitor=False)

    def _affordable(self) -> bool:
        """Whether what was spent so far is within the share of the training time."""
        return _agreed(self.seconds <= self.max_cost * (time.monotonic() - self._begun))

    # -- what ----------------------------------------------------------------------------------------------------

    def evaluate(self, trainer: Any, pl_module: Any) -> list[Quality]:
        """Metrics of the module as it stands. Every rank must call it: features are gathered from all."""
        started = time.monotonic()
        self._evaluated = trainer.global_step
        real, classes = self._real_features(trainer, pl_module)
        fake = self._made_features(trainer, pl_module, len(classes))
        sides = [{name: side[label] for label, name in enumerate(classes)} for side in (real, fake)]
        self.latest = per_class(sides[0], sides[1], self.name(pl_module), self.seed, self.frechet)
        self.seconds += time.monotonic() - started
        return self.latest

    def name(self, pl_module: Any) -> str:
        """The features' name with their resolution, as metrics and caches are named by."""
        assert self._extractor is not None
        if self._extractor.resizes:
            return self._extractor.name
        return f"{self._extractor.name}@{self._side(pl_module)}"

    def values(self, pl_module: Any) -> dict[str, float]:
        """The latest evaluation as scalars by name."""
        found: dict[str, float] = {}
        base = kid_name(self.name(pl_module))
        for q in self.latest:
            ending = "" if q.label == EVERYTHING or len(self.latest) == 1 else f"/{q.label}"
            if q.kid is not None:
                found |= {f"{base}{ending}": q.kid.value, f"{base}_null{ending}": q.kid.null_high}
                if not ending:
                    found |= {f"{base}_low": q.kid.low, f"{base}_high": q.kid.high}
            if q.frechet is not None:
                found[f"{q.frechet[0]}{ending}"] = q.frechet[1]
            if q.near_duplicates is not None:
                found[f"near_duplicates{ending}"] = q.near_duplicates.share
        return found

    def _log(self, trainer: Any, pl_module: Any, found: Sequence[Quality], monitor: bool = True) -> None:
        values = self.values(pl_module)
        values["quality_seconds"] = self.seconds
        if hasattr(pl_module, "uses_extractor") and self._chooses(trainer, values):
            assert self._extractor is not None
            pl_module.uses_extractor(self._extractor.name, "distances that checkpoints were chosen by")
        log_values(trainer, pl_module, values, monitor)
        sheet = self._sampled_at(trainer).get("sheet")
        if self.grid and sheet is not None:
            log_grid(trainer, "samples", sheet, type(self).__name__)

    @staticmethod
    def _chooses(trainer: Any, values: Collection[str]) -> bool:
        """Whether a state of the module is kept, or the training ended, by one of these values."""
        return any(getattr(callback, "monitor", None) in values for callback in trainer.callbacks)

    def _side(self, pl_module: Any) -> int:
        return self.resolution or (224 if torch.device(pl_module.device).type == "cuda" else 112)

    # -- features ------------------------------------------------------------------------------------------------

    def _embed(self, pl_module: Any, images: Sequence[Array]) -> NDArray[np.float32]:
        assert self._extractor is not None
        self._extractor.network.to(pl_module.device)
        side = 0 if self._extractor.resizes else self._side(pl_module)
        bank = FeatureBank(self._extractor, resolutions=(side,), batch=16)
        bank.add(images, cache=False)
        return bank.get(side, "mean") if len(images) else np.zeros((0, self._extractor.width), np.float32)

    def _real_features(self, trainer: Any, pl_module: Any) -> tuple[list[NDArray[np.float32]], tuple[str, ...]]:
        if self._reals is None:
            images, labels, classes = self._reference(trainer, pl_module)
            keep = chosen_rows(labels, self.max_real, self.seed)
            images, labels = Lazy(images.__getitem__, keep.tolist()), labels[keep]
            path = self._cache_path(pl_module, images)
            features = self._read_cache(path, len(images))
            if not _agreed(features is not None):
                features = self._compute_reals(pl_module, images)
                if path is not None and distributed.is_main():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(path, features.astype("<f4").tobytes())
            assert features is not None
            self._reals = [features[labels == label] for label in range(len(classes))], classes
        return self._reals

    def _compute_reals(self, pl_module: Any, images: Sequence[Array]) -> NDArray[np.float32]:
        """Each rank embeds its share; all ranks end with all of them, in order."""
        rank, world = distributed.rank(), distributed.world_size()
        own = self._embed(pl_module, images[rank::world])
        if world == 1:
            return own
        pool = FeatureReservoir(own.shape[1], size=len(images), rank=rank).to(pl_module.device)
        pool.update(torch.from_numpy(own), torch.arange(rank, len(images), world))
        features, places = pool.compute()
        return features[places.argsort()].cpu().numpy()

    def _reference(self, trainer: Any, pl_module: Any) -> tuple[Sequence[Array], NDArray[np.int64], tuple[str, ...]]:
        data = trainer.datamodule
        if self.real is not None:
            images = read_images(self.real)
            items = [item for item in images.items if len(item.labels) == 1]
            labels = np.array([images.classes.index(item.label) for item in items], dtype=np.int64)
            enough = 2 * self._side(pl_module), 2 * self._side(pl_module)
            return Lazy(lambda item: images.image(item, enough), items), labels, images.classes
        if hasattr(data, "reference"):
            given: tuple[Sequence[Array], NDArray[np.int64], tuple[str, ...]] = data.reference()
            return given
        return images_of_loader(trainer.train_dataloader, self.max_real, self.real_range)

    def _sampled_at(self, trainer: Any) -> dict[str, Any]:
        """Cache of the last samples: several callbacks on one trainer share what the first of them keeps."""
        first = next((c for c in trainer.callbacks if isinstance(c, QualityCallback)), self)
        return first._samples

    def _made_features(self, trainer: Any, pl_module: Any, classes: int) -> list[NDArray[np.float32]]:
        store = self._sampled_at(trainer)
        key = hash_json(
            [trainer.global_step, self.name(pl_module), self.count, self.seed, sorted(self.options.items())]
        )
        synthetic: list[NDArray[np.float32]]
        if store.get("key") == key:
            synthetic = store["made"]
            return synthetic
        rank, world = distributed.rank(), distributed.world_size()
        labels = [k % classes for k in range(self.count)]
        seeds = [seeding.derive("quality", self.seed, k) for k in range(self.count)]
        images = sample_images(pl_module, seeds[rank::world], labels[rank::world], self.options, self.value_range)
        own = torch.from_numpy(self._embed(pl_module, images))
        # Ranks may have unequal shares; the reservoir is gathered whole, however many each of them filled in.
        pool = FeatureReservoir(own.shape[1], size=self.count, rank=rank).to(pl_module.device)
        pool.update(own, torch.arange(rank, self.count, world))
        features, places = pool.compute()
        order = places.argsort()  # as one process would have made them
        features, own_labels = features[order], places[order] % classes
        sheet = None
        if self.grid and distributed.is_main():
            shown = [label for label in range(classes) for _ in range(self.grid)]
            grid_seeds = [seeding.derive("sheet", self.seed, k) for k in range(len(shown))]
            shown_images = [
                to_display(image)
                for image in sample_images(pl_module, grid_seeds, shown, self.options, self.value_range)
            ]
            sheet = grid(shown_images, self.grid, max(48, min(160, max(shown_images[0].shape[:2]))))
        synthetic = split(features, own_labels, classes)
        store.update(key=key, made=synthetic, sheet=sheet)
        return synthetic

    def _cache_path(self, pl_module: Any, images: Sequence[Array]) -> Path | None:
        if not self.cache or not isinstance(self.features, str):
            return None
        digest = sha256("".join(pixel_hash(image) for image in images).encode()).hexdigest()
        assert self._extractor is not None
        folder = f"{self.name(pl_module)}-{self._extractor.fingerprint}"
        return cache_folder() / "quality" / folder / f"{digest}.f32"

    def _read_cache(self, path: Path | None, count: int) -> NDArray[np.float32] | None:
        assert self._extractor is not None
        size = 4 * count * self._extractor.width
        if path is None or not path.is_file() or path.stat().st_size != size:
            return None
        return np.frombuffer(path.read_bytes(), "<f4").reshape(count, -1).copy()


class KIDCallback(QualityCallback):
    """Kernel inception distance per class with its null, and the share of near-duplicates. The first choice on small sets.

    Logs ``kid_<features>@<resolution>`` (``kid`` with Inception), the same with ``/<class>``, ``..._null`` (what real
    halves reach), and ``near_duplicates``.
    Arguments: :class:`QualityCallback`.

    Example:
        >>> KIDCallback(every_n_steps=500).frechet
        False
    """


class FIDCallback(QualityCallback):
    """Frechet distance beside what :class:`KIDCallback` logs: ``fid`` with ``features="inception_v3"`` and nothing
    else, else ``fd_<features>``.

    With no more images than features the distance is taken in fewer principal components, and its name ends in
    ``_pca<k>``.
    Arguments: :class:`QualityCallback`.
    """

    frechet = True


def _agreed(own: bool) -> bool:
    """True where every rank says so: clocks and disks differ, collectives must not."""
    if distributed.world_size() == 1:
        return own
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(own), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)
