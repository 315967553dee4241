"""Shipped configurations with differential privacy, through the commands, in their smallest form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from visynth.cli import main
from visynth.generators.base import load_generator
from visynth.tabular import Synthesizer, read_table

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "privacy"
DATA = Path(os.environ.get("VISYNTH_DATA", "../shared/data")).resolve()


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    said["trainer"]["accelerator"] = "cpu"
    said["trainer"]["callbacks"][0]["init_args"] |= {
        "steps": 2, "batch_size": 30, "physical_batch_size": 64, "noise_multiplicity": 2, "most_noise": 9.0,
    }  # fmt: skip
    said["model"]["init_args"]["width"] = 8
    Path("private.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "private.yaml"]) == 0, capsys.readouterr().err
    run = tmp_path / "run_private_digits"
    card = json.loads((run / "generator" / "generator.json").read_text())["card"]["differential privacy"]
    assert card["steps"] == 2
    assert card["epsilon"] <= 10
    assert "not private" not in card
    loaded = load_generator(run / "generator")
    assert loaded.members == ()
    assert "epsilon" in (run / "generator" / "README.md").read_text()
    assert main(["fit", "-c", "private.yaml"]) == 0  # finished: nothing is spent again
    said["trainer"]["callbacks"][0]["init_args"]["epsilon"] = 5.0
    Path("other.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "other.yaml"]) == 78, "another plan goes on with the same run"
    said["trainer"] |= {"gradient_clip_val": 1.0, "default_root_dir": "run_other"}
    Path("clipped.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "clipped.yaml"]) == 64
    assert "gradient_clip_val" in capsys.readouterr().err


def test_images_by_a_gan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = yaml.safe_load((CONFIGS / "digits_gan.yaml").read_text())
    said["trainer"]["callbacks"][0]["init_args"] |= {"steps": 5, "batch_size": 30}
    said["model"]["init_args"] |= {"width": 4, "width_d": 4}
    Path("private.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "private.yaml"]) == 0, capsys.readouterr().err
    generator = tmp_path / "run_private_gan" / "generator"
    stored = (generator / "generator.json").read_bytes()
    card = json.loads(stored)["card"]["differential privacy"]
    assert (card["steps"], card["unit"]) == (5, "image")
    assert card["epsilon"] <= 10
    assert load_generator(generator).members == ()
    assert main(["fit", "-c", "private.yaml"]) == 0  # finished: nothing is spent again
    assert (generator / "generator.json").read_bytes() == stored
    said["model"]["init_args"]["gamma"] = 1.0
    said["trainer"]["default_root_dir"] = "run_other"
    Path("other.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "other.yaml"]) == 64
    assert "set gamma: 0" in capsys.readouterr().err


def test_images_by_one_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = yaml.safe_load((CONFIGS / "digits_embedding.yaml").read_text())
    said["model"]["init_args"] |= {"steps": 3, "width": 8, "features": 100}
    Path("private.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "private.yaml"]) == 0, capsys.readouterr().err
    generator = tmp_path / "run_private_embedding" / "generator"
    card = json.loads((generator / "generator.json").read_text())["card"]["differential privacy"]
    assert card["epsilon"] <= 3
    assert load_generator(generator).members == ()
    assert main(["fit", "-c", "private.yaml"]) == 0  # finished: nothing is released again
    assert main(["fit", "export", "run_private_embedding", "--out", "again"]) == 0
    assert json.loads(Path("again/generator.json").read_text())["card"]["differential privacy"] == card
    said["model"]["init_args"]["epsilon"] = 9.0
    Path("other.yaml").write_text(yaml.safe_dump(said))
    assert main(["fit", "-c", "other.yaml"]) == 78


@pytest.mark.data
def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = DATA / "tabular" / "adult_census.parquet"
    if not source.is_file():
        pytest.skip(f"no {source}")
    read_table(source).head(3000).to_parquet(tmp_path / "few.parquet")
    words = [
        "tabular", "fit", "--config", str(CONFIGS / "adult_census.yaml"), "--data", str(tmp_path / "few.parquet"), "--out",
        str(tmp_path / "model"), "--arguments", "{components: 60, steps: 40}", "--privacy.epsilon", "20", "--privacy.delta", "1e-4",
    ]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "differential privacy: epsilon" in said
    assert "counts of pairs of columns" in said
    model = Synthesizer.load(tmp_path / "model")
    assert model.fitted.privacy["epsilon"] <= 20
    sample = model.sample(500)
    assert set(sample["sex"]) <= {"Female", "Male"}
    assert sample["age"].between(17, 90).all()
