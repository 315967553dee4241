"""A user's own LightningModule and DataModule as the learner of a trial; their project is written here."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from visynth.cli import main
from visynth.core.errors import UsageError
from visynth.jobs.epochs import Epochs
from visynth.jobs.user_training import UserTraining
from visynth.verdict.learners import IMAGES, Items, learner_of

# It knows nothing of visynth; {lightning} is either package.
PROJECT = """
import random

import numpy as np
import torch
from {lightning} import LightningDataModule, LightningModule
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


class Flip:
    def __call__(self, image):
        np.random.rand()
        return image.flip(-1) if random.random() < 0.5 else image


def blend(samples):
    images, labels = torch.utils.data.default_collate(samples)
    return 0.5 * (images + images.flip(0)), labels


class Images(LightningDataModule):
    def __init__(self, root: str, blends: bool = False):
        super().__init__()
        self.blends = blends
        size = [transforms.Resize((24, 24)), transforms.ToTensor()]
        self.root, self.seen = root, transforms.Compose([*size, Flip()])
        self.plain = transforms.Compose(size)

    def setup(self, stage=None):
        self.sets = {{part: ImageFolder(self.root, getattr(self, part)) for part in ("seen", "plain")}}

    def train_dataloader(self):
        return DataLoader(self.sets["seen"], 8, shuffle=True, collate_fn=blend if self.blends else None)

    def val_dataloader(self):
        return DataLoader(self.sets["plain"], 8)


    hooked = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        Images.hooked.append(str(self.trainer.state.fn.value))
        return batch


class Bare(Images):
    def setup(self, stage=None):
        super().setup()
        for one in self.sets.values():
            del one.classes, one.class_to_idx


class Weighted(Images):
    class Set(ImageFolder):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {{"image": image, "label": label, "weight": float(index % 7) / 7}}

    def setup(self, stage=None):
        self.sets = {{part: self.Set(self.root, getattr(self, part)) for part in ("seen", "plain")}}


class Net(LightningModule):
    asked = []
    scored = []

    def __init__(self, num_classes: int, width: int = 8, fault: str = ""):
        super().__init__()
        self.fault = fault
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(4 * width, 1 if fault == "one" else 2 if fault == "two" else num_classes),
        )

    def forward(self, images):
        if self.fault == "none":
            return None
        if self.fault == "nan":
            return self.body(images) * float("nan")
        if self.fault == "decides":
            return self.body(images).argmax(1)
        if not self.training:
            Net.scored.append(images.detach().clone())
        return self.body(images)

    def training_step(self, batch, index):
        if self.fault == "raises":
            raise KeyError("weights of my loss")
        self.log("loss", 0.0)
        Net.asked.append((self.training, tuple(batch[0].shape)))
        return torch.nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def validation_step(self, batch, index):
        raise AssertionError("no validation in an arm")

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {{"optimizer": optimizer, "lr_scheduler": {{"scheduler": plateau, "monitor": "val_loss"}}}}

    def configure_callbacks(self):
        raise AssertionError("no callbacks in an arm")


class Mute(LightningModule):
    def training_step(self, batch, index):
        return None


class Detections(Images):
    def setup(self, stage=None):
        self.sets = {{"seen": self, "plain": self}}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        return torch.rand(3, 8, 8), {{"boxes": boxes, "labels": torch.tensor([1])}}

    classes = ["good", "scratch", "spot", "stain"]
