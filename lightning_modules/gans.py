"""The three kinds of GANs, as they are trained: their arguments; the networks are in
:mod:`visynth.lightning_modules.gan_families`."""

from __future__ import annotations

from typing import Any, Literal

from visynth.core.errors import UsageError
from visynth.lightning_modules.adversarial import Loss
from visynth.lightning_modules.gan import GAN
from visynth.lightning_modules.gan_families import BigGANFamily, CGANFamily, StyleGAN2Family
from visynth.lightning_modules.latents import Augment


class StyleGAN2(GAN):
    """StyleGAN2 with adaptive augmentation, for few and unbalanced images.

    Args:
        base: width is min(base / resolution, most).
        most: channels.
        z_dim: of the latent, and
        w_dim: of the style.
        layers: of the mapping.
        group: of the minibatch standard deviation; 1 for none.
        discriminator: "residual", or "projected" on frozen pretrained features (take loss="hinge", gamma=0,
            augment="diffaugment").
        view: pixels that the projected one sees.
        shared: resolution up to which the class is not seen (UTLO); 0 for none. A discriminator without classes judges
            the images of that resolution.
        shared_weight: of that discriminator against the other, alpha / (1 + alpha).
        transition: parts of the budget between which the class is faded in (needs kimg), for instance [0.08, 0.16].
        class_noise: strength of noise on the embedding of the class, more for rare ones; 0.5 to 0.75.
        path_weight: of path length regularisation, every 4 steps; 2 in the paper, 0 for small images.
        mixing: probability of mixed styles in training; 0.9 in the paper, 0 for small images.
        kwargs: of :class:`visynth.lightning_modules.gan.GAN`.

    Sources: those of :mod:`visynth.networks.stylegan2` and :mod:`visynth.lightning_modules.adversarial`.

    Example:
        >>> StyleGAN2(base=64, most=8, kimg=1).hparams.loss
        'non_saturating'
    """

    family_class = StyleGAN2Family

    def __init__(
        self,
        base: int = 16384,
        most: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        layers: int = 2,
        group: int = 4,
        discriminator: Literal["residual", "projected"] = "residual",
        view: int | None = None,
        shared: int = 0,
        shared_weight: float = 1.0,
        transition: list[float] | None = None,
        class_noise: float = 0.0,
        path_weight: float = 0.0,
        mixing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        problems = []
        if discriminator not in ("residual", "projected"):
            problems.append(f"discriminator must be 'residual' or 'projected', but got {discriminator!r}")
        if min(base, most, z_dim, w_dim, layers, group) < 1:
            problems.append("base, most, z_dim, w_dim, layers and group must be at least 1")
        if shared and shared < 8:
            problems.append(f"shared must be 0 or a resolution from 8 on, but got {shared}")
        if transition is not None and (len(transition) != 2 or not 0 <= transition[0] <= transition[1] <= 1):
            problems.append(
                f"transition must be two parts of the budget in order, like [0.08, 0.16], but got {transition}"
            )
        if transition is not None and (self.args.kimg is None or discriminator == "projected"):
            problems.append("transition is in parts of the budget kimg, and needs discriminator='residual'")
        if min(class_noise, path_weight, shared_weight) < 0 or not 0 <= mixing <= 1:
            problems.append("class_noise, path_weight and shared_weight must be at least 0, and mixing in [0, 1]")
        if problems:
            raise UsageError(f"StyleGAN2: {'; '.join(problems)}.")


class BigGAN(GAN):
    """BigGAN with hinge loss and DiffAugment.

    Args:
        width: unit of the generator's widths, and
        width_d: of the discriminator's.
        z_dim: of the latent.
        shared: width of the class embedding.
        attention: resolution with self-attention; 0 for none.
        deep: bottleneck blocks, two a resolution.
        kwargs: of :class:`visynth.lightning_modules.gan.GAN`.

    Source: that of :mod:`visynth.networks.biggan`.

    Example:
        >>> BigGAN(width=4).hparams.loss
        'hinge'
    """

    family_class = BigGANFamily

    def __init__(
        self,
        width: int = 64,
        width_d: int = 64,
        z_dim: int = 120,
        shared: int = 128,
        attention: int = 0,
        deep: bool = False,
        loss: Loss = "hinge",
        gamma: float | None = 0.0,
        augment: Augment = "diffaugment",
        lr_g: float = 1e-4,
        lr_d: float = 4e-4,
        betas: list[float] = [0.0, 0.999],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(loss=loss, gamma=gamma, augment=augment, lr_g=lr_g, lr_d=lr_d, betas=betas, **kwargs)


class CGAN(GAN):
    """The plain conditional GAN for 16 to 64 pixels: a baseline.

    Args:
        width: channels of the generator at half the size, and
        width_d: of the discriminator.
        z_dim: of the latent.
        kwargs: of :class:`visynth.lightning_modules.gan.GAN`.

    Source: that of :mod:`visynth.networks.cgan`.

    Example:
        >>> CGAN(width=4).hparams.augment
        'none'
    """

    family_class = CGANFamily

    def __init__(
        self,
        width: int = 64,
        width_d: int = 64,
        z_dim: int = 100,
        augment: Augment = "none",
        lr_g: float = 2e-4,
        lr_d: float = 2e-4,
        betas: list[float] = [0.5, 0.999],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(augment=augment, lr_g=lr_g, lr_d=lr_d, betas=betas, **kwargs)
