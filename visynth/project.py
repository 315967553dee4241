"""``visynth project``: real images as latents of a StyleGAN2, and a generator of pictures around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visynth.data.items import ImageSet
from visynth.data.training import fit_to, to_channels
from visynth.errors import DataError, UsageError, choices
from visynth.generator import Generator, load_generator
from visynth.members import NEAR, distances, perceptual_hash
from visynth.pictures import grid, to_display, write_png

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
COPIES = 0.05  # share of near-duplicates of their parents from which pictures are called copies


def project_images(
    generator: str | Path | Generator,
    images: ImageSet,
    out: str | Path,
    classes: list[str] | None = None,
    strength: float | None = None,
    steps: int = 300,
    fit: str = "squash",
    limit: int = 200,
    say: Callable[[str], None] = lambda words: None,
) -> Generator:
    """Project real images and write a generator of variations of them.

    Args:
        generator: a StyleGAN2, or its folder.
        images: real ones; those of validation and test splits are left alone.
        out: the generator folder; ``projections.png`` in it shows real images, their projections and variations.
        classes: of the generator, to project; by default all that the images have.
        strength: how far variations go from the real image to a random one of its class, in [0, 1]; by default the least of 0.2 to 0.8 at
            which at most 5 % of them are near-duplicates of their parents.
        steps: of the projection.
        fit: how other proportions become the generator's size: "crop", "pad" or "squash".
        limit: images of a class, at most, evenly over groups.
        say: called with words on the way.

    Raises:
        UsageError: another kind of generator, unknown classes.
        DataError: no image of a class.
    """
    from visynth.networks.gan import StyleGAN2
    from visynth.networks.projection import Anchored, project

    base = generator if isinstance(generator, Generator) else load_generator(generator)
    if not isinstance(base, StyleGAN2) or isinstance(base, Anchored):
        raise UsageError(f"projection needs a StyleGAN2 generator, but this one is {base.spec.network!r}.")
    names = [name for name in (classes or base.classes) if classes or name in images.classes]
    unknown = [name for name in names if name not in base.classes or name not in images.classes]
    if unknown or not names:
        raise UsageError(
            f"classes {choices(unknown or images.classes)} are not in both the generator ({choices(base.classes)}) and the images ({choices(images.classes)})."
        )
    items = [item for name in names for item in _some(images, name, limit)]
    pixels = np.stack([_pixels(images, item, base, fit) for item in items])
    labels = torch.tensor([base.classes.index(item.label) for item in items])
    top = base.spec.value_range[1]
    values = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) * (2 / top) - 1
    styles, errors = [], []
    for first in range(0, len(items), 32):
        part = slice(first, first + 32)
        found = project(base, values[part], labels[part], steps)
        styles.append(found.styles.cpu())
        errors += found.error.tolist()
        say(f"projected {len(errors)} of {len(items)} images, root mean square error {np.mean(errors):.3f}")
    arguments = {
        **base.spec.arguments,
        "anchors": [
            [int(label), item.name, item.group or item.name] for label, item in zip(labels, items, strict=True)
        ],
    }
    spec = replace(base.spec, network="stylegan2_projected", arguments=arguments, sampler={"noise": "none"})
    made = Anchored(spec, base.network, torch.cat(styles), members=_members(base, images, items))
    copies = copy_shares(made, [perceptual_hash(image) for image in pixels], [item.name for item in items], strength)
    strength = strength if strength is not None else next((s for s, c in copies.items() if c <= COPIES), STRENGTHS[-1])
    say(f"strength {strength:g}: {copies[strength]:.0%} of its pictures are near-duplicates of their parents")
    spec = replace(spec, sampler={"noise": "none", "strength": strength})
    card = {
        **base.card,
        "task": "variations of projected real images (StyleGAN2)",
        "projected images": len(items),
        "root mean square error of projections, of values in [-1, 1]": round(float(np.mean(errors)), 4),
        "near-duplicates of parents at this strength": round(copies[strength], 4),
        "made by": "visynth project",
    }
    final = Anchored(spec, base.network, torch.cat(styles), members=made.members, card=card)
    folder = final.save(out)
    write_png(folder / "projections.png", _sheet(final, pixels, labels.tolist()))
    return final


def copy_shares(
    generator: Any, hashes: list[str], names: list[str], strength: float | None, count: int = 96
) -> dict[float, float]:
    """Share of variations whose perceptual hash is within 4 bits of their parent's, at each strength."""
    by_name = dict(zip(names, hashes, strict=True))
    present = sorted({label for label, groups in enumerate(generator._by_label) if groups})
    seeds = list(range(count))
    labels = [present[seed % len(present)] for seed in seeds]
    shares = {}
    for tried in STRENGTHS if strength is None else (strength,):
        samples = generator.sample(seeds, labels, strength=tried)
        near = [
            distances([perceptual_hash(image.permute(1, 2, 0).numpy())], [by_name[parents[0]]])[0, 0] <= NEAR
            for image, parents in zip(samples.images, samples.parents or (), strict=True)
        ]
        shares[tried] = float(np.mean(near))
    return shares


def _some(images: ImageSet, name: str, limit: int) -> list[Any]:
    """Training images of a class: all, or ``limit`` of them, taking groups in turn."""
    items = [item for item in images.items if item.labels == (name,) and item.split in ("", "train")]
    if not items:
        raise DataError(f"there is no training image of {name!r} alone to project.")
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.group or item.name, []).append(item)
    turns = sorted((place, group, item.name, item) for group, held in groups.items() for place, item in enumerate(held))
    return [item for _, _, _, item in turns[:limit]]


def _pixels(images: ImageSet, item: Any, generator: Generator, fit: str) -> Any:
    image = to_channels(images.image(item), generator.spec.channels)
    if image.dtype != np.dtype(generator.spec.dtype):
        raise DataError(f"{item.name} is {image.dtype}, the generator makes {generator.spec.dtype}.")
    return fit_to(image, generator.spec.size, fit)


def _members(base: Generator, images: ImageSet, items: list[Any]) -> list[Any]:
    """The generator's own real images and those that were projected: the leak guard must know both."""
    known = {member.sha256 for member in base.members if member.split == "train"}
    more = [images.member(item, "train") for item in items]
    return [*base.members, *(member for member in more if member.sha256 not in known)]


def _sheet(generator: Any, pixels: Any, labels: list[int], rows: int = 8) -> Any:
    """Rows of a real image, its projection and four variations."""
    tiles = []
    for place in np.linspace(0, len(pixels) - 1, min(rows, len(pixels))).round().astype(int).tolist():
        anchor = generator.anchors[place : place + 1]
        label = torch.tensor([labels[place]])
        strength = generator.spec.sampler["strength"]
        with torch.no_grad():
            ways = [
                generator.of_latents(
                    torch.randn(1, generator.network.z_dim, generator=torch.Generator().manual_seed(n)), label
                )
                for n in range(4)
            ]
            ws = torch.cat([anchor, *(torch.lerp(anchor, way, strength) for way in ways)])
            made = generator.pictures(ws, [0] * 5, "none")
        from visynth.networks.diffusion import to_integers

        shown = to_integers(made, generator.spec.dtype).permute(0, 2, 3, 1).numpy()
        tiles += [to_display(pixels[place]), *(to_display(np.ascontiguousarray(picture)) for picture in shown)]
    return grid(tiles, columns=6, side=96)
