"""From the results of one class to its verdict: arms with intervals, the baseline to beat, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visynth.core.report import ClassVerdict, arms, text
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import (
    CANNOT_TELL,
    HELPS,
    Bootstrap,
    Interval,
    Verdict,
    compare,
    decide,
    detectable,
    interval,
)
from visynth.verdict.comparison import Results
from visynth.verdict.ranking import macro_f1

WORTH = 0.02  # AP below which a gain is not worth having
FPR = 0.05


@dataclass(frozen=True)
class Summary:
    """Summary of the results of one class; ``verdict`` is that of the synthesizer ``candidate``."""

    verdict: Verdict
    rows: list[dict[str, Any]]
    gap: Interval | None
    headroom: Interval | None
    detectable: float
    recall: Interval
    candidate: str = "synthetic"
    others: Mapping[str, Verdict] = field(default_factory=dict)
    duel: Interval | None = None  # the rival against the arm "synthetic"
    level: float = 0.95  # of each synthesizer's interval
    recipe: str = ""  # the best arm without synthesis, in words


def summarise(results: Results, *, candidate: str = "synthetic", worth: float = WORTH, seed: int = 0) -> Summary:
    """Arms with intervals, the baseline to beat, the verdict, the share of the gap closed.

    The baseline to beat is the best on validation or the best on the test, whichever leaves synthesis less: choosing
    among baselines on few validation groups is noisy, and a weak rival would make an easy "helps". Where several
    synthesizers are judged, the error is shared among them (Bonferroni: two intervals of 97.5 %), and the class has the
    best of their verdicts.
    """
    bootstrap = Bootstrap(results.tested["real"], seed=seed)
    baseline = _baseline(results, bootstrap)
    candidates = [candidate, *results.rivals]
    level = 1 - 0.05 / len(candidates)
    verdicts: dict[str, Verdict] = {}
    for name in candidates:
        difference, replicates = compare(results.tested, name, baseline, bootstrap, level=level)
        verdicts[name] = decide(difference, baseline.replace("_", " "), detectable(replicates, level), worth, level)
    order = {HELPS: 2, CANNOT_TELL: 1}
    best = max(candidates, key=lambda name: (order.get(verdicts[name].answer, 0), verdicts[name].difference.mean))
    difference, replicates = compare(results.tested, best, baseline, bootstrap, level=level)
    recalls, _ = compare(results.tested, best, baseline, bootstrap, "recall")
    headroom = gap = duel = None
    if "oracle" in results.tested:
        headroom, room = compare(results.tested, "oracle", baseline, bootstrap)
        if headroom.low > 0:  # a share of a gap that may be nothing is no number
            shares = np.where(room > 0, replicates / np.where(room > 0, room, 1), np.nan)
            gap = interval(difference.mean / headroom.mean, shares)
    if results.rivals:
        duel, _ = compare(results.tested, results.rivals[0], candidate, bootstrap)
    return Summary(
        verdicts[best],
        _arm_rows(results, bootstrap, baseline, candidates),
        gap,
        headroom,
        detectable(replicates, level),
        recalls,
        best,
        {name: v for name, v in verdicts.items() if name != best},
        duel,
        level,
        _recipe(results, bootstrap),
    )


def _recipe(results: Results, bootstrap: Bootstrap) -> str:
    """The best arm without synthesis, in words, with what it gains over the items as they are."""
    means = {n: bootstrap.mean(results.tested[n], "ap")[0] for n in arming.BASELINES if n in results.tested}
    best = max(means, key=lambda name: means[name])
    recipes = results.wording.recipes
    words = recipes[best]
    if best == "augment":
        picked = Counter(str(chosen["candidate"]) for chosen in results.chosen["augment"])
        candidate, count = picked.most_common(1)[0]
        words += f" with {candidate} (in {count} of {len(results.rows)} cells)"
    words += f": AP {means[best]:.2f}"
    if best == "real":
        return words
    gain, _ = compare(results.tested, best, "real", bootstrap)
    return f"{words}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against {recipes['real']}"


def summarise_classic(results: Results, learner: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Best arm in words and table of arms, for a class that was measured without synthesis."""
    bootstrap = Bootstrap(results.tested["real"], seed=seed)
    rows = _arm_rows(results, bootstrap, _baseline(results, bootstrap), [])
    title = f"{_cells_in_words(results)} ({learner} learner)"
    return _recipe(results, bootstrap), arms(title, rows, "Nothing was synthesised for this class.")


