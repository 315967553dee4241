"""Fine-tuning by the command: from a file of texts or rows to an adapter, killed and resumed, and what a job does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tabular.killed import killed_at
from tests.tabular.text.lessons import SPEC, texts
from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.tabular.inference import infer
from visynth.tabular.text import Decoding, Example, TextGenerator, TextSpec, TransformersLocal
from visynth.tabular.text.lora import TextLoRA
from visynth.tabular.text.memory import Canaries
from visynth.tabular.text.rows import row_examples, row_schema
from visynth.tabular.text.trial import run_text_trial
from visynth.tabular.text.tuning import Talks, Tuning, split_texts
from visynth.tabular.text.utility import TextCells


def test_equal_texts_stay_on_one_side() -> None:
    doubled = [*texts(count=40), *[Example(e.text.upper(), e.label) for e in texts(count=40)]]
    known, held = split_texts(doubled, 0.25, seed=1)
    assert len(held) == 20
    assert sorted(e.label for e in held) == ["bad"] * 10 + ["good"] * 10
    assert not {e.text.lower() for e in known} & {e.text.lower() for e in held}
    assert split_texts(doubled, 0.0) == (doubled, [])
    with pytest.raises(UsageError, match="share of held-out"):
        split_texts(doubled, 1.0)


def test_texts_that_were_learned_are_not_given_out_and_not_judged(
    learned: tuple[TextLoRA, Path], lm: Path, tmp_path: Path
) -> None:
    backend = TransformersLocal(lm, Decoding(0.3, 1.0, 30), batch=16, adapter=learned[1])
    spec = TextSpec(SPEC.prompt, {"label": ["good", "bad"]}, label="label", attempts=1, rounds=1)
    made = TextGenerator(spec).write(TextGenerator(spec).records(16), backend, tmp_path)
    known = {example.text for example in texts()}
    assert made.refused["learned"] > 0
    assert not {text.fields["text"] for text in made.texts} & known
    some = [*texts(6, 10), *texts(200, 30)]
    with pytest.raises(DataError, match="learned 10 of the 40 texts"):
        run_text_trial(some, ["bad"], lambda: backend, SPEC, tmp_path / "t", TextCells(draws=1, texts=4, shown=1))
    assert not (tmp_path / "t").exists()


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    frame = pd.DataFrame([(e.text, e.label) for e in texts(count=120)], columns=["said", "label"])
    frame.to_csv(tmp_path / "s.csv", index=False)
    return tmp_path / "s.csv"


def test_a_killed_fine_tuning_goes_on_by_the_same_command(
    sentences: Path, lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(out: str) -> list[str]:
        return [
            "text", "fit", str(sentences), "--model", str(lm), "--text", "said", "--label", "label", "--out", str(tmp_path / out),
            "--arguments", "{steps: 12, batch_size: 16}", "--canaries", "2", "--quiet",
        ]  # fmt: skip

    killed_at(7, words("out"), monkeypatch)
    (checkpoint,) = (tmp_path / "out.work").rglob("last.ckpt")
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in kept} == {"net", "average", "steps_done"}
    assert max(tensor.numel() for tensor in kept.values()) <= 8 * 96  # low rank: none is a whole matrix
    assert not (tmp_path / "out" / "generator").exists()
    assert main(words("out")) == 0
    assert not (tmp_path / "out.work").exists()
    assert main(words("straight")) == 0
    assert (
        TextLoRA.load(tmp_path / "out" / "generator").digest
        == TextLoRA.load(tmp_path / "straight" / "generator").digest
    )
    report = read_report(tmp_path / "out")
    titles = [section["title"] for section in report.sections]
    assert titles == ["What was learned", "Privacy: can it be told who was learned?", "Privacy: canaries", "Samples"]
    assert "for an audit, not for use" in str(report.conditions["notes"])


def test_from_texts_to_an_adapter_to_the_rare_class(
    sentences: Path, lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [
        "text",
        "fit",
        str(sentences),
        "--model",
        str(lm),
        "--text",
        "said",
        "--label",
        "label",
        "--quiet",
    ]
    arguments = ["--arguments", "{steps: 60, rank: 16, alpha: 128, lr: 0.005}"]
    assert main([*fit, *arguments, "--out", str(tmp_path / "tuned")]) == 0
    assert "learned 96 texts" in capsys.readouterr().out
    classify = [
        "text", "classify", str(sentences), "--text", "said", "--per-class", "6", "--shown", "0", "--backend", "local", "--model",
        str(lm), "--adapter", str(tmp_path / "tuned" / "generator"), "--temperature", "1", "--max-tokens", "30", "--batch", "6",
        "--out", str(tmp_path / "made"), "--json", "--quiet", "--agreement", "0", "--cosine", "0", "--minhash", "0",
    ]  # fmt: skip
    assert main(classify) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["texts"] >= 4
    assert summary["backend"]["adapter"] == TextLoRA.load(tmp_path / "tuned" / "generator").digest
    assert (
        main([*classify[:-6], "--backend", "openai", "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "x")])
        == 64
    )
    assert "--adapter is for --backend local" in capsys.readouterr().err


def test_rows_are_learned_as_the_job_asks_for_them(lm: Path, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"mood": g.choice(["good", "bad"], 60), "stars": g.integers(1, 6, 60)})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    words = ["text", "fit", str(tmp_path / "rows.csv"), "--task", "rows", "--model", str(lm), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "tuned"), "--arguments", "{steps: 2, batch_size: 32}"]) == 0
    made = [
        "text", "rows", str(tmp_path / "rows.csv"), "--shown", "0", "--n", "5", "--backend", "local", "--model", str(lm),
        "--adapter", str(tmp_path / "tuned" / "generator"), "--max-tokens", "60", "--out", str(tmp_path / "made"), "--quiet",
    ]  # fmt: skip
    assert main(made) == 0
    assert len(pd.read_csv(tmp_path / "made" / "rows.csv")) == 5


def test_killed_after_its_last_step_it_makes_not_one_more(
    sentences: Path,
    lm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def words(out: str, *more: str) -> list[str]:
        return [
            "text", "fit", str(sentences), "--model", str(lm), "--text", "said", "--label", "label", "--out", str(tmp_path / out),
            "--arguments", "{steps: 4, batch_size: 32}", *more,
        ]  # fmt: skip

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    assert main(words("straight")) == 0
    monkeypatch.setattr("visynth.tabular.text.tuning._measured", killed)
    main(words("out"))
    monkeypatch.undo()
    digests = [TextLoRA.load(tmp_path / out / "generator").digest for out in ("straight", "out")]
    assert digests[0] == digests[1]  # it is kept before it is measured
    assert main(words("out")) == 0
    assert TextLoRA.load(tmp_path / "out" / "generator").digest == digests[0]
    capsys.readouterr()
    assert main(words("out")) == 0
    assert "this fine-tuning is done" in capsys.readouterr().err
    for more in (["--seed", "1"], ["--prompt", "Write."], ["--shown", "1"], ["--held", "0.3"]):
        assert main(words("out", *more)) != 0
        assert "holds another fine-tuning" in capsys.readouterr().err, more
    assert TextLoRA.load(tmp_path / "out" / "generator").digest == digests[0]
    write = [
        "text",
        "write",
        "--prompt",
        "A.",
        "--backend",
        "template",
        "--sentences",
        str(sentences),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*write, "--quiet"]) != 0
    assert "of another job" in capsys.readouterr().err
    assert TextLoRA.load(tmp_path / "out" / "generator").digest == digests[0]


def test_what_decides_a_fine_tuning_is_in_its_key(lm: Path, tmp_path: Path) -> None:
    def key(own: list[Example], **more: Any) -> str:
        task = Tuning(TextGenerator(SPEC, own), texts(100), lm, tmp_path, **more)
        return Talks.of(task).key(lm, {}, 0)

    other = [Example(e.text + "!", e.label) for e in texts()]
    swapped = [Example(e.text, {"good": "bad", "bad": "good"}[e.label]) for e in texts()]
    keys = [key(texts()), key(other), key(swapped), key(texts(), canaries=Canaries(2)), key(texts()[1:])]
    assert len(set(keys)) == 5
    assert key(texts()) == keys[0]
    with pytest.raises(UsageError, match="meanings of 'zzz'"):
        key(texts(), meanings={"zzz": "?"})
    with pytest.raises(DataError, match="no text is left"):
        key([])


def test_rows_are_learned_as_the_grammar_lets_them_be_written() -> None:
    from llguidance import LLMatcher, LLTokenizer

    frame = pd.DataFrame({"mood": ["good", "bad", "so-so"] * 8, "stars": range(24), "x": np.linspace(0, 1, 24)})
    schema = infer(frame, {"stars": "integer"})
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(row_schema(schema, frame)), overrides={"whitespace_flexible": False}
    )
    for example in row_examples(schema, frame):
        tokens = tokenizer.tokenize_str(example.text)
        assert LLMatcher(tokenizer, grammar).validate_tokens(tokens) == len(tokens), example.text


def test_a_job_asks_as_its_adapter_learned(
    sentences: Path,
    lm: Path,
    learned: tuple[TextLoRA, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "text", "classify", str(sentences), "--text", "said", "--per-class", "2", "--backend", "local", "--model", str(lm), "--adapter",
        str(learned[1]), "--max-tokens", "30", "--agreement", "0", "--cosine", "0", "--minhash", "0", "--rounds", "1", "--attempts", "1",
        "--temperature", "2",
    ]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().err
    assert "the adapter learned another prompt: 'A {{ label }} text.'" in printed
    assert "real texts; these show" not in printed  # as many as it learned: none
    assert main([*words, "--out", str(tmp_path / "b"), "--shown", "2"]) == 0
    assert "the adapter learned prompts that show 0 real texts; these show 2" in capsys.readouterr().err
    assert main([*words[:-8], "--adapter", "no/where", "--out", str(tmp_path / "c")]) == 64
    assert "there is no adapter at no/where" in capsys.readouterr().err


def test_wrong_arguments_of_a_fine_tuning(
    sentences: Path, lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["text", "fit", str(sentences), "--out", str(tmp_path / "out"), "--quiet", "--model"]
    cases = [
        ([*fit, str(tmp_path)], "no language model at"),
        ([*fit, str(lm), "--text", "said"], "give label"),
        ([*fit, str(lm), "--text", "said", "--label", "lable"], "no columns 'lable'"),
        (
            [*fit, str(lm), "--task", "rows", "--label", "label", "--system", "x"],
            "got --label and --system, but rows",
        ),
        (
            [*fit, str(lm), "--text", "said", "--label", "label", "--meanings", "{zzz: a}"],
            "meanings of 'zzz'",
        ),
        (
            [*fit, str(lm), "--text", "said", "--label", "label", "--arguments", "{ranks: 8}"],
            "TextLoRA has no argument 'ranks'",
        ),
        ([*fit, str(lm), "--text", "said", "--label", "label", "--canary-repeats", "[2]"], "say how many"),
        ([*fit, str(lm), "--text", "said", "--drop", "[x]"], "are for --task rows"),
        ([*fit, str(lm), "--text", "said", "--label", "label", "--held", "1"], "share of held-out"),
        ([*fit, str(lm), "--text", "said", "--prompt", "A {{ mood }} text."], "mood"),
    ]
    for words, why in cases:
        assert main(words) == 64, words
        assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv"]
