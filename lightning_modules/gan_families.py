"""The families of GANs: their networks, the views of their discriminators, and their further losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.generators import gan as generators
from visynth.lightning_modules.adversarial import path_lengths, path_penalty
from visynth.lightning_modules.facts import Facts
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

if TYPE_CHECKING:
    from visynth.lightning_modules.gan_step import GANStep, Micro

STANDING = 32  # batches of standing statistics
PATH_EVERY = 4  # steps from one path penalty to the next


class Family:
    """One kind of GAN, of given options, for some data.

    Args:
        options: arguments of its module in :mod:`visynth.lightning_modules.gans`.
        facts: of the data.

    Attributes:
        name: that the generator is registered by.
        generator_class: what is exported.
        network_arguments: options that go to the generator's network.
        style_width: width of the noise on the embedding of the class; 0 for none.
    """

    name: ClassVar[str]
    generator_class: ClassVar[Any]
    network_arguments: ClassVar[tuple[str, ...]]

    def __init__(self, options: Any, facts: Facts) -> None:
        self.options, self.facts = options, facts

    @property
    def style_width(self) -> int:
        return 0

    def arguments(self, progress: float = 0.0) -> dict[str, Any]:
        """Plain values that the generator's network is built with, after some part of the budget."""
        return {"classes": len(self.facts.classes), **{name: self.options[name] for name in self.network_arguments}}

    def generator(self) -> nn.Module:
        """The generator's network, with random weights."""
        network: nn.Module = self.generator_class.network_class(
            self.facts.size[0], self.facts.channels, **self.arguments()
        )
        return network

    def discriminator(self) -> nn.Module:
        """The discriminator's network, with random weights."""
        raise NotImplementedError

    def finish(self, network: Any, arguments: dict[str, Any], shares: np.ndarray[Any, Any]) -> None:
        """Make a copy of the generator's network ready to be exported."""

    def synthesize(self, step: GANStep, drawn: Latents, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        """Fake images ``[N, C, H, W]``, at full size and, where a discriminator looks at them, at lower ones."""
        return [step.generator(drawn.z, drawn.labels)]

    def views(self, real: Tensor) -> list[Tensor]:
        """Real images at the sizes of :meth:`synthesize`."""
        return [real]

    def logits(self, step: GANStep, views: Sequence[Tensor], labels: Tensor) -> list[tuple[float, Tensor]]:
        """Logits of views, one or more for each image, with their weights in the loss; the first ones, which depend on
        the first view alone, are what penalties are taken on."""
        return [(1.0, step.discriminator(views[0], labels))]

    def extra_loss(self, step: GANStep, micro: Micro) -> Tensor | None:
        """A further loss of the generator, or None."""
        return None

    def after_generator(self, step: GANStep, micros: Sequence[Micro]) -> None:
        """Called when the generator has moved."""


class StyleGAN2Family(Family):
    """StyleGAN2, see :class:`visynth.lightning_modules.gans.StyleGAN2`."""

    name = "stylegan2"
    generator_class = generators.StyleGAN2
    network_arguments = ("z_dim", "w_dim", "base", "most", "layers", "shared")

    @property
    def style_width(self) -> int:
        return int(self.options.w_dim) if self.options.class_noise else 0

    def strength(self, progress: float) -> float:
        """How much of the class is seen: 0 before the transition, 1 after it."""
        transition = self.options.transition
        return 1.0 if transition is None else fade(progress, *transition)

    def arguments(self, progress: float = 0.0) -> dict[str, Any]:
        strength = self.strength(progress)
        return super().arguments() | ({} if strength == 1 else {"strength": round(strength, 6)})

    def discriminator(self) -> nn.Module:
        options, facts = self.options, self.facts
        size, channels, classes = facts.size[0], facts.channels, len(facts.classes)
        if options.discriminator == "projected":
            main: nn.Module = ProjectedDiscriminator(size, channels, classes, view=options.view, seed=options.seed)
        else:
            both = options.transition is not None
            main = Discriminator(size, channels, classes, options.base, options.most, options.group, both=both)
        if options.shared:
            most = min(options.most, 128)
            main.low = Discriminator(options.shared, channels, 0, options.base, most, options.group)
        return main

    def finish(self, network: Any, arguments: dict[str, Any], shares: np.ndarray[Any, Any]) -> None:
        network.strength = arguments.get("strength", 1.0)  # in a transition the class is not yet seen whole

    def styles(self, step: GANStep, drawn: Latents) -> Tensor:
        """Styles ``[N, styles, w_dim]``, mixed and with class noise as the options say."""
        noise, strength = None, self.strength(step.progress)
        if self.style_width:
            noise = drawn.class_noise * self.spread(drawn.z.device)[drawn.labels][:, None].to(drawn.class_noise.dtype)
        ws: Tensor = step.generator.styles(drawn.z, drawn.labels, strength, noise)
        if self.options.mixing:
            other = step.generator.styles(drawn.other, drawn.labels, strength, noise)
            cut = np.where(
                drawn.mix[:, 0] < self.options.mixing, 1 + np.floor(drawn.mix[:, 1] * (ws.shape[1] - 1)), ws.shape[1]
            )
            ws = crossed(ws, other, cut.tolist())
        return ws

    def spread(self, device: torch.device) -> Tensor:
        """Standard deviation of the noise on each class's embedding, in units of its own size: sigma K / E_n with
        effective numbers E_n = (1 - 0.99^n) / 0.01 and K so that the mean is sigma (NoisyTwins, section 4.1).
        """
        counts = np.maximum(np.array(self.facts.counts, dtype=np.float64), 1)
        effective = (1 - 0.99**counts) / (1 - 0.99)
        share = (1 / effective) / (1 / effective).sum() * len(counts)
        return torch.from_numpy(self.options.class_noise * share).to(device)

    def synthesize(self, step: GANStep, drawn: Latents, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        ws = self.styles(step, drawn)
        fields = self._fields(step, purpose, positions)
        if not self.options.shared:
            return [step.generator.synthesis(ws, fields)]
        return list(step.generator.synthesis.both(ws, fields, self.options.shared))

    def _fields(self, step: GANStep, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        shapes, stream = step.generator.synthesis.noise_shapes(), f"gan/{self.options.seed}/{purpose}/noise"
        fields = step.ahead(f"fields/{purpose}", lambda places: noise_fields(shapes, places, stream), positions)
        return [values.to(step.ada_p.device) for values in fields]

    def views(self, real: Tensor) -> list[Tensor]:
        low = real
        while self.options.shared and low.shape[-1] > self.options.shared:
            low = downsample(low)
        return [real, low] if self.options.shared else [real]

    def logits(self, step: GANStep, views: Sequence[Tensor], labels: Tensor) -> list[tuple[float, Tensor]]:
        if self.options.transition is None:
            weighted = [(1.0, step.discriminator(views[0], labels))]
        else:
            conditional, plain = step.discriminator.logits(views[0], labels)
            weighted = [(1.0, plain), (self.strength(step.progress), conditional)]
        if len(views) == 1:
            return weighted
        alpha = self.options.shared_weight
        low = step.discriminator.low(views[1], None)
        return [(w / (1 + alpha), v) for w, v in weighted] + [(alpha / (1 + alpha), low)]

    def extra_loss(self, step: GANStep, micro: Micro) -> Tensor | None:
        weight = float(self.options.path_weight)
        if not weight or step.generator_steps % PATH_EVERY:
            return None
        ws = self.styles(step, step.draw("path", micro.positions))
        with uncast(ws):
            images = step.generator.synthesis(wide(ws), self._fields(step, "path", micro.positions))
            stream = f"gan/{self.options.seed}/path/direction"
            lengths = path_lengths(images, ws, seeding.noise(micro.positions, images.shape[1:], stream).to(images))
        step.gathered["lengths"].append(lengths.detach().mean())
        # The mean of the steps before: so the penalty does not depend on how a batch is split.
        penalty: Tensor = path_penalty(lengths, step.path_mean).mean()
        return penalty * (PATH_EVERY * weight)

    def after_generator(self, step: GANStep, micros: Sequence[Micro]) -> None:
        mapping, strength = step.generator.mapping, self.strength(step.progress)
        means = []
        for micro in micros:
            drawn = step.draw("generator", micro.positions)
            means.append(mapping(drawn.z, drawn.labels, strength).mean(dim=0))
        mean = distributed.averaged(torch.stack(means).mean(dim=0))
        mapping.w_avg.lerp_(mean.to(mapping.w_avg.dtype), 1 - 0.998)
        if step.gathered["lengths"]:
            length = distributed.averaged(torch.stack(step.gathered["lengths"]).mean())
            step.path_mean.lerp_(length.to(step.path_mean.dtype), 0.01)


class BatchNormFamily(Family):
    """Generators with batch norms: their statistics are measured before they sample."""

    def finish(self, network: Any, arguments: dict[str, Any], shares: np.ndarray[Any, Any]) -> None:
        device = next(network.parameters()).device

        def run(batch: int) -> None:
            seeds = [seeding.derive("standing", batch, row) for row in range(64)]
            uniform = np.array([seeding.rng(seed, "class").random() for seed in seeds])
            labels = torch.from_numpy(drawn_classes(shares, uniform)).to(device)
            network(seeding.noise(seeds, (network.z_dim,), "latent").to(device), labels)

        measure(network, run, STANDING)


class BigGANFamily(BatchNormFamily):
    """BigGAN, see :class:`visynth.lightning_modules.gans.BigGAN`."""

    name = "biggan"
    generator_class = generators.BigGAN
    network_arguments = ("z_dim", "width", "shared", "attention", "deep")

    def discriminator(self) -> nn.Module:
        options, facts = self.options, self.facts
        return BigGANDiscriminator(
            facts.size[0], facts.channels, len(facts.classes), options.width_d, options.attention, options.deep
        )


class CGANFamily(BatchNormFamily):
    """The plain conditional GAN, see :class:`visynth.lightning_modules.gans.CGAN`."""

    name = "cgan"
    generator_class = generators.CGAN
    network_arguments = ("z_dim", "width")

    def discriminator(self) -> nn.Module:
        facts = self.facts
        return cgan.CGANDiscriminator(facts.size[0], facts.channels, len(facts.classes), self.options.width_d)


def fade(progress: float, first: float, last: float) -> float:
    """0 before ``first``, 1 after ``last``, a straight line between.

    Example:
        >>> [round(fade(p, 0.08, 0.16), 6) for p in (0.0, 0.12, 1.0)]
        [0.0, 0.5, 1.0]
    """
    if last <= first:
        return float(progress >= first)
    return min(1.0, max(0.0, (progress - first) / (last - first)))
