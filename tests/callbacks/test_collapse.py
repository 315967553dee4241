"""Recall against brute force, and the alarm on a generator that makes one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

from tests.callbacks.test_callbacks import SMALL, Means
from tests.lightning_modules.test_gan import data, module
from tests.ranks import TRAINER
from visynth.callbacks import CollapseAlarm, CopyAlarm
from visynth.core.errors import UsageError
from visynth.metrics.support import precision, recall, within


def test_recall_and_precision_are_the_papers() -> None:
    numbers = np.random.default_rng(0)
    real, made = numbers.normal(size=(40, 3)).astype(np.float32), numbers.normal(size=(30, 3)).astype(np.float32) * 0.5

    def slow(points, support) -> float:
        radius = [np.sort(np.linalg.norm(support - s, axis=1))[3] for s in support]
        return float(
            np.mean([any(np.linalg.norm(p - s) <= r for s, r in zip(support, radius, strict=True)) for p in points])
        )

    assert recall(real, made) == pytest.approx(slow(real, made))
    assert precision(real, made) == pytest.approx(slow(made, real))
    assert recall(real, made) < precision(real, made)
    with pytest.raises(UsageError, match="needs more than 3 images, but there are 3"):
        within(real, made[:3])


def fit(root: Path, alarm: CollapseAlarm, own, steps: int = 4):
    trainer = pytorch_lightning.Trainer(**TRAINER, default_root_dir=root, max_steps=2 * steps, callbacks=[alarm])
    trainer.fit(own, data())
    return trainer


def alarm(**options) -> CollapseAlarm:
    told = {**SMALL, "options": {}, "count": 60, **options}
    return CollapseAlarm(features=Means(), **told)


@pytest.mark.injected
def test_a_class_that_is_lost_is_told_and_the_training_may_stop(tmp_path: Path, monkeypatch) -> None:
    own, watch = module(), alarm(stop=True, stop_after=0)
    picture = torch.zeros(1, 16, 16, dtype=torch.uint8)
    original = own.sample

    def collapsed(seeds, labels, **options):
        samples = original(seeds, labels, **options)
        samples.images[:] = picture
        return samples

    monkeypatch.setattr(own, "sample", collapsed)
    with pytest.warns(UserWarning, match="has lost most of class") as told:
        trainer = fit(tmp_path, watch, own, steps=30)
    words = [str(w.message) for w in told if "has lost" in str(w.message)]
    assert len(words) == 2
    assert words[0].startswith("the generator has lost most of class 'bright': it reaches 0% of its real images")
    assert trainer.global_step == 4  # two evaluations, one every second optimiser step
    assert watch.bad == {"bright", "dark"}


def test_real_images_raise_no_alarm(tmp_path: Path, monkeypatch) -> None:
    own, watch, given = module(), alarm(), data()
    given.setup()

    def real(seeds, labels, **options):
        numbers = np.random.default_rng([int(s) % 2**32 for s in seeds])
        rows = [numbers.choice(np.flatnonzero(given.pool.labels == label)) for label in labels]
        return type(
            "S",
            (),
            {
                "images": torch.from_numpy(given.pool.images[rows]),
                "crop": lambda self, i: self.images[i],
                "__len__": lambda self: len(rows),
            },
        )()

    monkeypatch.setattr(own, "sample", real)
    trainer = fit(tmp_path, watch, own)
    assert watch.bad == set()
    for name in ("dark", "bright"):
        value, null = watch.recalls[name]
        assert value > 0.5 * null > 0
        assert f"recall/{name}" in trainer.callback_metrics


@pytest.mark.injected
def test_a_generator_that_gives_training_images_back_is_told_and_the_training_may_stop(
    tmp_path: Path, monkeypatch
) -> None:
    own, watch, given = module(), CopyAlarm(**{**TOLD, "features": Means()}, stop=True, stop_after=0), data()
    given.setup()

    def copied(seeds, labels, **options):
        rows = [int(np.flatnonzero(given.pool.labels == label)[0]) for label in labels]
        return type("S", (), {"images": given.pool.images[rows], "crop": crop, "__len__": lambda self: len(rows)})()

    monkeypatch.setattr(own, "sample", copied)
    with pytest.warns(UserWarning, match="gives training images of class") as told:
        trainer = fit(tmp_path, watch, own, steps=30)
    assert len([w for w in told if "gives training images" in str(w.message)]) == 2
    assert trainer.global_step == 4
    assert watch.bad == {"bright", "dark"}
    assert watch.copies["dark"] == (1.0, 0.0)
    assert trainer.callback_metrics["copies/dark"] == 1.0
    assert trainer.callback_metrics["authenticity/dark"] == 0.0


def test_few_images_of_a_class_raise_no_alarm(tmp_path: Path, monkeypatch) -> None:
    watch = CopyAlarm(**{**TOLD, "features": Means(), "count": 8})
    assert watch.max_real == 20_000
    fit(tmp_path, watch, module())
    assert watch.copies == {}


def test_noise_is_no_copy(tmp_path: Path) -> None:
    own, watch = module(), CopyAlarm(**{**TOLD, "features": Means()})
    fit(tmp_path, watch, own)
    assert watch.bad == set()
    assert watch.state_dict() == {"times": {"bright": 0, "dark": 0}, "bad": []}


def crop(self, i: int):
    return torch.from_numpy(self.images[i])


TOLD = {**SMALL, "options": {}, "count": 60}
