"""BigGAN, the plain cGAN and the projected discriminator: layers against torch's own, forms that must agree, inputs
that must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visynth.core.errors import UsageError
from visynth.lightning_modules.adversarial import gradient_penalty
from visynth.networks.biggan import Attention, BigGAN, BigGANDiscriminator, conv
from visynth.networks.cgan import CGAN, CGANDiscriminator
from visynth.networks.norm import Norm, measure
from visynth.networks.projected import SCALES, ProjectedDiscriminator


class TestNorm:
    def test_it_is_torchs_batch_norm(self) -> None:
        torch.manual_seed(0)
        ours, theirs, x = Norm(3).train(), nn.BatchNorm2d(3).train(), torch.randn(4, 3, 5, 5) * 2 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)

    def test_large_values_of_small_spread_stay_finite(self) -> None:
        x = 300 + 1e-3 * torch.randn(8, 2, 4, 4)
        assert bool(torch.isfinite(Norm(2).train()(x)).all())

    def test_conditions_give_gain_and_bias(self) -> None:
        layer = Norm(2, width=3).eval()
        nn.init.zeros_(layer.gain.weight)
        nn.init.zeros_(layer.bias.weight)
        layer.gain.weight.data[0, 0], layer.bias.weight.data[1, 1] = 1.0, 5.0
        x = torch.randn(2, 2, 4, 4)
        condition = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        with torch.no_grad():
            found = layer(x, condition) * (1 + 1e-5) ** 0.5
        assert torch.allclose(found[0, 0], 2 * x[0, 0], atol=1e-4)
        assert torch.allclose(found[1, 1] - x[1, 1], torch.tensor(5.0), atol=1e-4)

    def test_standing_statistics_are_means_over_batches(self) -> None:
        network = nn.Sequential(Norm(1))
        batches = [
            torch.full((2, 1, 2, 2), float(k)) + torch.tensor([-1.0, 1.0])[:, None, None, None] * k for k in range(4)
        ]
        measure(network, lambda k: network(batches[k]), 4)
        assert not network[0].training
        assert network[0].mean.item() == pytest.approx(1.5)
        assert network[0].variance.item() == pytest.approx((0 + 1 + 4 + 9) / 4)

    def test_spectral_norms_do_not_move_while_measuring(self) -> None:
        network = BigGAN(16, 1, 2, z_dim=12, width=4, shared=8).eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        measure(network, lambda k: network(torch.randn(4, 12), torch.tensor([0, 1, 0, 1])), 2)
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert moved
        assert all(name.endswith(("mean", "variance")) for name in moved)


class TestBigGAN:
    def test_layers_have_spectral_norm_one(self) -> None:
        torch.manual_seed(0)
        layer = conv(6, 5, 3).train()
        for _ in range(30):
            layer(torch.randn(1, 6, 4, 4))
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=1e-3)

    def test_attention_where_there_is_no_layer_is_told(self) -> None:
        with pytest.raises(UsageError, match="attention must be 0 or one of 8, 16, 32 pixels, but got 64"):
            BigGAN(32, 1, 2, z_dim=12, width=4, shared=8, attention=64)

    def test_attention_starts_as_the_identity(self) -> None:
        layer, x = Attention(8), torch.randn(2, 8, 4, 4)
        assert torch.equal(layer(x), x)
        layer.weight.data.fill_(1.0)
        assert not torch.equal(layer(x), x)

    @pytest.mark.parametrize("size", [16, 32, 64])
    @pytest.mark.parametrize("deep", [False, True])
    def test_every_size_deep_or_not(self, size: int, deep: bool) -> None:
        generator = BigGAN(size, 3, 4, z_dim=20, width=4, shared=8, attention=16 if size > 16 else 8, deep=deep).eval()
        critic = BigGANDiscriminator(size, 3, 4, width=4, attention=8, deep=deep)
        labels = torch.tensor([0, 3])
        images = generator(torch.randn(2, 20), labels)
        assert images.shape == (2, 3, size, size)
        assert images.abs().max() <= 1
        assert critic(images, labels).shape == (2,)
        assert not torch.equal(critic(images, labels), critic(images, labels.flip(0)))

    def test_each_level_gets_a_part_of_the_latent(self) -> None:
        network = BigGAN(32, 1, 2, z_dim=16, width=4, shared=8).eval()
        measure(network, lambda k: network(torch.randn(16, 16), torch.tensor([0, 1] * 8)), 2)
        z, labels = torch.randn(1, 16), torch.tensor([0])
        for part in range(4):
            other = z.clone()
            other[:, 4 * part : 4 * part + 4] += 1
            assert not torch.equal(network(other, labels), network(z, labels))

    def test_sizes_and_latents_that_cannot_be(self) -> None:
        with pytest.raises(UsageError, match="BigGAN makes images of 16, 32, 64, 128, 256 pixels, but got 48"):
            BigGAN(48, 1, 2)
        with pytest.raises(UsageError, match="z_dim must be at least 4, one number for each level"):
            BigGAN(32, 1, 2, z_dim=3)


class TestPlain:
    @pytest.mark.parametrize("size", [8, 16, 32, 64])
    def test_every_size(self, size: int) -> None:
        images = CGAN(size, 3, 2, z_dim=8, width=4).eval()(torch.randn(2, 8), torch.tensor([0, 1]))
        assert images.shape == (2, 3, size, size)
        assert CGANDiscriminator(size, 3, 2, width=4)(images, torch.tensor([0, 1])).shape == (2,)

    def test_other_sizes_are_told(self) -> None:
        with pytest.raises(UsageError, match="makes images of 8, 16, 32 or 64 pixels, but got 128"):
            CGAN(128, 3, 2)


class TestProjected:
    def small(self, channels: int = 1, classes: int = 2, **options) -> ProjectedDiscriminator:
        torch.manual_seed(0)
        return ProjectedDiscriminator(32, channels, classes, width=4, view=64, **options)

    def test_grey_is_rgb_with_equal_channels_and_small_pictures_work(self) -> None:
        x, labels = torch.rand(2, 1, 32, 32) * 2 - 1, torch.tensor([0, 1])
        logits = self.small()(x, labels)
        places = sum(min(4, 64 // (4 * 2**n)) ** 2 for n in range(len(SCALES)))
        assert logits.shape == (2, places)
        assert torch.allclose(self.small(3)(x.expand(-1, 3, -1, -1), labels), logits, atol=1e-5)

    def test_the_class_enters_by_projection(self) -> None:
        network, x = self.small(), torch.rand(2, 1, 32, 32)
        assert not torch.equal(network(x, torch.tensor([0, 0])), network(x, torch.tensor([1, 1])))
        assert self.small(classes=0)(x, None).shape[0] == 2

    def test_only_heads_and_classes_are_trained_and_kept(self) -> None:
        network = self.small()
        trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
        assert trained == {"heads", "embed"}
        assert not any(name.startswith("features") for name in network.state_dict())
        fixed = network.channel_mixing[0].weight
        assert torch.equal(fixed, self.small(seed=0).channel_mixing[0].weight)
        assert not torch.equal(fixed, self.small(seed=1).channel_mixing[0].weight)

    def test_gradients_reach_the_picture_twice(self) -> None:
        network, x = self.small(), torch.rand(1, 1, 32, 32, requires_grad=True)
        gradient_penalty(network(x, torch.tensor([0])).mean(dim=1), x).sum().backward()
        assert all(p.grad is not None for p in network.heads.parameters() if p.requires_grad and p.ndim > 1)

    def test_alpha_and_odd_views_are_told(self) -> None:
        with pytest.raises(UsageError, match="sees grey or RGB images, but these have 4 channels"):
            self.small(4)
        with pytest.raises(UsageError, match="view must be a multiple of 32 from 64 on, but got 100"):
            ProjectedDiscriminator(32, 1, 2, view=100)
