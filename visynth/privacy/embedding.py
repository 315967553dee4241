"""One private release of a few hundred images: the mean of random features of each class, with noise.

Harder, Adamczewski and Park, "DP-MERF: Differentially private mean embeddings with random features for practical
privacy-preserving data generation" (AISTATS 2021). Whatever is made of the release afterwards costs nothing more, so a generator
may be trained on it for as long as one likes. An image moves the sums by a vector of known length, however large the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.privacy.secret import secret_rng

COUNTED = 0.3  # length of an image's count beside its features, which have length 1
LEAST = 5.0  # images that a class is taken to have at least: its noisy count may be below zero
SURE = 3.0  # standard errors by which an embedding is above its noise, below which there is nothing to learn from


class RandomFeatures:
    """Random Fourier features of a Gaussian kernel (Rahimi and Recht, NeurIPS 2007): cosines and sines of random projections.

    Args:
        dimension: of a flat image.
        count: of features, even.
        length_scale: of the kernel, in units of the root of ``dimension``, for values in [-1, 1].
        seed: of the projections, which are public.

    Example:
        >>> features = RandomFeatures(64, 100, 0.5, seed=1)(torch.zeros(2, 1, 8, 8))
        >>> tuple(features.shape), float(features.norm(dim=1)[0])
        ((2, 100), 1.0)
    """

    def __init__(self, dimension: int, count: int, length_scale: float, seed: int) -> None:
        rng = seeding.rng(seed, "random features")
        drawn = rng.standard_normal((dimension, count // 2)) / (length_scale * math.sqrt(dimension))
        self.frequencies = torch.from_numpy(drawn).float()
        self.count = count

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[N, count]`` of length 1, of images ``[N, ...]`` in [-1, 1]."""
        self.frequencies = self.frequencies.to(images.device)
        places = images.flatten(1) @ self.frequencies
        return torch.cat([places.cos(), places.sin()], dim=1) / math.sqrt(self.count // 2)


@dataclass(frozen=True)
class Embedding:
    """What was released: of each class the sum of its images' features, and how many they are.

    Attributes:
        sums: float32 ``[classes, features]``.
        counts: float32 ``[classes]``, not below a few.
        deviation: of the noise on each sum; 0 without privacy.
    """

    sums: Tensor
    counts: Tensor
    deviation: float

    @property
    def means(self) -> Tensor:
        """Mean features of each class ``[classes, features]``."""
        return self.sums / self.counts[:, None]

    def drowned(self) -> list[int]:
        """Classes whose sum is not above its own noise: what is drawn of them is noise too.

        Known from the release alone, so it costs nothing: noise of D coordinates has a squared length of D and a deviation of
        the root of 2 D, in units of its variance.
        """
        if self.deviation == 0:
            return []
        size = self.sums.shape[1]
        power = self.sums.double().square().sum(dim=1) / self.deviation**2
        return [int(c) for c in torch.nonzero(power < size + SURE * math.sqrt(2 * size)).flatten()]


def sensitivity() -> float:
    """Length of what one image adds: its features, of length 1, and its count."""
    return math.sqrt(1 + COUNTED**2)


def embed(features: Tensor, labels: Tensor, classes: int, noise: float, key: str) -> Embedding:
    """Sums and counts of each class with Gaussian noise.

    Args:
        features: of length 1 at most ``[N, D]``.
        labels: int64 ``[N]``.
        classes: how many.
        noise: multiplier of the length of what one image adds; 0 for none.
        key: see :mod:`visynth.privacy.secret`.

    Example:
        >>> made = embed(torch.eye(2), torch.tensor([0, 0]), 1, 0.0, "0" * 64)
        >>> made.sums.tolist(), made.counts.tolist()
        ([[1.0, 1.0]], [5.0])
    """
    rng, deviation = secret_rng(key, "embedding"), noise * sensitivity()
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features.double())
    counts = np.bincount(labels.numpy(), minlength=classes) + deviation / COUNTED * rng.standard_normal(classes)
    noised = sums + deviation * torch.from_numpy(rng.standard_normal(tuple(sums.shape)))
    return Embedding(noised.float(), torch.from_numpy(np.maximum(counts, LEAST)).float(), deviation)


def discrepancy(features: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Squared distance of the mean features of generated images to given ones, mean over classes, less what does not depend on
    the images; an unbiased estimate (Gretton et al., JMLR 2012, eq. 3), so that small batches do not make images alike.

    Args:
        features: of length 1 ``[N, D]``.
        labels: int64 ``[N]``; each class at least twice.
        means: ``[classes, D]``.
    """
    sums = torch.zeros_like(means).index_add(0, labels, features)
    counts = torch.bincount(labels, minlength=len(means)).to(features.dtype)
    among = (sums.square().sum(dim=1) - counts) / (counts * (counts - 1))  # pairs of two images; each has length 1
    return (among - 2 * (sums / counts[:, None] * means).sum(dim=1)).mean()