"""


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def project(request, samples, tmp_path, monkeypatch) -> Path:
    (tmp_path / "factory.py").write_text(PROJECT.format(lightning=request.param))
    config = {
        "trainer": {"max_steps": 4, "accelerator": "cpu", "callbacks": None, "log_every_n_steps": 1},
        "model": {"class_path": "factory.Net"},
        "data": {"class_path": "factory.Images", "init_args": {"root": str(samples / "images")}},
    }
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("factory", None)


def changed(part: str, **values) -> str:
    config = yaml.safe_load(Path("training.yaml").read_text())
    config[part] = {**config.get(part, {}), **values}
    Path("other.yaml").write_text(yaml.safe_dump(config))
    return "other.yaml"


@pytest.fixture
def images(sample_set) -> list[np.ndarray]:
    return [sample_set.image(item) for item in sample_set.items]


def items_of(sample_set, weights: np.ndarray | None = None) -> Items:
    labels = np.array([sample_set.classes.index(item.labels[0]) for item in sample_set.items])
    count = len(labels)
    return Items(
        rows=np.arange(count),
        positive=labels == sample_set.classes.index("spot"),
        weights=np.ones(count) if weights is None else weights,
        parents=[frozenset({item.group}) for item in sample_set.items],
        real=np.ones(count, bool),
        labels=labels,
    )


def table(images) -> dict:
    given = np.empty(len(images), object)
    given[:] = [partial(images.__getitem__, k) for k in range(len(images))]
    return {IMAGES: given}


class TestEpochs:
    @pytest.mark.parametrize("seed", range(5))
    def test_each_item_comes_as_often_as_whole_numbers_allow(self, seed: int) -> None:
        weights = np.random.default_rng(seed).random(20) + 0.05
        epochs = Epochs(weights, 50, seed)
        expected = 50 * weights / weights.sum()
        total = np.zeros(20)
        for _ in range(400):
            counts = np.bincount(list(epochs), minlength=20)
            assert counts.sum() == len(epochs) == 50
            assert (counts >= np.floor(expected)).all()
            assert (counts <= np.ceil(expected)).all()
            total += counts
        np.testing.assert_allclose(total / 400, expected, atol=0.1)

    def test_equal_weights_are_a_shuffle(self) -> None:
        epochs = Epochs(np.full(7, 0.3), 7, 1)
        first, second = list(epochs), list(epochs)
        assert sorted(first) == sorted(second) == list(range(7))
        assert first != second


class TestFit:
    def test_the_module_trains_on_converted_images_and_scores_by_log_odds(self, project, sample_set, images) -> None:
        learner, lines = UserTraining("training.yaml"), []
        learner.check(sample_set.classes, images[:4], lines.append)
        import factory

        learner.progress.seconds = 0
        items, test = items_of(sample_set), np.arange(0, len(images), 3)
        state = torch.get_rng_state(), np.random.get_state()[1].tobytes()
        factory.Net.asked.clear()
        assert factory.Images.hooked == ["predict"]
        outcome = learner.fit(table(images), items, test, [frozenset({"a"})], seed=3)
        assert (torch.get_rng_state().numpy() == state[0].numpy()).all()
        assert np.random.get_state()[1].tobytes() == state[1]
        assert len(factory.Net.asked) == 4
        assert factory.Images.hooked == ["predict", *["fit"] * 4, *["predict"] * 2]  # its own hooks count
        assert factory.Net.asked[0] == (True, (8, 3, 24, 24))
        assert outcome.logits.shape == (len(test), 4)
        probabilities = np.exp(outcome.logits)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        spot = probabilities[:, sample_set.classes.index("spot")]
        np.testing.assert_allclose(outcome.scores, np.log(spot / (1 - spot)), rtol=1e-4, atol=1e-4)
        again = learner.fit(table(images), items, test, [frozenset({"a"})], seed=3)
        np.testing.assert_array_equal(outcome.scores, again.scores)
        assert lines[0].startswith("learner training.yaml: a training of 4 steps in each of the 5 arms of a cell")
        assert lines[1:] == ["    1 trainings of training.yaml", "    2 trainings of training.yaml"]
        other = learner.fit(table(images), items, test, [frozenset({"b"})], seed=3)
        assert not np.array_equal(outcome.scores, other.scores)

    def test_images_are_scored_one_by_one_whatever_the_training_blends(self, project, sample_set, images) -> None:
        learner = UserTraining(changed("data", init_args={"root": "", "blends": True}))
        learner.data["init_args"]["root"] = yaml.safe_load(Path("training.yaml").read_text())["data"]["init_args"][
            "root"
        ]
        learner.check(sample_set.classes, images[:4])
        import factory

        items = items_of(sample_set)
        factory.Net.scored.clear()
        learner.fit(table(images), items, items.rows[:5], [], seed=0)
        (seen,) = factory.Net.scored
        expected = torch.stack([learner.kit.test(image, "good")[0] for image in images[:5]])
        torch.testing.assert_close(seen, expected)

    def test_a_fit_is_the_same_whatever_state_it_finds(self, project, sample_set, images) -> None:
        learner = UserTraining("training.yaml")
        learner.check(sample_set.classes, images[:4])
        items, found = items_of(sample_set), []
        for state in (1, 2):
            random.seed(state)
            np.random.seed(state)
            torch.manual_seed(state)
            found.append(learner.fit(table(images), items, items.rows[:5], [], seed=0).scores)
            assert random.random() == random.Random(state).random()
        np.testing.assert_array_equal(*found)

    def test_a_rest_of_one_image_makes_no_batch(self, project, sample_set, images) -> None:
        learner = UserTraining(changed("trainer", max_steps=6))
        learner.check(sample_set.classes, images[:4])
        import factory

        whole = items_of(sample_set)
        rows = np.concatenate([np.arange(15), np.flatnonzero(whole.positive)[:2]])
        items = Items(**{**vars(whole), **{k: np.asarray(v)[rows] for k, v in vars(whole).items() if isinstance(v, np.ndarray)},
                         "parents": [whole.parents[r] for r in rows]})  # fmt: skip
        factory.Net.asked.clear()
        learner.fit(table(images), items, whole.rows[:5], [], seed=0)
        assert {shape[0] for _, shape in factory.Net.asked} == {8}

    def test_what_it_depends_on_is_its_key(self, project) -> None:
        learner = UserTraining("training.yaml")
        before = learner.inputs
        assert list(before["code"]) == ["factory"]
        Path("factory.py").write_text(Path("factory.py").read_text() + "\n# mended\n")
        assert learner.inputs["code"] != before["code"]
        Path("weights.bin").write_bytes(b"1")
        learner.model["init_args"] = {"fault": "weights.bin"}
        first = learner.inputs["files"]
        Path("weights.bin").write_bytes(b"2")
        assert learner.inputs["files"] != first

    def test_the_trainer_knows_its_epochs(self, project) -> None:
        learner = UserTraining(changed("trainer", max_steps=10))
        assert learner._trainer(4).max_epochs == 3
        learner = UserTraining(changed("trainer", max_steps=-1, max_epochs=5))
        assert (learner._trainer(4).max_epochs, learner._trainer(4).max_steps) == (5, -1)
        assert UserTraining(changed("trainer", max_steps=-1, max_time=None)).trainer["max_steps"] == 300

    def test_numbers_that_only_the_file_knows(self, project, sample_set, images) -> None:
        numbers = {"good": 0, "scratch": 1, "spot": 2, "stain": 3}
        config = yaml.safe_load(Path("training.yaml").read_text())
        config["data"]["class_path"] = "factory.Bare"
        Path("bare.yaml").write_text(yaml.safe_dump({**config, "classes": numbers}))
        learner = UserTraining("bare.yaml")
        learner.check(sample_set.classes, images[:4])
        assert dict(learner.kit.numbers) == numbers

    def test_the_numbers_of_the_users_classes_decide(self, project, sample_set, images, monkeypatch) -> None:
        learner = UserTraining("training.yaml")
        import factory

        monkeypatch.setattr(
            factory.ImageFolder, "find_classes",
            lambda self, root: (["spot", "good", "stain", "scratch"], {"spot": 0, "good": 1, "stain": 2, "scratch": 3}),
        )  # fmt: skip
        learner.check(sample_set.classes, images[:4])
        assert learner.kit.numbers == {"good": 1, "scratch": 3, "spot": 0, "stain": 2}
        assert int(learner.kit.train(images[0], "spot")[1]) == 0
        given = torch.tensor([[5.0, 0.0, 1.0, 2.0]])
        from visynth.jobs.user_training import _log_probabilities

        order = _log_probabilities(given, learner.kit)[0]  # good, scratch, spot, stain
        assert np.argsort(order).tolist() == [0, 3, 1, 2]

    def test_it_learns(self, project, sample_set, images) -> None:
        items, rng = items_of(sample_set), np.random.default_rng(0)
        made = [rng.integers(60 * k, 60 * k + 30, (24, 24, 1)).astype(np.uint8) for k in items.labels]
        learner = UserTraining(changed("trainer", max_steps=150))
        learner.check(sample_set.classes, made[:4])
        outcome = learner.fit(table(made), items, items.rows, [], seed=0)
        assert (outcome.logits.argmax(axis=1) == items.labels).mean() > 0.8

    def test_without_a_datamodule(self, project, sample_set, images) -> None:
        learner = learner_of("factory.Net")
        assert isinstance(learner, UserTraining)
        assert learner.trainer == {"max_steps": 300}
        learner.trainer["max_steps"] = 2
        learner.check(sample_set.classes, images[:4])
        import factory

        factory.Net.asked.clear()
        items = items_of(sample_set)
        learner.fit(table(images), items, items.rows[:5], [], seed=0)
        assert factory.Net.asked[0] == (True, (32, 3, 128, 128))

    def test_balance_and_labels_that_none_has(self, project, sample_set, images) -> None:
        """Images without a class of their own do not train; with even weights every class comes as often."""
        from visynth.jobs import user_training

        seen: list[Counter] = []

        class Spied(user_training.Epochs):
            def __iter__(self):
                chosen = list(super().__iter__())
                seen.append(Counter(chosen))
                return iter(chosen)

        items = items_of(sample_set, np.ones(len(images)))
        even = Items(**{**vars(items), "even": True, "labels": np.where(items.labels == 3, -1, items.labels)})
        learner = UserTraining("training.yaml")
        learner.check(sample_set.classes, images[:4])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(user_training, "Epochs", Spied)
            learner.fit(table(images), even, items.rows[:5], [], seed=0)
        labels = even.labels[even.labels >= 0]
        counts = Counter(labels[list(seen[0].elements())].tolist())
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= 1


class TestRefused:
    @pytest.mark.parametrize(
        ("part", "values", "told"),
        [
            ("model", {"class_path": "factory.Missing"}, "factory.Missing cannot be imported"),
            ("model", {"class_path": "pathlib.Path"}, "Path is no LightningModule"),
            ("model", {"init_args": {"depth": 3}}, r"(?s)factory.Net could not be made.*depth"),
            ("model", {"init_args": {"fault": "none"}}, r"returns no scores: for 2 images it gave NoneType, but a tensor \[2, classes\]"),
            ("model", {"init_args": {"fault": "two"}}, "gives 2 scores an image, but the classes are .*it needs 4"),
            ("model", {"init_args": {"fault": "one"}}, "gives 1 scores an image"),
            ("model", {"init_args": {"fault": "nan"}}, "scores that are not finite"),
            ("model", {"class_path": "factory.Mute"}, r"factory.Mute lacks what scoring needs.*forward\(images\)"),
            ("data", {"class_path": "factory.Detections"}, "masks or boxes: this takes a training that classifies images"),
            ("model", {"init_args": {"fault": "decides"}}, "gives decisions .*rank nothing"),
            ("data", {"class_path": "factory.Bare"}, "does not say which number is which class.*under classes"),
            ("data", {"class_path": "factory.Weighted"}, "carry 'weight' beside image and label"),
            ("trainer", {"callbacks": [{"class_path": "a.StochasticWeightAveraging"}]}, "may change the training"),
            ("ckpt_path", {"a": "b"}, "'ckpt_path' cannot be respected"),
            ("classes", {"good": "zero"}, "classes must be"),
            ("trainer", {"max_time": "00:01:00"}, "trainer: 'max_time' cannot be respected here"),
            ("optimizer", {"class_path": "torch.optim.Adam"}, "'optimizer' cannot be respected here"),
        ],
    )  # fmt: skip
    def test_before_anything_takes_time(self, project, sample_set, images, part, values, told) -> None:
        with pytest.raises(UsageError, match=told):
            UserTraining(changed(part, **values)).check(sample_set.classes, images[:4])

    def test_a_class_that_the_datamodule_does_not_have(self, project, images) -> None:
        with pytest.raises(UsageError, match="dent"):
            UserTraining("training.yaml").check(["good", "dent"], images[:2])

    def test_a_module_that_raises(self, project, sample_set, images) -> None:
        learner = UserTraining(changed("model", init_args={"fault": "raises"}))
        learner.check(sample_set.classes, images[:4])
        items = items_of(sample_set)
        with pytest.raises(
            UsageError, match=r"factory.Net failed in training: KeyError: 'weights of my loss' \(.*factory.py:\d+\)"
        ):
            learner.fit(table(images), items, items.rows[:5], [], seed=0)

    def test_names_that_are_nothing(self, project) -> None:
        with pytest.raises(UsageError, match=r"'finetune'.*'frozen'.*MyModule"):
            learner_of("resnet")
        with pytest.raises(UsageError, match=r"there is no configuration missing\.yaml"):
            learner_of("missing.yaml")
        Path("empty.yaml").write_text("")
        with pytest.raises(UsageError, match="must hold model"):
            learner_of("empty.yaml")
        Path("broken.yaml").write_text("model: {")
        with pytest.raises(UsageError, match="is no YAML"):
            learner_of("broken.yaml")


def test_a_trial_and_an_evaluation_by_it(project, samples, renders, tmp_path, capsys) -> None:
    options = ["--masks", str(samples / "masks"), "--groups", str(samples / "groups.csv"), "--quiet", "--json"]
    asked = ["--rare", "spot", "--learner", "training.yaml", "--draws", "2", "--folds", "2", "--synthetic", "6"]
    asked += ["--no-others", "--render", "2"]
    assert main(["trial", str(samples / "images"), *options, *asked, "--out", "out"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    (verdict,) = [v for v in report["verdicts"] if v["label"] == "spot"]
    assert set(verdict["numbers"]["arms"]) == {"real", "balanced", "augment", "synthetic", "logit adjusted"}
    assert "training.yaml" in json.dumps(report)
    recipe = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert "spot" in recipe["classes"]
    capsys.readouterr()
    code = main(
        [
            "trial",
            str(samples / "images"),
            *options,
            *asked,
            "--out",
            "out2",
            "--learner",
            changed("model", init_args={"fault": "raises"}),
        ]
    )
    assert code == 64
    assert "failed in training" in capsys.readouterr().err
    assert not Path("out2").exists()
