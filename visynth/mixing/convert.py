"""The way of a synthetic image into the user's training: a given transform, the dataset's own, or an Adapter.

The dataset's own transform is tried on one image, in the ways that torchvision's and albumentations' are called, and
taken where what comes out is of the same type, dtype and shape as a real sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.core.codec import Array, read
from visynth.core.errors import DataError
from visynth.data.labels import find_attribute
from visynth.mixing.adapter import Adapter, move
from visynth.mixing.dataset import as_pil
from visynth.mixing.targets import Target, Truth

# [C, H, W] as read_image gives it, or in [0, 1].
TENSORS = tuple(
    f"{channels}{dtype} {kind}"
    for kind in ("tensor", "tv_tensors.Image")
    for dtype in ("uint8", "float32")
    for channels in ("RGB ", "")
)
OWN_WAYS = ("RGB", "PIL", "array", *TENSORS)  # how a dataset's transform may want an image: most read RGB files
GIVEN_WAYS = ("PIL", "RGB", "L", "array")
ALBUMENTATIONS = ("albumentations", "albumentations RGB")


@dataclass(frozen=True)
class Converter:
    """``(array, truth) -> [image, label, mask beside the label or None]`` in the user's own terms."""

    through: Through | Adapter
    targets: tuple[Target, ...]

    def __call__(self, array: Array, truth: Truth) -> list[Any]:
        size = (array.shape[0], array.shape[1])
        image, moved = self._image(array, [target.raw(truth, size) for target in self.targets])
        return [image, *(t.finish(raw, truth) for t, raw in zip(self.targets, moved, strict=True))]

    def image(self, image: Array) -> Any:
        """The image alone, for looking at the way itself; where labels have places, they are put all over it."""
        height, width = image.shape[:2]
        whole = Truth(1, np.ones((height, width), bool), ((0.0, 0.0, float(width), float(height)),))
        return self._image(image, [target.raw(whole, (height, width)) for target in self.targets])[0]

    def plain(self, image: Array, part: float) -> Any:
        """Conversion of a plain image of this part of white, as large as ``array`` and of its dtype."""
        return self.image(np.full_like(image, round(part * np.iinfo(image.dtype).max)))

    @property
    def name(self) -> str:
        """The way in words, for logs and errors."""
        if isinstance(self.through, Adapter):
            return (
                f"scaled from black = {_short(self.through.low)} to white = {_short(self.through.high)}, as "
                "inferred from real samples"
            )
        kind = type(self.through.transform).__name__
        own = "the given transform" if self.through.given else "the dataset's own transform"
        return f"{own} ({kind}, called with {self.through.way})"

    @property
    def joint(self) -> bool:
        """Whether labels have places in the image: masks or boxes."""
        return any(target.joint for target in self.targets)

    def _image(self, array: Array, raw: list[Any]) -> tuple[Any, list[Any]]:
        if isinstance(self.through, Adapter):
            image = self.through(array)
            size = array.shape[:2] if self.through.kind == "pil" else self.through.size
            return image, [None if g is None else move(g, array.shape[:2], size) for g in raw]
        return self.through(array, raw)

    def from_file(self, path: Path, truth: Truth) -> list[Any]:
        """The same for a rendered file, by the shortest way: read as a user's own files are read, it costs what they
        cost."""
        if isinstance(self.through, Through) and self.through.short and not self.joint:
            return [self.through.from_file(path), *(target.finish(None, truth) for target in self.targets)]
        return self(read(path), truth)


@dataclass(frozen=True)
class Through:
    """A transform and how it is called; ``joint`` where it moves boxes and masks with the image."""

    transform: Callable[..., Any]
    way: str
    joint: bool = False
    short: bool = False  # an 8-bit file can go to it without an array between
    given: bool = False  # by the user, and not found in the dataset

    def __call__(self, array: Array, raw: list[Any]) -> tuple[Any, list[Any]]:
        geometry = [g for g in raw if g is not None]
        if self.way in ALBUMENTATIONS:
            array = np.repeat(array, 3, axis=2) if self.way == "albumentations RGB" and array.shape[2] == 1 else array
            image, moved = _albumentations(self.transform, array, geometry)
        elif self.joint and geometry:
            image, *moved = self.transform(_given(array, self.way), *geometry)
        else:
            image, moved = self.transform(_given(array, self.way)), geometry
        rest = iter(moved)
        return image, [None if g is None else next(rest) for g in raw]

    def from_file(self, path: Path) -> Any:
        try:
            with Image.open(path) as image:
                image.load()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error})") from error
        return self.transform(image.convert(self.way) if self.way in ("RGB", "L") else image)


