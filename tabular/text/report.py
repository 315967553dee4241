"""The triad for texts as sections of the one report: fidelity, diversity by number, privacy; what was refused, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.report import Report, bullets, table, text
from visynth.tabular.text import metrics
from visynth.tabular.text.checks import main_text
from visynth.tabular.text.embedding import Latent
from visynth.tabular.text.generator import Example, TextGenerator
from visynth.tabular.text.plan import Record, TextPlan
from visynth.tabular.text.writing import Written

LEAD = (
    "What was written, what was refused and why, and how it stands beside real texts. Figures of held-out real texts beside the "
    "same number of other real texts are the noise floor."
)
SAMPLES = 24
CELLS = 40  # of a plan that are listed
FEWEST = 20  # texts a side for distances


def text_sections(
    report: Report,
    generator: TextGenerator,
    written: Written,
    records: Sequence[Record],
    held: Sequence[Example],
    said: Callable[[str], str] = str,
    seed: int = 0,
) -> None:
    """Add what can be said of a job's texts.

    Args:
        report: that gets the sections.
        generator: that wrote.
        written: texts and failures.
        records: that were asked for.
        held: real texts that the generator was not shown.
        said: a real text's words, as those of a reply's fields are.
        seed: of what is drawn.
    """
    texts = [main_text(one.fields) for one in written.texts]
    shown = [said(example.text) for example in generator.examples]
    other = [said(example.text) for example in held]
    report.section("What was asked for, and what came", *_written_blocks(generator, written, records))
    embed = Latent([*shown, *other] or texts)
    vectors = embed(texts)
    if said is str and len(held) >= FEWEST and len(texts) >= FEWEST:
        counts = Counter(str(one.record.attributes.get(generator.spec.label or "", "")) for one in written.texts)
        known, far = (alike(side, counts, seed) for side in (generator.examples, held))
        if len(far) >= FEWEST:
            report.section("Fidelity: beside held-out real texts", fidelity_block(texts, known, far, embed, seed))
    report.section("Diversity: how much they repeat one another", _diversity_block(texts, vectors, shown, embed, seed))
    if shown:
        report.section("Privacy: what they give away", *_privacy_blocks(texts, vectors, shown, other, embed, seed))
    report.section("Samples", _samples_block(written, seed))


def alike(examples: Sequence[Example], counts: Mapping[str, int], seed: int) -> list[str]:
    """Real texts of classes in the shares that were written: as many as there are.

    Example:
        >>> few = [Example("a", "x"), Example("b", "x"), Example("c", "y"), Example("d", "z")]
        >>> sorted(alike(few, {"x": 10, "y": 10}, 0))[-1], len(alike(few, {"x": 10, "y": 10}, 0))
        ('c', 2)
    """
    by_class: dict[str, list[str]] = {name: [] for name in counts}
    for example in examples:
        own = by_class.get(example.label if "" not in counts else "")
        if own is not None:
            own.append(example.text)
    part = min(len(by_class[name]) / count for name, count in counts.items())
    chosen = []
    for name, count in counts.items():
        own = by_class[name]
        order = seeding.rng(seed, f"text/alike/{name}").permutation(len(own))[: int(part * count + 1e-9)]
        chosen += [own[place] for place in order]
    return chosen


def fidelity_block(
    texts: Sequence[str], shown: Sequence[str], held: Sequence[str], embed: Latent, seed: int
) -> dict[str, Any]:
    """Distances of the texts, and of as many real texts, from held-out real ones."""
    sides = {"synthetic": list(texts)}
    if len(shown) >= FEWEST:
        sides["other real texts (noise floor)"] = list(shown)
    few = min(map(len, sides.values()))
    for name, side in sides.items():
        sides[name] = [side[place] for place in seeding.rng(seed, f"text/few/{name}").permutation(len(side))[:few]]
    far = embed(held)
    rows = []
    for name, side in sides.items():
        own = embed(side)
        figures = [
            metrics.length_ks(held, side), metrics.gram_distance(held, side, 1), metrics.gram_distance(held, side, 2),
            metrics.embedding_mmd(far, own), metrics.mauve_like(far, own, seed),
        ]  # fmt: skip
        rows.append([name, len(side), *(round(value, 4) for value in figures)])
    note = (
        "Length: Kolmogorov-Smirnov distance of numbers of words. Words and pairs: Jensen-Shannon distance, base 2. MMD and "
        "MAUVE-like: of latent semantic vectors of words and runs of characters; MAUVE-like is 1 for equal clusters."
    )
    return table(["texts", "number", "length KS", "words JSD", "pairs JSD", "MMD", "MAUVE-like"], rows, note)


def _written_blocks(generator: TextGenerator, written: Written, records: Sequence[Record]) -> list[dict[str, Any]]:
    missing = Counter(failure.check for failure in written.failures)
    said = f"{len(written.texts)} of {len(records)} texts. {written.replies} replies were needed"
    blocks = [text(f"{said}, {written.tokens[0]} tokens asked and {written.tokens[1]} answered.")]
    if written.refused:
        rows = [[check, count, missing.get(check, 0)] for check, count in written.refused.most_common()]
        blocks.append(table(["refused for", "replies", "records without a text in the end"], rows))
    if generator.spec.attributes:
        plan = TextPlan(generator.spec.attributes)
        covered = plan.coverage(one.record.attributes for one in written.texts)
        blocks.append(text(f"{covered.covered} of {covered.cells} cells of the plan have texts."))
        if covered.names and covered.cells <= CELLS:
            asked = plan.coverage(record.attributes for record in records).counts
            rows = [
                [*map(str, cell), count, covered.counts.get(cell, 0)] for cell, count in sorted(asked.items(), key=str)
            ]
            blocks.append(table([*covered.names, "asked", "texts"], rows))
    return blocks


def _diversity_block(
    texts: Sequence[str], vectors: Any, shown: Sequence[str], embed: Latent, seed: int
) -> dict[str, Any]:
    rows = [["synthetic", *own.values()] for own in metrics.diversity_by_number(texts, vectors, seed)]
    few = min(len(texts), len(shown))
    if few >= FEWEST:
        order = seeding.rng(seed, "text/real").permutation(len(shown))[:few]
        real = [shown[place] for place in order]
        own = metrics.diversity_by_number(real, embed(real), seed)
        rows += [["real", *line.values()] for line in own]
    columns = ["", "texts", "distinct-1", "distinct-2", "distinct-3", "self-BLEU-4", "compression ratio", "Vendi"]
    note = "By number of texts: diversity falls as more are written. Compare real and synthetic at equal numbers."
    return table(columns, [[c if isinstance(c, (str, int)) else round(c, 3) for c in row] for row in rows], note)


def _privacy_blocks(
    texts: Sequence[str], vectors: Any, shown: Sequence[str], other: Sequence[str], embed: Latent, seed: int
) -> list[dict[str, Any]]:
    rows: list[list[Any]] = [
        ["all words equal to a real text's", f"{metrics.equal_share(texts, shown):.2%}", "0"],
        ["eight words in a row from a real text", f"{metrics.copied_share(texts, shown):.2%}", "0"],
    ]
    if len(other) >= FEWEST:
        rows[0][2] = f"{metrics.equal_share(texts, other):.2%} (held-out)"
        rows[1][2] = f"{metrics.copied_share(texts, other):.2%} (held-out)"
        share, few = metrics.closer_to_shown(vectors, embed(shown), embed(other), seed)
        rows.append([f"closer to a text that was shown than to a held-out one ({few} a side)", f"{share:.3f}", "0.5"])
    note = "Distances are smoke tests, no proof of privacy."
    return [table(["", "found", "by chance"], rows, note)]


def _samples_block(written: Written, seed: int) -> dict[str, Any]:
    order = np.sort(seeding.rng(seed, "text/samples").permutation(len(written.texts))[:SAMPLES])
    lines = []
    for place in order:
        one = written.texts[place]
        asked = ", ".join(f"{name} {_words(value)}" for name, value in one.record.attributes.items())
        lines.append(f"({asked}) {main_text(one.fields)}"[:600])
    return bullets(lines)


def _words(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
