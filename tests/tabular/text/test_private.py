"""Fine-tuning with differential privacy: clipped gradients of single texts, and nothing of the texts beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tabular.text.lessons import SPEC, TALKS, texts
from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.privacy.accounting import Release, epsilon_of
from visynth.privacy.poisson import poisson_rows
from visynth.privacy.secret import secret_rng
from visynth.tabular.text import TextGenerator
from visynth.tabular.text.audit import audit_texts
from visynth.tabular.text.lora import Lesson, TextLoRA, load_adapter
from visynth.tabular.text.losses import mean_losses
from visynth.tabular.text.lowrank import attach
from visynth.tabular.text.models import load_model
from visynth.tabular.text.private import TextPrivacy
from visynth.tabular.text.talks import encoded

PRIVATE: dict[str, Any] = {"epsilon": 30.0, "classes": ["good", "bad"], "most_noise": 9.0}
KEY = "4d" * 32


def fitted(lm: Path, **options: Any) -> TextLoRA:
    generator = TextGenerator(SPEC, texts())
    lora = TextLoRA(**{"rank": 2, "steps": 3, "batch_size": 12, "lr": 1e-2, **options})
    return lora.fit(
        lm, TALKS, lesson=Lesson(SPEC.prompt), classes=generator.classes, members=generator.members,
        privacy=TextPrivacy(**PRIVATE),
    )  # fmt: skip


def test_a_step_is_clipped_gradients_of_single_texts(lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, a text at a time: Abadi et al. (2016), algorithm 1, on low-rank weights."""
    from visynth.privacy import dp, optimizer

    monkeypatch.setattr(dp, "new_key", lambda: KEY)
    caught: list[Any] = []
    plain = optimizer.PrivateOptimizer.pre_step

    def watch(self: Any, closure: Any = None) -> bool:
        done = plain(self, closure)
        caught.append(([p.grad.clone() for p in self.params], self.noise_multiplier, self.expected_batch_size))
        return done

    monkeypatch.setattr(optimizer.PrivateOptimizer, "pre_step", watch)
    lora = fitted(lm)
    gradients, noise, batch = caught[0]
    language = load_model(lm)
    own = attach(language.model, lora.settings)
    with torch.no_grad():
        for weights, start in zip(own.values(), _start(lm, lora), strict=True):
            weights.copy_(start)
    arrays, _ = encoded(language, TALKS)
    total = [torch.zeros_like(p) for p in own.values()]
    rows = poisson_rows(KEY, 0, len(TALKS), 0.5)
    assert len(rows) > 4
    for row in rows:
        ids, first, length = (torch.from_numpy(arrays[name][row : row + 1]) for name in ("ids", "first", "length"))
        found = torch.autograd.grad(mean_losses(language.model, ids, first, length).mean(), list(own.values()))
        size = torch.cat([g.reshape(-1) for g in found]).norm()
        for kept, gradient in zip(total, found, strict=True):
            kept += gradient * min(1.0, 1.0 / (float(size) + 1e-6))
    generator = secret_rng(KEY, "noise/0")
    for kept, gradient in zip(total, gradients, strict=True):
        drawn = torch.from_numpy(generator.standard_normal(tuple(kept.shape)).astype(np.float32))
        assert torch.allclose(gradient, (kept + noise * drawn) / batch, atol=1e-5)


def _start(lm: Path, lora: TextLoRA) -> list[torch.Tensor]:
    """The weights that the fine-tuning began with."""
    other = TextLoRA(**dict(lora.hparams))
    other._language = load_model(lm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(lora.args.seed))
        return [p.detach().clone() for p in other.build().parameters()]


def test_the_weights_know_their_epsilon_and_no_text(lm: Path, tmp_path: Path) -> None:
    lora = fitted(lm)
    releases = [Release(**release) for release in lora.spent["releases"]]
    assert 28 < lora.spent["epsilon"] == epsilon_of(releases, lora.spent["delta"]) <= 30
    assert lora.spent["unit"] == "text"
    assert lora.members == ()
    folder = lora.save(tmp_path / "g")
    assert "with differential privacy: epsilon" in (folder / "README.md").read_text()
    card = json.loads((folder / "generator.json").read_text())["card"]
    assert "real texts" not in card
    assert load_adapter(folder).spent == json.loads(json.dumps(lora.spent))
    assert (folder / "members.jsonl").read_text() == ""


def test_the_audit_takes_the_files_word_for_who_was_learned(lm: Path) -> None:
    report = audit_texts(fitted(lm), lm, texts(), texts(40, 60), label="label", drawn=0)
    found = report.conditions["audit"]
    assert found["claimed"]["epsilon"] <= 30
    assert found["refuted"] == []
    assert "no fingerprints" in json.dumps(report.sections)


def test_what_breaks_the_guarantee_is_refused(lm: Path) -> None:
    lora = TextLoRA(rank=2, steps=3)
    lesson = Lesson(SPEC.prompt)
    with pytest.raises(UsageError, match="name the classes"):
        lora.fit(lm, TALKS, lesson=lesson, classes=["good", "bad"], privacy=TextPrivacy(epsilon=8.0))
    with pytest.raises(DataError, match="texts are of 'bad'; the classes that were named are 'good'"):
        lora.fit(lm, TALKS, lesson=lesson, classes=["good", "bad"], privacy=TextPrivacy(epsilon=8.0, classes=["good"]))
    with pytest.raises(UsageError, match="prompts show 2 other texts"):
        lora.fit(lm, TALKS, lesson=Lesson(SPEC.prompt, 2), privacy=TextPrivacy(epsilon=8.0))
    with pytest.raises(UsageError, match="Reachable so"):
        lora.fit(lm, TALKS, lesson=lesson, privacy=TextPrivacy(epsilon=0.1, classes=["good", "bad"]))
    with pytest.raises(UsageError, match="epsilon must be a number above 0"):
        TextPrivacy(epsilon=0.0)


def test_the_command_fits_privately_once(lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame([(e.text, e.label) for e in texts(count=60)], columns=["text", "label"])
    frame.to_csv(tmp_path / "s.csv", index=False)
    words = [
        "text", "fit", str(tmp_path / "s.csv"), "--model", str(lm), "--label", "label", "--out", str(tmp_path / "o"),
        "--arguments", "{rank: 2, steps: 6, batch_size: 12}", "--privacy.epsilon", "40",
        "--privacy.classes", "[good, bad]", "--privacy.most_noise", "9", "--quiet",
    ]  # fmt: skip
    assert main(words) == 0
    assert "with epsilon" in capsys.readouterr().out
    page = (tmp_path / "o" / "report.html").read_text()
    assert "This report is not" in page
    assert main(words) == 0
    other = [word if word != "40" else "50" for word in words]
    assert main(other) == 78
