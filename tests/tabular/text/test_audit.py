"""The audit of a fine-tuned language model: one that knows its texts by heart is flagged, one that learned nothing is not."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.tabular.text.lessons import SPEC, TALKS, texts
from visynth.cli import main
from visynth.commands.auditing import audit
from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.privacy.audit import epsilon_bound
from visynth.tabular.text import TextGenerator
from visynth.tabular.text.audit import audit_texts
from visynth.tabular.text.lora import Lesson, TextLoRA


def by_attack(report: dict) -> dict:  # type: ignore[type-arg]
    return {one["found"]["attack"]: one for one in report["attacks"]}


def test_weights_that_know_their_texts_by_heart_are_flagged(
    learned: tuple[TextLoRA, Path], lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame([(e.text, e.label) for e in texts(count=120)], columns=["said", "class"])
    frame.to_csv(tmp_path / "s.csv", index=False)
    words = [
        "audit",
        str(learned[1]),
        "--data",
        str(tmp_path / "s.csv"),
        "--model",
        str(lm),
        "--text",
        "said",
        "--label",
    ]
    # The prompt of these weights calls the class "label".
    assert main([*words, "class", "--out", str(tmp_path / "wrong"), "--quiet"]) == 64
    assert "it may use ['class']" in capsys.readouterr().err
    frame.rename(columns={"class": "label"}).to_csv(tmp_path / "s.csv", index=False)
    capsys.readouterr()
    assert main([*words, "label", "--out", str(tmp_path / "audit"), "--images", "24", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    attacks = by_attack(found)
    assert set(attacks) == {"loss", "loss beside the model before", "Min-K%"}
    for name in ("loss", "Min-K%"):
        assert attacks[name]["finding"] == "leaks"
        assert attacks[name]["found"]["auc"] > 0.9
        assert attacks[name]["positive"]["leaks"]
    for one in attacks.values():
        assert not one["negative"]["leaks"]
        assert one["found"]["members"] == one["found"]["controls"] == 24
    bound, right, guesses = found["epsilon bounds"]["loss"]
    assert right == guesses
    assert bound == epsilon_bound(guesses, guesses, 48, 0.0, 0.05 / 3) > 0
    report = read_report(tmp_path / "audit")
    assert report.conditions["generator"] == learned[0].digest
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "nearest synthetic text" in page
    assert any(example.text in page for example in texts())


def test_weights_that_learned_nothing_are_not_flagged(lm: Path) -> None:
    generator = TextGenerator(SPEC, texts())
    lora = TextLoRA(rank=2, steps=3, lr=5e-3)
    lora.fit(lm, TALKS, lesson=Lesson(SPEC.prompt), classes=generator.classes, members=generator.members)
    for weights in lora._kept.values():
        weights.zero_()
    report = audit_texts(lora, lm, texts(count=60), texts(80, 40), label="label", drawn=0)
    found = report.conditions["audit"]
    assert {one["finding"] for one in found["attacks"]} == {"nothing found"}
    assert found["leaks"] == []
    assert found["closer to members"] is None
    assert "--images 100" in json.dumps(report.sections)


def test_what_cannot_be_audited_is_refused(learned: tuple[TextLoRA, Path], lm: Path, tmp_path: Path) -> None:
    lora, folder = learned
    with pytest.raises(UsageError, match="not trained on"):
        audit_texts(lora, lm, texts(), label="label")
    with pytest.raises(DataError, match="none of the 40 texts is one of the 24"):
        audit_texts(lora, lm, texts(100, 40), label="label")
    with pytest.raises(DataError, match="at least 20 members"):
        audit_texts(lora, lm, texts(count=30), label="label")
    with pytest.raises(UsageError, match="--model"):
        audit(str(folder), "x.csv", str(tmp_path / "o"))


def test_rows_are_audited_as_they_were_learned(lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame(
        {"extra": [k % 6 for k in range(70)], "size": [k % 9 for k in range(70)], "kind": ["good", "bad"] * 35}
    )
    frame.to_csv(tmp_path / "r.csv", index=False)
    words = [
        "text",
        "fit",
        str(tmp_path / "r.csv"),
        "--task",
        "rows",
        "--model",
        str(lm),
        "--drop",
        "[extra]",
        "--quiet",
    ]
    assert main([*words, "--arguments", "{rank: 2, steps: 9}", "--out", str(tmp_path / "o")]) == 0
    # Rows of equal values count once: there are eighteen.
    audit_words = ["audit", str(tmp_path / "o" / "generator"), "--data", str(tmp_path / "r.csv"), "--model", str(lm)]
    capsys.readouterr()
    assert main([*audit_words, "--drop", "[extra]", "--out", str(tmp_path / "a"), "--quiet"]) == 65
    assert "at least 20 members" in capsys.readouterr().err
    assert main([*audit_words, "--out", str(tmp_path / "a"), "--quiet"]) == 65
    assert "none of the 70 texts" in capsys.readouterr().err
    assert main([*audit_words, "--label", "kind", "--out", str(tmp_path / "a")]) == 64
    assert "read whole" in capsys.readouterr().err
