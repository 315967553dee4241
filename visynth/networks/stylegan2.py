"""StyleGAN2's generator network: mapping and synthesis.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), cited as *StyleGAN2*; class
conditioning as in Karras et al., "Training generative adversarial networks with limited data" (NeurIPS 2020), appendix
D. For few images of a class: Shahbazi et al., "Collapse by conditioning" (ICLR 2022), cited as *transitional*; Khorram
et al., "Taming the tail" (CVPR 2024), cited as *UTLO*; Rangwani et al., "NoisyTwins" (CVPR 2023). Parameters are named
as in public StyleGAN2 checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core.errors import UsageError
from visynth.networks.layers import Linear, lrelu, uncast, unit_moment, wide
from visynth.networks.resample import conv_up, upsample


def channels_at(resolution: int, base: int, most: int) -> int:
    """Width at a resolution: ``min(base / resolution, most)``."""
    return min(base // resolution, most)


def resolutions(size: int) -> list[int]:
    """4, 8, ... ``size``.

    Raises:
        UsageError: no power of two from 8 to 1024.
    """
    if size not in [2**n for n in range(3, 11)]:
        raise UsageError(f"size must be a power of two from 8 to 1024, but got {size}.")
    return [2**n for n in range(2, int(math.log2(size)) + 1)]


class Mapping(nn.Module):
    """Latent and class to style: ``w [N, w_dim]``.

    Args:
        z_dim: of the latent.
        classes: 0 for none.
        w_dim: of the style.
        layers: of the network.
        average: keep ``w_avg``, the running mean of styles (generators do, discriminators do not).

    The class may be faded in: ``strength`` scales its embedding (transitional, eq. 3: 0 is the unconditional network),
    and ``noise`` ``[N, w_dim]`` is added to the embedding before it is normalised (NoisyTwins, eq. 5).
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, classes: int, w_dim: int, layers: int = 2, average: bool = True) -> None:
        super().__init__()
        self.z_dim, self.classes, self.w_dim, self.layers = z_dim, classes, w_dim, layers
        if classes:
            self.embed = Linear(classes, w_dim)
        width = z_dim + (w_dim if classes else 0)
        for layer in range(layers):
            setattr(self, f"fc{layer}", Linear(width, w_dim, activate=True, lr=0.01))
            width = w_dim
        if average:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Tensor | None, labels: Tensor | None, strength: float = 1.0, noise: Tensor | None = None
    ) -> Tensor:
        """Styles of latents ``[N, z_dim]`` (None in a discriminator) and labels ``[N]`` or probabilities ``[N,
        classes]``."""
        with uncast(next(self.parameters())):
            return self._styles(z, labels, strength, noise)

    def _styles(self, z: Tensor | None, labels: Tensor | None, strength: float, noise: Tensor | None) -> Tensor:
        parts = [] if z is None else [unit_moment(z.to(next(self.parameters()).dtype))]
        if self.classes:
            assert labels is not None
            given = F.one_hot(labels, self.classes) if labels.ndim == 1 else labels
            embedded = self.embed(given.to(self.embed.weight.dtype))
            if noise is not None:
                embedded = embedded + noise * embedded.detach().square().mean(dim=1, keepdim=True).sqrt()
            parts.append(unit_moment(embedded) * strength)
        x = torch.cat(parts, dim=1)
        for layer in range(self.layers):
            x = getattr(self, f"fc{layer}")(x)
        return x


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, up: bool = False) -> Tensor:
    """Convolution with weights scaled per sample and input channel, and normalised per output channel (StyleGAN2, eqs.
    1 and 3).

    Scaling the inputs before and the outputs after one shared convolution is the same as convolving each sample with
    weights of its own, and needs no grouped convolution.

    Args:
        x: ``[N, I, H, W]``.
        weight: ``[O, I, K, K]``.
        style: ``[N, I]``.
        demodulate: whether output channels are normalised.
        up: to twice the size.
    """
    x = x * style.to(x.dtype)[:, :, None, None]
    y = conv_up(x, weight) if up else F.conv2d(x, weight.to(x.dtype), padding=weight.shape[2] // 2)
    if not demodulate:
        return y
    with uncast(x):
        power = wide(style).square() @ wide(weight).square().sum(dim=(2, 3)).t()  # [N, O]
    return y * (power + 1e-8).rsqrt().to(y.dtype)[:, :, None, None]


class StyleConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU at one resolution."""

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool, clamp: float) -> None:
        super().__init__()
        self.affine = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.up, self.clamp = up, clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = modulated_conv(x, self.weight, self.affine(w), up=self.up)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return lrelu(x + self.bias[:, None, None].to(x.dtype), clamp=self.clamp)


class ToImage(nn.Module):
    """Modulated 1x1 convolution to the image's channels, not normalised."""

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float) -> None:
        super().__init__()
        self.affine = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale, self.clamp = 1 / math.sqrt(inputs), clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = modulated_conv(x, self.weight, self.affine(w) * self.scale, demodulate=False)
        y = wide(y) + self.bias[:, None, None]
        return y.clamp(-self.clamp, self.clamp) if self.clamp else y


