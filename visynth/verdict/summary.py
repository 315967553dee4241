"""From the results of some classes to their verdicts: arms with intervals, the baseline to beat, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visynth.core.report import ClassVerdict, arms, lines, table, text
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import NAMED, WORDS, Bootstrap, Interval, compare, interval
from visynth.verdict.comparison import DENSE, Results
from visynth.verdict.rule import (
    CANNOT_TELL,
    HELPS,
    Comparison,
    Design,
    Evidence,
    Verdict,
    decide,
    holm,
)

WORTH = 0.02  # gain below which it is not worth having
FPR = 0.05
RECALL = 0.8


@dataclass(frozen=True)
class Summary:
    """Summary of the results of one class; ``verdict`` is that of the synthesizer ``candidate``."""

    verdict: Verdict
    rows: list[dict[str, Any]]
    means: Mapping[str, Mapping[str, float]]  # by metric and arm
    gap: Interval | None
    headroom: Interval | None
    recall: Interval
    candidate: str = "synthetic"
    others: Mapping[str, Verdict] = field(default_factory=dict)
    duel: Interval | None = None  # the rival against the arm "synthetic"
    recipe: str = ""  # the best arm without synthesis, in words
    without: str = ""  # its name
    exploratory: bool = False  # not among the classes that were named beforehand
    design: Design = field(default_factory=Design)
    line: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)  # by arm and metric: what a line would see

    @property
    def metric(self) -> str:
        return self.verdict.metric


def summarise(
    results: Mapping[str, Results],
    *,
    named: Sequence[str] | None = None,
    candidate: str = "synthetic",
    metric: str = "ap",
    design: Design | None = None,
    worth: float = WORTH,
    seed: int = 0,
) -> dict[str, Summary]:
    """Per class arms with intervals, the baseline to beat, the verdict, and the share of the gap that is closed.

    The baseline to beat is the best on the test, and the limits are moved up by the luck that lies in having picked it.
    Where several synthesizers are compared, each p-value counts so many times (Bonferroni), and the class has the best of
    their verdicts; over the classes that were named, p-values are adjusted after Holm.

    Args:
        results: by class.
        named: classes that were named beforehand; the others are exploratory. By default all.
        candidate: the arm in question.
        metric: that was named beforehand, see :data:`visynth.verdict.bootstrap.METRICS`.
        design: of the cells.
        worth: gain from which on it is worth having.
        seed: of the bootstrap.
    """
    named = list(results) if named is None else [name for name in named if name in results]
    measured = {name: _Class(own, candidate, metric, design or Design(), seed) for name, own in results.items()}
    own = {name: one.p() for name, one in measured.items()}
    adjusted = own | holm({name: own[name] for name in named})
    return {name: one.summary(worth, adjusted[name], name not in named) for name, one in measured.items()}


class _Class:
    """One class on the way to its summary."""

    def __init__(self, results: Results, candidate: str, metric: str, design: Design, seed: int) -> None:
        self.results, self.candidate = results, candidate
        self.bootstrap = Bootstrap(results.tested["real"], seed=seed)
        self.compared = Comparison(results.tested, self.bootstrap, metric, design)
        self.baselines = _baselines(results, metric)
        self.baseline = self.compared.best(self.baselines)
        self.evidence: dict[str, Evidence] = {
            name: self.compared.evidence(name, self.baselines, self.baseline)
            for name in (candidate, *results.rivals)
            if name == candidate or metric in _metrics(results, name)
        }

    def _means(self, metric: str) -> dict[str, float]:
        """Mean of each arm that has the metric."""
        arms = [name for name in self.results.tested if metric in _metrics(self.results, name)]
        values = {name: self.bootstrap.mean(self.results.tested[name], metric)[0] for name in arms}
        return {name.replace("_", " "): round(value, 4) for name, value in values.items()}

    def p(self) -> float:
        """Of no gain by any synthesizer."""
        return min(1.0, len(self.evidence) * min(one.p_gain() for one in self.evidence.values()))

    def summary(self, worth: float, adjusted: float, exploratory: bool) -> Summary:
        results, baseline, metric = self.results, self.baseline, self.compared.metric
        verdicts = {}
        for name, one in self.evidence.items():
            # The class's p-values belong to its best synthesizer; another one's are larger as its own evidence is weaker.
            own = _scaled(adjusted, one, list(self.evidence.values()))
            fewest = self.compared.design.fewest
            verdicts[name] = decide(one, baseline.replace("_", " "), worth, own, metric, fewest)
        order = {HELPS: 2, CANNOT_TELL: 1}
        best = max(verdicts, key=lambda name: (order.get(verdicts[name].answer, 0), verdicts[name].difference.mean))
        recalls, _ = compare(results.tested, best, baseline, self.bootstrap, "recall@fpr")
        headroom = gap = duel = None
        if "oracle" in results.tested and metric in _metrics(results, "oracle"):
            headroom, room = compare(results.tested, "oracle", baseline, self.bootstrap, metric)
            if headroom.low > 0:  # a share of a gap that may be nothing is no number
                one = self.evidence[best]
                # Of replicates without room a share is none: those that have some speak for the limits.
                shares = np.where(room > 0, one.replicates / np.where(room > 0, room, 1), np.nan)
                gap = interval(one.mean / headroom.mean, shares)
        rivals = [name for name in results.rivals if name != DENSE]
        if rivals:
            duel, _ = compare(results.tested, rivals[0], self.candidate, self.bootstrap, metric)
        return Summary(
            verdicts[best],
            _arm_rows(results, self.bootstrap, baseline, list(verdicts), metric),
            {named: self._means(named) for named in NAMED},
            gap,
            headroom,
            recalls,
            best,
            {name: v for name, v in verdicts.items() if name != best},
            duel,
            _recipe(results, self.bootstrap, baseline, metric),
            baseline,
            exploratory,
            self.compared.design,
            {name: self._on_a_line(name) for name in dict.fromkeys(("real", baseline, best))},
        )

    def _on_a_line(self, arm: str) -> dict[str, Interval]:
        tested, mean = self.results.tested[arm], self.bootstrap.mean
        levels = {"recall@fpr": FPR, "alarms@recall": RECALL}
        return {metric: interval(*mean(tested, metric, level)) for metric, level in levels.items()}


def _scaled(adjusted: float, one: Evidence, all_of_them: Sequence[Evidence]) -> float:
    """The adjusted p-value of a class for one of its synthesizers."""
    smallest = min(other.p_gain() for other in all_of_them)
    return max(adjusted, min(1.0, adjusted * one.p_gain() / max(smallest, 1e-12)))


def _metrics(results: Results, arm: str) -> tuple[str, ...]:
    """Metrics that an arm has: those of decisions need a model of all classes."""
    decided = all(one.labels is not None and one.predicted is not None for one in results.tested[arm])
    return ("ap", "recall@fpr", "recall@precision", *(("recall", "macro-f1") if decided else ()))


def _baselines(results: Results, metric: str) -> list[str]:
    found = [name for name in arming.BASELINES if name in results.tested and metric in _metrics(results, name)]
    return found or ["real"]  # which then tells what the metric needs


def _recipe(results: Results, bootstrap: Bootstrap, best: str, metric: str) -> str:
    """The best arm without synthesis, in words, with what it gains over the items as they are."""
    recipes = results.wording.recipes
    words = recipes[best]
    if best == "augment":
        picked = Counter(str(arm.chosen["candidate"]) for arm in results.arms["augment"])
        candidate, count = picked.most_common(1)[0]
        words += f" with {candidate} (in {count} of {len(results.rows)} cells)"
    words += f": {WORDS[metric]} {bootstrap.mean(results.tested[best], metric)[0]:.2f}"
    if best == "real":
        return words
    gain, _ = compare(results.tested, best, "real", bootstrap, metric)
    return f"{words}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against {recipes['real']}"


def summarise_classic(
    results: Results, learner: str, metric: str = "ap", seed: int = 0
) -> tuple[str, str, dict[str, Any]]:
    """Best arm, the same in words, and table of arms, for a class that was measured without synthesis."""
    bootstrap = Bootstrap(results.tested["real"], seed=seed)
    best = Comparison(results.tested, bootstrap, metric).best(_baselines(results, metric))
    rows = _arm_rows(results, bootstrap, best, [], metric)
    title = f"{_cells_in_words(results)} ({learner} learner)"
    block = arms(title, rows, "Nothing was synthesised for this class.", WORDS[metric])
    return best, _recipe(results, bootstrap, best, metric), block


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


def _arm_rows(
    results: Results, bootstrap: Bootstrap, baseline: str, candidates: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    rows = []
    shown = [*arming.BASELINES, "synthetic", *results.rivals, "no_control", DENSE, "oracle"]
    for name in [n for n in dict.fromkeys(shown) if n in results.tested]:
        has = _metrics(results, name)
        inner = results.inner(name)
        more: dict[str, Any] = {}
        if metric != "ap":
            more["AP"] = round(bootstrap.mean(results.tested[name], "ap")[0], 3)
        more[f"recall at {FPR:.0%} FPR"] = round(bootstrap.mean(results.tested[name], "recall@fpr", FPR)[0], 3)
        more |= _at_precision(results, bootstrap, name)
        if "macro-f1" in _metrics(results, "real"):
            for decided in ("recall", "macro-f1"):
                value = bootstrap.mean(results.tested[name], decided)[0] if decided in has else None
                more[f"{WORDS[decided]}, one model of all classes"] = "-" if value is None else round(value, 3)
        more["validation AP"] = round(inner, 3) if np.isfinite(inner) else "-"
        against = f"against {baseline.replace('_', ' ')}"
        own: dict[str, float | None] = {"mean": None, "low": None, "high": None}
        more[against] = "-"
        if metric in has:
            own = interval(*bootstrap.mean(results.tested[name], metric)).to_json()
            if name != baseline:
                gain, _ = compare(results.tested, name, baseline, bootstrap, metric)
                more[against] = f"{gain.mean:+.3f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        rows.append({"name": name.replace("_", " "), **own, "highlight": name in candidates, "more": more})
    return [row for row in rows if row["mean"] is not None]


def _at_precision(results: Results, bootstrap: Bootstrap, name: str) -> dict[str, str]:
    precision = results.wording.precision
    if precision is None:
        return {}
    own = interval(*bootstrap.mean(results.tested[name], "recall@precision", precision))
    return {f"recall at {precision:.0%} precision": f"{own.mean:.3f} [{own.low:.2f}, {own.high:.2f}]"}


def class_verdict(results: Results, summary: Summary) -> ClassVerdict:
    """The verdict with its numbers and with what to do next."""
    answer = summary.verdict.answer
    reason = summary.verdict.reason
    if results.rivals:
        names = {"synthetic": results.synthesizer}
        reason = f"{names.get(summary.candidate, summary.candidate)}: {reason}"
        for name, other in summary.others.items():
            reason += f"; {names.get(name, name)}: {other.answer} ({other.difference.mean:+.3f})"
        if summary.duel is not None:
            rival = next(name for name in results.rivals if name != DENSE)
            reason += (
                f"; {rival} against {results.synthesizer} {summary.duel.mean:+.3f} "
                f"[{summary.duel.low:+.3f}, {summary.duel.high:+.3f}]"
            )
    if summary.gap is not None and summary.gap.mean > 0:
        reason += f"; {summary.gap.mean:.0%} of the gap to all real {results.wording.items} is closed"
    if summary.exploratory:
        reason += "; exploratory, since the class was not named beforehand"
    if answer == HELPS:
        following = results.wording.helps
    elif answer == CANNOT_TELL:
        following = (
            f"collect more {results.wording.groups} of {results.label}, above all for testing, and run the trial "
            f"again; best without synthesis was {summary.recipe}"
        )
    else:
        following = f"train without synthetic {results.label}; best without it was {summary.recipe}"
    numbers = {
        **summary.verdict.to_json(),
        "exploratory": summary.exploratory,
        "recall_difference": summary.recall.to_json(),
        "synthesizer": results.rivals.get(summary.candidate, results.synthesizer),
        "arm": summary.candidate,
        "others": {name: v.to_json() for name, v in summary.others.items()},
        "duel": summary.duel.to_json() if summary.duel else None,
        "gap_closed": summary.gap.to_json() if summary.gap else None,
        "headroom": summary.headroom.to_json() if summary.headroom else None,
        "arms": {row["name"]: {k: row[k] for k in ("mean", "low", "high")} for row in summary.rows},
        "means": summary.means,
        "without": summary.without.replace("_", " "),
        "curve": curve(results),
        "line": {arm: {metric: one.to_json() for metric, one in own.items()} for arm, own in summary.line.items()},
        "draws": len({cell.draw for cell in results.tested["real"]}),
        "planned_draws": summary.design.draws,
        "test_groups": summary.verdict.groups,
        **{f"{k} per cell".replace(" ", "_"): round(v, 3) for k, v in results.counts.items()},
    }
    return ClassVerdict(results.label, answer, reason, following, numbers)


def _line_block(results: Results, summary: Summary) -> dict[str, Any]:
    """What the arms mean where parts go by."""
    wording = results.wording
    names = {
        "synthetic": f"with synthetic {wording.items} by {results.synthesizer}",
        "real": wording.recipes["real"],
    }
    rows = []
    for arm, own in summary.line.items():
        recalls, alarms = own["recall@fpr"], own["alarms@recall"]
        rows.append(
            [
                names.get(arm, arm.replace("_", " ")),
                f"{recalls.mean:.0%} [{recalls.low:.0%}, {recalls.high:.0%}]",
                f"{alarms.mean:.0f} [{alarms.low:.0f}, {alarms.high:.0f}]",
            ]
        )
    counts, items = results.counts, wording.items
    note = (
        f"By {counts['test']:.0f} {results.label} {items}"
        + (f" of {counts['test groups']:.0f} groups" if "test groups" in counts else "")
        + f" a cell, {len(results.rows)} cells. False calls are counted among all {items} that do not show {results.label}."
    )
    columns = [
        f"{results.label}, on a line",
        f"found at {FPR:.0%} false calls",
        f"false calls per 1,000 to find {RECALL:.0%}",
    ]
    return table(columns, rows, note)


def _points(tried: Mapping[str, float]) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Points of the shares that were tried, and what else was, by name."""
    points, others = [], {}
    for name, score in tried.items():
        if name == "none":
            points.append((0.0, score))
        elif name.replace(".", "", 1).isdigit():
            points.append((float(name), score))
        else:
            others[name] = score
    return sorted(points), others