def find_converter(
    dataset: Any,
    real: Any,
    image: Any,
    targets: tuple[Target, ...],
    transform: Callable[..., Any] | None,
    array: Array,
    values: Any = None,
) -> Converter:
    """Find the conversion of rendered images into the user's samples.

    Args:
        dataset: the user's, or None where there is none to look at.
        real: one real image.
        image: what to compare with: the same, or a row of a batch.
        targets: what the labels are.
        transform: given by the user: called with the image alone, or with image and boxes or masks where labels are
            such.
        image: one synthetic image ``[H, W, C]``.
        values: real values to tell the range from, by default the real image's own.

    Raises:
        UsageError: neither fits, and the images were normalised in an unknown way.
    """
    joint = any(target.joint for target in targets)
    short = isinstance(as_pil(array), Image.Image)

    def fitting(own: Callable[..., Any], moves: bool, ways: tuple[str, ...]) -> Converter | None:
        for way in ALBUMENTATIONS if _is_albumentations(own) else ways:
            candidate = Converter(
                Through(own, way, moves, short and way in ("RGB", "PIL", "L"), own is transform), targets
            )
            # Trying a transform draws random numbers: the user's own stream must not notice.
            with random_state_kept():
                try:
                    converted = candidate.image(array)
                except Exception:  # a transform made for another input: the next way of calling it may fit
                    continue
                fits = alike(converted, image) and (moves or not joint or _spatial(converted) == array.shape[:2])
                if fits and way in TENSORS:
                    fits = _same_scale(candidate, image if values is None else values, array)
            if fits:
                return candidate
        return None

    if transform is not None:
        way = ALBUMENTATIONS[0] if _is_albumentations(transform) else GIVEN_WAYS[0]
        named = Converter(Through(transform, way, joint, short and way == "PIL", True), targets)
        return fitting(transform, joint, GIVEN_WAYS) or named
    for own, moves in _candidates(dataset, joint):
        fit = fitting(own, moves, OWN_WAYS)
        if fit is not None:
            return fit
    return Converter(Adapter.like(real, values), targets)


def _same_scale(converter: Converter, real: Any, image: Array) -> bool:
    """Whether a conversion spreads black, grey and white over values like the real ones: a transform of tensors takes any scale."""
    try:
        levels = [float(torch.as_tensor(converter.plain(image, part)).double().mean()) for part in (0.0, 0.5, 1.0)]
    except Exception:  # it fails on plain images; what it does to others cannot be told
        return False
    values = torch.as_tensor(real).double()
    span, width = levels[2] - levels[0], float(values.max() - values.min())
    evenly = 0.1 < (levels[1] - levels[0]) / span < 0.9 if span else False
    return evenly and width / 2 <= abs(span) <= 16 * max(width, 1e-12)


def fast_adapter(converter: Converter, image: torch.Tensor, array: Array) -> Adapter | None:
    """An Adapter that does what the converter does, or None where that draws random numbers or does more than scaling.

    It is what lets a batch made on a GPU stay there. Black and white through the user's transform tell how it
    normalises.

    Args:
        converter: as found.
        image: a real row, a tensor.
        image: one synthetic image.
    """
    if converter.joint or not isinstance(image, torch.Tensor):
        return None
    if isinstance(converter.through, Adapter):
        return converter.through
    with random_state_kept():
        flat = [converter.plain(array, part) for part in (0.0, 1.0)]
        before = random_states()
        tries = [torch.as_tensor(converter.through(array, [])[0]) for _ in range(4)]
        drew = random_states() != before
    if drew:  # four tries may all miss a rare flip; that it asked for a number cannot be missed
        return None
    if any(not isinstance(f, torch.Tensor) or f.ndim != 3 for f in flat) or any(
        t.shape != tries[0].shape for t in tries
    ):
        return None
    spread = [f.double().flatten(1) for f in flat]
    if any(float((s - s[:, :1]).abs().max()) > 1e-6 for s in spread):
        return None
    shape = Adapter("tensor", flat[0].shape[0], tuple(flat[0].shape[-2:]), image.dtype, 1.0, channels_first=True)
    adapter = shape.between(spread[0][:, 0].numpy(), spread[1][:, 0].numpy())
    converted = adapter.batch(torch.from_numpy(array.transpose(2, 0, 1).copy())[None])[0].double()
    scale = float((spread[1] - spread[0]).abs().max())
    # Two ways of resizing differ by rounding; a flip or a crop differs by the image.
    same = all(float((t.double() - converted).abs().mean()) < 0.01 * scale for t in tries)
    return adapter if same and _varies(array) else None


