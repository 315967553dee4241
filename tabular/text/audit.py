"""``visynth audit`` of a fine-tuned language model: what its weights give away of the texts that it learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, bullets, environment, table
from visynth.privacy.audit import Attacked, Findings, attack_blocks, bound_by_scores, check_sides, claim_blocks
from visynth.privacy.membership import closer_share
from visynth.tabular.text.backends import Decoding, Reply, Request
from visynth.tabular.text.classify import PROMPT
from visynth.tabular.text.generator import Example, TextGenerator, text_hash
from visynth.tabular.text.local import TransformersLocal
from visynth.tabular.text.lora import Lesson, TextLoRA
from visynth.tabular.text.losses import losses_of
from visynth.tabular.text.lowrank import switched_off
from visynth.tabular.text.memory import BEFORE, Losses, attack_scores, memberships
from visynth.tabular.text.models import LanguageModel, load_model
from visynth.tabular.text.spec import TextSpec
from visynth.tabular.text.talks import Talk, encoded, talks_of
from visynth.tabular.text.tuning import split_texts
from visynth.tabular.training import default_trainer

MOST = 1000  # texts a side
HEART, HEART_STEPS = 32, 300  # texts that the positive control learns by heart, and its steps at most
KNOWN = 0.1  # share of its first loss at which it knows them
BATCH = 8
SHOWN = 8  # pairs of the report


def audit_texts(
    adapter: TextLoRA,
    model: str | Path,
    texts: Sequence[Example],
    holdout: Sequence[Example] = (),
    *,
    label: str | None = None,
    drawn: int = 100,
    show: bool = True,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Report:
    """Attack low-rank weights with texts that they learned and texts that they did not.

    Positive control: the same attacks on weights that learned a few of the other texts by heart. Negative control: the loss of the
    language model as it was before, which never saw any of them.

    Args:
        adapter: the low-rank weights.
        model: folder or GGUF file of the language model that was fine-tuned.
        texts: among which are those that were learned; which ones is known by fingerprint.
        holdout: further texts that were not learned.
        label: column of the classes, by which a prompt of one's own knows them; None where there are none.
        drawn: synthetic texts to compare with real ones; 0: none.
        show: learned texts beside their nearest synthetic ones, which is not for publication.
        device: where the language model runs.
        seed: of everything.
        progress: receives lines.

    Raises:
        DataError: no text is one that was learned; too few on a side.
        UsageError: there is no holdout; the prompt uses what is not given.
        IntegrityError: the weights are of another language model.
    """
    own, others, spare, notes = _sides(adapter, texts, holdout, seed)
    prompt = adapter.lesson.prompt
    # The built-in prompt knows the class as "label", whatever the column is called.
    spec = TextSpec(prompt, {}, "label" if label and prompt == PROMPT else label, shown=adapter.lesson.shown)
    generator = TextGenerator(spec, own)
    count = min(len(spare) // 2, HEART)
    both = (own, others, spare[:count], spare[count : 2 * count])
    *sides, known, unknown = (talks_of(generator, seed, adapter.lesson.meanings, side) for side in both)
    few = known, unknown
    language = load_model(model, device)
    adapter.check_base(language)
    progress(f"learning {len(few[0])} texts by heart, for the positive control")
    before = [_losses(language, side) for side in sides]
    heart = _heart(language, few[0], adapter, seed)
    heart_after = [_losses(language, side) for side in few]
    with switched_off(heart.language.model):
        heart_before = [_losses(language, side) for side in few]
    progress("attacking")
    language = adapter.put_into(load_model(model, device))
    after = [_losses(language, side) for side in sides]
    pairs = (before[0], after[0]), (before[1], after[1])
    found = memberships(*pairs, seed)
    sure = memberships((heart_before[0], heart_after[0]), (heart_before[1], heart_after[1]), seed)
    blind = next(one for one in found if one.attack == BEFORE)
    attacks = [Attacked(a, b, blind, white_box=True) for a, b in zip(found, sure, strict=True) if a.attack != BEFORE]
    scores = [attack_scores(side) for side in pairs]
    level, delta = 0.05 / len(attacks), float(adapter.spent.get("delta", 0.0))
    bounds = {
        one.found.attack: bound_by_scores(scores[0][one.found.attack], scores[1][one.found.attack], delta, level)
        for one in attacks
    }
    closer: tuple[float, float, float] | None = None
    blocks: list[dict[str, Any]] = []
    if adapter.lesson.shown:
        notes.append(
            "synthetic texts beside learned ones: prompts show learned texts, so that replies are near to them anyway"
        )
    elif drawn:
        progress(f"writing {drawn} texts")
        replies = _written(language, sides[1], drawn, seed)
        closer, blocks = _compared(replies, own, others, show)
    else:
        notes.append("synthetic texts beside learned ones (--images 100)")
    findings = Findings(attacks, bounds, adapter.spent, closer)
    return _report(adapter, findings, blocks, notes, len(own))


def _sides(
    adapter: TextLoRA, texts: Sequence[Example], holdout: Sequence[Example], seed: int
) -> tuple[list[Example], list[Example], list[Example], list[str]]:
    """Learned texts, as many others of the same classes, all others of these classes, each text once, and what should be known
    of them."""
    notes = []
    marks = {member.sha256 for member in adapter.members}
    if not marks:  # of a private fine-tuning
        learned, others = split_texts(texts, *adapter.held_out, alone=True) if adapter.held_out else (list(texts), [])
        marks = {text_hash(example.text) for example in learned}
        texts, holdout = learned, [*others, *holdout]
        holdout = [example for example in holdout if text_hash(example.text) not in marks]
        notes.append("which texts were learned was taken from the files: the weights have no fingerprints")
    once = {text_hash(example.text): example for example in reversed([*texts, *holdout])}
    own = [example for mark, example in once.items() if mark in marks]
    others = [example for mark, example in once.items() if mark not in marks]
    if not own:
        raise DataError(
            f"none of the {len(texts)} texts is one of the {len(marks)} that were learned: altered, or other data."
        )
    if len(own) < len(marks):
        notes.append(
            f"{len(marks) - len(own)} of {len(marks)} learned texts were not found, or are altered: not attacked"
        )
    if not others:
        check_sides(len(own), 0)
    classes = sorted({e.label for e in own} & {e.label for e in others})
    if not classes:
        raise DataError(
            f"the learned texts are of {choices({e.label for e in own})}, the others of {choices({e.label for e in others})}: an "
            "audit needs texts of the same classes."
        )
    rng = seeding.rng(seed, "audit/texts")
    picked: tuple[list[Example], list[Example]] = ([], [])
    pools = [[[e for e in side if e.label == name] for name in classes] for side in (own, others)]
    sizes = np.array([min(len(a), len(b)) for a, b in zip(*pools, strict=True)])
    sizes = np.floor(sizes * min(1.0, MOST / max(sizes.sum(), 1))).astype(int)
    for side, pool in zip(picked, pools, strict=True):
        for examples, size in zip(pool, sizes, strict=True):
            side.extend(examples[int(row)] for row in rng.permutation(len(examples))[:size])
        side[:] = [side[int(row)] for row in rng.permutation(len(side))]
    check_sides(len(picked[0]), len(picked[1]))
    spare = [e for e in others if e.label in classes]
    return *picked, [spare[int(row)] for row in rng.permutation(len(spare))], notes


def _losses(model: LanguageModel, talks: Sequence[Talk]) -> Losses:
    arrays, long = encoded(model, talks)
    if long:
        raise DataError(f"{len(long)} of {len(talks)} texts are longer than the language model reads: leave them out.")
    return losses_of(model, arrays, BATCH)


def _heart(language: LanguageModel, talks: Sequence[Talk], adapter: TextLoRA, seed: int) -> TextLoRA:
    """Low-rank weights, attached to the model, that learned a few texts by heart."""
    rate = max(1e-3, float(adapter.args.lr))
    heart = TextLoRA(rank=16, alpha=128.0, steps=HEART_STEPS, batch_size=BATCH, lr=rate, ema=0.0, seed=seed)
    trainer = default_trainer(callbacks=[_Known(-(-len(talks) // BATCH))])
    return heart.fit(language, list(talks), lesson=Lesson(adapter.lesson.prompt), trainer=trainer)


class _Known(pytorch_lightning.Callback):
    """Ends a training whose loss, over a pass, is a small part of that of the first step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.losses = steps, list[float]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        if float(np.mean(self.losses[-self.steps :])) < KNOWN * self.losses[0]:
            trainer.should_stop = True


