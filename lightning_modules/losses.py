"""Losses as pure functions of explicit tensors: no randomness, no state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visynth.networks.edm import P_MEAN, P_STD, PAPER_DATA, edm_weight, min_snr_weight
from visynth.networks.unet import Denoiser

WEIGHTINGS = {"edm": edm_weight, "min_snr": min_snr_weight}


def denoising(
    network: Denoiser,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    labels: Tensor,
    *,
    weighting: str = "edm",
    augmentation: Tensor | None = None,
    condition: Tensor | None = None,
    focus: Tensor | None = None,
    balance: tuple[float, Tensor] | None = None,
) -> Tensor:
    """The denoising loss of each image, EDM eq. 8: lambda(sigma) mean((D(clean + sigma noise) - clean)^2).

    With a zeroed output layer and data of standard deviation ``sigma_data`` its expectation is 1 at every noise level.

    Args:
        network: the denoiser.
        clean: centred images ``[N, C, H, W]``.
        noise: standard normal, of that shape.
        sigma: noise levels ``[N]``.
        labels: ``[N]``, ``network.classes`` where the class is dropped.
        weighting: ``"edm"`` or ``"min_snr"``.
        augmentation: labels ``[N, 9]``.
        condition: further input channels ``[N, K, H, W]``.
        focus: weights of pixels ``[N, 1, H, W]`` with mean 1 over each image.
        balance: (tau, other labels ``[N]``) adds the class-balancing term, see :func:`class_balancing`.

    Returns:
        float32 ``[N]``.
    """
    level = sigma.reshape(-1, 1, 1, 1)
    noisy = clean + level * noise
    raw, skip, out = network.raw(noisy, sigma, labels, augmentation, condition)
    error = (skip * noisy + out * raw - clean) ** 2
    if focus is not None:
        error = error * focus
    loss = WEIGHTINGS[weighting](sigma, network.sigma_data) * error.mean(dim=(1, 2, 3))
    if balance is not None:
        tau, others = balance
        other, _, _ = network.raw(noisy, sigma, others, augmentation, condition)
        loss = loss + tau * class_balancing(raw, other, sigma, network.sigma_data)
    return loss


def class_balancing(raw: Tensor, other: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """The regulariser of class-balancing diffusion per image: outputs for a class and another one are drawn together.

    Qin et al., "Class-balancing diffusion models" (CVPR 2023), eq. 9 and its commitment term with weight 1/4, on the
    raw outputs F, whose scale is the same at every noise level as that of epsilon is there. The paper's t/T becomes the
    noise level's rank under the training distribution.

    Args:
        raw: F for the image's own label ``[N, C, H, W]``.
        other: F for a label drawn from the training prior.
        sigma: ``[N]``.
        sigma_data: moves the distribution of sigma.
    """
    standard = (sigma.log() - P_MEAN - math.log(sigma_data / PAPER_DATA)) / P_STD
    rank = torch.special.ndtr(standard)
    pull = ((raw - other.detach()) ** 2).mean(dim=(1, 2, 3))
    commit = ((raw.detach() - other) ** 2).mean(dim=(1, 2, 3))
    loss: Tensor = rank * (pull + commit / 4)
    return loss
