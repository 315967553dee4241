"""A generator from images in memory in a given time: what a trial trains in each of its cells, by registered name."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning

from visynth.core.errors import DataError
from visynth.core.pictures import fit_to, to_channels
from visynth.core.progress import Progress, no_progress
from visynth.core.quiet import quiet_lightning
from visynth.generators.base import Generator
from visynth.generators.compose_fit import Source
from visynth.generators.projection import ProjectedStyleGAN2, around
from visynth.lightning_modules.crops import DefectCrops
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.diffusion import Diffusion
from visynth.lightning_modules.facts import Pool, measure
from visynth.lightning_modules.gans import StyleGAN2
from visynth.lightning_modules.inpainting import Inpainting

# Each trainer takes ``pilot``: a moment of training that tells how fast it is, without what comes after.


def train_inpainting(
    sources: Sequence[Source],
    classes: Sequence[str],
    good: str | None,
    *,
    minutes: float,
    seed: int = 0,
    size: int = 64,
    pilot: bool = False,
    progress: Progress = no_progress,
) -> Generator:
    """An inpainting generator of training images with masks; ``size`` is the side of its windows.

    Raises:
        DataError: no defect-free class, or no class with reliable masks.
    """
    if good is None:
        raise DataError("inpainting needs a defect-free class: name it with --good.")
    present = [name for name in classes if any(s.label == name for s in sources)]
    data = DefectCrops.of(sources, good, classes=present, window=size, seed=seed)
    module = Inpainting(seed=seed, snapshots=False)
    return _train(module, data, minutes, progress)


def train_diffusion(
    sources: Sequence[Source],
    classes: Sequence[str],
    good: str | None,
    *,
    minutes: float,
    seed: int = 0,
    size: int = 64,
    pilot: bool = False,
    progress: Progress = no_progress,
) -> Generator:
    """A diffusion generator of whole images at ``size`` pixels; other classes lend what they share.

    Raises:
        DataError: one class only.
    """
    names = _names(sources)
    pool = _pool(sources, names, _shape(sources, size))
    data = GeneratorData.of_pool(pool, measure(pool, names), batch_size=64 if size <= 32 else 32, seed=seed)
    return _train(Diffusion(seed=seed, snapshots=False, width=32 if size <= 32 else 24), data, minutes, progress)


def train_projection(
    sources: Sequence[Source],
    classes: Sequence[str],
    good: str | None,
    *,
    minutes: float,
    seed: int = 0,
    size: int = 64,
    pilot: bool = False,
    progress: Progress = no_progress,
) -> Generator:
    """Variations of projected real images of every class, by a StyleGAN2 of all of them; images come out as wide to
    their height as most images are.

    Raises:
        DataError: one class only.
    """
    names = _names(sources)
    side = max(16, 2 ** int(np.log2(size)))
    pool = _pool(sources, names, (side, side))
    data = GeneratorData.of_pool(pool, measure(pool, names), batch_size=32, seed=seed)
    module = StyleGAN2(base=2048, most=128, z_dim=128, w_dim=128, shared=8, allow_few=True, seed=seed)
    trained = _train(module, data, minutes, progress)
    if pilot:
        return trained
    base: Any = trained
    chosen = [row for row, s in enumerate(sources) if s.label != good]
    images = np.ascontiguousarray(pool.images[chosen].transpose(0, 2, 3, 1))
    generator, facts = around(
        base,
        images,
        pool.labels[chosen].tolist(),
        [sources[row].name for row in chosen],
        [sources[row].group for row in chosen],
        steps=200,
    )
    progress(f"    projected {len(chosen)} images, error {facts['error']:.3f}, strength {facts['strength']:g}")
    return ProjectedStyleGAN2(
        replace(generator.spec, size=_shape(sources, side)),
        generator.network,
        generator.projected_latents,
        card=generator.card,
    )


def _names(sources: Sequence[Source]) -> list[str]:
    names = sorted({s.label for s in sources})
    if len(names) < 2:
        raise DataError("a class-conditional generator needs at least two classes to train on.")
    return names


def _pool(sources: Sequence[Source], names: Sequence[str], shape: tuple[int, int]) -> Pool:
    channels = 1 if all(s.image.shape[2] == 1 for s in sources) else 3
    images = np.stack([fit_to(to_channels(s.image, channels), shape, "squash") for s in sources])
    labels = np.array([names.index(s.label) for s in sources], dtype=np.int64)
    return Pool(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels)


def _shape(sources: Sequence[Source], size: int) -> tuple[int, int]:
    """As wide to its height as most images are, of ``size`` pixels at most."""
    ratio = float(np.median([s.image.shape[1] / s.image.shape[0] for s in sources]))
    return _near(size / max(ratio, 1.0)), _near(size * min(ratio, 1.0))


def _near(side: float) -> int:
    """The multiple of 8 next to a side, at least 8."""
    return max(8, round(side / 8) * 8)


def _train(module: Any, data: Any, minutes: float, progress: Progress) -> Generator:
    losses = Losses()
    with tempfile.TemporaryDirectory(prefix="visynth.") as root, quiet_lightning(logging.ERROR):
        trainer = pytorch_lightning.Trainer(
            max_time={"seconds": max(1, round(60 * minutes))},
            max_epochs=-1,
            default_root_dir=root,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0 if module.automatic_optimization else None,
            callbacks=[losses],
        )
        started = time.monotonic()
        trainer.fit(module, data)
        seen, seconds = int(module.images_seen), time.monotonic() - started
        progress(
            f"    {seen} images in {seconds:.0f} s ({seen / seconds:.0f} images/s), loss "
            f"{float(trainer.callback_metrics['loss']):.3f}"
        )
        generator: Generator = module.to(
            trainer.strategy.root_device
        ).generator()  # Lightning leaves the module on the CPU
        generator.card |= {"images seen in training": seen, "seconds of training": round(seconds, 1)}
        generator.card["loss over training"] = losses.curve()
        return generator


class Losses(pytorch_lightning.Callback):
    """The logged loss against the images seen, as means of at most ``points`` equal parts of the training."""

    def __init__(self, points: int = 24, every: int = 5) -> None:
        self.points, self.every = points, every
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        value = None if batch_idx % self.every else trainer.callback_metrics.get("loss")
        if value is not None:
            self.seen.append((int(pl_module.images_seen), float(value)))

    def curve(self) -> list[list[float]]:
        """Images seen and loss, in order."""
        parts = np.array_split(np.array(self.seen), min(self.points, len(self.seen))) if self.seen else []
        return [[float(part[-1, 0]), round(float(part[:, 1].mean()), 4)] for part in parts]
