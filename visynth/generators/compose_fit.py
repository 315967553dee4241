"""Fitting a composition: choose defects and backgrounds, check the masks, settle how each class is composed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.members import Member
from visynth.core.pictures import box, few_values
from visynth.generators.arrangement import Background, Defect
from visynth.generators.base import Spec
from visynth.generators.compose import Composition
from visynth.generators.compose_settings import Settings, from_masks

Array = NDArray[Any]
Mask = NDArray[np.bool_]
GOOD_WORDS = (
    "good",
    "free",
    "normal",
    "ok",
    "background",
    "negative",
    "none",
    "clean",
    "healthy",
    "defect-free",
    "no_defect",
    "sound",
)
LARGE = 1024  # pixels of the longer side from which on windows are cut instead of whole images kept


@dataclass(frozen=True)
class Source:
    """A real training image.

    Attributes:
        name: its key.
        label: class.
        group: part, scene or patient.
        image: ``[H, W, C]``.
        mask: of its defect ``[H, W]``, if any.
        mask_problem: why the mask should not be pasted, or None (:func:`visynth.data.masks.mask_problem` says).
    """

    name: str
    label: str
    group: str
    image: Array
    mask: Mask | None = None
    mask_problem: str | None = None


@dataclass
class Fitted:
    """A composition, and why classes and masks were left out."""

    generator: Composition
    left_out: dict[str, str] = field(default_factory=dict)
    bad_masks: dict[str, str] = field(default_factory=dict)


def guess_good(classes: Sequence[str], masked: Mapping[str, int], counts: Mapping[str, int]) -> str | None:
    """The defect-free class: by its name, else the only class without masks when it is the largest too, else None.

    Example:
        >>> guess_good(["crack", "Good"], {"crack": 5}, {"crack": 5, "Good": 50})
        'Good'
    """
    named = [name for name in classes if name.lower() in GOOD_WORDS]
    if len(named) == 1:
        return named[0]
    unmasked = [name for name in classes if not masked.get(name)]
    if any(masked.values()) and len(unmasked) == 1 and counts[unmasked[0]] == max(counts.values()):
        return unmasked[0]
    return None


def fit_composition(
    sources: Sequence[Source],
    *,
    good: str,
    classes: Sequence[str] | None = None,
    settings: Mapping[str, Settings] | None = None,
    without_masks: str | None = None,
    control: bool = True,
    max_backgrounds: int = 200,
    window: int = 512,
    members: Sequence[Member] = (),
    card: Mapping[str, Any] | None = None,
) -> Fitted:
    """A :class:`Composition` of training images.

    Args:
        sources: training images only; nothing that is validated or tested on.
        good: the defect-free class that gives the backgrounds.
        classes: defect classes to compose; by default all but ``good`` that can be.
        settings: per class, instead of those that follow from its masks.
        without_masks: ``"nsa"`` or ``"perlin"`` for classes without masks; None leaves them out.
        control: whether the good class is composed too, with good pixels under the same seams, so that a seam
            does not spell "defect".
        max_backgrounds: how many defect-free images are kept, spread over their groups.
        window: side in pixels of the windows cut from images whose longer side is over 1024.
        members: fingerprints for ``members.jsonl``.
        card: what else ``generator.json`` should tell.

    Raises:
        UsageError: no such class or method.
        DataError: no defect-free images, or no class that can be composed (with the reasons).
    """
    present = sorted({s.label for s in sources})
    if good not in present:
        raise UsageError(f"the defect-free class {good!r} is not among {choices(present)}: name it with --good.")
    if without_masks not in (None, "nsa", "perlin"):
        raise UsageError(f"without_masks must be 'nsa', 'perlin' or None, but got {without_masks!r}.")
    wanted = [name for name in (classes or present) if name != good]
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise UsageError(f"classes {choices(unknown)} have no training images; there are {choices(present)}.")

    hard = all(few_values(s.image) for s in sources if s.label == good)
    left_out: dict[str, str] = {}
    bad_masks: dict[str, str] = {}
    chosen: list[tuple[str, list[Defect], Settings]] = []
    for name in wanted:
        own = [s for s in sources if s.label == name]
        usable, why = _usable(own, bad_masks)
        if usable:
            rule = (settings or {}).get(name) or from_masks([s.mask for s in usable if s.mask is not None], hard=hard)
        elif without_masks:
            usable = own
            blend = "mixed" if without_masks == "nsa" else "feather"
            soft = Settings(method=without_masks, place="near", shift=10**6, blend=blend, feather=7.0)
            edge = replace(from_masks([], hard=True), method=without_masks, place="near", shift=10**6)
            rule = (settings or {}).get(name) or (edge if hard else soft)
        else:
            left_out[name] = why
            continue
        chosen.append((name, [_defect(s, len(chosen), rule, window) for s in usable], rule))
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DataError(f"no class can be composed ({reasons}). Give masks with --masks, or --without-masks nsa.")

    kept = _spread([s for s in sources if s.label == good], max_backgrounds)
    parts = [(s, _window(s.image, window)) for s in kept]
    backgrounds = [Background(s.name, s.group, part, part is not s.image) for s, part in parts]
    if control:
        chosen.append((good, [], Settings(method="control")))
    return Fitted(_assemble(chosen, backgrounds, members, card), left_out, bad_masks)


def _assemble(
    chosen: Sequence[tuple[str, list[Defect], Settings]],
    backgrounds: Sequence[Background],
    members: Sequence[Member],
    card: Mapping[str, Any] | None,
) -> Composition:
    defects = [defect for _, own, _ in chosen for defect in own]
    images: list[Defect | Background] = [*defects, *backgrounds]
    kinds = Counter((d.image.dtype.name, d.image.shape[2]) for d in images)
    if len(kinds) > 1:
        listed = ", ".join(
            f"{count} with {channels} channel(s) of {dtype}" for (dtype, channels), count in kinds.items()
        )
        raise DataError(f"composition needs images of one kind, but there are {listed}: convert them to one mode.")
    (dtype, channels), _ = kinds.most_common(1)[0]
    spec = Spec(
        network="compose",
        arguments={
            "defects": [{"name": d.name, "group": d.group, "label": d.label, "home": list(d.home)} for d in defects],
            "backgrounds": [{"name": b.name, "group": b.group, "cut": b.cut} for b in backgrounds],
            "settings": [rule.to_json() for _, _, rule in chosen],
        },
        classes=tuple(name for name, _, _ in chosen),
        channels=channels,
        size=(max(b.image.shape[0] for b in backgrounds), max(b.image.shape[1] for b in backgrounds)),
        dtype=dtype,
        micro_batch=1,  # numpy work on single images: there is no batch arithmetic to keep equal
        kind="composite",
    )
    return Composition(spec, defects, backgrounds, [rule for _, _, rule in chosen], members=members, card=card)


def _usable(own: Sequence[Source], bad_masks: dict[str, str]) -> tuple[list[Source], str]:
    """Images with a mask worth pasting; none when half of a class's masks are not, or more."""
    masked = [s for s in own if s.mask is not None]
    if not masked:
        return [], "it has no masks"
    reasons = {
        s.name: s.mask_problem or ("the mask is empty" if not s.mask.any() else None)
        for s in masked
        if s.mask is not None
    }
    bad = {name: why for name, why in reasons.items() if why}
    bad_masks.update(bad)
    if len(bad) >= len(masked) / 2:
        # "the mask covers 35% of ..." and "... 41% of ..." are one reason: count them by their first words.
        kinds = Counter(" ".join(why.split()[:3]) for why in bad.values())
        example = next(why for why in bad.values() if why.startswith(kinds.most_common(1)[0][0]))
        return [], f"{len(bad)} of {len(masked)} masks are unreliable, mostly because {example}"
    return [s for s in masked if s.name not in bad], ""


