"""The triad for a table: fidelity, diversity, utility and privacy of synthetic rows, as sections of the one report.

Two generators that only count stand beside every score: what does not beat both has learned nothing that counting does not
give. Numbers under "held-out rows" are the noise floor: real rows against other real rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, table, text
from visynth.tabular import fidelity as fidelities
from visynth.tabular.attacks import Privacy, attack
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category, Floats
from visynth.tabular.counting import GaussianCopula, IndependentMarginals
from visynth.tabular.diversity import diversity
from visynth.tabular.fitted import row_hashes
from visynth.tabular.learners import scaled
from visynth.tabular.schema import Schema, Table, as_frame, rows_of, stacked, taken
from visynth.tabular.utility import train_on_synthetic

BASELINES = {"copula": GaussianCopula, "marginals": IndependentMarginals}
HELD_OUT = "held-out rows (noise floor)"
MOST_CHARTS = 24
MOST_BARS = 20
MOST_POINTS = 400
LEAD = (
    "One answer per class, measured on real rows that no fit saw. Only a shown benefit is a yes. Below: how near the "
    "synthetic rows come to real ones, what they reach, what they are worth, and what they give away."
)


@dataclass(frozen=True)
class Triad:
    """Everything that was measured on one generator.

    Attributes:
        fidelity: by source (the generator, each baseline, held-out rows), see :func:`visynth.tabular.fidelity.fidelity`.
        diversity: by source.
        utility: by source, area under the ROC curve on held-out rows with its deviation over seeds; empty without target.
        privacy: attacks on the generator.
        name: of the generator.
    """

    fidelity: Mapping[str, Mapping[str, Any]]
    diversity: Mapping[str, Mapping[str, Any]]
    utility: Mapping[str, tuple[float, float]]
    privacy: Privacy
    name: str

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "fidelity": {name: fidelities.summary(measured) for name, measured in self.fidelity.items()},
            "diversity": {n: {k: v for k, v in d.items() if k != "columns"} for n, d in self.diversity.items()},
            "utility": {name: {"auc": mean, "deviation": spread} for name, (mean, spread) in self.utility.items()},
            "privacy": self.privacy.to_json(),
        }


def triad(
    generator: Synthesizer,
    train: Any,
    holdout: Any,
    *,
    seed: int = 0,
    rows: int | None = None,
    progress: Progress = no_progress,
) -> Triad:
    """Measure a generator.

    Args:
        generator: fitted to ``train``.
        train: the frame that it was fitted to.
        holdout: rows of the same table that it did not see; attacks take equally many of both, by chance.
        seed: of samples, baselines and measures.
        rows: synthetic rows to draw, by default as many as ``train`` has.
        progress: receives lines.

    Raises:
        DataError: held-out rows were fitted.
    """
    schema, target = generator.schema, generator.fitted.target
    real, held = schema.table(train), schema.table(holdout)
    check_held_out(generator, schema, held)
    count = rows_of(real) if rows is None else rows
    sources: dict[str, Table] = {generator.network: _drawn(generator, count, seed)}
    for name, kind in BASELINES.items():
        if name != generator.network:
            progress(f"  baseline {name}")
            options: dict[str, Any] = {"schema": schema, "target": target, "members": "none"}
            sources[name] = _drawn(kind().fit(train, **options), count, seed)
    fidelity = {}
    for name, source in {**sources, HELD_OUT: real}.items():
        progress(f"  fidelity of {name}")
        fidelity[name] = fidelities.fidelity(held, source, schema, seed)
    progress("  diversity, utility")
    spread = {name: diversity(held, source, schema, seed, fitted=real) for name, source in sources.items()}
    spread[HELD_OUT] = diversity(held, real, schema, seed)
    useful = {} if target is None else train_on_synthetic({"real rows": real, **sources}, held, schema, target)
    progress("  privacy")
    few = min(rows_of(real), rows_of(held))
    parts = [seeding.rng(seed, f"triad/{n}").permutation(rows_of(side))[:few] for n, side in enumerate((real, held))]
    losses = _losses(generator, train, holdout, parts, seed)
    attacked = taken(real, parts[0]), taken(held, parts[1])
    privacy = attack(*attacked, sources[generator.network], schema, seed=seed, losses=losses)
    return Triad(fidelity, spread, useful, privacy, generator.network)


def _drawn(generator: Synthesizer, count: int, seed: int) -> Table:
    return generator.rows(np.arange(count), seeding.derive("triad", seed))[0]


def _losses(
    generator: Synthesizer, train: Any, holdout: Any, parts: Sequence[Any], seed: int
) -> tuple[Floats, Floats] | None:
    sides = zip((train, holdout), parts, strict=True)
    own = [generator.losses(as_frame(side).iloc[rows], seed=seed) for side, rows in sides]
    return None if own[0] is None or own[1] is None else (own[0], own[1])


def check_held_out(generator: Synthesizer, schema: Schema, held: Table) -> None:
    """Refuse held-out rows that were fitted, beyond those that the data themselves repeat.

    Raises:
        DataError: many more of them are among the generator's members than the table repeats rows anyway.
    """
    members = {member.sha256 for member in generator.fitted.members if member.split == "train"}
    if not members:
        return
    marks = row_hashes(schema, held)
    known = sum(mark in members for mark in marks)
    twins = sum(count for count in Counter(marks).values() if count > 1)
    allowed = 2 * twins * max(1.0, generator.fitted.rows / len(marks)) + 0.01 * len(marks) + 2
    if known > min(allowed, 0.5 * len(marks)):
        raise DataError(
            f"{known} of {len(marks)} rows to test on are rows that the generator was fitted to: give rows that it did not "
            "see, or fit it to a part of the table."
        )


# -- the report ------------------------------------------------------------------------------------------------------


def add_sections(
    report: Report, measured: Triad, generator: Synthesizer, train: Any, holdout: Any, seed: int = 0
) -> None:
    """The triad as sections of a report."""
    schema = generator.schema
    real = schema.table(holdout)
    fake = _drawn(generator, min(rows_of(real), 5000), seed)
    report.section(
        "Fidelity: how near synthetic rows come to real ones", *_fidelity_blocks(measured, schema, real, fake, seed)
    )
    report.section("Diversity: what they reach", _diversity_block(measured))
    if measured.utility:
        report.section("Utility: trained on synthetic, tested on real", _utility_block(measured))
    report.section("Privacy: what they give away", *_privacy_blocks(measured.privacy))
    report.section("The table", *_table_blocks(generator))


def _fidelity_blocks(measured: Triad, schema: Schema, real: Table, fake: Table, seed: int) -> list[dict[str, Any]]:
    columns = [
        "rows",
        "shape error %",
        "trend error %",
        "association error",
        "Jensen-Shannon",
        "two-sample AUC, trees",
        "logistic",
    ]
    rows = []
    for name, own in measured.fidelity.items():
        parts = [own["shape_error"], own["trend_error"], own["association_error"], own["jensen_shannon"]]
        rows.append([name, *(round(v, 3) for v in parts), *(round(v, 3) for v in own["two_sample"].values())])
    note = (
        "Against held-out real rows. Shape: Kolmogorov-Smirnov or total variation, mean over columns. Trend: correlations or joint "
        "tables, mean over all pairs, none left out for being weak. Two-sample AUC: 0.5 where a classifier cannot tell synthetic "
        "from real; the logistic regression is beside it because published scores use it, and it sees little."
    )
    own = measured.fidelity[measured.name]
    worst = sorted(own["columns"], key=lambda n: own["columns"][n].score)
    pairs = sorted(own["pairs"].items(), key=lambda pair: pair[1])[:5]
    names, ours, theirs = own["associations"]
    scores = [f"{name} ({own['columns'][name].score:.3f})" for name in worst[:5]]
    listed = [f"{a} and {b}: trend score {score:.3f}" for (a, b), score in pairs]
    return [
        table(columns, rows, note),
        text(f"Worst columns: {', '.join(scores)}. Worst pairs:"),
        {"kind": "list", "lines": listed or ["one column: no pairs"]},
        histograms(schema, real, fake, worst[:MOST_CHARTS]),
        {
            "kind": "heatmaps",
            "names": names,
            "matrices": {"real": _rounded(ours), "synthetic": _rounded(theirs)},
            "note": "Association of each pair of columns: correlation, correlation ratio or Cramer's V; white is 0, blue is 1.",
        },
        _projection(schema, real, fake, seed),
    ]


def _rounded(matrix: Floats) -> list[list[float]]:
    return [[round(float(v), 3) for v in row] for row in matrix]


def histograms(schema: Schema, real: Table, fake: Table, names: Sequence[str]) -> dict[str, Any]:
    """A chart for each column: shares of real and synthetic rows."""
    items = []
    for name in names:
        column = schema[name]
        if isinstance(column, Category):
            labels, codes = _bars_of_words(column, real[name], fake[name])
        else:
            labels, codes = _bars_of_numbers(real[name], fake[name])
        shares = [np.bincount(side, minlength=len(labels)) / max(len(side), 1) for side in codes]
        first, second = ([round(float(v), 5) for v in side] for side in shares)
        items.append({"title": name, "labels": labels, "real": first, "fake": second})
    return {"kind": "histograms", "items": items, "note": "Grey: real held-out rows. Blue: synthetic rows."}


def _bars_of_words(column: Category, real: Any, fake: Any) -> tuple[list[str], list[Any]]:
    counts = np.bincount(real + 1, minlength=len(column.categories) + 1)
    shown = [int(code) for code in np.argsort(-counts, kind="stable")[: MOST_BARS - 1] if counts[code]]
    place = np.full(len(column.categories) + 1, len(shown))
    place[shown] = np.arange(len(shown))
    names = ["missing", *map(str, column.categories)]
    codes = [place[side + 1] for side in (real, fake)]
    more = ["others"] if max(int(side.max(initial=0)) for side in codes) == len(shown) else []
    return [names[code] for code in shown] + more, codes


def _bars_of_numbers(real: Floats, fake: Floats) -> tuple[list[str], list[Any]]:
    present = real[~np.isnan(real)]
    low, high = np.quantile(present, [0.005, 0.995]) if len(present) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, MOST_BARS)
    labels = [f"{value:.4g}" for value in edges] + ["missing"]
    codes = [
        np.where(np.isnan(side), MOST_BARS, np.clip(np.searchsorted(edges, side, side="right") - 1, 0, MOST_BARS - 1))
        for side in (real, fake)
    ]
    return labels, codes


def _projection(schema: Schema, real: Table, fake: Table, seed: int) -> dict[str, Any]:
    """Both sides on the first two principal components of the real one."""
    from sklearn.decomposition import PCA

    sides = [
        taken(side, seeding.rng(seed, f"projection/{n}").permutation(rows_of(side))[:MOST_POINTS])
        for n, side in enumerate((real, fake))
    ]
    x = scaled(stacked(sides), schema)
    count = rows_of(sides[0])
    dims = min(2, x.shape[1])
    points = PCA(dims, random_state=0).fit(x[:count]).transform(x)
    points = np.pad(points, ((0, 0), (0, 2 - dims)))
    halves = [[[round(float(a), 3), round(float(b), 3)] for a, b in part] for part in (points[:count], points[count:])]
    note = f"{count} real and {len(x) - count} synthetic rows on the first two principal components of all columns."
    return {"kind": "scatter", "title": "Rows in two dimensions", "real": halves[0], "fake": halves[1], "note": note}


def _diversity_block(measured: Triad) -> dict[str, Any]:
    names = [name for name in next(iter(measured.diversity.values())) if name != "columns"]
    rows = [[source, *(round(own[name], 3) for name in names)] for source, own in measured.diversity.items()]
    note = (
        "Coverage: share of the real categories, of the real range and of frequent pairs of categories that synthetic rows reach. "
        "Clusters by k-means on real rows. Beta-recall's ceiling for real rows is about one half. Authenticity: share of rows "
        "that are farther from their nearest real row than that one is from its own."
    )
    return table(["rows", *names], rows, note)


def _utility_block(measured: Triad) -> dict[str, Any]:
    real = measured.utility["real rows"][0]
    rows = [
        [n, round(mean, 4), round(spread, 4), f"{mean - real:+.4f}"] for n, (mean, spread) in measured.utility.items()
    ]
    note = "Boosted trees, area under the ROC curve on held-out real rows; mean and deviation over seeds of the trees."
    return table(["trained on", "AUC", "deviation", "against real"], rows, note)


def _privacy_blocks(found: Privacy) -> list[dict[str, Any]]:
    share, low, high = found.closer
    leaks = found.leaks
    verdict = (
        f"These attacks found more than chance, by three standard errors: {', '.join(leaks)}."
        if leaks
        else "None of these attacks found more than chance. That is no proof: others may, and no noise was added by design."
    )
    rows: list[list[Any]] = [
        ["synthetic rows closer to fitted than to held-out rows", f"{share:.3f} [{low:.3f}, {high:.3f}]", "0.5"],
        [
            "synthetic rows equal to a fitted row (to a held-out row)",
            f"{found.exact[0]:.2%} ({found.exact[1]:.2%})",
            "equal",
        ],
        [
            "nearest / second nearest distance, fitted (held-out)",
            f"{found.ratio[0]:.3f} ({found.ratio[1]:.3f})",
            "equal",
        ],
    ]
    members = []
    for one in found.memberships:
        hits = "; ".join(f"{r} at {float(f):.1%} FPR [{a:.3f}, {b:.3f}]" for f, (r, a, b) in _shown(one.hits))
        members.append([one.attack, f"{one.auc:.3f} [{one.low:.3f}, {one.high:.3f}]", hits, one.members])
    guesses = [
        [g.column, g.attack, f"{g.members:.3f}", f"{g.controls:.3f}", f"{g.risk:+.3f} [{g.low:+.3f}, {g.high:+.3f}]"]
        for g in found.guesses
    ]
    note = (
        "Distances are smoke tests: generators that pass them have been attacked with success. What counts is what an attack finds of "
        "fitted rows beyond what it finds of held-out ones. A false-positive rate below one in the number of rows is not claimed."
    )
    return [
        text(verdict),
        table(["distances", "found", "chance"], rows, note),
        table(["membership inference", "AUC [95 % CI]", "fitted rows found [95 % CI]", "rows a side"], members),
        table(
            ["column", "guessed by", "right for fitted", "right for held-out", "risk [95 % CI]"],
            guesses,
            "Risk: what being fitted adds to guessing a column from all others, as a share of what was left to guess.",
        ),
    ]


def _shown(hits: Mapping[str, tuple[float, float, float]]) -> list[tuple[str, tuple[str, float, float]]]:
    return [(rate, (f"{found:.3f}", low, high)) for rate, (found, low, high) in hits.items()]


def _table_blocks(generator: Synthesizer) -> list[dict[str, Any]]:
    columns = generator.schema.columns
    rows = [[c.name, c.kind, c.dtype, "yes" if c.nullable else "no", "yes" if c.modelled else "no"] for c in columns]
    notes = list(generator.fitted.notes)
    blocks = [table(["column", "kind", "data type", "missing values", "modelled"], rows)]
    return blocks + ([{"kind": "list", "lines": notes}] if notes else [])
