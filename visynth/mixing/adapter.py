"""Making a synthetic image look like the user's own: same container, type, channels, size and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from visynth.core.codec import Array
from visynth.core.errors import UsageError
from visynth.core.pictures import GREY, resize
from visynth.mixing.dataset import as_pil


@dataclass(frozen=True)
class Adapter:
    """Turns a rendered array ``[H, W, C]`` into what the user's dataset gives, inferred from one real image.

    Attributes:
        kind: "pil", "tensor" or "array".
        channels: 1 to 8.
        size: (height, width).
        dtype: of the values.
        low: what black becomes, and
        high: what white becomes: one number, or one a channel where images are normalised.
        channels_first: ``[C, H, W]``.
        flat: ``[H, W]``, without an axis for the channel.
        mode: of PIL images.
        wrap: a tensor subclass.

    Example:
        >>> adapter = Adapter.like(torch.rand(3, 8, 8))
        >>> made = adapter(np.full((16, 16, 1), 255, np.uint8))
        >>> tuple(made.shape), float(made.max())
        ((3, 8, 8), 1.0)
    """

    kind: str
    channels: int
    size: tuple[int, int]
    dtype: Any
    high: Any
    low: Any = 0.0
    channels_first: bool = False
    flat: bool = False
    mode: str = ""
    wrap: Callable[[torch.Tensor], Any] | None = None

    @classmethod
    def like(cls, image: Any, values: Any = None) -> Adapter:
        """From one real image: PIL, tensor or array, ``[H, W]``, ``[C, H, W]`` or ``[H, W, C]``.

        Args:
            image: the real one.
            values: more real values to tell the range from, by default the image's own.

        Raises:
            UsageError: another type, or values that show that they were normalised: their mean and standard deviation
                cannot be guessed, so a transform must be given.
        """
        if isinstance(image, Image.Image):
            return cls("pil", len(image.getbands()), (image.height, image.width), np.uint8, 255.0, mode=image.mode)
        if not isinstance(image, (torch.Tensor, np.ndarray)) or image.ndim not in (2, 3):
            shape = list(getattr(image, "shape", []))
            raise UsageError(
                "images must be PIL images, tensors or arrays of two or three dimensions, but got "
                f"{type(image).__name__} "
                f"{shape or ''}: give transform=, or name the image with image_key=."
            )
        tensor = isinstance(image, torch.Tensor)
        first = image.ndim == 3 and (image.shape[0] <= 8 < image.shape[2] or (tensor and image.shape[2] > 4))
        height, width = image.shape[-2:] if first or image.ndim == 2 else image.shape[:2]
        channels = 1 if image.ndim == 2 else int(image.shape[0] if first else image.shape[2])
        low, high = _bounds(image if values is None else values)
        floating = image.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16) or (
            not tensor and np.issubdtype(np.asarray(image).dtype, np.floating)
        )
        if floating:
            if low < 0:
                raise UsageError(
                    f"the dataset's images have values from {low:.2f} to {high:.2f}: they were normalised in a way "
                    "that cannot be "
                    "guessed. Give transform= (it gets a PIL image, or an array [H, W, C]) that ends like your own."
                )
            top = 1.0 if high <= 1.0 else 255.0 if high <= 255.0 else 65535.0
        else:
            top = 255.0 if image.dtype in (torch.uint8, np.uint8) else 65535.0
        wrap = None
        if tensor and type(image) is not torch.Tensor:
            from torchvision import tv_tensors

            wrap = tv_tensors.Image if isinstance(image, tv_tensors.Image) else None
        kind = "tensor" if tensor else "array"
        return cls(
            kind, channels, (int(height), int(width)), image.dtype, top, 0.0, first, image.ndim == 2, "", wrap
        )  # fmt: skip

    def between(self, low: Any, high: Any) -> Adapter:
        """The same for black and white that become other values, one a channel."""
        return replace(self, low=low, high=high)

    def __call__(self, image: Array) -> Any:
        """The rendered array as the user's dataset would give it."""
        values = _channels(image, self.channels)
        if self.kind == "pil":  # PIL users resize in their own transforms
            scaled = values if values.dtype == np.uint8 else (values / 257).astype(np.uint8)
            return as_pil(scaled).convert(self.mode)
        self._check_shape(values.shape[:2])
        values = resize(values, self.size).astype(np.float64) / np.iinfo(image.dtype).max
        values = np.asarray(self.low) + values * (np.asarray(self.high) - np.asarray(self.low))
        values = values.transpose(2, 0, 1) if self.channels_first else values
        values = values.reshape(self.size) if self.flat else values
        if self.kind == "array":
            return (values if np.issubdtype(self.dtype, np.floating) else np.rint(values)).astype(self.dtype)
        out = torch.from_numpy(np.ascontiguousarray(values))
        out = (out if self.dtype.is_floating_point else out.round()).to(self.dtype)
        return self.wrap(out) if self.wrap else out

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        """The same for integers ``[N, C, H, W]`` at once, on their device: what mixing during training calls.

        Example:
            >>> adapter = Adapter.like(torch.rand(3, 8, 8)).between(-1.0, 1.0)
            >>> adapter.batch(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)).unique()
            tensor([1.])
        """
        top = torch.iinfo(images.dtype).max
        values = images.to(torch.float32) / top
        if values.shape[1] != self.channels:
            if values.shape[1] == 1:
                values = values.expand(-1, self.channels, -1, -1)
            elif values.shape[1] == 4 and self.channels == 3:
                values = values[:, :3]
            elif values.shape[1] == 3 and self.channels == 1:
                weights = torch.tensor(GREY, device=values.device).reshape(1, 3, 1, 1)
                values = (values * weights).sum(dim=1, keepdim=True)
            else:
                raise _other_channels(values.shape[1], self.channels)
        self._check_shape((values.shape[2], values.shape[3]))
        if tuple(values.shape[-2:]) != self.size:
            values = torch.nn.functional.interpolate(values, self.size, mode="bilinear", antialias=True)
        low, high = (
            torch.as_tensor(bound, dtype=torch.float32, device=values.device).reshape(1, -1, 1, 1)
            for bound in (self.low, self.high)
        )
        values = low + values * (high - low)
        values = values if self.channels_first else values.permute(0, 2, 3, 1)
        values = values.squeeze(-1) if self.flat else values
        return (values if self.dtype.is_floating_point else values.round()).to(self.dtype)

    def _check_shape(self, size: tuple[int, ...]) -> None:
        ratio = (size[0] / size[1]) / (self.size[0] / self.size[1])
        if abs(ratio - 1) > 0.02:
            raise UsageError(
                f"rendered images are {size[0]}x{size[1]}, the dataset's samples {self.size[0]}x{self.size[1]}: "
                "that would squash them. Give transform= that crops or resizes as your own does."
            )


