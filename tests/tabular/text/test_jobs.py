"""The four jobs from files to folders, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tabular.text.server import serving
from visynth.cli import main
from visynth.core.report import read_report

WORDS = {
    "good": ("great", "lovely", "solid", "bright", "handy", "superb"),
    "bad": ("awful", "broken", "dull", "flimsy", "noisy", "useless"),
}
THINGS = ("phone", "lamp", "chair", "kettle", "radio", "clock", "table", "fan")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [
        (f"A {word} {thing}, I must say.", label)
        for label, words in WORDS.items()
        for word in words
        for thing in THINGS
    ]
    frame = pd.DataFrame(rows, columns=["said", "label"])
    keep = (frame["label"] == "good") | (np.arange(len(frame)) % 6 == 0)
    frame[keep].to_csv(tmp_path / "reviews.csv", index=False)
    return tmp_path / "reviews.csv"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rare_class_is_filled_and_every_real_text_is_kept(reviews: Path, tmp_path: Path) -> None:
    def answer(number: int, body: Any) -> str:
        mood = "bad" if "label bad" in body["messages"][1]["content"] else "good"
        word, thing = WORDS[mood][body["seed"] % 6], THINGS[body["seed"] // 6 % 8]
        return f"What {'an' if word[0] in 'aeiou' else 'a'} {word} {thing} this was, the {body['seed'] % 9173}th that I had."

    out = tmp_path / "out"
    with serving(answer) as server:
        code = main(
            ["text", "classify", str(reviews), "--text", "said", "--backend", "openai", "--base-url", server.url, "--model", "m",
             "--out", str(out), "--quiet", "--rounds", "6"]
        )  # fmt: skip
        assert code == 0
        shown = [body["messages"][1]["content"] for body in server.bodies]
    real = pd.read_csv(reviews)
    balanced = pd.DataFrame(lines(out / "balanced.jsonl"))
    kept = balanced[~balanced["synthetic"]]
    assert kept[["said", "label"]].values.tolist() == real.values.tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["asked"] == (real["label"] == "good").sum() - (real["label"] == "bad").sum()
    assert summary["texts"] == balanced["synthetic"].sum() == len(lines(out / "texts.jsonl"))
    assert summary["texts"] + len(lines(out / "missing.jsonl")) == summary["asked"]
    assert set(balanced[balanced["synthetic"]]["label"]) == {"bad"}
    assert all(not any(f" {word} " in prompt for word in WORDS["good"]) for prompt in shown)
    assert len(lines(out / "members.jsonl")) == len(real)
    parents = {p for line in lines(out / "texts.jsonl") for p in line["provenance"]["parents"]}
    assert all(real["label"].iloc[int(p.split("/")[1])] == "bad" for p in parents)
    assert read_report(out).kind == "text classify"


def test_texts_of_the_wrong_class_are_refused(reviews: Path, tmp_path: Path) -> None:
    with serving(lambda number, body: f"Such a great and lovely lamp, number {body['seed']}.") as server:
        code = main(
            ["text", "classify", str(reviews), "--text", "said", "--backend", "openai", "--base-url", server.url, "--model", "m",
             "--out", str(tmp_path / "out"), "--quiet", "--rounds", "1", "--attempts", "1", "--agreement", "0.5"]
        )  # fmt: skip
    assert code == 65
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["messages", "alpaca", "sharegpt"])
def test_conversations_in_the_forms_of_fine_tuning_tools(form: str, tmp_path: Path) -> None:
    def answer(number: int, body: Any) -> str:
        turns = 2 if "2 questions" in body["messages"][1]["content"] else 1
        said = [
            ("user", f"What of {body['seed']}-{k}?") if k % 2 == 0 else ("assistant", f"It is {k} and {body['seed']}.")
            for k in range(2 * turns)
        ]
        return json.dumps({"messages": [{"role": role, "content": content} for role, content in said]})

    out = tmp_path / "out"
    with serving(answer) as server:
        code = main(
            ["text", "chat", "--topics", "tea,rice", "--turns", "[1, 2]", "--n", "40", "--backend", "openai", "--base-url", server.url,
             "--model", "m", "--form", form, "--test", "0.25", "--system", "Be kind.", "--out", str(out), "--quiet"]
        )  # fmt: skip
    assert code == 0
    train, test = lines(out / "train.jsonl"), lines(out / "test.jsonl")
    assert len(train) + len(test) == len(lines(out / "texts.jsonl")) >= 38
    assert 2 <= len(test) <= 20
    for line in [*train, *test]:
        if form == "messages":
            roles = [m["role"] for m in line["messages"]]
            assert roles in (["system", "user", "assistant"], ["system", *["user", "assistant"] * 2])
        elif form == "sharegpt":
            assert [m["from"] for m in line["conversations"]][:3] == ["system", "human", "gpt"]
        else:
            assert set(line) == {"instruction", "input", "output"}
            assert line["input"].startswith("system: Be kind.")


def test_conversations_with_a_benchmarks_words_are_refused(tmp_path: Path) -> None:
    question = "If a train leaves Rome at nine and runs at eighty miles an hour, when does it arrive in Oslo?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"q": [{"text": question}]}) + "\n")

    def answer(number: int, body: Any) -> str:
        asked = question if body["seed"] % 2 else f"When does train {body['seed']} arrive?"
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"At {body['seed'] % 24} sharp."}]
        return json.dumps({"messages": said})

    out = tmp_path / "out"
    with serving(answer) as server:
        code = main(
            ["text", "chat", "--topics", "trains", "--n", "20", "--backend", "openai", "--base-url", server.url, "--model", "m",
             "--benchmark", str(tmp_path / "bench.jsonl"), "--out", str(out), "--quiet", "--rounds", "5"]
        )  # fmt: skip
    assert code == 0
    assert "Rome" not in (out / "texts.jsonl").read_text()
    assert json.loads((out / "summary.json").read_text())["refused"]["benchmark"] > 0


@pytest.fixture
def table(tmp_path: Path) -> Path:
    g = np.random.default_rng(0)
    kind = g.choice(["a", "b"], 80)
    low = g.integers(0, 50, 80)
    frame = pd.DataFrame(
        {
            "id": [f"K-{k:04d}" for k in range(80)],
            "kind": kind,
            "low": low,
            "high": low + g.integers(1, 20, 80),
            "weight": np.where(g.random(80) < 0.2, np.nan, np.round(np.where(kind == "a", 2.0, 9.0) + g.random(80), 2)),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(g.integers(0, 99, 80), unit="D"),
            "new": g.random(80) < 0.5,
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_rows_have_the_tables_types_keep_its_rules_and_are_measured(table: Path, tmp_path: Path) -> None:
    def answer(number: int, body: Any) -> str:
        g = np.random.default_rng(body["seed"])
        kind, low = str(g.choice(["a", "b"])), int(g.integers(0, 45))
        high = low - 1 if len(body["messages"]) == 2 and body["seed"] % 3 == 0 else low + int(g.integers(1, 9))
        weight = None if g.random() < 0.2 else round((2.1 if kind == "a" else 9.1) + 0.8 * g.random(), 2)
        day = (
            "2024-02-31"
            if len(body["messages"]) == 2 and body["seed"] % 5 == 0
            else f"2024-02-{int(g.integers(1, 28)):02d}"
        )
        row = {"kind": kind, "low": low, "high": max(high, 1), "weight": weight, "day": day, "new": bool(g.integers(2))}
        return f"```json\n{json.dumps(row)}\n```"

    out = tmp_path / "out"
    with serving(answer) as server:
        code = main(
            ["text", "rows", str(table), "--n", "60", "--backend", "openai", "--base-url", server.url, "--model", "m", "--out", str(out),
             "--constraints", "[{kind: inequality, low: low, high: high}]", "--quiet"]
        )  # fmt: skip
        assert code == 0
        told = [body["messages"][-1]["content"] for body in server.bodies if len(body["messages"]) == 4]
    rows, real = pd.read_csv(out / "rows.csv"), pd.read_csv(table)
    assert list(rows.columns) == list(real.columns)
    assert len(rows) == 60
    assert (rows["low"] <= rows["high"]).all()
    assert rows["weight"].isna().any()
    assert rows["id"].is_unique
    assert rows["new"].dtype == bool
    assert pd.to_datetime(rows["day"]).between("2024-02-01", "2024-02-28").all()
    assert any("breaks the rule" in words for words in told)
    assert any("'day'" in words for words in told)
    report = read_report(out)
    assert "Do the cells of a row fit one another?" in [section["title"] for section in report.sections]


def test_wrong_arguments_are_told_before_anything_is_asked(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["reviews", "--products", "x", "--backend", "openai"], "--backend openai needs --base-url and --model"),
        (["reviews", "--products", "x", "--backend", "local", "--model", str(tmp_path)], "no language model at"),
        (["classify", str(reviews), "--backend", "template"], "needs --sentences"),
        (
            ["classify", str(reviews), "--text", "saidd", "--backend", "template", "--sentences", str(reviews)],
            "no columns 'saidd'",
        ),
        (
            [
                "classify",
                str(reviews),
                "--text",
                "said",
                "--rare",
                "ugly",
                "--backend",
                "template",
                "--sentences",
                str(reviews),
            ],
            "label 'ugly'",
        ),
        (
            ["chat", "--topics", "x", "--test", "2", "--backend", "template", "--sentences", str(reviews)],
            "test must be",
        ),
        (
            ["reviews", "--products", "x", "--words", "[9, 3]", "--backend", "template", "--sentences", str(reviews)],
            "the lower first",
        ),
        (
            ["reviews", "--products", "x", "--language", "xx", "--backend", "template", "--sentences", str(reviews)],
            "language must be one of",
        ),
    ]
    for words, why in cases:
        assert main(["text", *words, "--out", str(tmp_path / "out")]) == 64, words
        assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews.csv"]


def test_bad_texts_are_told_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a b", "label": "x"}\n[1]\n{"text": \n')
    sentences = tmp_path / "s.txt"
    sentences.write_text("A sentence.\n")
    rest = ["--backend", "template", "--sentences", str(sentences), "--out", str(tmp_path / "out")]
    assert main(["text", "classify", str(tmp_path / "t.jsonl"), *rest]) == 65
    said = capsys.readouterr().err
    assert "line 2: no JSON object" in said
    assert "line 3" in said
    pd.DataFrame({"text": ["a", "", None, " "], "label": ["x", "y", "x", None]}).to_csv(tmp_path / "t.csv", index=False)
    assert main(["text", "classify", str(tmp_path / "t.csv"), *rest]) == 65
    said = capsys.readouterr().err
    for words in ("row 2: column 'text' is empty", "row 3: column 'text'", "row 4: column 'label' is empty"):
        assert words in said


def test_nothing_of_the_users_is_written_over(reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "texts.jsonl").write_text("mine\n")
    words = ["--backend", "template", "--sentences", str(reviews), "--out", str(out)]
    assert main(["text", "reviews", "--products", "x", *words]) == 73
    assert (out / "texts.jsonl").read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reviews.csv"]


def test_equal_rows_are_kept_and_copies_are_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": ["x", "y"] * 40, "b": ["u", "u", "v", "v"] * 20})
    frame.to_csv(tmp_path / "t.csv", index=False)
    with serving(lambda number, body: json.dumps({"a": "x", "b": "u" if body["seed"] % 4 else "v"})) as server:
        words = [
            "text",
            "rows",
            str(tmp_path / "t.csv"),
            "--n",
            "40",
            "--backend",
            "openai",
            "--base-url",
            server.url,
            "--model",
            "m",
        ]
        assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 0
        assert len(server.bodies) == 40
    assert len(pd.read_csv(tmp_path / "out" / "rows.csv")) == 40
    said = (tmp_path / "out" / "report.html").read_text()
    assert "Rows equal to a row that may have been shown: 100.0%; of held-out real rows: 100.0%." in said


@pytest.mark.data
def test_rows_that_the_prompt_shows_meet_the_schema_that_it_asks_for(real_data: Callable[[str], Path]) -> None:
    from visynth.tabular import infer, read_table
    from visynth.tabular.constraints import Rules
    from visynth.tabular.text import Record
    from visynth.tabular.text.replies import schema_problems
    from visynth.tabular.text.rows import FitsTable, row_examples, row_schema

    for name in ("telco_churn.csv", "adult_census.parquet", "ai4i2020.csv"):
        frame = read_table(real_data("tabular") / name).iloc[:1500].reset_index(drop=True)
        schema = infer(frame)
        wanted, fits = row_schema(schema, frame), FitsTable(schema, Rules(), frame)
        for example in row_examples(schema, frame)[::50]:
            row = json.loads(example.text)
            assert schema_problems(row, wanted) == [], name
            assert fits(row, Record(0, {}, 0)) == "", name


def test_texts_with_line_separators_are_read_again(tmp_path: Path) -> None:
    from visynth.tabular.text.examples import read_examples
    from visynth.tabular.text.outputs import json_lines

    texts = ["a\u2028b", "c\x85d", "e\nf"]
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + json_lines([{"text": text} for text in texts]))
    assert [example.text for example in read_examples(tmp_path / "t.jsonl")] == texts
