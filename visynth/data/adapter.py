"""Making a synthetic picture look like the user's own samples: same container, type, channels, size, range and label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.data.decode import Array
from visynth.data.synthetic import as_picture
from visynth.errors import UsageError, choices
from visynth.pictures import resize

IMAGE_KEYS = ("image", "img", "x", "pixel_values", "input")
LABEL_KEYS = ("label", "target", "y", "class", "labels")


@dataclass(frozen=True)
class Shape:
    """How the user's dataset wraps a sample: ``(image, label)`` by place or a dict by key."""

    container: type
    image: Any
    label: Any

    @classmethod
    def of(cls, sample: Any, image_key: str | None = None, label_key: str | None = None) -> Shape:
        """From one real sample.

        Raises:
            UsageError: neither a pair nor a dict with an image and a label.
        """
        if isinstance(sample, Mapping):
            image = image_key or next((k for k in IMAGE_KEYS if k in sample), None)
            label = label_key or next((k for k in LABEL_KEYS if k in sample), None)
            if image not in sample or label not in sample:
                raise UsageError(
                    f"samples are dicts with the keys {choices(sample)}: name the image and the label with image_key= and label_key=."
                )
            return cls(dict, image, label)
        if isinstance(sample, (tuple, list)) and len(sample) >= 2:
            return cls(type(sample), 0, 1)
        raise UsageError(
            f"samples must be (image, label) or dicts, but the dataset gives {type(sample).__name__}: wrap it, or return a pair."
        )

    def put(self, real: Any, image: Any, label: Any) -> Any:
        """A sample in the real one's container; what else the real one held is kept."""
        if isinstance(real, Mapping):
            return {**real, self.image: image, self.label: label}
        rest = list(real)
        rest[self.image], rest[self.label] = image, label
        return type(real)(*rest) if hasattr(real, "_fields") else type(real)(rest)


@dataclass(frozen=True)
class Adapter:
    """Turns a rendered array ``[H, W, C]`` into what the user's dataset gives, inferred from one real image.

    Example:
        >>> adapter = Adapter.like(torch.rand(3, 8, 8))
        >>> made = adapter(np.full((16, 16, 1), 255, np.uint8))
        >>> tuple(made.shape), float(made.max())
        ((3, 8, 8), 1.0)
    """

    kind: str  # "pil", "tensor" or "array"
    channels: int
    size: tuple[int, int]
    dtype: Any
    top: float
    channels_first: bool
    mode: str = ""
    wrap: Callable[[torch.Tensor], Any] | None = None

    @classmethod
    def like(cls, image: Any) -> Adapter:
        """From one real image: PIL, tensor ``[C, H, W]``, or array ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``.

        Raises:
            UsageError: another type, or values that show that they were normalised: their mean and standard deviation
                cannot be guessed, so a transform must be given.
        """
        if isinstance(image, Image.Image):
            return cls("pil", len(image.getbands()), (image.height, image.width), np.uint8, 255.0, False, image.mode)
        if not isinstance(image, (torch.Tensor, np.ndarray)) or image.ndim not in (2, 3):
            raise UsageError(
                f"images must be PIL images, tensors or arrays, but the dataset gives {type(image).__name__}: give transform=."
            )
        tensor = isinstance(image, torch.Tensor)
        values = torch.as_tensor(np.asarray(image) if not tensor else image).detach()
        first = image.ndim == 3 and (tensor or image.shape[0] <= 8 < image.shape[2])
        height, width = values.shape[-2:] if first or image.ndim == 2 else values.shape[:2]
        channels = 1 if image.ndim == 2 else int(values.shape[0] if first else values.shape[2])
        flat = np.asarray(image if not tensor else values.cpu())  # torch cannot compare its 16-bit values
        low, high = float(flat.min()), float(flat.max())
        if values.dtype.is_floating_point:
            if low < 0:
                raise UsageError(
                    f"the dataset's images have values from {low:.2f} to {high:.2f}: they were normalised in a way that cannot be guessed. "
                    "Give transform= (it gets a PIL image, or an array [H, W, C]) that ends like your own."
                )
            top = 1.0 if high <= 1.0 else 255.0 if high <= 255.0 else 65535.0
        else:
            top = 255.0 if values.dtype == torch.uint8 else 65535.0
        wrap = None
        if tensor and type(image) is not torch.Tensor:
            from torchvision import tv_tensors

            wrap = tv_tensors.Image if isinstance(image, tv_tensors.Image) else None
        return cls(
            "tensor" if tensor else "array",
            channels,
            (int(height), int(width)),
            image.dtype,
            top,
            first or (tensor and image.ndim == 2),
            "",
            wrap,
        )

    def __call__(self, picture: Array) -> Any:
        """The rendered array as the user's dataset would give it."""
        values = _channels(picture, self.channels)
        if self.kind == "pil":  # PIL users resize in their own transforms
            scaled = values if values.dtype == np.uint8 else (values / 257).astype(np.uint8)
            return as_picture(scaled).convert(self.mode)
        values = self._sized(values)
        scale = self.top / np.iinfo(picture.dtype).max
        if self.kind == "tensor":
            out = torch.from_numpy(
                np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32) * np.float32(scale)
            )
            out = (out if self.dtype.is_floating_point else out.round()).to(self.dtype)
            return self.wrap(out) if self.wrap else out
        array = values.astype(np.float64) * scale
        array = (array if np.issubdtype(self.dtype, np.floating) else np.rint(array)).astype(self.dtype)
        return array.transpose(2, 0, 1) if self.channels_first else array

    def _sized(self, values: Array) -> Array:
        if values.shape[:2] == self.size:
            return values
        ratio = (values.shape[0] / values.shape[1]) / (self.size[0] / self.size[1])
        if abs(ratio - 1) > 0.02:
            raise UsageError(
                f"rendered images are {values.shape[0]}x{values.shape[1]}, the dataset's samples {self.size[0]}x{self.size[1]}: "
                "that would squash them. Give transform= that crops or resizes as your own does."
            )
        return resize(values, self.size)


