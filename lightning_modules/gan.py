"""Adversarial training with Lightning: one step for every network, exact under resuming, several processes and
accumulation.

Manual optimisation, because two networks take turns. A *step* sees ``accumulate`` batches: the discriminator learns
from all of them, then the generator. Every random number belongs to a position of the stream
(:mod:`visynth.lightning_modules.latents`), and means over the joined batch are exchanged between processes, so that the
same positions give the same step however they are split over processes, and, without batch norm and minibatch standard
deviation, over accumulated batches. The budget is counted in thousands of real images shown (kimg).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visynth.core import distributed
from visynth.generators.diffusion import to_values
from visynth.lightning_modules import adversarial
from visynth.lightning_modules.adversarial import gradient_penalty
from visynth.lightning_modules.gan_base import GANModule
from visynth.lightning_modules.guard import set_rates
from visynth.lightning_modules.latents import Latents, latents
from visynth.networks import ada
from visynth.networks.layers import uncast, wide


@dataclass
class Micro:
    """One batch of a step: real images in [-1, 1], their labels and their positions."""

    real: Tensor
    labels: Tensor
    positions: list[int]


class AdversarialModule(GANModule):
    """The step; arguments are those of :class:`visynth.lightning_modules.gan_base.GANModule`.

    Attributes:
        ada_p: probability of augmentation, and
        signs: sum and number of the signs that it follows.
        path_mean: running mean of path lengths.
        anchors: running means of logits of real and made images, for LeCam.
        steps_done: steps, of both networks.
    """

    ada_p: Tensor
    signs: Tensor
    path_mean: Tensor
    anchors: Tensor
    steps_done: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._waiting: list[Micro] = []
        self._means: list[Tensor] = []  # of logits in this step

    # -- for subclasses ------------------------------------------------------------------------------------------

    def make(self, drawn: Latents, purpose: str, positions: Sequence[int]) -> list[Tensor]:
        """Pictures ``[N, C, H, W]`` of latents, at full size and, where a discriminator looks at them, at lower
        ones."""
        return [self.network(drawn.z, drawn.labels)]

    def views(self, real: Tensor) -> list[Tensor]:
        """Real pictures at the sizes of :meth:`make`."""
        return [real]

    def logits(self, views: Sequence[Tensor], labels: Tensor) -> list[tuple[float, Tensor]]:
        """Logits of views, one or more for each image, with their weights in the loss; the first ones, which depend on
        the first view alone, are what
        penalties are taken on."""
        return [(1.0, self.critic(views[0], labels))]

    def generator_extras(self, micro: Micro) -> Tensor | None:
        """A further loss of the generator, or None."""
        return None

    def after_generator(self, micros: Sequence[Micro]) -> None:
        """Called when the generator has moved."""

    def forget(self) -> None:
        """Drop what a step that failed has gathered."""
        self._means = []

    @property
    def style_width(self) -> int:
        """Width of the noise on the embedding of the class; 0 for none."""
        return 0

    def configure_optimizers(self) -> Any:
        o = self.told
        b1, b2 = o.betas
        return [
            torch.optim.Adam(self._movable, lr=o.lr_d, betas=(b1, b2), eps=1e-8),
            torch.optim.Adam(self.network.parameters(), lr=o.lr_g, betas=(b1, b2), eps=1e-8),
        ]

    # -- the step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images = batch["image"]
        real = to_values(images).to(next(self.network.parameters()).dtype)
        self._waiting.append(Micro(real, batch["label"], batch["position"].tolist()))
        self.images_seen += len(images) * distributed.world_size()
        if len(self._waiting) < self.told.accumulate:
            return
        micros, self._waiting = self._waiting, []
        try:
            self.step(micros)
        except FloatingPointError as error:
            self.forget()
            self.guard.restore(self, str(error))
        self.steps_done += 1
        self.stepped_at.copy_(self.images_seen)
        self.guard.remember(self)
        self._stop_at_budget()

    def step(self, micros: Sequence[Micro]) -> None:
        """Discriminator, then generator, then the averages.

        Raises:
            FloatingPointError: a loss or gradient that is not finite, before it moves a weight.
        """
        optimizers: Any = self.optimizers()
        optimizer_d, optimizer_g = optimizers
        critic_moves = self._movable
        self.network.requires_grad_(False)
        loss_d = self._learn(optimizer_d, critic_moves, [lambda m=m: self.discriminator_loss(m) for m in micros])
        self.network.requires_grad_(True)
        for p in critic_moves:
            p.requires_grad_(False)
        try:
            moves = list(self.network.parameters())
            loss_g = self._learn(optimizer_g, moves, [lambda m=m: self.generator_loss(m) for m in micros])
        except FloatingPointError:
            optimizer_g.zero_grad()
            optimizer_g.step()  # of nothing: Lightning counts both optimisers, and even numbers must stay even
            raise
        finally:
            for p in critic_moves:
                p.requires_grad_(True)
        with torch.no_grad():
            if self._means:
                self.anchors.lerp_(
                    distributed.averaged(torch.stack(self._means).mean(dim=0)).to(self.anchors.dtype), 0.01
                )
                self._means = []
            self.after_generator(micros)
            self._average()
        self._adjust()
        self.log_dict({"loss": loss_g, "loss_d": loss_d, "ada_p": self.ada_p}, prog_bar=True, batch_size=1)

    def _learn(self, optimizer: Any, parameters: Sequence[Tensor], losses: Sequence[Any]) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for loss_of in losses:
            loss = loss_of() / len(losses)
            with uncast(loss):  # penalties are differentiated twice in float32
                loss.backward()
            total += loss.detach()
        distributed.average_gradients(parameters)
        total = torch.as_tensor(distributed.averaged(total))
        squares = torch.stack([p.grad.float().square().sum() for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(total + squares.sum())):
            raise FloatingPointError("a loss or gradient")
        optimizer.step()
        return total

    def discriminator_loss(self, micro: Micro) -> Tensor:
        o = self.told
        drawn = self.draw("discriminator", micro.positions)
        with torch.no_grad():
            made, *low = self.make(drawn, "discriminator", micro.positions)
        gamma = self.gamma() if int(self.steps_done) % o.r1_every == 0 else 0.0
        real = micro.real.detach().requires_grad_(gamma > 0)
        fake = made.detach().requires_grad_(gamma > 0 and o.r2)
        of_real = self._judged_real(real, micro)
        of_fake = self._judged([fake, *low], drawn.labels, micro.positions, "discriminator")
        loss = sum_of(
            weight * adversarial.discriminator_loss(o.loss, a, b).mean()
            for (weight, a), (_, b) in zip(of_real, of_fake, strict=True)
        )
        first = of_real[0][1]
        # Of a relativistic discriminator only differences mean something.
        seen = first.detach() - (of_fake[0][1].detach() if o.loss == "relativistic" else 0.0)
        self.signs += distributed.averaged(
            torch.stack([seen.float().sign().mean(), torch.ones_like(seen.float().mean())])
        )
        if o.lecam:
            self._means.append(torch.stack([first.detach().float().mean(), of_fake[0][1].detach().float().mean()]))
            held = adversarial.lecam(first, of_fake[0][1], self.anchors[0], self.anchors[1]).mean()
            loss = loss + o.lecam * (held if int(self.steps_done) >= 1000 else 0 * held)
        for images, labels, logits, purpose in (
            (real, micro.labels, first, "real"),
            (fake, drawn.labels, of_fake[0][1], "discriminator"),
        ):
            if images.requires_grad:
                penalty = self.penalty(images, labels, logits, micro.positions, purpose).mean()
                loss = loss + 0.5 * gamma * o.r1_every * penalty
        return loss

    def _judged(
        self, views: Sequence[Tensor], labels: Tensor, positions: Sequence[int], purpose: str
    ) -> list[tuple[float, Tensor]]:
        """Logits of augmented views; all views of an image are augmented by the same numbers, in full precision: places
        need it."""
        with uncast(views[0]):
            seen = [self.augmenter(wide(v), positions, purpose, float(self.ada_p)) for v in views]
        return self.logits(seen, labels)

    def _judged_real(self, real: Tensor, micro: Micro) -> list[tuple[float, Tensor]]:
        with uncast(real):
            views = self.views(real)
        return self._judged(views, micro.labels, micro.positions, "real")

    def penalty(self, images: Tensor, labels: Tensor, logits: Tensor, positions: Sequence[int], purpose: str) -> Tensor:
        """R1 or R2 of each image, through its augmentation; always in float32."""
        again = torch.is_autocast_enabled(self.device.type)
        with uncast(images):
            if again:
                logits = self._judged([images.float()], labels, positions, purpose)[0][1]
            return gradient_penalty(logits.flatten(1).mean(dim=1) if logits.ndim > 1 else logits, images)

    def generator_loss(self, micro: Micro) -> Tensor:
        o = self.told
        drawn = self.draw("generator", micro.positions)
        made = self.make(drawn, "generator", micro.positions)
        of_fake = self._judged(made, drawn.labels, micro.positions, "generator")
        of_real: Sequence[tuple[float, Tensor | None]] = [(1.0, None)] * len(of_fake)
        if o.loss == "relativistic":
            with torch.no_grad():
                of_real = self._judged_real(micro.real, micro)
        loss = sum_of(
            weight * adversarial.generator_loss(o.loss, a, b).mean()
            for (weight, a), (_, b) in zip(of_fake, of_real, strict=True)
        )
        extra = self.generator_extras(micro)
        return loss if extra is None else loss + extra

    # -- what it needs -------------------------------------------------------------------------------------------

    def draw(self, purpose: str, positions: Sequence[int]) -> Latents:
        return latents(
            self.told.seed,
            purpose,
            positions,
            self.network.z_dim,
            self.style_width,
            self.shares(),
            self.device,
            next(self.network.parameters()).dtype,
        )

    def gamma(self) -> float:
        """Weight of the gradient penalty: as told, or by the rule for the size and the images of a step."""
        assert self.facts is not None
        told = self.told.gamma
        return adversarial.gamma_for(self.facts.size[0], self.images_a_step()) if told is None else told

    def images_a_step(self) -> int:
        batches = distributed.world_size() * int(self.told.accumulate)
        return int(getattr(self.data, "batch_size", 32)) * batches

    def progress(self) -> float:
        """Part of the budget that is done; 1 without a budget."""
        return 1.0 if self.told.kimg is None else min(1.0, int(self.stepped_at) / (1000 * self.told.kimg))

    def _average(self) -> None:
        """Weights by half-life in images, shorter at the start (StyleGAN2-ADA, appendix C); buffers are copied."""
        now = int(self.images_seen)
        half = self.told.ema_kimg * 1000 if self.told.ema_kimg is not None else self.images_a_step() * 10_000 / 32
        half = min(half, now * self.told.ema_rampup) if self.told.ema_rampup else half
        beta = 0.5 ** (self.images_a_step() / max(half, 1e-8))
        theirs: list[Tensor] = list(self.average.parameters())
        torch._foreach_lerp_(theirs, list(self.network.parameters()), 1 - beta)
        for mine, other in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mine.copy_(other)

    def _adjust(self) -> None:
        """Move the probability of augmentation every four steps."""
        o = self.told
        if o.augment != "ada" or o.ada_target is None or (int(self.steps_done) + 1) % 4:
            return
        sign = float(self.signs[0] / self.signs[1])
        self.ada_p.fill_(ada.adjusted(float(self.ada_p), sign, o.ada_target, 4 * self.images_a_step(), o.ada_kimg))
        self.signs.zero_()
        self.log("sign_real", sign)

    def on_train_start(self) -> None:
        """Rates as told now: a checkpoint brings those of its own time along. A budget that was used up before is not
        exceeded by a step."""
        set_rates(self)
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        if self.told.kimg is not None and int(self.images_seen) >= 1000 * self.told.kimg:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Finite gradients were made sure of in the step; there is no warm-up."""


def sum_of(parts: Any) -> Tensor:
    """Sum of tensors, without a zero to start from."""
    parts = list(parts)
    total: Tensor = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def fade(progress: float, first: float, last: float) -> float:
    """0 before ``first``, 1 after ``last``, a straight line between.

    Example:
        >>> [round(fade(p, 0.08, 0.16), 6) for p in (0.0, 0.12, 1.0)]
        [0.0, 0.5, 1.0]
    """
    if last <= first:
        return float(progress >= first)
    return min(1.0, max(0.0, (progress - first) / (last - first)))
