"""The Generator contract: an image is a function of (generator digest, seed, label, options), of nothing else.

A generator is a folder: ``generator.json`` (what it is), ``model.safetensors`` (its weights), ``members.jsonl`` (the
real images behind it), ``README.md`` (its card) and ``preview.png``. Never a pickle, never an import path: the JSON
names a *registered* network, see :mod:`visynth.core.plugins`.

To write a generator, subclass :class:`Generator`, write ``_sample``, ``arguments`` and ``weights`` and a ``build``
that takes them back, and register the name. Everything else here is final.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from visynth.core import members as members_file
from visynth.core import plugins
from visynth.core.errors import DataError, IntegrityError, UsageError, choices
from visynth.core.files import hash_file, hash_json, write_bytes, write_json, write_text
from visynth.core.folders import new_folder, restore
from visynth.core.members import Member

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "visynth.generator/2"
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}
MAX_CHANNELS = 8
KINDS = ("composite", "inpainted", "trained")
WEIGHTS, SPEC, MEMBERS = "model.safetensors", "generator.json", "members.jsonl"


@dataclass(frozen=True)
class Spec:
    """What ``generator.json`` says, apart from the card.

    Attributes:
        network: registered name.
        arguments: plain values that ``build`` takes back.
        classes: class names; a label is an index into them.
        channels: 1 to 8.
        size: (height, width) of the canvas in pixels; single images may be smaller, see ``Samples.sizes``.
        dtype: ``"uint8"`` or ``"uint16"``.
        sampler: default options of ``sample``.
        micro_batch: images computed together, always, so that pixels do not depend on the batch.
        kind: ``"composite"`` (edits of real images), ``"inpainted"`` (real images with parts made by a trained model) or
            ``"trained"`` (made by a trained model).
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