def random_states() -> tuple[bytes, str, int]:
    """Random states of torch, numpy and Python, to be compared."""
    _, keys, place, *_ = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), f"{np.asarray(keys).tobytes()!r} {place}", hash(random.getstate())


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leaves the global random states of torch, numpy and Python as they were."""
    ours, theirs = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)


def alike(converted: Any, real: Any) -> bool:
    """Same type, dtype and number of channels; sizes may differ where the user's do. An array may become a tensor by
    collation."""
    if isinstance(converted, np.ndarray) and isinstance(real, torch.Tensor):
        converted = torch.from_numpy(np.array(converted))  # a copy: a read-only one would be warned of
    if type(converted) is not type(real) and not (isinstance(converted, torch.Tensor) and type(real) is torch.Tensor):
        return False
    if isinstance(real, (torch.Tensor, np.ndarray)):
        return bool(
            converted.dtype == real.dtype
            and converted.ndim == real.ndim
            and (converted.shape == real.shape or converted.shape[0] == real.shape[0])
        )
    return getattr(converted, "mode", None) == getattr(real, "mode", None)


def _candidates(dataset: Any, joint: bool) -> list[tuple[Callable[..., Any], bool]]:
    """The dataset's transforms, and whether each moves boxes and masks with the image."""
    candidates = []
    if joint and callable(find_attribute(dataset, "transforms")):
        candidates.append((find_attribute(dataset, "transforms"), True))
    for name in ("transform", "transforms", "augment", "augmentations", "tfm", "tf"):
        own = find_attribute(dataset, name)
        if callable(own) and not (joint and name == "transforms"):
            candidates += [(own, True), (own, False)] if joint else [(own, False)]
    return candidates


def _is_albumentations(transform: Any) -> bool:
    return any(base.__module__.split(".")[0] == "albumentations" for base in type(transform).__mro__)


def _albumentations(transform: Any, image: Array, geometry: list[Any]) -> tuple[Any, list[Any]]:
    """Call an albumentations transform with its own names for boxes, masks and labels."""
    given: dict[str, Any] = {"image": np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)}
    boxes = next((g for g in geometry if isinstance(g, dict)), None)
    mask = next((g for g in geometry if not isinstance(g, dict)), None)
    field = None
    if boxes is not None:
        params = transform.processors["bboxes"].params
        if params.format != "pascal_voc":
            raise ValueError("only boxes in pixels, pascal_voc")
        field = params.label_fields[0] if params.label_fields else None
        given["bboxes"] = boxes["boxes"].tolist()
        given |= {field: boxes["labels"].tolist()} if field else {}
        if "masks" in boxes:
            given["masks"] = list(boxes["masks"].numpy())
    if mask is not None:
        given["mask"] = mask.numpy()
    out = transform(**given)
    moved: list[Any] = []
    for g in geometry:
        if isinstance(g, dict):
            transformed = torch.as_tensor(np.asarray(out["bboxes"], np.float32)).reshape(-1, 4)
            size = _spatial(out["image"]) or image.shape[:2]
            from torchvision import tv_tensors

            moved.append(
                {
                    "boxes": tv_tensors.BoundingBoxes(transformed, format="XYXY", canvas_size=size),
                    "labels": torch.as_tensor(np.asarray(out[field], np.int64))
                    if field
                    else g["labels"][: len(transformed)],
                }
            )
            if "masks" in g:
                moved[-1]["masks"] = tv_tensors.Mask(
                    torch.as_tensor(np.stack(out["masks"]) if out["masks"] else np.zeros((0, *size)))
                )
        else:
            moved.append(out["mask"])
    return out["image"], moved


def _given(array: Array, way: str) -> Any:
    if way == "array":
        return array
    if way in TENSORS:
        from torchvision import tv_tensors
        from torchvision.transforms.v2.functional import to_dtype

        channels = np.repeat(array, 3, axis=2) if way.startswith("RGB") and array.shape[2] == 1 else array
        tensor = torch.from_numpy(channels.transpose(2, 0, 1).copy())
        tensor = to_dtype(tensor, torch.uint8 if "uint8" in way else torch.float32, scale=True)
        return tv_tensors.Image(tensor) if way.endswith("Image") else tensor
    image = as_pil(array)
    return image.convert(way) if way in ("RGB", "L") and isinstance(image, Image.Image) else image


def _spatial(image: Any) -> tuple[int, int] | None:
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, torch.Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return (int(image.shape[0]), int(image.shape[1])) if isinstance(image, np.ndarray) else None


def _short(bound: Any) -> str:
    values = np.atleast_1d(np.asarray(bound, dtype=np.float64))
    return f"{values[0]:.4g}" if len(set(values.tolist())) == 1 else str([round(float(v), 4) for v in values])


def _varies(image: Array) -> bool:
    """Whether an image would show a flip, at all: a plain one says nothing about the transform."""
    flipped = image[:, ::-1].astype(np.float64)
    return bool(np.abs(flipped - image).mean() > 0.02 * np.iinfo(image.dtype).max)
