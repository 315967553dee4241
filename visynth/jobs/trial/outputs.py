"""Outputs of a trial beside its report: generators and renders, and galleries of them for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.folders import put_files
from visynth.core.pictures import outline, to_display
from visynth.core.progress import Progress
from visynth.core.recipe import FILE as RECIPE
from visynth.core.recipe import Recipe
from visynth.core.report import Report, gallery, lines, table, text
from visynth.generators.base import Generator
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.recipes import RECIPE_TITLE, recipe_of, recipe_table
from visynth.jobs.trial.synthesis import Synthesizer
from visynth.jobs.trial.training import LOSSES, Undertrained
from visynth.render.run import Here, make_plan, render_set
from visynth.verdict.comparison import Results

SHOWN = 3  # images of each class
EXPLAINED = (
    "Each row: the synthetic image; where it has one its exact mask, the real image that the defect (or its shape) was "
    "taken "
    "from and the defect-free image that it was set into; and the two real images nearest to it in feature space. Look "
    "for seams, for defects where none can be, and for near-duplicates."
)


def write_outputs(
    report: Report,
    data: TrialData,
    synthesizers: Mapping[str, Synthesizer],
    undertrained: Sequence[Undertrained],
    out: Path,
    count: int,
    seed: int,
    progress: Progress,
    results: Mapping[str, Results],
) -> None:
    """A generator for every synthesizer that helps a class, or the composition to look at; rendered is what helps.

    The first goes to ``generator/`` and ``renders/``; should two synthesizers help, the second goes to folders with its
    name. Beside each there is a recipe: how much of it each class is to have, and what else was best.
    """
    helped: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        if verdict.answer == "helps" and not verdict.aside:  # what nobody named is exploratory, and not rendered
            helped.setdefault(verdict.numbers["synthesizer"], []).append(verdict.label)
    for none in undertrained:
        title = f"Undertrained: {none.name} after {none.seen} images, with the nearest real images"
        report.section(title, *galleries(none.generator, data, seed))
    names = list(helped) or [name for name in synthesizers if name == "composition"]
    if not names:
        report.section("Not written", text("No class was shown to help, so no generator was made."))
        recipe = recipe_of(report.verdicts, results, [], None, None, report.conditions)
        put_files(out, {RECIPE: recipe.to_yaml().encode()})
        report.sections.insert(0, _recipe_section(recipe, RECIPE))
    for number, name in enumerate(names):
        synthesizer, ending = synthesizers[name], f"-{name}" if number else ""
        generator = synthesizer.fit_all(data)
        generator.save(out / f"generator{ending}")
        report.conditions.setdefault("generator", generator.digest)  # the first: that of renders/
        classes = [c for c in helped.get(name, data.rare) if c in generator.classes]
        if classes:
            renders = out / f"renders{ending}"
            _render(report, data, synthesizer, generator, renders, classes, bool(helped), count, seed, progress)
        control = None
        if data.good in generator.classes and synthesizer.makes_controls:
            control = str(data.good), int(data.positive[str(data.good)].sum())
        recipe = recipe_of(
            report.verdicts,
            results,
            helped.get(name, []),
            generator.digest,
            f"renders{ending}",
            report.conditions,
            control,
        )
        file = f"recipe{ending}.yaml"
        put_files(out, {file: recipe.to_yaml(file).encode()})
        report.sections.insert(number, _recipe_section(recipe, file))
        title = f"Synthetic images by {name}, with parents and the nearest real images"
        report.section(title, *galleries(generator, data, seed))
        report.section(f"The generator: {name}", *_card_blocks(generator))


def _recipe_section(recipe: Recipe, file: str) -> dict[str, Any]:
    return {"title": RECIPE_TITLE, "blocks": [recipe_table(recipe, file)]}


def _card_blocks(generator: Generator) -> list[dict[str, Any]]:
    """The generator's card, and how its loss fell where it was trained."""
    card = {name: value for name, value in generator.card.items() if name != LOSSES}
    facts = {
        "network": generator.spec.network,
        "classes": ", ".join(generator.classes),
        "digest": generator.digest[:16],
        **card,
    }
    blocks = [table(["", ""], [[name, value] for name, value in facts.items()])]
    losses = generator.card.get(LOSSES)
    if losses:
        blocks.append(lines("Loss over the training", [tuple(point) for point in losses], {}, "images seen", "loss"))
    return blocks


def _render(
    report: Report,
    data: TrialData,
    synthesizer: Synthesizer,
    generator: Generator,
    out: Path,
    classes: Sequence[str],
    help_: bool,
    count: int,
    seed: int,
    progress: Progress,
) -> None:
    controls = [data.good] if data.good in generator.classes and synthesizer.makes_controls else []
    progress(f"rendering {count} images of each of {', '.join(classes)}")
    both = [*classes, *(str(name) for name in controls)]
    plan = make_plan(generator, per_class=count, classes=both, seed=seed, purpose="training" if help_ else "looking")
    render_set(generator, plan, out, engine=Here(encoders=0))
    use = (
        "It holds only classes that help, and defect-free controls: it can be mixed into a training as it is."
        if help_
        else "No class was shown to help, so it is for looking at, and WithSynthetic refuses it."
    )
    words = f"{out.name}/ has {count} images each of {', '.join(both)}, by {synthesizer.name}. {use}"
    report.section("What was written", text(words))


def galleries(generator: Generator, data: TrialData, seed: int) -> list[dict[str, Any]]:
    """One gallery per class: rows of synthetic image, its mask, defect parent, background, nearest and second nearest
    real."""
    blocks: list[dict[str, Any]] = [text(EXPLAINED)]
    resolution = data.bank.resolutions[0]
    for label, name in enumerate(generator.classes):
        samples = generator.sample([seeding.derive("gallery", seed, name, k) for k in range(SHOWN)], [label] * SHOWN)
        images = [samples.crop(k).permute(1, 2, 0).numpy() for k in range(SHOWN)]
        rows = data.bank.add(images, cache=False)
        features = data.bank.get(resolution, "max")
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        captions: list[str] = []
        shown: list[Any] = []
        for k, (image, row) in enumerate(zip(images, rows, strict=True)):
            likeness = unit[: len(data.items)] @ unit[row]
            near = [int(i) for i in np.argsort(-likeness)[:2]]
            # The defect's parent first, then the background.
            parents = list(samples.parents[k])[::-1] if samples.parents else []
            mask = None if samples.masks is None else samples.masks[k, : image.shape[0], : image.shape[1]].numpy()
            shown += [to_display(image)] + ([] if mask is None else [outline(to_display(image), mask)])
            shown += [_real(data, parent) for parent in parents] + [to_display(data.sources[i].image) for i in near]
            captions += [
                f"{name}, synthetic",
                *([] if mask is None else ["its mask"]),
                *(f"parent: {p}" for p in parents),
            ]
            captions += [f"nearest real: {data.sources[i].name} (cosine {likeness[i]:.3f})" for i in near]
        blocks.append(gallery(captions, shown, columns=len(shown) // SHOWN))
    return blocks


def _real(data: TrialData, name: str) -> Any:
    return to_display(next(source.image for source in data.sources if source.name == name))
