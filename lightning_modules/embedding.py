"""A generator from one private release: for few images that must stay private, in minutes on a CPU (DP-MERF)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visynth.callbacks.checkpoint import KeepLast
from visynth.core import seeds as seeding
from visynth.core.errors import ConflictError, UsageError, raise_all
from visynth.generators import gan as generators
from visynth.generators.base import Generator
from visynth.generators.diffusion import to_values
from visynth.lightning_modules.base import GeneratorModule, present
from visynth.lightning_modules.facts import Facts
from visynth.networks.cgan import CGAN
from visynth.networks.norm import measure
from visynth.privacy.accounting import Accountant, Release, check_delta, noise_for, option_problems, statement
from visynth.privacy.dp import CHECKPOINT
from visynth.privacy.embedding import Embedding, RandomFeatures, discrepancy, embed
from visynth.privacy.refusals import looking_problems
from visynth.privacy.secret import new_key

STANDING = 16  # batches that the norms' standing statistics are measured on


class MeanEmbedding(GeneratorModule):
    """Release the mean random features of each class once, with noise, and train a generator whose images have the same ones.

    The images are looked at once, whatever the steps: with a few hundred images this keeps far more than DP-SGD does
    (``scripts/bench/README.md`` has both). Images come out somewhat soft; without ``epsilon`` it is a plain kernel method.

    Args:
        epsilon: of the release; None: no privacy.
        delta: by default the largest power of ten below one in the number of images.
        accountant: ``"rdp"`` or ``"prv"``; both are told.
        unit: what an image stands for, in one word.
        features: random features; an even number.
        length_scale: of the kernel, in units of the root of the number of values of an image. A wide one sees what images have in
            common, a narrow one their details, which drown in noise first.
        width: channels of the network at half the size.
        z_dim: of the latent.
        steps: of the training.
        per_class: generated images of each class in a step.
        lr: Adam's learning rate, which falls to 0 by a cosine.
        sampler: defaults of the exported generator.
        micro_batch: images that the exported generator computes together.
        seed: of everything random but the noise.
        key: fixed secret of the noise, for tests alone. None: one of the operating system.

    Raises:
        UsageError: options that cannot be right; images that are not square, or of another size than 8, 16, 32 or 64; callbacks
            that look at private images; several processes.

    Example:
        >>> module = MeanEmbedding(epsilon=3.0, steps=100)
        >>> module.pays_for_privacy
        True
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        accountant: Accountant = "rdp",
        unit: str = "image",
        features: int = 1000,
        length_scale: float = 0.5,
        width: int = 32,
        z_dim: int = 16,
        steps: int = 1500,
        per_class: int = 50,
        lr: float = 1e-2,
        sampler: dict[str, Any] | None = None,
        micro_batch: int = 16,
        seed: int = 0,
        key: str | None = None,
    ) -> None:
        super().__init__()
        counts = {"steps": steps, "width": width, "z_dim": z_dim}
        problems = option_problems(1.0 if epsilon is None else epsilon, 1.0, **counts)
        if features < 2 or features % 2:
            problems.append(f"features must be an even number of at least 2, but got {features}")
        if per_class < 2:
            problems.append(f"per_class must be at least 2, but got {per_class}")
        if not (length_scale > 0 and lr > 0):
            problems.append(f"length_scale and lr must be above 0, but got {length_scale} and {lr}")
        raise_all("MeanEmbedding", problems, UsageError)
        self.save_hyperparameters(ignore=["key"])
        self._key = key
        self._network: CGAN | None = None
        self._features: RandomFeatures | None = None
        self._released: dict[str, Any] | None = None  # options of the release, and the size of its noise

    @property
    def pays_for_privacy(self) -> bool:
        """Whether the module pays for its use of the data itself."""
        return self.args.epsilon is not None

    @property
    def network(self) -> CGAN:
        """The generator's network. A UsageError where the data are not known yet."""
        return present(self._network)

    @property
    def features(self) -> RandomFeatures:
        """The features that are released. A UsageError where the data are not known yet."""
        return present(self._features)

    def privacy_problems(self) -> list[str]:
        """Told where the callback of DP-SGD is asked for as well."""
        return [
            "MeanEmbedding pays for its one release itself: leave the callback out, and give the module its epsilon"
        ]

    def federation_problems(self) -> list[str]:
        """The server has no images to release anything of."""
        return ["MeanEmbedding releases its images' embedding in one place: there are no local steps"]

    # -- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        data = self.data
        if getattr(data, "pool", None) is None:
            if not hasattr(data, "make_pool"):
                raise UsageError(
                    "MeanEmbedding needs visynth.lightning_modules.data.GeneratorData, whose images it has whole."
                )
            data.setup()
        if self.pays_for_privacy:
            raise_all("differential privacy", looking_problems(self.trainer), UsageError)
            data.forget_statistics()
        if str(self.trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
            raise UsageError(
                f"precision {self.trainer.precision} rounds the release, or is not computed here: take 32-true or bf16-mixed."
            )
        if self.trainer.world_size > 1:
            raise UsageError(f"{self.trainer.world_size} processes would each release the images: take devices: 1.")
        if not self.built:
            self.build(data.facts)

    def build(self, facts: Facts) -> None:
        """Make the network for some data."""
        if facts.size[0] != facts.size[1]:
            raise UsageError(
                f"MeanEmbedding makes square images, but the data are {facts.size[0]}x{facts.size[1]}: give the data one number as size."
            )
        args, classes = self.args, len(facts.classes)
        self._facts = facts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            self._network = CGAN(facts.size[0], facts.channels, classes, z_dim=args.z_dim, width=args.width)
        values = facts.channels * math.prod(facts.size)
        self._features = RandomFeatures(values, args.features, args.length_scale, args.seed)
        self.register_buffer("sums", torch.zeros(classes, args.features))
        self.register_buffer("counts", torch.zeros(classes))

    # -- training ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        asked = self._release_options()
        if self._released is None:
            self._release(asked)
            self._keep_release()
        changed = [
            f"{name}: {self._released[name]!r} there, {value!r} here"
            for name, value in asked.items()
            if self._released is not None and self._released[name] != value
        ]
        raise_all("another release costs anew: start in another folder. The checkpoint's", changed, ConflictError)
        if self.pays_for_privacy:
            assert self._released is not None
            self.privacy = self._released["statement"]  # of the data as they were: the release is not made anew
        drowned = self._embedding().drowned()
        if drowned:
            names = ", ".join(self.facts.classes[c] for c in drowned)
            self.print(
                f"not above the noise of epsilon {self.args.epsilon:g}: {names}: images of these classes will be noise too"
            )
        self.trainer.should_stop = self.trainer.should_stop or self.trainer.global_step >= self.args.steps

    def _release_options(self) -> dict[str, Any]:
        """All that a release depends on."""
        args = self.args
        names = ("epsilon", "delta", "accountant", "features", "length_scale", "seed")
        return {name: args[name] for name in names}

    def _release(self, options: dict[str, Any]) -> None:
        """Look at the images, once."""
        pool, features = self.data.pool, self.features
        parts = [torch.from_numpy(pool.images[k : k + 256]) for k in range(0, len(pool.images), 256)]
        found = torch.cat([features(to_values(part)) for part in parts])
        made = embed(
            found, torch.from_numpy(pool.labels), len(self.facts.classes), self._noise(), self._key or new_key()
        )
        self.sums.copy_(made.sums)
        self.counts.copy_(made.counts)
        said = self._statement() if self.pays_for_privacy else {}
        self._released = {**options, "deviation": made.deviation, "statement": said}

    def _keep_release(self) -> None:
        """Onto the disk before anything is made of it: a kill after that costs nothing, and one before it showed nothing."""
        trainer: Any = self.trainer
        if any(isinstance(callback, KeepLast) for callback in trainer.callbacks):
            trainer.save_checkpoint(KeepLast.path(trainer.default_root_dir))

    def _noise(self) -> float:
        args = self.args
        if args.epsilon is None:
            return 0.0
        return noise_for(args.epsilon, self._delta(), 1.0, 1, accountant=args.accountant)

    def _delta(self) -> float:
        return check_delta(self.args.delta, len(self.data.pool.labels))

    def _statement(self) -> dict[str, Any]:
        args = self.args
        release = Release("mean features and number of images of each class", self._noise(), 1.0, 1)
        more: dict[str, Any] = {"features": args.features, "length scale": args.length_scale}
        if self._key is not None:
            more["not private"] = "the key of the noise was given, as tests do: whoever knows it can take the noise off"
        return statement([release], self._delta(), args.accountant, args.unit, f"all {args.unit}s, once", **more)

    def _embedding(self) -> Embedding:
        return Embedding(self.sums.float(), self.counts.float(), float((self._released or {})["deviation"]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Of the batch nothing is used: all that training knows of the images is the release."""
        classes, step = len(self.facts.classes), int(self.trainer.global_step)
        labels = torch.arange(classes * self.args.per_class, device=self.device) % classes
        z = seeding.noise(
            [seeding.derive("embedding", self.args.seed, step)], (len(labels), self.args.z_dim), "latents"
        )[0]
        images = self.network(z.to(self.device), labels)
        with torch.autocast(self.device.type, enabled=False):  # differences of small numbers
            loss = discrepancy(self.features(images.float()), labels, self._embedding().means)
        return self.finish_step(loss, len(labels))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["visynth_release"] = self._released
        if self.pays_for_privacy:
            checkpoint[CHECKPOINT] = (self._released or {})["statement"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._released = checkpoint["visynth_release"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.args.lr)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        done = min(1.0, int(self.trainer.global_step) / self.args.steps)
        for group in optimizer.param_groups:
            group["lr"] = self.args.lr * 0.5 * (1 + math.cos(math.pi * done))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step >= self.args.steps:
            self.trainer.should_stop = True

    # -- what it makes -------------------------------------------------------------------------------------------

    def generator(self, ema: float | None = None, **kwargs: Any) -> Generator:
        """The generator of the weights as they stand.

        Raises:
            UsageError: a weight average was asked for; there is none.
        """
        if ema is not None:
            raise UsageError("MeanEmbedding keeps no weight average: leave ema out.")
        network, args, classes = copy.deepcopy(self.network), self.args, len(self.facts.classes)
        labels = torch.arange(64, device=self.device) % classes

        def run(batch: int) -> None:
            z = seeding.noise(
                [seeding.derive("standing", batch, row) for row in range(len(labels))], (args.z_dim,), "latent"
            )
            network(z.to(self.device), labels)

        measure(network, run, STANDING)
        spec = self.trained_spec("cgan", {"classes": classes, "z_dim": args.z_dim, "width": args.width})
        return generators.CGAN(spec, network, **kwargs)

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Any:
        """Samples, as :meth:`visynth.generators.base.Generator.sample` gives them."""
        return self.generator().sample(seeds, labels, **options)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder."""
        return self.generator(ema, members=self.members(), card=self.card()).save(folder)

    def card(self) -> dict[str, Any]:
        return self.trained_card("class-conditional generator of a mean embedding (DP-MERF)", self.network)
