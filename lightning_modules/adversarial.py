"""Losses and regularisers of adversarial training, as functions of logits and networks.

Sources: Goodfellow et al. (NeurIPS 2014) for the non-saturating loss; Mescheder et al., "Which training methods for
GANs do actually converge?" (ICML 2018), eq. 9, for R1; Lim and Ye, "Geometric GAN" (2017) for the hinge;
Jolicoeur-Martineau, "The relativistic discriminator" (ICLR 2019) and Huang et al., "The GAN is dead; long live the
GAN!" (NeurIPS 2024), eq. 3, for RpGAN with R1 and R2; Karras et al. (CVPR 2020), eq. 4, for path length; Tseng et al.,
"Regularizing generative adversarial networks under limited data" (CVPR 2021), eq. 4, for LeCam.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from visynth.networks.layers import wide

Loss = Literal["non_saturating", "hinge", "relativistic"]
LOSSES = get_args(Loss)


def discriminator_loss(name: Loss, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of each pair of logits ``[N]``.

    Example:
        >>> zero = torch.zeros(1)
        >>> [round(discriminator_loss(name, zero, zero).item(), 4) for name in LOSSES]
        [1.3863, 2.0, 0.6931]
    """
    if name == "non_saturating":
        return softplus(-real) + softplus(fake)
    if name == "hinge":
        return relu(1 - real) + relu(1 + fake)
    return softplus(fake - real)


def generator_loss(name: Loss, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Loss of each logit ``[N]``; the relativistic one compares with real images.

    Example:
        >>> zero = torch.zeros(1)
        >>> [round(abs(generator_loss(name, zero, zero).item()), 4) for name in LOSSES]
        [0.6931, 0.0, 0.6931]
    """
    if name == "non_saturating":
        return softplus(-fake)
    if name == "hinge":
        return -fake
    assert real is not None
    return softplus(real - fake)


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the gradient of each image's logit ``[N]``: R1 of real images, R2 of synthetic ones; times gamma / 2
    it is the loss.

    Args:
        logits: ``[N]``, made from
        images: ``[N, ...]`` that require gradients.

    Example:
        >>> x = torch.randn(2, 3, requires_grad=True)
        >>> gradient_penalty(x @ torch.tensor([1.0, 2.0, 2.0]), x).tolist()
        [9.0, 9.0]
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return wide(gradient).square().flatten(1).sum(dim=1)


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of the gradient with respect to the styles, for random directions in images ``[N]`` (StyleGAN2, eq. 4).

    Args:
        images: ``[N, C, H, W]`` made from
        ws: ``[N, styles, w_dim]``.
        noise: standard normal, as ``images``.
    """
    scaled = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images * scaled).sum(), ws, create_graph=True)
    return wide(gradient).square().sum(dim=2).mean(dim=1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """``(length - mean)^2`` of each."""
    return (lengths - mean).square()


def lecam(real: Tensor, fake: Tensor, anchor_real: Tensor, anchor_fake: Tensor) -> Tensor:
    """Distance of logits from the running means of the other kind (LeCam, eq. 4).

    Example:
        >>> lecam(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor(1.0), torch.tensor(0.0)).tolist()
        [8.0]
    """
    return relu(real - anchor_fake).square() + relu(anchor_real - fake).square()


def gamma_for(size: int, batch: int) -> float:
    """Weight of R1 by the automatic rule ``2e-4 size^2 / batch`` (Karras et al., NeurIPS 2020, appendix C).

    Example:
        >>> [round(gamma_for(size, 32), 4) for size in (32, 64, 128)]
        [0.0064, 0.0256, 0.1024]
    """
    return 2e-4 * size**2 / batch
