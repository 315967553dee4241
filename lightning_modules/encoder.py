"""A second judge, without a download: a small encoder trained from scratch on the user's own real images.

It learns which class an image shows and by how many quarter turns it was rotated (Gidaris et al., "Unsupervised representation
learning by predicting image rotations", ICLR 2018), so that it has to look at the images' structure even where there are few
classes. Its features know nothing of ImageNet, and nothing of what a generator was trained or chosen by.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.core.judges import FEWEST, OWN
from visynth.core.judges import OWN_SIDE as SIDE
from visynth.core.quiet import quiet_lightning
from visynth.metrics.extractor import Extractor, prepare_square

WIDTH = 256  # of its features
STEPS, BATCH = 300, 48


class Encoder(pytorch_lightning.LightningModule):
    """Four stages of two convolutions each, group-normalised, stride 16; float32 ``[N, 3, H, W]`` in [-1, 1] ->
    ``[N, 256, H / 16, W / 16]``.

    Args:
        classes: that the images have.
        lr: peak of the learning rate, which rises for a tenth of the steps and falls by a cosine.
        steps: of the training.
    """

    def __init__(self, classes: int, lr: float = 2e-3, steps: int = STEPS) -> None:
        super().__init__()
        widths = [3, 32, 64, 128, WIDTH]
        stages = []
        for inputs, outputs in pairwise(widths):
            stages += [
                nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
            ]  # fmt: skip
        self.body = nn.Sequential(*stages)
        self.label, self.turn = nn.Linear(WIDTH, classes), nn.Linear(WIDTH, 4)
        self.lr, self.steps = lr, steps

    def forward(self, values: Tensor) -> Tensor:
        maps: Tensor = self.body(values)
        return maps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        turns = torch.arange(len(images), device=images.device) % 4
        turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, turns, strict=True)])
        pooled = self(turned).mean(dim=(2, 3))
        loss = nn.functional.cross_entropy(self.turn(pooled), turns)
        known = labels >= 0
        if known.any():
            loss = loss + nn.functional.cross_entropy(self.label(pooled[known]), labels[known])
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Crops(Dataset[tuple[Tensor, int]]):
    """Random crops, flips and changes of light of the images; every number of an item is a function of (seed, place)."""

    def __init__(self, images: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], count: int, seed: int) -> None:
        self.images, self.labels, self.count, self.seed = images, labels, count, seed
        # Every class as often: the rare one is what is judged.
        self.own = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        stream = seeding.rng(seeding.derive("encoder", self.seed, place), "crop")
        own = self.own[place // 4 % len(self.own)]  # four of a class in a row: each is turned another way
        row = int(own[int(stream.integers(0, len(own)))])
        image = self.images[row]
        size = int(stream.integers(SIDE * 3 // 4, SIDE + 1))
        top, left = (int(stream.integers(0, SIDE - size + 1)) for _ in range(2))
        values = torch.from_numpy(image[top : top + size, left : left + size].transpose(2, 0, 1).copy())[None]
        values = nn.functional.interpolate(values, (SIDE, SIDE), mode="bilinear", antialias=True)[0]
        values = values * float(stream.uniform(0.8, 1.2)) + float(stream.uniform(-0.1, 0.1))
        if stream.random() < 0.5:
            values = values.flip(2)
        return (values.clamp(0, 1) * 2 - 1).expand(3, -1, -1), int(self.labels[row])


def train_encoder(
    images: Sequence[NDArray[Any]], labels: Sequence[int], seed: int = 0, steps: int = STEPS
) -> Extractor:
    """An extractor, ``own``, trained on real images; about a minute on two cores.

    Args:
        images: ``[H, W, C]``, uint8 or uint16; real ones alone.
        labels: of their classes, -1 where an image has none or several.
        seed: of weights and crops.
        steps: of the training.

    Raises:
        DataError: fewer than 20 images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> reals = [rng.integers(0, 256, (64, 64, 1), np.uint8) for _ in range(20)]
        >>> train_encoder(reals, [0, 1] * 10, steps=1).width
        256
    """
    if len(images) < FEWEST:
        raise DataError(f"an encoder of your own images needs at least {FEWEST} of them, but there are {len(images)}.")
    squares = [prepare_square(image, SIDE) for image in images]
    numbers = np.asarray(labels, dtype=np.int64)
    with torch.random.fork_rng(devices=[]), quiet_lightning(logging.ERROR):
        torch.manual_seed(seeding.derive("encoder", seed) % 2**63)
        model = Encoder(int(max(numbers.max() + 1, 1)), steps=steps)
        trainer = pytorch_lightning.Trainer(
            max_steps=steps,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(_Crops(squares, numbers, steps * BATCH, seed), BATCH))
    body = model.body.eval().requires_grad_(False).cpu()
    return Extractor(OWN, body, WIDTH)
