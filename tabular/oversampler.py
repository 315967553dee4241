"""SMOTE and its kin as a table generator: imbalanced-learn's samplers behind the same contract.

Rows lie between a real row of a class and one of its nearest of that class (Chawla et al., "SMOTE", JAIR 2002). The
generator's folder therefore holds the real rows: it is augmentation, and gives no privacy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, MissingExtra, UsageError, choices
from visynth.core.progress import Progress
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category, Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.discrete import unit_of
from visynth.tabular.draws import BLOCK, Draw
from visynth.tabular.fitted import Fitted
from visynth.tabular.schema import Table, missing_in

Method = Literal["smote", "borderline", "adasyn"]
NEIGHBOURS = 5


def over_sampling() -> Any:
    """imbalanced-learn's module of over-samplers.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import imblearn.over_sampling
    except ImportError as error:
        raise MissingExtra("SMOTE needs imbalanced-learn: pip install 'visynth[smote]'.") from error
    return imblearn.over_sampling


class Oversampler(Synthesizer):
    """imbalanced-learn's SMOTE (SMOTENC or SMOTEN where there are categories), Borderline-SMOTE or ADASYN.

    Args:
        method: ``"smote"`` for any columns; ``"borderline"`` and ``"adasyn"`` for numbers alone.
        neighbours: of a row, between which and itself new rows lie.
        seed: has no effect on the fit; every generator takes one.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": np.arange(40.0), "y": ["a"] * 30 + ["b"] * 10})
        >>> sample = Oversampler().fit(frame, target="y").sample(3, conditions={"y": "b"})
        >>> sample["x"].between(30, 39).all().item()
        True
    """

    network: ClassVar[str] = "oversampler"
    fits_by = "keeping the real rows"

    def __init__(self, method: Method = "smote", neighbours: int = NEIGHBOURS, seed: int = 0) -> None:
        super().__init__()
        if method not in ("smote", "borderline", "adasyn"):
            raise UsageError(f"method must be 'smote', 'borderline' or 'adasyn', but got {method!r}.")
        self.options = {"method": method, "neighbours": neighbours, "seed": seed}
        self._matrix: Floats = np.zeros((0, 0))
        self._labels: NDArray[np.int64] = np.zeros(0, np.int64)

    # -- fitting -----------------------------------------------------------------------------------------------------

    def _fit(self, table: Table, progress: Progress, **training: Any) -> None:
        over_sampling()
        if training:
            raise UsageError(f"{self.network} is not trained: fit takes no {next(iter(training))!r}.")
        target = self.fitted.target
        if target is None:
            raise UsageError("SMOTE makes rows of a class: name the class column with target=.")
        if missing_in(table[target]).any():
            raise DataError(f"target {target!r} has missing values: SMOTE needs a class for every row.")
        counts = np.bincount(table[target], minlength=len(self.fitted.classes))
        alone = [self.fitted.classes[c] for c in np.flatnonzero(counts == 1)]
        if alone:
            raise DataError(f"classes {choices(alone)} have one row: SMOTE needs two to lie between.")
        if self.options["method"] != "smote" and any(self._is_word):
            words = [name for name, word in zip(self._inputs(table)[1], self._is_word, strict=True) if word]
            raise UsageError(
                f"{self.options['method']} takes numbers alone, but {choices(words)} are categories: use 'smote'."
            )
        if not self._columns:
            raise DataError(f"the table has no modelled column beside the target {target!r}.")
        self._labels = table[target]
        self._matrix = self._inputs(table)[0]

    @property
    def _columns(self) -> list[Any]:
        return [c for c in self.fitted.model_schema.columns if c.name != self.fitted.target]

    @property
    def _is_word(self) -> list[bool]:
        return [
            part
            for c in self._columns
            for part in ([True] if isinstance(c, Category) else [False] + [True] * c.nullable)
        ]

    def _inputs(self, table: Table) -> tuple[Floats, list[str]]:
        """Columns as numbers; a number that can be missing has a second one that says whether it is."""
        parts, names = [], []
        for column in self._columns:
            values = table[column.name].astype(np.float64)
            gone = missing_in(table[column.name])
            names.append(column.name)
            if isinstance(column, Category):
                parts.append(values)
                continue
            middle = float(np.median(values[~gone])) if not gone.all() else 0.0
            parts.append(np.where(gone, middle, values))
            if column.nullable:
                parts.append(gone.astype(np.float64))
                names.append(f"{column.name} missing")
        return np.stack(parts, axis=1), names

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        target = str(self.fitted.target)
        foreign = [name for name in conditions.columns if name != target]
        if foreign:
            raise UsageError(f"SMOTE draws by class alone: conditions can name {target!r}, but not {choices(foreign)}.")
        labels = self._drawn_labels(draw, conditions, target)
        rows = np.empty((len(labels), self._matrix.shape[1]))
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if draw.group >= 0:
                block = self._resampled(int(label), BLOCK, seeding.derive("smote", draw.seed, draw.group, int(label)))
                rows[own] = block[draw.keys[own] % BLOCK]
                continue
            for place in own:  # a redraw: the row's own call, whatever other rows are redrawn
                seed = seeding.derive("smote", draw.seed, int(draw.keys[place]), int(label))
                rows[place] = self._resampled(int(label), 1, seed)[0]
        return {**self._outputs(rows), target: labels}

    def _drawn_labels(self, draw: Draw, conditions: Conditions, target: str) -> NDArray[np.int64]:
        counts = np.bincount(self._labels, minlength=len(self.fitted.classes)).astype(np.float64)
        if target in conditions.allowed:
            legal = conditions.allowed[target].holds(np.arange(len(counts)))
            counts = counts * legal if (counts * legal).any() else counts
        cumulative = np.cumsum(counts)
        u = draw.uniforms(1, "smote/labels")[:, 0]
        labels = np.searchsorted(cumulative, u * cumulative[-1], side="right")
        if target in conditions.fixed:
            values, given = conditions.fixed[target]
            empty = [self.fitted.classes[c] for c in np.unique(values[given]) if counts[c] == 0]
            if empty:
                raise DataError(f"class {choices(empty)} has no real row to make others of.")
            labels = np.where(given, values, labels)
        return np.asarray(labels, np.int64)

    def _resampled(self, label: int, count: int, seed: int) -> Floats:
        """New rows ``[count, columns]`` of one class."""
        library, words = over_sampling(), np.array(self._is_word, bool)
        own = int((self._labels == label).sum())
        common = {
            "sampling_strategy": {label: own + count},
            "random_state": seed % 2**32,
            ("n_neighbors" if self.options["method"] == "adasyn" else "k_neighbors"): min(
                self.options["neighbours"], own - 1
            ),
        }
        if self.options["method"] == "borderline":
            sampler = library.BorderlineSMOTE(**common)
        elif self.options["method"] == "adasyn":
            sampler = library.ADASYN(**common)
        elif not words.any():
            sampler = library.SMOTE(**common)
        elif words.all():
            sampler = library.SMOTEN(**common)
        else:
            sampler = library.SMOTENC(np.flatnonzero(words).tolist(), **common)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one class has more rows than the majority: that is what was asked for
            try:
                x, _ = sampler.fit_resample(self._matrix, self._labels)
            except (ValueError, RuntimeError) as error:
                raise DataError(
                    f"{self.options['method']} cannot make rows of class {self.fitted.classes[label]!r}: {error}"
                ) from None
        new = np.asarray(x[len(self._matrix) :], np.float64)
        if not len(new):
            raise DataError(f"{self.options['method']} made no row of class {self.fitted.classes[label]!r}.")
        return np.resize(new, (count, new.shape[1]))  # ADASYN makes about as many as are asked for

    def _outputs(self, rows: Floats) -> Table:
        table: Table = {}
        place = 0
        for column in self._columns:
            values = rows[:, place]
            place += 1
            if isinstance(column, Category):
                table[column.name] = np.round(values).astype(np.int64)
                continue
            unit = unit_of(column)
            values = np.round(np.round(values / unit) * unit, 9) if unit else values
            if column.nullable:
                values = np.where(rows[:, place] > 0.5, np.nan, values)
                place += 1
            table[column.name] = values
        return table

    # -- storing -----------------------------------------------------------------------------------------------------

    @property
    def card(self) -> dict[str, Any]:
        return {**super().card, "privacy": "none: the folder holds the real rows, and samples lie between them"}

    def arguments(self) -> dict[str, Any]:
        return {"hparams": dict(self.options)}

    def weights(self) -> dict[str, torch.Tensor]:
        return {"rows": torch.from_numpy(self._matrix), "labels": torch.from_numpy(self._labels)}

    @classmethod
    def _restore(
        cls, fitted: Fitted, arguments: Mapping[str, Any], weights: dict[str, torch.Tensor], device: str
    ) -> Self:
        own = cls(**arguments["hparams"])
        own._fitted = fitted
        own._matrix, own._labels = weights["rows"].numpy(), weights["labels"].numpy()
        return own
