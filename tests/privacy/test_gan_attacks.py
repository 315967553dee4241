"""Attacks on adversarial generators: what is known by heart is found, what is not known is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visynth.generators.base import Spec
from visynth.generators.gan import CGAN
from visynth.networks import cgan
from visynth.privacy.gan_attacks import Discriminator, inversion_scores
from visynth.privacy.membership import membership


def noise(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8), rng.integers(0, 2, count)


def test_scores_are_the_networks_logits() -> None:
    network = nn.Linear(256, 1)
    discriminator = Discriminator(network, lambda net, values, labels: net(values.flatten(1))[:, 0] + labels)
    images, labels = noise(0, 100)
    by_hand = network(torch.from_numpy(images).double().flatten(1).float() * (2 / 255) - 1)[:, 0] + torch.from_numpy(
        labels
    )
    assert np.allclose(discriminator.scores(images, labels), by_hand.detach().numpy(), atol=1e-5)


def test_a_discriminator_that_knows_its_images_is_found() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(
        cgan.CGANDiscriminator(16, 1, 2, width=16), lambda net, values, labels: net(values, labels)
    )
    known, others, rest = noise(1), noise(2), noise(3)
    taught = discriminator.by_heart(known[0], others[0], (known[1], others[1]), 150, seed=0)
    assert membership("d", taught.scores(*known), taught.scores(*rest)).leaks
    assert not membership("d", discriminator.scores(*known), discriminator.scores(*rest)).leaks
    assert not any(p.requires_grad for p in taught.network.parameters())
    assert all(p.requires_grad for p in discriminator.network.parameters()), "the attacked network was touched"


def test_a_generators_own_images_are_given_back() -> None:
    torch.manual_seed(1)
    network = cgan.CGAN(16, 1, 2, z_dim=4, width=8)
    with torch.no_grad():
        for p in network.parameters():
            p *= 4.0  # images that differ from one another
    spec = Spec(network="cgan", arguments={"classes": 2, "z_dim": 4, "width": 8}, classes=("a", "b"), channels=1, size=(16, 16),
                dtype="uint8", sampler={}, micro_batch=16, kind="trained")  # fmt: skip
    generator = CGAN(spec, network)
    labels = np.arange(24) % 2
    own = generator.sample(list(range(24)), labels.tolist()).images.numpy()
    strange = noise(4, 24)[0]
    scores = (
        inversion_scores(generator, own, labels, 0, steps=60),
        inversion_scores(generator, strange, labels, 0, steps=60),
    )
    assert membership("inversion", *scores).auc > 0.95
    assert np.array_equal(scores[0], inversion_scores(generator, own, labels, 0, steps=60))
    assert np.max(scores[0]) > -0.1


@pytest.mark.parametrize("count", [1, 70])
def test_any_number_of_images(count: int) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x.mean(dim=(1, 2, 3))

    discriminator = Discriminator(Mean(), lambda net, values, labels: net(values))
    images, labels = noise(5, count)
    assert discriminator.scores(images, labels).shape == (count,)
