"""One private release and the generator made of it: closed forms, a single release over a kill, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch

from visynth.callbacks import KIDCallback
from visynth.callbacks.checkpoint import KeepLast
from visynth.core.errors import ConflictError, UsageError
from visynth.lightning_modules import MeanEmbedding
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.facts import Facts, Pool
from visynth.privacy import embedding
from visynth.privacy.accounting import Release, epsilon_of
from visynth.privacy.embedding import COUNTED, Embedding, RandomFeatures, discrepancy, embed, sensitivity

KEY = "5a" * 32


def test_features_are_those_of_a_gaussian_kernel() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (6, 1, 4, 4))).float()
    features = RandomFeatures(16, 40_000, 0.5, seed=3)(x)
    assert torch.allclose(features.norm(dim=1), torch.ones(6), atol=1e-5)
    distances = torch.cdist(x.flatten(1), x.flatten(1)).square()
    assert torch.allclose(features @ features.T, torch.exp(-distances / (2 * 0.5**2 * 16)), atol=0.03)


def test_an_image_moves_the_release_by_what_is_paid_for() -> None:
    x, labels = torch.eye(7)[:6], torch.tensor([0, 0, 0, 0, 0, 0])
    with_it, without = embed(x, labels, 2, 0.0, KEY), embed(x[:5], labels[:5], 2, 0.0, KEY)
    moved = math.hypot(
        float((with_it.sums - without.sums).norm()), COUNTED * float((with_it.counts - without.counts).norm())
    )
    assert moved == pytest.approx(sensitivity())


def test_noise_has_its_size_and_is_the_keys() -> None:
    nothing, labels = torch.zeros(1, 4000), torch.tensor([0])
    made = embed(nothing, labels, 5, 2.0, KEY)
    assert float(made.sums.double().std()) == pytest.approx(2.0 * sensitivity(), rel=0.03)
    assert torch.equal(made.sums, embed(nothing, labels, 5, 2.0, KEY).sums)
    assert not torch.equal(made.sums, embed(nothing, labels, 5, 2.0, "77" * 32).sums)
    assert float(made.counts.min()) >= embedding.LEAST
    many = embed(torch.ones(20_000, 1), torch.arange(20_000) % 100, 100, 5.0, KEY)
    assert float((many.counts - 200).std()) == pytest.approx(5.0 * sensitivity() / COUNTED, rel=0.25)


def test_the_discrepancy_is_unbiased() -> None:
    """Against the sum over pairs, and the same on average whatever the size of a batch."""
    rng = np.random.default_rng(1)
    x = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(8, 5))), dim=1)
    labels, means = torch.tensor([0, 1] * 4), torch.from_numpy(rng.normal(size=(2, 5)))
    by_hand = []
    for c in (0, 1):
        own = x[labels == c]
        pairs = [float(own[i] @ own[j]) for i in range(4) for j in range(4) if i != j]
        by_hand.append(np.mean(pairs) - 2 * float(own.mean(0) @ means[c]))
    assert float(discrepancy(x, labels, means)) == pytest.approx(np.mean(by_hand))


def test_what_drowns_is_told() -> None:
    sums = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 400)))
    sums[2] += 1.0
    assert Embedding(sums.float(), torch.ones(3), 1.0).drowned() == [0, 1]
    assert Embedding(sums.float(), torch.ones(3), 0.0).drowned() == []


# -- the module ----------------------------------------------------------------------------------------------------------------

FACTS = Facts(("dark", "bright"), (60, 60), 1, (8, 8), "uint8", (0.1,), 0.6)
SMALL: dict[str, Any] = {"features": 200, "width": 8, "z_dim": 4, "per_class": 16}


def data(size: int = 8) -> GeneratorData:
    rng = np.random.default_rng(2)
    labels = np.arange(120) % 2
    images = np.clip(rng.normal(60 + 130 * labels[:, None, None, None], 25, (120, 1, size, size)), 0, 255).astype(
        np.uint8
    )
    return GeneratorData.of_pool(Pool(images, labels), FACTS, batch_size=8)


def trainer(*callbacks: Any, **kwargs: Any) -> pytorch_lightning.Trainer:
    keeps = any(isinstance(callback, KeepLast) for callback in callbacks)
    return pytorch_lightning.Trainer(
        max_epochs=-1, logger=False, enable_checkpointing=keeps, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **kwargs,
    )  # fmt: skip


def weights(module: MeanEmbedding) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.network.parameters()])


def test_it_learns_the_classes_and_says_what_it_spent() -> None:
    module = MeanEmbedding(epsilon=5.0, steps=150, **SMALL)
    trainer().fit(module, data())
    images = module.sample(list(range(40)), [0, 1] * 20).images.float()
    dark, bright = float(images[0::2].mean()), float(images[1::2].mean())
    assert 30 < dark < 90
    assert 160 < bright < 220
    spent = module.privacy
    assert spent["epsilon"] == pytest.approx(
        epsilon_of([Release("", spent["releases"][0]["noise"], 1.0, 1)], spent["delta"])
    )
    assert 4.9 < spent["epsilon"] <= 5.0
    assert spent["delta"] == 1e-3
    assert module.facts.counts == (0, 0)
    assert not [key for key in module.card() if "images" in key]
    plain = MeanEmbedding(steps=1, **SMALL)
    trainer().fit(plain, data())
    assert plain.privacy == {}
    assert plain.card()["images per class"] == "dark 60, bright 60"


def test_the_images_are_looked_at_once_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = MeanEmbedding(epsilon=5.0, steps=12, key=KEY, **SMALL)
    trainer().fit(whole, data())
    half = MeanEmbedding(epsilon=5.0, steps=12, key=KEY, **SMALL)
    first = trainer(max_steps=5)
    first.fit(half, data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    released: list[int] = []
    monkeypatch.setattr(MeanEmbedding, "_release", lambda self, options: released.append(1))
    rest = MeanEmbedding(epsilon=5.0, steps=12, **SMALL)
    trainer().fit(rest, data(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    assert not released
    assert torch.equal(weights(rest), weights(whole))
    assert {**rest.privacy, "not private": ""} == {**whole.privacy, "not private": ""}
    with pytest.raises(ConflictError, match="another release costs anew"):
        trainer().fit(
            MeanEmbedding(epsilon=9.0, steps=12, **SMALL),
            data(),
            ckpt_path=str(tmp_path / "half.ckpt"),
            weights_only=True,
        )


def test_a_kill_right_after_the_release_does_not_release_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on disk before the first step; a start from there goes on with it."""

    class Killed(pytorch_lightning.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise KeyboardInterrupt

    first = MeanEmbedding(epsilon=5.0, steps=12, **SMALL)
    with pytest.raises(SystemExit):
        trainer(KeepLast(), Killed(), default_root_dir=tmp_path).fit(first, data())
    again = MeanEmbedding(epsilon=5.0, steps=12, **SMALL)
    monkeypatch.setattr(MeanEmbedding, "_release", lambda self, options: pytest.fail("released again"))
    trainer(default_root_dir=tmp_path).fit(again, data(), ckpt_path=str(KeepLast.path(tmp_path)), weights_only=True)
    assert torch.equal(again.sums, first.sums)
    assert 4.9 < again.privacy["epsilon"] <= 5.0


@pytest.mark.parametrize(
    ("options", "words"), [({"seed": 1}, "seed: 0 there, 1 here"), ({"length_scale": 0.2}, "length_scale")]
)
def test_a_release_is_of_its_own_features(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    first = trainer(max_steps=1)
    first.fit(MeanEmbedding(epsilon=5.0, **SMALL), data())
    first.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ConflictError, match=words):
        trainer().fit(
            MeanEmbedding(**{"epsilon": 5.0, **SMALL, **options}),
            data(),
            ckpt_path=str(tmp_path / "one.ckpt"),
            weights_only=True,
        )


def test_precisions() -> None:
    module = MeanEmbedding(epsilon=5.0, steps=2, **SMALL)
    trainer(precision="bf16-mixed").fit(module, data())
    assert module.sums.dtype == torch.float32
    for precision in ("bf16-true", "64-true"):
        with pytest.raises(UsageError, match=precision):
            trainer(precision=precision).fit(MeanEmbedding(epsilon=5.0, **SMALL), data())


@pytest.mark.parametrize(("options", "words"), [
    ({"epsilon": 0.0}, "epsilon"), ({"features": 3}, "even number"), ({"per_class": 1}, "per_class"), ({"lr": 0.0}, "lr must"),
    ({"length_scale": 0.0}, "length_scale"), ({"steps": 0}, "steps"),
])  # fmt: skip
def test_options_that_cannot_be_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MeanEmbedding(**options)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="KIDCallback measures against the private images"):
        trainer(KIDCallback()).fit(MeanEmbedding(epsilon=5.0, **SMALL), data())
    with pytest.raises(UsageError, match=r"delta 0\.5 is not below 1/120"):
        trainer().fit(MeanEmbedding(epsilon=5.0, delta=0.5, **SMALL), data())
    with pytest.raises(UsageError, match="GeneratorData, whose images"):
        trainer().fit(MeanEmbedding(**SMALL), pytorch_lightning.LightningDataModule())
    from visynth.privacy import DifferentialPrivacy

    with pytest.raises(UsageError, match="leave the callback out"):
        trainer(DifferentialPrivacy(epsilon=3.0, steps=3)).fit(MeanEmbedding(**SMALL), data())
