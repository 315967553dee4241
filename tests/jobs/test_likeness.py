"""Who judges the images: no network that had a hand in them, and one trained on the real images where there is no other."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.judges import circular, family
from visynth.jobs import likeness
from visynth.jobs.evaluate import evaluate_renders
from visynth.lightning_modules import encoder
from visynth.lightning_modules.encoder import train_encoder
from visynth.metrics.memorization import near_duplicates
from visynth.metrics.probe import probe


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_the_default_features_judge_where_they_had_no_hand(made, tmp_path: Path) -> None:
    images, renders = made
    evaluate_renders(images, renders, tmp_path / "report", seeds=3, count=8, workers=0)
    report = report_of(tmp_path / "report")
    assert report["conditions"]["judge of likeness"].startswith("efficientnet_lite0")
    assert report["conditions"]["networks that had a hand in the images"] == "none known"
    (section,) = [s for s in report["sections"] if s["title"] == "Likeness and near-duplicates"]
    (suite,) = [b for b in section["blocks"] if b["kind"] == "table" and b["columns"][0] == "metric"]
    values = {row[0].split(":")[1].strip(): row[1:] for row in suite["rows"]}
    assert any(head.startswith("spot (n ") for head in suite["columns"])
    assert all(len(row) == len(suite["columns"]) for row in suite["rows"])
    assert values["clusters of real images that are reached"]
    told = [line for b in section["blocks"] if b["kind"] == "list" for line in b["lines"]]
    assert any("precision of spot" in line for line in told)  # too few real spots, and it says so


def test_a_network_that_had_a_hand_is_no_judge(made, tmp_path: Path, monkeypatch) -> None:
    images, renders = made
    hands = {"efficientnet_lite0": "features of the discriminator"}
    used = replace(renders, summary={**renders.summary, "extractors": hands})
    with pytest.raises(UsageError, match=r"cannot judge these images: .*features of the discriminator.*--judge own"):
        evaluate_renders(images, used, tmp_path / "no", judge="efficientnet_lite0")
    assert not (tmp_path / "no").exists()
    monkeypatch.setattr(encoder, "train_encoder", partial(train_encoder, steps=2))
    evaluate_renders(images, used, tmp_path / "report", seeds=3, count=8, workers=0)
    report = report_of(tmp_path / "report")
    assert report["conditions"]["judge of likeness"] == "own@64"
    assert "features of the discriminator" in report["conditions"]["networks that had a hand in the images"]
    assert "efficientnet_lite0 is no judge here" in json.dumps(report)
    monkeypatch.setattr(
        likeness, "FEWEST", 1000
    )  # as on a small set: the verdicts stand, likeness is not measured, and says so
    evaluate_renders(images, used, tmp_path / "report", seeds=3, count=8, workers=0)
    report = report_of(tmp_path / "report")
    assert report["conditions"]["judge of likeness"].startswith("Not measured: efficientnet_lite0 is no judge here")
    assert [v for v in report["verdicts"] if v["label"] == "spot" and "difference" in v["numbers"]]


def test_the_hand_is_recorded_from_training_to_the_rendered_set(tmp_path: Path) -> None:
    import pytorch_lightning
    from pytorch_lightning.callbacks import EarlyStopping

    from tests.callbacks.test_callbacks import SMALL
    from tests.lightning_modules.test_gan import data, module
    from tests.ranks import TRAINER
    from visynth.callbacks import KIDCallback
    from visynth.render.run import make_plan, render_set

    own = module()
    watch = KIDCallback(**{**SMALL, "options": {}, "count": 60, "resolution": 32, "grid": 0, "every_n_steps": 2})
    chosen = EarlyStopping("kid_efficientnet_lite0@32", strict=False, check_on_train_epoch_end=True)
    pytorch_lightning.Trainer(**TRAINER, default_root_dir=tmp_path, max_steps=8, callbacks=[watch, chosen]).fit(
        own, data()
    )
    hands = {"efficientnet_lite0": "distances that checkpoints were chosen by"}
    assert own.extractors == hands
    generator = own.generator(members=own.members(), card=own.card())
    renders = render_set(generator, make_plan(generator, per_class=1), tmp_path / "renders")
    assert renders.summary["extractors"] == hands


def test_a_discriminator_on_features_is_recorded() -> None:
    from tests.lightning_modules.test_gan import data, module

    own, given = module(), data()
    given.setup()
    own.hparams["discriminator"] = "projected"
    own.build(given.facts) if own._facts is None else None
    assert own.card()["extractors"] == {"efficientnet_lite0": "features of the discriminator"}


def test_what_chose_by_agreement_is_recorded(made) -> None:
    from visynth.jobs.likeness import used_by

    assert used_by(made[1], {"agreement": 0.5}) == {"efficientnet_lite0": "features of the filter by agreement"}
    assert used_by(made[1], {"near_duplicates": False}) == {
        "efficientnet_lite0": "features of the filter of near-duplicates"
    }
    assert used_by(made[1], None) == {}


def test_copies_are_looked_for_among_training_images_beside_a_validation_split(made) -> None:
    """Of a trained generator, whose search chose on a split named val: those images are on neither side."""
    images, renders = made
    groups = sorted({i.group for i in images.items if i.labels == ("spot",)})
    side = {group: ("train", "val", "test")[k % 3] for k, group in enumerate(groups)}
    items = [replace(i, split=side[i.group]) for i in images.items if i.labels == ("spot",)]
    said: list[str] = []
    found = likeness.copies_of(renders, ["spot"], items, images, said.append)
    fresh = sum(side[i.group] == "test" for i in items)
    assert said == []
    assert found["spot"].of_fresh == fresh


def test_families() -> None:
    assert family("tf_efficientnet_lite0.in1k") == family("efficientnet_lite0@112")
    assert circular({"dinov2": "loss"}, "vit_small_patch14_dinov2.lvd142m") == ["dinov2: loss"]
    assert circular({"inception_v3": "chosen"}, "efficientnet_lite0@160") == []


def test_an_unknown_judge_is_told_before_anything_else(made, medium, tmp_path: Path, capsys) -> None:
    _, renders = made
    told = ["--data", str(medium / "images"), "--out", str(tmp_path / "out"), "--judge", "nobody"]
    assert main(["evaluate", str(renders.folder), *told]) == 64
    assert "there are no features 'nobody'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sets_are_compared_at_one_size() -> None:
    """A collapsed class must not look more diverse than held-out images because there is more of it."""
    from visynth.jobs.likeness import Judge, likeness_blocks

    rng = np.random.default_rng(0)
    real = rng.normal(size=(64, 6)).astype(np.float32)
    fake = rng.normal(size=(400, 6)).astype(np.float32) * np.array([1, 1, 1, 0.05, 0.05, 0.05], np.float32)
    items = [type("I", (), {"labels": ("crack",)})() for _ in range(64)]
    blocks = likeness_blocks(Judge("toy", real, {"crack": fake}, ""), items, np.arange(40), np.arange(40, 64))
    (suite,) = [b for b in blocks if b["kind"] == "table" and b["columns"][0] == "metric"]
    assert suite["columns"] == ["metric", "crack (n 24)"]
    values = {row[0]: row[1] for row in suite["rows"]}
    own, held = (float(v.strip("()")) for v in values["diversity: real images with a synthetic neighbour"].split())
    assert own < held
    assert "(" not in values["memorization: chance to be nearer to training than a held-out image"]


def test_a_hand_survives_a_checkpoint(tmp_path: Path) -> None:
    import pytorch_lightning

    from tests.lightning_modules.test_gan import data, module
    from tests.ranks import TRAINER

    own = module()
    own.uses_extractor("dinov2", "loss")
    trainer = pytorch_lightning.Trainer(**TRAINER, default_root_dir=tmp_path, max_steps=2)
    trainer.fit(own, data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = type(own).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.extractors == {"dinov2": "loss"}


class TestEncoder:
    def test_it_tells_what_real_images_show(self) -> None:
        """Stripes of two widths: the classes are apart in its features, and images of one class are not."""
        rng = np.random.default_rng(0)

        def image(width: int) -> np.ndarray:
            rows = (np.arange(48) // width % 2)[:, None] * 120 + rng.integers(0, 100, (48, 48))
            return rows.astype(np.uint8)[:, :, None]

        images, labels = [image(w) for w in (2, 6) * 40], [0, 1] * 40
        encoder = train_encoder(images[:40], labels[:40], steps=40)
        features = encoder.described([encoder.prepare(i, 64) for i in images[40:]]).pooled[:, : encoder.width].numpy()
        assert encoder.name == "own"
        assert probe(features[::2], features[1::2]) > 0.95
        assert near_duplicates(features[:20], features[20:]).share < 0.5

    def test_it_is_the_same_again_and_leaves_the_random_state(self) -> None:
        images = [np.random.default_rng(k).integers(0, 256, (32, 40, 3), np.uint8) for k in range(20)]
        before = torch.get_rng_state()
        first, second = (train_encoder(images, [-1] * 20, seed=4, steps=2) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        for one, other in zip(first.network.parameters(), second.network.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_few_images(self) -> None:
        with pytest.raises(DataError, match="needs at least 20 of them, but there are 3"):
            train_encoder([np.zeros((8, 8, 1), np.uint8)] * 3, [0, 0, 1])
