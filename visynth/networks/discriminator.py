"""Discriminators: residual with projection, and what they share.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), section 4.1 (residual
blocks); Miyato and Koyama, "cGANs with projection discriminator" (ICLR 2018), eq. 3, with the embedding through a
mapping as in Karras et al. (NeurIPS 2020), appendix D. Parameters are named as in public StyleGAN2 checkpoints.
"""

from __future__ import annotations

import math

from safetensors.torch import save
from torch import Tensor, nn

from visynth.networks.layers import Conv, Linear, minibatch_std, uncast, wide
from visynth.networks.stylegan2 import Mapping, channels_at, resolutions

FILE = "discriminator.safetensors"  # in a generator's folder


class ResidualBlock(nn.Module):
    """Features at one resolution to half of it; both branches are scaled by sqrt(1/2)."""

    def __init__(self, channels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        if channels:
            self.fromrgb = Conv(channels, inputs, 1)
        self.conv0 = Conv(inputs, inputs, 3)
        self.conv1 = Conv(inputs, outputs, 3, down=True, gain=math.sqrt(0.5))
        self.skip = Conv(inputs, outputs, 1, bias=False, down=True, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        short = self.skip(x)
        y: Tensor = self.conv1(self.conv0(x)) + short
        return y


class Epilogue(nn.Module):
    """4x4 features to logits: minibatch standard deviation, convolution, and a projection on the class if there is one.

    With ``both`` the class's logit stands beside an unconditional one (transitional).
    """

    def __init__(self, width: int, size: int, embedding: int, group: int, both: bool) -> None:
        super().__init__()
        self.group, self.embedding, self.both = group, embedding, both
        self.conv = Conv(width + (1 if group > 1 else 0), width, 3)
        self.fc = Linear(width * size * size, width, activate=True)
        self.out = Linear(width, embedding or 1)
        if both and embedding:
            self.plain = Linear(width, 1)

    def forward(self, x: Tensor, embedded: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.group > 1:
            x = minibatch_std(x, self.group)
        x = wide(self.conv(x).flatten(1))
        with uncast(x):
            x = self.fc(x)
            out = self.out(x)
            if embedded is None:
                return out[:, 0], None
            projected = (out * embedded).sum(dim=1) / math.sqrt(self.embedding)
            return projected, (self.plain(x)[:, 0] if self.both else None)


class Discriminator(nn.Module):
    """Images ``[N, C, size, size]`` and labels ``[N]`` -> logits ``[N]`` (high: real).

    Args:
        size: height and width, a power of two from 8 to 1024.
        channels: of the images.
        classes: 0 for an unconditional one.
        base: width is ``min(base / resolution, most)``.
        most: channels.
        group: of the minibatch standard deviation; 1 turns it off.
        layers: of the mapping of the class.
        both: a second, unconditional logit, see :meth:`logits`.

    Example:
        >>> import torch
        >>> network = Discriminator(16, 1, 2, base=64, most=8)
        >>> tuple(network(torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 1])).shape)
        (3,)
    """

    def __init__(
        self,
        size: int,
        channels: int,
        classes: int,
        base: int = 16384,
        most: int = 512,
        group: int = 4,
        layers: int = 8,
        both: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.classes = resolutions(size)[::-1], classes
        for number, resolution in enumerate(self.sizes[:-1]):
            inputs, outputs = (channels_at(r, base, most) for r in (resolution, resolution // 2))
            setattr(self, f"b{resolution}", ResidualBlock(channels if not number else 0, inputs, outputs))
        width = channels_at(4, base, most)
        if classes:
            self.mapping = Mapping(0, classes, width, layers, average=False)
        self.b4 = Epilogue(width, 4, width if classes else 0, group, both)

    def blocks(self) -> list[nn.Module]:
        """From the image to the logits: what freezing counts."""
        return [getattr(self, f"b{resolution}") for resolution in self.sizes]

    def logits(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits ``[N]``, and the unconditional ones where ``both`` asked for them."""
        for block in self.blocks()[:-1]:
            x = block(x)
        embedded = self.mapping(None, labels) if self.classes else None
        features: tuple[Tensor, Tensor | None] = self.b4(x, embedded)
        return features

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.logits(x, labels)[0]


def stored(weights: dict[str, Tensor]) -> dict[str, bytes]:
    """A discriminator's weights as the file that lies in a generator's folder, for trainings that start from it."""
    return {FILE: save({name: value.detach().cpu().contiguous() for name, value in weights.items()})}


def freeze(discriminator: nn.Module, count: int) -> None:
    """Keep the first ``count`` blocks, from the image on, as they are.

    Source: Mo et al., "Freeze the discriminator" (2020), section 3.
    """
    for block in discriminator.blocks()[:count]:  # type: ignore[operator]
        block.requires_grad_(False)
