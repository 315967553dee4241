"""A small class-conditional pair for 8 to 64 pixels: the plain baseline that everything else must beat.

Source: Mirza and Osindero, "Conditional generative adversarial nets" (2014), with the layers of Radford et al.,
"Unsupervised representation learning with deep convolutional generative adversarial networks" (ICLR 2016), section 3;
no norm in the discriminator, so that penalties on its gradient mean what they say.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core.errors import UsageError
from visynth.networks.layers import uncast, wide
from visynth.networks.norm import Norm


class CGAN(nn.Module):
    """Latents ``z [N, z_dim]`` and labels ``[N]`` to images ``[N, C, size, size]`` in [-1, 1].

    Args:
        size: 8, 16, 32 or 64.
        channels: of the images.
        classes: at least 1.
        z_dim: of the latent.
        width: channels at half the size.

    Example:
        >>> network = CGAN(16, 1, 2, z_dim=8, width=4).eval()
        >>> tuple(network(torch.randn(3, 8), torch.tensor([0, 1, 1])).shape)
        (3, 1, 16, 16)
    """

    def __init__(self, size: int, channels: int, classes: int, z_dim: int = 100, width: int = 64) -> None:
        super().__init__()
        self.z_dim, self.classes = z_dim, classes
        steps = _steps(size)
        self.start = width * 2 ** (steps - 1)
        self.embed = nn.Embedding(classes, z_dim)
        self.first, self.first_norm = nn.Linear(2 * z_dim, self.start * 16, bias=False), Norm(self.start)
        widths = [self.start // 2**n for n in range(steps)]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(Norm(b) for b in widths[1:])
        self.last = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1)
        _small_start(self)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.first(torch.cat([z, self.embed(labels)], dim=1)).reshape(len(z), self.start, 4, 4)
        x = F.relu(self.first_norm(x))
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = F.relu(norm(up(x)))
        return torch.tanh(wide(self.last(x)))


class CGANDiscriminator(nn.Module):
    """Images with a map of their class to logits ``[N]``.

    Example:
        >>> network = CGANDiscriminator(16, 1, 2, width=4)
        >>> tuple(network(torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 1])).shape)
        (3,)
    """

    def __init__(self, size: int, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(classes, size * size)
        widths = [channels + 1, *(width * 2**n for n in range(_steps(size)))]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        self.last = nn.Linear(widths[-1] * 16, 1)
        _small_start(self)

    def blocks(self) -> list[nn.Module]:
        return [*self.downs, self.last]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = self.embed(labels).reshape(-1, 1, self.size, self.size).to(x.dtype)
        x = torch.cat([x, plane], dim=1)
        for down in self.downs:
            x = F.leaky_relu(down(x), 0.2)
        with uncast(x):
            logits: Tensor = self.last(wide(x.flatten(1)))[:, 0]
        return logits


def _steps(size: int) -> int:
    if size not in (8, 16, 32, 64):
        raise UsageError(f"the plain cGAN makes images of 8, 16, 32 or 64 pixels, but got {size}.")
    return int(math.log2(size)) - 2


def _small_start(network: nn.Module) -> None:
    """Weights of standard deviation 0.02, as DCGAN starts."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.02)