class Block(nn.Module):
    """One resolution: two convolutions (one at 4 px) and an image that is added to the one of the resolution below."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, channels: int, clamp: float) -> None:
        super().__init__()
        self.first = inputs == 0
        if self.first:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = StyleConv(inputs, outputs, w_dim, resolution, True, clamp)
        self.conv1 = StyleConv(outputs, outputs, w_dim, resolution, False, clamp)
        self.torgb = ToImage(outputs, channels, w_dim, clamp)

    @property
    def convs(self) -> list[StyleConv]:
        return [self.conv1] if self.first else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Sequence[Tensor], noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Features and image; ``ws`` holds a style for each convolution and one for the image."""
        if self.first:
            x = self.const.expand(len(ws[0]), -1, -1, -1)
        assert x is not None
        for conv, w, field in zip(self.convs, ws, noise, strict=False):
            x = conv(x, w, field)
        rgb = self.torgb(x, ws[-1])
        with uncast(rgb):
            return x, rgb if image is None else upsample(image) + rgb


class Synthesis(nn.Module):
    """Styles to images by images of every resolution, summed (StyleGAN2, section 4.1, output skips)."""

    def __init__(
        self, size: int, channels: int, w_dim: int, base: int, most: int, shared: int = 0, clamp: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes, self.shared = resolutions(size), shared
        inputs = 0
        for resolution in self.sizes:
            outputs = channels_at(resolution, base, most)
            setattr(self, f"b{resolution}", Block(inputs, outputs, w_dim, resolution, channels, clamp))
            inputs = outputs
        self.styles = 2 * len(self.sizes)  # one a convolution, and one more for the last image

    def blocks(self) -> list[Block]:
        return [getattr(self, f"b{resolution}") for resolution in self.sizes]

    def noise_shapes(self) -> list[tuple[int, int]]:
        """Shape of the noise of each convolution, in order."""
        return [tuple(conv.noise_const.shape) for block in self.blocks() for conv in block.convs]  # type: ignore[misc]

    def forward(self, ws: Tensor, noise: Sequence[Tensor | None] | str = "const") -> Tensor:
        """Images ``[N, C, size, size]``, about in [-1, 1].

        Args:
            ws: ``[N, styles, w_dim]``.
            noise: a field ``[N, 1, H, W]`` for each convolution, or ``"const"`` (the stored ones), or ``"none"``.
        """
        return self._images(ws, noise)[-1]

    def both(self, ws: Tensor, noise: Sequence[Tensor | None] | str, low: int) -> tuple[Tensor, Tensor]:
        """The images at full size, and those of a lower resolution that they are built on."""
        images = self._images(ws, noise)
        return images[-1], images[self.sizes.index(low)]

    def _images(self, ws: Tensor, noise: Sequence[Tensor | None] | str) -> list[Tensor]:
        """The images of every resolution."""
        x: Tensor | None = None
        images: list[Tensor] = []
        fields = list(self._fields(noise))
        place = 0
        for resolution, block in zip(self.sizes, self.blocks(), strict=True):
            count = len(block.convs)
            # An image takes the style of the convolution after it; the last unconditional one must not see the class.
            of_image = place + count - (resolution == self.shared)
            styles = [ws[:, i] for i in (*range(place, place + count), of_image)]
            x, image = block(x, images[-1] if images else None, styles, fields[place : place + count])
            images.append(image)
            place += count
        return images

    def _fields(self, noise: Sequence[Tensor | None] | str) -> Sequence[Tensor | None]:
        convs = [conv for block in self.blocks() for conv in block.convs]
        if noise == "const":
            return [conv.noise_const for conv in convs]
        return [None] * len(convs) if isinstance(noise, str) else noise


class StyleGAN2(nn.Module):
    """The generator: latents ``z [N, z_dim]``, labels ``[N]`` -> images ``[N, C, size, size]`` about in [-1, 1].

    Args:
        size: height and width, a power of two from 8 to 1024.
        channels: of the images, 1 to 4.
        classes: 0 for an unconditional one.
        z_dim: of the latent.
        w_dim: of the style.
        base: width is ``min(base / resolution, most)``.
        most: channels.
        layers: of the mapping.
        shared: blocks up to this resolution do not see the class (UTLO, section 4): rare classes borrow their layout
            from frequent ones.
        strength: how much of the class is seen, where a training fades it in.
        clamp: limit of all activations, as networks trained in float16 have it; 0 for none.

    Example:
        >>> network = StyleGAN2(16, 1, 2, z_dim=8, w_dim=8, base=64, most=8)
        >>> tuple(network(torch.randn(3, 8), torch.tensor([0, 1, 1])).shape)
        (3, 1, 16, 16)
    """

    def __init__(
        self,
        size: int,
        channels: int,
        classes: int,
        z_dim: int = 512,
        w_dim: int = 512,
        base: int = 16384,
        most: int = 512,
        layers: int = 2,
        shared: int = 0,
        clamp: float = 0.0,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        self.z_dim, self.classes, self.shared = z_dim, classes, shared if classes else 0
        self.strength = strength
        self.mapping = Mapping(z_dim, classes, w_dim, layers)
        self.synthesis = Synthesis(size, channels, w_dim, base, most, self.shared, clamp)
        if self.shared:
            if self.shared not in self.synthesis.sizes[:-1]:
                raise UsageError(
                    f"shared must be 0 or a resolution below {size} out of {self.synthesis.sizes[:-1]}, but got "
                    f"{shared}."
                )
            self.common = Mapping(z_dim, 0, w_dim, layers)

    @property
    def shared_styles(self) -> int:
        """Styles of the blocks that do not see the class."""
        blocks = zip(self.synthesis.sizes, self.synthesis.blocks(), strict=True)
        return sum(len(block.convs) for size, block in blocks if size <= self.shared)

    def styles(
        self, z: Tensor, labels: Tensor | None, strength: float | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """``ws [N, styles, w_dim]``."""
        w: Tensor = self.mapping(z, labels, self.strength if strength is None else strength, noise)
        ws = w[:, None].repeat(1, self.synthesis.styles, 1)
        if not self.shared:
            return ws
        common = self.common(z, None)[:, None].repeat(1, self.shared_styles, 1)
        return torch.cat([common, ws[:, self.shared_styles :]], dim=1)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None,
        noise: Sequence[Tensor | None] | str = "const",
        strength: float | None = None,
    ) -> Tensor:
        images: Tensor = self.synthesis(self.styles(z, labels, strength), noise)
        return images


def truncate(ws: Tensor, centre: Tensor, psi: float) -> Tensor:
    """Styles drawn towards a centre ``[w_dim]``, ``[N, w_dim]`` or as the styles: ``centre + psi (w - centre)``.

    Source: Brock et al., "Large scale GAN training" (ICLR 2019), section 3.1, as StyleGAN uses it in w.

    Example:
        >>> truncate(torch.ones(1, 2, 1), torch.zeros(1), 0.5).flatten().tolist()
        [0.5, 0.5]
    """
    if psi == 1:
        return ws
    centre = centre[:, None] if centre.ndim == 2 else centre
    return torch.lerp(centre.expand_as(ws).to(ws.dtype), ws, psi)


def crossed(ws: Tensor, other: Tensor, cuts: Sequence[float]) -> Tensor:
    """Styles that are another latent's from a layer on, one cut for each image.

    Source: Karras et al., "A style-based generator architecture" (CVPR 2019), section 3.1, style mixing.

    Example:
        >>> crossed(torch.zeros(2, 3, 1), torch.ones(2, 3, 1), [1, 3])[..., 0].tolist()
        [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    own = torch.arange(ws.shape[1], device=ws.device) < torch.tensor(cuts, device=ws.device)[:, None]
    return torch.where(own[:, :, None], ws, other)


def noise_fields(
    shapes: Sequence[tuple[int, int]], seeds: Sequence[int], stream: str, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """A field ``[N, 1, H, W]`` for each shape, each row from its own seed alone."""
    from visynth.core.seeds import rng

    total = sum(height * width for height, width in shapes)
    rows = [rng(int(seed), stream).standard_normal(total, dtype=np.float32) for seed in seeds]
    flat = torch.from_numpy(np.stack(rows)).to(device)
    sizes = [height * width for height, width in shapes]
    return [part.reshape(-1, 1, *shape) for part, shape in zip(torch.split(flat, sizes, dim=1), shapes, strict=True)]
