"""Membership inference on a denoiser: what it does better for images that it was trained on. Scores only, one an image.

Every image meets the same noise levels and the same noise, so that scores differ by the image alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visynth.core import seeds as seeding
from visynth.generators.diffusion import to_values
from visynth.networks import edm
from visynth.networks.unet import Denoiser

Floats = NDArray[np.float64]
Images = NDArray[np.uint8] | NDArray[np.uint16]
LEVELS = 8  # noise levels of the loss attack
QUANTILES = (0.3, 0.5, 0.7)  # of the training's noise levels, where the single-query attacks look
BATCH = 64


def loss_scores(network: Denoiser, images: Images, labels: NDArray[np.int64], seed: int = 0) -> Floats:
    """Minus the denoising loss at fixed noise levels and noise: Carlini et al., "Extracting training data from diffusion models"
    (USENIX Security 2023), section 5.1; Matsumoto et al. (2023).

    Args:
        network: the denoiser, in the state that is attacked.
        images: uint8 or uint16 ``[N, C, H, W]`` at its size.
        labels: ``[N]``.
        seed: of the noise.
    """
    levels = _levels(network, (np.arange(LEVELS) + 0.5) / LEVELS)
    noise = [_noise(images.shape[1:], seed, number) for number in range(LEVELS)]

    def scores(clean: Tensor, label: Tensor) -> Tensor:
        total = torch.zeros(len(clean), device=clean.device)
        for sigma, drawn in zip(levels, noise, strict=True):
            level = torch.full((len(clean),), sigma, device=clean.device)
            total -= _losses(network, clean, drawn.to(clean.device), level, label)
        return total / len(levels)

    return _scored(network, images, labels, scores)


def proximal_scores(network: Denoiser, images: Images, labels: NDArray[np.int64], seed: int = 0) -> Floats:
    """Proximal initialisation (PIA): the noise that the network sees in the clean image is added to it; of members it predicts
    that noise again: Kong et al., "An efficient membership inference attack for the diffusion model by proximal
    initialization" (ICLR 2024), eq. 11. ``seed`` has no effect."""
    lowest = edm.scaled(edm.SIGMA_MIN, network.sigma_data)
    levels = _levels(network, np.array(QUANTILES))

    def scores(clean: Tensor, label: Tensor) -> Tensor:
        seen = (clean - _denoised(network, clean, lowest, label)) / lowest
        seen = seen / seen.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-8) * (2 / np.pi) ** 0.5  # PIAN: eq. 12
        total = torch.zeros(len(clean), device=clean.device)
        for sigma in levels:
            noisy = clean + sigma * seen
            again = (noisy - _denoised(network, noisy, sigma, label)) / sigma
            total -= (again - seen).abs().pow(4).mean(dim=(1, 2, 3)).pow(0.25)
        return total / len(levels)

    return _scored(network, images, labels, scores)


def step_scores(network: Denoiser, images: Images, labels: NDArray[np.int64], seed: int = 0) -> Floats:
    """SecMI-stat: along the deterministic path to noise, one step further and back again ends nearer for members: Duan et al.,
    "Are diffusion models vulnerable to membership inference attacks?" (ICML 2023), eq. 9, on the probability flow of EDM.
    ``seed`` has no effect."""
    highest = _levels(network, np.array([0.6]))[0]
    path = edm.karras_sigmas(10, edm.scaled(edm.SIGMA_MIN, network.sigma_data), highest)[:-1][::-1]

    def slope(x: Tensor, sigma: float, label: Tensor) -> Tensor:
        return (x - _denoised(network, x, sigma, label)) / sigma

    def scores(clean: Tensor, label: Tensor) -> Tensor:
        x = clean
        for now, then in pairwise(path):
            x = x + (then - now) * slope(x, now, label)
        further = highest * 1.1
        there = x + (further - highest) * slope(x, highest, label)
        back = there + (highest - further) * slope(there, further, label)
        return -(back - x).square().mean(dim=(1, 2, 3))

    return _scored(network, images, labels, scores)


Attack = Callable[[Denoiser, Images, NDArray[np.int64], int], Floats]
ATTACKS: dict[str, Attack] = {
    "loss at fixed noise": loss_scores,
    "proximal initialisation (PIA)": proximal_scores,
    "step and back (SecMI-stat)": step_scores,
}


def by_heart(network: Denoiser, images: Images, labels: NDArray[np.int64], steps: int, seed: int = 0) -> Denoiser:
    """A copy of a denoiser that was trained further on a few images alone: where leaking is certain.

    Args:
        network: the denoiser.
        images: uint8 or uint16 ``[N, C, H, W]`` at its size.
        labels: ``[N]``.
        steps: of Adam.
        seed: of rows, noise levels and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive("by heart", seed) % 2**31)
        taught = copy.deepcopy(network).requires_grad_(True).train()
        for layer in taught.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        optimizer = torch.optim.Adam(taught.parameters(), lr=1e-3)
        device = next(taught.parameters()).device
        clean = to_values(torch.from_numpy(images)).to(device) - taught.mean
        classes = torch.from_numpy(labels).to(device)
        for _ in range(steps):
            rows = torch.randint(len(clean), (min(32, len(clean)),))
            sigma = edm.draw_sigma(torch.randn(len(rows)), taught.sigma_data).to(device)
            noise = torch.randn((len(rows), *clean.shape[1:])).to(device)
            loss = _losses(taught, clean[rows], noise, sigma, classes[rows]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return taught.eval().requires_grad_(False)


def _losses(network: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """Denoising losses ``[N]`` at noise levels ``[N]`` (Karras et al., EDM, eq. 8)."""
    denoised: Tensor = network(clean + sigma.reshape(-1, 1, 1, 1) * noise, sigma, label)
    return edm.edm_weight(sigma, network.sigma_data) * (denoised - clean).square().mean(dim=(1, 2, 3))


def _levels(network: Denoiser, quantiles: NDArray[np.float64]) -> list[float]:
    """Noise levels at quantiles of those of the training."""
    from scipy.special import ndtri

    normal = torch.from_numpy(ndtri(quantiles)).float()
    return [float(sigma) for sigma in edm.draw_sigma(normal, network.sigma_data)]


def _noise(shape: tuple[int, ...], seed: int, number: int) -> Tensor:
    drawn = seeding.rng(seed, f"audit/noise/{number}").standard_normal(shape).astype(np.float32)
    return torch.from_numpy(drawn)[None]


def _denoised(network: Denoiser, x: Tensor, sigma: float, label: Tensor) -> Tensor:
    denoised: Tensor = network(x, torch.full((len(x),), sigma, device=x.device), label)
    return denoised


@torch.no_grad()
def _scored(
    network: Denoiser, images: Images, labels: NDArray[np.int64], scores: Callable[[Tensor, Tensor], Tensor]
) -> Floats:
    device = next(network.parameters()).device
    mean = torch.as_tensor(network.mean, device=device)
    found = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        clean = to_values(torch.from_numpy(np.ascontiguousarray(images[part]))).to(device) - mean
        found.append(scores(clean, torch.from_numpy(labels[part]).to(device)).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)
