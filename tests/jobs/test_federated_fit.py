"""A federated training through the commands: the shipped configuration in its smallest form, NVFlare's simulator, jobs and kits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from tests.conftest import ROOT
from visynth.cli import main
from visynth.generators.base import load_generator
from visynth.jobs.flare import own_data

DEPLOY = ROOT / "configs" / "deploy" / "nvflare"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of two sites; the south has no nines."""
    root = tmp_path_factory.mktemp("sites")
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:240], labels[:240], strict=True)):
        place = (
            root / ("digits_south" if number % 3 == 0 and label != 9 else "digits_north") / str(label) / f"{number}.png"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), (image.reshape(8, 8) * 15).astype("uint8"))
    return root


@pytest.fixture
def config(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "federated" / "digits.yaml").read_text())
    said["trainer"] |= {"max_steps": 2, "accelerator": "cpu"}
    said["model"]["init_args"] |= {"width": 8, "warmup": 32}
    said["data"]["init_args"]["batch_size"] = 8
    said["federated"]["local_steps"] = 2
    for name in ("north", "south"):
        said["federated"]["sites"][name]["data"] = str(folders / f"digits_{name}")
    return said


def fit(said: dict[str, Any], *words: str) -> int:
    Path("fed.yaml").write_text(yaml.safe_dump(said))
    return main(["fit", "-c", "fed.yaml", *words])


def generator_of(said: dict[str, Any]) -> dict[str, Any]:
    path = Path(said["trainer"]["default_root_dir"], "generator", "generator.json")
    spec: dict[str, Any] = json.loads(path.read_text())
    return spec


def test_the_shipped_configuration(config: dict[str, Any], folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config) == 0, capsys.readouterr().err
    generator = generator_of(config)
    card = generator["card"]["federated training"]
    assert card["answers"] == {"north": 2, "south": 2}
    assert "images per class and site" not in card
    assert not [key for key in generator["card"] if "images" in key]
    assert load_generator("run_federated_digits/generator").members == ()
    assert "Trained over 2 sites in 2 rounds" in Path("run_federated_digits/generator/README.md").read_text()
    assert generator["classes"] == [str(digit) for digit in range(10)]
    assert fit(config) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["fit", "export", "run_federated_digits", "--out", "again"]) == 0
    again = json.loads(Path("again/generator.json").read_text())
    assert (again["digest"], again["card"]["federated training"]) == (generator["digest"], card)
    config["federated"]["algorithm"] = "fedopt"
    assert fit(config) == 78, "another algorithm goes on with the same run"
    del config["federated"]
    config["data"]["init_args"]["data"] = str(folders / "digits_north")
    assert fit(config) == 78, "a training on data at hand goes on with one over sites"


def test_counts_are_told_when_asked_and_options_come_from_a_file(config: dict[str, Any]) -> None:
    Path("sites.yaml").write_text(
        yaml.safe_dump({**config.pop("federated"), "share_counts": True, "algorithm": "fedopt"})
    )
    assert fit(config, "--federated", "sites.yaml") == 0
    counts = generator_of(config)["card"]["federated training"]["images per class and site"]
    assert counts["south"]["9"] == 0
    assert sum(sum(site.values()) for site in counts.values()) == 240


def _gan(said: dict[str, Any]) -> None:
    said["model"] = {"class_path": "visynth.lightning_modules.CGAN", "init_args": {}}