def curve(results: Results) -> dict[str, float]:
    """Mean inner AP of each amount of synthetic images that was tried, over the cells that tried it."""
    values: dict[str, list[float]] = {}
    for arm in results.arms.get("synthetic", []):
        for name, score in arm.tried.items():
            if np.isfinite(score):
                values.setdefault(name, []).append(score)
    whole = max((len(scores) for scores in values.values()), default=0)
    return {name: round(float(np.mean(scores)), 4) for name, scores in values.items() if len(scores) == whole}


def arms_block(results: Results, summary: Summary, learner: str) -> list[dict[str, Any]]:
    """The table of arms, the curve over the share of synthetic images, and what the learner chose."""
    title = f"{_cells_in_words(results)} ({learner} learner)"
    recipes = {
        name.replace("_", " "): words for name, words in results.wording.recipes.items() if name in results.tested
    }
    words = WORDS[summary.metric]
    note = f"Compared with {summary.verdict.baseline}, the baseline that leaves synthesis least. "
    note += f"Arms: {', '.join(f'{name}: {words}' for name, words in recipes.items())}. "
    if summary.headroom is not None:
        note += (
            f"Headroom: with all real groups {words} changes by {summary.headroom.mean:+.3f} "
            f"[{summary.headroom.low:+.2f}, {summary.headroom.high:+.2f}]. "
        )
    if summary.gap is not None:
        gap = summary.gap
        note += f"Synthesis closes {gap.mean:.0%} [{gap.low:.0%}, {gap.high:.0%}] of that gap. "
    note += f"Validation AP is of inner folds of the training {results.wording.items}, at the prevalence that the class has among them. "
    note += (
        f"Effects smaller than {summary.verdict.detectable:.2f} {words} are not seen with these data (80 % power, one-sided "
        "2.5 %). "
    )
    if summary.verdict.luck:
        note += (
            f"The limits of the verdict allow {summary.verdict.luck:.3f} for the luck of the best of several baselines."
        )
    blocks = [arms(title, summary.rows, note, words), _line_block(results, summary)]
    tried = curve(results)
    if tried:
        over = f"Share of the class's weight to synthetic {results.label}, on inner folds of {len(results.rows)} cells"
        note = "Mean validation AP of what was tried in every cell; each cell chose for itself, and took the default where nothing "
        note += "was better on every fold."
        blocks.append(lines(over, *_points(tried), "share", "AP", note))
    picked = Counter(", ".join(f"{k} {v}" for k, v in arm.chosen.items()) for arm in results.arms.get("synthetic", []))
    if picked:
        choices = "; ".join(f"{k} ({n} cells)" for k, n in picked.most_common(3))
        blocks.append(text(f"The synthetic arm's choices: {choices}."))
    return blocks
