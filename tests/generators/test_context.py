"""Composition by context: a defect goes where its surroundings fit, in other shapes, and that is worth something."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.generators.boards import KINDS, board, defects
from visynth.data.masks import at_border
from visynth.generators import context
from visynth.generators.arrangement import Background, Defect, Piece, cut, in_context
from visynth.generators.compose import Composition
from visynth.generators.compose_fit import Source, _defect, fit_composition
from visynth.generators.compose_settings import Settings, from_masks
from visynth.generators.shape import warp

HARD = from_masks([], hard=True)


def scene(seed: int = 0, shape: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A smooth picture without two equal places, uint8 ``[H, W, 1]``."""
    noise = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)[:, :, None]


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def defect_of(image: np.ndarray, mask: np.ndarray, settings: Settings) -> Defect:
    return _defect(Source("d", "d", "d", image, mask), 0, settings, 512)


STILL = replace(Settings(), scale=(1.0, 1.0), aspect=0.0, rotate=0.0, bend=0.0, flip=False, candidates=1)


class TestPlaces:
    @pytest.mark.parametrize("centre", [(40, 60), (5, 30), (86, 117), (45, 3)])
    @pytest.mark.parametrize("large", [False, True])
    def test_a_defect_finds_its_own_place(self, centre, large: bool) -> None:
        """On the picture that it was cut from, whatever the picture's light and contrast, and where it meets the border."""
        shape = (270, 360) if large else (90, 120)
        image = scene(1, shape)
        centre = (centre[0] * 3, centre[1] * 3) if large else centre
        mask = disc(shape, centre, 12 if large else 6)
        spoilt = image.copy()
        spoilt[mask] = 255
        other = np.clip(image.astype(float) * 0.6 + 40, 0, 255).astype(np.uint8)
        piece = cut(defect_of(spoilt, mask, STILL), STILL, np.random.default_rng(0), shaped=True)
        placed = in_context(piece, Background("b", "b", other), STILL, np.random.default_rng(0))
        rows, columns = np.nonzero(placed.piece.mask)
        found = np.zeros(shape, bool)
        found[rows + placed.where[0], columns + placed.where[1]] = True
        assert (found & mask).sum() / (found | mask).sum() > 0.9
        assert placed.error < 0.1

    def test_at_full_resolution_the_place_is_exact(self) -> None:
        image = board(3)
        mask = disc((64, 64), (30, 33), 3)
        spoilt = image.copy()
        spoilt[mask] = 255 - spoilt[mask]
        still = replace(HARD, flip=False, turn=False, candidates=1)
        piece = cut(defect_of(spoilt, mask, still), still, np.random.default_rng(0), shaped=True)
        placed = in_context(piece, Background("b", "b", image), still, np.random.default_rng(0))
        assert placed.error <= context.EQUAL
        top, left = placed.where
        window = np.s_[top : top + placed.piece.mask.shape[0], left : left + placed.piece.mask.shape[1]]
        ring = cv2.dilate(placed.piece.mask.astype(np.uint8), np.ones((15, 15))) > 0
        ring &= cv2.dilate(placed.piece.mask.astype(np.uint8), np.ones((3, 3))) == 0
        assert (image[window][ring] == placed.piece.image[ring]).all()

    def test_what_sticks_out_of_its_image_sticks_out_of_the_other(self) -> None:
        """A defect that was cut off by the border lies on the border again, at any place along it."""
        image, mask = scene(2), disc((90, 120), (0, 50), 7)
        piece = cut(defect_of(image, mask, STILL), STILL, np.random.default_rng(0), shaped=True)
        assert piece.outside.any()
        many = replace(STILL, candidates=5)
        for seed in range(10):
            placed = in_context(piece, Background("b", "b", scene(50 + seed)), many, np.random.default_rng(seed))
            assert placed.where[0] == 0
            assert placed.piece.mask[0].any()

    def test_a_flat_ring_fits_any_flat_place_and_says_so(self) -> None:
        flat = np.full((60, 60, 1), 90, np.uint8)
        piece = cut(defect_of(flat, disc((60, 60), (30, 30), 4), STILL), STILL, np.random.default_rng(0), shaped=True)
        placed = in_context(piece, Background("b", "b", flat), STILL, np.random.default_rng(0))
        assert placed.error <= context.EQUAL

    def test_correlation_is_pearsons(self) -> None:
        """Over the pixels inside both, where the window sticks out of the image, too."""
        rng = np.random.default_rng(0)
        image, pattern = rng.normal(0, 1, (12, 14)).astype(np.float32), rng.normal(0, 1, (5, 6)).astype(np.float32)
        weights = (rng.random((5, 6)) < 0.8).astype(np.float32)
        where = context.ground(image, np.ones(image.shape, bool), 1, 2)
        found = context._correlation(where, pattern, weights, context._slid(where.inside, weights))
        for top in range(12):
            for left in range(13):
                window = np.s_[top : top + 5, left : left + 6]
                seen = (weights > 0) & (where.inside[window] > 0)
                expected = np.corrcoef(where.values[window][seen], pattern[seen])[0, 1]
                assert found[top, left] == pytest.approx(expected, abs=2e-3)

    @pytest.mark.parametrize("slope", [0, 10, 30])
    def test_what_lies_in_the_open_is_not_drawn_to_the_border(self, slope: int) -> None:
        """A faint slope of light correlates with any step; the border is none to a defect that had none near it."""
        rng, tilt = np.random.default_rng(0), np.linspace(-slope, slope, 128)[None]
        sources = []
        for k in range(16):
            image = np.clip(120 + tilt + rng.normal(0, 4, (128, 128)), 0, 255)
            mask = disc((128, 128), (rng.integers(45, 83), rng.integers(45, 83)), 7)
            sources.append(Source(f"g{k}", "good", f"g{k}", image.astype(np.uint8)[:, :, None]))
            spoilt = np.where(mask, 60, image).astype(np.uint8)[:, :, None]
            sources.append(Source(f"d{k}", "spot", f"d{k}", spoilt, mask))
        generator = fit_composition(sources, good="good", control=False).generator
        near = [at_border(generator.arrange(seed, 0).placed(), 0.03) for seed in range(40)]
        assert np.mean(near) <= 0.1

    def test_equal_places_are_all_taken(self) -> None:
        """On open ground nothing is better than anything else: then it is anywhere, not in the first row."""
        flat = np.zeros((96, 96, 1), np.uint8)
        mask = disc((96, 96), (48, 48), 3)
        spoilt = np.where(mask[:, :, None], 255, flat).astype(np.uint8)
        piece = cut(defect_of(spoilt, mask, HARD), HARD, np.random.default_rng(0), shaped=True)
        tops = [
            in_context(piece, Background("b", "b", flat), HARD, np.random.default_rng(seed)).where for seed in range(60)
        ]
        assert np.std(tops, axis=0).min() > 12

    def test_a_part_that_was_cut_has_no_border(self) -> None:
        image, mask = scene(2), disc((90, 120), (45, 60), 7)
        piece = cut(defect_of(image, mask, STILL), STILL, np.random.default_rng(0), shaped=True)
        many = replace(STILL, candidates=25)
        for seed in range(10):
            part = Background("b", "b", scene(50 + seed), cut=True)
            placed = in_context(piece, part, many, np.random.default_rng(seed))
            assert placed.piece.mask.shape == piece.mask.shape  # all of the window lies inside

    @pytest.mark.parametrize("factor", [2, 7, 22, 44])
    def test_a_square_that_is_half_outside_is_outside(self, factor: int) -> None:
        window, outside = np.zeros((2 * factor, 2 * factor), np.float32), np.zeros((2 * factor, 2 * factor), bool)
        mask = np.zeros_like(outside)
        mask[-1, -1] = outside[:, : factor // 2] = True
        if factor % 2:
            outside[: factor // 2, factor // 2] = outside[factor : factor + factor // 2, factor // 2] = True
            outside[[factor // 2, factor + factor // 2], factor // 2] = True
        found = context.template(window, mask, outside, factor, factor, hard=False)
        np.testing.assert_array_equal(found.outside, [[1, 0], [1, 0]])

    def test_nothing_fits_where_a_defect_is_too_large(self) -> None:
        image, mask = scene(), disc((90, 120), (45, 60), 40)
        piece = cut(defect_of(image, mask, STILL), STILL, np.random.default_rng(0), shaped=True)
        assert in_context(piece, Background("b", "b", scene(5, (30, 30))), STILL, np.random.default_rng(0)) is None


class TestShapes:
    def test_no_change_asked_for_is_none(self) -> None:
        image, mask = scene(), disc((90, 120), (45, 60), 9)
        options = {"scale": (1.0, 1.0), "rotate": 0.0, "bend": 0.0, "aspect": 0.0}
        same, masks = warp(image, (mask, ~mask), np.random.default_rng(0), **options)
        assert (same == image).all()
        assert (masks[0] == mask).all()
        assert (masks[1] == ~mask).all()

    @pytest.mark.parametrize("channels", [1, 3, 7])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_pixels_and_mask_move_together(self, channels: int, dtype: str) -> None:
        mask = disc((80, 80), (38, 44), 14)
        image = np.repeat(mask[:, :, None] * np.array(200, dtype), channels, axis=2)
        areas = []
        for seed in range(20):
            bent, (own, _) = warp(
                image, (mask, mask), np.random.default_rng(seed), scale=(0.7, 1.4), aspect=0.1, rotate=20.0, bend=0.06
            )
            assert bent.dtype == image.dtype
            assert bent.shape == (*own.shape, channels)
            assert ((bent[:, :, -1] >= 100) == own).mean() > 0.995
            areas.append(own.sum() / mask.sum())
        assert min(areas) < 0.7 < 1.4 < max(areas)

    def test_a_thin_line_that_would_break_stays(self) -> None:
        mask = np.zeros((60, 60), bool)
        mask[30, 10:50] = True
        image = np.where(mask, 255, 0).astype(np.uint8)[:, :, None]
        for seed in range(30):
            _, (own, _) = warp(
                image, (mask, mask), np.random.default_rng(seed), scale=(0.7, 1.4), aspect=0.1, rotate=8.0, bend=0.06
            )
            assert own.sum() >= 15

    def test_sizes_stay_within_those_of_the_class(self) -> None:
        alike = [disc((60, 60), (30, 30), 8)] * 5
        assert from_masks(alike).scale == (0.9, 1.1)
        apart = [disc((60, 60), (30, 30), radius) for radius in (2, 8, 8, 25)]
        assert from_masks(apart).scale == Settings().scale

    def test_turns_are_quarters_of_everything(self) -> None:
        rng = np.random.default_rng(0)
        piece = Piece(rng.integers(0, 9, (4, 6, 1)), rng.random((4, 6)) < 0.5, rng.random((4, 6)) < 0.5)
        turned = piece.turned(True, 1)
        assert (turned.image[:, :, 0] == np.rot90(piece.image[:, ::-1, 0])).all()
        assert (turned.outside == np.rot90(piece.outside[:, ::-1])).all()


def composition(kind: str, own, place: str) -> Composition:
    sources = [Source(f"d{k}", kind, f"d{k}", image, mask) for k, (image, mask) in enumerate(own)]
    sources += [Source(f"g{k}", "good", f"g{k}", board(5000 + k)) for k in range(60)]
    return fit_composition(sources, good="good", settings={kind: replace(HARD, place=place)}, control=False).generator


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_of_a_board_goes_where_its_class_lives(kind: str) -> None:
    """Spurs and bites on an edge, holes inside a trace: measured on the boards under the composites."""
    shares = {}
    for place in ("near", "context"):
        generator = composition(kind, defects(kind, 8, 0), place)
        right = []
        for seed in range(60):
            plan = generator.arrange(seed, 0)
            ground, mask = plan.ground.image[:, :, 0] > 0, plan.placed()
            near = 3 if kind == "hole" else 5
            around = (cv2.dilate(mask.astype(np.uint8), np.ones((near, near))) > 0) & ~mask
            light = float(ground[around].mean())
            right.append(light == 1 if kind == "hole" else 0.15 < light < 0.85)
        shares[place] = float(np.mean(right))
    assert shares["context"] >= 0.9
    assert shares["context"] >= shares["near"] + 0.2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_right_place_is_worth_a_twentieth_of_average_precision() -> None:
    """Eight real defects of a class, against boards without one and with another kind: 60 composites in their places
    against 60 at random places, on the features that the trial uses, mean over classes and draws."""
    from sklearn.metrics import average_precision_score

    from visynth.metrics.bank import FeatureBank
    from visynth.metrics.extractors import extractor
    from visynth.verdict.frozen import FrozenLearner
    from visynth.verdict.learners import Items

    bank = FeatureBank(extractor(), resolutions=(160,))
    tested = {kind: bank.add([image for image, _ in defects(kind, 80, 900 + k)]) for k, kind in enumerate(KINDS)}
    others = {kind: bank.add([image for image, _ in defects(kind, 30, 300 + k)]) for k, kind in enumerate(KINDS)}
    good, free = bank.add([board(5000 + k) for k in range(80)]), bank.add([board(7000 + k) for k in range(80)])

    def score(kind: str, real: np.ndarray, made: np.ndarray) -> float:
        rest = np.concatenate([good, *(others[other] for other in KINDS if other != kind)])
        rows = np.concatenate([real, made, rest])
        positive = np.arange(len(rows)) < len(real) + len(made)
        share = np.repeat([0.25 / len(real), 0.25 / len(made), 0.5 / len(rest)], [len(real), len(made), len(rest)])
        items = Items(rows, positive, share * len(rows), [frozenset({str(r)}) for r in rows], np.ones(len(rows), bool))
        test = np.concatenate([tested[kind], free, *(tested[other] for other in KINDS if other != kind)])
        learner = FrozenLearner(penalties=(0.1,))
        tables = {key: table for key, table in bank.tables().items() if key[1] != "mean"}
        outcome = learner.fit(tables, items, test, _two_folds(rows), 0)
        return float(average_precision_score(np.arange(len(test)) < len(tested[kind]), outcome.scores))

    def _two_folds(rows: np.ndarray) -> list[frozenset[str]]:
        return [frozenset(str(row) for row in rows[k::2]) for k in range(2)]

    gains = []
    for number, kind in enumerate(KINDS):
        for draw in range(2):
            own = defects(kind, 8, 10 * draw + number)
            real = bank.add([image for image, _ in own])
            made = {}
            for place in ("near", "context"):
                samples = composition(kind, own, place).sample(list(range(60)), [0] * 60)
                made[place] = bank.add([image.permute(1, 2, 0).numpy() for image in samples.images])
            gains.append(score(kind, real, made["context"]) - score(kind, real, made["near"]))
    assert np.mean(gains) >= 0.05, gains
