"""``visynth project``: real images as latents of a StyleGAN2, and a generator of images around them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.folders import check_apart, claim
from visynth.core.members import Member, meetings
from visynth.core.pictures import FITS, fit_to, grid, png, to_channels, to_display
from visynth.core.progress import Progress, no_progress
from visynth.core.seeds import noise
from visynth.data.imageset import ImageSet, Item
from visynth.generators.base import Generator, load_generator


def project_images(
    generator: str | Path | Generator,
    images: ImageSet,
    out: str | Path,
    classes: list[str] | None = None,
    strength: float | None = None,
    steps: int = 300,
    fit: str = "squash",
    limit: int = 200,
    progress: Progress = no_progress,
) -> Generator:
    """Project real images and write a generator of variations of them.

    Args:
        generator: a StyleGAN2, or its folder.
        images: real ones; those of validation and test splits, and those that the generator's training held out, are
            left alone.
        out: the generator folder; ``projections.png`` in it shows real images, their projections and variations.
        classes: of the generator, to project; by default all that the images have.
        strength: how far variations go from the real image to a random one of its class, in [0, 1]; by default the
            least of 0.2 to 0.8 at which at most 5 % of those of any class are near-duplicates of their parents; a
            warning says if there is none.
        steps: of the projection.
        fit: how other proportions become the generator's size: "crop", "pad" or "squash".
        limit: images of a class, at most, evenly over groups.
        progress: called with words on the way.

    Raises:
        UsageError: another kind of generator, unknown classes.
        DataError: no image of a class.
    """
    from visynth.generators.gan import StyleGAN2
    from visynth.generators.projection import COPIES, ProjectedStyleGAN2, around

    problems = []
    if fit not in FITS:
        problems.append(f"fit must be one of {choices(FITS)}, but got {fit!r}")
    if strength is not None and not 0 <= strength <= 1:
        problems.append(f"strength must be in [0, 1], but got {strength}")
    if limit < 1 or steps < 1:
        problems.append(f"limit and steps must be at least 1, but got {limit} and {steps}")
    if problems:
        raise UsageError("project: " + "; ".join(problems) + ".")
    base = generator if isinstance(generator, Generator) else load_generator(generator)
    if not isinstance(base, StyleGAN2) or isinstance(base, ProjectedStyleGAN2):
        raise UsageError(f"projection needs a StyleGAN2 generator, but this one is {base.spec.network!r}.")
    names = [name for name in (classes or base.classes) if classes or name in images.classes]
    unknown = [name for name in names if name not in base.classes or name not in images.classes]
    if unknown or not names:
        raise UsageError(
            f"classes {choices(unknown or images.classes)} are not in both the generator ({choices(base.classes)}) and "
            f"the images ({choices(images.classes)})."
        )
    check_apart(out, images.folders())
    folder = claim(out)
    images, prints = _for_training(base, images, names, progress)
    items = [item for name in names for item in _some(images, name, limit)]
    pixels = np.stack([_pixels(images, item, base, fit) for item in items])
    anchored, facts = around(
        base,
        pixels,
        [base.classes.index(item.label) for item in items],
        [item.name for item in items],
        [item.group or item.name for item in items],
        strength,
        steps,
        progress,
    )
    anchored.members = tuple(_members(base, items, prints))
    anchored.card = {
        **base.card,
        "task": "variations of projected real images (StyleGAN2)",
        "projected images": len(items),
        "root mean square error of projections, of values in [-1, 1]": round(facts["error"], 4),
        "near-duplicates of parents at this strength, in the class that has most": round(facts["copies"], 4),
        "made by": "visynth project",
    }
    if facts["copies"] > COPIES:
        warnings.warn(
            f"{facts['copies']:.0%} of the variations of a class at strength {facts['strength']:g} are near-duplicates "
            "of their parents: take a "
            "greater strength, or expect copies",
            stacklevel=2,
        )
    anchored.save(folder, {"projections.png": png(_sheet(anchored, pixels))})
    return anchored


def _for_training(
    base: Generator, images: ImageSet, names: Sequence[str], progress: Progress
) -> tuple[ImageSet, dict[str, Member]]:
    """Images of some classes with the groups that they had in the generator's training, and their fingerprints by name.

    What the training held out, and near-copies of that, are left out.
    """
    chosen = images.select(lambda item: item.labels in [(name,) for name in names] and item.split in ("", "train"))
    prints = {member.path: member for member in chosen.members("train")}
    same, like = meetings(list(prints.values()), base.members)
    kept = []
    for item in chosen.items:
        own = same.get(item.name)
        if (own or like.get(item.name, prints[item.name])).split == "train":
            kept.append(replace(item, group=item.group or (own.group if own else "")))
    left = len(chosen.items) - len(kept)
    if left:
        progress(
            f"{left} images were held out when the generator was trained, or are like one that was: they are left alone"
        )
    return replace(chosen, items=tuple(kept)), prints


def _some(images: ImageSet, name: str, limit: int) -> list[Any]:
    """Images of a class: all, or ``limit`` of them, taking groups in turn."""
    items = [item for item in images.items if item.labels == (name,)]
    if not items:
        raise DataError(f"there is no training image of {name!r} alone to project.")
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.group or item.name, []).append(item)
    turns = sorted((place, group, item.name, item) for group, held in groups.items() for place, item in enumerate(held))
    return [item for _, _, _, item in turns[:limit]]


def _pixels(images: ImageSet, item: Any, generator: Any, fit: str) -> Any:
    image = to_channels(images.image(item), generator.spec.channels)
    if image.dtype != np.dtype(generator.spec.dtype):
        raise DataError(f"{item.name} is {image.dtype}, the generator makes {generator.spec.dtype}.")
    side = generator.network.synthesis.sizes[-1]
    return fit_to(image, (side, side), fit)


def _members(base: Generator, items: Sequence[Item], prints: Mapping[str, Member]) -> list[Member]:
    """The generator's own real images and those that were projected: the leak guard must know both."""
    known = {member.sha256 for member in base.members if member.split == "train"}
    more = [replace(prints[item.name], group=item.group or item.name) for item in items]
    return [*base.members, *(member for member in more if member.sha256 not in known)]


def _sheet(generator: Any, pixels: Any, rows: int = 8) -> Any:
    """Rows of a real image, its projection and four variations."""
    strength = generator.spec.sampler["strength"]
    tiles = []
    for place in np.linspace(0, len(pixels) - 1, min(rows, len(pixels))).round().astype(int).tolist():
        latent = generator.projected_latents[place : place + 1].to(generator.device)
        label = torch.tensor([generator.spec.arguments["projected_latents"][place][0]], device=generator.device)
        with torch.no_grad():
            z = noise(range(4), (generator.network.z_dim,), "latent")
            ways = generator.of_latents(z, label.repeat(4))
            ws = torch.cat([latent, torch.lerp(latent.expand_as(ways), ways, strength)])
            shown = generator.integers(generator.synthesize(ws, [0] * 5, "none")).permute(0, 2, 3, 1).numpy()
        tiles += [to_display(pixels[place]), *(to_display(np.ascontiguousarray(image)) for image in shown)]
    return grid(tiles, columns=6, side=96)
