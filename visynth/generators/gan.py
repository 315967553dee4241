"""The GAN generators: trained networks with their sampler options, and nothing that trains."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices, listing
from visynth.generators.base import Generator, Samples, Spec
from visynth.generators.diffusion import finite, to_integers
from visynth.networks import cgan
from visynth.networks.biggan import BigGAN as BigGANNetwork
from visynth.networks.stylegan2 import StyleGAN2 as StyleGAN2Network
from visynth.networks.stylegan2 import crossed, noise_fields, truncate

CENTRES = ("class", "global")
NOISES = ("random", "const", "none")


class _GAN(Generator):
    """Base class of GAN generators: one pass of a network in eval mode."""

    network_class: ClassVar[Any]

    def __init__(self, spec: Spec, network: Any, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        # The same layout however it came here: another one rounds differently.
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        where: torch.device = next(self.network.parameters()).device
        return where

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        self.check_options(options)
        images = self.values(seeds, torch.tensor(labels, device=self.device), **options)
        return Samples(self.integers(images), valid=finite(images))

    def integers(self, images: Tensor) -> Tensor:
        """Images as they are given out: brought to the spec's size where the network's own is another, see
        :func:`own_side`."""
        if tuple(images.shape[-2:]) != tuple(self.spec.size):
            images = torch.nn.functional.interpolate(images, self.spec.size, mode="bilinear", antialias=True)
        return to_integers(images, self.spec.dtype).cpu()

    @staticmethod
    @abstractmethod
    def check_options(options: Mapping[str, Any]) -> None:
        """Refuse options that cannot be right."""

    @abstractmethod
    def values(self, seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        """Images ``[N, C, H, W]`` about in [-1, 1]."""

    def interpolate(self, first: int, last: int, label: int, steps: int, **options: Any) -> Tensor:
        """Integers ``[steps, C, H, W]`` that interpolate between the images of two seeds.

        Latents are taken along the great circle between them (White, "Sampling generative networks", 2016, section
        2.1); StyleGAN2's styles along a straight line.
        """
        merged = {**(self.spec.sampler or {}), **options}
        self.check_options(merged)
        with torch.no_grad():
            places, most = torch.linspace(0, 1, steps), self.spec.micro_batch
            parts = [places[start : start + most] for start in range(0, steps, most)]
            return torch.cat([self.integers(self.between(first, last, label, part, **merged)) for part in parts])

    def between(self, first: int, last: int, label: int, places: Tensor, **options: Any) -> Tensor:
        """Images about in [-1, 1] at places from 0 to 1."""
        ends = truncated_normal([first, last], self.network.z_dim, options["truncation"])
        labels = torch.full((len(places),), label, device=self.device)
        frames: Tensor = self.network(great_circle(ends[0], ends[1], places).to(self.device), labels)
        return frames

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Generator:
        return cls(spec, cls.load_network(spec, weights, device))

    @classmethod
    def load_network(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Any:
        """The network of a spec with its weights; its random start leaves the global generator alone.

        Raises:
            DataError: weights that are missing or of another shape, all listed.
        """
        side, arguments = own_side(spec)
        with torch.random.fork_rng(devices=[]):
            network = cls.network_class(side, spec.channels, **arguments)
        wrong = [
            f"{name}: {tuple(weights[name].shape) if name in weights else 'missing'}, but {tuple(value.shape)} is "
            "needed"
            for name, value in network.state_dict().items()
            if name not in weights or weights[name].shape != value.shape
        ]
        if wrong:
            raise DataError(f"the weights are not a whole {cls.__name__} generator:\n{listing(wrong)}")
        network.load_state_dict(weights)
        return network.to(device)


def own_side(spec: Spec) -> tuple[int, dict[str, Any]]:
    """Side of the network's own square images, and its arguments.

    Images of other proportions are squashed into a square for the network and come out in the spec's size; ``side``
    among the arguments says of which side.
    """
    arguments = {name: value for name, value in spec.arguments.items() if name not in ("side", "projected_latents")}
    return int(spec.arguments.get("side", spec.size[0])), arguments


class StyleGAN2(_GAN):
    """Sampler options: ``truncation`` (1 is none; towards ``centre``, the mean style of the class or of all),
    ``mixing`` (probability that the styles
    of an image come from two latents, cut at a random layer) and ``noise`` (``"random"`` from the seed, ``"const"`` or
    ``"none"``).
    """

    options: ClassVar = {"truncation": 1.0, "centre": "class", "mixing": 0.0, "noise": "random"}
    network_class = StyleGAN2Network

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        problems = []
        if not 0 <= options["truncation"] <= 2:
            problems.append(f"truncation must be in [0, 2] (1: none), but got {options['truncation']}")
        if options["centre"] not in CENTRES:
            problems.append(f"centre must be one of {choices(CENTRES)}, but got {options['centre']!r}")
        if not 0 <= options["mixing"] <= 1:
            problems.append(f"mixing must be in [0, 1], but got {options['mixing']}")
        if options["noise"] not in NOISES:
            problems.append(f"noise must be one of {choices(NOISES)}, but got {options['noise']!r}")
        if problems:
            raise UsageError("sampler options: " + "; ".join(problems) + ".")

    def values(self, seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        return self.synthesize(self.styles(seeds, labels, **options), seeds, options["noise"])

    def styles(self, seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        """``[N, styles, w_dim]``, mixed and truncated."""
        mixing = options["mixing"]
        ws = self.of_latents(seeding.noise(seeds, (self.network.z_dim,), "latent"), labels)
        if mixing:
            other = self.of_latents(seeding.noise(seeds, (self.network.z_dim,), "mixing"), labels)
            ws = mixed(ws, other, seeds, mixing)
        return truncate(ws, self.centres(labels, options["centre"]), options["truncation"])

    def between(self, first: int, last: int, label: int, places: Tensor, **options: Any) -> Tensor:
        ends = self.styles([first, last], torch.tensor([label, label], device=self.device), **options)
        ws = torch.lerp(ends[:1], ends[1:], places.to(self.device)[:, None, None])
        # One noise throughout: what changes is the style alone.
        return self.synthesize(ws, [first] * len(places), options["noise"])

    def of_latents(self, z: Tensor, labels: Tensor) -> Tensor:
        styles: Tensor = self.network.styles(z.to(self.device), labels if self.network.classes else None)
        return styles

    def centres(self, labels: Tensor, centre: str) -> Tensor:
        """Mean styles ``[N, styles, w_dim]``."""
        if centre == "global" and not self.network.shared:
            mean: Tensor = self.network.mapping.w_avg
            return mean.expand(len(labels), self.network.synthesis.styles, -1)
        if self._means is None:
            z = seeding.noise(range(512), (self.network.z_dim,), "centre")
            everyone = range(max(self.network.classes, 1))
            self._means = torch.stack(
                [self.of_latents(z, torch.full((len(z),), c, device=self.device)).mean(dim=0) for c in everyone]
            )
        if centre == "global":
            return self._means.mean(dim=0, keepdim=True).expand(len(labels), -1, -1)
        return self._means[labels if self.network.classes else torch.zeros_like(labels)]

    _means: Tensor | None = None

    def synthesize(self, ws: Tensor, seeds: Sequence[int], noise: str = "random") -> Tensor:
        """Images of styles."""
        fields: Any = noise
        if noise == "random":
            fields = noise_fields(self.network.synthesis.noise_shapes(), seeds, "noise", self.device)
        images: Tensor = self.network.synthesis(ws, fields)
        return images


def mixed(ws: Tensor, other: Tensor, seeds: Sequence[int], probability: float) -> Tensor:
    """Styles :func:`visynth.networks.stylegan2.crossed` at a random layer, each image by its own seed."""
    styles = ws.shape[1]
    cuts = []
    for seed in seeds:
        generator = seeding.rng(int(seed), "cut")
        cuts.append(int(generator.integers(1, styles)) if generator.random() < probability else styles)
    return crossed(ws, other, cuts)


class _Plain(_GAN):
    """Sampler option ``truncation``: normal latents are drawn anew until they are within this many standard deviations;
    0 is no limit."""

    options: ClassVar = {"truncation": 0.0}

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        if not (options["truncation"] == 0 or 0.02 <= options["truncation"] < math.inf):
            raise UsageError(
                "sampler options: truncation must be 0 (none) or at least 0.02 standard deviations, but got "
                f"{options['truncation']}."
            )

    def values(self, seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        z = truncated_normal(seeds, self.network.z_dim, options["truncation"]).to(self.device)
        made: Tensor = self.network(z, labels)
        return made


class BigGAN(_Plain):
    __doc__ = _Plain.__doc__
    network_class = BigGANNetwork


class CGAN(_Plain):
    __doc__ = _Plain.__doc__
    network_class = cgan.CGAN


def great_circle(first: Tensor, last: Tensor, places: Tensor) -> Tensor:
    """Latents ``[len(places), width]`` between two ``[width]``, of lengths between theirs.

    Example:
        >>> great_circle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5]))[0].round(decimals=3)
        tensor([0.7070, 0.7070])
    """
    a, b = first / first.norm(), last / last.norm()
    angle = torch.arccos((a @ b).clamp(-1, 1)).clamp(min=1e-6)
    directions = (torch.sin((1 - places) * angle)[:, None] * a + torch.sin(places * angle)[:, None] * b) / torch.sin(
        angle
    )
    points: Tensor = directions * torch.lerp(first.norm(), last.norm(), places)[:, None]
    return points


def truncated_normal(seeds: Sequence[int], width: int, limit: float) -> Tensor:
    """Latents ``[N, width]`` within ``limit`` standard deviations, by the inverse of the distribution function; 0 is no
    limit.

    Source: Brock et al. (ICLR 2019), section 3.1, the truncation trick.

    Example:
        >>> bool(truncated_normal([1, 2], 100, 0.5).abs().max() <= 0.5)
        True
    """
    z = seeding.noise(seeds, (width,), "latent")
    if not limit:
        return z
    uniform = torch.special.ndtr(z.double())
    low = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
    inside = torch.special.ndtri(low + uniform * (1 - 2 * low))
    values: Tensor = inside.clamp(-limit, limit).float()
    return values
