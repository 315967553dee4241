"""Fine-tuning of a local model: the losses, the low-rank weights, the artifact, what is remembered, and the command."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.ranks import run_ranks
from tests.tabular.text.models import schooled, tiny_model
from visynth import load_generator
from visynth.cli import main
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.core.report import read_report
from visynth.tabular.text import Decoding, Example, Prompt, Reply, Request, TextGenerator, TextSpec, TransformersLocal
from visynth.tabular.text.lora import TextLoRA
from visynth.tabular.text.losses import losses_of
from visynth.tabular.text.lowrank import LowRank, attach, put_in, switched_off
from visynth.tabular.text.memory import BEFORE, Canaries, exposure, memberships
from visynth.tabular.text.models import load_model
from visynth.tabular.text.talks import encoded, talks_of
from visynth.tabular.text.trial import run_text_trial
from visynth.tabular.text.tuning import split_texts
from visynth.tabular.text.utility import TextCells

SPEC = TextSpec(Prompt("A {{ label }} text."), label="label")
NUMBERS = [*np.random.default_rng(0).permutation(300), *range(300, 700)]
THINGS = ("phone", "lamp", "chair", "kettle", "radio", "clock", "table", "fan")


def texts(first: int = 0, count: int = 24) -> list[Example]:
    """Texts of two classes that one word tells apart; each has a number of its own, drawn from 0 to 299, and 300 from there on."""
    return [
        Example(f"the {THINGS[k % 8]} is {'great' if k % 2 else 'bad'} {NUMBERS[k]:03d}", "good" if k % 2 else "bad")
        for k in range(first, first + count)
    ]


TALKS = talks_of(TextGenerator(SPEC, texts()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows such texts, but not what their classes are called, nor the numbers of those that will be learned."""
    own = tiny_model(tmp_path_factory.mktemp("model"), width=64)
    return schooled(own, [("A text.", example.text) for example in texts(300, 400)])


@pytest.fixture(scope="module")
def learned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextLoRA, Path]:
    """Weights that know their texts by heart."""
    generator = TextGenerator(SPEC, texts())
    lora = TextLoRA(rank=16, alpha=128.0, steps=250, lr=5e-3)
    lora.fit(folder, TALKS, prompt=SPEC.prompt, classes=generator.classes, members=generator.members)
    return lora, lora.save(tmp_path_factory.mktemp("lora") / "g")


def test_losses_are_the_negative_log_likelihood_of_the_reply_alone(folder: Path) -> None:
    model = load_model(folder)
    found = losses_of(model, encoded(model, TALKS[:5])[0], batch=3)
    for talk, own in zip(TALKS[:5], found, strict=True):
        before, reply = model.ids(talk.messages), model.reply_ids(talk.reply)
        assert reply[-1] == model.tokenizer.eos_token_id
        logits = model.model(torch.tensor([before + reply])).logits[0].double()
        chances = torch.softmax(logits, dim=-1)
        expected = [-np.log(float(chances[len(before) + k - 1, token])) for k, token in enumerate(reply)]
        np.testing.assert_allclose(own, expected, atol=1e-4)


def test_new_weights_change_nothing_and_trained_ones_add_their_product(folder: Path) -> None:
    model = load_model(folder)
    ids = torch.tensor([[5, 9, 11]])
    plain = model.model(ids).logits
    layer = model.model.model.layers[0].self_attn.q_proj
    before = layer.weight.clone()
    weights = attach(model.model, LowRank(4, 8.0, ("q_proj",)))
    assert torch.equal(model.model(ids).logits, plain)
    assert set(weights) == {f"model.layers.{k}.self_attn.q_proj.lora_{side}.weight" for k in (0, 1) for side in "AB"}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(p.shape, generator=generator) for name, p in weights.items()}
    other = load_model(folder)
    put_in(other.model, LowRank(4, 8.0, ("q_proj",)), tensors)
    a, b = (tensors[f"model.layers.0.self_attn.q_proj.lora_{side}.weight"] for side in "AB")
    x = torch.randn(3, before.shape[1], generator=generator)
    product = other.model.model.layers[0].self_attn.q_proj(x)
    torch.testing.assert_close(product, x @ (before + 8.0 / 4 * b @ a).T, atol=1e-5, rtol=1e-4)
    with switched_off(other.model):
        assert torch.equal(other.model(ids).logits, plain)
    assert not torch.equal(other.model(ids).logits, plain)
    with pytest.raises(IntegrityError, match="do not fit the model"):
        put_in(load_model(folder).model, LowRank(2, 8.0, ("q_proj",)), tensors)
    with pytest.raises(UsageError, match="no_such_layer"):
        attach(load_model(folder).model, LowRank(2, 8.0, ("no_such_layer",)))


