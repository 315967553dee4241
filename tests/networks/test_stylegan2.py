"""StyleGAN2: the values of the public implementation under the same weights, and the equalities that its short cuts
must keep."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from torch.nn import functional as F  # noqa: N812

from visynth.core.errors import UsageError
from visynth.networks.discriminator import Discriminator, freeze
from visynth.networks.layers import Linear, minibatch_std
from visynth.networks.resample import TAPS, conv_down, conv_up, downsample, upfirdn, upsample
from visynth.networks.stylegan2 import StyleGAN2, modulated_conv, noise_fields, truncate

# Computed by running the public implementation with the weights of ``filled``: (classes, channels), styles of sample 1,
# a row of its image
# with noise, with truncation 0.7 and without noise, means and deviations of the images, and logits of their tanh.
REFERENCE = {
    (3, 1): {
        "w": [0.34739, -0.42217, -0.57695, -0.59546, 3.38302, 1.59473, -0.39847, 1.47477],
        "w07": [0.2287, -0.28638, -0.39629, -0.41431, 2.33382, 1.11989, -0.28964, 1.07657],
        "row": [0.99145, 1.56894, 1.94981, 2.23575, 2.63653, 2.78465, 3.17412, 3.12673],
        "row07": [0.5656, 0.79491, 0.95997, 0.91458, 0.96785, 1.01649, 1.17378, 1.21564],
        "quiet": [1.05373, 1.59057, 1.93786, 2.17862, 2.44884, 2.77474, 3.09457, 3.37644],
        "mean": [-0.78402, 1.38748, 0.5658, 0.10887],
        "std": [1.02828, 1.09498, 0.70771, 0.68396],
        "logits": [-0.19749, -0.39347, 0.4549, 0.45149],
    },
    (0, 3): {
        "w": [-0.21187, 1.58256, -0.19687, 0.32711, 0.19841, -0.12714, 1.27925, 0.15142],
        "w07": [-0.1483, 1.13496, -0.13959, 0.23818, 0.14011, -0.11427, 0.89268, 0.05298],
        "row": [-0.64281, -1.09201, -0.57709, -1.04609, -0.77078, -2.16688, -0.47947, -1.03001],
        "row07": [-0.59163, -1.00268, -0.69786, -1.15936, -0.91533, -2.13263, -0.65942, -1.11408],
        "quiet": [-0.15168, -0.88878, -0.90819, -0.85967, -0.83003, -0.83809, -0.88402, -0.99981],
        "mean": [-1.20433, -1.16174, -1.08525, -0.01283],
        "std": [2.1074, 0.9637, 2.62862, 1.1932],
        "logits": [-0.6369, -0.24059, -0.44045, -0.58556],
    },
}


def normal(key: int, shape) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape))).float()


def filled(network):
    """Weights that follow from their names' order, of sizes as a training would leave them."""
    made = {}
    for rank, name in enumerate(sorted(network.state_dict())):
        value = normal(rank, network.state_dict()[name].shape)
        if name.endswith("affine.bias"):
            value = 1 + 0.1 * value
        elif "mapping.fc" in name:
            value = value * (100 if name.endswith("weight") else 10)
        elif name.endswith(("noise_strength", "w_avg", "bias")):
            value = 0.1 * value
        made[name] = value
    network.load_state_dict(made)
    return network.requires_grad_(False)


@pytest.mark.parametrize(("classes", "channels"), REFERENCE)
def test_the_values_of_the_public_implementation(classes: int, channels: int) -> None:
    told = REFERENCE[classes, channels]
    generator = filled(StyleGAN2(32, channels, classes, 64, 64, 1024, 64, 2))
    discriminator = filled(Discriminator(32, channels, classes, 1024, 64, group=2))
    labels = torch.tensor([0, 1, 2, 1]) if classes else None
    ws = generator.styles(normal(999, (4, 64)), labels)
    images = generator.synthesis(ws)
    drawn = truncate(ws, generator.mapping.w_avg, 0.7)
    found = {
        "w": ws[1, 0, :8],
        "w07": drawn[1, 0, :8],
        "row": images[1, 0, 7, :8],
        "row07": generator.synthesis(drawn)[1, 0, 7, :8],
        "quiet": generator.synthesis(ws, "none")[1, 0, 7, :8],
        "mean": images.mean((1, 2, 3)),
        "std": images.std((1, 2, 3)),
        "logits": discriminator(images.tanh(), labels),
    }
    assert {name: value.tolist() for name, value in found.items()} == {
        name: pytest.approx(values, rel=1e-4, abs=1e-5) for name, values in told.items()
    }


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("size", "base", "generator", "discriminator"), [(32, 16384, 20.215, 23.876), (64, 16384, 22.511, 25.776)]
)
def test_parameters_are_as_many_as_published(size, base, generator, discriminator) -> None:
    with torch.device("meta"):
        made = StyleGAN2(size, 3, 10, 512, 512, base, 512, 2), Discriminator(size, 3, 10, base, 512)
    assert [round(count(network) / 1e6, 3) for network in made] == pytest.approx([generator, discriminator], abs=2e-3)


