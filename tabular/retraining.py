"""Retraining a generator of rows; see :mod:`visynth.jobs.retrain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import members as members_file
from visynth.core import plugins
from visynth.core.artifact import MEMBERS, SPEC
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.files import hash_json
from visynth.core.folders import claim_files
from visynth.core.progress import Progress, no_progress
from visynth.core.report import FILES, Report, table
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category
from visynth.tabular.evaluate import check_held_out
from visynth.tabular.fidelity import fidelity, summary
from visynth.tabular.fitted import row_hashes
from visynth.tabular.frames import to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.learners import Boosted, features
from visynth.tabular.schema import Table, taken
from visynth.tabular.utility import rare_class, resampled_together
from visynth.verdict.bootstrap import Bootstrap, Scored, compare
from visynth.verdict.challenge import FROZEN, INSUFFICIENT, PROMOTE, REJECT, Fingerprint, Judgement
from visynth.verdict.drift import drifted
from visynth.verdict.summary import arms_block, class_verdict, summarise

APART = 0.95  # two-sample AUC from which rows are no stand-in for real ones
LOST = 0.15  # average precision that training on synthetic rows alone may lose where no harm is asked
WIDEST = 20  # categories of a column that the drift test sees one by one
JUDGED = 20_000  # rows that are drawn to judge


class TableSubject:
    """Rows of a CSV or Parquet file; see :class:`visynth.verdict.challenge.Subject`.

    Args:
        frame: the data. A frozen part of them is for judging: 30 per cent, by a hash of each row, now and whenever more rows
            come.
        target: the class column.
        job: how.
        kinds: of columns where the data mislead.
        progress: receives lines.
    """

    def __init__(
        self,
        frame: Any,
        target: str,
        job: Any,
        kinds: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if job.downstream is not None:
            raise UsageError("retrain: a downstream training is mixed with images; of tables there is none.")
        self.job, self.target, self.progress = job, target, progress
        self.schema = infer(frame, target=target, kinds=kinds)
        self.table: Table = self.schema.table(frame)
        self.hashes = np.array(stable_hashes(frame))
        self.frozen = np.array([int(mark[:8], 16) % 100 < FROZEN for mark in self.hashes])
        self.frame = frame
        column = self.schema[target]
        if not isinstance(column, Category):
            raise UsageError(
                f"retrain: {target!r} is {column.kind}, and a class column is needed: declare it with kinds."
            )
        self.labels = column.format(self.table[target]).astype(str)
        lacking = [
            n for n in job.classes if min((self._of(n) & ~self.frozen).sum(), (self._of(n) & self.frozen).sum()) < 4
        ]
        if lacking or not job.classes:
            raise DataError(
                f"retrain: {choices(lacking)} have fewer than 4 rows for training or for judging; {target!r} has "
                f"{dict(Counter(self.labels.tolist()))}."
            )

    def _of(self, name: str) -> NDArray[np.bool_]:
        return np.asarray(self.labels == name)

    def fingerprint(self) -> Fingerprint:
        train = ~self.frozen
        names = sorted(set(self.labels.tolist()))
        items = {name: frozenset(self.hashes[train & self._of(name)].tolist()) for name in names}
        counts = Counter(self.labels[train].tolist())
        return Fingerprint(hash_json(sorted(self.hashes.tolist())), counts, items)

    def known(self, champion: Path) -> Fingerprint:
        members = [m for m in members_file.read(champion / MEMBERS) if m.split == "train"]
        old = self._seen(champion) & ~self.frozen
        items = {
            name: frozenset(self.hashes[old & self._of(name)].tolist()) for name in sorted(set(self.labels.tolist()))
        }
        return Fingerprint(members_file.merkle_root(members), Counter(m.label for m in members), items)

    def _seen(self, champion: Path) -> NDArray[np.bool_]:
        """Rows that a champion was fitted to, told in its own schema; none where the data lack its columns."""
        marks = {m.sha256 for m in members_file.read(champion / MEMBERS) if m.split == "train"}
        schema = Synthesizer.load(champion).schema
        try:
            own = row_hashes(schema, schema.table(self.frame))
        except DataError:
            return np.zeros(len(self.hashes), bool)
        return np.array([mark in marks for mark in own])

    def drift(self, champion: Path, alpha: float) -> dict[str, float]:
        """Between the champion's training rows that are still here and those that it never saw."""
        old = self._seen(champion)
        points = self._points
        sides = []
        for own in (old & ~self.frozen, ~old & ~self.frozen):
            sides.append({name: points[own & self._of(name)] for name in self.job.classes})
        return drifted(sides[0], sides[1], alpha)

    @cached_property
    def _points(self) -> NDArray[np.float64]:
        """Rows as numbers: missing ones are the mean, and few categories are columns of their own."""
        values, categorical = features(self.table, self.schema, [self.target])
        parts = []
        for place, is_category in enumerate(categorical):
            column = values[:, place].astype(np.float64)
            levels = np.unique(column[np.isfinite(column)])
            if is_category and len(levels) <= WIDEST:
                parts += [(column == level).astype(np.float64) for level in levels]
            else:
                parts.append(np.where(np.isfinite(column), column, np.nanmean(column) if len(levels) else 0.0))
        return np.stack(parts, axis=1)

    def fit(self, folder: Path) -> Path:
        generator = folder / "generator"
        if not (generator / SPEC).is_file():
            own = self._new()
            self.progress(f"fitting {own.network} to {int((~self.frozen).sum())} rows")
            own.fit(self._rows(~self.frozen), schema=self.schema, target=self.target, progress=self.progress)
            own.save(generator)
        return generator

    def _new(self, **more: Any) -> Synthesizer:
        """A synthesizer as the job describes it, not fitted."""
        recipe = self.job.generator
        if "synthesizer" not in recipe:
            raise UsageError("retrain: tables take {synthesizer: ..., arguments: {...}}.")
        made: Synthesizer = plugins.make(
            "synthesizers", str(recipe["synthesizer"]), {**(recipe.get("arguments") or {}), **more}
        )
        return made

    def _rows(self, mask: NDArray[np.bool_]) -> Any:
        """Part of the frame, whatever library it is of."""
        places = np.flatnonzero(mask)
        return self.frame.iloc[places].reset_index(drop=True) if hasattr(self.frame, "iloc") else self.frame[places]

    def evaluate(self, challenger: Path, champion: Path | None, folder: Path) -> Judgement:
        """Fidelity and the worth of synthetic rows on the frozen rows, beside the champion's."""
        own = Synthesizer.load(challenger)
        others, notes = ({}, []) if champion is None else self._comparable(champion)
        generators = {"challenger": own, **others}
        report = Report("retraining", "challenger")
        drawn = {name: [self._drawn(model, s) for s in range(self.job.seeds)] for name, model in generators.items()}
        faithful = {name: self._fidelity(tables[0]) for name, tables in drawn.items()}
        columns = list(next(iter(faithful.values())))
        rows = [[name, *(f"{values[c]:.4g}" for c in columns)] for name, values in faithful.items()]
        report.section("Fidelity on frozen real rows", table(["generator", *columns], rows))
        numbers: dict[str, Any] = {"fidelity": faithful}
        reasons, rejected, insufficient = list(notes), list[str](), list[str]()
        apart = faithful["challenger"]["two-sample AUC"]
        if apart > APART:
            rejected.append(f"its rows are told from real ones with an AUC of {apart:.2f} (at most {APART})")
        worth = []
        for name in self.job.classes:
            scored = self._scored(name, drawn)
            bootstrap = Bootstrap(scored["real"])
            loss, _ = compare(scored, "challenger", "real", bootstrap)
            numbers[name] = {"against real": loss.to_json()}
            worth.append([name, "real rows", f"{loss.mean:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}]"])
            if self.job.policy.require == "no harm" and loss.high < -LOST:
                rejected.append(
                    f"{name}: trained on its rows alone AP falls by {-loss.mean:.2f}, surely more than {LOST}"
                )
            if "champion" in scored:
                duel, _ = compare(scored, "challenger", "champion", bootstrap)
                numbers[name]["against"] = duel.to_json()
                worth.append([name, "the champion", f"{duel.mean:+.3f} [{duel.low:+.3f}, {duel.high:+.3f}]"])
                if duel.high < 0:
                    rejected.append(
                        f"{name}: worse than the champion, AP {duel.mean:+.3f} [{duel.low:+.3f}, {duel.high:+.3f}]"
                    )
        report.section(
            "Trained on synthetic rows, tested on frozen real ones", table(["class", "against", "AP [95 % CI]"], worth)
        )
        if self.job.policy.require == "helps" and not rejected:
            self._help(report, reasons, rejected, insufficient)
        report.write(claim_files(folder / "report", FILES))
        outcome = REJECT if rejected else INSUFFICIENT if insufficient else PROMOTE
        return Judgement(outcome, [*rejected, *insufficient, *reasons], numbers, report)

    def _help(self, report: Report, reasons: list[str], rejected: list[str], insufficient: list[str]) -> None:
        """Real and synthetic rows of each class against the best of weights, over-sampling and SMOTE."""
        results = {
            name: rare_class(
                self._rows(~self.frozen),
                self.schema,
                self.target,
                name,
                lambda seed: self._new(seed=seed),
                draws=self.job.seeds,
                folds=3,
                progress=self.progress,
            )
            for name in self.job.classes
        }
        for name, found in summarise(results).items():
            verdict = class_verdict(results[name], found)
            report.verdicts.append(verdict)
            report.section(f"Real and synthetic {name}", *arms_block(results[name], found, "boosted trees"))
            said = f"{name}: {verdict.answer} ({verdict.reason})"
            {"helps": reasons, "does not": rejected}.get(verdict.answer, insufficient).append(said)

    def _comparable(self, champion: Path) -> tuple[dict[str, Synthesizer], list[str]]:
        loaded = Synthesizer.load(champion)
        try:
            held = loaded.schema.table(self._rows(self.frozen))
        except DataError:
            return {}, ["the champion makes other columns; it is not compared"]
        try:
            check_held_out(loaded, loaded.schema, held)
        except DataError as error:
            why = str(error).splitlines()[0]
            return {}, [f"the champion was fitted on rows that judge; it is not compared ({why})"]
        if loaded.fitted.target != self.target or [c.name for c in loaded.schema.modelled] != [
            c.name for c in self.schema.modelled
        ]:
            return {}, ["the champion makes other columns; it is not compared"]
        return {"champion": loaded}, []

    def _drawn(self, model: Synthesizer, seed: int) -> Table:
        """As many rows as there are for training, of classes as the generator draws them, in this schema."""
        count = min(int((~self.frozen).sum()), JUDGED)
        frame = model.sample(count, seed=seed)
        return self.schema.table(frame)

    def _fidelity(self, drawn: Table) -> dict[str, float]:
        real = taken(self.table, np.flatnonzero(self.frozen))
        measured = summary(fidelity(real, drawn, self.schema, 0))
        return {name: round(value, 5) for name, value in measured.items()}

    def _scored(self, name: str, drawn: Mapping[str, Sequence[Table]]) -> dict[str, list[Scored]]:
        """Scores of frozen rows by trees that were trained on each source, once for every seed."""
        test = np.flatnonzero(self.frozen)
        truth = self._of(name)[test]
        groups = resampled_together(np.arange(len(test)), truth, None)
        x, _ = features(taken(self.table, test), self.schema, [self.target])
        code = int(self.table[self.target][self._of(name)][0])
        scored: dict[str, list[Scored]] = {}
        real = taken(self.table, np.flatnonzero(~self.frozen))
        for seed in range(self.job.seeds):
            sources = {"real": real, **{kind: tables[seed] for kind, tables in drawn.items()}}
            for kind, rows in sources.items():
                own, categorical = features(rows, self.schema, [self.target])
                positive = (rows[self.target] == code).astype(np.int64)
                scores = np.zeros(len(test))
                if 0 < positive.sum() < len(positive):
                    scores = Boosted(categorical, seed).fit(own, positive).probabilities(x)[:, 1]
                scored.setdefault(kind, []).append(Scored(seed, truth, scores, groups))
        return scored

    def check(self, folder: Path) -> None:
        """Nothing is trained beside the synthesizer."""

    def pair(self, champion: Path | None, folder: Path) -> None:
        """There is no module of the user's for tables."""

    def canary(self, generator: Path, folder: Path) -> list[str]:
        """Does it load, draw every class in question, and do its rows look like real ones at all?"""
        try:
            loaded = Synthesizer.load(generator)
            lacking = [name for name in self.job.classes if name not in loaded.fitted.classes]
            if lacking:
                return [f"it does not make {choices(lacking)}"]
            for name in self.job.classes:
                frame = loaded.sample(self.job.canary, conditions={self.target: name}, seed=0)
                if len(frame) != self.job.canary:
                    return [f"{name}: {len(frame)} of {self.job.canary} rows came"]
        except DataError as error:  # of the generator; a missing package is no fault of it
            return [str(error).splitlines()[0]]
        if not {c.name for c in self.schema.modelled} <= {c.name for c in loaded.schema.columns}:
            return []  # the data have more columns now: it can be used, and not be compared
        apart = self._fidelity(self._drawn(loaded, 0))["two-sample AUC"]
        return [f"its rows are told from real ones with an AUC of {apart:.2f}"] if apart > APART else []


def stable_hashes(frame: Any) -> list[str]:
    """Hex hash of each row's values, the same whatever types they were read as: 18 and 18.0 are equal, and so are all kinds
    of missing values. It decides which rows are frozen, so it must not change when more rows come.

    Example:
        >>> import pandas as pd
        >>> stable_hashes(pd.DataFrame({"a": [18, 19]}))[0] == stable_hashes(pd.DataFrame({"a": [18.0, None]}))[0]
        True
    """
    rows, _ = to_pandas(frame)
    columns = [list(map(_plain, rows[name].tolist())) for name in sorted(rows.columns)]
    return [blake2b("\x1f".join(row).encode(), digest_size=16).hexdigest() for row in zip(*columns, strict=True)]


def _plain(value: Any) -> str:
    if value is None or value != value or str(value) in ("<NA>", "NaT"):
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return repr(float(value))
    return str(value)
