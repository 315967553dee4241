"""A verdict on texts: real ones that nobody had help, noise does not, and nothing of a test part is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tabular.text.server import serving
from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.core.stage import Stage
from visynth.tabular.shares import chosen_shares
from visynth.tabular.text import Example, Record
from visynth.tabular.text.augment import augmented, variant
from visynth.tabular.text.utility import TextCells, rare_texts
from visynth.verdict.bootstrap import Bootstrap

BAD = [
    f"{a} {b}"
    for a in ("awful", "dull", "broken", "noisy", "flimsy", "weak", "late", "dirty")
    for b in ("thing", "piece", "deal")
]
GOOD = [
    f"{a} {b}"
    for a in ("great", "lovely", "solid", "bright", "handy", "calm", "quick", "clean")
    for b in ("thing", "piece", "deal")
]
PLACES = [
    f"{a} {b}"
    for a in ("phone", "lamp", "chair", "kettle", "radio")
    for b in ("shop", "web", "fair", "town", "port", "mall")
]


def sentence(bad: bool, seed: int) -> str:
    """A sentence of whose words one says its class: only who has met that word knows."""
    g = np.random.default_rng([seed, bad])
    said = g.choice(BAD if bad else GOOD)
    return f"From the {g.choice(PLACES)} I had one {said} number {g.integers(10**6)}"


def examples(bad: int = 40, good: int = 160) -> list[Example]:
    return [Example(sentence(True, k), "bad") for k in range(bad)] + [
        Example(sentence(False, k), "good") for k in range(good)
    ]


CELLS = TextCells(draws=2, folds=2, texts=60, shown=2, most=5)


def fresh(real: Sequence[Example], records: Sequence[Record], name: str, seed: int) -> list[tuple[int, str]]:
    return [(record.number, sentence(True, 10**6 + record.seed % 10**6)) for record in records]


def noise(real: Sequence[Example], records: Sequence[Record], name: str, seed: int) -> list[tuple[int, str]]:
    return [(record.number, sentence(False, 10**6 + record.seed % 10**6)) for record in records]


def ap(results: Any, arm: str) -> float:
    return Bootstrap(results.tested["real"]).mean(results.tested[arm], "ap")[0]


def test_fresh_real_texts_help_and_wrong_ones_are_left_out() -> None:
    helped, hurt = (rare_texts(examples(), "bad", write, CELLS) for write in (fresh, noise))
    assert ap(helped, "synthetic") > ap(helped, "balanced") + 0.1
    assert set(helped.tested) == {"real", "duplicate", "balanced", "augment", "synthetic", "oracle"}
    assert "0" not in chosen_shares(helped)
    assert chosen_shares(hurt)["0"] >= 3
    assert ap(hurt, "synthetic") > ap(hurt, "balanced") - 0.05
    assert ap(helped, "oracle") > ap(helped, "balanced")
    for arm in ("real", "balanced", "augment", "oracle"):
        assert ap(helped, arm) == ap(hurt, arm)
    assert helped.counts == {"train": 5.0, "test": 20.0, "synthetic": 60.0, "prevalence": 0.2}


def test_prompts_show_one_part_of_the_training_texts_of_the_class() -> None:
    rows: list[Any] = []

    def write(real: Sequence[Example], records: Sequence[Record], name: str, seed: int) -> list[tuple[int, str]]:
        rows.append((real, records))
        return []

    data = examples(16, 40)
    data += data[:3]  # equal texts stay on one side
    results = rare_texts(data, "bad", write, TextCells(draws=1, folds=2, texts=12, shown=3))
    tested = [{data[row].text for row in test} for test in results.rows]
    for (real, records), test in zip(rows, tested, strict=True):
        assert not {example.text for example in real} & test
        of_part: dict[int, set[int]] = {}
        for record in records:
            assert {real[place].label for place in record.parents} == {"bad"}
            of_part.setdefault(record.number % 4, set()).update(record.parents)
        parts = list(of_part.values())
        assert sum(map(len, parts)) == len(set().union(*parts))
    assert chosen_shares(results) == {"0": 2}


def test_finished_cells_are_kept(tmp_path: Path) -> None:
    stage, asked = Stage(tmp_path / "work", {}), []

    def write(real: Sequence[Example], records: Sequence[Record], name: str, seed: int) -> list[tuple[int, str]]:
        asked.append(name)
        return fresh(real, records, name, seed)

    one = rare_texts(examples(), "bad", write, CELLS, stage=stage)
    two = rare_texts(examples(), "bad", write, CELLS, stage=stage)
    assert asked == ["bad-0-0", "bad-0-1", "bad-1-0", "bad-1-1"]
    assert all(
        (a.scores == b.scores).all() for a, b in zip(one.tested["synthetic"], two.tested["synthetic"], strict=True)
    )


def test_what_cannot_be_measured_is_told() -> None:
    with pytest.raises(DataError, match="no text has the label 'ugly'"):
        rare_texts(examples(), "ugly", fresh, CELLS)
    with pytest.raises(DataError, match="has 6 texts: 2 folds need 8"):
        rare_texts(examples(6), "bad", fresh, CELLS)
    with pytest.raises(UsageError) as error:
        TextCells(0, 1, 0, 0, 1)
    for words in ("draws", "folds", "texts", "shown", "rare_texts"):
        assert words in str(error.value)


def test_augmented_texts_have_the_words_of_their_text() -> None:
    texts = ["one two three four five six seven eight nine ten", "alone"]
    made = augmented(texts, 20, seed=3)
    assert set(made[20:]) == {"alone"}
    for said in made[:20]:
        assert set(said.split()) <= set(texts[0].split())
        assert said != texts[0]
        assert len(said.split()) in (9, 10)
    assert variant("", np.random.default_rng(0)) == ""


def test_a_trial_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame([(e.text, int(e.label == "bad")) for e in examples()], columns=["text", "label"]).to_csv(
        tmp_path / "t.csv", index=False
    )

    down = [True]

    def answer(number: int, body: Any) -> Any:
        return (503, "down") if down and number >= 30 else sentence(True, 10**6 + body["seed"] % 10**6)

    with serving(answer) as server:
        words = [
            "text", "trial", str(tmp_path / "t.csv"), "--rare", "1", "--rare-texts", "6", "--draws", "2", "--synthetic", "20",
            "--backend", "openai", "--base-url", server.url, "--model", "m", "--out", str(tmp_path / "out"), "--json", "--quiet",
        ]  # fmt: skip
        assert main([*words, "--retries", "0"]) == 75  # the server breaks in the second cell
        kept = len(server.bodies)
        down.clear()
        assert main([*words, "--retries", "0"]) == 0
        assert len(server.bodies) > kept
        shown = [body["messages"][1]["content"] for body in server.bodies]
    (verdict,) = json.loads(capsys.readouterr().out)
    assert verdict["class"] == "1"
    assert verdict["answer"] in ("helps", "cannot tell")
    assert all(not any(word in prompt for word in ("great", "lovely", "solid")) for prompt in shown)
    report = read_report(tmp_path / "out")
    assert report.kind == "text trial"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.csv"]
