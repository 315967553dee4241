"""Making a generator folder from a set of training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from visynth.compose.fit import Fitted, Source, fit_composition, guess_good
from visynth.compose.settings import Settings
from visynth.data.items import ImageSet
from visynth.data.masks import judge, load_mask
from visynth.errors import UsageError, choices
from visynth.files import ensure_writable


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
        out: the generator folder; replaced when it exists.
        good: the defect-free class; guessed from names and masks when None.
        classes: defect classes to compose; by default all that can be.
        settings: per class, instead of those inferred from its masks.
        without_masks: ``"nsa"`` or ``"perlin"`` for classes without masks.
        card: further entries for the model card.

    Raises:
        UsageError: the defect-free class cannot be guessed.
    """
    ensure_writable(Path(out).parent)
    train = images.select(lambda item: item.split in ("", "train"))
    sources = [
        Source(i.name, i.label, i.group or i.name, images.image(i), load_mask(images, i))
        for i in train.items
        if len(i.labels) == 1
    ]
    masked = {name: sum(s.mask is not None for s in sources if s.label == name) for name in images.classes}
    good = good or guess_good(images.classes, masked, images.counts())
    if good is None:
        raise UsageError(
            f"which class is defect-free cannot be guessed from {choices(images.classes)}: name it with --good."
        )
    told = {
        "task": "composition",
        "training images": len(train),
        "licence": "as the images that it was made from",
        "made by": "visynth fit compose",
    }
    fitted = fit_composition(
        sources,
        good=good,
        judge=judge,
        classes=classes,
        settings=settings,
        without_masks=without_masks,
        members=images.members(lambda item: item.split or "train"),
        card={**told, **(card or {})},
    )
    fitted.generator.save(out)
    return fitted
