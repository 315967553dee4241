"""Real images as latents of a StyleGAN2, and images around them.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), section 5 and appendix D,
with one style a layer as Abdal et al., "Image2StyleGAN" (ICCV 2019), section 5.1, and a pull towards the mean of the
class as Tov et al., "Designing an encoder for StyleGAN image manipulation" (SIGGRAPH 2021), section 4, so that what is
near is plausible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812, the field's name

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.core.members import NEAR, distances, perceptual_hash
from visynth.core.progress import Progress, no_progress
from visynth.generators.base import Generator, Samples, Spec
from visynth.generators.diffusion import finite
from visynth.generators.gan import StyleGAN2
from visynth.networks.stylegan2 import truncate

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
COPIES = 0.05  # share of near-duplicates of their parents above which images are called copies


@dataclass(frozen=True)
class Inversion:
    """Styles ``[N, styles, w_dim]`` and the root mean square error of their images ``[N]``, of values in [-1, 1]."""

    styles: Tensor
    error: Tensor


def project(
    generator: StyleGAN2,
    images: Tensor,
    labels: Tensor,
    steps: int = 300,
    lr: float = 0.05,
    pull: float = 0.01,
    progress: Callable[[int, float], None] | None = None,
) -> Inversion:
    """Find the styles whose images are nearest to real images; noise is left out, so that nothing of the defect hides
    in it.

    Args:
        generator: a StyleGAN2.
        images: ``[N, C, S, S]`` in [-1, 1].
        labels: ``[N]``.
        steps: of Adam; the rate falls to 0 by a cosine.
        lr: its learning rate.
        pull: weight of the squared distance from the mean style of the class, in units of the styles' own spread.
        progress: called with the step and the mean error, now and then.

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
        if progress is not None and (step % 50 == 0 or step == steps - 1):
            progress(step, float(error.mean()))
    with torch.no_grad():
        _, error = _distance(network.synthesis(styles, "none"), images)
    return Inversion(styles.detach(), error.detach())