def test_it_learns_its_texts_and_what_tells_classes_apart(learned: tuple[TextLoRA, Path], folder: Path) -> None:
    lora, path = learned
    arrays = encoded(lora.language, TALKS)[0]
    after = np.mean([own.mean() for own in losses_of(lora.language, arrays)])
    before = np.mean([own.mean() for own in losses_of(load_model(folder), arrays)])
    assert after < 0.35 * before
    backend = TransformersLocal(folder, Decoding(0.7, 1.0, 30), batch=16, adapter=path)
    for label, word in (("good", "great"), ("bad", "bad")):
        asked = [Request(({"role": "user", "content": f"A {label} text."},), seed) for seed in range(16)]
        said = [reply.text for reply in backend.complete(asked) if isinstance(reply, Reply)]
        assert np.mean([word in text for text in said]) > 0.8


def test_other_tools_read_the_adapter(learned: tuple[TextLoRA, Path], folder: Path) -> None:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, of transformers
        theirs = PeftModel.from_pretrained(load_model(folder).model, learned[1])
    ours = TextLoRA.load(learned[1]).put_into(load_model(folder))
    ids = torch.tensor([[5, 9, 11, 40]])
    torch.testing.assert_close(theirs(ids).logits, ours.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert (theirs(ids).logits - load_model(folder).model(ids).logits).abs().max() > 0.1


def test_the_folder_is_the_products_artifact(learned: tuple[TextLoRA, Path], folder: Path, tmp_path: Path) -> None:
    lora, path = learned
    loaded = load_generator(path)
    assert isinstance(loaded, TextLoRA)
    assert loaded.digest == lora.digest
    assert loaded.classes == ("bad", "good")
    assert len(loaded.members) == 24
    assert "great" not in (path / "generator.json").read_text() + (path / "members.jsonl").read_text()
    identity = TransformersLocal(folder, batch=1, adapter=path).identity
    assert identity["adapter"] == lora.digest
    assert "adapter" not in TransformersLocal(folder, batch=1).identity
    other = tiny_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    weights = load_model(other).model
    with torch.no_grad():
        weights.model.norm.weight.add_(0.1)
    weights.save_pretrained(other)
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=lora.base[:16]):
        TransformersLocal(other, adapter=path)
    changed = shutil.copytree(path, tmp_path / "changed")
    said = json.loads((changed / "generator.json").read_text())
    said["base"] = load_model(other).digest
    (changed / "generator.json").write_text(json.dumps(said))
    with pytest.raises(IntegrityError, match="altered"):
        TransformersLocal(other, adapter=changed)


def test_training_leaves_global_randomness_and_the_models_files_alone(folder: Path) -> None:
    torch.manual_seed(3)
    before, digest = torch.get_rng_state(), load_model(folder).digest
    first = TextLoRA(steps=3, batch_size=4).fit(folder, TALKS, prompt=SPEC.prompt)
    assert torch.equal(torch.get_rng_state(), before)
    assert load_model(folder).digest == digest
    torch.manual_seed(4)
    assert TextLoRA(steps=3, batch_size=4).fit(folder, TALKS, prompt=SPEC.prompt).digest == first.digest
    assert TextLoRA(steps=3, batch_size=4, seed=1).fit(folder, TALKS, prompt=SPEC.prompt).digest != first.digest
    assert int(TextLoRA(batch_size=10).fit(folder, TALKS, prompt=SPEC.prompt).args.steps) == 8  # three passes


