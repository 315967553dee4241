"""The diffusion generator: a trained denoiser, its sampler, and nothing that trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.generators.base import Generator, Samples, Spec
from visynth.networks import edm
from visynth.networks.unet import Denoiser

SOLVERS = ("dpm", "heun")
OPTIONS: Mapping[str, Any] = {
    "steps": 12,  # noise levels; DPM-Solver++ evaluates the network once a level, Heun nearly twice
    "solver": "dpm",
    "guidance": 1.0,  # 1: none. Above 1.5 variety goes, and variety is what training data need
    "guidance_low": 0.0,  # guidance acts on noise levels in (low, high], in units of sigma_data / 0.5
    "guidance_high": 5.0,
}


class Diffusion(Generator):
    """Class-conditional images from noise by EDM sampling (:mod:`visynth.networks.edm`).

    Sampler options: ``steps`` (2 to 1000), ``solver`` (``"dpm"`` or ``"heun"``), ``guidance`` (1 is none), and the
    interval of noise levels in which guidance acts.
    """

    options: ClassVar = OPTIONS

    def __init__(self, spec: Spec, network: Denoiser, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        self.network = network.eval().requires_grad_(False)

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        check_options(options)
        device = self.network.of_class.weight.device
        noise = seeding.noise(seeds, (self.spec.channels, *self.spec.size), "diffusion").to(device)
        images = run_sampler(self.network, noise, torch.tensor(labels, device=device), None, **options)
        return Samples(to_integers(images + self.network.mean, self.spec.dtype).cpu(), valid=finite(images))

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Diffusion:
        return cls(spec, load_denoiser(spec, weights, device))


def load_denoiser(spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Denoiser:
    """The network of a spec with its weights; its random start leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        network = Denoiser(spec.channels, len(spec.classes), spec.size, **spec.arguments)
    network.load_state_dict(weights)
    return network.to(device)


def run_sampler(
    network: Denoiser,
    noise: Tensor,
    labels: Tensor,
    condition: Tensor | None,
    *,
    steps: int,
    solver: str,
    guidance: float,
    guidance_low: float,
    guidance_high: float,
) -> Tensor:
    """Centred images ``[N, C, H, W]`` from standard normal noise of that shape."""
    data = network.sigma_data
    sigmas = edm.karras_sigmas(steps, edm.scaled(edm.SIGMA_MIN, data), edm.scaled(edm.SIGMA_MAX, data))
    nothing = torch.full_like(labels, network.classes)

    def denoise_as(label: Tensor) -> edm.Denoise:
        return lambda x, sigma: network(x, torch.full((len(x),), sigma, device=x.device), label, None, condition)

    interval = edm.scaled(guidance_low, data), edm.scaled(guidance_high, data)
    denoise = edm.guided(denoise_as(labels), denoise_as(nothing), guidance, interval)
    if solver == "heun":
        return edm.heun(denoise, noise * sigmas[0], sigmas)
    return edm.dpm_solver(denoise, noise * sigmas[0], sigmas, data)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse sampler options that cannot be right, all listed."""
    problems = []
    if not isinstance(options["steps"], int) or not 2 <= options["steps"] <= 1000:
        problems.append(f"steps must be a whole number from 2 to 1000, but got {options['steps']!r}")
    if options["solver"] not in SOLVERS:
        problems.append(f"solver must be 'dpm' or 'heun', but got {options['solver']!r}")
    if not 0 <= options["guidance"] <= 20:
        problems.append(f"guidance must be in [0, 20] (1: none), but got {options['guidance']}")
    if not 0 <= options["guidance_low"] <= options["guidance_high"] or not math.isfinite(options["guidance_high"]):
        problems.append(
            f"guidance acts between guidance_low and guidance_high, but got {options['guidance_low']} and "
            f"{options['guidance_high']}"
        )
    if problems:
        raise UsageError("sampler options: " + "; ".join(problems) + ".")


def finite(values: Tensor) -> Tensor:
    """Whether every value of each image ``[N, ...]`` is a finite number, bool ``[N]`` on the CPU.

    Example:
        >>> finite(torch.tensor([[0.0, 1.0], [0.0, float("nan")]])).tolist()
        [True, False]
    """
    return torch.isfinite(values).flatten(1).all(1).cpu()


def to_integers(values: Tensor, dtype: str) -> Tensor:
    """Values in [-1, 1] as uint8 or uint16, rounded and clamped.

    Example:
        >>> to_integers(torch.tensor([-1.0, 0.0, 1.5]), "uint8").tolist()
        [0, 128, 255]
    """
    top = {"uint8": 255, "uint16": 65535}[dtype]
    return (
        ((values.float() + 1) * (top / 2))
        .round()
        .clamp(0, top)
        .to({"uint8": torch.uint8, "uint16": torch.uint16}[dtype])
    )


def to_values(images: Tensor) -> Tensor:
    """uint8 or uint16 images as float32 in [-1, 1].

    Example:
        >>> to_values(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-1.0, 1.0]
    """
    top = {torch.uint8: 255, torch.uint16: 65535}[images.dtype]
    return images.float() * (2 / top) - 1