def _cells_in_words(results: Results) -> str:
    counts, items = results.counts, results.wording.items
    synthetic = f"{counts['synthetic']:.0f} synthetic by {results.synthesizer}, " if counts["synthetic"] else ""
    train, test = (f"{counts[side]:.0f} {side}{'ing' if side == 'train' else ''} {items}" for side in ("train", "test"))
    if "train groups" in counts:
        train += f" of {counts['train groups']:.0f} groups"
        test += f" of {counts['test groups']:.0f} groups"
    return (
        f"{results.label}: {len(results.rows)} cells, on average {train}, {synthetic}{test} "
        f"({counts['prevalence']:.0%} of all that are tested)"
    )


def _baseline(results: Results, bootstrap: Bootstrap) -> str:
    baselines = [name for name in arming.BASELINES if name in results.tested]
    validated = {
        name: float(np.nanmean(results.inner[name])) if not np.all(np.isnan(results.inner[name])) else -1.0
        for name in baselines
    }
    # Without inner folds (one group) nothing can be chosen on validation: then the balanced sampler is the rival.
    chosen = max(validated, key=lambda name: validated[name]) if max(validated.values()) >= 0 else "balanced"
    # Equal means (logit adjustment ranks as "real" does) go to the one chosen on validation, else to the first in
    # order.
    means = {name: bootstrap.mean(results.tested[name], "ap")[0] for name in baselines}
    return max(baselines, key=lambda name: (means[name], name == chosen))