def _defect(source: Source, label: int, rule: Settings, side: int) -> Defect:
    if source.mask is None or rule.method != "mask":
        image = _window(source.image, side)
        return Defect(source.name, source.group, label, image, np.ones(image.shape[:2], bool), (0.5, 0.5))
    x1, y1, x2, y2 = (int(v) for v in box(source.mask))
    height, width = source.mask.shape
    # Kept: the defect and what surrounds it, as far as ring, feather and context look, when it is made smallest; what lies
    # beyond the image is filled by reflection, and noted.
    margin = round(max(rule.ring + rule.feather, rule.context) / min(rule.scale[0], 1.0)) + 2
    rows, columns = np.arange(y1 - margin, y2 + margin), np.arange(x1 - margin, x2 + margin)
    outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))[None]
    image = source.image[_folded(rows, height)][:, _folded(columns, width)]
    mask = source.mask[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)] & ~outside
    home = ((y1 + y2) / 2 / height, (x1 + x2) / 2 / width)
    return Defect(source.name, source.group, label, image, mask, home, outside if outside.any() else None)


def _folded(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Places beyond a row of pixels, reflected into it."""
    period = max(2 * length, 1)
    around = places % period
    return np.where(around >= length, period - 1 - around, around)


def _window(image: Array, side: int) -> Array:
    """Whole images up to 1024 pixels, else their middle window of ``side`` at native scale."""
    height, width = image.shape[:2]
    if max(height, width) <= LARGE:
        return image
    top = min(max(height // 2 - side // 2, 0), max(height - side, 0))
    left = min(max(width // 2 - side // 2, 0), max(width - side, 0))
    return image[top : top + side, left : left + side].copy()


def _spread(images: Sequence[Source], count: int) -> list[Source]:
    """Up to ``count`` images, one of each group in turn, so that no group crowds out another."""
    groups: dict[str, list[Source]] = defaultdict(list)
    for source in sorted(images, key=lambda s: s.name):
        groups[source.group].append(source)
    picked: list[Source] = []
    depth = 0
    while len(picked) < count and any(len(g) > depth for g in groups.values()):
        picked += [groups[name][depth] for name in sorted(groups) if len(groups[name]) > depth]
        depth += 1
    return picked[:count]
