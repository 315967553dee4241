"""Adversarial training: the same run however it is cut into, few images told, nothing spoilt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

from tests.ranks import DDP, TRAINER, run_ranks
from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
from visynth.core.errors import Diverged, UsageError
from visynth.generators.base import Spec, load_generator
from visynth.generators.gan import StyleGAN2 as StyleGAN2Generator
from visynth.lightning_modules import CGAN, BigGAN, StyleGAN2
from visynth.lightning_modules.adversarial import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    path_lengths,
)
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.facts import Pool, measure
from visynth.lightning_modules.gan_step import Micro
from visynth.networks.discriminator import FILE
from visynth.networks.stylegan2 import StyleGAN2 as StyleGAN2Network

SMALL = {
    "stylegan2": (StyleGAN2, {"base": 64, "most": 8, "z_dim": 8, "w_dim": 8}),
    "biggan": (BigGAN, {"width": 4, "width_d": 4, "z_dim": 12, "shared": 8}),
    "cgan": (CGAN, {"width": 4, "width_d": 4, "z_dim": 8}),
}
# Everything that is drawn, counted or kept from step to step.
FULL = {
    "augment_p": 0.5,
    "ada_kimg": 0.5,
    "ada_target": 0.95,
    "augment_kinds": ["blit", "geometry", "colour", "filter", "corruption"],
    "r1_every": 2,
    "transition": [0.2, 0.6],
    "kimg": 0.2,
    "class_noise": 0.5,
    "path_weight": 2.0,
    "mixing": 0.9,
    "shared": 8,
    "lecam": 0.1,
}


def data(batch_size: int = 8, counts=(30, 20), size: int = 16, **kwargs) -> GeneratorData:
    """Two classes of noise, dark and bright."""
    numbers = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    images = numbers.integers(0, 128, (len(labels), 1, size, size)).astype(np.uint8)
    images[labels == 1] += 100
    pool = Pool(images, labels)
    return GeneratorData.of_pool(pool, measure(pool, ["dark", "bright"]), batch_size=batch_size, **kwargs)


def module(name: str = "stylegan2", **kwargs):
    kind, small = SMALL[name]
    return kind(**{**small, "ema_rampup": 0.5, **kwargs})


def train(root: Path, steps: int, own=None, given=None, **kwargs):
    own = own or module()
    start = kwargs.pop("ckpt_path", None)
    told = {**TRAINER, "max_steps": 2 * steps, **kwargs}
    pytorch_lightning.Trainer(default_root_dir=root, **told).fit(
        own, given or data(), ckpt_path=start, weights_only=True
    )
    return own


def equal(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(a, b) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# Losses and images that the others do not have.
OTHER = {"loss": "relativistic", "r2": True, "r1_every": 2, "gamma": 0.1}


@pytest.mark.parametrize(
    ("name", "extra"), [("stylegan2", FULL), ("biggan", {}), ("cgan", {}), ("stylegan2", OTHER), ("biggan", OTHER)]
)
def test_k_steps_and_k_more_are_2k_steps_bit_for_bit(name: str, extra, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 10, module(name, **extra))
    torch.manual_seed(99)  # the global generator has no say
    saver = {"callbacks": [KeepLast(every_n_steps=10)], "plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    train(tmp_path / "parts", 5, module(name, **extra), **saver)
    torch.manual_seed(7)
    saver["callbacks"] = [KeepLast(every_n_steps=100)]
    parts = train(tmp_path / "parts", 10, module(name, **extra), ckpt_path=KeepLast.path(tmp_path / "parts"), **saver)
    assert int(parts.images_seen) == 80
    assert equal(whole, parts)
    if extra == FULL:
        assert 0 < float(parts.gan.ada_p) != 0.5
        assert float(parts.gan.path_mean) > 0


DOUBLE = {"precision": "64-true"}  # see the test of diffusion training


def ddp_worker(rank: int, name: str, extra: dict, out: str) -> None:
    own = module(name, **extra)
    pytorch_lightning.Trainer(max_steps=8, default_root_dir=out, **DDP, **DOUBLE).fit(own, data(4))
    torch.save(own.state_dict(), f"{out}/{rank}.pt")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("stylegan2", {**FULL, "group": 4, "accumulate": 2}), ("biggan", {"gamma": 1.0, "r1_every": 2}), ("cgan", {})],
)
def test_two_processes_equal_one_with_the_joined_batch(name: str, extra, tmp_path: Path) -> None:
    run_ranks(ddp_worker, name, extra, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    joined = train(tmp_path / "one", 4, module(name, **extra), data(8), **DOUBLE).state_dict()
    assert int(ranks[0]["images_seen"]) == int(joined["images_seen"]) == 32 * extra.get("accumulate", 1)
    assert distance(ranks[0], ranks[1]) == 0.0
    assert distance(ranks[0], joined) < 1e-5


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_with_alpha_and_of_two_bands(channels: int, tmp_path: Path) -> None:
    given = data()
    given.pool = Pool(np.repeat(given.pool.images, channels, axis=1), given.pool.labels)
    given._facts = measure(given.pool, ["dark", "bright"])
    own = train(tmp_path, 3, module(augment_p=0.8), given)
    made = own.generator()
    assert made.sample([1], [0], centre="global", truncation=0.5).images.shape == (1, channels, 16, 16)
    assert all(bool(torch.isfinite(value).all()) for value in own.state_dict().values())


def test_lecam_holds_logits_near_their_running_means(tmp_path: Path) -> None:
    """From step 1000 on; before, it is the same training without it."""

    def trained(lecam: float, steps_done: int):
        own = module(lecam=lecam)
        given = data()
        own.build(given.facts)
        own.gan.steps_done.fill_(steps_done)
        return train(tmp_path, 3, own, given).gan.discriminator.state_dict()

    assert distance(trained(0.0, 0), trained(10.0, 0)) == 0.0
    assert distance(trained(0.0, 1000), trained(10.0, 1000)) > 1e-4


def test_accumulated_batches_equal_a_large_one(tmp_path: Path) -> None:
    extra = {**FULL, "group": 1}  # the minibatch standard deviation is of what is seen together
    large = train(tmp_path / "a", 4, module(**extra), data(16), **DOUBLE)
    small = train(tmp_path / "b", 4, module(**extra, accumulate=2), data(8), **DOUBLE)
    assert int(large.images_seen) == int(small.images_seen) == 64
    assert distance(large.state_dict(), small.state_dict()) < 1e-5


@pytest.mark.parametrize(
    ("name", "steps", "rate"),
    [pytest.param("stylegan2", 150, 1e-2, marks=pytest.mark.slow), ("biggan", 60, 5e-3), ("cgan", 150, 1e-3)],
)
def test_it_learns_what_tells_classes_apart(name: str, steps: int, rate: float, tmp_path: Path) -> None:
    own = train(tmp_path, steps, module(name, augment="none", lr_g=rate, lr_d=rate), data(16))
    made = own.generator().sample(list(range(64)), [0, 1] * 32).images.float()
    assert made[1::2].mean() - made[::2].mean() > 25  # 100 in the data


def test_bf16_has_its_penalties_in_float32(tmp_path: Path, monkeypatch) -> None:
    seen = []
    original = gradient_penalty
    monkeypatch.setattr(
        "visynth.lightning_modules.gan_step.gradient_penalty",
        lambda a, b: seen.append((a.dtype, b.dtype)) or original(a, b),
    )
    own = train(tmp_path, 3, module(r1_every=1), precision="bf16-mixed")
    assert seen == [(torch.float32, torch.float32)] * 3
    assert all(bool(torch.isfinite(value).all()) for value in own.state_dict().values())


@pytest.mark.parametrize("extra", [{"augment_p": 0.6}, {"discriminator": "projected", "view": 64}])
def test_bf16_changes_no_penalty_and_no_weight_by_it(extra) -> None:
    own = module(gamma=1.0, r1_every=1, **extra)
    own.build(data().facts)
    own.gan.discriminator.eval()  # spectral norms stay as they are
    micro = Micro(torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 0, 1]), [0, 1, 2, 3])

    def gradients(bf16: bool) -> list[torch.Tensor]:
        images = micro.real.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = own.gan._logits([images], micro.labels, micro.positions, "real")[0][1]
            penalty = own.gan.penalty(images, micro.labels, logits, micro.positions, "real").mean()
        with torch.autocast("cpu", enabled=False):
            found = torch.autograd.grad(penalty, own.gan.movable, allow_unused=True)
        return [penalty.detach(), *(g for g in found if g is not None)]

    plain, half = gradients(False), gradients(True)
    assert len(plain) > 3
    assert all(torch.equal(a, b) for a, b in zip(plain, half, strict=True))


@pytest.mark.parametrize("name", ["stylegan2", "biggan", "cgan"])
def test_bf16_keeps_styles_logits_and_pictures_in_float32(name: str) -> None:
    own = module(name)
    own.build(data().facts)
    labels = torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        made = own.gan.family.synthesize(own.gan, own.gan.draw("generator", [0, 1]), "generator", [0, 1])[0]
        assert made.dtype == own.gan.discriminator(made, labels).dtype == torch.float32
        if name == "stylegan2":
            assert own.gan.generator.styles(torch.randn(2, 8), labels).dtype == torch.float32


class TestFew:
    def test_too_few_images_are_refused_with_what_else_there_is(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"StyleGAN2 from scratch cannot learn bright \(19\) .*composition or inpainting"
        ):
            train(tmp_path, 1, given=data(counts=(30, 19)))
        train(tmp_path, 1, module(allow_few=True), data(counts=(30, 19)))

    def test_few_images_and_few_groups_are_told(self, class_folders, tmp_path: Path, capsys) -> None:
        root = class_folders({"a": 60, "b": 60})
        (tmp_path / "groups.csv").write_text(
            "file,group\n"
            + "".join(
                f"{p.relative_to(root).as_posix()},{i % 5 if p.parent.name == 'b' else i}\n"
                for i, p in enumerate(sorted(root.rglob("*.png")))
            )
        )
        given = GeneratorData(root, 16, batch_size=8, groups=str(tmp_path / "groups.csv"))
        train(tmp_path / "run", 1, given=given)
        told = capsys.readouterr().out
        assert "few images: b (60 images of 5 groups): composition" in told


class TestGuard:
    def test_back_to_the_last_good_state_at_half_the_rate(self, tmp_path: Path, monkeypatch, capsys) -> None:
        bad = [4]

        def spoilt(name, real, fake):
            own.calls += 1
            loss = discriminator_loss(name, real, fake)
            return loss * (float("nan") if own.calls in bad else 1.0)

        monkeypatch.setattr("visynth.lightning_modules.adversarial.discriminator_loss", spoilt)
        own = module()
        own.calls = 0
        train(tmp_path, 8, own)
        assert int(own.restored) == 1
        assert "back to the last good weights, learning rates times 0.5" in capsys.readouterr().out
        assert [group["lr"] for o in own.optimizers() for group in o.param_groups] == [1.25e-3] * 2
        assert all(bool(torch.isfinite(value).all()) for value in own.state_dict().values())

    def test_weights_and_optimizers_are_those_that_were_remembered(self, tmp_path: Path) -> None:
        own = train(tmp_path, 4)
        kept = {name: value.clone() for name, value in own.guard._kept["weights"].items()}
        moments = own.guard._kept["optimizers"][0]["state"][0]["exp_avg"].clone()
        assert (
            distance(kept, {name: own.state_dict()[name] for name in kept}) > 1e-4
        )  # of the first step; these are of the fourth
        own.guard.restore(own, "a loss")
        assert distance(kept, {name: own.state_dict()[name] for name in kept}) == 0.0
        assert torch.equal(own.optimizers()[0].optimizer.state_dict()["state"][0]["exp_avg"], moments)

    def test_after_a_bad_generator_loss_too(self, tmp_path: Path, monkeypatch) -> None:
        calls = []

        def spoilt(name, fake, real=None):
            calls.append(1)
            return generator_loss(name, fake, real) * (float("nan") if len(calls) == 3 else 1.0)

        monkeypatch.setattr("visynth.lightning_modules.adversarial.generator_loss", spoilt)
        own = module(lecam=0.1)
        train(tmp_path, 8, own)
        assert int(own.restored) == 1
        assert own.trainer.global_step == 16
        assert all(p.requires_grad for p in own.gan.discriminator.parameters())
        assert all(bool(torch.isfinite(value).all()) for value in own.state_dict().values())

    def test_rates_of_a_resumed_run_are_those_told_now(self, tmp_path: Path) -> None:
        saver = {
            "callbacks": [KeepLast(every_n_steps=4)],
            "plugins": [AtomicCheckpointIO()],
            "enable_checkpointing": True,
        }
        first = module()
        train(tmp_path, 2, first, **saver)
        saver["callbacks"] = [KeepLast(every_n_steps=100)]
        own = module(lr_g=1e-4, lr_d=2e-4)
        train(tmp_path, 4, own, ckpt_path=KeepLast.path(tmp_path), **saver)
        assert [group["lr"] for o in own.optimizers() for group in o.param_groups] == [2e-4, 1e-4]

    def test_it_gives_up_after_three_times(self, tmp_path: Path, monkeypatch) -> None:
        own = module()
        calls = []

        def spoilt(name, real, fake):
            calls.append(1)
            return discriminator_loss(name, real, fake) * (float("nan") if len(calls) > 1 else 1.0)

        monkeypatch.setattr("visynth.lightning_modules.adversarial.discriminator_loss", spoilt)
        with pytest.raises(
            Diverged, match=r"a loss or gradient became infinite or not a number after 40 images, 3 times before"
        ):
            train(tmp_path, 8, own)
        assert all(bool(torch.isfinite(value).all()) for value in own.state_dict().values())


class TestTransfer:
    def test_weights_come_from_a_generator_folder_and_its_discriminator(self, tmp_path: Path, capsys) -> None:
        first = train(tmp_path / "a", 2)
        folder = first.export(tmp_path / "generator")
        assert (folder / FILE).is_file()
        load_generator(folder)
        own = module(transfer=str(folder), freeze=1, lr_g=1e-12, lr_d=1e-12)
        train(tmp_path / "b", 1, own, data(counts=(30, 5)))  # few images are what transfer is for
        told = capsys.readouterr().out
        assert "tensors of the generator" in told
        assert distance(own.gan.generator.state_dict(), dict(first.gan.generator_ema.state_dict())) < 0.1
        before, now = first.gan.discriminator.state_dict(), own.gan.discriminator.state_dict()
        assert torch.equal(before["b16.conv0.weight"], now["b16.conv0.weight"])

    def test_classes_are_taken_by_name(self, tmp_path: Path) -> None:
        told: list[str] = []
        for name in SMALL:
            folder = train(tmp_path / name, 2, module(name)).export(tmp_path / name / "generator")
            before = load_generator(folder).weights()
            given = data()
            given._facts = replace(given.facts, classes=("bright", "new"))
            own = module(name, transfer=str(folder))
            own.build(given.facts)
            start = {part: value.clone() for part, value in own.gan.generator.state_dict().items()}
            own.print = told.append  # there is no trainer
            own.take_over(folder)
            embedding = next(part for part in start if part.endswith("embed.weight"))
            axis = 1 if name == "stylegan2" else 0
            now = own.gan.generator.state_dict()[embedding]
            assert torch.equal(now.select(axis, 0), before[embedding].select(axis, 1))
            assert torch.equal(now.select(axis, 1), start[embedding].select(axis, 1))
            assert told[-1].endswith("; new classes: new")

    def test_an_unconditional_generator_becomes_one_that_makes_the_same(self, tmp_path: Path) -> None:
        plain = StyleGAN2Network(16, 1, 0, z_dim=8, w_dim=8, base=64, most=8)
        facts = data().facts
        spec = Spec(
            "stylegan2",
            {"classes": 0, "z_dim": 8, "w_dim": 8, "base": 64, "most": 8, "layers": 2},
            ("image",),
            1,
            (16, 16),
        )
        folder = StyleGAN2Generator(spec, plain).save(tmp_path / "generator")
        z, told = torch.randn(3, 8), []
        for extra in ({}, {"shared": 8}):
            own = module(transfer=str(folder), **extra)
            own.build(facts)
            own.print = told.append  # there is no trainer
            own.take_over(folder)
            for label in (0, 1):
                made = own.gan.generator(z, torch.full((3,), label))
                assert torch.allclose(made, plain(z, None), atol=1e-5)

    def test_another_depth_is_told(self, tmp_path: Path) -> None:
        folder = train(tmp_path / "a", 1).export(tmp_path / "generator")
        with pytest.raises(UsageError, match="has a mapping of 2 layers, this network of 4: give layers=2"):
            train(tmp_path / "b", 1, module(transfer=str(folder), layers=4))

    def test_no_more_blocks_are_frozen_than_there_are(self) -> None:
        with pytest.raises(UsageError, match="freeze must be below the 3 blocks of the discriminator, but got 3"):
            module(freeze=3).build(data().facts)

    def test_frozen_blocks_do_not_move(self, tmp_path: Path) -> None:
        own = module(freeze=1)
        own.build(data().facts)
        before = {name: value.clone() for name, value in own.gan.discriminator.state_dict().items()}
        train(tmp_path, 3, own)
        still = [name for name, value in own.gan.discriminator.state_dict().items() if torch.equal(value, before[name])]
        assert still == [name for name in before if name.startswith("b16.")]

    def test_other_widths_are_told(self, tmp_path: Path) -> None:
        folder = train(tmp_path / "a", 1, module("cgan")).export(tmp_path / "generator")
        with pytest.raises(UsageError, match=r"no weights of .* fit this network"):
            train(tmp_path / "b", 1, module(transfer=str(folder)))


def test_samples_show_as_much_of_the_class_as_was_trained(tmp_path: Path) -> None:
    own = train(tmp_path, 2, module(transition=[0.5, 0.9], kimg=1))
    made = own.generator()
    assert made.spec.arguments["strength"] == 0
    assert torch.equal(
        made.sample([1, 2], [0, 0], noise="none").images, made.sample([1, 2], [1, 1], noise="none").images
    )
    again = load_generator(made.save(tmp_path / "generator"))
    assert torch.equal(again.sample([1], [0]).images, made.sample([1], [0]).images)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"precision": "bf16-true"}, "precision must be one of '32-true', 'bf16-mixed'.* but is 'bf16-true'"),
        (
            {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
            "give the model accumulate=2 instead; gradient_clip",
        ),
    ],
)
def test_trainers_that_do_not_suit_are_told(told, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        train(tmp_path, 1, **told)


def test_the_budget_is_in_images_and_used_up_once(tmp_path: Path) -> None:
    saver = {"callbacks": [KeepLast(every_n_steps=2)], "plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    own = train(tmp_path, 1000, module(kimg=0.04), **saver)
    assert int(own.images_seen) == 40
    saver["callbacks"] = [KeepLast(every_n_steps=2)]
    again = train(tmp_path, 1000, module(kimg=0.04), ckpt_path=KeepLast.path(tmp_path), **saver)
    assert equal(own, again)


def test_noise_on_classes_is_more_for_rare_ones() -> None:
    own = module(class_noise=0.5)
    own.build(data(counts=(900, 30)).facts)
    common, rare = own.gan.family.spread(torch.device("cpu")).tolist()
    assert (common + rare) / 2 == pytest.approx(0.5)
    assert common / rare == pytest.approx((1 - 0.99**30) / (1 - 0.99**900), rel=1e-4)


def test_path_lengths_of_a_linear_generator() -> None:
    torch.manual_seed(0)
    matrix, ws = torch.randn(5, 16), torch.randn(3, 1, 5, requires_grad=True)
    images = (ws[:, 0] @ matrix).reshape(3, 1, 4, 4)
    noise = torch.randn(3, 1, 4, 4)
    told = (noise.flatten(1) / 4 @ matrix.t()).norm(dim=1)
    assert torch.allclose(path_lengths(images, ws, noise), told)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"loss": "wasserstein"}, "loss must be one of 'non_saturating', 'hinge', 'relativistic'"),
        ({"augment_p": 0.9}, r"augment_p must be in \[0, 0.8\] \(more leaks into what is made\)"),
        ({"augment_kinds": ["tilt"]}, "augment_kinds 'tilt' are unknown; ada has 'blit'"),
        ({"transition": [0.1, 0.2]}, "transition is in parts of the budget kimg"),
        (
            {"accumulate": 0, "gamma": -1.0},
            "gamma must be at least 0 or null, but got -1.0; accumulate must be at least 1",
        ),
        ({"loss": "relativistic", "lecam": 0.1}, "relativistic only about their difference"),
        (
            {"sampler": {"truncatoin": 1}, "micro_batch": 0},
            "micro_batch must be at least 1.*sampler options 'truncatoin' are unknown",
        ),
        ({"sampler": {"truncation": 7}}, r"truncation must be in \[0, 2\]"),
        ({"discriminator": "patch"}, "discriminator must be 'residual' or 'projected'"),
    ],
)
def test_wrong_options_are_told(wrong, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        module(**wrong)


def test_pictures_that_are_not_square_are_told(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 255, (60, 1, 16, 32)).astype(np.uint8)
    pool = Pool(numbers, np.repeat([0, 1], 30))
    with pytest.raises(UsageError, match="makes square images, but the data are 16x32"):
        train(tmp_path, 1, given=GeneratorData.of_pool(pool, measure(pool, ["a", "b"]), batch_size=8))
