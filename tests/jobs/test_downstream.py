"""The user's own training beside a generator: trained with and without its images, tested, kept or promoted with it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.jobs.registry.local import LocalRegistry
from visynth.jobs.retrain.downstream import Downstream, check_downstream, decide, downstream_of, train_pair

TESTED = ("region46", "region04", "region09", "region15")  # groups, so that no spot is on both sides

# What a user's project looks like; it knows nothing of visynth.
SHOP = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


class Images(pl.LightningDataModule):
    def __init__(self, root: str):
        super().__init__()
        self.root, self.look = root, transforms.Compose([transforms.Resize((24, 24)), transforms.ToTensor()])

    def setup(self, stage=None):
        self.sets = {part: ImageFolder(f"{self.root}/{part}", self.look) for part in ("train", "test")}

    def train_dataloader(self):
        return DataLoader(self.sets["train"], 8, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.sets["test"], 8)


class Net(pl.LightningModule):
    def __init__(self, width: int = 8, lr: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(4 * width, 4),
        )

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def test_step(self, batch, index):
        images, labels = batch
        self.log("test_accuracy", (self.body(images).argmax(1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)
"""


@pytest.fixture
def project(samples, tmp_path, monkeypatch) -> Path:
    """A folder with the user's code, images in train/ and test/, and a configuration; it is the working folder."""
    (tmp_path / "shop.py").write_text(SHOP)
    for path in sorted(samples.glob("images/*/*.png")):
        for kind in ("images", "masks"):
            source = samples / kind / path.parent.name / path.name
            part = "test" if path.stem.split("_")[0] in TESTED else "train"
            target = tmp_path / kind / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                shutil.copyfile(source, target)
    config = {
        "trainer": {"max_steps": 6, "accelerator": "cpu"},
        "model": {"class_path": "shop.Net"},
        "data": {"class_path": "shop.Images", "init_args": {"root": str(tmp_path / "images")}},
    }
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("shop", None)


@pytest.fixture
def own(project) -> Downstream:
    return Downstream("training.yaml", "test_accuracy", mixing={"share": 0.5, "leak_guard": False})


def test_with_and_without(own, project, renders, tmp_path) -> None:
    pair = train_pair(own, renders.folder, None, tmp_path / "work")
    numbers = json.loads(pair.files["numbers.json"].read_text())
    assert numbers == json.loads(json.dumps(pair.numbers))
    assert set(numbers["scores"]) == {"real", "with synthetic"}
    import shop

    module = shop.Net.load_from_checkpoint(pair.files["model.ckpt"], weights_only=True)
    assert module.hparams.width == 8
    stored = torch.load(pair.files["model.ckpt"], weights_only=True)
    assert "optimizer_states" not in stored
    # The same seed, the same network: without synthetic images it is another one.
    real = torch.load(tmp_path / "work/real-0/model.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(real[name], value) for name, value in stored["state_dict"].items())
    # As a plain trainer has it: nothing of ours is clipped.
    assert yaml.safe_load((tmp_path / "work/real-0/config.yaml").read_text())["trainer"]["gradient_clip_val"] is None

    # The champion's module is tested, too; one of another width is told.
    champion = tmp_path / "champion"
    (champion / "downstream").mkdir(parents=True)
    shutil.copy(pair.files["model.ckpt"], champion / "downstream")
    again = train_pair(own, renders.folder, champion, tmp_path / "work")
    assert again.numbers["scores"]["champion"] == pair.numbers["scores"]["with synthetic"]
    assert again.better == pair.better
    stored["state_dict"] = {name: value[:1] for name, value in stored["state_dict"].items()}
    torch.save(stored, champion / "downstream/model.ckpt")
    assert "does not fit this training" in train_pair(own, renders.folder, champion, tmp_path / "work").reasons[-1]


class TestChecked:
    def test_what_is_wrong_is_told_before_anything_is_trained(self, own, project, sample_set, tmp_path) -> None:
        check_downstream(own, [], tmp_path / "work")
        with pytest.raises(UsageError, match="logs 'test_accuracy', and no 'f1'"):
            check_downstream(Downstream("training.yaml", "f1"), [], tmp_path / "work")

    def test_images_that_judge_may_not_be_fitted_on(self, own, project, sample_set, tmp_path) -> None:
        members = sample_set.members(lambda item: "train")
        with pytest.raises(DataError, match=r"was fitted on .* held-out images"):
            check_downstream(own, members, tmp_path / "work")

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"trainer": {}}, "never ends"),
            ({"model": {}}, "no class_path in 'model'"),
            ({"model": {"class_path": "shop.Missing"}}, "shop.Missing"),
        ],
    )
    def test_configurations(self, change, told: str, project, tmp_path) -> None:
        config = yaml.safe_load((tmp_path / "training.yaml").read_text()) | change
        (tmp_path / "training.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(UsageError, match=told):
            check_downstream(Downstream("training.yaml", "test_accuracy"), [], tmp_path / "work")

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"config": "training.yaml"}, "metric is missing"),
            ({"config": "training.yaml", "metric": "f1", "sides": 2}, "'sides' is unknown"),
            ({"config": "none.yaml", "metric": "f1"}, "there is no configuration"),
            ({"config": "training.yaml", "metric": "f1", "seeds": 0}, "seeds at least 1"),
        ],
    )
    def test_what_is_given(self, given, told: str, project) -> None:
        with pytest.raises(UsageError, match=told):
            downstream_of(given)