def _distance(fake: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error at every scale down to 8 pixels, summed over the batch, and the root mean square error of each."""
    difference = fake - images
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


class ProjectedStyleGAN2(StyleGAN2):
    """Images around real images: the styles of one, drawn ``strength`` of the way to those of a random latent of its
    class.

    Sampler options: those of :class:`visynth.generators.gan.StyleGAN2`, and ``strength`` in [0, 1]: 0 gives the
    projections back, 1 the generator's own images. The real image is the sample's parent.
    """

    options: ClassVar = {**StyleGAN2.options, "strength": 0.3, "noise": "none"}

    def __init__(self, spec: Spec, network: Any, projected_latents: Tensor, **kwargs: Any) -> None:
        super().__init__(spec, network, **kwargs)
        self.projected_latents = projected_latents
        entries = spec.arguments["projected_latents"]
        if len(entries) != len(projected_latents):
            raise UsageError(f"{len(entries)} projected images are named, but {len(projected_latents)} have styles.")
        rows = [Row(number, *projected) for number, projected in enumerate(entries)]
        self.by_label = [seeding.by_group([r for r in rows if r.label == n]) for n in range(len(spec.classes))]

    @staticmethod
    def check_options(options: Mapping[str, Any]) -> None:
        StyleGAN2.check_options(options)
        if not 0 <= options["strength"] <= 1:
            raise UsageError(
                "sampler options: strength must be in [0, 1] (0: the projection itself), but got "
                f"{options['strength']}."
            )

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        self.check_options(options)
        chosen = self._chosen(seeds, labels)
        ws = self._near(chosen, seeds, torch.tensor(labels, device=self.device), **options)
        parents = [(row.path,) for row in chosen]
        images = self.synthesize(ws, seeds, options["noise"])
        return Samples(self.integers(images), parents=parents, valid=finite(images))

    def styles(self, seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        """``[N, styles, w_dim]``, each near the real image that its seed draws."""
        return self._near(self._chosen(seeds, labels.tolist()), seeds, labels, **options)

    def _near(self, chosen: Sequence[Row], seeds: Sequence[int], labels: Tensor, **options: Any) -> Tensor:
        projected_latents = self.projected_latents[[row.number for row in chosen]].to(self.device)
        return truncate(super().styles(seeds, labels, **options), projected_latents, options["strength"])

    def _chosen(self, seeds: Sequence[int], labels: Sequence[int]) -> list[Row]:
        return [self._anchor(seed, label) for seed, label in zip(seeds, labels, strict=True)]

    def _anchor(self, seed: int, label: int) -> Row:
        groups = self.by_label[label]
        if not groups:
            raise DataError(
                f"no real image of {self.classes[label]!r} was projected; there are some of "
                f"{', '.join(c for c, g in zip(self.classes, self.by_label, strict=True) if g)}."
            )
        return seeding.draw_even(groups, seeding.rng(int(seed), "anchor"))

    def weights(self) -> dict[str, Tensor]:
        return {**super().weights(), "projected_latents": self.projected_latents.cpu()}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Generator:
        weights = dict(weights)
        projected_latents = weights.pop("projected_latents")
        return cls(spec, cls.load_network(spec, weights, device), projected_latents)


def around(
    base: StyleGAN2,
    images: NDArray[Any],
    labels: Sequence[int],
    names: Sequence[str],
    groups: Sequence[str],
    strength: float | None = None,
    steps: int = 300,
    progress: Progress = no_progress,
) -> tuple[ProjectedStyleGAN2, dict[str, float]]:
    """A generator of variations of real images, and what was measured on the way.

    Args:
        base: the generator that the images are projected into.
        images: ``[N, S, S, C]`` of the network's own side and the spec's type.
        labels: of the images.
        names: of the images, which become the parents of samples.
        groups: of the images; they are drawn evenly.
        strength: of the variations; by default the least of 0.2 to 0.8 at which at most 5 % of those of any class are
            near-duplicates of their parents.
        steps: of each projection.
        progress: called with words on the way.

    Returns:
        The generator, and ``error`` (root mean square, of values in [-1, 1]), ``strength`` and ``copies`` (their share
        at that strength, in the class that has most).
    """
    values = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) * (2 / base.spec.value_range[1]) - 1
    marks = torch.tensor(list(labels))
    styles, errors = [], []
    together = 2 * base.spec.micro_batch
    for first in range(0, len(values), together):
        projected = project(base, values[first : first + together], marks[first : first + together], steps)
        styles.append(projected.styles.cpu())
        errors += projected.error.tolist()
        progress(f"projected {len(errors)} of {len(values)} images, root mean square error {np.mean(errors):.3f}")
    projected_latents = [[int(label), name, group] for label, name, group in zip(labels, names, groups, strict=True)]
    side = base.network.synthesis.sizes[-1]
    spec = replace(
        base.spec,
        network="stylegan2_projected",
        arguments={**base.spec.arguments, "side": side, "projected_latents": projected_latents},
        sampler={**(base.spec.sampler or {}), "noise": "none"},
    )
    generator = ProjectedStyleGAN2(spec, base.network, torch.cat(styles), members=base.members, card=base.card)
    hashes = {name: perceptual_hash(image) for name, image in zip(names, images, strict=True)}
    tried = STRENGTHS if strength is None else (strength,)
    copies: dict[float, float] = {}
    for chosen in tried:
        shares = copy_shares(generator, hashes, chosen)
        worst = max(shares, key=lambda name: shares[name])
        copies[chosen] = shares[worst]
        if copies[chosen] <= COPIES:
            break
    progress(
        f"strength {chosen:g}: {copies[chosen]:.0%} of the images of {worst!r} are near-duplicates of their parents"
    )
    spec = replace(spec, sampler={**(spec.sampler or {}), "strength": chosen})
    final = ProjectedStyleGAN2(spec, base.network, generator.projected_latents, members=base.members, card=base.card)
    return final, {"error": float(np.mean(errors)), "strength": chosen, "copies": copies[chosen]}


def copy_shares(
    generator: ProjectedStyleGAN2, hashes: Mapping[str, str], strength: float, count: int = 48
) -> dict[str, float]:
    """Per class the share of ``count`` variations whose perceptual hash is within 4 bits of their parent's."""
    shares = {}
    for label, groups in enumerate(generator.by_label):
        if not groups:
            continue
        samples = generator.sample(range(count), [label] * count, strength=strength)
        near = [
            distances([perceptual_hash(image.permute(1, 2, 0).numpy())], [hashes[parents[0]]])[0, 0] <= NEAR
            for image, parents in zip(samples.images, samples.parents or (), strict=True)
        ]
        shares[generator.classes[label]] = float(np.mean(near))
    return shares
