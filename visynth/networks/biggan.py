"""BigGAN: residual generator and discriminator with spectral normalisation, class-conditional norms, self-attention and
hierarchical latents.

Source: Brock et al., "Large scale GAN training for high fidelity natural image synthesis" (ICLR 2019), sections 3 and
appendix B (tables 4 to 9, deep ones included); Zhang et al., "Self-attention generative adversarial networks" (ICML
2019), eqs. 1 to 3; Miyato et al., "Spectral normalization" (ICLR 2018).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name
from torch.nn.utils.parametrizations import spectral_norm

from visynth.core.errors import UsageError
from visynth.networks.layers import uncast, wide
from visynth.networks.norm import Norm

# Widths from 4 pixels up, in units of ``width``; the last one is at full size.
WIDTHS = {
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}


def conv(inputs: int, outputs: int, size: int) -> nn.Module:
    """A convolution with orthogonal start and spectral normalisation."""
    return _normed(nn.Conv2d(inputs, outputs, size, padding=size // 2))


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    return _normed(nn.Linear(inputs, outputs, bias=bias))


def _normed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer, eps=1e-6)


def _plain(inputs: int, outputs: int) -> nn.Module:
    return linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Self-attention with a learned weight that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = conv(channels, max(channels // 8, 1), 1), conv(channels, max(channels // 8, 1), 1)
        self.value, self.out = conv(channels, channels // 2, 1), conv(channels // 2, channels, 1)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key, value = (F.max_pool2d(keys_values, 2).flatten(2) for keys_values in (self.key(x), self.value(x)))
        shares = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # [N, H W, H W / 4]
        mixed = (value @ shares.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
        keys_values: Tensor = self.weight * self.out(mixed) + x
        return keys_values


class GeneratorBlock(nn.Module):
    """Twice the size: norm, rectifier and convolution, twice, beside a shortcut; ``deep`` is the bottleneck form of
    four convolutions."""

    def __init__(self, inputs: int, outputs: int, condition: int, up: bool, deep: bool) -> None:
        super().__init__()
        self.outputs, self.up, self.deep = outputs, up, deep
        hidden = inputs // 4 if deep else outputs
        widths = [inputs, hidden, hidden, hidden, outputs] if deep else [inputs, outputs, outputs]
        sizes = [1, 3, 3, 1] if deep else [3, 3]
        pairs = list(itertools.pairwise(widths))
        self.norms = nn.ModuleList(Norm(a, condition, _plain) for a, _ in pairs)
        self.convs = nn.ModuleList(conv(a, b, size) for (a, b), size in zip(pairs, sizes, strict=True))
        if not deep:
            self.skip = conv(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y, grows = x, 1 if self.deep else 0
        for number, (norm, layer) in enumerate(zip(self.norms, self.convs, strict=True)):
            y = F.relu(norm(y, condition))
            if self.up and number == grows:
                y = F.interpolate(y, scale_factor=2.0)
            y = layer(y)
        short = x[:, : self.outputs] if self.deep else x
        if self.up:
            short = F.interpolate(short, scale_factor=2.0)
        return y + (short if self.deep else self.skip(short))


class DiscriminatorBlock(nn.Module):
    """Half the size, likewise."""

    def __init__(self, inputs: int, outputs: int, first: bool, down: bool, deep: bool) -> None:
        super().__init__()
        self.first, self.down, self.deep = first, down, deep
        hidden = outputs // 4 if deep else outputs
        widths = [inputs, hidden, hidden, hidden, outputs] if deep else [inputs, outputs, outputs]
        sizes = [1, 3, 3, 1] if deep else [3, 3]
        self.convs = nn.ModuleList(conv(a, b, size) for a, b, size in zip(widths, widths[1:], sizes, strict=False))
        if not deep:
            self.skip = conv(inputs, outputs, 1)
        elif outputs > inputs:
            self.skip = conv(inputs, outputs - inputs, 1)  # the channels that the shortcut lacks

    def forward(self, x: Tensor) -> Tensor:
        y = x
        last = len(self.convs) - 1
        for number, layer in enumerate(self.convs):
            y = y if self.first and number == 0 else F.relu(y)
            if self.deep and self.down and number == last:
                y = F.avg_pool2d(y, 2)
            y = layer(y)
        if self.down and not self.deep:
            y = F.avg_pool2d(y, 2)
        short = F.avg_pool2d(x, 2) if self.down else x
        if not self.deep:
            short = self.skip(short)
        elif hasattr(self, "skip"):
            short = torch.cat([short, self.skip(short)], dim=1)
        return y + short


class BigGAN(nn.Module):
    """Latents ``z [N, z_dim]`` and labels ``[N]`` to images ``[N, C, size, size]`` in [-1, 1].

    Args:
        size: 16, 32, 64, 128 or 256.
        channels: of the images.
        classes: at least 1.
        z_dim: of the latent; a part of it goes to each block.
        width: unit of all widths.
        shared: width of the class embedding that all norms share.
        attention: resolution with self-attention; 0 for none.
        deep: bottleneck blocks, two a resolution.

    Example:
        >>> network = BigGAN(16, 1, 2, z_dim=12, width=4, shared=8, attention=0).eval()
        >>> tuple(network(torch.randn(3, 12), torch.tensor([0, 1, 1])).shape)
        (3, 1, 16, 16)
    """

    def __init__(
        self,
        size: int,
        channels: int,
        classes: int,
        z_dim: int = 120,
        width: int = 64,
        shared: int = 128,
        attention: int = 0,
        deep: bool = False,
    ) -> None:
        super().__init__()
        widths = [width * unit for unit in _widths(size)]
        places = [8 * 2**number for number in range(len(widths) - 1)]
        if attention and attention not in places:
            raise UsageError(
                f"attention must be 0 or one of {', '.join(map(str, places))} pixels, but got {attention}."
            )
        self.z_dim, self.classes, self.deep = z_dim, classes, deep
        count = len(widths)  # one part of the latent for the start, one a block
        self.part = z_dim if deep else z_dim // count
        if self.part < 1:
            raise UsageError(f"z_dim must be at least {count}, one number for each level, but got {z_dim}.")
        self.embed = nn.Embedding(classes, shared)
        nn.init.orthogonal_(self.embed.weight)
        condition = shared + self.part
        self.first = linear(condition if deep else self.part, widths[0] * 16)
        self.start = widths[0]
        blocks: list[nn.Module] = []
        self.levels: list[int] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            if deep:
                blocks.append(GeneratorBlock(inputs, inputs, condition, up=False, deep=True))
                self.levels.append(number)
            blocks.append(GeneratorBlock(inputs, outputs, condition, up=True, deep=deep))
            self.levels.append(number)
            if 8 * 2**number == attention:
                blocks.append(Attention(outputs))
                self.levels.append(-1)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.last = Norm(widths[-1]), conv(widths[-1], channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        given = self.embed(labels) if labels.ndim == 1 else labels @ self.embed.weight
        parts = [z] * (len(self.levels) + 1) if self.deep else list(torch.split(z, self.part, dim=1))
        x = self.first(torch.cat([given, z], dim=1) if self.deep else parts[0]).reshape(len(z), self.start, 4, 4)
        for level, block in zip(self.levels, self.blocks, strict=True):
            x = block(x) if level < 0 else block(x, torch.cat([given, parts[level + 1]], dim=1))
        return torch.tanh(wide(self.last(F.relu(self.norm(x)))))


class BigGANDiscriminator(nn.Module):
    """Images and labels to logits ``[N]``, by global sum pooling and projection.

    Example:
        >>> network = BigGANDiscriminator(16, 1, 2, width=4)
        >>> tuple(network(torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 1])).shape)
        (3,)
    """

    def __init__(
        self, size: int, channels: int, classes: int, width: int = 64, attention: int = 0, deep: bool = False
    ) -> None:
        super().__init__()
        widths = [width * unit for unit in _widths(size)][::-1]
        inputs, layers, resolution = channels, [], size
        if deep:
            layers.append(conv(channels, widths[0], 3))
            inputs = widths[0]
        for number, outputs in enumerate(widths):
            down = number < len(widths) - 1  # at 4 pixels nothing is left to halve
            layers.append(DiscriminatorBlock(inputs, outputs, not deep and number == 0, down, deep))
            inputs = outputs
            resolution //= 2 if down else 1
            if resolution == attention and down:
                layers.append(Attention(outputs))
        self.layers = nn.ModuleList(layers)
        self.out, self.embed = linear(inputs, 1), spectral_norm(nn.Embedding(classes, inputs), eps=1e-6)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        pooled = wide(F.relu(x)).sum(dim=(2, 3))
        with uncast(pooled):
            logits: Tensor = self.out(pooled)[:, 0] + (self.embed(labels) * pooled).sum(dim=1)
        return logits


def _widths(size: int) -> Sequence[int]:
    if size not in WIDTHS:
        raise UsageError(f"BigGAN makes images of {', '.join(map(str, WIDTHS))} pixels, but got {size}.")
    assert math.log2(size) - 1 == len(WIDTHS[size])
    return WIDTHS[size]