@pytest.mark.parametrize(("change", "words"), [
    (lambda said: said["data"]["init_args"].pop("classes"), ["must name classes"]),
    (lambda said: [said["data"]["init_args"].pop(name) for name in ("classes", "channels")], ["classes and channels"]),
    (lambda said: said["data"]["init_args"].update(classes=[str(d) for d in range(9)]), ["'9'", "not in the given"]),
    (lambda said: said["federated"]["sites"]["north"].update(size=16, fit="pad"), ["size is not its own", "fit is not its own"]),
    (lambda said: said["federated"]["sites"].pop("north"), ["at least two"]),
    (lambda said: said["trainer"].pop("max_steps"), ["number of rounds"]),
    (lambda said: said["trainer"].update(callbacks=[{"class_path": "visynth.callbacks.KIDCallback"}]), ["KIDCallback", "real images"]),
    (lambda said: said["trainer"].update(
        callbacks=[{"class_path": "visynth.privacy.DifferentialPrivacy", "init_args": {"epsilon": 3.0}}]), ["federated.privacy"]),
    (lambda said: said["federated"].update(privacy={"epsilon": 1.0}, max_update_norm=1.0, weights="equal"), ["of 2 sites", "Reachable"]),
    (_gan, ["steps itself"]),
])  # fmt: skip
def test_what_cannot_be(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], change: Any, words: list[str]
) -> None:
    change(config)
    assert fit(config) == 64
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not Path("run_federated_digits/generator").exists()


def test_an_output_in_a_sites_images_is_refused(config: dict[str, Any], folders: Path) -> None:
    config["trainer"]["default_root_dir"] = str(folders / "digits_north" / "run")
    assert fit(config) == 73
    assert not (folders / "digits_north" / "run").exists()