def test_texts_that_are_too_long_are_left_out_and_told(folder: Path) -> None:
    long = Example("the phone " * 300, "bad")
    generator = TextGenerator(SPEC, [*texts(), long])
    lora = TextLoRA(steps=1).fit(folder, talks_of(generator), prompt=SPEC.prompt, members=generator.members)
    assert len(lora.members) == 24
    assert lora.card["notes"] == ["1 texts are too long and were left out"]
    with pytest.raises(DataError, match="all 1 texts"):
        TextLoRA(steps=1).fit(folder, talks_of(TextGenerator(SPEC, [long])), prompt=SPEC.prompt)


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(UsageError) as error:
        TextLoRA(steps=0, lr=0.0, ema=1.0)
    assert all(words in str(error.value) for words in ("steps", "lr", "ema"))
    with pytest.raises(UsageError, match="rank must be"):
        TextLoRA(rank=0)


def worker(rank: int, folder: str, out: str) -> None:
    from visynth.tabular.training import default_trainer

    lora = TextLoRA(steps=4, batch_size=8)
    lora.fit(folder, TALKS, prompt=SPEC.prompt, trainer=default_trainer(accelerator="cpu", devices=2, strategy="ddp"))
    if rank == 0:
        lora.save(out)


def test_two_processes_train_as_one(folder: Path, tmp_path: Path) -> None:
    run_ranks(worker, str(folder), str(tmp_path / "g"))
    one = TextLoRA(steps=4, batch_size=8).fit(folder, TALKS, prompt=SPEC.prompt)
    both = TextLoRA.load(tmp_path / "g")
    for name, own in one._kept.items():
        np.testing.assert_allclose(both._kept[name].numpy(), own.numpy(), atol=2e-4)


def test_what_is_known_by_heart_is_told_from_what_is_not(learned: tuple[TextLoRA, Path]) -> None:
    model = learned[0].language
    sides = []
    for own in (TALKS, talks_of(TextGenerator(SPEC, texts(100)))):
        arrays = encoded(model, own)[0]
        with switched_off(model.model):
            before = losses_of(model, arrays)
        sides.append((before, losses_of(model, arrays)))
    found = {attack.attack: attack for attack in memberships(*sides)}
    assert found["loss"].auc > 0.9
    assert found["loss"].leaks
    assert found["Min-K%"].leaks
    assert not found[BEFORE].leaks
    ones, few = (
        [np.array([1.0, 3.0])] * 25,
        [np.array([1.0, 2.0])] * 25,
    )  # falls by 0.5 where it was learned, from equal losses
    calibrated = {attack.attack: attack.auc for attack in memberships((ones, few), (few, few))}
    assert calibrated == {"loss": 0.5, "loss beside the model before": 1.0, "Min-K%": 0.5, BEFORE: 0.0}


