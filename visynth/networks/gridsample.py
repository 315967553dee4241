"""Bilinear sampling that can be differentiated twice with respect to the image, on every device and torch version.

Sampling is linear in the image: its gradient is a scattering, and the gradient of that is sampling again. Writing
this down makes penalties on gradients (R1) work through geometric augmentation, where torch's own second derivative is
missing on some devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

MODES = {"zeros": 0, "border": 1, "reflection": 2}


def grid_sample(images: Tensor, grid: Tensor, padding: str = "reflection", nearest: bool = False) -> Tensor:
    """``F.grid_sample(images, grid, mode, padding, align_corners=False)`` for a grid that needs no gradient.

    Args:
        images: ``[N, C, H, W]``.
        grid: ``[N, h, w, 2]`` of x and y in [-1, 1].
        padding: ``"zeros"``, ``"border"`` or ``"reflection"``.
        nearest: values of the nearest pixels instead of bilinear ones.
    """
    sampled: Tensor = _Sample.apply(images, grid.to(images.dtype), padding, nearest)
    return sampled


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor, padding: str, nearest: bool) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape, ctx.how = images.shape, (padding, nearest)
        return F.grid_sample(images, grid, "nearest" if nearest else "bilinear", padding, align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Scatter.apply(gradient, grid, ctx.shape, *ctx.how), None, None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size, padding: str, nearest: bool) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.how = padding, nearest
        # The values of the image do not matter for its own gradient.
        image = gradient.new_zeros(()).expand(shape)
        backward = torch.ops.aten.grid_sampler_2d_backward
        scattered: Tensor = backward(
            gradient.contiguous(), image, grid, int(nearest), MODES[padding], False, [True, False]
        )[0]
        return scattered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(gradient, grid, *ctx.how), None, None, None, None
