"""Adversarial training with Lightning: one step for every network, exact under resuming, several processes and accumulation.

Manual optimisation, because two networks take turns. A *step* sees ``accumulate`` batches: the discriminator learns from all of them, then the generator. Every
random number belongs to a position of the stream (:mod:`visynth.lightning_modules.latents`), and means over the joined batch are exchanged between processes, so
that the same positions give the same step however they are split. The budget is counted in thousands of real images shown (kimg).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visynth import distributed
from visynth.data.training import Facts
from visynth.errors import UsageError
from visynth.generator import Generator, Spec
from visynth.lightning_modules import adversarial
from visynth.lightning_modules.adversarial import gradient_penalty
from visynth.lightning_modules.base import GeneratorModule
from visynth.lightning_modules.few import refuse_if_few
from visynth.lightning_modules.gan_options import check
from visynth.lightning_modules.guard import Guard
from visynth.lightning_modules.latents import Augmenter, Latents, latents
from visynth.networks import ada
from visynth.networks.diffusion import to_values
from visynth.networks.discriminator import freeze

DISCRIMINATOR = "discriminator.safetensors"


@dataclass
class Micro:
    """One batch of a step: real images in [-1, 1], their labels and their positions."""

    real: Tensor
    labels: Tensor
    positions: list[int]


class AdversarialModule(GeneratorModule):
    """What :class:`StyleGAN2`, :class:`BigGAN` and :class:`CGAN` share; they write the ``make_`` methods.

    Args:
        kimg: thousands of real images to show; None goes on until the Trainer stops.
        loss: "non_saturating" (StyleGAN2), "hinge" (BigGAN, projected) or "relativistic" (with R1 and R2).
        gamma: weight of the gradient penalty R1; None: 2e-4 size^2 / images of a step; 0: none.
        r1_every: steps from one penalty to the next; its weight makes up for it.
        r2: the penalty on made images as well.
        lecam: weight of LeCam, from step 1000 on; 0.3 with hinge, 1e-6 with non_saturating and ADA.
        augment: "ada" (as much as keeps the discriminator from overfitting), "diffaugment" (always) or "none".
        augment_kinds: kinds or groups that keep a class what it is; by default blit, geometry and colour.
        augment_p: probability to start from.
        ada_target: mean sign of the discriminator on real images that is aimed for; None keeps augment_p.
        ada_kimg: thousands of images in which the probability may rise from 0 to 1.
        lr_g: learning rate of the generator, and
        lr_d: of the discriminator.
        betas: Adam's.
        ema_kimg: half-life of the weight average in thousands of images; None: images of a step * 10 / 32.
        ema_rampup: the half-life is at most this part of the images seen; 0 for none.
        accumulate: batches of one step.
        freeze: blocks of the discriminator, from the picture on, that stay as they are; for transfer.
        transfer: generator folder to start from.
        allow_few: train even where a class has fewer than 20 images.
        sampler: defaults of the exported generator.
        micro_batch: images that the exported generator computes together.
        seed: of everything random in training.

    Raises:
        UsageError: arguments that cannot be right, all of them told.
    """

    ada_p: Tensor
    signs: Tensor
    path_mean: Tensor
    anchors: Tensor
    steps_done: Tensor
    restored: Tensor

    def __init__(
        self,
        kimg: float | None = None,
        loss: str = "non_saturating",
        gamma: float | None = None,
        r1_every: int = 16,
        r2: bool = False,
        lecam: float = 0.0,
        augment: str = "ada",
        augment_kinds: list[str] | None = None,
        augment_p: float = 0.0,
        ada_target: float | None = 0.6,
        ada_kimg: float = 500.0,
        lr_g: float = 2.5e-3,
        lr_d: float = 2.5e-3,
        betas: list[float] = [0.0, 0.99],  # noqa: B006, never changed, and jsonargparse wants a list
        ema_kimg: float | None = None,
        ema_rampup: float = 0.05,
        accumulate: int = 1,
        freeze: int = 0,
        transfer: str | None = None,
        allow_few: bool = False,
        sampler: dict[str, Any] | None = None,
        micro_batch: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        check(type(self).__name__, self.told)
        self.network: Any = None
        self.critic: Any = None
        self.average: Any = None
        for name, shape in (("ada_p", ()), ("path_mean", ()), ("signs", (2,)), ("anchors", (2,))):
            self.register_buffer(name, torch.zeros(shape))
        for name in ("steps_done", "restored"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.guard = Guard()
        self._waiting: list[Micro] = []
        self._means: list[Tensor] = []  # of logits in this step

    # -- for subclasses ------------------------------------------------------------------------------------------

    def make_network(self, facts: Facts) -> nn.Module:
        """The generator network."""
        raise NotImplementedError

    def make_critic(self, facts: Facts) -> nn.Module:
        """The discriminator."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Plain values that the network was built with."""
        raise NotImplementedError

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        """The exported form of a network."""
        raise NotImplementedError

    def make(self, drawn: Latents, purpose: str, positions: Sequence[int]) -> Tensor:
        """Pictures ``[N, C, H, W]`` of latents."""
        made: Tensor = self.network(drawn.z, drawn.labels)
        return made

    def logits(self, images: Tensor, labels: Tensor) -> list[tuple[float, Tensor]]:
        """Logits, one or more for each image, with their weights in the loss; the first are what penalties are taken on."""
        return [(1.0, self.critic(images, labels))]

    def generator_extras(self, micro: Micro) -> Tensor | None:
        """A further loss of the generator, or None."""
        return None

    def after_generator(self, micros: Sequence[Micro]) -> None:
        """Called when the generator has moved."""

    name = ""
    style_width = 0  # of noise on the class embedding

    # -- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.network is None:
            if not hasattr(self.data, "facts"):
                raise UsageError(
                    f"{type(self).__name__} needs a datamodule that says what its images are: use visynth.data.training.GeneratorData."
                )
            refuse_if_few(
                type(self).__name__, self.data, self.told.allow_few, self.told.transfer is not None, self.print
            )
            self.build(self.data.facts)
            if self.told.transfer is not None:
                self.take_over(Path(self.told.transfer))

    def build(self, facts: Facts) -> None:
        """Make both networks for some data; random weights come from the run seed, not from the global generator."""
        if facts.size[0] != facts.size[1]:
            raise UsageError(
                f"{type(self).__name__} makes square pictures, but the data are {facts.size[0]}x{facts.size[1]}: give the data one number as size."
            )
        self.facts = facts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.told.seed)
            made = self.make_network(facts), self.make_critic(facts)
        # On a CPU the step is half as fast again in this layout.
        self.network, self.critic = (part.to(memory_format=torch.channels_last) for part in made)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        freeze(self.critic, self.told.freeze)
        kinds = self.told.augment_kinds
        if self.told.augment == "ada":
            self.augmenter = Augmenter("ada", ada.DEFAULT if kinds is None else ada.check_kinds(kinds), self.told.seed)
        else:
            self.augmenter = Augmenter(
                self.told.augment, tuple(kinds or ("colour", "translation", "cutout")), self.told.seed
            )
        self.ada_p.fill_(self.told.augment_p)

    def take_over(self, folder: Path) -> None:
        """Weights of a generator folder, and of the discriminator in it if there is one; what depends on the classes starts anew where they differ."""
        from visynth.generator import load_generator

        given = load_generator(folder).weights()
        fitting = _fitting(given, self.network)
        if not fitting:
            raise UsageError(f"transfer: no weights of {folder} fit this network: give the same size and widths.")
        self.network.load_state_dict(fitting, strict=False)
        self.average.load_state_dict(fitting, strict=False)
        told = f"transfer: {len(fitting)} of {len(self.network.state_dict())} tensors of the generator"
        if (folder / DISCRIMINATOR).is_file():
            held = _fitting(load_file(folder / DISCRIMINATOR), self.critic)
            self.critic.load_state_dict(held, strict=False)
            told += f", {len(held)} of {len(self.critic.state_dict())} of the discriminator"
        self.print(f"{told} come from {folder}")

    def configure_optimizers(self) -> Any:
        o = self.told
        b1, b2 = o.betas
        movable = [p for p in self.critic.parameters() if p.requires_grad]
        return [
            torch.optim.Adam(movable, lr=o.lr_d, betas=(b1, b2), eps=1e-8),
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
            self.guard.restore(self, str(error))
        self.steps_done += 1
        self.stepped_at.copy_(self.images_seen)
        self.guard.remember(self)
        if self.told.kimg is not None and int(self.images_seen) >= 1000 * self.told.kimg:
            self.trainer.should_stop = True

    def step(self, micros: Sequence[Micro]) -> None:
        """Discriminator, then generator, then the averages.

        Raises:
            FloatingPointError: a loss or gradient that is not finite, before it moves a weight.
        """
        optimizers: Any = self.optimizers()
        optimizer_d, optimizer_g = optimizers
        critic_moves = [p for p in self.critic.parameters() if p.requires_grad]
        self.network.requires_grad_(False)
        loss_d = self._learn(optimizer_d, critic_moves, [lambda m=m: self.discriminator_loss(m) for m in micros])
        self.network.requires_grad_(True)
        for p in critic_moves:
            p.requires_grad_(False)
        loss_g = self._learn(
            optimizer_g, list(self.network.parameters()), [lambda m=m: self.generator_loss(m) for m in micros]
        )
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

    def _learn(self, optimizer: Any, parameters: list[Tensor], losses: Sequence[Any]) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for loss_of in losses:
            loss = loss_of() / len(losses)
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
        o, p = self.told, float(self.ada_p)
        drawn = self.draw("discriminator", micro.positions)
        with torch.no_grad():
            made = self.make(drawn, "discriminator", micro.positions)
        gamma = self.gamma() if int(self.steps_done) % o.r1_every == 0 else 0.0
        real = micro.real.detach().requires_grad_(gamma > 0)
        fake = made.detach().requires_grad_(gamma > 0 and o.r2)
        of_real = self.logits(self.augmenter(real, micro.positions, "real", p), micro.labels)
        of_fake = self.logits(self.augmenter(fake, micro.positions, "discriminator", p), drawn.labels)
        loss = sum_of(
            weight * adversarial.discriminator_loss(o.loss, a, b).mean()
            for (weight, a), (_, b) in zip(of_real, of_fake, strict=True)
        )
        first = of_real[0][1]
        self.signs += torch.stack([first.detach().float().sign().mean(), torch.ones_like(self.ada_p)])
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

    def penalty(self, images: Tensor, labels: Tensor, logits: Tensor, positions: Sequence[int], purpose: str) -> Tensor:
        """R1 or R2 of each image, through its augmentation; always in float32."""
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):
                augmented = self.augmenter(images.float(), positions, purpose, float(self.ada_p))
                logits = self.logits(augmented, labels)[0][1]
        return gradient_penalty(logits.flatten(1).mean(dim=1) if logits.ndim > 1 else logits, images)

    def generator_loss(self, micro: Micro) -> Tensor:
        o, p = self.told, float(self.ada_p)
        drawn = self.draw("generator", micro.positions)
        made = self.make(drawn, "generator", micro.positions)
        of_fake = self.logits(self.augmenter(made, micro.positions, "generator", p), drawn.labels)
        of_real: Sequence[tuple[float, Tensor | None]] = [(1.0, None)] * len(of_fake)
        if o.loss == "relativistic":
            with torch.no_grad():
                of_real = self.logits(self.augmenter(micro.real, micro.positions, "real", p), micro.labels)
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

    def shares(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Probability of each class among the fakes: that of the reals."""
        assert self.facts is not None
        counts = np.maximum(np.array(self.facts.counts, dtype=np.float64), 1e-9)
        temper = getattr(self.data, "temper", 0.5)
        shares = counts**temper
        return np.asarray(shares / shares.sum())

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
        total = distributed.averaged(self.signs)
        sign = float(total[0] / total[1])
        self.ada_p.fill_(ada.adjusted(float(self.ada_p), sign, o.ada_target, 4 * self.images_a_step(), o.ada_kimg))
        self.signs.zero_()
        self.log("sign_real", sign)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Finite gradients were made sure of in the step; there is no warm-up."""

    # -- what it makes -------------------------------------------------------------------------------------------

    def generator(self, ema: float | None = None, **kwargs: Any) -> Generator:
        """The generator of the averaged weights as they stand.

        Raises:
            UsageError: nothing was trained yet; another average than the one that training kept.
        """
        if self.facts is None or self.network is None:
            raise UsageError("there is no network yet: fit the module, or load a checkpoint.")
        if ema is not None:
            raise UsageError("a GAN keeps one weight average, by half-life (ema_kimg): leave ema out.")
        facts = self.facts
        spec = Spec(
            network=self.name,
            arguments=self.arguments(),
            classes=facts.classes,
            channels=facts.channels,
            size=facts.size,
            dtype=facts.dtype,
            sampler=self.told.sampler,
            micro_batch=self.told.micro_batch,
            kind="trained",
        )
        return self.make_generator(spec, copy.deepcopy(self.average), **kwargs)

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Any:
        """Samples of the weight average, as :meth:`visynth.generator.Generator.sample` gives them."""
        now = int(self.images_seen)
        held = self.__dict__.get("_held")
        if held is None or held[0] != now:  # standing statistics take a while: once for each state
            held = self.__dict__["_held"] = (now, self.generator())
        return held[1].sample(seeds, labels, **options)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder, and the discriminator beside it, which a later training may start from."""
        made = self.generator(ema, members=self.members(), card=self.card()).save(folder)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.critic.state_dict().items()}, made / DISCRIMINATOR)
        return made

    def card(self) -> Mapping[str, Any]:
        assert self.facts is not None
        pairs = zip(self.facts.classes, self.facts.counts, strict=True)
        return {
            "task": f"class-conditional GAN ({type(self).__name__})",
            "training images": sum(self.facts.counts),
            "images per class": ", ".join(f"{n} {c}" for n, c in pairs),
            "images seen in training": int(self.images_seen),
            "parameters": sum(p.numel() for p in self.average.parameters()),
            "augmentation": f"{self.told.augment}, at the end with probability {float(self.ada_p):.3f}",
            "licence": "as the images that it was trained on",
            "made by": "visynth fit",
        }


def sum_of(parts: Any) -> Tensor:
    """Sum of tensors, without a zero to start from."""
    parts = list(parts)
    total: Tensor = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _fitting(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Tensors of the same name and shape."""
    own = network.state_dict()
    return {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}


def fade(progress: float, first: float, last: float) -> float:
    """0 before ``first``, 1 after ``last``, a straight line between.

    Example:
        >>> [round(fade(p, 0.08, 0.16), 6) for p in (0.0, 0.12, 1.0)]
        [0.0, 0.5, 1.0]
    """
    if last <= first:
        return float(progress >= first)
    return min(1.0, max(0.0, (progress - first) / (last - first)))