@dataclass(frozen=True)
class Samples:
    """What ``sample`` gives.

    Attributes:
        images: uint8 or uint16 ``[N, C, H, W]``.
        masks: bool ``[N, H, W]``, the labelled region, or None.
        boxes: per image a float32 ``[K, 4]`` of (x1, y1, x2, y2) in pixels, or None.
        parents: per image the paths of the real images that it was made from, or None.
        sizes: int64 ``[N, 2]`` of (height, width): the part of each image, from the top left, that is the picture;
            the rest is zero padding. None: all of it.
    """

    images: Tensor
    masks: Tensor | None = None
    boxes: Sequence[Tensor] | None = None
    parents: Sequence[tuple[str, ...]] | None = None
    sizes: Tensor | None = None

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
        return (self.images, self.masks, self.boxes, self.parents, self.sizes)

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

    # -- final ---------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def digest(self) -> str:
        """Hex sha256 of what decides every pixel: schema, network, arguments, classes, sizes, sampler, weights."""
        if self._digest is None:
            self._digest = hash_json({**self.spec.identity(), "weights": sha256(self._weight_bytes()).hexdigest()})
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

    def save(self, folder: str | Path, extra: Mapping[str, bytes] | None = None) -> Path:
        """Write the generator folder, with further files by name; it appears complete or not at all."""
        folder = Path(folder)
        with new_folder(folder) as made:
            for name, data in (extra or {}).items():
                write_bytes(made / name, data)
            write_bytes(made / WEIGHTS, self._weight_bytes())
            members_file.write(made / MEMBERS, self.members)
            write_json(made / SPEC, self._json(hash_file(made / WEIGHTS)))
            write_text(made / "README.md", self._readme())
            self._write_preview(made / "preview.png")
        return folder

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
                f"labels {outside} are not in the generator; labels 0 to {len(self.classes) - 1} mean {choices(self.classes)}"
            )
        unknown = [name for name in options if name not in self.options]
        if unknown:
            problems.append(f"options {choices(unknown)} are unknown; {self.spec.network} has {choices(self.options)}")
        if problems:
            raise UsageError("sample: " + "; ".join(problems) + ".")

    def _weight_bytes(self) -> bytes:
        from safetensors.torch import save

        return save({name: tensor.contiguous() for name, tensor in sorted(self.weights().items())})

    def _json(self, weights_sha256: str) -> dict[str, Any]:
        return {
            **self.spec.identity(),
            "weights_sha256": weights_sha256,
            "digest": self.digest,
            "members_root": members_file.merkle_root(self.members),
            "versions": {name: version(name) for name in ("torch", "numpy", "opencv-python-headless")}
            | {"python": platform.python_version()},
            "card": self.card,
        }

    def _readme(self) -> str:
        splits = {split: sum(m.split == split for m in self.members) for split in members_file.SPLITS}
        rows = "".join(
            f"| {key} | {value} |\n" for key, value in self.card.items() if not isinstance(value, (dict, list))
        )
        return (
            f"# {self.spec.network} generator\n\nClasses: {', '.join(self.classes)}. "
            f"Images: {self.spec.channels} channel(s), {self.spec.dtype}, canvas {self.spec.size[0]}x{self.spec.size[1]}.\n"
            f"Made from {splits['train']} training images ({splits['val']} validation and {splits['test']} test images "
            f"were held out; `members.jsonl` lists them).\n\nDigest: `{self.digest}`\n\n"
            f"| | |\n|---|---|\n{rows}\n"
            "Intended use: training data for the classes above. Not for evaluation, and not as evidence about real objects.\n"
        )

    def _write_preview(self, path: Path, columns: int = 4) -> None:
        from visynth.core.pictures import grid, to_display, write_png

        seeds = list(range(columns * len(self.classes)))
        labels = [label for label in range(len(self.classes)) for _ in range(columns)]
        try:
            samples = self.sample(seeds, labels)
        except DataError:  # a class that this generator cannot make has no preview; rendering it says why
            return
        tiles = [to_display(samples.crop(i).permute(1, 2, 0).numpy()) for i in range(len(samples))]
        write_png(path, grid(tiles, columns=columns, side=96))


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Load a generator folder, after checking that not one bit of it was changed.

    Args:
        path: a generator folder, or the id of a Hugging Face hub repository that holds one.
        device: where its network runs.

    Raises:
        IntegrityError: a file is missing, altered, or of another schema.
    """
    from safetensors.torch import load

    folder = _local(path)
    said = read_json(folder)
    data = (folder / WEIGHTS).read_bytes()
    found = sha256(data).hexdigest()
    if found != said["weights_sha256"]:
        raise IntegrityError(
            f"{folder / WEIGHTS} was altered: sha256 is {found[:16]}..., generator.json says {said['weights_sha256'][:16]}... "
            "Copy the folder again or fit the generator anew."
        )
    members = members_file.read(folder / MEMBERS)
    if members_file.merkle_root(members) != said["members_root"]:
        raise IntegrityError(f"{folder / MEMBERS} was altered: it does not match members_root in generator.json.")

    spec = Spec(
        network=said["network"],
        arguments=said["arguments"],
        classes=tuple(said["classes"]),
        channels=said["channels"],
        size=(said["size"][0], said["size"][1]),
        dtype=said["dtype"],
        sampler=said["sampler"],
        micro_batch=said["micro_batch"],
        kind=said["kind"],
    )
    generator: Generator = plugins.load("generators", spec.network).build(spec, load(data), device)
    generator.members, generator.card = tuple(members), dict(said["card"])
    if generator.digest != said["digest"]:
        raise IntegrityError(f"{folder / SPEC} was altered: its content does not match its own digest.")
    return generator


def read_json(folder: Path) -> dict[str, Any]:
    """``generator.json`` of a complete generator folder; weights are not read.

    Raises:
        IntegrityError: a file is missing, or this one is no JSON or of another schema.
    """
    import json

    missing = [name for name in (SPEC, WEIGHTS, MEMBERS) if not (folder / name).is_file()]
    if missing:
        raise IntegrityError(
            f"{folder} is not a generator folder: {', '.join(missing)} is missing. Make one with 'visynth fit'."
        )
    try:
        said = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{folder / SPEC} is not JSON ({error}): the folder was altered or cut short.") from error
    if said.get("schema") != SCHEMA:
        raise IntegrityError(f"{folder / SPEC} has schema {said.get('schema')!r}; this version reads {SCHEMA!r}.")
    return dict(said)


def _local(path: str | Path) -> Path:
    folder = Path(path)
    restore(folder)
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/")):
        if not folder.is_dir():
            raise IntegrityError(f"there is no generator folder at {path}. Make one with 'visynth fit'.")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=[SPEC, WEIGHTS, MEMBERS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise IntegrityError(
            f"there is no folder {path}, and no hub repository of that name could be read ({error})."
        ) from error


def _integers(name: str, values: Tensor | Sequence[int]) -> list[int]:
    if isinstance(values, torch.Tensor):
        if values.dtype not in (torch.int64, torch.int32) or values.ndim != 1:
            raise UsageError(f"{name} must be an int64 tensor [N], but got {values.dtype} {list(values.shape)}.")
        return [int(value) for value in values.tolist()]
    wrong = [value for value in values if isinstance(value, bool) or not hasattr(value, "__index__")]
    if wrong:
        raise UsageError(f"{name} must be whole numbers, but got {wrong[0]!r}.")
    return [int(value) for value in values]
