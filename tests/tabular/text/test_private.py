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
from visynth.tabular.text.tuning import split_texts

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


def test_one_text_less_moves_no_other_to_the_other_side() -> None:
    whole = texts(count=200)
    learned, held = split_texts(whole, 0.2, seed=3, alone=True)
    assert 20 < len(held) < 60
    for gone in (0, 7, 199):
        fewer = [text for place, text in enumerate(whole) if place != gone]
        assert split_texts(fewer, 0.2, seed=3, alone=True)[0] == [text for text in learned if text != whole[gone]]


def test_a_claim_that_is_false_is_refuted(learned: tuple[TextLoRA, Path], lm: Path) -> None:
    lora = load_adapter(learned[1])
    lora.spent = {"epsilon": 0.01, "delta": 1e-6}
    report = audit_texts(lora, lm, texts(count=120), label="label", drawn=0)
    assert "loss" in report.conditions["audit"]["refuted"]


def test_the_audit_takes_the_files_word_for_who_was_learned(lm: Path) -> None:
    report = audit_texts(fitted(lm), lm, texts(), texts(40, 60), label="label", drawn=0)
    found = report.conditions["audit"]
    assert found["claimed"]["epsilon"] <= 30
    assert set(found["epsilon bounds"]) == {one["found"]["attack"] for one in found["attacks"]}
    assert {one["found"]["members"] for one in found["attacks"]} == {24}
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
    with pytest.raises(UsageError, match="take canaries 0"):
        TextPrivacy(epsilon=8.0).check([], 0, canaries=3)
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
    generator = str(tmp_path / "o" / "generator")
    audit = [
        "audit",
        generator,
        "--data",
        str(tmp_path / "s.csv"),
        "--model",
        str(lm),
        "--text",
        "text",
        "--label",
        "label",
    ]
    holdout = pd.DataFrame([(e.text, e.label) for e in texts(60, 40)], columns=["text", "label"])
    holdout.to_csv(tmp_path / "h.csv", index=False)
    capsys.readouterr()
    words_of_audit = [
        *audit,
        "--holdout",
        str(tmp_path / "h.csv"),
        "--out",
        str(tmp_path / "a"),
        "--images",
        "0",
        "--json",
    ]
    assert main([*words_of_audit, "--quiet"]) == 0
    learned = len(split_texts(texts(count=60), 0.2, 0, alone=True)[0])
    found = json.loads(capsys.readouterr().out)
    assert learned - 2 <= found["attacks"][0]["found"]["members"] <= learned < 60  # held-out texts are no members
    assert main([*audit, "--shadows", "4", "--out", str(tmp_path / "b")]) == 64
    rows = ["text", "fit", str(tmp_path / "s.csv"), "--model", str(lm), "--task", "rows", "--out", str(tmp_path / "r")]
    assert main([*rows, "--privacy.epsilon", "8"]) == 64
    assert "reads ranges" in capsys.readouterr().err
    other = [word if word != "40" else "50" for word in words]
    assert main(other) == 78