def test_simulated_sites_are_the_sites_in_process(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes over loopback give the same bytes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config["federated"]["engine"] = "nvflare"
    config["trainer"]["default_root_dir"] = "run_simulated"
    assert fit(config) == 0, capsys.readouterr().err
    simulated = generator_of(config)
    assert fit(config) == 0
    assert "is finished" in capsys.readouterr().out
    config["federated"]["engine"] = "in_process"
    config["trainer"]["default_root_dir"] = "run_here"
    Path("here.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "visynth", "fit", "-c", "here.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert generator_of(config)["digest"] == simulated["digest"]
    assert generator_of(config)["card"] == simulated["card"]


OWN = """
import torch, pytorch_lightning
from torch.utils.data import DataLoader, TensorDataset

class Net(pytorch_lightning.LightningModule):
    def __init__(self, lr: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.lr = torch.nn.Linear(2, 1), lr
    def training_step(self, batch, index):
        x, y = batch
        return ((self.layer(x)[:, 0] - y) ** 2).mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

class Rows(pytorch_lightning.LightningDataModule):
    def __init__(self, root: int = 0, scale: torch.nn.Module = torch.nn.Identity()):
        super().__init__()
        self.root, self.scale = root, scale
    def train_dataloader(self):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(self.root))
        return DataLoader(TensorDataset(x, self.scale(x).sum(1)), batch_size=8)
"""


def test_a_module_and_data_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_rows.py").write_text(OWN)
    said = {
        "trainer": {"max_steps": 40, "accelerator": "cpu", "default_root_dir": "own", "gradient_clip_val": None},
        "model": {"class_path": "own_rows.Net"},
        "data": {"class_path": "own_rows.Rows"},
        "federated": {"algorithm": "fedopt", "local_steps": 1, "sites": {
            "a": {"root": 1}, "b": {"root": 2, "scale": {"class_path": "torch.nn.Tanh"}}}},
    }  # fmt: skip
    assert fit(said) == 0, capsys.readouterr().err
    weights = torch.load("own/checkpoints/last.ckpt", weights_only=True)["state_dict"]["layer.weight"]
    assert 0.4 < float(weights.min()) < 1.0, "sites of sums and of sums of tanh meet between them"
    said["federated"]["sites"]["a"] = {"rot": 1}  # type: ignore[index]
    said["trainer"]["default_root_dir"] = "other"  # type: ignore[index]
    assert fit(said) == 64
    assert "site a: its data cannot be made so" in capsys.readouterr().err


@pytest.mark.faults
def test_sigterm_while_a_site_trains(config: dict[str, Any]) -> None:
    """The round is finished, the checkpoint written, and the same command goes on to the same generator."""
    config["trainer"] |= {"max_steps": 60, "default_root_dir": "stopped"}
    Path("fed.yaml").write_text(yaml.safe_dump(config))
    words = [sys.executable, "-m", "visynth", "fit", "-c", "fed.yaml"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not list(Path("stopped").glob("log/version_0/events*")):
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "the same command goes on" in told
    assert subprocess.run(words, check=False).returncode == 0
    stopped = generator_of(config)
    config["trainer"]["default_root_dir"] = "straight"
    Path("fed.yaml").write_text(yaml.safe_dump(config))
    assert subprocess.run(words, check=False).returncode == 0
    assert generator_of(config)["digest"] == stopped["digest"]


@pytest.mark.slow
def test_simulated_rounds_go_on_without_a_site_that_fails(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config["federated"] |= {"engine": "nvflare", "min_sites": 1}
    config["data"]["init_args"]["classes"] = [str(digit) for digit in range(9)]  # the north has nines
    assert fit(config) == 0, capsys.readouterr().err
    assert generator_of(config)["card"]["federated training"]["answers"] == {"north": 0, "south": 2}


@pytest.mark.slow
def test_a_site_that_fails_keeps_its_reason(
    config: dict[str, Any], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The site's own log has it; what the server's user sees names the kind of error alone."""
    config["federated"]["engine"] = "nvflare"
    config["data"]["init_args"]["classes"] = [str(digit) for digit in range(9)]
    assert fit(config) == 70
    said = capsys.readouterr().err
    assert "without a generator" in said
    assert "UsageError" in said


def test_a_job_has_no_path_of_a_site(config: dict[str, Any], folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fed.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "job", "--training", "fed.yaml", "--out", "job"]) == 0
    files = sorted(str(path.relative_to("job")) for path in Path("job").rglob("*") if path.is_file())
    assert files == [
        ".visynth.json",
        "app/config/config_fed_client.json",
        "app/config/config_fed_server.json",
        "meta.json",
    ]
    text = "".join(Path("job", file).read_text() for file in files)
    assert str(folders) not in text
    assert "north" in text
    allowed = json.loads((DEPLOY / "resources.json").read_text())["class_allow_list"]
    client = json.loads(Path("job/app/config/config_fed_client.json").read_text())["executors"][0]["executor"]
    server = json.loads(Path("job/app/config/config_fed_server.json").read_text())["workflows"][0]
    assert {client["path"], server["path"]} <= set(allowed)
    assert next(iter(json.loads(Path("job/meta.json").read_text()))) == "name"
    del config["federated"]
    Path("plain.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "job", "--training", "plain.yaml", "--out", "other"]) == 64
    assert "no federated part" in capsys.readouterr().err


def test_a_site_says_itself_where_its_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISYNTH_SITE", raising=False)
    with pytest.raises(ValueError, match="set VISYNTH_SITE"):
        own_data("north")
    monkeypatch.setenv("VISYNTH_SITE", str(DEPLOY / "site.yaml"))
    assert own_data("north") == {"data": "/srv/images"}
    (tmp_path / "list.yaml").write_text("- a")
    monkeypatch.setenv("VISYNTH_SITE", str(tmp_path / "list.yaml"))
    with pytest.raises(ValueError, match="holds list"):
        own_data("north")


def test_kits_of_the_template(tmp_path: Path) -> None:
    """The template is one that NVFlare provisions, and what it says of resources is what NVFlare reads."""
    words = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(DEPLOY / "project.yml"), "-w", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    kits = tmp_path / "visynth" / "prod_00"
    assert {"server", "north", "south", "lead@example.com"} <= {path.name for path in kits.iterdir()}
    for site in ("north", "south"):
        resources = json.loads((kits / site / "local" / "resources.json.default").read_text())
        ours = json.loads((DEPLOY / "resources.json").read_text())
        assert ours.keys() <= resources.keys(), "NVFlare names them otherwise"
        assert ours["allow_log_streaming"] is False
