"""EDM: preconditioning, loss weights and samplers of diffusion models as pure functions.

Source: Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models" (NeurIPS
2022), cited below as *EDM*. Noise levels are standard deviations, in the units of the data. Everything scales with the
data's own standard deviation ``sigma_data``: the paper's constants are for 0.5, the figure of photographs in [-1, 1],
while grey textures may have a tenth of it. :func:`scaled` moves them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # EDM, table 1, for sigma_data = 0.5
P_MEAN, P_STD = -1.2, 1.2
PAPER_DATA = 0.5

Denoise = Callable[[Tensor, float], Tensor]


def precondition(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise) of EDM, table 1: D(x) = c_skip x + c_out F(c_in x, c_noise).

    Args:
        sigma: noise levels above 0, any shape.
        sigma_data: standard deviation of the (centred) data.

    Example:
        >>> [round(float(c), 5) for c in precondition(torch.tensor(1.0), 0.5)]
        [0.2, 0.44721, 0.89443, 0.0]
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """The weight lambda of EDM, table 1; lambda c_out^2 = 1 at every noise level.

    Example:
        >>> float(edm_weight(torch.tensor(0.5), 0.5))
        8.0
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def min_snr_weight(sigma: Tensor, sigma_data: float, gamma: float = 5.0) -> Tensor:
    """Weight of the denoising error by min(SNR, gamma), SNR = (sigma_data / sigma)^2, in the units of
    :func:`edm_weight`.

    Hang et al., "Efficient diffusion training via Min-SNR weighting" (ICCV 2023), eq. 6 for x0. EDM's own weight is SNR
    + 1 in these units, so low noise counts less here.

    Example:
        >>> float(min_snr_weight(torch.tensor(0.5), 0.5)), float(min_snr_weight(torch.tensor(0.01), 0.5))
        (4.0, 20.0)
    """
    return ((sigma_data / sigma) ** 2).clamp(max=gamma) / sigma_data**2


def scaled(value: float, sigma_data: float) -> float:
    """A noise level given for the paper's ``sigma_data`` of 0.5, for another one.

    Example:
        >>> scaled(80.0, 0.25)
        40.0
    """
    return value * sigma_data / PAPER_DATA


def draw_sigma(normal: Tensor, sigma_data: float, mean: float = P_MEAN, std: float = P_STD) -> Tensor:
    """Training noise levels from standard normal numbers: ln sigma ~ N(mean, std^2), scaled to the data (EDM, section
    5).

    Example:
        >>> round(float(draw_sigma(torch.zeros(()), 0.5).log()), 4)
        -1.2
    """
    return (normal * std + mean + math.log(sigma_data / PAPER_DATA)).exp()


def karras_sigmas(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> list[float]:
    """Sampling noise levels of EDM, eq. 5, falling, with a 0 at the end: ``steps + 1`` numbers.

    Example:
        >>> [round(s, 4) for s in karras_sigmas(3)]
        [80.0, 2.5152, 0.002, 0.0]
    """
    if steps < 2:
        return [sigma_max, 0.0]
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)] + [0.0]


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """EDM's deterministic sampler, algorithm 1: Heun's second-order steps, Euler for the last one to 0.

    Args:
        denoise: D(x, sigma), the expected clean image.
        x: noise of standard deviation ``sigmas[0]``, ``[N, C, H, W]``.
        sigmas: falling, ending in 0.
    """
    for here, there in itertools.pairwise(sigmas):
        slope = (x - denoise(x, here)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x


def dpm_solver(denoise: Denoise, x: Tensor, sigmas: Sequence[float], sigma_data: float) -> Tensor:
    """DPM-Solver++(2M), one evaluation a step, by diffusers' ``EDMDPMSolverMultistepScheduler``.

    Lu et al., "DPM-Solver++" (2022), algorithm 2. Arguments as for :func:`heun`; the levels must be Karras's.
    """
    from diffusers import EDMDPMSolverMultistepScheduler

    steps = len(sigmas) - 1
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=sigmas[-2], sigma_max=sigmas[0], sigma_data=sigma_data, rho=RHO, solver_order=2
    )
    scheduler.set_timesteps(steps)
    # The scheduler wants the raw network's output and builds D from it again; D is what we have, so it is undone first.
    for step, sigma in enumerate(scheduler.sigmas.tolist()[:-1]):
        level = torch.tensor(sigma, dtype=torch.float64)
        skip, out, _, _ = (float(c) for c in precondition(level, sigma_data))
        raw = (denoise(x, sigma) - skip * x) / out
        x = scheduler.step(raw, scheduler.timesteps[step], x, return_dict=False)[0]
    return x


def guided(
    conditional: Denoise, unconditional: Denoise, guidance: float, interval: tuple[float, float] = (0.0, math.inf)
) -> Denoise:
    """Classifier-free guidance within an interval of noise levels.

    D = D_u + g (D_c - D_u), Ho and Salimans, "Classifier-free diffusion guidance" (2022), eq. 6 with g = w + 1; outside
    of (low, high] the conditional alone: Kynkaanniemi et al., "Applying guidance in a limited interval" (NeurIPS 2024),
    eq. 6.

    Example:
        >>> both = guided(lambda x, s: x + 1, lambda x, s: x, 3.0, (0.5, 2.0))
        >>> float(both(torch.zeros(()), 1.0)), float(both(torch.zeros(()), 4.0))
        (3.0, 1.0)
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        aim = conditional(x, sigma)
        if guidance == 1.0 or not interval[0] < sigma <= interval[1]:
            return aim
        base = unconditional(x, sigma)
        return base + guidance * (aim - base)

    return denoise