def _arm_rows(results: Results, bootstrap: Bootstrap, baseline: str, candidates: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    shown = [*arming.BASELINES, "synthetic", *results.rivals, "synthetic+control", "dense", "oracle"]
    for name in [n for n in shown if n in results.tested]:
        mean, replicates = bootstrap.mean(results.tested[name], "ap")
        recall, _ = bootstrap.mean(results.tested[name], "recall", FPR)
        estimate = interval(mean, replicates)
        against, _ = compare(results.tested, name, baseline, bootstrap)
        rows.append(
            {
                "name": name.replace("_", " "),
                **estimate.to_json(),
                "highlight": name in candidates,
                "more": {
                    f"recall at {FPR:.0%} FPR": round(recall, 3),
                    **_at_precision(results, bootstrap, name),
                    "validation AP": round(float(np.nanmean(results.inner[name])), 3)
                    if np.isfinite(results.inner[name]).any()
                    else "-",
                    f"against {baseline.replace('_', ' ')}": f"{against.mean:+.3f} [{against.low:+.2f}, "
                    f"{against.high:+.2f}]"
                    if name != baseline
                    else "-",
                },
            }
        )
    return rows


def _at_precision(results: Results, bootstrap: Bootstrap, name: str) -> dict[str, str]:
    precision = results.wording.precision
    if precision is None:
        return {}
    own = interval(*bootstrap.mean(results.tested[name], "recall at precision", precision))
    return {f"recall at {precision:.0%} precision": f"{own.mean:.3f} [{own.low:.2f}, {own.high:.2f}]"}


def class_verdict(results: Results, summary: Summary, *, masks: bool, macro_f1: Mapping[str, float]) -> ClassVerdict:
    """The verdict with its numbers and with what to do next."""
    answer = summary.verdict.answer
    reason = summary.verdict.reason
    if results.rivals:
        names = {"synthetic": results.synthesizer}
        reason = f"{names.get(summary.candidate, summary.candidate)}: {reason}"
        for name, other in summary.others.items():
            reason += f"; {names.get(name, name)}: {other.answer} ({other.difference.mean:+.3f})"
        if summary.duel is not None:
            reason += (
                f"; {results.rivals[0]} against {results.synthesizer} {summary.duel.mean:+.3f} "
                f"[{summary.duel.low:+.3f}, {summary.duel.high:+.3f}]"
            )
    if summary.gap is not None and summary.gap.mean > 0:
        reason += f"; {summary.gap.mean:.0%} of the gap to all real {results.wording.items} is closed"
    if answer == HELPS:
        following = results.wording.helps
    elif answer == CANNOT_TELL:
        following = (
            f"collect more {results.wording.groups} of {results.label}, above all for testing, and run the trial "
            f"again; best without synthesis was {summary.recipe}"
        )
    else:
        following = f"train without synthetic {results.label}; best without it was {summary.recipe}"
    dense = next((row for row in summary.rows if row["name"] == "dense"), None)
    others = max(row["mean"] for row in summary.rows if row["name"] not in ("dense", "oracle"))
    if masks and dense is not None and dense["mean"] > others:
        following += f". A rival to try: a dense head trained on your masks reached AP {dense['mean']:.2f} here"
    numbers = {
        **summary.verdict.to_json(),
        "recall_difference": summary.recall.to_json(),
        "synthesizer": results.synthesizer if summary.candidate == "synthetic" else summary.candidate,
        "others": {name: v.to_json() for name, v in summary.others.items()},
        "duel": summary.duel.to_json() if summary.duel else None,
        "gap_closed": summary.gap.to_json() if summary.gap else None,
        "headroom": summary.headroom.to_json() if summary.headroom else None,
        "arms": {row["name"]: {k: row[k] for k in ("mean", "low", "high")} for row in summary.rows},
        "macro_f1": {name: round(value, 4) for name, value in macro_f1.items()},
        **{f"{k} per cell".replace(" ", "_"): round(v, 3) for k, v in results.counts.items()},
    }
    return ClassVerdict(results.label, answer, reason, following, numbers)


def arms_block(results: Results, summary: Summary, learner: str, macro_f1: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table of arms, and what the learner chose."""
    rows = [
        {
            **row,
            "more": {
                **row["more"],
                **_macro_f1_of(row["name"], macro_f1),
            },
        }
        for row in summary.rows
    ]
    title = f"{_cells_in_words(results)} ({learner} learner)"
    recipes = {
        name.replace("_", " "): words for name, words in results.wording.recipes.items() if name in results.tested
    }
    note = f"Compared with {summary.verdict.baseline}, the baseline that leaves synthesis least. "
    note += f"Arms: {', '.join(f'{name}: {words}' for name, words in recipes.items())}. "
    if summary.headroom is not None:
        note += (
            f"Headroom: with all real groups AP changes by {summary.headroom.mean:+.3f} "
            f"[{summary.headroom.low:+.2f}, {summary.headroom.high:+.2f}]. "
        )
    if summary.gap is not None:
        gap = summary.gap
        note += f"Synthesis closes {gap.mean:.0%} [{gap.low:.0%}, {gap.high:.0%}] of that gap. "
    note += f"Validation AP is of inner folds of the training {results.wording.items}, at the prevalence that the class has among them. "
    note += (
        f"Effects smaller than {summary.detectable:.2f} AP are not seen with these data (80 % power, two-sided "
        f"{100 * (1 - summary.level):g} %)."
    )
    blocks = [arms(title, rows, note)]
    picked = Counter(", ".join(f"{k} {v}" for k, v in c.items()) for c in results.chosen.get("synthetic", []))
    if picked:
        blocks.append(
            text(
                "The synthetic arm's choices: " + "; ".join(f"{k} ({n} cells)" for k, n in picked.most_common(3)) + "."
            )
        )
    return blocks


def _macro_f1_of(name: str, macro_f1: Mapping[str, float]) -> dict[str, Any]:
    if not macro_f1:
        return {}
    arm = name.replace(" ", "_")
    return {"macro-F1": round(macro_f1[arm], 3) if arm in macro_f1 else "-"}


def macro_f1_table(
    results: Mapping[str, Results], labels: Sequence[int], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Macro-F1 of argmax over one-against-rest scores, per class whose positives change and per arm.

    The scores of the other classes are those of the same arm where it only reweights, and of "balanced" where it adds
    images of one class. Only cells that were run for every class with the same test rows count.
    """
    table: dict[str, dict[str, float]] = {}
    truth = np.asarray(labels)
    for name, own in results.items():
        table[name] = {}
        for arm in own.decisions:
            values = []
            for cell, rows in enumerate(own.rows):
                columns = []
                for other in classes:
                    source = results.get(other)
                    if source is None or cell >= len(source.rows) or not np.array_equal(source.rows[cell], rows):
                        break
                    usual = arm if other == name or arm in ("real", "logit_adjusted", "duplicate") else "balanced"
                    columns.append(source.decisions[usual][cell])
                else:
                    values.append(
                        macro_f1(
                            truth[rows].tolist(),
                            np.argmax(np.stack(columns), axis=0).tolist(),
                            range(len(classes)),
                            own.tested[arm][cell].weights,
                        )
                    )
            if values:
                table[name][arm] = float(np.mean(values))
    return table
