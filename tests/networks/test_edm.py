"""EDM against closed forms: published constants, the loss of an untrained network, solver orders on Gaussian data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from visynth.core.errors import UsageError
from visynth.networks import augment, edm
from visynth.networks.ema import gamma_of, inner, posthoc, power_beta
from visynth.networks.unet import Denoiser, recipe

SIGMAS_18 = [
    *(80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817),
    *(0.585348, 0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002, 0),
]


def test_sampling_levels_are_the_papers() -> None:
    assert edm.karras_sigmas(18) == pytest.approx(SIGMAS_18, rel=1e-5)
    assert edm.karras_sigmas(8) == pytest.approx(
        [80, 34.9922, 13.6986, 4.63707, 1.28661, 0.267475, 0.0351867, 0.002, 0], rel=1e-5
    )


@pytest.mark.parametrize(
    ("sigma", "expected", "weight"),
    [
        (0.5, (0.5, 0.35355339, 1.4142136, -0.1732868), 8.0),
        (1.0, (0.2, 0.4472136, 0.89442719, 0.0), 5.0),
        (80.0, (3.9060974e-5, 0.49999023, 0.012499756, 1.0955067), 4.0001562),
    ],
)
def test_preconditioning_at_known_points(sigma: float, expected: tuple[float, ...], weight: float) -> None:
    level = torch.tensor(sigma, dtype=torch.float64)
    assert [float(c) for c in edm.precondition(level, 0.5)] == pytest.approx(expected, rel=1e-6)
    assert float(edm.edm_weight(level, 0.5)) == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("data", [0.1, 0.5, 0.75])
def test_the_weight_undoes_the_output_scale_at_every_level(data: float) -> None:
    sigma = torch.logspace(-4, 3, 50, dtype=torch.float64)
    _, out, _, _ = edm.precondition(sigma, data)
    assert torch.allclose(edm.edm_weight(sigma, data) * out**2, torch.ones_like(sigma))
    # min-SNR and EDM's weight agree up to the 1 that EDM adds, until the clamp.
    snr = (data / sigma) ** 2
    low = snr < 5
    assert torch.allclose(
        edm.min_snr_weight(sigma, data)[low] * data**2 + 1, (edm.edm_weight(sigma, data) * data**2)[low]
    )
    assert torch.allclose(edm.min_snr_weight(sigma, data)[~low] * data**2, torch.full_like(sigma[~low], 5.0))


def test_noise_levels_follow_the_datas_deviation() -> None:
    normal = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(edm.draw_sigma(normal, 0.1) * 5, edm.draw_sigma(normal, 0.5), rtol=1e-5)


@pytest.mark.parametrize("data", [0.15, 0.5])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 20.0])
def test_an_untrained_network_has_a_loss_of_one_at_every_level(data: float, sigma: float) -> None:
    from visynth.lightning_modules.losses import denoising

    network = Denoiser(1, 2, (8, 8), width=8, multipliers=(1, 1), blocks=1, sigma_data=data)
    numbers = torch.Generator().manual_seed(1)
    clean = data * torch.randn(400, 1, 8, 8, generator=numbers)
    noise = torch.randn(400, 1, 8, 8, generator=numbers)
    with torch.no_grad():
        loss = denoising(network, clean, noise, torch.full((400,), sigma), torch.zeros(400, dtype=torch.int64))
    assert loss.shape == (400,)
    assert float(loss.mean()) == pytest.approx(1.0, abs=0.03)


def gaussian(spread: float) -> edm.Denoise:
    """The ideal denoiser of data N(0, spread^2)."""
    return lambda x, sigma: x * spread**2 / (spread**2 + sigma**2)


def order_of(solve) -> float:
    """The slope of log error over log step between 32 and 128 levels, from sigma 5 to 0.5 on the probability flow."""
    spread, start, end = 0.5, 5.0, 0.5
    exact = math.sqrt((spread**2 + end**2) / (spread**2 + start**2))
    errors = []
    for steps in (32, 128):
        sigmas = list(edm.karras_sigmas(steps, end, start)[:-1])
        errors.append(abs(float(solve(gaussian(spread), torch.ones(1, dtype=torch.float64), sigmas)) - exact))
    return math.log(errors[0] / errors[1]) / math.log(4)


def test_heun_is_of_second_order() -> None:
    assert order_of(edm.heun) == pytest.approx(2.0, abs=0.15)


def test_the_order_test_tells_eulers_first_order() -> None:
    def euler(denoise, x, sigmas):
        for here, there in itertools.pairwise(sigmas):
            x = x + (there - here) * (x - denoise(x, here)) / here
        return x

    assert order_of(euler) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("data", [0.2, 0.5])
def test_dpm_solver_converges_to_the_exact_solution_with_second_order(data: float) -> None:
    low, high = edm.scaled(edm.SIGMA_MIN, data), edm.scaled(edm.SIGMA_MAX, data)
    start = torch.full((1, 1, 1, 1), high, dtype=torch.float64)
    errors = []
    for steps in (16, 64):
        found = edm.dpm_solver(gaussian(data), start, edm.karras_sigmas(steps, low, high), data)
        errors.append(abs(float(found) - high * data / math.sqrt(data**2 + high**2)))
    assert math.log(errors[0] / errors[1]) / math.log(4) > 1.6
    assert errors[1] < 5e-3 * data


def test_both_solvers_agree_in_the_limit() -> None:
    sigmas = edm.karras_sigmas(200)
    start = 80 * torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = edm.heun(gaussian(0.5), start, sigmas), edm.dpm_solver(gaussian(0.5), start, sigmas, 0.5)
    assert torch.allclose(first, second, atol=1e-3)


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional() -> None:
    conditional, unconditional = (lambda x, s: x + s), (lambda x, s: x - s)
    x = torch.ones(2)
    assert torch.equal(edm.guided(conditional, unconditional, 1.0)(x, 2.0), x + 2)
    assert torch.equal(edm.guided(conditional, unconditional, 0.0)(x, 2.0), x - 2)
    assert torch.equal(
        edm.guided(conditional, unconditional, 4.0, (2.0, 3.0))(x, 2.0), x + 2
    )  # the interval is open below


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.972199), (0.10, 6.937204), (0.15, 3.557869), (0.20, 1.826214)])
def test_widths_and_exponents_of_power_averages(std: float, gamma: float) -> None:
    assert gamma_of(std) == pytest.approx(gamma, abs=1e-5)


def test_power_averages_start_with_the_weights_and_keep_a_constant() -> None:
    gamma = gamma_of(0.10)
    assert power_beta(32, 32, gamma) == 0.0
    average = 5.0
    for time in range(1, 200):
        beta = power_beta(time, 1, gamma)
        average = beta * average + (1 - beta) * 5.0
    assert average == pytest.approx(5.0)


def test_the_update_rule_is_the_integral() -> None:
    gamma, average, steps = 3.0, 0.0, 4000
    for step in range(1, steps + 1):
        beta = power_beta(step / steps, 1 / steps, gamma)
        average = beta * average + (1 - beta) * (step / steps)
    assert average == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)  # the mean of s under p(s) = 4 s^3


def test_a_stored_average_is_reconstructed_as_itself() -> None:
    stored = [(t, g) for t in (1.0, 1.5, 2.0) for g in (gamma_of(0.05), gamma_of(0.10))]
    for place, (time, gamma) in enumerate(stored):
        assert posthoc(stored, time, gamma) == pytest.approx(np.eye(len(stored))[place], abs=1e-6)


def test_an_average_between_two_stored_ones_is_made_of_them_closely() -> None:
    times = np.geomspace(0.05, 1, 20)
    stored = [(t, gamma_of(s)) for t in times for s in (0.05, 0.10)]
    gamma = gamma_of(0.075)
    found = posthoc(stored, 1.0, gamma)
    gram = np.array([[inner(*a, *b) for b in stored] for a in stored])
    cross = np.array([inner(*a, 1.0, gamma) for a in stored])
    whole = inner(1.0, gamma, 1.0, gamma)
    residual = whole - 2 * found @ cross + found @ gram @ found
    assert residual / whole < 1e-2


@pytest.mark.parametrize(("size", "multipliers"), [((9, 8), (1, 2)), ((12, 12), (1, 2, 2, 2)), ((2, 2), (1,))])
def test_a_size_that_cannot_be_halved_is_refused_with_a_neighbour(size, multipliers) -> None:
    with pytest.raises(UsageError, match=r"must be multiples of .*Choose \d+ or \d+"):
        Denoiser(1, 2, size, width=8, multipliers=multipliers)


@pytest.mark.parametrize("channels", [0, 5])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match="1 to 4 channels"):
        Denoiser(channels, 2, (8, 8), width=8, multipliers=(1, 1))


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 4])
def test_every_size_from_8_to_128_builds(side: int, channels: int) -> None:
    network = Denoiser(channels, 3, (side, side), width=8, blocks=1, **recipe((side, side)))
    with torch.no_grad():
        out = network(torch.zeros(1, channels, side, side), torch.ones(1), torch.tensor([3]))
    assert out.shape == (1, channels, side, side)


class TestAugmentation:
    def parameters(self, count: int = 64, probability: float = 1.0, kinds=augment.KINDS):
        numbers = np.random.default_rng(0)
        return augment.parameters(
            numbers.random((count, augment.UNIFORMS)), numbers.normal(size=(count, augment.NORMALS)), probability, kinds
        )

    def test_turned_off_it_changes_nothing_to_the_bit(self) -> None:
        images = torch.rand(64, 2, 8, 8)
        theta, labels = self.parameters(probability=0.0)
        assert torch.equal(augment.warp(images, theta), images)
        assert not labels.any()

    def test_flips_are_exact_and_labelled(self) -> None:
        images = torch.rand(64, 1, 8, 8)
        theta, labels = self.parameters(kinds=("xflip",))
        flipped = labels[:, 0] == 1
        assert 16 < int(flipped.sum()) < 48
        moved = augment.warp(images, theta)
        assert torch.allclose(moved[flipped], images[flipped].flip(3), atol=1e-5)
        assert torch.equal(moved[~flipped], images[~flipped])
        assert not labels[:, 1:].any()

    def test_labels_are_zero_exactly_where_nothing_happened(self) -> None:
        theta, labels = self.parameters(count=500, probability=0.3)
        still = (theta == torch.eye(2, 3)).flatten(1).all(dim=1)
        assert torch.equal(still, (labels == 0).all(dim=1))
        assert 20 < int(still.sum()) < 480

    def test_a_translation_moves_by_an_eighth_per_unit(self) -> None:
        uniform = np.zeros((1, augment.UNIFORMS))
        theta, labels = augment.parameters(uniform, np.array([[0, 0, 1.0, 0]]), 0.5, ("translate",))
        image = torch.zeros(1, 1, 16, 16)
        image[0, 0, 8, 6] = 1
        assert int(augment.warp(image, theta)[0, 0, 8].argmax()) == 8
        assert labels[0].tolist() == [0] * 7 + [1, 0]

    def test_unknown_kinds_are_named(self) -> None:
        with pytest.raises(UsageError, match="'hue'"):
            self.parameters(kinds=("hue",))
