"""Adversarial training with Lightning: exact under resuming, several processes and accumulation.

Manual optimisation, because two networks take turns; what a step does is in :mod:`visynth.lightning_modules.gan_step`,
what one kind of GAN is in :mod:`visynth.lightning_modules.gan_families`. The budget is counted in thousands of real
images shown (kimg).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from visynth.core import distributed
from visynth.core.errors import Diverged, UsageError
from visynth.generators.base import Generator
from visynth.generators.diffusion import to_values
from visynth.lightning_modules import transfer
from visynth.lightning_modules.adversarial import Loss, gamma_for
from visynth.lightning_modules.base import GeneratorModule, present
from visynth.lightning_modules.facts import Facts
from visynth.lightning_modules.few import refuse_if_few, warn_if_few
from visynth.lightning_modules.gan_families import Family
from visynth.lightning_modules.gan_options import check, check_trainer, private_problems
from visynth.lightning_modules.gan_step import Fakes, GANStep, Micro
from visynth.lightning_modules.guard import Guard, set_rates
from visynth.lightning_modules.latents import Augment
from visynth.networks import discriminator
from visynth.privacy.gan_attacks import Discriminator


class GAN(GeneratorModule):
    """Base class of :class:`StyleGAN2`, :class:`BigGAN` and :class:`CGAN`.

    Args:
        kimg: thousands of real images to show; None goes on until the Trainer stops.
        loss: "non_saturating" (StyleGAN2), "hinge" (BigGAN, projected) or "relativistic" (with R1 and R2).
        gamma: weight of the gradient penalty R1; None: 2e-4 size^2 / images of a step; 0: none.
        r1_every: steps from one penalty to the next; its weight makes up for it.
        r2: the penalty on synthetic images as well.
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
        d_steps: steps of the discriminator for one of the generator; 2 in the paper on BigGAN, many in a private training.
        freeze: blocks of the discriminator, from the image on, that stay as they are; for transfer.
        transfer: generator folder to start from.
        allow_few: train even where a class has fewer than 20 images.
        sampler: defaults of the exported generator.
        micro_batch: images that the exported generator computes together.
        seed: of everything random in training.
        chosen_by: names of the features by whose distances these settings were chosen (``visynth fit sweep``); they cannot
            judge what comes out.

    Attributes:
        gan: both networks and what they learn from, once the data are known.
        restored: how often training went back after a loss that is no number.

    Raises:
        UsageError: arguments that cannot be right, all listed.
    """

    family_class: ClassVar[type[Family]]
    restored: Tensor

    def __init__(
        self,
        kimg: float | None = None,
        loss: Loss = "non_saturating",
        gamma: float | None = None,
        r1_every: int = 16,
        r2: bool = False,
        lecam: float = 0.0,
        augment: Augment = "ada",
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
        d_steps: int = 1,
        freeze: int = 0,
        transfer: str | None = None,
        allow_few: bool = False,
        sampler: dict[str, Any] | None = None,
        micro_batch: int = 16,
        seed: int = 0,
        chosen_by: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        check(type(self).__name__, self.family_class.generator_class, self.args)
        for name in chosen_by or ():
            self.uses_extractor(name, "distances that settings were chosen by")
        self.register_buffer("restored", torch.zeros((), dtype=torch.int64))
        self.guard = Guard()
        self._gan: GANStep | None = None
        self._waiting: list[Micro] = []
        self._fakes: Fakes | None = None

    # -- building ------------------------------------------------------------------------------------------------

    @property
    def gan(self) -> GANStep:
        """Networks, losses and augmentation. A UsageError where the data are not known yet."""
        return present(self._gan)

    def configure_callbacks(self) -> list[Any]:
        """No callbacks; what Lightning calls first, so that a trainer that does not suit is told in our words."""
        check_trainer(type(self).__name__, self.trainer)
        return []

    def setup(self, stage: str) -> None:
        if not self.built:
            if not hasattr(self.data, "facts"):
                raise UsageError(
                    f"{type(self).__name__} needs a datamodule that says what its images are: use "
                    "visynth.lightning_modules.data.GeneratorData."
                )
            if self.args.transfer is None and not self.args.allow_few:
                refuse_if_few(type(self).__name__, self.data)
            warn_if_few(self.data, self.print)
            self.build(self.data.facts)
            if self.args.transfer is not None:
                self.take_over(Path(self.args.transfer))

    def build(self, facts: Facts) -> None:
        """Make both networks for some data."""
        if facts.size[0] != facts.size[1]:
            raise UsageError(
                f"{type(self).__name__} makes square images, but the data are {facts.size[0]}x{facts.size[1]}: give "
                "the data one number as size."
            )
        try:
            self._gan = GANStep(self.family_class(self.args, facts), self.args, facts)
        except UsageError as error:
            raise UsageError(f"{type(self).__name__}: {error}") from error
        self._facts = facts

    def configure_optimizers(self) -> Any:
        args = self.args
        betas = (args.betas[0], args.betas[1])
        return [
            torch.optim.Adam(self.gan.movable, lr=args.lr_d, betas=betas, eps=1e-8),
            torch.optim.Adam(self.gan.generator.parameters(), lr=args.lr_g, betas=betas, eps=1e-8),
        ]

    def take_over(self, folder: Path) -> None:
        """Weights of a generator folder, and of the discriminator in it if there is one, see
        :mod:`visynth.lightning_modules.transfer`."""
        from visynth.generators.base import load_generator

        gan = self.gan
        source, classes = load_generator(folder), gan.facts.classes
        given, own = source.weights(), gan.generator.state_dict()
        taken = transfer.fitting(given, own, source.classes, classes)
        if not taken:
            raise UsageError(f"transfer: no weights of {folder} fit this network: give the same size and widths.")
        transfer.check_depth(given, own, str(folder))
        for network in (gan.generator, gan.generator_ema):
            network.load_state_dict(taken, strict=False)
        words = f"transfer: {len(taken)} of {len(own)} tensors of the generator"
        if (folder / discriminator.FILE).is_file():
            own = gan.discriminator.state_dict()
            taken = transfer.fitting(load_file(folder / discriminator.FILE), own, source.classes, classes)
            gan.discriminator.load_state_dict(taken, strict=False)
            words += f", {len(taken)} of {len(own)} of the discriminator"
        new = [name for name in classes if name not in source.classes]
        self.print(f"{words} come from {folder}" + (f"; new classes: {', '.join(new)}" if new else ""))

    # -- training ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Rates as given now: a checkpoint brings those of its own time along. A budget that was used up before is not
        exceeded by a step."""
        set_rates(self)
        self.gan.shares = self.shares()
        self._stop_at_budget()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        gan = self.gan
        self._waiting.append(self._micro(batch))
        self.images_seen += len(batch["image"]) * distributed.world_size()
        if len(self._waiting) < self.args.accumulate:
            return
        micros, self._waiting = self._waiting, []
        gan.progress, gan.images_a_step = self.progress(), self.images_a_step()
        optimizers: Any = self.optimizers()
        try:
            loss, loss_d = gan.run(micros, *optimizers)
            self._moved(loss, loss_d, self.images_a_step())
            sign = gan.adjust()
            if sign is not None:
                self.log("sign_real", sign)
        except FloatingPointError as error:
            self.guard.restore(self, str(error))
        gan.steps_done += 1
        self.stepped_at.copy_(self.images_seen)
        self.guard.remember(self)
        self._stop_at_budget()

    def _micro(self, batch: Any) -> Micro:
        real = to_values(batch["image"]).to(next(self.gan.generator.parameters()).dtype)
        return Micro(real, batch["label"], batch["position"].tolist())

    def _moved(self, loss: Tensor | None, loss_d: Tensor, images: int) -> None:
        """Weight average and log of a step of so many real images."""
        self.log_dict({"loss_d": loss_d, "ada_p": self.gan.ada_p}, prog_bar=True, batch_size=1)
        if loss is not None:
            self.gan.average(int(self.images_seen), images * int(self.args.d_steps))
            self.log("loss", loss, prog_bar=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Finite gradients were made sure of in the step; there is no warm-up."""

    def _stop_at_budget(self) -> None:
        if self.args.kimg is not None and int(self.images_seen) >= 1000 * self.args.kimg:
            self.trainer.should_stop = True

    def automatic_gamma(self, facts: Facts) -> float:
        """Weight of the gradient penalty by the rule for the size of some data and the images of a step."""
        return gamma_for(facts.size[0], self.images_a_step())

    def images_a_step(self) -> int:
        """Real images of one step over all processes."""
        batches = distributed.world_size() * int(self.args.accumulate)
        return int(getattr(self.data, "batch_size", 32)) * batches

    def progress(self) -> float:
        """Part of the budget that is done; 1 without a budget."""
        kimg = self.args.kimg
        return 1.0 if kimg is None else min(1.0, int(self.stepped_at) / (1000 * kimg))

    def shares(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Probability of each class among the fakes: that of the reals."""
        counts = np.maximum(np.array(self.gan.facts.counts, dtype=np.float64), 1e-9)
        temper = getattr(self.data, "temper", 0.5)
        shares = counts**temper
        return np.asarray(shares / shares.sum())

    # -- with differential privacy: the discriminator alone sees real images ---------------------------------------

    def privacy_problems(self) -> list[str]:
        """Arguments with which more than the discriminator's gradients would follow real images."""
        return private_problems(self.args)

    def private_part(self) -> torch.nn.Module:
        """What is trained on real images."""
        discriminator: torch.nn.Module = self.gan.discriminator
        return discriminator

    def before_private_step(self, rows: int) -> None:
        """Draw the step's fake images: which real ones are drawn must not show in them, by a batch norm for instance."""
        gan, first, size = self.gan, int(self.gan.steps_done) * rows, int(self.data.batch_size)
        gan.begin()
        positions = range(first, first + rows)
        self._fakes = Fakes.joined([gan.fakes(positions[k : k + size]) for k in range(0, rows, size)])

    def private_loss(self, batch: Any) -> Tensor:
        """Mean of the discriminator's losses of pairs of a real and a fake image."""
        micro, fakes = self._micro(batch), present(self._fakes)
        return self.gan.discriminator_loss(micro, fakes.take(batch["position"] % len(fakes.labels)))

    def after_private_step(self, loss: Tensor) -> None:
        """The generator's turn: as many fake images as the data's batch size, however many real ones were drawn."""
        gan, count = self.gan, int(self.data.batch_size)
        gan.progress, gan.images_a_step = self.progress(), count
        first = gan.generator_steps * count
        nothing = torch.zeros((0, gan.facts.channels, *gan.facts.size), device=self.device)
        fake = Micro(nothing, torch.zeros(0, dtype=torch.int64), list(range(first, first + count)))
        optimizers: Any = self.optimizers()
        gan.begin()
        try:
            moved = gan.learn_generator([fake], optimizers[1])
        except FloatingPointError as error:  # going back would undo steps that were paid for
            raise Diverged(
                f"{error} of the generator became infinite or not a number after step {int(gan.steps_done)}. Lower lr_g (now "
                f"{self.args.lr_g:g}) and begin anew, in another folder: what was spent is spent."
            ) from None
        self._moved(moved, loss, int(self.images_seen - self.stepped_at))
        gan.steps_done += 1
        self.stepped_at.copy_(self.images_seen)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["visynth_rates"] = self._rates()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("visynth_rates") != self._rates():
            checkpoint["state_dict"]["restored"] = torch.zeros_like(self.restored)  # other ones are another try

    def _rates(self) -> list[float | None]:
        """Arguments that may change after a training that diverged."""
        return [self.args.lr_d, self.args.lr_g, self.args.gamma]

    # -- what it makes -------------------------------------------------------------------------------------------

    def generator(self, ema: float | None = None, **kwargs: Any) -> Generator:
        """The generator of the averaged weights as they stand.

        Raises:
            UsageError: nothing was trained yet; another average than the one that training kept.
        """
        gan, family = self.gan, self.gan.family
        if ema is not None:
            raise UsageError("a GAN keeps one weight average, by half-life (ema_kimg): leave ema out.")
        spec = self.trained_spec(family.name, family.arguments(self.progress()))
        network = copy.deepcopy(gan.generator_ema)
        family.finish(network, spec.arguments, self.shares())
        generator: Generator = family.generator_class(spec, network, **kwargs)
        return generator

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Any:
        """Samples of the weight average, as :meth:`visynth.generators.base.Generator.sample` gives them."""
        now = int(self.images_seen)
        held = self.__dict__.get("_held")
        if held is None or held[0] != now:  # standing statistics take a while: once for each state
            held = self.__dict__["_held"] = (now, self.generator())
        return held[1].sample(seeds, labels, **options)

    def as_attacked(self) -> Discriminator:
        """The discriminator as an attacker has it."""

        def logits(gan: Any, values: Tensor, labels: Tensor) -> Tensor:
            parts = gan.family.logits(gan, gan.family.views(values), labels)
            return torch.stack([weight * part for weight, part in parts]).sum(dim=0)

        return Discriminator(self.gan, logits, lambda gan: gan.movable)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder, and the discriminator beside it, which a later training may start from."""
        generator = self.generator(ema, members=self.members(), card=self.card())
        return generator.save(folder, discriminator.stored(self.gan.discriminator.state_dict()))

    def card(self) -> dict[str, Any]:
        """Entries of the generator's card."""
        used = f"{self.args.augment}, at the end with probability {float(self.gan.ada_p):.3f}"
        task = f"class-conditional GAN ({type(self).__name__})"
        if getattr(self.args, "discriminator", "") == "projected":
            self.uses_extractor("efficientnet_lite0", "features of the discriminator")
        return self.trained_card(task, self.gan.generator_ema, augmentation=used)
