"""Targets of synthetic images in the user's own form: a class, a detection target, a mask.

``raw`` makes it for the rendered image as it is, with torchvision's ``tv_tensors`` where it has geometry, so that a
transform can move it with the image; ``finish`` turns what came out into the user's own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices

SMOOTHED = 0.06  # probability up to which a class of a soft label is there by label smoothing alone
FILLED = ("boxes", "labels", "masks", "area", "iscrowd", "image_id")


@dataclass(frozen=True)
class Truth:
    """Class, mask and boxes of a synthetic image.

    Attributes:
        label: of its class, as the user's dataset numbers it; None where the user has no number for it.
        mask: bool ``[H, W]``, or None.
        boxes: (x1, y1, x2, y2) in pixels, ends exclusive.
    """

    label: int | None
    mask: Array | None
    boxes: tuple[tuple[float, ...], ...] = ()
    name: str = ""  # of its class


def known(truth: Truth) -> int:
    """The label of a synthetic image.

    Raises:
        UsageError: the user has no number for its class: it must not become class 0.
    """
    if truth.label is None:
        raise UsageError(
            f"a synthetic image{f' of {truth.name!r}' if truth.name else ''} has no label in the dataset: name its "
            f"number with classes={{name: label}}."
        )
    return int(truth.label)


class ClassTarget:
    """A class index, in whatever type the user's labels have; ``moved`` is the dataset's own ``target_transform``."""

    joint = False

    def __init__(self, real: Any, moved: Callable[[Any], Any] | None = None) -> None:
        self.real, self.moved = real, moved

    def raw(self, truth: Truth, size: tuple[int, int]) -> None:
        """Nothing: a class does not move with the image."""

    def finish(self, target: Any, truth: Truth) -> Any:
        return self.of(known(truth))

    def of(self, index: int) -> Any:
        """A class index as the user's dataset gives it."""
        moved = self.moved(index) if callable(self.moved) else index
        return (
            moved
            if type(moved) is type(self.real) and not isinstance(moved, int)
            else label_like(self.real, int(moved))
        )