def _channels(picture: Array, wanted: int) -> Array:
    have = picture.shape[2]
    if have == wanted:
        return picture
    if have == 1:
        return np.repeat(picture, wanted, axis=2)
    if have == 4 and wanted == 3:
        return picture[:, :, :3]
    raise UsageError(
        f"rendered images have {have} channels, the dataset's samples {wanted}: render from images of the same kind, or give transform=."
    )


def label_like(real: Any, index: int) -> Any:
    """A class index in the type of a real label: number, numpy or tensor scalar (also of shape ``[1]``), or one-hot vector.

    Raises:
        UsageError: a label of another kind (a mask, boxes, text).

    Example:
        >>> label_like(torch.tensor([0.0, 1.0, 0.0]), 2)
        tensor([0., 0., 1.])
        >>> label_like(torch.tensor([0.0]), 1)
        tensor([1.])
    """
    if isinstance(real, torch.Tensor) and real.ndim <= 1:
        if real.numel() == 1:
            return torch.full_like(real, index)
        made = torch.zeros_like(real)
        made[index] = 1
        return made
    if isinstance(real, np.ndarray) and real.ndim <= 1:
        return np.full_like(real, index) if real.size == 1 else np.eye(len(real), dtype=real.dtype)[index]
    if isinstance(real, (int, float, np.generic)) and not isinstance(real, bool):
        return type(real)(index)
    if isinstance(real, bool):
        return bool(index)
    raise UsageError(
        f"labels are {type(real).__name__}{list(getattr(real, 'shape', [])) or ''}: WithSynthetic makes class labels only, "
        "not masks, boxes or text."
    )


def check_extras(sample: Any, shape: Shape) -> None:
    """Refuse samples that carry more pictures: a synthetic sample would bring another image's mask along.

    Raises:
        UsageError: a further field with two or more dimensions, or a dict.
    """
    fields = sample.items() if isinstance(sample, Mapping) else enumerate(sample)
    more = [key for key, value in fields if key not in (shape.image, shape.label) and _is_picture(value)]
    if more:
        raise UsageError(
            f"samples carry {choices(more)} beside image and label: a synthetic sample cannot fill them. "
            "Give a dataset of images and class labels to WithSynthetic."
        )


def _is_picture(value: Any) -> bool:
    return isinstance(value, (dict, Image.Image)) or getattr(value, "ndim", 0) >= 2
