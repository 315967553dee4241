"""GANs under differential privacy: the discriminator alone sees real images, and moves by the algorithm of DP-SGD."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import Tensor

from tests.ranks import TRAINER
from visynth.core.errors import Diverged, UsageError
from visynth.lightning_modules import CGAN, BigGAN, GeneratorData, StyleGAN2
from visynth.lightning_modules.facts import Pool, measure
from visynth.lightning_modules.gan_step import Fakes, Micro
from visynth.privacy.dp import DifferentialPrivacy
from visynth.privacy.poisson import PlacedRows, PoissonBatches
from visynth.privacy.secret import secret_rng

KEY, IMAGES, SIZE = "3c" * 32, 40, 16
KINDS = {
    "stylegan2": (StyleGAN2, {"base": 64, "most": 8, "z_dim": 8, "w_dim": 8, "group": 1, "augment": "none"}),
    "shared": (StyleGAN2, {"base": 64, "most": 8, "z_dim": 8, "w_dim": 8, "group": 1, "augment": "none", "shared": 8}),
    "cgan": (CGAN, {"width": 4, "width_d": 4, "z_dim": 8}),
}


def data(seed: int = 0) -> GeneratorData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (IMAGES, 1, SIZE, SIZE)).astype(np.uint8)
    pool = Pool(images, rng.integers(0, 2, IMAGES))
    return GeneratorData.of_pool(pool, measure(pool, ["a", "b"]), batch_size=6, temper=1.0)


def module(name: str = "cgan", **kwargs: Any) -> Any:
    kind, small = KINDS[name]
    return kind(**{**small, "gamma": 0.0, "ema_rampup": 0.5, **kwargs})


def private(**kwargs: Any) -> DifferentialPrivacy:
    return DifferentialPrivacy(
        **{"epsilon": 50.0, "steps": 4, "batch_size": 10, "most_noise": 9.0, "key": KEY, **kwargs}
    )


def fit(
    net: Any, callback: DifferentialPrivacy, given: GeneratorData | None = None, *others: Any, **kwargs: Any
) -> Any:
    options = {**TRAINER, "max_steps": -1, "max_epochs": -1, "callbacks": [callback, *others]}
    start = kwargs.pop("ckpt_path", None)
    pytorch_lightning.Trainer(**{**options, **kwargs}).fit(net, given or data(), ckpt_path=start, weights_only=True)
    return net


def flat(parameters: Any) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters])


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_discriminator_moves_by_clipped_gradients_of_single_pairs(name: str) -> None:
    """Algorithm 1 of Abadi et al. (2016) by hand, a pair of a real and a fake image at a time."""
    callback = private(steps=1, max_grad_norm=0.02, batch_size=20, physical_batch_size=4)
    net, other = (module(name, d_steps=5, augment="diffaugment", lr_d=1.0) for _ in range(2))
    net.configure_optimizers = lambda: [
        torch.optim.SGD(part, lr=1.0) for part in (net.gan.movable, net.gan.generator.parameters())
    ]
    fit(net, callback)
    source = data()
    source.forget_statistics()
    other.build(source.facts)
    gan, plan = other.gan, callback.plan
    assert plan is not None
    gan.shares = other.shares()
    places = PoissonBatches(PlacedRows(IMAGES, 1), plan.rate, KEY, lambda: 0, 1).places(0)
    assert len(places) > 4
    assert source.pool is not None
    total = [torch.zeros_like(p) for p in gan.movable]
    fakes = Fakes.joined([gan.fakes(range(k, min(k + 6, plan.batch))) for k in range(0, plan.batch, 6)])
    for place in places:
        image = torch.from_numpy(source.pool.images[[place]]).float() / 127.5 - 1
        micro = Micro(image, torch.from_numpy(source.pool.labels[[place]]), [int(place)])
        loss = gan.discriminator_loss(micro, fakes.take(torch.tensor([place % plan.batch])))
        rows = torch.autograd.grad(loss, gan.movable)
        length = flat(rows).norm()
        assert length > 0.02
        for own, gradient in zip(total, rows, strict=True):
            own += gradient * (0.02 / (length + 1e-6))
    generator = secret_rng(KEY, "noise/0")
    with torch.no_grad():
        for own, p in zip(total, gan.movable, strict=True):
            noise = torch.from_numpy(generator.standard_normal(tuple(p.shape)).astype(np.float32))
            p -= (own + plan.noise * 0.02 * noise) / plan.batch
    assert torch.allclose(flat(net.gan.movable), flat(gan.movable), atol=1e-6)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_one_image_more_moves_the_discriminator_by_no_more_than_the_bound(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the noise hides; a batch norm of the generator would show it in the fake images of all others."""
    drawn, sums = np.arange(0, IMAGES, 4), []
    for places in (drawn, drawn[drawn != 20]):
        monkeypatch.setattr(PoissonBatches, "places", lambda self, step, places=places: places)
        net, callback = module(name, d_steps=5, lr_d=1.0), private(steps=1, max_grad_norm=0.02)
        net.configure_optimizers = lambda net=net: [
            torch.optim.SGD(part, lr=1.0) for part in (net.gan.movable, net.gan.generator.parameters())
        ]
        fit(net, callback)
        sums.append(flat(net.gan.movable).double() * callback.plan.batch)  # type: ignore[union-attr]
    moved = float((sums[0] - sums[1]).norm())
    assert 0.0195 < moved < 0.02 + 2e-4  # the sum is had to within the rounding of weights of 1