def test_secrets_are_exposed_as_often_as_they_were_learned(folder: Path) -> None:
    canaries = Canaries(4, (1, 24), others=64, seed=2)
    message = TALKS[0].messages
    lora = TextLoRA(rank=16, alpha=128.0, steps=200, lr=5e-3)
    lora.fit(folder, [*TALKS, *canaries.learned(message)], prompt=SPEC.prompt)
    losses = [
        own.mean()
        for own in losses_of(lora.language, encoded(lora.language, canaries.talks(message, canaries.secrets))[0])
    ]
    others = np.array(losses[8:])
    found = [exposure(own, others) for own in losses[:8]]
    assert [found[1], found[3]] == [np.log2(65), np.log2(65)]  # both of 24 copies: likelier than all others
    assert np.mean(found[4:]) < 4
    random = np.random.default_rng(0)
    drawn = [exposure(random.random(), random.random(999)) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(1 / np.log(2), abs=0.1)


def test_equal_texts_stay_on_one_side() -> None:
    doubled = [*texts(count=40), *[Example(e.text.upper(), e.label) for e in texts(count=40)]]
    known, held = split_texts(doubled, 0.25, seed=1)
    assert len(held) == 20
    assert sorted(e.label for e in held) == ["bad"] * 10 + ["good"] * 10
    assert not {e.text.lower() for e in known} & {e.text.lower() for e in held}
    assert split_texts(doubled, 0.0) == (doubled, [])
    with pytest.raises(UsageError, match="share of held-out"):
        split_texts(doubled, 1.0)


def test_prompts_show_other_texts_of_the_class() -> None:
    spec = TextSpec(Prompt("{{ label }}:{% for e in examples %} {{ e }};{% endfor %}"), label="label", shown=3)
    for talk in talks_of(TextGenerator(spec, texts())):
        said = talk.messages[0]["content"]
        assert talk.reply not in said
        assert said.count(";") == 3
        assert ("great" in said) == ("great" in talk.reply)
    with pytest.raises(DataError, match="has one real text"):
        talks_of(TextGenerator(spec, [*texts(), Example("odd", "odd")]))


def test_texts_that_were_learned_are_not_given_out_and_not_judged(
    learned: tuple[TextLoRA, Path], folder: Path, tmp_path: Path
) -> None:
    backend = TransformersLocal(folder, Decoding(0.3, 1.0, 30), batch=16, adapter=learned[1])
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
    sentences: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visynth.callbacks.checkpoint import KeepLast

    def words(out: str) -> list[str]:
        return [
            "text", "fit", str(sentences), "--model", str(folder), "--text", "said", "--label", "label", "--out", str(tmp_path / out),
            "--arguments", "{steps: 12, batch_size: 4}", "--canaries", "2", "--quiet",
        ]  # fmt: skip

    class Killed(KeepLast):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            if int(pl_module.steps_done) == 7:
                self._save(trainer)
                raise KeyboardInterrupt

    monkeypatch.setattr("visynth.callbacks.checkpoint.KeepLast", Killed)
    main(words("out"))
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "out.work").rglob("last.ckpt")
    assert checkpoint.stat().st_size < 10 * sum(p.stat().st_size for p in folder.glob("*.safetensors"))
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
    sentences: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["text", "fit", str(sentences), "--model", str(folder), "--text", "said", "--label", "label", "--quiet"]
    arguments = ["--arguments", "{steps: 60, rank: 16, alpha: 128, lr: 0.005}"]
    assert main([*fit, *arguments, "--out", str(tmp_path / "tuned")]) == 0
    assert "learned 96 texts" in capsys.readouterr().out
    classify = [
        "text", "classify", str(sentences), "--text", "said", "--per-class", "6", "--shown", "0", "--backend", "local", "--model",
        str(folder), "--adapter", str(tmp_path / "tuned" / "generator"), "--temperature", "1", "--max-tokens", "30", "--batch", "6",
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


def test_rows_are_learned_as_the_job_asks_for_them(folder: Path, tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"mood": g.choice(["good", "bad"], 60), "stars": g.integers(1, 6, 60)})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    words = ["text", "fit", str(tmp_path / "rows.csv"), "--task", "rows", "--model", str(folder), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "tuned"), "--arguments", "{steps: 2}"]) == 0
    made = [
        "text", "rows", str(tmp_path / "rows.csv"), "--shown", "0", "--n", "5", "--backend", "local", "--model", str(folder),
        "--adapter", str(tmp_path / "tuned" / "generator"), "--max-tokens", "60", "--out", str(tmp_path / "made"), "--quiet",
    ]  # fmt: skip
    assert main(made) == 0
    assert len(pd.read_csv(tmp_path / "made" / "rows.csv")) == 5


def test_wrong_arguments_of_a_fine_tuning(
    sentences: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["text", "fit", str(sentences), "--out", str(tmp_path / "out"), "--quiet", "--model"]
    cases = [
        ([*fit, str(tmp_path)], "no language model at"),
        ([*fit, str(folder), "--text", "said"], "give label"),
        ([*fit, str(folder), "--text", "said", "--label", "lable"], "no columns 'lable'"),
        ([*fit, str(folder), "--task", "rows", "--label", "label"], "rows take no --prompt"),
        ([*fit, str(folder), "--text", "said", "--drop", "[x]"], "are for --task rows"),
        ([*fit, str(folder), "--text", "said", "--label", "label", "--held", "1"], "share of held-out"),
        ([*fit, str(folder), "--text", "said", "--prompt", "A {{ mood }} text."], "mood"),
    ]
    for words, why in cases:
        assert main(words) == 64, words
        assert why in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv"]
