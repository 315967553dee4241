"""The Generator contract: an image is a function of (generator digest, seed, label, options), of nothing else.

A generator is stored as an artifact (:mod:`visynth.core.artifact`), with ``preview.png``.

To write a generator, subclass :class:`Generator`, write ``_sample``, ``arguments`` and ``weights`` and a ``build``
that takes them back, and register the name. Everything else here is final.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from visynth.core import loading
from visynth.core import members as members_file
from visynth.core.artifact import FEDERATION, PRIVACY, Artifact, federated_origin, promise
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.members import Member

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "visynth.generator/2"
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}
MAX_CHANNELS = 8
KINDS = ("composite", "inpainted", "trained")


@dataclass(frozen=True)
class Spec:
    """Contents of ``generator.json``, apart from the card.

    Attributes:
        network: registered name.
        arguments: plain values that ``build`` takes back.
        classes: class names; a label is an index into them.
        channels: 1 to 8.
        size: (height, width) of the canvas in pixels; single images may be smaller, see ``Samples.sizes``.
        dtype: ``"uint8"`` or ``"uint16"``.
        sampler: default options of ``sample``.
        micro_batch: images computed together, always, so that pixels do not depend on the batch.
        kind: ``"composite"`` (edits of real images), ``"inpainted"`` (real images with parts made by a trained model)
            or ``"trained"`` (made by a trained model).
    """

    network: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    dtype: str = "uint8"
    sampler: Mapping[str, Any] | None = None
    micro_batch: int = 16
    kind: str = "trained"

    def __post_init__(self) -> None:
        problems = []
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            problems.append(f"classes must be distinct and at least one, but got {self.classes}")
        unsafe = [c for c in self.classes if not c.strip() or c.startswith(".") or set(c) & set('/\\:*?"<>|\0')]
        if unsafe:
            problems.append(f"classes {choices(unsafe)} cannot be folder names: rename them")
        if not 1 <= self.channels <= MAX_CHANNELS:
            problems.append(f"channels must be 1 to {MAX_CHANNELS}, but got {self.channels}")
        if self.dtype not in DTYPES:
            problems.append(f"dtype must be one of {choices(DTYPES)}, but got {self.dtype!r}")
        if min(self.size) < 1 or self.micro_batch < 1:
            problems.append(f"size {self.size} and micro_batch {self.micro_batch} must be positive")
        if self.kind not in KINDS:
            problems.append(f"kind must be one of {choices(KINDS)}, but got {self.kind!r}")
        if problems:
            raise UsageError("generator spec: " + "; ".join(problems))

    @property
    def value_range(self) -> tuple[int, int]:
        return (0, 255 if self.dtype == "uint8" else 65535)

    def identity(self) -> dict[str, Any]:
        """The part of the JSON that, with the weights, decides every pixel."""
        return {
            "schema": SCHEMA,
            "network": self.network,
            "arguments": self.arguments,
            "classes": list(self.classes),
            "channels": self.channels,
            "size": list(self.size),
            "value_range": list(self.value_range),
            "dtype": self.dtype,
            "kind": self.kind,
            "sampler": dict(self.sampler or {}),
            "micro_batch": self.micro_batch,
        }

    @classmethod
    def from_identity(cls, said: Mapping[str, Any]) -> Spec:
        """The spec again."""
        names = ("network", "arguments", "channels", "dtype", "sampler", "micro_batch", "kind")
        height, width = said["size"]
        return cls(classes=tuple(said["classes"]), size=(height, width), **{name: said[name] for name in names})


@dataclass(frozen=True)
class Samples:
    """A batch of samples.

    Attributes:
        images: uint8 or uint16 ``[N, C, H, W]``.
        masks: bool ``[N, H, W]``, the labelled region, or None.
        boxes: per image a float32 ``[K, 4]`` of (x1, y1, x2, y2) in pixels, or None.
        parents: per image the paths of the real images that it was made from, or None.
        sizes: int64 ``[N, 2]`` of (height, width): the part of each image, from the top left, that is the image;
            the rest is zero padding. None: all of it.
        valid: bool ``[N]``, False where the network left the finite numbers or a safety checker blanked the image; None:
            all are. Rendering draws such images again.
    """

    images: Tensor
    masks: Tensor | None = None
    boxes: Sequence[Tensor] | None = None
    parents: Sequence[tuple[str, ...]] | None = None
    sizes: Tensor | None = None
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return Samples(*(None if part is None else part[:count] for part in self._parts()))  # type: ignore[arg-type]

    def crop(self, index: int) -> Tensor:
        """Image ``index`` without padding, ``[C, h, w]``."""
        height, width = self.images.shape[-2:] if self.sizes is None else self.sizes[index].tolist()
        return self.images[index, :, :height, :width]

    def _parts(self) -> tuple[Any, ...]:
        return (self.images, self.masks, self.boxes, self.parents, self.sizes, self.valid)

    @staticmethod
    def cat(pieces: Sequence[Samples]) -> Samples:
        """Samples of several micro-batches, in order."""
        joined: list[Any] = []
        for column in zip(*(piece._parts() for piece in pieces), strict=True):
            if column[0] is None:
                joined.append(None)
            elif isinstance(column[0], torch.Tensor):
                joined.append(torch.cat(column))
            else:
                joined.append([row for part in column for row in part])
        return Samples(*joined)


class Generator(ABC):
    """One class-conditional image generator. Subclasses write ``_sample``, ``weights`` and ``build``."""

    options: ClassVar[Mapping[str, Any]] = {}  # sampler options and their defaults

    def __init__(self, spec: Spec, *, members: Sequence[Member] = (), card: Mapping[str, Any] | None = None) -> None:
        unknown = [name for name in spec.sampler or {} if name not in self.options]
        if unknown:
            raise UsageError(
                f"sampler options {choices(unknown)} are unknown; {spec.network} has {choices(self.options)}."
            )
        self.spec = replace(spec, sampler={**self.options, **(spec.sampler or {})})
        self.members = tuple(members)
        self.card = dict(card or {})
        self._digest: str | None = None

    # -- for authors ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        """Exactly ``spec.micro_batch`` samples; inputs are checked, options complete."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Every tensor that decides a pixel, on the CPU."""

    @classmethod
    @abstractmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Generator:
        """The generator again, from its spec and weights."""

    @classmethod
    def from_artifact(cls, stored: Artifact, device: str | torch.device) -> Generator:
        """The generator that an artifact holds."""
        from safetensors.torch import load

        generator = cls.build(Spec.from_identity(stored.identity), load(stored.weights), device)
        generator.members, generator.card = stored.members, dict(stored.card)
        return generator

    # -- final ---------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def digest(self) -> str:
        """Hex sha256 of what decides every pixel: schema, network, arguments, classes, sizes, sampler, weights."""
        if self._digest is None:
            self._digest = self.artifact().digest
        return self._digest

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Samples:
        """Images, each a function of its seed, its label and the options alone.

        Args:
            seeds: int64 ``[N]`` in [0, 2**63).
            labels: int64 ``[N]``, indices into ``classes``.
            options: sampler options; those not given keep the values of ``generator.json``.

        Raises:
            UsageError: empty input, unequal lengths, a float tensor, a label or option that does not exist.
        """
        seed_list, label_list, merged = self._checked(seeds, labels, options)
        # Arithmetic is rounded differently at other batch sizes, so every batch computed is of one size.
        step = self.spec.micro_batch
        pieces = []
        with torch.no_grad():
            for start in range(0, len(seed_list), step):
                batch_seeds, batch_labels = seed_list[start : start + step], label_list[start : start + step]
                count = len(batch_seeds)
                padding = step - count
                samples = self._sample(batch_seeds + [0] * padding, batch_labels + batch_labels[:1] * padding, **merged)
                pieces.append(samples.take(count))
        return Samples.cat(pieces)

    def draw(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        """Like :meth:`sample`, but computed in batches of the size that is asked for, without padding.

        For mixing during a training, where the last bit of a pixel does not matter and a padded batch costs time.
        """
        seed_list, label_list, merged = self._checked(seeds, labels, options)
        step = max(self.spec.micro_batch, 16)
        with torch.no_grad():
            starts = range(0, len(seed_list), step)
            return Samples.cat(
                [self._sample(seed_list[s : s + step], label_list[s : s + step], **merged) for s in starts]
            )

    def artifact(self) -> Artifact:
        """The generator as it is stored."""
        return Artifact(self.spec.identity(), self._weight_bytes(), self.members, self.card)

    def save(self, folder: str | Path, extra: Mapping[str, bytes] | None = None) -> Path:
        """Write the generator folder, with further files by name; it appears complete or not at all."""
        stored = self.artifact()
        self._digest = stored.digest  # the README tells it
        return stored.save(folder, self._readme(), {**(extra or {}), **self._preview()})

    def _checked(
        self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], options: Mapping[str, Any]
    ) -> tuple[list[int], list[int], dict[str, Any]]:
        """Seeds, labels and all options of a call, or an error that tells every problem."""
        seed_list, label_list = _integers("seeds", seeds), _integers("labels", labels)
        self._check(seed_list, label_list, options)
        return seed_list, label_list, {**(self.spec.sampler or {}), **options}

    def _check(self, seeds: list[int], labels: list[int], options: Mapping[str, Any]) -> None:
        problems = []
        if not seeds:
            problems.append("seeds is empty: ask for at least one image")
        if len(seeds) != len(labels):
            problems.append(f"{len(seeds)} seeds but {len(labels)} labels: give one label per seed")
        if any(not 0 <= seed < 2**63 for seed in seeds):
            problems.append("seeds must be in [0, 2**63)")
        outside = sorted({label for label in labels if not 0 <= label < len(self.classes)})
        if outside:
            problems.append(
                f"labels {outside} are not in the generator; labels 0 to {len(self.classes) - 1} mean "
                f"{choices(self.classes)}"
            )
        unknown = [name for name in options if name not in self.options]
        if unknown:
            problems.append(f"options {choices(unknown)} are unknown; {self.spec.network} has {choices(self.options)}")
        if problems:
            raise UsageError("sample: " + "; ".join(problems) + ".")

    def _weight_bytes(self) -> bytes:
        from safetensors.torch import save

        return save({name: tensor.contiguous() for name, tensor in sorted(self.weights().items())})

    def _readme(self) -> str:
        splits = {split: sum(m.split == split for m in self.members) for split in members_file.SPLITS}
        rows = "".join(
            f"| {key} | {value} |\n" for key, value in self.card.items() if not isinstance(value, (dict, list))
        )
        return (
            f"# {self.spec.network} generator\n\nClasses: {', '.join(self.classes)}. "
            f"Images: {self.spec.channels} channel(s), {self.spec.dtype}, canvas "
            f"{self.spec.size[0]}x{self.spec.size[1]}.\n"
            f"{self._origin(splits)}\n\nDigest: `{self.digest}`\n\n"
            f"| | |\n|---|---|\n{rows}\n"
            "Intended use: training data for the classes above. Not for evaluation, and not as evidence about real "
            "objects.\n"
        )

    def _origin(self, splits: Mapping[str, int]) -> str:
        said = [federated_origin(self.card)] if FEDERATION in self.card else []
        said += [promise(self.card)] if PRIVACY in self.card else []
        if said:
            return " ".join(said)
        return (
            f"Made from {splits['train']} training images ({splits['val']} validation and {splits['test']} test images were held "
            "out; `members.jsonl` lists them)."
        )

    def _preview(self, columns: int = 4) -> dict[str, bytes]:
        from visynth.core.pictures import grid, png, to_display

        seeds = list(range(columns * len(self.classes)))
        labels = [label for label in range(len(self.classes)) for _ in range(columns)]
        try:
            samples = self.sample(seeds, labels)
        except DataError:  # a class that this generator cannot make has no preview; rendering it says why
            return {}
        tiles = [to_display(samples.crop(i).permute(1, 2, 0).numpy()) for i in range(len(samples))]
        return {"preview.png": png(grid(tiles, columns=columns, side=96))}


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """A generator of images from its folder or hub id; see :func:`visynth.core.loading.load_generator`.

    Raises:
        IntegrityError: a file is missing, altered, or of another schema.
        UsageError: it makes tables.
    """
    loaded = loading.load_generator(path, device)
    if not isinstance(loaded, Generator):
        raise UsageError(f"{path} makes rows of tables, not images: use 'visynth tabular' or visynth.load_generator.")
    return loaded


def _integers(name: str, values: Tensor | Sequence[int]) -> list[int]:
    if isinstance(values, torch.Tensor):
        if values.dtype not in (torch.int64, torch.int32) or values.ndim != 1:
            raise UsageError(f"{name} must be an int64 tensor [N], but got {values.dtype} {list(values.shape)}.")
        return [int(value) for value in values.tolist()]
    wrong = [value for value in values if isinstance(value, bool) or not hasattr(value, "__index__")]
    if wrong:
        raise UsageError(f"{name} must be whole numbers, but got {wrong[0]!r}.")
    return [int(value) for value in values]