@pytest.mark.parametrize(
    ("options", "means", "better"),
    [
        ({}, {"real": 0.8, "with synthetic": 0.8}, True),
        ({}, {"real": 0.8, "with synthetic": 0.79}, False),
        ({"margin": 0.02}, {"real": 0.8, "with synthetic": 0.79}, True),
        ({}, {"real": 0.8, "with synthetic": 0.85, "champion": 0.86}, False),
        ({"mode": "min"}, {"real": 0.8, "with synthetic": 0.7, "champion": 0.75}, True),
        ({"mode": "min"}, {"real": 0.8, "with synthetic": 0.81}, False),
        ({}, {"real": 0.8, "with synthetic": float("nan")}, False),
    ],
)
def test_decisions(options, means, better: bool, project) -> None:
    said, reasons = decide(Downstream("training.yaml", "f1", **options), means)
    assert said is better
    assert "one training each, no interval" in reasons[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_story(project, tmp_path, capsys) -> None:
    """Generator and module are promoted together; with another image, they are judged together."""
    words = [
        "retrain", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--classes", "spot",
        "--generator", "{compose: {}}", "--registry", str(tmp_path / "registry"), "--out", str(tmp_path / "job"),
        "--require", "no harm", "--count", "12", "--seeds", "1", "--canary", "4", "--new-images", "1", "--quiet", "--json",
        "--downstream", "{config: training.yaml, metric: test_accuracy, margin: 1.0, mixing: {share: 0.4}}",
    ]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    first = json.loads(capsys.readouterr().out)
    assert first["outcome"] == "promoted", first["reasons"]
    assert any("of your own training" in reason for reason in first["reasons"])
    folder = LocalRegistry(tmp_path / "registry").path("champion")
    assert {p.name for p in (folder / "downstream").iterdir()} == {"model.ckpt", "training.yaml", "numbers.json"}
    for kind in ("images", "masks"):
        folder = tmp_path / kind / "train/spot"
        for path in list(folder.glob("*.png"))[:1]:
            shutil.copy(path, folder / f"more-{path.name}")
    import cv2

    path = next((tmp_path / "images/train/spot").glob("more-*"))
    cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    words[-1] = "{config: training.yaml, metric: test_accuracy, mode: min, mixing: {share: 0.4}, margin: 0.0}"
    code = main(words)
    said = capsys.readouterr()
    assert code == 0, said.err
    second = json.loads(said.out)
    scores = second["numbers"]["downstream"]["scores"]
    better, _ = decide(
        Downstream("training.yaml", "test_accuracy", mode="min"),
        {arm: sum(own) / len(own) for arm, own in scores.items()},
    )
    assert set(scores) == {"real", "with synthetic", "champion"}, second["reasons"]
    assert second["outcome"] == ("promoted" if better else "rejected")
    assert (second["champion"] == first["champion"]) is not better