class TestResampling:
    @pytest.mark.parametrize(("up", "down", "pad"), [(1, 1, (0, 0)), (2, 1, (2, 1)), (1, 2, (1, 1)), (3, 2, (4, 3))])
    def test_upfirdn_is_scipys_on_both_axes(self, up: int, down: int, pad) -> None:
        taps = np.array([1.0, 5.0, 2.0, -1.0])
        x = np.random.default_rng(0).standard_normal((6, 7))
        found = upfirdn(torch.from_numpy(x)[None, None], taps.tolist(), up, down, pad)[0, 0].numpy()
        told = x
        for axis in (0, 1):
            size = told.shape[axis] * up
            spread = np.zeros((size, told.shape[1 - axis]))
            spread[::up] = told if axis == 0 else told.T
            full = scipy.signal.upfirdn(taps / taps.sum(), np.pad(spread, (pad, (0, 0))), axis=0)
            full = full[len(taps) - 1 : len(full) - len(taps) + 1][::down]
            told = full if axis == 0 else full.T
        np.testing.assert_allclose(found, told, atol=1e-12)

    def test_the_filters_values(self) -> None:
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, 1, 1] = 64
        row = torch.tensor([0.25, 0.75, 0.75, 0.25])
        assert torch.equal(upsample(x)[0, 0, 1:5, 1:5], torch.outer(row, row) * 64)
        assert downsample(x)[0, 0].tolist() == [[9.0, 3.0], [3.0, 1.0]]

    def test_constants_stay(self) -> None:
        x = torch.full((1, 1, 16, 16), 3.0)
        assert torch.allclose(upsample(downsample(x))[..., 4:-4, 4:-4], torch.tensor(3.0))

    def test_folded_convolutions_are_resampling_and_convolution(self) -> None:
        x, w = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 3, 3, dtype=torch.float64)
        assert torch.allclose(conv_up(x, w), F.conv2d(upfirdn(x, TAPS, up=2, pad=(3, 2), gain=4), w.flip(2, 3)))
        assert torch.allclose(conv_down(x, w), F.conv2d(upfirdn(x, TAPS, pad=(2, 2)), w, stride=2))
        one = w[..., 1:2, 1:2]
        assert torch.allclose(conv_down(x, one), F.conv2d(upfirdn(x, TAPS, pad=(1, 1)), one)[..., ::2, ::2])

    @pytest.mark.parametrize("function", [conv_up, conv_down])
    def test_gradients_of_gradients(self, function) -> None:
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        w = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, (x, w))
        assert torch.autograd.gradgradcheck(function, (x, w))


