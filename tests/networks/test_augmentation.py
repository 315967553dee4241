"""Augmentation of the discriminator: closed forms of every transformation, and derivatives of derivatives through all
of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from visynth.core.errors import UsageError
from visynth.lightning_modules.adversarial import gradient_penalty
from visynth.networks import ada
from visynth.networks.ada import BANK, KINDS, SYM2, SYM6, adjusted, augment, check_kinds, plan
from visynth.networks.diffaugment import diffaugment
from visynth.networks.gridsample import grid_sample


def smooth(count: int = 2, channels: int = 1, size: int = 32) -> torch.Tensor:
    """Images without high frequencies."""
    places = torch.linspace(0, 1, size, dtype=torch.float64)
    waves = [
        torch.sin(2 * np.pi * (a * places[:, None] + b * places + c))
        for a, b, c in [(1, 0, 0), (1, 1, 0.2), (0, 1, 0.7)]
    ]
    rows = [sum((n + k + 1) % 3 * wave for n, wave in enumerate(waves)) / 4 for k in range(count * channels)]
    return torch.stack(rows).reshape(count, channels, size, size)


def made(images, probability: float = 1.0, kinds=KINDS, seed: int = 0, **numbers):
    """Augmented by random numbers, or told ones: u3=0.2 is the third uniform, n0=1 the first normal."""
    rng = np.random.default_rng(seed)
    uniform, normal = rng.random((len(images), ada.UNIFORMS)), rng.standard_normal((len(images), ada.NORMALS))
    for name, value in numbers.items():
        (uniform if name[0] == "u" else normal)[:, int(name[1:])] = value
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape)))
    return augment(images, plan(uniform, normal, probability, kinds, images.shape[-1]), noise)


class TestWavelets:
    @pytest.mark.parametrize(("taps", "moments"), [(SYM6, 6), (SYM2, 2)])
    def test_they_are_orthogonal_with_vanishing_moments(self, taps, moments: int) -> None:
        taps = np.array(taps)
        places = np.arange(len(taps))
        assert taps.sum() == pytest.approx(2**0.5)
        for shift in range(len(taps) // 2):
            assert (taps[: len(taps) - 2 * shift] * taps[2 * shift :]).sum() == pytest.approx(
                float(shift == 0), abs=1e-10
            )
        for moment in range(moments):
            assert ((-1.0) ** places * places**moment * taps).sum() == pytest.approx(0, abs=1e-7)

    def test_the_bands_sum_to_the_picture(self) -> None:
        pulse = np.zeros(BANK.shape[1])
        pulse[len(pulse) // 2] = 1
        np.testing.assert_allclose(BANK.sum(axis=0), pulse, atol=1e-12)
        # From low to high: where each band passes at least half, on a frequency axis of 0 to pi.
        passes = np.abs(np.fft.rfft(BANK, 512, axis=1))
        assert [int(np.argmax(band)) for band in passes[:1]] == [0]
        assert all(a.argmax() < b.argmax() for a, b in itertools.pairwise(passes))


class TestTransformations:
    def test_without_probability_the_picture_itself_comes_back(self) -> None:
        images = smooth()
        assert made(images, 0.0) is images

    def test_rows_that_nothing_happens_to_stay_bit_for_bit(self) -> None:
        images = smooth(64)
        found = made(images, 0.1, check_kinds(["geometry"]))
        same = (found == images).flatten(1).all(1)
        # Nothing happens with probability 0.9^4 but for the two rotations of one.
        assert 25 < int(same.sum()) < 58
        assert not same.all()

    @pytest.mark.parametrize(
        ("kind", "numbers", "told"),
        [
            ("xflip", {"u16": 0.2}, lambda x: x.flip(3)),
            ("xflip", {"u16": 0.8}, lambda x: x),
            ("rotate90", {"u17": 0.3}, lambda x: x.rot90(-1, (2, 3))),
            ("rotate90", {"u17": 0.6}, lambda x: x.rot90(2, (2, 3))),
        ],
    )
    def test_blitting_moves_values(self, kind: str, numbers, told) -> None:
        images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
        assert torch.equal(made(images, kinds=[kind], **numbers), told(images))

    def test_shifts_are_whole_pixels_and_reflect(self) -> None:
        images = torch.rand(2, 1, 32, 32, dtype=torch.float64)
        found = made(images, kinds=["shift"], u18=1.0 - 1e-12, u19=0.5)  # four pixels to the right
        assert torch.equal(found[..., 4:], images[..., :-4])
        assert torch.equal(found[..., :4], images[..., :4].flip(3))

    def test_geometry_of_smooth_pictures(self) -> None:
        x = smooth()
        quarter = made(x, kinds=["rotate"], u20=0.75, u21=0.5)  # the first of two rotations by pi / 2
        assert (quarter - x.rot90(-1, (2, 3))).abs().max() < 0.02
        larger = made(x, kinds=["scale"], n0=5.0)  # twice
        told = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)[..., 16:48, 16:48]
        assert (larger - told)[..., 2:-2, 2:-2].abs().max() < 0.02
        moved = made(x, kinds=["move"], n2=1.0, n3=0.0)  # an eighth of the width
        assert (moved[..., 6:-2] - x[..., 2:-6]).abs().max() < 0.01
        wide = made(x, kinds=["stretch"], n1=5.0)
        told = F.interpolate(x, size=(16, 64), mode="bicubic", align_corners=False)[..., 16:48]
        assert (wide[..., 8:24, 2:-2] - told[..., 2:-2]).abs().max() < 0.05

    def test_colours_in_closed_form(self) -> None:
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        grey = x.mean(1, keepdim=True)
        assert torch.allclose(made(x, kinds=["brightness"], n4=1.0), x + 0.2)
        assert torch.allclose(made(x, kinds=["contrast"], n5=2.0), x * 2)
        assert torch.allclose(made(x, kinds=["lumaflip"], u24=0.9), x - 2 * grey)
        assert torch.allclose(made(x, kinds=["saturation"], n6=1.0), grey + 2 * (x - grey))
        assert torch.allclose(
            made(x, kinds=["hue"], u25=0.5 + 1 / 3), x[:, [2, 0, 1]], atol=1e-9
        )  # by a third of a turn

    def test_grey_pictures_are_rgb_with_equal_channels_and_alpha_stays(self) -> None:
        x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
        rgb = made(x.expand(-1, 3, -1, -1), kinds=["colour"])
        assert torch.allclose(made(x, kinds=["colour"]).expand(-1, 3, -1, -1), rgb)
        both = torch.cat([x, torch.rand_like(x)], 1)
        found = made(both, kinds=["colour"])
        assert torch.allclose(found[:, :1], rgb[:, :1])
        assert torch.equal(found[:, 1:], both[:, 1:])

    def test_filters_keep_expected_power(self) -> None:
        uniform, normal = np.zeros((4000, 30)), np.random.default_rng(0).standard_normal((4000, 12))
        gains = plan(uniform, normal, 1.0, ["filter"], 32).gains
        np.testing.assert_allclose((gains**2 @ ada.POWER)[:5] > 0, True)
        one = plan(uniform[:1], np.eye(1, 12, 7) * 2, 1.0, ["filter"], 32).gains  # the lowest band four times
        np.testing.assert_allclose(one**2 @ ada.POWER, 1, atol=1e-12)
        np.testing.assert_allclose(one[0, 0] / one[0, 1], 4)
        constant = torch.full((1, 1, 32, 32), 0.5, dtype=torch.float64)
        assert torch.allclose(
            ada.amplify(constant, torch.tensor([[0.3, 9.0, 9.0, 9.0]], dtype=torch.float64)), constant * 0.09
        )

    def test_corruption(self) -> None:
        x = torch.zeros(500, 1, 8, 8, dtype=torch.float64)
        assert float(made(x, kinds=["noise"], n11=-2.0).std()) == pytest.approx(0.2, rel=0.02)
        hole = made(x + 1, kinds=["cutout"], u22=0.5, u23=0.25)
        assert torch.equal(hole[0, 0] == 0, F.pad(torch.ones(4, 4), (2, 2, 0, 4)) == 1)

    def test_every_kind_happens_with_its_probability(self) -> None:
        rng = np.random.default_rng(1)
        uniform, normal = rng.random((4000, 30)), rng.standard_normal((4000, 12))
        for kind in ("scale", "rotate", "brightness", "hue", "noise", "cutout"):
            how = plan(uniform, normal, 0.3, [kind], 32)
            changed = (how.geometry != np.eye(2, 3)).any((1, 2)) | (how.colour != np.eye(3, 4)).any((1, 2))
            changed |= (how.sigma > 0) | (how.hole[:, 0] > 0)
            assert changed.mean() == pytest.approx(0.3, abs=0.03), kind

    def test_unknown_kinds_and_probabilities(self) -> None:
        assert check_kinds(["corruption", "xflip"]) == ("xflip", "noise", "cutout")
        with pytest.raises(UsageError, match="augmentations 'tilt' are unknown; there are the groups 'blit'"):
            check_kinds(["tilt"])
        with pytest.raises(UsageError, match=r"must be in \[0, 1\], but got 1.5"):
            plan(np.zeros((1, 30)), np.zeros((1, 12)), 1.5, KINDS, 8)


class TestDerivatives:
    @pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
    def test_the_sampler(self, padding: str) -> None:
        x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
        grid = torch.rand(1, 4, 3, 2, dtype=torch.float64) * 3 - 1.5

        def sample(y):
            return grid_sample(y, grid, padding)

        assert torch.equal(sample(x), F.grid_sample(x, grid, "bilinear", padding, align_corners=False))
        assert torch.autograd.gradcheck(sample, (x,))
        assert torch.autograd.gradgradcheck(sample, (x,))

    @pytest.mark.parametrize("group", ada.GROUPS)
    def test_each_group(self, group: str) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

        def change(y):
            return made(y, kinds=check_kinds([group]))

        assert torch.autograd.gradcheck(change, (x,))
        assert torch.autograd.gradgradcheck(change, (x,))

    def test_r1_through_the_whole_pipeline(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        weight = torch.randn(1, 64, dtype=torch.float64, requires_grad=True)

        def penalty(w):
            images = x.clone().requires_grad_()
            seen = made(images, kinds=check_kinds(list(ada.GROUPS)))
            return gradient_penalty((torch.tanh(seen.flatten(1)) @ w.t())[:, 0], images).sum()

        assert float(penalty(weight).detach()) > 0
        assert torch.autograd.gradcheck(penalty, (weight,))

    def test_diffaugment(self) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        uniform = np.random.default_rng(0).random((2, 7))
        assert torch.autograd.gradgradcheck(lambda y: diffaugment(y, uniform), (x,))


class TestDiffAugment:
    def test_closed_forms(self) -> None:
        x = torch.rand(2, 3, 16, 16)
        middle = np.full((2, 7), 0.5)
        assert torch.allclose(diffaugment(x, middle, ["colour"]), x, atol=1e-6)
        assert torch.equal(diffaugment(x, middle, ["translation"]), x)
        right = middle.copy()
        right[:, 3:5] = [0.5, 0.99]  # two columns further
        assert torch.equal(diffaugment(x, right, ["translation"]), F.pad(x[..., 2:], (0, 2)))
        assert int((diffaugment(x, middle, ["cutout"]) == 0).sum()) == 2 * 3 * 64

    def test_strong_colours(self) -> None:
        x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
        told = np.full((1, 7), 0.5)
        told[0, 0] = 0.9
        assert torch.allclose(diffaugment(x, told, ["colour"]), x + 0.4)
        seen = diffaugment(x[:, :2], told, ["colour"])  # grey and alpha
        assert torch.allclose(seen, x[:, :2] + torch.tensor([0.4, 0.0])[:, None, None])


class TestControl:
    def test_steps_of_the_paper(self) -> None:
        assert adjusted(0.1, 0.7, 0.6, 128, 500) == pytest.approx(0.1 + 2.56e-4)
        assert adjusted(0.1, 0.5, 0.6, 128, 100) == pytest.approx(0.1 - 1.28e-3)

    def test_it_stays_where_augmentation_does_not_leak(self) -> None:
        assert adjusted(0.8, 1.0, 0.6, 1e6, 1) == 0.8
        assert adjusted(0.0, -1.0, 0.6, 1e6, 1) == 0.0
