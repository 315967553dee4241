"""The denoiser: diffusers' U-Net with class and augmentation labels, under EDM's preconditioning."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from visynth.core.errors import UsageError
from visynth.networks.edm import precondition

AUGMENT_LABELS = 9  # see visynth.networks.augment


class Denoiser(nn.Module):
    """D(x, sigma, label): the expected clean image, class-conditional, for 1 to 4 channels.

    Class and augmentation embeddings are summed outside and handed to ``UNet2DModel`` by its ``"identity"`` class
    embedding. The output convolution starts at zero, so that D starts as c_skip x and the loss at 1.

    Args:
        channels: of the images, 1 to 4.
        classes: how many; one more label, ``classes`` itself, means "no class".
        size: (height, width) in pixels, each divisible by 2 ** (levels - 1).
        width: channels at the full resolution.
        multipliers: of ``width``, per level; each level halves the resolution.
        blocks: residual blocks a level.
        attention: heights at which there is self-attention.
        dropout: in the residual blocks.
        conditions: further input channels (a background and a mask, for inpainting).
        sigma_data: standard deviation of the centred data.
        mean: per channel, of data in [-1, 1]; subtracted before and added after.

    Raises:
        UsageError: a size that cannot be halved often enough, or another number of channels.

    Example:
        >>> net = Denoiser(1, 2, (8, 8), width=8, multipliers=(1, 1), blocks=1)
        >>> x = torch.ones(2, 1, 8, 8)
        >>> bool(torch.allclose(net(x, torch.tensor([0.5, 0.5]), torch.tensor([0, 2])), x / 2))
        True
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: tuple[int, int],
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (8,),
        dropout: float = 0.0,
        conditions: int = 0,
        sigma_data: float = 0.5,
        mean: Sequence[float] = (0.0,),
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        check_size(size, multipliers)
        if not 1 <= channels <= 4:
            raise UsageError(f"the diffusion generator takes 1 to 4 channels, but the images have {channels}.")
        self.channels, self.classes, self.sigma_data, self.conditions = channels, classes, float(sigma_data), conditions
        self.arguments: dict[str, Any] = {
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "dropout": dropout,
            "conditions": conditions,
            "sigma_data": float(sigma_data),
            "mean": [float(m) for m in mean],
        }
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]).reshape(1, -1, 1, 1))
        widths = tuple(width * m for m in multipliers)
        groups = gcd(8, *widths)
        here = [size[0] // 2**level in attention for level in range(len(widths))]
        head = 8 if all(w % 8 == 0 for w in widths) else groups
        embedding = 4 * widths[0]
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=channels + conditions,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in here),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(here)),
            time_embedding_type="positional",
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=groups,
            attention_head_dim=head,
            add_attention=any(here),
            dropout=dropout,
        )
        self.of_class = nn.Embedding(classes + 1, embedding)
        self.of_augmentation = nn.Linear(AUGMENT_LABELS, embedding, bias=False)
        nn.init.normal_(self.of_class.weight, std=0.5)
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor,
        augmentation: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """D of noisy centred images ``[N, C, H, W]`` at noise levels ``[N]`` with labels ``[N]`` (``classes``:
        none)."""
        raw, skip, out = self.raw(x, sigma, labels, augmentation, condition)
        return skip * x + out * raw

    def raw(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor,
        augmentation: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(F, c_skip, c_out), the raw network's output in full precision and what makes D of it."""
        skip, out, scale, noise = precondition(sigma.to(self.mean.dtype), self.sigma_data)
        per_image = (-1, 1, 1, 1)
        given = x * scale.reshape(per_image)
        if condition is not None:
            given = torch.cat([given, condition.to(given.dtype)], dim=1)
        embedding = self.of_class(labels)
        if augmentation is None:  # no augmentation adds nothing, but DDP wants every weight to take part
            augmentation = embedding.new_zeros(len(embedding), AUGMENT_LABELS)
        embedding = embedding + self.of_augmentation(augmentation.to(embedding.dtype))
        raw: Tensor = self.unet(given, noise, class_labels=embedding, return_dict=False)[0]
        return raw.to(self.mean.dtype), skip.reshape(per_image), out.reshape(per_image)


def check_size(size: Sequence[int], multipliers: Sequence[int]) -> None:
    """Refuse a size that the levels cannot halve, and say which sizes they can.

    Example:
        >>> check_size((30, 32), (1, 2, 2))
        Traceback (most recent call last):
        visynth.core.errors.UsageError: size 30x32 cannot be halved 2 times: with 3 levels height and width must be ...
    """
    factor = 2 ** (len(multipliers) - 1)
    wrong = [side for side in size if side % factor or side < 4]
    if wrong:
        near = max(wrong[0] // factor * factor, factor)
        raise UsageError(
            f"size {size[0]}x{size[1]} cannot be halved {len(multipliers) - 1} times: with {len(multipliers)} levels "
            "height and width "
            f"must be multiples of {factor}. Choose {near} or {near + factor}, or fewer multipliers."
        )


def recipe(size: tuple[int, int]) -> dict[str, Any]:
    """Levels and attention for a size, as EDM's and ADM's networks have them, small enough for small data.

    Sides that cannot be halved as often (72 of 128x72) have fewer levels.

    Example:
        >>> recipe((8, 8))["multipliers"], recipe((64, 64))["multipliers"]
        ([1, 2], [1, 2, 2, 2])
    """
    side = min(size)
    levels = 2 if side < 16 else 3 if side <= 32 else 4 if side <= 64 else 5
    while levels > 2 and any(length % 2 ** (levels - 1) for length in size):
        levels -= 1
    multipliers = [1, 2, 2, 2, 4][:levels] if levels < 5 else [1, 1, 2, 2, 4]
    lowest = size[0] // 2 ** (levels - 1)
    return {"multipliers": multipliers, "attention": sorted({lowest, lowest * 2}) if side > 8 else [lowest]}
