"""Layers of the GAN networks whose weights are scaled at run time.

Source: Karras et al., "Progressive growing of GANs" (ICLR 2018), section 4.1 (equalised learning rate) and 3 (minibatch
standard deviation); Karras et al., "A style-based generator architecture" (CVPR 2019) for the learning rate multiplier.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.networks.resample import conv_down

GAIN = math.sqrt(2)  # of the leaky rectifier, so that signals keep their size


def wide(x: Tensor) -> Tensor:
    """Half precision as float32: for sums and norms that must not overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def uncast(x: Tensor) -> torch.autocast:
    """No autocast within: layers of what :func:`wide` gave stay in float32, for styles, logits and images.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), uncast(torch.ones(1)):
        ...     nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype
        torch.float32
    """
    return torch.autocast(x.device.type, enabled=False)


def lrelu(x: Tensor, gain: float = GAIN, clamp: float = 0.0) -> Tensor:
    """Leaky ReLU of slope 0.2 below zero, times ``gain``; above 0, ``clamp`` limits the result."""
    x = F.leaky_relu(x, 0.2) * gain
    return x.clamp(-clamp, clamp) if clamp else x


def unit_moment(x: Tensor) -> Tensor:
    """Rows scaled to a mean square of 1.

    Example:
        >>> unit_moment(torch.tensor([[3.0, 4.0]])).square().mean().round().item()
        1.0
    """
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class Linear(nn.Module):
    """``act(x W^T scale + b)`` with stored weights of standard deviation ``1 / lr`` and scale ``lr / sqrt(inputs)``.

    Args:
        inputs: features in.
        outputs: features out.
        bias: start of the bias.
        activate: leaky ReLU after it.
        lr: multiplier of the learning rate of weight and bias.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, activate: bool = False, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr))
        self.activate, self.lr, self.scale = activate, lr, lr / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.lr == 1 else self.bias * self.lr
        x = F.linear(x, self.weight * self.scale, bias)
        return lrelu(x) if self.activate else x


class Conv(nn.Module):
    """A convolution of weights scaled by ``1 / sqrt(inputs * size^2)``, halving the image if ``down``, with leaky
    ReLU if ``bias``.

    Args:
        inputs: channels in.
        outputs: channels out.
        size: of the kernel, 1 or 3.
        bias: and the rectifier after it.
        down: by FIR, at half the size.
        gain: of what comes out.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, bias: bool = True, down: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.down, self.scale, self.gain = down, 1 / math.sqrt(inputs * size * size), gain

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            weight = self.weight * (self.scale * self.gain)
            return conv_down(x, weight) if self.down else F.conv2d(x, weight, padding=weight.shape[2] // 2)
        weight = self.weight * self.scale
        if self.down:
            x = conv_down(x, weight) + self.bias[:, None, None]
        else:
            x = F.conv2d(x, weight, self.bias, padding=weight.shape[2] // 2)
        return lrelu(x, GAIN * self.gain)


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """One more channel: the standard deviation over groups of samples, averaged over everything else.

    Sample i is in group ``i % (N / group)``, so that ranks that take every second sample hold whole groups.

    Args:
        x: ``[N, C, H, W]``.
        group: samples of a group; where N cannot be divided by it, the greatest number below that divides N.

    Example:
        >>> round(minibatch_std(torch.ones(4, 2, 1, 1), 4)[0, 2].item(), 7)  # of equal samples: the epsilon
        0.0001
    """
    count, channels, height, width = x.shape
    size = next(n for n in range(min(group, count), 0, -1) if count % n == 0)
    grouped = wide(x).reshape(size, -1, channels, height, width)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    plane = std.repeat(size).to(x.dtype).reshape(-1, 1, 1, 1).expand(-1, 1, height, width)
    return torch.cat([x, plane], dim=1)
