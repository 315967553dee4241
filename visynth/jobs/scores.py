"""Scores of rendered images, written beside the manifest: does it look like its class, and is it a copy?

WithSynthetic filters by them (``keep=``). Both are measured against the real training images alone, so that choosing by
them leaks nothing of the test.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.codec import decode
from visynth.core.errors import DataError, IntegrityError, OutputError
from visynth.core.files import cache_folder, canonical_json, write_text
from visynth.core.manifest import SCORES, Renders, need_folders, read_renders, read_scores
from visynth.core.processes import one_thread
from visynth.core.progress import Progress, no_progress
from visynth.data.imageset import ImageSet, Lazy
from visynth.jobs.held_out import assign_splits
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.metrics.memorization import SAME, NearDuplicates, near_duplicates

FOLDS = 5
LEAST = 3  # real images of a class below which nothing can be said of it


@dataclass(frozen=True)
class Scores:
    """Result of :func:`score_renders`.

    Attributes:
        images: ``{file name: {"agreement", "copy", "distance", "nearest"}}``.
        real: ``{class: mean agreement of its real images, judged without their group}``: what the synthetic ones are to be
            measured by.
    """

    images: dict[str, dict[str, Any]]
    real: dict[str, float]


def score_renders(
    images: ImageSet,
    renders: str | Path | Renders,
    *,
    seed: int = 0,
    cache: bool = True,
    progress: Progress = no_progress,
) -> Scores:
    """Score every rendered image and write ``scores.jsonl`` into its folder.

    ``agreement`` is the probability of the image's own class: the mean over five logistic regressions on frozen
    features, each fitted without a fifth of the groups; an image is judged by those that did not see its parents, where
    there are such. ``copy`` says that it lies closer to a training image of its class than 95 % of these lie to each
    other.

    Args:
        images: the real ones; those that the generator was fitted on are compared with, no others.
        renders: the rendered set.
        seed: of the folds.
        cache: keep features of real images on disk.
        progress: receives progress lines.

    Raises:
        DataError: fewer than two classes with three real training images each.
    """
    renders = need_folders(renders if isinstance(renders, Renders) else read_renders(renders))
    try:
        read_scores(renders.folder)
    except IntegrityError as error:
        raise OutputError(
            f"{renders.folder / SCORES} holds something else than scores ({error}): move it away."
        ) from error
    train = assign_splits(images, renders.members)[0].select(
        lambda item: item.split == "train" and len(item.labels) == 1
    )
    counts = train.counts()
    items = [item for item in train.items if counts[item.labels[0]] >= LEAST]
    if len({item.labels[0] for item in items}) < 2:
        raise DataError(
            f"scores need two classes with {LEAST} real training images each, but of those that the generator was "
            "fitted on there "
            f"are {counts}: give the data that it was fitted on."
        )
    bank = FeatureBank(extractor(), cache=cache_folder() / "features" if cache else None)
    progress(f"features of {len(items)} real and {len(renders.records)} synthetic images")
    rows = bank.add(Lazy(train.image, items))
    made_rows = bank.add(Lazy(lambda record: decode(renders.folder / record.file_name), renders.records))
    by_max, by_mean = (
        bank.get(bank.resolutions[0], pool) for pool in ("max", "mean")
    )  # small defects show in the maximum

    judges = Judges.fit(by_max[rows], [item.labels[0] for item in items], [item.group for item in items], seed)
    origin = {item.name: item for item in items}
    scores: dict[str, dict[str, Any]] = {}
    for row, record in zip(made_rows, renders.records, strict=True):
        parents = [
            origin[name].group for name in record.parents if name in origin and record.label in origin[name].labels
        ]
        agreement = judges.probability(by_max[row], record.label, parents)
        scores[record.file_name] = {"agreement": round(agreement, 4), "copy": False}
    for name in {item.labels[0] for item in items}:
        own = [place for place, record in enumerate(renders.records) if record.label == name]
        real = [place for place, item in enumerate(items) if item.labels[0] == name]
        if own:
            memorised = near_duplicates(by_mean[rows[real]], by_mean[made_rows[own]])
            for order, place in enumerate(own):
                near = items[real[int(memorised.nearest[order])]].name
                scores[renders.records[place].file_name] |= _nearness(memorised, order, near)
    lines = (canonical_json({"file_name": name, **scores[name]}) + "\n" for name in sorted(scores))
    write_text(renders.folder / SCORES, "".join(lines))
    reference: dict[str, list[float]] = {}
    for row, item in zip(rows, items, strict=True):
        probability = judges.probability(by_max[row], item.labels[0], [item.group])
        reference.setdefault(item.labels[0], []).append(probability)
    return Scores(scores, {name: float(np.mean(values)) for name, values in reference.items()})


def _nearness(memorised: NearDuplicates, order: int, near: str) -> dict[str, Any]:
    distance = float(memorised.distances[order])
    return {"copy": bool(distance < max(memorised.threshold, SAME)), "distance": round(distance, 5), "nearest": near}


@dataclass(frozen=True)
class Judges:
    """Logistic regressions on frozen features, each fitted without a part of the groups.

    Attributes:
        models: and
        unseen: the groups that each was fitted without.
    """

    models: Sequence[Any]
    unseen: Sequence[frozenset[str]]

    @classmethod
    def fit(cls, features: NDArray[Any], labels: Sequence[str], groups: Sequence[str], seed: int) -> Judges:
        """One model a fifth of the groups; where a class lies in one fifth alone, that model is left out."""
        names = sorted(set(groups))
        order = seeding.rng(seeding.derive("scores", seed), "folds").permutation(len(names))
        parts = [frozenset(names[place] for place in order[fold::FOLDS]) for fold in range(FOLDS)]
        classes, models, unseen = set(labels), [], []
        with one_thread():
            for part in [p for p in parts if p]:
                used = np.array([group not in part for group in groups])
                if {label for label, use in zip(labels, used, strict=True) if use} == classes:
                    models.append(_model(features[used], list(np.array(labels)[used])))
                    unseen.append(part)
            if not models:  # one group a class: nothing can be left out
                models, unseen = [_model(features, list(labels))], [frozenset()]
        return cls(models, unseen)

    def probability(self, features: NDArray[Any], label: str, parents: Collection[str]) -> float:
        """Mean probability of a class, by the models that saw none of the parents, or by all where each saw one."""
        fair = [m for m, part in zip(self.models, self.unseen, strict=True) if parents and part >= set(parents)]
        values = []
        for model in fair or self.models:
            known = list(model[-1].classes_)
            probabilities = model.predict_proba(features[None])[0]
            values.append(float(probabilities[known.index(label)]) if label in known else 0.0)
        return float(np.mean(values))


def _model(features: NDArray[Any], labels: list[str]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=300, tol=1e-3))
    return model.fit(features.astype(np.float64), labels)
