"""What adversarial modules are and what they make: arguments, networks, transfer and export; the step is in
:mod:`visynth.lightning_modules.gan`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from visynth.core.errors import UsageError
from visynth.generators.base import Generator, Spec
from visynth.lightning_modules import transfer
from visynth.lightning_modules.base import GeneratorModule
from visynth.lightning_modules.data import Facts
from visynth.lightning_modules.few import refuse_if_few, warn_if_few
from visynth.lightning_modules.gan_options import check, check_trainer
from visynth.lightning_modules.guard import Guard
from visynth.lightning_modules.latents import Augmenter
from visynth.networks import ada, discriminator


class GANModule(GeneratorModule):
    """What :class:`StyleGAN2`, :class:`BigGAN` and :class:`CGAN` share; they name their generator and its arguments,
    and write ``make_critic``.

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
        check(type(self).__name__, self.generator_class, self.told)
        self.network: Any = None
        self.critic: Any = None
        self.average: Any = None
        for name, shape in (("ada_p", ()), ("path_mean", ()), ("signs", (2,)), ("anchors", (2,))):
            self.register_buffer(name, torch.zeros(shape))
        for name in ("steps_done", "restored"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.guard = Guard()
        self._movable: list[nn.Parameter] = []  # parts of the discriminator that are trained

    # -- for subclasses ------------------------------------------------------------------------------------------

    name = ""  # that the generator is registered by
    generator_class: ClassVar[Any] = None
    shape: ClassVar[tuple[str, ...]] = ()  # arguments that go to the network

    def make_critic(self, facts: Facts) -> nn.Module:
        """The discriminator."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Plain values that the network was built with."""
        assert self.facts is not None
        return {"classes": len(self.facts.classes), **{name: self.told[name] for name in self.shape}}

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        """The exported form of a network."""
        made: Generator = self.generator_class(spec, network, **kwargs)
        return made

    # -- building ------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """No callbacks; what Lightning calls first, so that a trainer that does not suit is told in our words."""
        check_trainer(type(self).__name__, self.trainer)
        return []

    def setup(self, stage: str) -> None:
        if self.network is None:
            if not hasattr(self.data, "facts"):
                raise UsageError(
                    f"{type(self).__name__} needs a datamodule that says what its images are: use "
                    "visynth.lightning_modules.data.GeneratorData."
                )
            if self.told.transfer is None and not self.told.allow_few:
                refuse_if_few(type(self).__name__, self.data)
            warn_if_few(self.data, self.print)
            self.build(self.data.facts)
            if self.told.transfer is not None:
                self.take_over(Path(self.told.transfer))

    def build(self, facts: Facts) -> None:
        """Make both networks for some data; random weights come from the run seed, not from the global generator."""
        if facts.size[0] != facts.size[1]:
            raise UsageError(
                f"{type(self).__name__} makes square pictures, but the data are {facts.size[0]}x{facts.size[1]}: give "
                "the data one number as size."
            )
        self.facts = facts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.told.seed)
            network = self.generator_class.network_class(facts.size[0], facts.channels, **self.arguments())
            made = network, self.make_critic(facts)
        # On a CPU the step is half as fast again in this layout.
        self.network, self.critic = (part.to(memory_format=torch.channels_last) for part in made)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self._freeze(self.told.freeze)
        self._movable = [p for p in self.critic.parameters() if p.requires_grad]
        kinds = self.told.augment_kinds
        if self.told.augment == "ada":
            self.augmenter = Augmenter("ada", ada.DEFAULT if kinds is None else ada.check_kinds(kinds), self.told.seed)
        else:
            self.augmenter = Augmenter(
                self.told.augment, tuple(kinds or ("colour", "translation", "cutout")), self.told.seed
            )
        self.ada_p.fill_(self.told.augment_p)

    def _freeze(self, count: int) -> None:
        blocks = len(self.critic.blocks())
        if count >= blocks:
            raise UsageError(
                f"{type(self).__name__}: freeze must be below the {blocks} blocks of the discriminator, but got "
                f"{count}."
            )
        discriminator.freeze(self.critic, count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["visynth_rates"] = self._rates()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint.get("visynth_rates") != self._rates():
            checkpoint["state_dict"]["restored"] = torch.zeros_like(self.restored)  # other ones are another try

    def _rates(self) -> list[float | None]:
        """What may be told anew after a training that went off."""
        return [self.told.lr_d, self.told.lr_g, self.told.gamma]

    def take_over(self, folder: Path) -> None:
        """Weights of a generator folder, and of the discriminator in it if there is one, see
        :mod:`visynth.lightning_modules.transfer`."""
        from visynth.generators.base import load_generator

        assert self.facts is not None
        source, now = load_generator(folder), self.facts.classes
        given, own = source.weights(), self.network.state_dict()
        taken = transfer.fitting(given, own, source.classes, now)
        if not taken:
            raise UsageError(f"transfer: no weights of {folder} fit this network: give the same size and widths.")
        transfer.check_depth(given, own, str(folder))
        for network in (self.network, self.average):
            network.load_state_dict(taken, strict=False)
        told = f"transfer: {len(taken)} of {len(own)} tensors of the generator"
        if (folder / discriminator.FILE).is_file():
            own = self.critic.state_dict()
            taken = transfer.fitting(load_file(folder / discriminator.FILE), own, source.classes, now)
            self.critic.load_state_dict(taken, strict=False)
            told += f", {len(taken)} of {len(own)} of the discriminator"
        new = [name for name in now if name not in source.classes]
        self.print(f"{told} come from {folder}" + (f"; new classes: {', '.join(new)}" if new else ""))

    def shares(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Probability of each class among the fakes: that of the reals."""
        assert self.facts is not None
        counts = np.maximum(np.array(self.facts.counts, dtype=np.float64), 1e-9)
        temper = getattr(self.data, "temper", 0.5)
        shares = counts**temper
        return np.asarray(shares / shares.sum())

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
        """Samples of the weight average, as :meth:`visynth.generators.base.Generator.sample` gives them."""
        now = int(self.images_seen)
        held = self.__dict__.get("_held")
        if held is None or held[0] != now:  # standing statistics take a while: once for each state
            held = self.__dict__["_held"] = (now, self.generator())
        return held[1].sample(seeds, labels, **options)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder, and the discriminator beside it, which a later training may start from."""
        made = self.generator(ema, members=self.members(), card=self.card())
        return made.save(folder, discriminator.stored(self.critic.state_dict()))

    def card(self) -> dict[str, Any]:
        used = f"{self.told.augment}, at the end with probability {float(self.ada_p):.3f}"
        return self.trained_card(f"class-conditional GAN ({type(self).__name__})", self.average, augmentation=used)