def move(geometry: Mapping[str, Any] | torch.Tensor, size: tuple[int, int], to: tuple[int, int]) -> Any:
    """Boxes and masks of an image of one size for the image resized to another; what else there is stays.

    Example:
        >>> from torchvision import tv_tensors
        >>> boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 8]], format="XYXY", canvas_size=(8, 8))
        >>> move({"boxes": boxes}, (8, 8), (16, 4))["boxes"].tolist()
        [[0, 0, 2, 16]]
    """
    if size == to:
        return geometry
    from torchvision.transforms.v2.functional import resize as resized

    if isinstance(geometry, Mapping):
        moved = {k: resized(v, list(to)) if k in ("boxes", "masks") and len(v) else v for k, v in geometry.items()}
        if "masks" in geometry and not len(geometry["masks"]):
            moved["masks"] = type(geometry["masks"])(geometry["masks"].new_zeros((0, *to)))
        return moved
    return resized(geometry, list(to))


def _bounds(values: Any) -> tuple[float, float]:
    flat = (
        values.detach().cpu().numpy() if isinstance(values, torch.Tensor) and values.dtype != torch.bfloat16 else values
    )
    flat = (
        flat.float().cpu().numpy() if isinstance(flat, torch.Tensor) else np.asarray(flat)
    )  # torch cannot compare 16-bit values
    return float(flat.min()), float(flat.max())


def _channels(image: Array, wanted: int) -> Array:
    have = image.shape[2]
    if have == wanted:
        return image
    if have == 1:
        return np.repeat(image, wanted, axis=2)
    if have == 4 and wanted == 3:
        return image[:, :, :3]
    if have == 3 and wanted == 1:
        return np.asarray(np.rint(image.astype(np.float64) @ np.array(GREY)).astype(image.dtype)[:, :, None])
    raise _other_channels(have, wanted)


def _other_channels(have: int, wanted: int) -> UsageError:
    return UsageError(
        f"rendered images have {have} channels, the dataset's samples {wanted}: render from images of the same kind, "
        "or give transform=."
    )
