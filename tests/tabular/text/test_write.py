"""Texts by a prompt and plan of one's own, plans of real rows, near-duplicates by a model, and the shipped configurations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.tabular.text.models import tiny_model
from tests.tabular.text.server import serving
from visynth.cli import main
from visynth.core.errors import UsageError
from visynth.tabular.text.embedding import Encoder
from visynth.tabular.text.real_rows import planned_records

CONFIGS = Path("configs/text").resolve()
SMOKE = Path("configs/smoke").resolve()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    (tmp_path / "s.txt").write_text("From {city} with {mood} wishes.\n")
    return tmp_path / "s.txt"


def test_attributes_come_from_real_rows_beside_a_plan(sentences: Path, tmp_path: Path) -> None:
    pd.DataFrame({"city": ["Rome", "Oslo", None], "x": [1, 2, 3]}).to_csv(tmp_path / "rows.csv", index=False)
    words = [
        "text", "write", "--prompt", "Write from {{ city }}, {{ mood }}.", "--rows", str(tmp_path / "rows.csv"), "--plan",
        "{mood: [warm, dry]}", "--n", "12", "--backend", "template", "--sentences", str(sentences), "--quiet", "--minhash", "0", "--cosine",
        "0", "--rounds", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(words) == 0
    made = lines(tmp_path / "out" / "texts.jsonl")
    missing = lines(tmp_path / "out" / "missing.jsonl")
    asked = [(row["city"], row["mood"]) for row in [*made, *(one["attributes"] for one in missing)]]
    assert Counter(city for city, _ in asked) == {"Rome": 4, "Oslo": 4, None: 4}
    assert Counter(mood for _, mood in asked) == {"warm": 6, "dry": 6}
    assert all("x" not in row for row in made)  # only what the prompt names is taken from the rows
    assert all(row["text"] == f"From {row['city']} with {row['mood']} wishes." for row in made)
    assert all(row["provenance"]["row"] == {"Rome": 0, "Oslo": 1, None: 2}[row["city"]] for row in made)
    assert {one["check"] for one in missing} == {"repeat, equal"}  # there are no more different texts than that


def test_plans_of_rows_that_cannot_be() -> None:
    frame = pd.DataFrame({"city": ["Rome"], "mood": ["dry"]})
    with pytest.raises(UsageError, match="there is no 'town'"):
        planned_records({}, frame, ["town"])
    with pytest.raises(UsageError, match="'mood' are columns of the rows and attributes"):
        planned_records({"mood": ["a"]}, frame)
    with pytest.raises(UsageError, match="give a file of rows"):
        planned_records({}, None, ["city"])
    with pytest.raises(UsageError, match="0 rows"):
        planned_records({}, frame.iloc[:0])
    with pytest.raises(UsageError, match="no column is used"):
        planned_records({}, frame, [])
    with pytest.raises(UsageError, match="n must be at least 1"):
        planned_records({}, None, n=0)
    assert len(planned_records({}, frame)) == 1
    assert [r.seed for r in planned_records({}, None, n=3)] == [r.seed for r in planned_records({}, None, n=3)]


def test_attributes_that_no_record_has(sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["text", "write", "--prompt", "In {{ mood }}.", "--backend", "template", "--sentences", str(sentences), "--quiet", "--out",
             str(tmp_path / "out")]  # fmt: skip
    (tmp_path / "rows.csv").write_text("mood,city\nwarm,Rome\n")
    for more in (["--rows", str(tmp_path / "rows.csv")], ["--plan", "{mood: [warm]}"]):
        for wrong in (["--label", "lable"], ["--wanted", "{words: wrods}"], ["--wanted", "{mentions: wrods}"]):
            assert main([*words, *more, *wrong]) == 64
            assert "no attribute" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tickets_configuration_meets_its_plan(tmp_path: Path) -> None:
    def answer(number: int, body: Any) -> str:
        asked = body["messages"][-1]["content"]
        thing = asked.split("It mentions: ")[1].rstrip(".")
        count = int(asked.split("about ")[2].split(" words")[0])
        filler = " ".join(f"w{body['seed'] % (97 + k)}" for k in range(count - 6))
        return json.dumps({"subject": f"Ticket {number}", "text": f"I write because of the {thing} {filler}"})

    with serving(answer) as server:
        code = main(
            ["text", "write", "--config", str(CONFIGS / "tickets.yaml"), "--base-url", server.url, "--n", "36", "--out",
             str(tmp_path / "out"), "--wanted.language", "null", "--cosine", "0", "--minhash", "0", "--quiet"]
        )  # fmt: skip
        assert code == 0
        assert server.bodies[0]["response_format"]["type"] == "json_schema"
    made = lines(tmp_path / "out" / "texts.jsonl")
    assert len(made) == 36
    assert set(Counter((row["topic"], row["mood"]) for row in made).values()) == {4}
    assert Counter(row["urgent"] for row in made) == {"no": 32, "yes": 4}
    assert all(set(row["mention"]) < set(row["text"].split()) for row in made)


@pytest.mark.data
def test_the_trial_configuration_runs_in_its_smoke_form(
    tmp_path: Path, real_data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    real = pd.read_csv(real_data("tabular") / "review_sentences.csv").groupby("label").head(60)
    real.to_csv(tmp_path / "few.csv", index=False)
    (tmp_path / "s.txt").write_text("It was a {label} thing.\nNothing works, and {label} is what I say.\n")
    code = main(
        ["text", "trial", "--config", str(CONFIGS / "review_sentences.yaml"), "--config", str(SMOKE / "text_trial.yaml"), "--data",
         str(tmp_path / "few.csv"), "--rare-texts", "20", "--sentences", str(tmp_path / "s.txt"), "--out", str(tmp_path / "out"),
         "--language", "null", "--json", "--quiet"]
    )  # fmt: skip
    assert code == 0
    assert [v["class"] for v in json.loads(capsys.readouterr().out)] == ["0"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["conditions"]["meanings"]["1"] == "praise"


@pytest.mark.data
def test_the_fine_tuning_configuration_runs_in_its_smoke_form(tmp_path: Path, real_data: Any) -> None:
    real = pd.read_csv(real_data("tabular") / "review_sentences.csv").groupby("label").head(60)
    real.to_csv(tmp_path / "few.csv", index=False)
    model = tiny_model(tmp_path / "model")
    assert main(
        ["text", "fit", "--config", str(CONFIGS / "fine_tuning.yaml"), "--data", str(tmp_path / "few.csv"), "--model", str(model),
         "--out", str(tmp_path / "out"), "--arguments.steps", "2", "--arguments.batch_size", "64", "--quiet"]
    ) == 0  # fmt: skip
    assert (tmp_path / "out" / "generator" / "adapter_config.json").is_file()


def test_every_text_configuration_says_its_command() -> None:
    for path in CONFIGS.glob("*.yaml"):
        verb = path.read_text().splitlines()[0].removeprefix("# visynth text ").split()[0]
        assert path.read_text().startswith(f"# visynth text {verb} --config configs/text/{path.name}\n")
        assert verb in ("write", "trial", "fit")
        assert yaml.safe_load(path.read_text())["out"].startswith("runs/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_embeddings_are_the_mean_of_the_last_states_whatever_the_batch(folder: Path) -> None:
    texts = ["the phone", "a lamp that broke after two days", "x"]
    together, alone = Encoder(folder, batch=8)(texts), Encoder(folder, batch=1)(texts)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose((together**2).sum(axis=1), 1)
    encoder = Encoder(folder)
    ids = torch.tensor([encoder.model.tokenizer(texts[1])["input_ids"]])
    states = encoder.model.model(ids).last_hidden_state[0].mean(dim=0).numpy()
    np.testing.assert_allclose(encoder(texts)[1], states / np.linalg.norm(states), atol=1e-5)
    assert encoder([]).shape[0] == 0


def bert(folder: Path, pooling: str | None) -> Path:
    """A tiny encoder as sentence-transformers saves one."""
    from transformers import BertConfig, BertModel

    tiny_model(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=400,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        modes = dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {pooling: True}))
    return folder


def test_encoders_that_are_no_language_models_pool_as_they_say(tmp_path: Path) -> None:
    text = "the quick brown fox"
    mean, first = (
        bert(tmp_path / "mean", "pooling_mode_mean_tokens"),
        bert(tmp_path / "first", "pooling_mode_cls_token"),
    )
    encoder = Encoder(mean)
    states = (
        encoder.model.model(torch.tensor([encoder.model.tokenizer(text)["input_ids"]])).last_hidden_state[0].numpy()
    )
    for path, own in (
        (mean, states.mean(axis=0)),
        (first, states[0]),
        (bert(tmp_path / "none", None), states.mean(axis=0)),
    ):
        np.testing.assert_allclose(Encoder(path)([text])[0], own / np.linalg.norm(own), atol=1e-5)
    with pytest.raises(UsageError, match="pooling_mode_max_tokens"):
        Encoder(bert(tmp_path / "most", "pooling_mode_max_tokens"))
    with pytest.raises(UsageError, match="no language model at"):
        Encoder(tmp_path / "nowhere")


def test_near_duplicates_by_a_model_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words in another order have a cosine of 0.63 to this model."""
    (tmp_path / "s.txt").write_text(
        "the phone is great and the price is fine\nfine is the price and great is the phone\n"
    )

    def run(out: str, *more: str) -> dict[str, Any]:
        words = ["text", "write", "--prompt", "Write.", "--n", "8", "--backend", "template", "--sentences", str(tmp_path / "s.txt"),
                 "--rounds", "1", "--attempts", "1", "--minhash", "0.95", "--quiet", "--out", str(tmp_path / out)]  # fmt: skip
        assert main([*words, *more]) == 0
        return json.loads((tmp_path / out / "summary.json").read_text())

    assert run("words", "--cosine", "0.99")["texts"] == 2
    model = run("model", "--embedder", str(folder), "--cosine", "0.6")
    assert model["texts"] == 1
    assert model["refused"]["repeat, near in the embedding"] >= 1
    assert run("strict", "--embedder", str(folder), "--cosine", "1")["texts"] == 2
    with pytest.raises(AssertionError):
        run("default", "--embedder", str(folder))
    assert "say from which --cosine" in capsys.readouterr().err
