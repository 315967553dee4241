"""Membership inference on adversarial generators: the discriminator's score, and how well the generator can be made to give an
image back.

Hayes et al., "LOGAN: membership inference attacks against generative models" (PoPETs 2019), section 4: a discriminator that has
overfitted scores its training images higher. Chen et al., "GAN-Leaks: a taxonomy of membership inference attacks against
generative models" (CCS 2020), eq. 5: an image that was trained on is reconstructed better from the best latent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core import seeds as seeding
from visynth.generators.diffusion import to_values
from visynth.generators.gan import StyleGAN2
from visynth.generators.projection import project
from visynth.privacy.membership import Floats

DISCRIMINATOR, INVERSION = "the discriminator's score", "reconstruction by inverting the generator"
BATCH, INVERTED = 64, 16  # images of a look, and of a search
STARTS = 4  # latents from which an image is looked for
STEPS = 200  # of the search for a latent
LEARNING = 1e-3


@dataclass(frozen=True)
class Discriminator:
    """A discriminator as an attacker has it.

    Attributes:
        network: with its weights.
        logits: ``(network, values [N, C, H, W] in [-1, 1], labels [N]) -> [N]``, higher for real images.
        trained: the parameters that the training moved.
    """

    network: nn.Module
    logits: Callable[[Any, Tensor, Tensor], Tensor]
    trained: Callable[[Any], Iterable[nn.Parameter]] = nn.Module.parameters

    def scores(self, images: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
        """Scores ``[N]`` of integer images ``[N, C, H, W]``."""
        network = copy.deepcopy(self.network).eval()  # spectral norms move at each look in training mode
        device = next(network.parameters()).device
        parts = []
        with torch.no_grad():
            for k in range(0, len(labels), BATCH):
                values = to_values(torch.from_numpy(images[k : k + BATCH])).to(device)
                classes = torch.from_numpy(labels[k : k + BATCH]).to(device)
                parts.append(self.logits(network, values, classes).double().cpu())
        return np.asarray(torch.cat(parts).numpy())

    def by_heart(
        self,
        images: NDArray[Any],
        others: NDArray[Any],
        labels: tuple[NDArray[np.int64], NDArray[np.int64]],
        steps: int,
        seed: int,
    ) -> Discriminator:
        """The same network, taught to tell some images from others of the same kind: the positive control.

        Args:
            images: that it shall know ``[N, C, H, W]``.
            others: of the same kind ``[M, C, H, W]``.
            labels: of both.
            steps: of Adam.
            seed: of the batches.
        """
        network = copy.deepcopy(self.network).requires_grad_(False)
        moved = [parameter.requires_grad_(True) for parameter in self.trained(network)]
        device = next(network.parameters()).device
        values = torch.cat([to_values(torch.from_numpy(side)) for side in (images, others)]).to(device)
        classes = torch.cat([torch.from_numpy(side) for side in labels]).to(device)
        signs = torch.cat([torch.full((len(side),), sign) for side, sign in zip(labels, (-1.0, 1.0), strict=True)]).to(
            device
        )
        optimizer = torch.optim.Adam(moved, lr=LEARNING)
        rng = seeding.rng(seed, "discriminator by heart")
        for _ in range(steps):  # both sides in one batch: some discriminators look at it as a whole
            rows = torch.from_numpy(rng.integers(0, len(values), min(2 * BATCH, len(values)))).to(device)
            loss = F.softplus(signs[rows] * self.logits(network, values[rows], classes[rows])).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        return Discriminator(network.requires_grad_(False), self.logits, self.trained)


def inversion_scores(
    generator: Any, images: NDArray[Any], labels: NDArray[np.int64], seed: int, steps: int = STEPS
) -> Floats:
    """Minus the error of the best reconstruction of each image ``[N]``: root mean square, of values in [-1, 1].

    Args:
        generator: a StyleGAN2 (its styles are searched), a BigGAN or a plain cGAN (their latents).
        images: integers ``[N, C, H, W]``.
        labels: ``[N]``.
        seed: of the latents to start from.
        steps: of the search.
    """
    errors = []
    for k in range(0, len(labels), INVERTED):
        values, classes = (
            to_values(torch.from_numpy(images[k : k + INVERTED])),
            torch.from_numpy(labels[k : k + INVERTED]),
        )
        if isinstance(generator, StyleGAN2):
            errors.append(project(generator, values, classes, steps).error.double().cpu())
        else:
            errors.append(_nearest_latent(generator, values, classes, seed + k, steps))
    return np.asarray(-torch.cat(errors).numpy())


def _nearest_latent(generator: Any, values: Tensor, labels: Tensor, seed: int, steps: int) -> Tensor:
    """Errors ``[N]`` of the best of several latents for each image."""
    network, device = generator.network, generator.device
    target, classes = values.to(device).repeat(STARTS, 1, 1, 1), labels.to(device).repeat(STARTS)
    rows = [seeding.derive("inversion", seed, row) for row in range(len(target))]
    z = seeding.noise(rows, (network.z_dim,), "latent").to(device).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        error = (network(z, classes) - target).square().mean(dim=(1, 2, 3))
        (z.grad,) = torch.autograd.grad(error.sum(), z)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = (network(z, classes) - target).square().mean(dim=(1, 2, 3)).sqrt()
    best: Tensor = error.reshape(STARTS, -1).min(dim=0).values
    return best.double().cpu()