class TestLayers:
    @pytest.mark.parametrize("up", [False, True])
    @pytest.mark.parametrize("demodulate", [False, True])
    def test_scaled_activations_are_scaled_weights(self, up: bool, demodulate: bool) -> None:
        torch.manual_seed(0)
        x, w = torch.randn(4, 3, 8, 8), torch.randn(5, 3, 3, 3)
        style = torch.rand(4, 3) + 0.5
        found = modulated_conv(x, w, style, demodulate, up)
        own = w[None] * style[:, None, :, None, None]
        if demodulate:
            own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        convolve = conv_up if up else lambda a, b: F.conv2d(a, b, padding=1)
        each = torch.cat([convolve(x[i : i + 1], own[i]) for i in range(4)])
        assert torch.allclose(found, each, atol=1e-5)
        if not up:
            grouped = F.conv2d(x.reshape(1, 12, 8, 8), own.reshape(20, 3, 3, 3), padding=1, groups=4)
            assert torch.allclose(found, grouped.reshape(4, 5, 8, 8), atol=1e-5)

    def test_outputs_have_unit_size_at_the_start(self) -> None:
        torch.manual_seed(0)
        y = modulated_conv(torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3), torch.rand(8, 64) + 0.5)
        assert float(y[..., 1:-1, 1:-1].std()) == pytest.approx(1, abs=0.1)
        assert float(Linear(400, 300)(torch.randn(50, 400)).detach().std()) == pytest.approx(1, abs=0.05)

    def test_learning_rate_multiplier_changes_the_step_and_not_the_start(self) -> None:
        layer = Linear(4, 4, bias=1.0, lr=0.01)
        assert torch.allclose(layer(torch.zeros(1, 4)), torch.ones(1, 4))
        layer(torch.ones(1, 4)).sum().backward()
        assert torch.allclose(layer.bias.grad, torch.tensor(0.01))
        assert torch.allclose(layer.weight.grad, torch.tensor(0.01 / 2))

    def test_minibatch_std(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(8, 3, 2, 2)
        found = minibatch_std(x, 4)[:, 3]
        # Samples 0, 2, 4, 6 are one group.
        one = (x[::2].var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(found[::2], one.expand(4, 2, 2))
        assert torch.equal(minibatch_std(x[::2], 4)[:, 3], found[::2])  # a rank with every second sample
        assert minibatch_std(torch.ones(6, 3, 2, 2), 4)[0, 3, 0, 0] == pytest.approx(1e-4)
        assert minibatch_std(x[:6], 4).shape == (6, 4, 2, 2)  # groups of 3


class TestNetwork:
    def small(self, **options) -> StyleGAN2:
        torch.manual_seed(0)
        return filled(StyleGAN2(16, 1, 3, z_dim=8, w_dim=8, base=64, most=8, **options))

    def test_noise_comes_from_each_samples_own_seed(self) -> None:
        network = self.small()
        shapes = network.synthesis.noise_shapes()
        assert shapes == [(4, 4), (8, 8), (8, 8), (16, 16), (16, 16)]
        both, one = noise_fields(shapes, [5, 6], "noise"), noise_fields(shapes, [6], "noise")
        assert all(torch.equal(a[1:], b) for a, b in zip(both, one, strict=True))
        ws = network.styles(torch.randn(2, 8), torch.tensor([0, 1]))
        assert torch.allclose(network.synthesis(ws, both)[1:], network.synthesis(ws[1:], one), atol=1e-5)

    def test_without_strength_no_class_is_seen(self) -> None:
        network, z = self.small(), torch.randn(2, 8)
        images = [network(z, torch.tensor([n, n]), strength=0.0) for n in (0, 2)]
        assert torch.equal(*images)
        assert not torch.equal(network(z, torch.tensor([0, 0])), network(z, torch.tensor([2, 2])))

    def test_shared_blocks_see_no_class(self) -> None:
        network, z = self.small(shared=8), torch.randn(2, 8)
        ws = [network.styles(z, torch.tensor([n, n])) for n in (0, 2)]
        low = [network.synthesis.both(w, "none", 8)[1] for w in ws]
        assert low[0].shape == (2, 1, 8, 8)
        assert torch.equal(*low)
        assert not torch.equal(*[network.synthesis(w, "none") for w in ws])

    def test_truncation(self) -> None:
        network = self.small()
        ws = network.styles(torch.randn(2, 8), torch.tensor([0, 1]))
        assert truncate(ws, torch.zeros(8), 1.0) is ws
        centres = torch.randn(2, 8)
        assert torch.allclose(truncate(ws, centres, 0.0), centres[:, None].expand_as(ws))
        part = truncate(ws, centres, 0.3)
        assert torch.allclose(part[:, 0], centres + 0.3 * (ws[:, 0] - centres))

    def test_sizes_that_cannot_be(self) -> None:
        with pytest.raises(UsageError, match="size must be a power of two from 8 to 1024, but got 48"):
            StyleGAN2(48, 1, 2)
        with pytest.raises(UsageError, match="shared must be 0 or a resolution below 16"):
            self.small(shared=16)


class TestDiscriminator:
    def test_the_class_enters_by_projection_alone(self) -> None:
        torch.manual_seed(0)
        network = filled(Discriminator(16, 1, 3, base=64, most=8, both=True))
        x = torch.randn(4, 1, 16, 16)
        conditional, plain = network.logits(x, torch.tensor([0, 1, 2, 0]))
        other, same = network.logits(x, torch.tensor([1, 1, 1, 1]))
        assert plain is not None
        assert torch.equal(plain, same)
        assert not torch.equal(conditional, other)
        assert torch.equal(conditional[1], other[1])

    def test_freezing_counts_from_the_picture(self) -> None:
        network = Discriminator(32, 1, 3, base=64, most=8)
        freeze(network, 2)
        moving = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
        assert moving == {"b8", "b4", "mapping"}
