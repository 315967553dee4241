"""Real images as latents of a StyleGAN2, and pictures around them.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), section 5 and appendix D, with one style a layer as Abdal et al., "Image2StyleGAN" (ICCV
2019), section 5.1, and a pull towards the mean of the class as Tov et al., "Designing an encoder for StyleGAN image manipulation" (SIGGRAPH 2021), section 4, so that what is near is plausible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth import seeds as seeding
from visynth.errors import DataError, UsageError
from visynth.generator import Generator, Samples, Spec
from visynth.networks.diffusion import to_integers
from visynth.networks.gan import StyleGAN2
from visynth.networks.stylegan2 import StyleGAN2 as Network
from visynth.networks.stylegan2 import truncate


@dataclass(frozen=True)
class Inversion:
    """Styles ``[N, styles, w_dim]`` and the root mean square error of their pictures ``[N]``, of values in [-1, 1]."""

    styles: Tensor
    error: Tensor


def project(
    generator: StyleGAN2,
    images: Tensor,
    labels: Tensor,
    steps: int = 300,
    lr: float = 0.05,
    pull: float = 0.01,
    say: Callable[[int, float], None] | None = None,
) -> Inversion:
    """Find the styles whose pictures are nearest to real images; noise is left out, so that nothing of the defect hides in it.

    Args:
        generator: a StyleGAN2.
        images: ``[N, C, S, S]`` in [-1, 1].
        labels: ``[N]``.
        steps: of Adam; the rate falls to 0 by a cosine.
        lr: its learning rate.
        pull: weight of the squared distance from the mean style of the class, in units of the styles' own spread.
        say: called with the step and the mean error, now and then.

    Example:
        >>> project.__name__
        'project'
    """
    network, device = generator.network, generator.device
    images, labels = images.to(device), labels.to(device)
    with torch.no_grad():
        start = generator.centres(labels, "class").clone()
        random = generator.of_latents(seeding.noise(range(256), (network.z_dim,), "spread"), labels.repeat(256)[:256])
        spread = random.std().clamp(min=1e-6)
    styles = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([styles], lr=lr * float(spread) * 10, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss, error = _distance(network.synthesis(styles, "none"), images)
        total = loss + pull * ((styles - start) / spread).square().mean(dim=(1, 2)).sum()
        (styles.grad,) = torch.autograd.grad(total, styles)
        optimizer.step()
        schedule.step()
        if say is not None and (step % 50 == 0 or step == steps - 1):
            say(step, float(error.mean()))
    with torch.no_grad():
        _, error = _distance(network.synthesis(styles, "none"), images)
    return Inversion(styles.detach(), error.detach())


def _distance(made: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error at every scale down to 8 pixels, summed over the batch, and the root mean square error of each."""
    difference = made - images
    error = difference.detach().square().mean(dim=(1, 2, 3)).sqrt()
    loss = difference.square().mean(dim=(1, 2, 3)).sum()
    while difference.shape[-1] > 8:
        difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.square().mean(dim=(1, 2, 3)).sum()
    return loss, error


@dataclass(frozen=True)
class Row:
    """A real image that was projected."""

    number: int
    label: int
    path: str
    group: str


class Anchored(StyleGAN2):
    """Pictures around real images: the styles of one, drawn ``strength`` of the way to those of a random latent of its class.

    Sampler options: those of :class:`visynth.networks.gan.StyleGAN2`, and ``strength`` in [0, 1]: 0 gives the projections back, 1 the generator's own
    pictures. The real image is the sample's parent.
    """

    options: ClassVar = {**StyleGAN2.options, "strength": 0.3, "noise": "none"}

    def __init__(self, spec: Spec, network: Any, anchors: Tensor, **kwargs: Any) -> None:
        super().__init__(spec, network, **kwargs)
        self.anchors = anchors
        told = spec.arguments["anchors"]
        if len(told) != len(anchors):
            raise UsageError(f"{len(told)} anchors are named, but {len(anchors)} have styles.")
        rows = [Row(number, *anchor) for number, anchor in enumerate(told)]
        self._by_label = [seeding.by_group([r for r in rows if r.label == n]) for n in range(len(spec.classes))]

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        StyleGAN2.check_options(options)
        if not 0 <= options["strength"] <= 1:
            raise UsageError(
                f"sampler options: strength must be in [0, 1] (0: the projection itself), but got {options['strength']}."
            )

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        self.check_options(options)
        chosen = [self._anchor(seed, label) for seed, label in zip(seeds, labels, strict=True)]
        styles = self.styles(seeds, torch.tensor(labels, device=self.device), **options)
        anchors = self.anchors[[row.number for row in chosen]].to(self.device)
        ws = truncate(styles, anchors, options["strength"])
        images = self.pictures(ws, seeds, options["noise"])
        parents = [(row.path,) for row in chosen]
        return Samples(to_integers(images, self.spec.dtype).cpu(), parents=parents)

    def _anchor(self, seed: int, label: int) -> Row:
        groups = self._by_label[label]
        if not groups:
            raise DataError(
                f"no real image of {self.classes[label]!r} was projected; there are some of "
                f"{', '.join(c for c, g in zip(self.classes, self._by_label, strict=True) if g)}."
            )
        return seeding.draw_even(groups, seeding.rng(int(seed), "anchor"))

    def weights(self) -> dict[str, Tensor]:
        return {**super().weights(), "anchors": self.anchors.cpu()}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Generator:
        weights = dict(weights)
        anchors = weights.pop("anchors")
        arguments = {name: value for name, value in spec.arguments.items() if name != "anchors"}
        with torch.random.fork_rng(devices=[]):
            network = Network(spec.size[0], spec.channels, **arguments)
        network.load_state_dict(weights)
        return cls(spec, network.to(device), anchors)
