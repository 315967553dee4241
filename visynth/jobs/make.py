"""Making a generator folder from a set of training images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.folders import check_apart, claim
from visynth.core.pictures import fit_to, to_channels
from visynth.data.imageset import ImageSet, Item
from visynth.data.masks import Mask, checked_mask, load_mask
from visynth.generators.compose_fit import Array, Fitted, Source, fit_composition, guess_good
from visynth.generators.compose_settings import Settings
from visynth.generators.foundation import Foundation, StartImage, make_foundation


def sources_of(images: ImageSet, classes: Collection[str] | None = None) -> list[Source]:
    """The training images of one class each, decoded, with their masks; ``classes`` leaves the others out."""
    return [
        read_source(images, i)
        for i in images.items
        if i.split in ("", "train") and len(i.labels) == 1 and (classes is None or i.label in classes)
    ]


def read_source(images: ImageSet, item: Item) -> Source:
    """One image of one class, decoded, with its mask and whether that can be pasted."""
    image = images.image(item)
    return Source(item.name, item.label, item.group or item.name, image, *checked_mask(images, item, image))


def fit_compose(
    images: ImageSet,
    out: str | Path,
    *,
    good: str | None = None,
    classes: Sequence[str] | None = None,
    settings: Mapping[str, Settings] | None = None,
    without_masks: str | None = None,
    card: Mapping[str, object] | None = None,
) -> Fitted:
    """Fit a composition on the training images of a set and write it to ``out``.

    Args:
        images: images with a split other than train are only recorded as held out.
        out: the generator folder; an older one that is all ours is replaced.
        good: the defect-free class; guessed from names and masks when None.
        classes: defect classes to compose; by default all that can be.
        settings: per class, instead of those inferred from its masks.
        without_masks: ``"nsa"`` or ``"perlin"`` for classes without masks.
        card: further entries for the model card.

    Raises:
        UsageError: the defect-free class cannot be guessed.
        OutputError: ``out`` holds something that visynth did not write, or lies among the data.
    """
    check_apart(out, images.folders())
    claim(out)
    train = images.select(lambda item: item.split in ("", "train"))
    sources = sources_of(images)
    masked = {name: sum(s.mask is not None for s in sources if s.label == name) for name in images.classes}
    good = good or guess_good(images.classes, masked, images.counts())
    if good is None:
        raise UsageError(
            f"which class is defect-free cannot be guessed from {choices(images.classes)}: name it with --good."
        )
    entries = {
        "task": "composition",
        "training images": len(train),
        "licence": "as the images that it was made from",
        "made by": "visynth fit compose",
    }
    fitted = fit_composition(
        sources,
        good=good,
        classes=classes,
        settings=settings,
        without_masks=without_masks,
        members=images.members(lambda item: item.split or "train"),
        card={**entries, **(card or {})},
    )
    fitted.generator.save(out)
    return fitted


def fit_pipeline(
    images: ImageSet,
    out: str | Path,
    pipeline: str,
    *,
    size: int,
    mode: str = "image",
    prompts: Mapping[str, str] | None = None,
    negative_prompt: str = "",
    classes: Sequence[str] | None = None,
    sampler: Mapping[str, object] | None = None,
) -> Foundation:
    """A generator of a foundation model's pipeline, started on the training images, without any training.

    Args:
        images: images with a split other than train are only recorded as held out.
        out: the generator folder.
        pipeline: folder that diffusers' ``save_pretrained`` wrote, or a hub id.
        size: of the synthetic images, in pixels.
        mode: ``"image"``, ``"inpaint"`` (images with masks only) or ``"text"``.
        prompts: by class; by default ``"a photo of <class>"``.
        negative_prompt: for all classes.
        classes: by default all.
        sampler: steps, guidance, strengths.

    Raises:
        DataError: no pipeline there, one of another kind, or no image to start from.
    """
    check_apart(out, images.folders())
    claim(out)
    names = list(classes or images.classes)
    unknown = [name for name in names if name not in images.classes]
    if unknown:
        raise UsageError(f"there is no class {choices(unknown)}; the classes are {choices(images.classes)}.")
    train = [i for i in images.items if i.split in ("", "train") and len(i.labels) == 1 and i.labels[0] in names]
    masks = {item.name: load_mask(images, item) for item in train} if mode == "inpaint" else {}
    starts = [] if mode == "text" else [i for i in train if mode != "inpaint" or _any(masks[i.name])]
    if mode == "inpaint":
        names = [name for name in names if any(i.label == name for i in starts)]
    if mode != "text" and not starts:
        raise DataError(
            f"{images.root} has no training image to start from"
            + (" with a mask: give --masks." if mode == "inpaint" else ".")
        )
    start_images = [
        StartImage(
            i.name,
            i.group or i.name,
            names.index(i.label),
            _fitted(images.image(i), size),
            _shape(masks.get(i.name), size),
        )
        for i in starts
    ]
    card = {
        "task": f"{mode} by {pipeline}",
        "training images": len(train),
        "licence": "as the pipeline's, and as the images that it starts from",
        "made by": "visynth fit pipeline",
    }
    generator = make_foundation(
        pipeline,
        names,
        (size, size),
        mode=mode,
        prompts=prompts,
        negative_prompt=negative_prompt,
        start_images=start_images,
        sampler=sampler,
        members=images.members(lambda item: item.split or "train"),
        card=card,
    )
    generator.save(out)
    return generator


def _any(mask: Mask | None) -> bool:
    return mask is not None and bool(mask.any())


def _fitted(image: Array, size: int) -> Array:
    if image.dtype.name != "uint8":
        raise DataError("foundation models work on 8 bits: convert the images, or train a diffusion generator on them.")
    return fit_to(to_channels(image, 3), (size, size), "squash")


def _shape(mask: Mask | None, size: int) -> Mask | None:
    return (
        None if mask is None else fit_to(mask[:, :, None].astype("uint8") * 255, (size, size), "squash")[:, :, 0] > 127
    )
