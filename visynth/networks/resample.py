"""FIR resampling with the filter [1, 3, 3, 1], and convolutions that change the resolution.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), section 3 and appendix B,
cited as *StyleGAN2*; Zhang, "Making convolutional networks shift-invariant again" (ICML 2019). Two separable passes are
faster than one 4x4 filter, than pooling and than a filter folded into the convolution; scripts/bench/gan_step.py
measures them.

All functions take ``[N, C, H, W]`` of any float type, and zeros stand outside of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

TAPS = (1.0, 3.0, 3.0, 1.0)


def upfirdn(
    x: Tensor, taps: Sequence[float], up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0
) -> Tensor:
    """Insert zeros, pad, filter and keep every ``down``-th value, along both axes.

    Args:
        x: ``[N, C, H, W]``.
        taps: of a separable filter; they are divided by their sum.
        up: ``up - 1`` zeros come after each value.
        down: of the result.
        pad: zeros before and after, along both axes; negative ones crop.
        gain: factor of the result.

    Example:
        >>> upfirdn(torch.ones(1, 1, 1, 2), [1, 1], up=2, pad=(1, 0), gain=4).shape
        torch.Size([1, 1, 2, 4])
    """
    count, channels, height, width = x.shape
    if up > 1:
        spread = x.new_zeros(count, channels, height, up, width, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(count, channels, height * up, width * up)
    x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    # Convolution mirrors the filter, torch's does not.
    kernel = torch.tensor(list(taps)[::-1], dtype=x.dtype, device=x.device) / sum(taps)
    kernel = kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(x, kernel * gain, stride=(1, down), groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), stride=(down, 1), groups=channels)


def blur(x: Tensor, pad: tuple[int, int]) -> Tensor:
    """The filter [1, 3, 3, 1] / 8 along both axes after zero padding."""
    return upfirdn(x, TAPS, pad=pad)


def downsample(x: Tensor) -> Tensor:
    """Half the size; ``H`` and ``W`` must be even.

    Example:
        >>> downsample(torch.ones(1, 1, 8, 8))[0, 0, 1, 1].item()
        1.0
    """
    return upfirdn(x, TAPS, down=2, pad=(1, 1))


def upsample(x: Tensor) -> Tensor:
    """Twice the size: each new value is 3/4 of the nearer and 1/4 of the farther old one, along both axes.

    Example:
        >>> upsample(torch.ones(1, 1, 4, 4))[0, 0, 1, 2].item()
        1.0
    """
    return upfirdn(x, TAPS, up=2, pad=(2, 1), gain=4)


def conv_up(x: Tensor, weight: Tensor) -> Tensor:
    """``upfirdn(x, TAPS, up=2, pad=(3, 2), gain=4)`` and then a convolution without padding; twice the size.

    The convolution is done before the filter, at a quarter of the cost: both are linear and commute. It is a true
    convolution, with ``weight [O, I, 3, 3]`` mirrored where torch's ``conv2d`` does not mirror it, as public StyleGAN2
    checkpoints have it.
    """
    spread = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [2 H + 1, 2 W + 1]
    return blur(spread, (1, 1)) * 4


def conv_down(x: Tensor, weight: Tensor) -> Tensor:
    """``upfirdn(x, TAPS, pad=(2, 2))`` and then every second value of a convolution ``weight [O, I, K, K]``, K 1 or 3;
    half the size."""
    if weight.shape[2] == 1:
        return F.conv2d(downsample(x), weight)
    return F.conv2d(blur(x, (2, 2)), weight, stride=2)
