"""WithSynthetic as ``class_path`` in the YAML of LightningCLI, around the user's own datamodule, in both Lightning
packages."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import yaml

import tests.mixing.boring as boring
from tests.ranks import TRAINER
from visynth.core.manifest import read_renders, write_reviews
from visynth.mixing import wrapper as mixing
from visynth.mixing.backends import mix_loaders
from visynth.mixing.positions import MixedDataset

PATHS = {"pytorch_lightning": "visynth.WithSynthetic", "lightning.pytorch": "visynth.lightning.WithSynthetic"}


@pytest.fixture(params=PATHS)
def fit(request, samples, tmp_path: Path, monkeypatch):
    """Train from a YAML file with some options of WithSynthetic; gives what was mixed, after two epochs of 12 steps."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    package = request.param
    lightning, cli = importlib.import_module(package), importlib.import_module(f"{package}.cli")
    module, data = boring.classes(package)

    kept = []
    monkeypatch.setattr(mixing, "mix_loaders", lambda *told: kept.append(mix_loaders(*told)) or kept[-1])

    def run(**options):
        inner = {"class_path": data, "init_args": {"root": str(samples / "images")}}
        told = {"class_path": PATHS[package], "init_args": {"datamodule": inner, **options}}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"data": told, "trainer": {**TRAINER, "max_epochs": 2}}))
        made = cli.LightningCLI(
            module,
            lightning.LightningDataModule,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            args=["--config", str(path)],
        )
        made.trainer.fit(made.model, made.datamodule)
        assert made.trainer.global_step == 24
        return kept[-1]

    return run


def test_samples(fit, renders) -> None:
    dataset = fit(source=str(renders.folder), share=0.25, weight=0.5, is_synthetic=True).loaders.dataset
    assert isinstance(dataset, MixedDataset)
    assert len(dataset.plan()) == 12
    assert len(dataset[0]) == 4


def test_batches_with_schedule_and_filter(fit, renders, tmp_path) -> None:
    folder = shutil.copytree(renders.folder, tmp_path / "reviewed")
    kept = [r.file_name for r in renders.records if r.label == "spot"][:3]
    write_reviews(read_renders(folder), dict.fromkeys(kept, "accept"))
    schedule = {"start": 0.5, "end": 0.1, "shape": "cosine", "until": 0.5}
    mixed = fit(
        source=str(folder),
        backend="batches",
        share=schedule,
        finish=0.25,
        keep={"review": "accepted"},
        balance={"spot": 10},
        classes=["good", "scratch", "spot", "stain"],
    )
    assert mixed.backend == "batches"
    (mixer,) = mixed.mixers.values()
    assert mixer.done > 0
    assert {r.file_name for r in mixer.source.renders.records} == set(kept)


def test_online_with_a_sampler(fit, composition) -> None:
    _, folder = composition
    steps = {"steps": {"0": 0.25, "0.5": 0.0}}
    mixed = fit(
        source=str(folder), share=steps, sampler={"poisson_limit": 100}, autocast="bfloat16", balance={"spot": 10}
    )
    assert mixed.backend == "online"
    (mixer,) = mixed.mixers.values()
    assert mixer.done == 12
