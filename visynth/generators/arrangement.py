"""What goes where: a piece cut from an image of the class, and its place on a background. No pixel is drawn here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.pictures import box
from visynth.generators import context, noise
from visynth.generators.compose_settings import Settings
from visynth.generators.context import Fit
from visynth.generators.placement import foreground, place
from visynth.generators.shape import warp

Array = NDArray[Any]
Mask = NDArray[np.bool_]
VARIANTS = 2  # of a piece (mirrored, turned) that are looked for


@dataclass(frozen=True)
class Background:
    """A defect-free image ``[H, W, C]`` and where on it defects may stand; ``cut``: a part of one, whose border is none."""

    name: str
    group: str
    image: Array
    cut: bool = False

    @cached_property
    def foreground(self) -> Mask:
        return foreground(self.image)

    @cached_property
    def grey(self) -> context.Floats:
        return context.grey(self.image)


@dataclass(frozen=True)
class Defect:
    """Pixels to cut from: a window of a real image, the mask in it, and where the window lies in the image.

    ``home`` is the relative position of the mask's centre in the whole image; ``outside`` are the pixels of the window that
    lie beyond the image (filled by reflection). A defect without a mask (``mask`` is all True) is a whole image, for the
    methods that cut random regions.
    """

    name: str
    group: str
    label: int
    image: Array
    mask: Mask
    home: tuple[float, float]
    outside: Mask | None = None


@dataclass(frozen=True)
class Piece:
    """What is set in: pixels ``[h, w, C]``, the mask in them, and which of them lie beyond the image they come from."""

    image: Array
    mask: Mask
    outside: Mask

    def turned(self, mirrored: bool, quarters: int) -> Piece:
        """The piece mirrored from left to right and then turned by quarters."""
        sides = (self.image, self.mask, self.outside)
        return Piece(*(np.rot90(a[:, ::-1] if mirrored else a, quarters) for a in sides))

    def template(self, width: int, factor: int, hard: bool) -> context.Template:
        """The surroundings of the piece as they are looked for, see :func:`visynth.generators.context.template`."""
        return context.template(context.grey(self.image), self.mask, self.outside, width, factor, hard)

    def trimmed(self, margin: int) -> Piece:
        """No more than ``margin`` pixels around the mask."""
        x1, y1, x2, y2 = (int(v) for v in box(self.mask))
        part = np.s_[max(y1 - margin, 0) : y2 + margin, max(x1 - margin, 0) : x2 + margin]
        return Piece(*(np.ascontiguousarray(a[part]) for a in (self.image, self.mask, self.outside)))


@dataclass(frozen=True)
class Placed:
    """A piece with the top left corner of its window on a background, all inside of it; and how well it fits there."""

    ground: Background
    piece: Piece
    where: tuple[int, int]
    error: float


def cut(source: Defect, settings: Settings, generator: np.random.Generator, shaped: bool) -> Piece:
    """The pixels and the mask to paste, in another shape where ``shaped``."""
    outside = np.zeros(source.image.shape[:2], bool) if source.outside is None else source.outside
    piece = Piece(source.image, source.mask, outside)
    if settings.method in ("nsa", "perlin"):
        piece = replace(piece, mask=_random_region(source.image.shape[:2], settings.method, generator))
    if shaped:
        piece = _scaled(piece, settings, generator) if settings.blend == "hard" else _warped(piece, settings, generator)
    return piece.trimmed(round(max(settings.ring + settings.feather, settings.context)))


def mirrored(piece: Piece, settings: Settings, generator: np.random.Generator) -> Piece:
    """The piece mirrored at random where its class may be."""
    if not settings.flip:
        return piece
    return piece.turned(generator.random() < 0.5, 2 * int(generator.random() < 0.5))


def in_context(piece: Piece, ground: Background, settings: Settings, generator: np.random.Generator) -> Placed | None:
    """One of the places on a background where the surroundings of a piece fit best; None where there is none.

    Args:
        piece: as it was cut.
        ground: is searched.
        settings: of the class: ``context`` pixels around the mask are compared, it may be mirrored and turned or not, and one
            of the ``candidates`` best places is drawn.
        generator: the sample's own randomness.
    """
    hard = settings.blend == "hard"
    factor = context.factor_of(ground.image.shape)
    quarters = range(4) if settings.turn else (0, 2) if settings.flip else (0,)
    turns = [(m, q) for m in ((False, True) if settings.flip else (False,)) for q in quarters]
    pad = -(-max(piece.mask.shape) // factor)  # as much as any turn of the piece needs
    searched = context.ground(ground.grey, ground.foreground, factor, pad, not ground.cut)
    found: list[tuple[Fit, Piece]] = []
    for turn in generator.permutation(len(turns))[:VARIANTS]:
        own = piece.turned(*turns[turn])
        wanted = own.template(settings.context, factor, hard)
        found += [(fit, own) for fit in context.best_places(wanted, searched, settings.candidates, generator)]
    found.sort(key=lambda one: one[0].error)
    fitting = [one for one in found if one[0].error <= settings.misfit][: settings.candidates] or found[:1]
    for place_of in generator.permutation(len(fitting)):
        fit, own = fitting[place_of]
        if factor > 1:
            whole = own.template(settings.context, 1, hard)
            fit = context.refined(whole, ground.grey, ground.foreground, fit, 2 * factor, not ground.cut)
        placed = _inside(own, ground, fit)
        if placed is not None:
            return placed
    return None


def anywhere(
    piece: Piece, home: tuple[float, float], ground: Background, shift: int, generator: np.random.Generator
) -> Placed | None:
    """A place within ``shift`` pixels of where the piece was in its own image, whatever is around it."""
    where = place(piece.mask, home, ground.foreground, shift, generator)
    return None if where is None else Placed(ground, piece, where, float("nan"))


def _inside(piece: Piece, ground: Background, fit: Fit) -> Placed | None:
    """The part of a piece that lies inside a background, if its mask does."""
    height, width = ground.image.shape[:2]
    tall, wide = piece.mask.shape
    rows = slice(max(-fit.top, 0), min(height - fit.top, tall))
    columns = slice(max(-fit.left, 0), min(width - fit.left, wide))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    own = Piece(*(np.ascontiguousarray(a[rows, columns]) for a in (piece.image, piece.mask, piece.outside)))
    if own.mask.sum() < piece.mask.sum():
        return None
    top, left = fit.top + rows.start, fit.left + columns.start
    stands = ground.foreground[top : top + own.mask.shape[0], left : left + own.mask.shape[1]][own.mask].mean()
    return Placed(ground, own, (top, left), fit.error) if stands >= context.STANDS else None


def _warped(piece: Piece, settings: Settings, generator: np.random.Generator) -> Piece:
    image, (mask, outside) = warp(
        piece.image,
        (piece.mask, piece.outside),
        generator,
        scale=settings.scale,
        aspect=settings.aspect,
        rotate=settings.rotate,
        bend=settings.bend,
    )
    return Piece(image, mask, outside)


def _scaled(piece: Piece, settings: Settings, generator: np.random.Generator) -> Piece:
    """Scaled so that no value comes up between two others."""
    factor = generator.uniform(*settings.scale)
    if abs(factor - 1) <= 0.01:
        return piece
    kept = [np.arange(max(2, round(n * factor))) * n // max(2, round(n * factor)) for n in piece.mask.shape]
    mask = piece.mask[kept[0]][:, kept[1]]
    if not mask.any():  # a one-pixel defect may vanish when it shrinks: then it keeps its size
        return piece
    return Piece(piece.image[kept[0]][:, kept[1]], mask, piece.outside[kept[0]][:, kept[1]])


def _random_region(shape: tuple[int, int], method: str, generator: np.random.Generator) -> Mask:
    if method == "perlin":
        return noise.perlin_mask(shape, generator)
    tall, wide = noise.nsa_side(shape[0], generator), noise.nsa_side(shape[1], generator)
    top, left = int(generator.integers(0, shape[0] - tall + 1)), int(generator.integers(0, shape[1] - wide + 1))
    mask = np.zeros(shape, bool)
    mask[top : top + tall, left : left + wide] = True
    return mask
