"""Composition: closed forms of the blends, exact masks, settings, what is left out and why."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from visynth.core.errors import DataError, UsageError
from visynth.core.pictures import box
from visynth.data.masks import mask_problem
from visynth.generators import blend, noise
from visynth.generators.base import load_generator
from visynth.generators.compose_fit import Source, fit_composition, guess_good
from visynth.generators.compose_settings import Settings
from visynth.generators.placement import foreground, place


def disc(shape=(40, 40), centre=(20, 20), radius=6) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


class TestBlend:
    def test_ring_matching_brings_mean_and_deviation(self) -> None:
        rng = np.random.default_rng(0)
        patch, target = (
            rng.normal(50, 3, (40, 40, 2)).astype(np.float32),
            rng.normal(120, 5, (40, 40, 2)).astype(np.float32),
        )
        around = blend.ring(disc(), 8)
        matched = blend.match_ring(patch, around, target, around)
        np.testing.assert_allclose(matched[around].mean(0), target[around].mean(0), rtol=1e-4)
        np.testing.assert_allclose(matched[around].std(0), target[around].std(0), rtol=1e-3)

    def test_gain_is_limited(self) -> None:
        patch = np.zeros((20, 20, 1), np.float32)
        target = np.random.default_rng(0).normal(0, 50, (20, 20, 1)).astype(np.float32)
        patch[::2] = 1.0
        around = np.ones((20, 20), bool)
        matched = blend.match_ring(patch, around, target, around)
        assert matched.std() == pytest.approx(2.0 * patch.std(), rel=1e-3)

    def test_feather_is_one_inside_and_untouched_outside(self) -> None:
        mask = disc()
        out = blend.feather(np.full((40, 40, 1), 9, np.float32), np.zeros((40, 40, 1), np.float32), mask, 4)
        assert (out[mask] == 9).all()
        assert (out[~blend.grow(mask, 4)] == 0).all()
        assert 0 < out[20, 28, 0] < 9

    def test_poisson_of_a_shifted_copy_is_the_picture_itself(self) -> None:
        target = np.random.default_rng(1).normal(100, 20, (40, 40, 3)).astype(np.float32)
        for mixed in (False, True):
            np.testing.assert_allclose(blend.poisson(target + 55, target, disc(), mixed=mixed), target, atol=1e-3)

    def test_poisson_of_a_flat_patch_is_harmonic(self) -> None:
        # Border values x: the harmonic function inside is x itself.
        target = np.tile(np.arange(40, dtype=np.float32), (40, 1))[:, :, None]
        out = blend.poisson(np.zeros_like(target), target, disc())
        np.testing.assert_allclose(out, target, atol=1e-3)

    def test_poisson_satisfies_its_equation(self) -> None:
        rng = np.random.default_rng(2)
        patch, target = (
            rng.normal(0, 1, (30, 30, 1)).astype(np.float32),
            rng.normal(0, 1, (30, 30, 1)).astype(np.float32),
        )
        mask = disc((30, 30), (15, 15), 7)
        out = blend.poisson(patch, target, mask).astype(np.float64)[:, :, 0]

        def laplace(a: np.ndarray) -> np.ndarray:
            return 4 * a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:]

        inside = mask[1:-1, 1:-1]
        np.testing.assert_allclose(laplace(out)[inside], laplace(patch[:, :, 0].astype(np.float64))[inside], atol=1e-4)
        assert (out[~mask] == target[:, :, 0][~mask]).all()

    def test_mixed_gradients_keep_a_strong_edge_of_the_target(self) -> None:
        target = np.zeros((20, 20, 1), np.float32)
        target[:, 10:] = 100
        mask = disc((20, 20), (10, 10), 5)
        flat = np.zeros_like(target)
        edges = [np.abs(np.diff(blend.poisson(flat, target, mask, mixed=m)[10, :, 0])).max() for m in (False, True)]
        assert edges[0] < 50 < edges[1]

    def test_poisson_at_the_border_of_the_picture(self) -> None:
        target = np.random.default_rng(1).normal(100, 20, (20, 20, 1)).astype(np.float32)
        mask = np.zeros((20, 20), bool)
        mask[:6, :6] = True
        np.testing.assert_allclose(blend.poisson(target + 9, target, mask), target, atol=1e-3)


class TestNoise:
    def test_perlin_is_zero_on_its_lattice_and_bounded(self) -> None:
        values = noise.perlin((64, 64), (4, 4), np.random.default_rng(0))
        np.testing.assert_allclose(values[::16, ::16], 0, atol=1e-6)
        assert 0.2 < np.abs(values).max() <= 1.0

    def test_masks_are_one_part_and_of_the_asked_area(self) -> None:
        for seed in range(30):
            mask = noise.perlin_mask((64, 48), np.random.default_rng(seed), max_area=0.2)
            assert 0 < mask.mean() <= 0.2

    def test_nsa_sides_follow_the_paper(self) -> None:
        rng = np.random.default_rng(0)
        sides = np.array([noise.nsa_side(1000, rng) for _ in range(4000)])
        assert abs(sides.mean() - 1000 * (2 * 0.05 + 0.03)) < 6
        assert sides.max() <= 400


class TestPlacement:
    def test_all_of_it_stands_on_the_allowed_ground(self) -> None:
        allowed = np.zeros((60, 60), bool)
        allowed[20:50, 20:50] = True
        placed = [
            place(disc((13, 13), (6, 6), 6), (0.5, 0.5), allowed, 40, np.random.default_rng(s)) for s in range(50)
        ]
        assert sum(where is not None for where in placed) > 45
        for where in filter(None, placed):
            patch = allowed[where[0] : where[0] + 13, where[1] : where[1] + 13]
            assert (patch & disc((13, 13), (6, 6), 6)).sum() >= 0.95 * disc((13, 13), (6, 6), 6).sum()

    def test_it_stays_within_its_shift(self) -> None:
        allowed = np.ones((100, 100), bool)
        for seed in range(50):
            top, left = place(np.ones((10, 10), bool), (0.3, 0.7), allowed, 5, np.random.default_rng(seed))
            assert abs(top - 25) <= 5
            assert abs(left - 65) <= 5

    def test_no_place(self) -> None:
        assert place(np.ones((10, 10), bool), (0.5, 0.5), np.zeros((40, 40), bool), 5, np.random.default_rng(0)) is None
        assert place(np.ones((50, 5), bool), (0.5, 0.5), np.ones((40, 40), bool), 5, np.random.default_rng(0)) is None

    def test_foreground_of_textures_is_everything(self, picture) -> None:
        assert foreground(picture(40, 40, 3)).all()
        assert foreground(np.full((20, 20, 1), 7, np.uint8)).all()


class TestSettings:
    @pytest.mark.parametrize(
        "wrong", [{"method": "magic"}, {"blend": "glue"}, {"shift": -1}, {"scale": [2, 1]}, {"colour": 1}]
    )
    def test_wrong_settings(self, wrong) -> None:
        with pytest.raises(UsageError, match="composition settings"):
            Settings.from_json(wrong)

    def test_json_round_trip(self) -> None:
        assert Settings.from_json(Settings(shift=3).to_json()) == Settings(shift=3)


def sources(channels: int = 1, dtype: str = "uint8", masks: bool = True, count: int = 4) -> list[Source]:
    rng = np.random.default_rng(0)
    scale = 1 if dtype == "uint8" else 200
    made = [
        Source(f"good/{i}", "good", f"g{i}", (rng.normal(100, 8, (48, 56, channels)) * scale).astype(dtype))
        for i in range(count)
    ]
    for i in range(count):
        image, mask = rng.normal(100, 8, (48, 56, channels)), disc((48, 56), (20 + i, 25), 5)
        image[mask] += 60
        made.append(Source(f"hole/{i}", "hole", f"h{i}", (image * scale).astype(dtype), mask if masks else None))
    return made


class TestComposition:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    @pytest.mark.parametrize("channels", range(1, 9))
    def test_any_depth_and_channels_from_fit_to_load(self, channels: int, dtype: str, tmp_path) -> None:
        fitted = fit_composition(sources(channels, dtype), good="good")
        loaded = load_generator(fitted.generator.save(tmp_path / "g"))
        samples = loaded.sample([1, 2], [0, 1])
        assert samples.images.shape == (2, channels, 48, 56)
        assert str(samples.images.dtype) == f"torch.{dtype}"
        assert int(samples.images.to(int).max()) > (150 if dtype == "uint8" else 255)

    def test_pixels_beyond_mask_and_feather_are_the_backgrounds_own(self) -> None:
        given = sources()
        by_name = {s.name: s for s in given}
        generator = fit_composition(given, good="good").generator
        samples = generator.sample(list(range(40)), [0] * 40)
        for i in range(40):
            background = by_name[samples.parents[i][0]]
            far = ~blend.grow(samples.masks[i].numpy(), round(Settings().feather) + 1)
            assert background.label == "good"
            assert (samples.images[i, 0].numpy()[far] == background.image[:, :, 0][far]).all()

    def test_mask_shows_what_was_pasted_and_the_box_holds_it(self) -> None:
        generator = fit_composition(sources(), good="good").generator
        samples = generator.sample(list(range(20)), [0] * 20)
        for i in range(20):
            mask, image = samples.masks[i].numpy(), samples.images[i, 0].numpy().astype(float)
            assert image[mask].mean() > image[~blend.grow(mask, 8)].mean() + 30
            assert samples.boxes[i][0].tolist() == box(mask)

    def test_controls_have_seams_and_no_defect(self) -> None:
        given = sources()
        by_name = {s.name: s for s in given}
        generator = fit_composition(given, good="good").generator
        assert generator.classes == ("hole", "good")
        samples = generator.sample(list(range(20)), [1] * 20)
        changed = [
            bool((samples.images[i, 0].numpy() != by_name[samples.parents[i][0]].image[:, :, 0]).any())
            for i in range(20)
        ]
        assert sum(changed) > 12  # unless both parents are one image
        assert not samples.masks.any()
        assert all(len(b) == 0 for b in samples.boxes)
        assert all(by_name[p].label == "good" for parents in samples.parents for p in parents)

    @pytest.mark.parametrize("method", ["nsa", "perlin"])
    def test_without_masks_regions_of_the_class_are_cut(self, method: str) -> None:
        generator = fit_composition(sources(masks=False), good="good", without_masks=method).generator
        samples = generator.sample(list(range(10)), [0] * 10)
        assert samples.masks.flatten(1).any(1).all()
        assert (samples.masks.float().mean((1, 2)) < 0.3).all()
        controls = generator.sample(list(range(10)), [1] * 10)
        assert not controls.masks.any()

    def test_without_masks_a_class_is_left_out_with_the_reason(self) -> None:
        with pytest.raises(DataError, match="hole: it has no masks"):
            fit_composition(sources(masks=False), good="good")

    def test_bad_masks_are_left_out_and_told(self) -> None:
        given = sources()
        given[5] = Source("hole/1", "hole", "h1", given[5].image, np.zeros((48, 56), bool))
        fitted = fit_composition(given, good="good")
        assert fitted.bad_masks == {"hole/1": "the mask is empty"}
        assert "hole/1" not in {d.name for d in fitted.generator.defects}

    def test_groups_count_alike_whatever_their_size(self) -> None:
        given = sources(count=4)
        given += [Source(f"hole/again{i}", "hole", "h0", given[4].image, given[4].mask) for i in range(30)]
        generator = fit_composition(given, good="good").generator
        samples = generator.sample(list(range(400)), [0] * 400)
        group_of = {s.name: s.group for s in given}
        share = np.mean([group_of[p[1]] == "h0" for p in samples.parents])
        assert abs(share - 0.25) < 0.07

    @pytest.mark.parametrize(
        ("change", "error", "told"),
        [
            ({"good": "fine"}, UsageError, "'fine' is not among"),
            ({"classes": ["rust"]}, UsageError, "'rust' have no training images"),
            ({"without_masks": "glue"}, UsageError, "must be 'nsa', 'perlin' or None"),
        ],
    )
    def test_wrong_arguments(self, change, error, told) -> None:
        with pytest.raises(error, match=told):
            fit_composition(sources(), **{"good": "good", **change})

    def test_mixed_modes_are_refused_with_their_counts(self) -> None:
        given = [*sources(1), *[Source(f"x/{i}", "good", f"x{i}", np.zeros((48, 56, 3), np.uint8)) for i in range(2)]]
        with pytest.raises(DataError, match="2 with 3 channel"):
            fit_composition(given, good="good")

    def test_defects_larger_than_the_backgrounds_are_an_error(self) -> None:
        given = [s for s in sources() if s.label == "hole"] + [
            Source("good/0", "good", "g", np.full((6, 6, 1), 100, np.uint8))
        ]
        generator = fit_composition(given, good="good").generator
        with pytest.raises(DataError, match="there is no place for a hole defect"):
            generator.sample([1], [0])

    def test_an_image_exists_wherever_any_pair_fits(self) -> None:
        given = [s for s in sources() if s.label == "hole"]
        given += [Source(f"good/small{i}", "good", f"s{i}", np.full((6, 6, 1), 100, np.uint8)) for i in range(60)]
        given += [Source("good/large", "good", "large", np.full((48, 56, 1), 100, np.uint8))]
        generator = fit_composition(given, good="good").generator
        samples = generator.sample(list(range(60)), [0] * 60)
        assert {parents[0] for parents in samples.parents} == {"good/large"}

    def test_sizes_differ_as_the_backgrounds_do(self) -> None:
        large = np.random.default_rng(9).normal(100, 8, (64, 50, 1)).astype(np.uint8)
        given = [*sources(), Source("good/large", "good", "gl", large)]
        generator = fit_composition(given, good="good").generator
        assert generator.spec.size == (64, 56)
        samples = generator.sample(list(range(40)), [0] * 40)
        assert {tuple(s) for s in samples.sizes.tolist()} == {(48, 56), (64, 50)}


def test_the_good_class_is_guessed_only_where_it_is_plain() -> None:
    assert guess_good(["a", "normal"], {}, {"a": 1, "normal": 9}) == "normal"
    assert guess_good(["a", "b"], {"a": 4}, {"a": 4, "b": 9}) == "b"
    assert guess_good(["a", "b", "c"], {"a": 4}, {"a": 4, "b": 9, "c": 20}) is None
    assert guess_good(["a", "b"], {"a": 4}, {"a": 40, "b": 9}) is None
    assert guess_good(["a", "b"], {}, {"a": 4, "b": 9}) is None


# -- masks are judged by their outlines; images of few values are pasted hard -----------------------------------------------


def grain(seed: int, side: int = 96) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 12, (side, side)).astype(np.float32)
    return np.clip(110 + cv2.GaussianBlur(noise, (0, 0), 1) * 2, 0, 255).astype(np.uint8)


def test_a_faint_defect_is_seen_by_its_outline_and_bare_grain_is_not() -> None:
    accepted = {"defect": 0, "nothing": 0}
    for seed in range(40):
        image, mask = grain(seed), disc((96, 96), (40 + seed % 9, 45), 9)
        faint = np.where(mask, np.clip(image.astype(int) + 14, 0, 255), image).astype(np.uint8)  # about one deviation
        accepted["defect"] += mask_problem(faint[:, :, None], mask) is None
        accepted["nothing"] += mask_problem(image[:, :, None], mask) is None
    assert accepted["defect"] == 40
    assert accepted["nothing"] <= 10


def board(seed: int) -> np.ndarray:
    """A printed board in black and white: traces of three pixels."""
    image = np.zeros((64, 64), np.uint8)
    for row in range(6 + seed % 3, 64, 10):
        image[row : row + 3] = 255
    return image[:, :, None]


def test_line_art_keeps_its_values_and_every_defect_changes_its_background() -> None:
    sources = [Source(f"good{k}", "good", f"g{k}", board(k)) for k in range(6)]
    for k in range(6):  # cut traces: black where a trace was
        image, mask = board(k), np.zeros((64, 64), bool)
        row = 6 + k % 3 + 10 * (k % 4)
        mask[row - 1 : row + 4, 20 + 3 * k : 26 + 3 * k] = True
        image[mask] = 0
        sources.append(Source(f"cut{k}", "cut", f"c{k}", image, mask))
    fitted = fit_composition(sources, good="good")
    assert not fitted.bad_masks
    assert fitted.generator.settings[0].blend == "hard"
    samples = fitted.generator.sample(range(200), [0] * 200)
    assert set(np.unique(samples.images.numpy())) == {0, 255}
    grounds = {b.name: b.image for b in fitted.generator.backgrounds}
    for k in range(200):
        background = grounds[samples.parents[k][0]]
        changed = samples.crop(k).permute(1, 2, 0).numpy() != background
        assert changed[samples.masks[k].numpy()].sum() >= 6
        assert not changed[~samples.masks[k].numpy()].any()


def test_a_defect_that_can_never_be_seen_is_told() -> None:
    mask = disc((64, 64), (30, 30), 5)
    black = np.zeros((64, 64, 1), np.uint8)
    sources = [Source("good", "good", "g", black), Source("bad", "bad", "b", black, mask)]
    fitted = fit_composition(sources, good="good")
    with pytest.raises(DataError, match="no bad could be seen in 20 places"):
        fitted.generator.sample([1], [0])


def test_soft_images_still_get_soft_edges() -> None:
    mask = disc((96, 96), (40, 40), 8)
    dark = np.where(mask, 30, grain(1)).astype(np.uint8)[:, :, None]
    sources = [Source("g", "good", "g", grain(2)[:, :, None]), Source("b", "bad", "b", dark, mask)]
    assert fit_composition(sources, good="good").generator.settings[0].blend == "feather"


def test_one_pixel_defects_survive_hard_scaling() -> None:
    mask = np.zeros((64, 64), bool)
    mask[30, 30] = True
    spot = board(1).copy()
    spot[30, 30] = 255 - spot[30, 30]
    sources = [Source("g", "good", "g", board(0)), Source("b", "bad", "b", spot, mask)]
    made = fit_composition(sources, good="good", settings={"bad": Settings(blend="hard", feather=0.0)})
    samples = made.generator.sample(range(40), [0] * 40)
    assert samples.masks.flatten(1).any(1).all()


def test_line_art_without_masks_is_hard_too() -> None:
    sources = [Source(f"g{k}", "good", f"g{k}", board(k)) for k in range(3)]
    sources += [Source(f"b{k}", "bad", f"b{k}", np.ascontiguousarray(board(k).transpose(1, 0, 2))) for k in range(3)]
    made = fit_composition(sources, good="good", without_masks="nsa")
    assert set(np.unique(made.generator.sample(range(20), [0] * 20).images.numpy())) <= {0, 255}