class BoxTarget:
    """torchvision's detection target: a dict with boxes (x1, y1, x2, y2), labels and, where the real ones have them,
    masks.

    A real target's ``area``, ``iscrowd`` and ``image_id`` are filled, too (``image_id`` with -1: no synthetic image is
    in the user's annotation file). Images without boxes, for instance defect-free ones, get empty targets.

    Raises:
        UsageError: other keys, which nobody could fill; boxes of another format.
    """

    joint = True

    def __init__(self, real: Mapping[str, Any]) -> None:
        self.real = real
        missing = [key for key in ("boxes", "labels") if key not in real]
        more = [key for key in real if key not in FILLED and _counts_boxes(real[key], len(real.get("labels", ())))]
        if missing or more:
            raise UsageError(
                f"detection targets have the keys {choices(real)}; they need 'boxes' and 'labels', and of one entry a "
                "box WithSynthetic "
                f"fills {choices(FILLED)}. Leave out {choices(more)}."
                if more
                else f"labels are dicts with the keys {choices(real)}: a detection target needs 'boxes' and 'labels'. "
                "For a dict that holds "
                "the class itself let the dataset give (image, class)."
            )
        boxes = real["boxes"]
        layout = str(getattr(getattr(boxes, "format", None), "value", "XYXY"))
        if not isinstance(boxes, torch.Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4 or layout != "XYXY":
            raise UsageError(
                f"boxes must be a tensor [N, 4] of (x1, y1, x2, y2), but the dataset gives {layout} "
                f"{type(boxes).__name__} "
                f"{list(getattr(boxes, 'shape', []))}: convert them in the dataset."
            )

        check_boxes(boxes)

    def raw(self, truth: Truth, size: tuple[int, int]) -> dict[str, Any]:
        from torchvision import tv_tensors

        count = len(truth.boxes)
        boxes = torch.tensor(truth.boxes, dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.full((count,), known(truth) if count else 0, dtype=torch.int64),
        }
        if "masks" in self.real:
            target["masks"] = tv_tensors.Mask(_box_masks(truth, size))
        return target

    def finish(self, made: Any, truth: Truth) -> dict[str, Any]:
        boxes, labels = made["boxes"], made["labels"]
        plain = boxes.as_subclass(torch.Tensor)
        width, height = plain[:, 2] - plain[:, 0], plain[:, 3] - plain[:, 1]
        whole = (width > 0) & (height > 0)  # a crop may have cut a box off
        boxes_kept: dict[str, Any] = {
            "boxes": _like(self.real["boxes"], boxes, plain[whole]),
            "labels": labels[whole].to(self.real["labels"].dtype),
            "area": (width * height)[whole],
            "iscrowd": torch.zeros(int(whole.sum()), dtype=torch.int64),
            "image_id": -1,
        }
        if "masks" in made:
            masks = made["masks"]
            boxes_kept["masks"] = _like(self.real["masks"], masks, masks.as_subclass(torch.Tensor)[whole])
        return {key: _as(value, boxes_kept[key]) if key in boxes_kept else value for key, value in self.real.items()}


def check_boxes(boxes: torch.Tensor) -> None:
    """Refuse boxes ``[N, 4]`` that cannot be corners in pixels.

    Raises:
        UsageError: see :func:`box_problem`.
    """
    problem = box_problem(boxes)
    if problem:
        raise UsageError(f"boxes must be (x1, y1, x2, y2) in pixels, but {problem}: convert them in the dataset.")


def box_problem(boxes: torch.Tensor) -> str | None:
    """Why boxes ``[N, 4]`` cannot be corners in pixels, or None.

    Example:
        >>> box_problem(torch.tensor([[0.1, 0.2, 0.5, 0.9]]))
        'all values are at most 1 (for instance [0.1, 0.2, 0.5, 0.9]): they are parts of the image'
        >>> box_problem(torch.tensor([[20.0, 30.0, 8.0, 6.0]]))
        'x2 <= x1 or y2 <= y1 in [20.0, 30.0, 8.0, 6.0]: they look like a centre or corner with width and height'
    """
    values = boxes.as_subclass(torch.Tensor).detach().cpu().float()
    if not len(values):
        return None
    wrong = (values[:, 2] <= values[:, 0]) | (values[:, 3] <= values[:, 1])

    def shown(row: torch.Tensor) -> list[float]:
        return [round(float(v), 4) for v in row]

    if bool((values <= 1).all()):
        return f"all values are at most 1 (for instance {shown(values[0])}): they are parts of the image"
    if bool(wrong.any()):
        return (
            f"x2 <= x1 or y2 <= y1 in {shown(values[wrong][0])}: they look like a centre or corner with width and "
            "height"
        )
    return None


class MaskTarget:
    """A map of class numbers ``[H, W]`` or ``[1, H, W]``: 0 where nothing is, the class where the synthetic region is.

    Floating-point and boolean masks hold 0 and 1 whatever the class; a mask beside a class label holds the one value
    that real masks hold, where they hold but one (1 or 255).
    """

    joint = True

    def __init__(self, real: Any, value: int | None = None) -> None:
        self.real, self.value = real, value
        self.binary = not isinstance(real, Image.Image) and ("float" in str(real.dtype) or "bool" in str(real.dtype))
        if not isinstance(real, Image.Image) and real.ndim == 3 and real.shape[0] != 1:
            raise UsageError(
                f"masks are {list(real.shape)}: WithSynthetic makes maps of class numbers, [H, W] or [1, H, W], not "
                "one channel a class."
            )

    def raw(self, truth: Truth, size: tuple[int, int]) -> Any:
        from torchvision import tv_tensors

        region = np.zeros(size, bool) if truth.mask is None else truth.mask
        value = 1 if self.binary else self.value or (known(truth) if region.any() else 0)
        return tv_tensors.Mask(torch.from_numpy(region.astype(np.uint8 if value < 256 else np.int64) * value))

    def finish(self, target: Any, truth: Truth) -> Any:
        real = self.real
        if isinstance(real, Image.Image):
            array = np.asarray(target if isinstance(target, Image.Image) else target.squeeze())
            return (
                Image.fromarray(array.astype(np.uint8)).convert(real.mode)
                if real.mode == "L"
                else _palette(array, real)
            )
        values = torch.as_tensor(np.array(target) if isinstance(target, (Image.Image, np.ndarray)) else target)
        values = values.squeeze(0) if values.ndim == 3 else values
        values = values.unsqueeze(0) if real.ndim == 3 else values
        if isinstance(real, np.ndarray):
            return values.numpy().astype(real.dtype)
        plain = values.as_subclass(torch.Tensor).to(real.dtype)
        return plain if type(real) is torch.Tensor else type(real)(plain)


Target = ClassTarget | BoxTarget | MaskTarget


def target_of(real: Any, moved: Callable[[Any], Any] | None = None) -> Target:
    """The kind of target that a real label shows.

    Raises:
        UsageError: a label of another kind, for instance text.
    """
    if isinstance(real, Mapping):
        return BoxTarget(real)
    if isinstance(real, Image.Image) or getattr(real, "ndim", 0) >= 2:
        return MaskTarget(real)
    label_like(real, 0)
    return ClassTarget(real, moved)


def label_like(real: Any, index: int) -> Any:
    """A class index in the type of a real label: number, numpy or tensor scalar (also of shape ``[1]``), or one-hot
    vector.

    Raises:
        UsageError: a label of another kind.

    Example:
        >>> label_like(torch.tensor([0.0, 1.0, 0.0]), 2)
        tensor([0., 0., 1.])
        >>> label_like(torch.tensor([0.0]), 1)
        tensor([1.])
    """
    if isinstance(real, torch.Tensor) and real.ndim <= 1:
        if real.numel() == 1:
            return torch.full_like(real, index)
        label = torch.zeros_like(real)
        label[index] = 1
        return label
    if isinstance(real, np.ndarray) and real.ndim <= 1:
        return np.full_like(real, index) if real.size == 1 else np.eye(len(real), dtype=real.dtype)[index]
    if isinstance(real, (int, float, np.generic)) and not isinstance(real, bool):
        return type(real)(index)
    if isinstance(real, bool):
        return bool(index)
    raise UsageError(
        f"labels are {type(real).__name__}{list(getattr(real, 'shape', [])) or ''}: WithSynthetic makes class labels, "
        "masks and "
        "torchvision's detection targets. Name the label with label_key=, or let the dataset give one of these."
    )


def labels_in(real: Any) -> set[int]:
    """Class numbers that a real label shows: what tells whether its image may make room for a synthetic one.

    Example:
        >>> labels_in(torch.tensor([0.0, 1.0])), labels_in({"labels": torch.tensor([2, 2])}), labels_in(4)
        ({1}, {2}, {4})
    """
    if isinstance(real, Mapping) and "labels" in real:
        return {int(value) for value in real["labels"]}
    if isinstance(real, Image.Image) or getattr(real, "ndim", 0) >= 2:
        # What is negative or not a number in a map is ignored, not a class.
        return {int(value) for value in np.unique(np.asarray(real)) if value >= 0}
    if getattr(real, "ndim", 0) == 1 and len(real) > 1:
        values = np.asarray(real)
        if "float" in str(values.dtype) and abs(float(values.sum()) - 1) < 1e-3:
            return {int(place) for place in np.flatnonzero(values > SMOOTHED)} or {int(values.argmax())}
        return {int(place) for place in np.flatnonzero(values > 0)}
    try:
        number = float(real)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise UsageError(
            f"labels are class numbers, vectors, masks or detection targets, but there is {real!r}. WithSynthetic "
            "makes no other labels (no texts, no "
            "measurements): name the label with label_key=, or let the dataset give class numbers."
        )
    return {int(number)}


def probabilities(label: Any, count: int) -> torch.Tensor:
    """A class label as float32 ``[count]``.

    Raises:
        UsageError: a class beyond ``count``; a label that is no class.

    Example:
        >>> probabilities(1, 3)
        tensor([0., 1., 0.])
    """
    if isinstance(label, (Mapping, Image.Image)) or getattr(label, "ndim", 0) >= 2:
        raise UsageError("num_classes and mixup are for class labels, but labels are masks or detection targets.")
    values = torch.as_tensor(label)
    if values.ndim == 1 and values.numel() > 1:
        if values.numel() != count:
            raise UsageError(f"num_classes is {count}, but labels are vectors of {values.numel()}.")
        return values.to(torch.float32)
    index = int(values)
    if not 0 <= index < count:
        raise UsageError(f"num_classes is {count}, but there is a label {index}: labels must be 0 to {count - 1}.")
    shares = torch.zeros(count, device=values.device)
    shares[index] = 1
    return shares


def _counts_boxes(value: Any, count: int) -> bool:
    return getattr(value, "ndim", 0) >= 1 or (isinstance(value, (list, tuple)) and len(value) == count and count != 0)


def _box_masks(truth: Truth, size: tuple[int, int]) -> torch.Tensor:
    """One mask a box: the region within it."""
    region = np.zeros(size, np.uint8) if truth.mask is None else truth.mask.astype(np.uint8)
    masks = np.zeros((len(truth.boxes), *size), np.uint8)
    for row, (x1, y1, x2, y2) in enumerate(truth.boxes):
        window = np.s_[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        masks[row][window] = region[window] if truth.mask is not None else 1
    return torch.from_numpy(masks)


def _like(real: Any, made: Any, values: torch.Tensor) -> Any:
    """Values as plain tensor or as the tv_tensor that the real one is, in its dtype."""
    from torchvision import tv_tensors

    values = values.to(real.dtype)
    if type(real) is torch.Tensor:
        return values
    return tv_tensors.wrap(values, like=made)


def _as(real: Any, made: Any) -> Any:
    """An entry in the real one's type: ``image_id`` may be a number or a tensor, ``area`` of any dtype."""
    if isinstance(real, torch.Tensor):
        if not isinstance(made, torch.Tensor):
            return torch.full_like(real, made)
        return made if made.dtype == real.dtype else made.to(real.dtype)
    return made.tolist() if isinstance(real, list) else made


def _palette(array: Array, real: Image.Image) -> Image.Image:
    image = Image.fromarray(array.astype(np.int32 if real.mode == "I" else np.uint8), mode=None)
    if real.mode == "P":
        image = image.convert("L")
        image.putpalette(real.getpalette() or [])
        return image
    return image.convert(real.mode)
