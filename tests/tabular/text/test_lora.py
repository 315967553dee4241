"""Low-rank weights of a language model: the losses, the training, the lm, and what is remembered."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks
from tests.tabular.text.lessons import SPEC, TALKS, texts
from tests.tabular.text.models import tiny_model
from visynth import load_generator
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.tabular.text import Decoding, Example, Prompt, Reply, Request, TextGenerator, TextSpec, TransformersLocal
from visynth.tabular.text.lora import Lesson, TextLoRA
from visynth.tabular.text.losses import losses_of
from visynth.tabular.text.lowrank import LowRank, attach, merge, put_in, switched_off
from visynth.tabular.text.memory import BEFORE, Canaries, exposure, membership_blocks, memberships
from visynth.tabular.text.models import LanguageModel, load_model
from visynth.tabular.text.talks import encoded, talks_of


def test_losses_are_the_negative_log_likelihood_of_the_reply_alone(lm: Path) -> None:
    model = load_model(lm)
    found = losses_of(model, encoded(model, TALKS[:5])[0], batch=3)
    for talk, own in zip(TALKS[:5], found, strict=True):
        before, reply = model.ids(talk.messages), model.reply_ids(talk.reply)
        assert reply[-1] == model.tokenizer.eos_token_id
        logits = model.model(torch.tensor([before + reply])).logits[0].double()
        chances = torch.softmax(logits, dim=-1)
        expected = [-np.log(float(chances[len(before) + k - 1, token])) for k, token in enumerate(reply)]
        np.testing.assert_allclose(own, expected, atol=1e-4)


def test_new_weights_change_nothing_and_trained_ones_add_their_product(lm: Path) -> None:
    model = load_model(lm)
    ids = torch.tensor([[5, 9, 11]])
    plain = model.model(ids).logits
    layer = model.model.model.layers[0].self_attn.q_proj
    before = layer.weight.clone()
    weights = attach(model.model, LowRank(4, 8.0, ("q_proj",)))
    assert torch.equal(model.model(ids).logits, plain)
    assert set(weights) == {f"model.layers.{k}.self_attn.q_proj.lora_{side}.weight" for k in (0, 1) for side in "AB"}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(p.shape, generator=generator) for name, p in weights.items()}
    other = load_model(lm)
    put_in(other.model, LowRank(4, 8.0, ("q_proj",)), tensors)
    a, b = (tensors[f"model.layers.0.self_attn.q_proj.lora_{side}.weight"] for side in "AB")
    x = torch.randn(3, before.shape[1], generator=generator)
    product = other.model.model.layers[0].self_attn.q_proj(x)
    torch.testing.assert_close(product, x @ (before + 8.0 / 4 * b @ a).T, atol=1e-5, rtol=1e-4)
    with switched_off(other.model):
        assert torch.equal(other.model(ids).logits, plain)
    assert not torch.equal(other.model(ids).logits, plain)
    with pytest.raises(IntegrityError, match="do not fit the model"):
        put_in(load_model(lm).model, LowRank(2, 8.0, ("q_proj",)), tensors)
    problems = [
        (("q_proj", "nosuch"), "no layer is called 'nosuch'"),
        (("embed_tokens",), "is the embedding"),
        (("lm_head",), "shares"),
    ]
    for targets, why in problems:
        with pytest.raises(UsageError, match=why):
            attach(load_model(lm).model, LowRank(2, 8.0, targets))
    with pytest.raises(UsageError, match="must be a list"):
        LowRank(2, 8.0, "q_proj")
    merge(other.model)
    with pytest.raises(UsageError, match="are merged"), switched_off(other.model):
        pass


def test_it_learns_its_texts_and_what_tells_classes_apart(learned: tuple[TextLoRA, Path], lm: Path) -> None:
    lora, path = learned
    arrays = encoded(lora.language, TALKS)[0]
    after = np.mean([own.mean() for own in losses_of(lora.language, arrays)])
    before = np.mean([own.mean() for own in losses_of(load_model(lm), arrays)])
    assert after < 0.35 * before
    backend = TransformersLocal(lm, Decoding(0.7, 1.0, 30), batch=16, adapter=path)
    for label, word in (("good", "great"), ("bad", "bad")):
        asked = [Request(({"role": "user", "content": f"A {label} text."},), seed) for seed in range(16)]
        said = [reply.text for reply in backend.complete(asked) if isinstance(reply, Reply)]
        assert np.mean([word in text for text in said]) > 0.8


def test_other_tools_read_the_adapter(learned: tuple[TextLoRA, Path], lm: Path) -> None:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, of transformers
        theirs = PeftModel.from_pretrained(load_model(lm).model, learned[1])
    ours = TextLoRA.load(learned[1]).put_into(load_model(lm))
    ids = torch.tensor([[5, 9, 11, 40]])
    torch.testing.assert_close(theirs(ids).logits, ours.model(ids).logits, atol=1e-4, rtol=1e-4)
    assert (theirs(ids).logits - load_model(lm).model(ids).logits).abs().max() > 0.1


def test_the_folder_is_the_products_artifact(learned: tuple[TextLoRA, Path], lm: Path, tmp_path: Path) -> None:
    lora, path = learned
    loaded = load_generator(path)
    assert isinstance(loaded, TextLoRA)
    assert loaded.digest == lora.digest
    assert loaded.classes == ("bad", "good")
    assert len(loaded.members) == 24
    assert "great" not in (path / "generator.json").read_text() + (path / "members.jsonl").read_text()
    identity = TransformersLocal(lm, batch=1, adapter=path).identity
    assert identity["adapter"] == lora.digest
    assert "adapter" not in TransformersLocal(lm, batch=1).identity
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


def test_training_leaves_global_randomness_and_the_models_files_alone(lm: Path) -> None:
    torch.manual_seed(3)
    before, digest = torch.get_rng_state(), load_model(lm).digest
    first = TextLoRA(steps=3, batch_size=8).fit(lm, TALKS, lesson=Lesson(SPEC.prompt))
    assert torch.equal(torch.get_rng_state(), before)
    assert load_model(lm).digest == digest
    torch.manual_seed(4)
    assert TextLoRA(steps=3, batch_size=8).fit(lm, TALKS, lesson=Lesson(SPEC.prompt)).digest == first.digest
    assert TextLoRA(steps=3, batch_size=8, seed=1).fit(lm, TALKS, lesson=Lesson(SPEC.prompt)).digest != first.digest
    assert int(TextLoRA(batch_size=10).fit(lm, TALKS, lesson=Lesson(SPEC.prompt)).args.steps) == 8  # three passes


def test_texts_that_are_too_long_are_left_out_and_told(lm: Path) -> None:
    long = Example("the phone " * 300, "bad")
    generator = TextGenerator(SPEC, [*texts(), long])
    lora = TextLoRA(steps=1, batch_size=32).fit(
        lm, talks_of(generator), lesson=Lesson(SPEC.prompt), members=generator.members
    )
    assert len(lora.members) == 24
    assert lora.card["notes"] == ["1 texts are too long and were left out"]
    with pytest.raises(DataError, match="all 1 texts"):
        TextLoRA(steps=1, batch_size=32).fit(lm, talks_of(TextGenerator(SPEC, [long])), lesson=Lesson(SPEC.prompt))


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(UsageError) as error:
        TextLoRA(steps=0, lr=0.0, ema=1.0)
    assert all(words in str(error.value) for words in ("steps", "lr", "ema"))
    with pytest.raises(UsageError, match="rank must be"):
        TextLoRA(rank=0)


def worker(rank: int, lm: str, out: str) -> None:
    from visynth.tabular.training import default_trainer

    lora = TextLoRA(steps=4, batch_size=8)
    lora.fit(
        lm,
        TALKS,
        lesson=Lesson(SPEC.prompt),
        trainer=default_trainer(accelerator="cpu", devices=2, strategy="ddp"),
    )
    if rank == 0:
        lora.save(out)


def test_two_processes_train_as_one(lm: Path, tmp_path: Path) -> None:
    run_ranks(worker, str(lm), str(tmp_path / "g"))
    one = TextLoRA(steps=4, batch_size=8).fit(lm, TALKS, lesson=Lesson(SPEC.prompt))
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


def test_secrets_are_exposed_as_often_as_they_were_learned(lm: Path) -> None:
    canaries = Canaries(4, (1, 24), others=64, seed=2)
    message = TALKS[0].messages
    lora = TextLoRA(rank=16, alpha=128.0, steps=200, lr=5e-3)
    lora.fit(lm, [*TALKS, *canaries.learned(message)], lesson=Lesson(SPEC.prompt))
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


def test_prompts_show_other_texts_of_the_class() -> None:
    spec = TextSpec(Prompt("{{ label }}:{% for e in examples %} {{ e }};{% endfor %}"), label="label", shown=3)
    for talk in talks_of(TextGenerator(spec, texts())):
        said = talk.messages[0]["content"]
        assert talk.reply not in said
        assert said.count(";") == 3
        assert ("great" in said) == ("great" in talk.reply)
    with pytest.raises(DataError, match="has one real text"):
        talks_of(TextGenerator(spec, [*texts(), Example("odd", "odd")]))


def test_a_reply_ends_as_the_chat_template_says(lm: Path) -> None:
    model = load_model(lm)
    assert model.end == [model.tokenizer.eos_token_id]
    assert model.reply_ids("so <|end|> good").count(model.tokenizer.eos_token_id) == 1  # words of a text end nothing
    ended = "{% if m['role'] == 'assistant' %} ok<|end|>x{% endif %}"
    one = "<|{{ m['role'] }}|>{{ m['content'] }}"
    model.tokenizer.chat_template = f"{{% for m in messages %}}{one}{ended}{{% endfor %}}"
    fresh = LanguageModel(model.model, model.tokenizer, model.path)
    assert model.tokenizer.decode(fresh.end) == " ok<|end|>"
    model.tokenizer.chat_template = None
    model.tokenizer.eos_token = None
    with pytest.raises(UsageError, match="has no end token"):
        LanguageModel(model.model, model.tokenizer, model.path).reply_ids("x")


def test_trainings_that_could_not_be_told_or_resumed_are_refused(lm: Path) -> None:
    from visynth.tabular.training import default_trainer

    with pytest.raises(UsageError, match="2 steps of 8 texts do not see all 24"):
        TextLoRA(steps=2).fit(lm, TALKS, lesson=Lesson(SPEC.prompt))
    with pytest.raises(UsageError, match="accumulate_grad_batches"):
        TextLoRA().fit(lm, TALKS, lesson=Lesson(SPEC.prompt), trainer=default_trainer(accumulate_grad_batches=2))


def test_a_holdout_of_another_kind_gives_no_all_clear() -> None:
    likely, unlikely = [np.array([1.0, 1.1])] * 30, [np.array([3.0, 3.3])] * 30
    for sides in ((likely, unlikely), (unlikely, likely)):
        said = membership_blocks(memberships((sides[0], sides[0]), (sides[1], sides[1])))[1]["text"]
        assert "not of one kind" in said
    g = np.random.default_rng(0)
    same = [[g.normal(2, 0.5, 9) for _ in range(60)] for _ in range(2)]
    assert "No attack found" in membership_blocks(memberships((same[0], same[0]), (same[1], same[1])))[1]["text"]
