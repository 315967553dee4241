"""One adversarial step: what discriminator and generator learn from some batches.

Nothing here knows Lightning; the module around it is in :mod:`visynth.lightning_modules.gan`. A *step* sees one or more
batches: the discriminator learns from all of them, then the generator. Every random number belongs to a position of the
stream (:mod:`visynth.lightning_modules.latents`), and means over the joined batch are exchanged between processes, so
that the same positions give the same step however they are split over processes, and, without batch norm and minibatch
standard deviation, over accumulated batches.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.core.errors import UsageError
from visynth.lightning_modules import adversarial
from visynth.lightning_modules.adversarial import gradient_penalty
from visynth.lightning_modules.facts import Facts
from visynth.lightning_modules.gan_families import Family
from visynth.lightning_modules.latents import Augmenter, Latents, latents
from visynth.lightning_modules.prefetch import Prefetcher
from visynth.networks import ada, discriminator
from visynth.networks.layers import uncast, wide

LECAM_FROM = 1000  # steps: before, the running means say little


@dataclass
class Micro:
    """One batch of a step: real images in [-1, 1], their labels and their positions."""

    real: Tensor
    labels: Tensor
    positions: list[int]


@dataclass
class Fakes:
    """Fake images at the sizes that a discriminator looks at, each ``[N, C, H, W]``, and their labels ``[N]``."""

    views: list[Tensor]
    labels: Tensor

    def take(self, rows: Tensor) -> Fakes:
        """Those of some rows."""
        return Fakes([view[rows] for view in self.views], self.labels[rows])

    @staticmethod
    def joined(parts: Sequence[Fakes]) -> Fakes:
        """All of some parts, one after the other."""
        views = [torch.cat(views) for views in zip(*(part.views for part in parts), strict=True)]
        return Fakes(views, torch.cat([part.labels for part in parts]))


class GANStep(nn.Module):
    """Both networks, the losses and the augmentation of one adversarial training.

    Args:
        family: what sets StyleGAN2, BigGAN and cGAN apart.
        options: arguments of :class:`visynth.lightning_modules.gan.GAN`.
        facts: of the data.

    Attributes:
        generator: the network that is trained,
        generator_ema: its weight average, which is sampled from, and
        discriminator: what it is trained against.
        augmenter: of what the discriminator sees.
        ahead: draws the next step's numbers while this one trains.
        ada_p: probability of augmentation, and
        signs: sum and number of the signs that it follows.
        path_mean: running mean of path lengths.
        lecam_means: running means of logits of real and fake images, for LeCam.
        steps_done: steps, of both networks.
        shares: probability of each class among the fakes.
        progress: part of the budget that is done, and
        images_a_step: images of one step over all processes; both are set before each step.
        gathered: detached values of this step, by what they are, for its running means.

    Raises:
        UsageError: more blocks to freeze than there are.
    """

    ada_p: Tensor
    signs: Tensor
    path_mean: Tensor
    lecam_means: Tensor
    steps_done: Tensor

    def __init__(self, family: Family, options: Any, facts: Facts) -> None:
        super().__init__()
        self.family, self.options, self.facts = family, options, facts
        for name, shape in (("ada_p", ()), ("path_mean", ()), ("signs", (2,)), ("lecam_means", (2,))):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        with torch.random.fork_rng(devices=[]):  # random weights come from the run seed, not from the global generator
            torch.manual_seed(options.seed)
            networks = family.generator(), family.discriminator()
        # On a CPU the step is half as fast again in this layout.
        self.generator: Any
        self.discriminator: Any
        self.generator, self.discriminator = (part.to(memory_format=torch.channels_last) for part in networks)
        self.generator_ema: Any = copy.deepcopy(self.generator).requires_grad_(False)
        self._freeze(options.freeze)
        self.movable = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.ahead = Prefetcher()
        self.augmenter = _augmenter(options, self.ahead)
        self.ada_p.fill_(options.augment_p)
        self.shares = np.full(len(facts.classes), 1 / len(facts.classes))
        self.progress, self.images_a_step = 1.0, 1
        self.gathered: dict[str, list[Tensor]] = defaultdict(list)
        self._drawn: dict[tuple[str, tuple[int, ...]], Latents] = {}

    def _freeze(self, count: int) -> None:
        blocks = len(self.discriminator.blocks())
        if count >= blocks:
            raise UsageError(f"freeze must be below the {blocks} blocks of the discriminator, but got {count}.")
        discriminator.freeze(self.discriminator, count)

    # -- a step --------------------------------------------------------------------------------------------------

    def run(self, micros: Sequence[Micro], optimizer_d: Any, optimizer_g: Any) -> tuple[Tensor | None, Tensor]:
        """Discriminator, then generator where it is its turn, then the running means; gives the losses of generator and
        discriminator.

        Raises:
            FloatingPointError: a loss or gradient that is not finite, before it moves a weight.
        """
        self.begin()
        loss_d = self._learn(optimizer_d, self.movable, [partial(self.discriminator_loss, m) for m in micros])
        loss_g = self.learn_generator(micros, optimizer_g)
        with torch.no_grad():
            if self.gathered["logits"]:
                means = distributed.averaged(torch.stack(self.gathered["logits"]).mean(dim=0))
                self.lecam_means.lerp_(means.to(self.lecam_means.dtype), 0.01)
        return loss_g, loss_d

    def begin(self) -> None:
        """Get ready for a step of the discriminator."""
        self.gathered.clear()
        self._drawn.clear()
        self.generator.requires_grad_(False)

    @property
    def generator_steps(self) -> int:
        """Steps of the generator until now."""
        return int(self.steps_done) // int(self.options.d_steps)

    @property
    def generator_learns(self) -> bool:
        """Whether this step is one of the generator, too."""
        return (int(self.steps_done) + 1) % int(self.options.d_steps) == 0

    def learn_generator(self, micros: Sequence[Micro], optimizer_g: Any) -> Tensor | None:
        """The generator's part of a step; None where it is not its turn."""
        self.generator.requires_grad_(True)
        if not self.generator_learns:
            _empty_step(optimizer_g)
            return None
        for p in self.movable:
            p.requires_grad_(False)
        try:
            parameters = list(self.generator.parameters())
            loss = self._learn(optimizer_g, parameters, [partial(self.generator_loss, m) for m in micros])
        except FloatingPointError:
            _empty_step(optimizer_g)
            raise
        finally:
            for p in self.movable:
                p.requires_grad_(True)
        with torch.no_grad():
            self.family.after_generator(self, micros)
        return loss

    def _learn(self, optimizer: Any, parameters: Sequence[Tensor], losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=self.ada_p.device)
        for loss_of in losses:
            loss = loss_of() / len(losses)
            with uncast(loss):  # penalties are differentiated twice in float32
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        distributed.average_gradients(parameters)
        total = torch.as_tensor(distributed.averaged(total))
        squares = torch.stack([p.grad.float().square().sum() for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(total + squares.sum())):
            raise FloatingPointError("a loss or gradient")
        optimizer.step()
        return total

    # -- losses --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fakes(self, positions: Sequence[int]) -> Fakes:
        """What the discriminator learns to tell from real images."""
        drawn = self.draw("discriminator", positions)
        return Fakes(self.family.synthesize(self, drawn, "discriminator", positions), drawn.labels)

    def discriminator_loss(self, micro: Micro, fakes: Fakes | None = None) -> Tensor:
        """The discriminator's loss of a batch; by default its fakes are those of the same positions."""
        options = self.options
        fakes = self.fakes(micro.positions) if fakes is None else fakes
        synthetic, *low = fakes.views
        gamma = self.gamma() if int(self.steps_done) % options.r1_every == 0 else 0.0
        real = micro.real.detach().requires_grad_(gamma > 0)
        fake = synthetic.detach().requires_grad_(gamma > 0 and options.r2)
        of_real = self._logits_of_real(real, micro)
        of_fake = self._logits([fake, *low], fakes.labels, micro.positions, "discriminator")
        loss = sum_of(
            weight * adversarial.discriminator_loss(options.loss, a, b).mean()
            for (weight, a), (_, b) in zip(of_real, of_fake, strict=True)
        )
        first = of_real[0][1]
        # Of a relativistic discriminator only differences mean something.
        seen = first.detach() - (of_fake[0][1].detach() if options.loss == "relativistic" else 0.0)
        self.signs += distributed.averaged(
            torch.stack([seen.float().sign().mean(), torch.ones_like(seen.float().mean())])
        )
        if options.lecam:
            means = [first.detach().float().mean(), of_fake[0][1].detach().float().mean()]
            self.gathered["logits"].append(torch.stack(means))
            held = adversarial.lecam(first, of_fake[0][1], self.lecam_means[0], self.lecam_means[1]).mean()
            loss = loss + options.lecam * (held if int(self.steps_done) >= LECAM_FROM else 0 * held)
        for images, labels, logits, purpose in (
            (real, micro.labels, first, "real"),
            (fake, fakes.labels, of_fake[0][1], "discriminator"),
        ):
            if images.requires_grad:
                penalty = self.penalty(images, labels, logits, micro.positions, purpose).mean()
                loss = loss + 0.5 * gamma * options.r1_every * penalty
        return loss

    def generator_loss(self, micro: Micro) -> Tensor:
        options = self.options
        drawn = self.draw("generator", micro.positions)
        fake = self.family.synthesize(self, drawn, "generator", micro.positions)
        of_fake = self._logits(fake, drawn.labels, micro.positions, "generator")
        of_real: Sequence[tuple[float, Tensor | None]] = [(1.0, None)] * len(of_fake)
        if options.loss == "relativistic":
            with torch.no_grad():
                of_real = self._logits_of_real(micro.real, micro)
        loss = sum_of(
            weight * adversarial.generator_loss(options.loss, a, b).mean()
            for (weight, a), (_, b) in zip(of_fake, of_real, strict=True)
        )
        extra = self.family.extra_loss(self, micro)
        return loss if extra is None else loss + extra

    def _logits(
        self, views: Sequence[Tensor], labels: Tensor, positions: Sequence[int], purpose: str
    ) -> list[tuple[float, Tensor]]:
        """Logits of augmented views; all views of an image are augmented by the same numbers, in full precision: places
        need it."""
        with uncast(views[0]):
            seen = [self.augmenter(wide(v), positions, purpose, float(self.ada_p)) for v in views]
        return self.family.logits(self, seen, labels)

    def _logits_of_real(self, real: Tensor, micro: Micro) -> list[tuple[float, Tensor]]:
        with uncast(real):
            views = self.family.views(real)
        return self._logits(views, micro.labels, micro.positions, "real")

    def penalty(self, images: Tensor, labels: Tensor, logits: Tensor, positions: Sequence[int], purpose: str) -> Tensor:
        """R1 or R2 of each image, through its augmentation; always in float32."""
        again = torch.is_autocast_enabled(images.device.type)
        with uncast(images):
            if again:
                logits = self._logits([images.float()], labels, positions, purpose)[0][1]
            return gradient_penalty(logits.flatten(1).mean(dim=1) if logits.ndim > 1 else logits, images)

    # -- what they need ------------------------------------------------------------------------------------------

    def draw(self, purpose: str, positions: Sequence[int]) -> Latents:
        """The generator's inputs for some positions; the same object throughout a step."""
        key = purpose, tuple(positions)
        if key not in self._drawn:
            self._drawn[key] = latents(
                self.options.seed,
                purpose,
                positions,
                self.generator.z_dim,
                self.family.style_width,
                self.shares,
                self.ada_p.device,
                next(self.generator.parameters()).dtype,
                self.ahead,
            )
        return self._drawn[key]

    def gamma(self) -> float:
        """Weight of the gradient penalty: as given, or by the rule for the size and the images of a step."""
        given: float | None = self.options.gamma
        return adversarial.gamma_for(self.facts.size[0], self.images_a_step) if given is None else given

    # -- after a step --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def average(self, images_seen: int, images: int) -> None:
        """Weights by half-life in images, shorter at the start (StyleGAN2-ADA, appendix C); buffers are copied.

        Args:
            images_seen: real images until now.
            images: of them, those since the last call.
        """
        options = self.options
        half = options.ema_kimg * 1000 if options.ema_kimg is not None else self.images_a_step * 10_000 / 32
        half = min(half, images_seen * options.ema_rampup) if options.ema_rampup else half
        beta = 0.5 ** (images / max(half, 1e-8))
        averages: list[Tensor] = list(self.generator_ema.parameters())
        torch._foreach_lerp_(averages, list(self.generator.parameters()), 1 - beta)
        for mine, other in zip(self.generator_ema.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(other)

    def adjust(self) -> float | None:
        """Move the probability of augmentation every four steps; gives the mean sign that it followed, or None."""
        options = self.options
        if options.augment != "ada" or options.ada_target is None or (int(self.steps_done) + 1) % 4:
            return None
        sign = float(self.signs[0] / self.signs[1])
        images = 4 * self.images_a_step
        self.ada_p.fill_(ada.adjusted(float(self.ada_p), sign, options.ada_target, images, options.ada_kimg))
        self.signs.zero_()
        return sign


def _empty_step(optimizer: Any) -> None:
    """A step that moves nothing: Lightning counts both optimizers in global_step; keep it even."""
    optimizer.zero_grad()
    optimizer.step()


def _augmenter(options: Any, ahead: Prefetcher) -> Augmenter:
    kinds = options.augment_kinds
    if options.augment == "ada":
        return Augmenter("ada", ada.DEFAULT if kinds is None else ada.check_kinds(kinds), options.seed, ahead)
    return Augmenter(options.augment, tuple(kinds or ("colour", "translation", "cutout")), options.seed, ahead)


def sum_of(parts: Any) -> Tensor:
    """Sum of tensors, without a zero to start from."""
    parts = list(parts)
    total: Tensor = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