def _written(language: LanguageModel, talks: Sequence[Talk], count: int, seed: int) -> list[str]:
    """Synthetic texts, asked for as the talks ask."""
    chosen = [talks[number % len(talks)] for number in range(count)]
    longest = max(len(language.reply_ids(talk.reply)) for talk in chosen)
    room = max(language.context - max(len(language.ids(talk.messages)) for talk in chosen), 1)
    requests = [Request(t.messages, seeding.derive("audit/text", seed, n)) for n, t in enumerate(chosen)]
    backend = TransformersLocal(language, Decoding(max_tokens=min(2 * longest, 200, room)), batch=BATCH)
    return [answer.text for answer in backend.complete(requests) if isinstance(answer, Reply) and answer.text.strip()]


def _compared(
    replies: Sequence[str], own: Sequence[Example], others: Sequence[Example], show: bool
) -> tuple[tuple[float, float, float] | None, list[dict[str, Any]]]:
    """Whether synthetic texts are nearer to learned ones than to as many others, by runs of characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not replies:
        return None, []
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectors.fit([example.text for example in (*own, *others)])
    written = vectors.transform(replies)
    distances: list[NDArray[np.float64]] = [
        np.asarray(1 - (written @ vectors.transform([e.text for e in side]).T).toarray()) for side in (own, others)
    ]
    closer = closer_share(*((one.min(axis=1), one.argmin(axis=1)) for one in distances))
    share, low, high = closer
    learned = {text_hash(example.text) for example in own}
    repeated = sum(text_hash(reply) in learned for reply in replies)
    rows: list[list[Any]] = [
        [f"{share:.3f}", f"[{max(low, 0):.3f}, {min(high, 1):.3f}]", f"{repeated} of {len(replies)}"]
    ]
    heads = [
        "synthetic texts closer to a learned text than to any of as many others",
        "95 %",
        "learned texts, word for word",
    ]
    blocks = [table(heads, rows, "By runs of three to five characters; 0.5 is chance.")]
    if show:
        order = np.argsort(distances[0].min(axis=1), kind="stable")[:SHOWN]
        pairs: list[list[Any]] = [[own[int(distances[0][row].argmin())].text, replies[int(row)]] for row in order]
        note = "Real texts are shown: for reviewers, not for publication."
        blocks.append(table(["learned text", "nearest synthetic text"], pairs, note))
    return closer, blocks


def _report(
    adapter: TextLoRA, findings: Findings, blocks: list[dict[str, Any]], notes: Sequence[str], count: int
) -> Report:
    report = Report("privacy audit", "low-rank weights of a language model", lead=findings.lead)
    report.section("Membership inference", *attack_blocks(findings.attacks))
    if blocks:
        report.section("Extraction", *blocks)
    report.section("Lower bounds on epsilon", *claim_blocks(findings))
    losses = "losses of single texts are not written down: they would be a leak themselves"
    report.section("Not tested", bullets([*notes, "shadow models", "prompts that are made to draw texts out", losses]))
    report.conditions |= {
        "generator": adapter.digest, "texts a side": count, "audit": findings.to_json(), **environment()
    }  # fmt: skip
    return report


def check_model(model: str | None) -> str:
    """The language model's path.

    Raises:
        UsageError: none is given.
    """
    if model is None:
        raise UsageError("an audit of low-rank weights needs --model: the language model that was fine-tuned.")
    return model
