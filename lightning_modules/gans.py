"""The three families of GANs: their networks, and what only one of them does in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.generators import gan as generators
from visynth.generators.base import Generator, Spec
from visynth.lightning_modules.adversarial import path_lengths, path_penalty
from visynth.lightning_modules.data import Facts
from visynth.lightning_modules.gan import AdversarialModule, Micro, fade
from visynth.lightning_modules.latents import Latents
from visynth.lightning_modules.randomness import drawn_classes
from visynth.networks import cgan
from visynth.networks.biggan import BigGANDiscriminator
from visynth.networks.discriminator import Discriminator
from visynth.networks.layers import uncast, wide
from visynth.networks.norm import measure
from visynth.networks.projected import ProjectedDiscriminator
from visynth.networks.resample import downsample
from visynth.networks.stylegan2 import crossed, noise_fields

STANDING = 32  # batches of standing statistics


class StyleGAN2(AdversarialModule):
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
            the pictures of that resolution.
        shared_weight: of that discriminator against the other, alpha / (1 + alpha).
        transition: parts of the budget between which the class is faded in (needs kimg), for instance [0.08, 0.16].
        class_noise: strength of noise on the embedding of the class, more for rare ones; 0.5 to 0.75.
        path_weight: of path length regularisation, every 4 steps; 2 in the paper, 0 for small pictures.
        mixing: probability of mixed styles in training; 0.9 in the paper, 0 for small pictures.
        kwargs: of :class:`visynth.lightning_modules.gan_base.GANModule`.

    Sources: those of :mod:`visynth.networks.stylegan2` and :mod:`visynth.lightning_modules.adversarial`.

    Example:
        >>> StyleGAN2(base=64, most=8, kimg=1).told.loss
        'non_saturating'
    """

    name = "stylegan2"
    generator_class = generators.StyleGAN2
    shape = ("z_dim", "w_dim", "base", "most", "layers", "shared")

    def __init__(
        self,
        base: int = 16384,
        most: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        layers: int = 2,
        group: int = 4,
        discriminator: str = "residual",
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
        self._lengths: list[Tensor] = []  # of paths in this step
        told, problems = self.told, []
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
        if transition is not None and (told.kimg is None or discriminator == "projected"):
            problems.append("transition is in parts of the budget kimg, and needs discriminator='residual'")
        if min(class_noise, path_weight, shared_weight) < 0 or not 0 <= mixing <= 1:
            problems.append("class_noise, path_weight and shared_weight must be at least 0, and mixing in [0, 1]")
        if problems:
            raise UsageError(f"StyleGAN2: {'; '.join(problems)}.")

    @property
    def style_width(self) -> int:
        return int(self.told.w_dim) if self.told.class_noise else 0

    def arguments(self) -> dict[str, Any]:
        strength = self.strength()
        return super().arguments() | ({} if strength == 1 else {"strength": round(strength, 6)})

    def make_critic(self, facts: Facts) -> nn.Module:
        told, classes = self.told, len(facts.classes)
        if told.discriminator == "projected":
            main: nn.Module = ProjectedDiscriminator(
                facts.size[0], facts.channels, classes, view=told.view, seed=told.seed
            )
        else:
            main = Discriminator(
                facts.size[0],
                facts.channels,
                classes,
                told.base,
                told.most,
                told.group,
                both=told.transition is not None,
            )
        if told.shared:
            main.low = Discriminator(told.shared, facts.channels, 0, told.base, min(told.most, 128), told.group)
        return main

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        network.strength = spec.arguments.get("strength", 1.0)  # in a transition the class is not yet seen whole
        return super().make_generator(spec, network, **kwargs)

    # -- the step ------------------------------------------------------------------------------------------------

    def strength(self) -> float:
        """How much of the class is seen: 0 before the transition, 1 after it."""
        told = self.told.transition
        return 1.0 if told is None else fade(self.progress(), *told)

    def styles(self, drawn: Latents) -> Tensor:
        noise = None
        if self.style_width:
            noise = drawn.class_noise * self.spread()[drawn.labels][:, None].to(drawn.class_noise.dtype)
        ws: Tensor = self.network.styles(drawn.z, drawn.labels, self.strength(), noise)
        if self.told.mixing:
            other = self.network.styles(drawn.other, drawn.labels, self.strength(), noise)
            cut = np.where(
                drawn.mix[:, 0] < self.told.mixing, 1 + np.floor(drawn.mix[:, 1] * (ws.shape[1] - 1)), ws.shape[1]
            )
            ws = crossed(ws, other, cut.tolist())
        return ws

    def spread(self) -> Tensor:
        """Standard deviation of the noise on each class's embedding, in units of its own size: sigma K / E_n with
        effective numbers
        E_n = (1 - 0.99^n) / 0.01 and K so that the mean is sigma (NoisyTwins, section 4.1).
        """
        assert self.facts is not None
        counts = np.maximum(np.array(self.facts.counts, dtype=np.float64), 1)
        effective = (1 - 0.99**counts) / (1 - 0.99)
        share = (1 / effective) / (1 / effective).sum() * len(counts)
        return torch.from_numpy(self.told.class_noise * share).to(self.device)

    def make(self, drawn: Latents, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        ws = self.styles(drawn)
        fields = self._fields(purpose, positions)
        if not self.told.shared:
            return [self.network.synthesis(ws, fields)]
        return list(self.network.synthesis.both(ws, fields, self.told.shared))

    def _fields(self, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        stream = f"gan/{self.told.seed}/{purpose}/noise"
        return noise_fields(self.network.synthesis.noise_shapes(), positions, stream, self.device)

    def views(self, real: Tensor) -> list[Tensor]:
        low = real
        while self.told.shared and low.shape[-1] > self.told.shared:
            low = downsample(low)
        return [real, low] if self.told.shared else [real]

    def logits(self, views: Sequence[Tensor], labels: Tensor) -> list[tuple[float, Tensor]]:
        if self.told.transition is None:
            found = [(1.0, self.critic(views[0], labels))]
        else:
            conditional, plain = self.critic.logits(views[0], labels)
            found = [(1.0, plain), (self.strength(), conditional)]
        if len(views) == 1:
            return found
        alpha = self.told.shared_weight
        return [(w / (1 + alpha), v) for w, v in found] + [(alpha / (1 + alpha), self.critic.low(views[1], None))]

    def generator_extras(self, micro: Micro) -> Tensor | None:
        told = self.told
        if not told.path_weight or int(self.steps_done) % 4:
            return None
        drawn = self.draw("path", micro.positions)
        ws = self.styles(drawn)
        with uncast(ws):
            images = self.network.synthesis(wide(ws), self._fields("path", micro.positions))
            noise = seeding.noise(micro.positions, images.shape[1:], f"gan/{told.seed}/path/direction").to(images)
            lengths = path_lengths(images, ws, noise)
        self._lengths.append(lengths.detach().mean())
        # The mean of the steps before: so the penalty does not depend on how a batch is split.
        penalty: Tensor = path_penalty(lengths, self.path_mean).mean()
        return penalty * (4 * float(told.path_weight))

    def forget(self) -> None:
        super().forget()
        self._lengths = []

    def after_generator(self, micros: Sequence[Micro]) -> None:
        means = []
        for micro in micros:
            drawn = self.draw("generator", micro.positions)
            means.append(self.network.mapping(drawn.z, drawn.labels, self.strength()).mean(dim=0))
        mean = distributed.averaged(torch.stack(means).mean(dim=0))
        self.network.mapping.w_avg.lerp_(mean.to(self.network.mapping.w_avg.dtype), 1 - 0.998)
        if self._lengths:
            self.path_mean.lerp_(distributed.averaged(torch.stack(self._lengths).mean()).to(self.path_mean.dtype), 0.01)
            self._lengths = []


class _Simple(AdversarialModule):
    """Networks of batch norms: their statistics are measured when they are to sample."""

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        shares = self.shares()
        device = next(network.parameters()).device

        def run(batch: int) -> None:
            seeds = [seeding.derive("standing", batch, row) for row in range(64)]
            uniform = np.array([seeding.rng(seed, "class").random() for seed in seeds])
            labels = torch.from_numpy(drawn_classes(shares, uniform)).to(device)
            network(seeding.noise(seeds, (network.z_dim,), "latent").to(device), labels)

        measure(network, run, STANDING)
        return super().make_generator(spec, network, **kwargs)


class BigGAN(_Simple):
    """BigGAN with hinge loss and DiffAugment.

    Args:
        width: unit of the generator's widths, and
        width_d: of the discriminator's.
        z_dim: of the latent.
        shared: width of the class embedding.
        attention: resolution with self-attention; 0 for none.
        deep: bottleneck blocks, two a resolution.
        kwargs: of :class:`visynth.lightning_modules.gan_base.GANModule`.

    Source: that of :mod:`visynth.networks.biggan`.

    Example:
        >>> BigGAN(width=4).told.loss
        'hinge'
    """

    name = "biggan"
    generator_class = generators.BigGAN
    shape = ("z_dim", "width", "shared", "attention", "deep")

    def __init__(
        self,
        width: int = 64,
        width_d: int = 64,
        z_dim: int = 120,
        shared: int = 128,
        attention: int = 0,
        deep: bool = False,
        loss: str = "hinge",
        gamma: float | None = 0.0,
        augment: str = "diffaugment",
        lr_g: float = 1e-4,
        lr_d: float = 4e-4,
        betas: list[float] = [0.0, 0.999],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(loss=loss, gamma=gamma, augment=augment, lr_g=lr_g, lr_d=lr_d, betas=betas, **kwargs)

    def make_critic(self, facts: Facts) -> nn.Module:
        told = self.told
        return BigGANDiscriminator(
            facts.size[0], facts.channels, len(facts.classes), told.width_d, told.attention, told.deep
        )


class CGAN(_Simple):
    """The plain conditional GAN for 16 to 64 pixels: a baseline.

    Args:
        width: channels of the generator at half the size, and
        width_d: of the discriminator.
        z_dim: of the latent.
        kwargs: of :class:`visynth.lightning_modules.gan_base.GANModule`.

    Source: that of :mod:`visynth.networks.cgan`.

    Example:
        >>> CGAN(width=4).told.augment
        'none'
    """

    name = "cgan"
    generator_class = generators.CGAN
    shape = ("z_dim", "width")

    def __init__(
        self,
        width: int = 64,
        width_d: int = 64,
        z_dim: int = 100,
        augment: str = "none",
        lr_g: float = 2e-4,
        lr_d: float = 2e-4,
        betas: list[float] = [0.5, 0.999],  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(augment=augment, lr_g=lr_g, lr_d=lr_d, betas=betas, **kwargs)

    def make_critic(self, facts: Facts) -> nn.Module:
        return cgan.CGANDiscriminator(facts.size[0], facts.channels, len(facts.classes), self.told.width_d)
