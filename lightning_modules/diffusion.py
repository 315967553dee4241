"""Training a class-conditional diffusion generator with Lightning's automatic optimisation.

One optimiser, one loss: DDP, gradient accumulation, clipping, bf16 and ``ckpt_path="last"`` work as they do for any
LightningModule. All randomness is a function of (run seed, position in the stream), see
:mod:`visynth.lightning_modules.randomness`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.core.errors import UsageError, choices
from visynth.generators.base import Generator, Spec
from visynth.generators.diffusion import OPTIONS, check_options, to_values
from visynth.generators.diffusion import Diffusion as DiffusionGenerator
from visynth.lightning_modules import snapshots as snapshot_ladder
from visynth.lightning_modules.base import GeneratorModule, present
from visynth.lightning_modules.facts import Facts
from visynth.lightning_modules.few import warn_if_few
from visynth.lightning_modules.losses import WEIGHTINGS, denoising
from visynth.lightning_modules.randomness import Draws, drawn_classes, dropout_of, use_position_dropout
from visynth.networks import augment, edm
from visynth.networks.ema import gamma_of, power_beta
from visynth.networks.unet import Denoiser, recipe


class Diffusion(GeneratorModule):
    """EDM training of a :class:`visynth.networks.unet.Denoiser` on few and unbalanced images.

    The network is built from the data: with :class:`visynth.lightning_modules.data.GeneratorData` nothing need be said;
    with a datamodule of your own that gives ``(image, label)`` or ``{"image", "label"}``, name ``classes``,
    ``channels`` and ``size``.

    Args:
        width: channels at full resolution.
        multipliers: of ``width`` per level; by default as :func:`visynth.networks.unet.recipe` says for the size.
        blocks: residual blocks a level.
        attention: heights with self-attention; by default the two lowest levels.
        dropout: by default chosen by the number of training images, :func:`dropout_for`.
        lr: Adam's learning rate.
        betas: Adam's.
        warmup: images over which the learning rate rises from 0.
        label_drop: share of images trained without their class, each on its own.
        augment: probability of each kind of labelled augmentation; 0 turns it off.
        augment_kinds: those that may happen; leave out what would change a class.
        weighting: ``"edm"`` or ``"min_snr"``.
        cbdm: weight tau of the class-balancing term (twice the cost); 0 turns it off.
        ema: relative width of the weight average that is sampled from and exported.
        snapshots: keep averages on disk, so that any other width can be made after training.
        sampler: defaults of the exported generator, for instance ``{"steps": 18, "solver": "heun"}``.
        micro_batch: images that the exported generator computes together.
        seed: of everything random in training.
        classes: class names, if the datamodule does not say.
        channels: of the images, likewise.
        size: height and width, likewise.
        sigma_data: standard deviation of the centred images, likewise.
        value_range: of float images that the datamodule gives, likewise.

    Raises:
        UsageError: options that cannot be right; a size that the levels cannot halve.

    Example:
        >>> module = Diffusion(width=8, classes=["a", "b"], channels=1, size=[8, 8])
        >>> module.setup("fit")
        >>> tuple(module.sample([1, 2, 3], [0, 1, 1], steps=2).images.shape)
        (3, 1, 8, 8)
    """

    def __init__(
        self,
        width: int = 32,
        multipliers: list[int] | None = None,
        blocks: int = 1,
        attention: list[int] | None = None,
        dropout: float | None = None,
        lr: float = 1e-3,
        betas: list[float] = [0.9, 0.99],  # noqa: B006, never changed, and jsonargparse wants a list
        warmup: int = 5_000,
        label_drop: float = 0.1,
        augment: float = 0.15,
        augment_kinds: list[str] | None = None,
        weighting: Literal["edm", "min_snr"] = "edm",
        cbdm: float = 0.0,
        ema: float = 0.10,
        snapshots: bool = True,
        sampler: dict[str, Any] | None = None,
        micro_batch: int = 16,
        seed: int = 0,
        classes: list[str] | None = None,
        channels: int | None = None,
        size: list[int] | None = None,
        sigma_data: float = 0.5,
        value_range: list[float] = [-1.0, 1.0],  # noqa: B006
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check(self.args)
        self._network: Denoiser | None = None
        self.averages = nn.ModuleList()
        self.stds = sorted({*snapshot_ladder.STDS, float(ema)})

    @property
    def network(self) -> Denoiser:
        """The denoiser. A UsageError where the data are not known yet."""
        return present(self._network)

    # -- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if not self.built:
            self.build(self._facts_of_data())
        self.averages.train()  # sampling puts them into eval mode, of which Lightning would warn at the next fit

    def build(self, facts: Facts) -> None:
        """Make the network for some data; random weights come from the run seed, not from the global generator."""
        args = self.args
        self._facts = facts
        auto = recipe(facts.size)
        dropout = args.dropout if args.dropout is not None else dropout_for(sum(facts.counts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            network = Denoiser(
                facts.channels,
                len(facts.classes),
                facts.size,
                width=args.width,
                multipliers=args.multipliers or auto["multipliers"],
                blocks=args.blocks,
                attention=auto["attention"] if args.attention is None else args.attention,
                dropout=dropout,
                conditions=self.conditions(facts),
                sigma_data=facts.sigma_data,
                mean=facts.mean,
            )
        averages = [copy.deepcopy(network).requires_grad_(False) for _ in self.stds]
        self.averages = nn.ModuleList(averages)
        use_position_dropout(network)
        self._network = network

    def conditions(self, facts: Facts) -> int:
        """Input channels beyond the noisy image; inpainting has some."""
        return 0

    def _facts_of_data(self) -> Facts:
        args = self.args
        data = self.data
        if hasattr(data, "facts"):
            facts: Facts = data.facts
            self.warn_if_few()
            return facts
        if args.classes is None or args.channels is None or args.size is None:
            raise UsageError(
                "the datamodule does not say what its images are: use visynth.lightning_modules.data.GeneratorData, "
                "or give the module classes=, channels= and size=."
            )
        count = len(args.classes)
        return Facts(
            tuple(args.classes),
            (0,) * count,
            args.channels,
            (args.size[0], args.size[1]),
            "uint8",
            (0.0,) * args.channels,
            args.sigma_data,
        )

    def warn_if_few(self) -> None:
        """Say what else there is for classes that are too small to learn from."""
        warn_if_few(self.data, self.print)

    # -- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels, positions = self._unpack(batch)
        clean, labels, extra = self.prepare(batch, images, labels, positions)
        with dropout_of(self.network, self.args.seed, positions):
            losses = denoising(self.network, clean, labels=labels, weighting=self.args.weighting, **extra)
        return self.finish_step(losses.mean(), len(images))

    def prepare(
        self, batch: Any, images: Tensor, labels: Tensor, positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Centred clean images, labels with some dropped, and the other arguments of the loss."""
        args = self.args
        draws = self.draw(positions, images.shape[1:])
        values = self._values(images)
        extra: dict[str, Any] = {}
        if args.augment > 0:
            kinds = augment.KINDS if args.augment_kinds is None else args.augment_kinds
            theta, known = augment.parameters(draws.uniform[:, :9], draws.normal[:, :4], args.augment, kinds)
            values, extra["augmentation"] = augment.warp(values, theta.to(values.device)), known.to(values.device)
        clean = values - self.network.mean
        labels, others = self._dropped(labels, draws)
        if args.cbdm > 0:
            extra["balance"] = (args.cbdm, others)
        return clean, labels, extra | self._noise(draws, clean.device)

    def _noise(self, draws: Draws, device: torch.device) -> dict[str, Tensor]:
        normal = torch.from_numpy(draws.normal[:, 4]).float().to(device)
        return {"noise": draws.noise.to(device), "sigma": edm.draw_sigma(normal, self.network.sigma_data)}

    def _dropped(self, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Labels with "no class" for some, and other labels drawn from the training prior."""
        dropped = torch.from_numpy(draws.uniform[:, 9] < self.args.label_drop).to(labels.device)
        counts = np.array(self.facts.counts, dtype=np.float64)
        others = drawn_classes(counts if counts.sum() else np.ones(len(counts)), draws.uniform[:, 10])
        nothing = torch.full_like(labels, self.network.classes)
        return torch.where(dropped, nothing, labels), torch.from_numpy(others).to(labels.device)

    def _values(self, images: Tensor) -> Tensor:
        if not images.dtype.is_floating_point:
            return to_values(images)
        low, high = (float(v) for v in self.args.value_range)
        return (images.float() - low) * (2 / (high - low)) - 1

    def _unpack(self, batch: Any) -> tuple[Tensor, Tensor, list[int]]:
        if isinstance(batch, Mapping):
            images, labels = batch["image"], batch["label"]
        else:
            images, labels = batch[0], batch[1]
        if isinstance(batch, Mapping) and "position" in batch:
            return images, labels, batch["position"].tolist()
        if self._privacy:
            raise UsageError(
                "a private training draws the random numbers of each image by its own place, which GeneratorData gives: train with "
                "it, or give batches a 'position' that a row keeps whoever else is in the batch."
            )
        world, rank = distributed.world_size(), distributed.rank()
        first = int(self.images_seen)
        return images, labels, [first + rank + world * i for i in range(len(images))]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        b1, b2 = self.args.betas
        return torch.optim.Adam(self.network.parameters(), lr=self.args.lr, betas=(b1, b2))

    def after_step(self, now: int, before: int) -> None:
        with torch.no_grad():
            for std, average in zip(self.stds, self.averages, strict=True):
                beta = power_beta(now, now - before, gamma_of(std))
                theirs: list[Tensor] = list(average.parameters())
                ours: list[Tensor] = list(self.network.parameters())
                torch._foreach_lerp_(theirs, ours, 1 - beta)
        folder = self._snapshot_folder()
        first = max(4 * self.args.warmup, 64)
        if folder is not None and snapshot_ladder.rung(now, first) > snapshot_ladder.rung(before, first):
            for std, average in zip(self.stds, self.averages, strict=True):
                if std in snapshot_ladder.STDS and self.trainer.is_global_zero:
                    snapshot_ladder.write(folder, now, std, dict(average.named_parameters()))

    def _snapshot_folder(self) -> Path | None:
        return (
            Path(self.trainer.default_root_dir) / "ema"
            if self.args.snapshots and self.trainer.checkpoint_callback
            else None
        )

    # -- what it makes -------------------------------------------------------------------------------------------

    def generator(self, ema: float | None = None, **kwargs: Any) -> Generator:
        """The generator of the weights as they stand: a copy, which further training leaves alone.

        Args:
            ema: relative width of the weight average; other widths than those held need snapshots.
            kwargs: ``members`` and ``card``.
        """
        spec, std = self.make_spec(), float(self.args.ema if ema is None else ema)
        if std in self.stds:
            network = copy.deepcopy(self.averages[self.stds.index(std)])
        else:
            network = copy.deepcopy(self.averages[0])
            folder = Path(self.trainer.default_root_dir) / "ema"
            now = {s: dict(a.named_parameters()) for s, a in zip(self.stds, self.averages, strict=True)}
            held = {s: w for s, w in now.items() if s in snapshot_ladder.STDS}
            weights = snapshot_ladder.reconstruct(folder, int(self.stepped_at), std, held)
            network.load_state_dict(weights, strict=False)
        return self.make_generator(spec, network, **kwargs)

    def make_spec(self) -> Spec:
        """Spec of the exported generator."""
        return self.trained_spec("diffusion", self.arguments())

    def privacy_problems(self) -> list[str]:
        """Options that use the data without paying for it."""
        return ["cbdm compares with classes drawn by their counts: leave it out"] if self.args.cbdm else []

    def arguments(self) -> dict[str, Any]:
        """Arguments that the network was built with, as plain values."""
        network: Any = self.network
        return dict(network.arguments)

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        return DiffusionGenerator(spec, network, **kwargs)

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Any:
        """Samples of the weight average, as :meth:`visynth.generators.base.Generator.sample` gives them."""
        return self.generator().sample(seeds, labels, **options)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder, with the members that the datamodule knows and a card of the training."""
        return self.generator(ema, members=self.members(), card=self.card()).save(folder)

    def card(self) -> dict[str, Any]:
        task = "class-conditional diffusion (EDM)"
        return self.trained_card(task, self.averages[0], **{"weight average": self.args.ema})


def dropout_for(images: int) -> float:
    """Dropout by the number of training images: the smaller the set, the more (EDM's settings for 16,000 to 70,000
    images).

    Example:
        >>> dropout_for(500), dropout_for(50_000), dropout_for(10**6)
        (0.25, 0.13, 0.05)
    """
    return 0.25 if images < 20_000 else 0.13 if images < 60_000 else 0.05


def _check(args: Any) -> None:
    problems = []
    if args.weighting not in WEIGHTINGS:
        problems.append(f"weighting must be one of {choices(WEIGHTINGS)}, but got {args.weighting!r}")
    for name in ("label_drop", "augment"):
        if not 0 <= getattr(args, name) <= 1:
            problems.append(f"{name} must be in [0, 1], but got {getattr(args, name)}")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        problems.append(f"dropout must be in [0, 1), but got {args.dropout}")
    if not 0 < args.ema <= 0.28:
        problems.append(f"ema is a relative width in (0, 0.28], but got {args.ema}")
    if args.warmup < 0:
        problems.append(f"warmup must be at least 0, but got {args.warmup}")
    if args.lr <= 0 or args.cbdm < 0 or args.width < 1 or args.blocks < 1:
        problems.append(
            f"lr must be above 0, cbdm at least 0, width and blocks at least 1, but got {args.lr}, {args.cbdm}, "
            f"{args.width}, {args.blocks}"
        )
    unknown = [kind for kind in args.augment_kinds or [] if kind not in augment.KINDS]
    if unknown:
        problems.append(f"augment_kinds {choices(unknown)} are unknown; there are {choices(augment.KINDS)}")
    unknown = [name for name in args.sampler or {} if name not in OPTIONS]
    if unknown:
        problems.append(f"sampler options {choices(unknown)} are unknown; there are {choices(OPTIONS)}")
    if problems:
        raise UsageError("Diffusion: " + "; ".join(problems) + ".")
    check_options({**OPTIONS, **(args.sampler or {})})
