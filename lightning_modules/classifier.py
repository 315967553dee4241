"""The second learner: the last blocks of the extractor, fine-tuned by a small LightningModule at a fixed number of
steps.

A strong frozen baseline and a fine-tuned network can disagree about synthetic images, so a claim should hold in both.
The trunk's activations are computed once per image; only the last blocks and a linear layer are trained.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from visynth.core import seeds as seeding
from visynth.core.quiet import quiet_lightning
from visynth.metrics.extractors import extractor
from visynth.verdict.learners import Floats, Ints, Items, Outcome, Predictions, split_parts
from visynth.verdict.ranking import average_precision


class Classifier(pytorch_lightning.LightningModule):
    """Last blocks, max pooling over places, one logit: one class against the rest.

    Args:
        tail: the last blocks, ``[N, C, h, w]`` -> ``[N, D, h', w']``; trained in place.
        width: D.
        lr: AdamW's learning rate for the linear layer; the blocks train at a tenth of it.

    Example:
        >>> net = Classifier(nn.Conv2d(4, 6, 1), width=6)
        >>> tuple(net(torch.zeros(2, 4, 5, 5)).shape)
        (2,)
    """

    def __init__(self, tail: nn.Module, width: int, lr: float = 3e-3) -> None:
        super().__init__()
        self.tail, self.head, self.lr = tail, nn.Linear(width, 1), lr

    def forward(self, activations: Tensor) -> Tensor:
        """Logits ``[N]`` of trunk activations ``[N, C, h, w]``."""
        logits: Tensor = self.head(self.tail(activations).amax(dim=(2, 3)))[:, 0]
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        activations, truth = batch
        return nn.functional.binary_cross_entropy_with_logits(self(activations.float()), truth)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parts = [
            {"params": self.tail.parameters(), "lr": self.lr / 10},
            {"params": self.head.parameters(), "lr": self.lr},
        ]
        return torch.optim.AdamW(parts, weight_decay=0.01)


@dataclass(frozen=True)
class FinetuneLearner:
    """Fine-tunes the last blocks for ``steps`` batches drawn in proportion to the items' weights.

    Steps and batch are the same for every arm, so no arm trains longer for having more images. Nothing is chosen, so
    the inner folds only measure: the first of them gives the validation score.
    """

    steps: int = 60
    batch: int = 32
    trunk = 160  # side of the squares whose activations it needs

    def fit(
        self,
        tables: Mapping[tuple[int, str], NDArray[Any]],
        items: Items,
        test: Ints,
        folds: Sequence[frozenset[str]],
        seed: int,
    ) -> Outcome:
        """Train without the first inner fold for the validation score; the outcome trains on all items."""
        table = tables[(self.trunk, "trunk")]
        inner = float("nan")
        for held in folds[:1]:
            train, validation = split_parts(items, held)
            if items.positive[train].any() and items.positive[validation].any():
                values = items.features(table).astype(np.float32)
                model = self._train(values[train], items.positive[train], items.weights[train], seed)
                inner = average_precision(items.positive[validation], _scores(model, values[validation]))
        folded = (inner,) if np.isfinite(inner) else ()

        def tested() -> Predictions:
            values = items.features(table).astype(np.float32)
            model = self._train(values, items.positive, items.weights, seed)
            return Predictions(_scores(model, table[test].astype(np.float32)))

        return Outcome(tested, inner, {"steps": self.steps}, folded)

    def _train(
        self, values: NDArray[np.float32], positive: NDArray[np.bool_], weights: Floats, seed: int
    ) -> Classifier:
        source = extractor()
        assert source.tail is not None
        with torch.random.fork_rng(devices=[]), quiet_lightning(logging.ERROR):
            torch.manual_seed(seeding.derive("finetune", seed))
            tail = copy.deepcopy(source.tail).requires_grad_(True).train()
            model = Classifier(tail, source.width)
            data = TensorDataset(torch.from_numpy(values), torch.from_numpy(positive.astype(np.float32)))
            draws = torch.Generator().manual_seed(seeding.derive("draws", seed))
            sampler = WeightedRandomSampler(weights.tolist(), self.steps * self.batch, generator=draws)
            trainer = pytorch_lightning.Trainer(
                max_steps=self.steps,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(model, DataLoader(data, self.batch, sampler=sampler))
        return model.eval()


def _scores(model: Classifier, values: NDArray[np.float32]) -> Floats:
    with torch.inference_mode():
        parts = [model(torch.from_numpy(values[i : i + 64])) for i in range(0, len(values), 64)]
    return torch.cat(parts).double().numpy()
