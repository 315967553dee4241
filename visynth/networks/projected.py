"""A discriminator on frozen pretrained features with random mixing of channels and scales.

Source: Sauer et al., "Projected GANs converge faster" (NeurIPS 2021), sections 3 and 4: four scales of
EfficientNet-Lite features, cross-channel mixing by random 1x1 and cross-scale mixing by random 3x3 convolutions that
are never trained, and one small discriminator a scale. Classes enter by projection.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name
from torch.nn.utils.parametrizations import spectral_norm

from visynth.core import plugins
from visynth.core.errors import UsageError
from visynth.networks.layers import wide

SCALES = (24, 40, 112, 320)  # channels of the features at 1/4, 1/8, 1/16 and 1/32
EMBEDDING = 64


class ProjectedDiscriminator(nn.Module):
    """Images and labels to logits ``[N, K]``, one for each place of each scale.

    Args:
        size: of the images; they are brought to ``view`` by bilinear interpolation.
        channels: 1 (shown as grey RGB) or 3.
        classes: 0 for none.
        width: channels of the mixed features at the finest scale; they double at each coarser one.
        view: pixels that the features see, a multiple of 32; by default 224, as the features were trained, and for
            images below 64 pixels 128, which costs a third.
        seed: of the random mixing.

    Raises:
        UsageError: images with alpha, which the features do not see.
    """

    def __init__(
        self, size: int, channels: int, classes: int, width: int = 32, view: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise UsageError(
                f"the projected discriminator sees grey or RGB images, but these have {channels} channels: take "
                "discriminator='residual'."
            )
        self.view = view or (128 if size < 64 else 224)
        if self.view % 32 or self.view < 64:
            raise UsageError(f"view must be a multiple of 32 from 64 on, but got {self.view}.")
        self.classes = classes
        widths = [width * 2**n for n in range(len(SCALES))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.channel_mixing = nn.ModuleList(_fixed(a, b, 1) for a, b in zip(SCALES, widths, strict=True))
            self.scale_mixing = nn.ModuleList(
                _fixed(b, a, 3) for a, b in zip([widths[0], *widths], widths, strict=False)
            )
        self.heads = nn.ModuleList(
            _head(w, self.view // (4 * 2**n), EMBEDDING if classes else 1) for n, w in enumerate(widths)
        )
        if classes:
            self.embed = nn.Embedding(classes, EMBEDDING)
        # Not a submodule: pretrained weights need not be in every checkpoint.
        self.__dict__["features"] = plugins.load("features", "efficientnet_lite0")()

    def blocks(self) -> list[nn.Module]:
        return list(self.heads)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = F.interpolate(wide(x), (self.view, self.view), mode="bilinear", align_corners=False)
        mixed = self._mixed(self._features(x.expand(-1, 3, -1, -1)))
        logits = []
        for head, maps in zip(self.heads, mixed, strict=True):
            patch_logits = head(maps).flatten(2)  # [N, 1 or EMBEDDING, places]
            if self.classes:
                patch_logits = (patch_logits * self.embed(labels)[:, :, None]).sum(dim=1) / math.sqrt(EMBEDDING)
            logits.append(patch_logits.flatten(1))
        return wide(torch.cat(logits, dim=1))

    def _features(self, x: Tensor) -> list[Tensor]:
        levels = []
        features: Any = self.__dict__["features"]
        trunk, tail = features.trunk.to(x.device), features.tail.to(x.device)
        for number, layer in enumerate(trunk):
            x = layer(x)
            if number in (3, 4, 6):
                levels.append(x)
        for layer in list(tail)[:2]:
            x = layer(x)
        return [*levels, x]

    def _mixed(self, features: list[Tensor]) -> list[Tensor]:
        """From the coarsest scale up: each is mixed, enlarged, and added to the next finer one."""
        mixed: list[Tensor] = []
        above: Tensor | None = None
        for scale in reversed(range(len(SCALES))):
            here = self.channel_mixing[scale](features[scale])
            if above is not None:
                here = here + above
            mixed.append(here)
            if scale:
                above = self.scale_mixing[scale](
                    F.interpolate(here, scale_factor=2.0, mode="bilinear", align_corners=False)
                )
        return mixed[::-1]


def _fixed(inputs: int, outputs: int, size: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer.requires_grad_(False)


def _head(width: int, size: int, outputs: int) -> nn.Module:
    """Down to 4 places a side, then logits."""
    layers: list[nn.Module] = []
    while size > 4:
        layers += [spectral_norm(nn.Conv2d(width, min(width * 2, 512), 4, 2, 1)), nn.LeakyReLU(0.2)]
        width, size = min(width * 2, 512), size // 2
    layers.append(spectral_norm(nn.Conv2d(width, outputs, 3, padding=1)))
    return nn.Sequential(*layers)