def test_the_generator_learns_from_the_discriminator_alone() -> None:
    """With a discriminator that stands still, other images give the same generator, bit by bit."""
    found = [fit(module(lr_d=1e-30, d_steps=2), private(), data(seed)) for seed in (0, 1)]
    weights = [flat(net.gan.generator.parameters()) for net in found]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], flat(module_of(data()).gan.generator.parameters()))
    moved = [fit(module(d_steps=2), private(), data(seed)) for seed in (0, 1)]
    assert not torch.equal(*(flat(net.gan.generator.parameters()) for net in moved))


def module_of(source: GeneratorData) -> Any:
    net = module()
    net.build(source.facts)
    return net


def test_the_generator_moves_once_in_some_steps() -> None:
    class Watch(pytorch_lightning.Callback):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.seen.append(flat(pl_module.gan.generator.parameters()).clone())

    watch = Watch()
    net = fit(module(d_steps=3), private(steps=6), None, watch)
    start = flat(module_of(data()).gan.generator.parameters())
    states = [start, *watch.seen]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(states)] == [True, True, False] * 2
    assert net.gan.generator_steps == 2


def test_without_privacy_too_and_the_optimisers_keep_pace() -> None:
    net = module(d_steps=2, allow_few=True)
    trainer = pytorch_lightning.Trainer(**{**TRAINER, "max_steps": 12})
    trainer.fit(net, data())
    assert (int(net.gan.steps_done), net.gan.generator_steps, trainer.global_step) == (6, 3, 12)


def test_a_killed_run_exports_what_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = fit(module("stylegan2", d_steps=2), private())

    class Killed(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if int(pl_module.gan.steps_done) == 3:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                trainer.should_stop = True

    fit(module("stylegan2", d_steps=2), private(), None, Killed())
    callback = private()
    again = fit(module("stylegan2", d_steps=2), callback, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.generator().digest == whole.generator().digest
    assert callback.steps_done == 4


def test_a_step_without_any_image_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(PoissonBatches, "places", lambda self, step: nothing)
    net = fit(module(), private(steps=2))
    before = flat(module_of(data()).gan.movable)
    assert torch.isfinite(flat(net.gan.movable)).all()
    assert not torch.equal(flat(net.gan.movable), before)


def test_a_generator_that_diverges_ends_the_training() -> None:
    with pytest.raises(Diverged, match="what was spent is spent"):
        fit(module(lr_g=1e30), private())


def test_in_bfloat16_the_discriminator_moves_by_nearly_the_same() -> None:
    found = [fit(module(d_steps=5), private(steps=1), precision=p) for p in ("32-true", "bf16-mixed")]
    start = flat(module_of(data()).gan.movable)
    moves = [flat(net.gan.movable) - start for net in found]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.95


def test_the_average_goes_by_the_images_between_its_steps() -> None:
    net = module(d_steps=3, ema_kimg=0.02, ema_rampup=0.0)
    net.build(data().facts)
    gan = net.gan
    with torch.no_grad():
        for own, new in zip(gan.generator_ema.parameters(), gan.generator.parameters(), strict=True):
            own.zero_()
            new.fill_(1.0)
    gan.average(1000, 20)  # one half-life
    assert torch.allclose(flat(gan.generator_ema.parameters()), torch.tensor(0.5))
    seen: list[int] = []
    gan.average = lambda images_seen, images: seen.append(images)
    fit(net, private(steps=6))
    assert seen == [30, 30]  # three batches of ten


def test_the_exported_generator_knows_its_epsilon_and_no_image(tmp_path: Path) -> None:
    callback = private()
    folder = fit(module(d_steps=2), callback).export(tmp_path / "generator")
    card = json.loads((folder / "generator.json").read_text())["card"]
    assert card["differential privacy"] == json.loads(json.dumps(callback.record()))
    assert not {"images per class", "training images", "images seen in training"} & set(card)
    assert (folder / "members.jsonl").read_text() == ""


def test_what_looks_at_real_images_otherwise_is_refused_all_at_once() -> None:
    net = StyleGAN2(
        base=64, most=8, z_dim=8, w_dim=8, augment="ada", loss="relativistic", gamma=1.0, r2=True, accumulate=2
    )
    words = r"(?s)penalties.*augment 'ada'.*relativistic.*accumulate 2.*minibatch standard deviation"
    with pytest.raises(UsageError, match=words):
        fit(net, private())
    with pytest.raises(UsageError, match=r"(?s)kimg ends a training.*lecam follows"):
        fit(module(lecam=0.1, kimg=1), private())
    with pytest.raises(UsageError, match="name the steps"):
        fit(module(), private(steps=None))


@pytest.mark.parametrize("kind", ["biggan", "projected"])
def test_spectral_norms_are_refused_before_training(kind: str) -> None:
    if kind == "biggan":
        net: Any = BigGAN(width=4, width_d=4, z_dim=12, shared=8)
    else:
        small = {**KINDS["stylegan2"][1], "discriminator": "projected", "loss": "hinge", "view": 64}
        net = StyleGAN2(**{**small, "augment": "diffaugment", "gamma": 0.0})
    with pytest.raises(UsageError, match="parametrised weights"):
        fit(net, private())
