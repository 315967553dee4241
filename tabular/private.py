"""Preparing a table for a fit with differential privacy: a schema and encodings that know nothing that was not paid for.

Models fit their encodings (bins, quantiles, lists of categories) to single columns. A private fit gives them *stand-ins*:
columns drawn from what is declared and from histograms with noise, so that whatever is fitted to them is private. The real
rows are only encoded, and met in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from visynth.core.errors import UsageError, choices, raise_all
from visynth.privacy.accounting import Accountant, Release, check_delta, noise_for, option_problems
from visynth.privacy.secret import key_for, key_of, secret_rng
from visynth.tabular.columns import Category, Column, Number, Values
from visynth.tabular.domain import Declared, read_domain
from visynth.tabular.frames import check_frame, pandas, to_pandas
from visynth.tabular.histograms import SURE, Cells, histograms_of_number, known_categories, number_cells, threshold_for
from visynth.tabular.schema import Schema, Table

if TYPE_CHECKING:
    import pandas as pd

OTHER = "(other)"  # categories that too few rows have to be told
STAND_INS = 20_000  # rows of them
OWN_DELTA = 0.1  # share of delta for lists of categories


@dataclass(frozen=True)
class TablePrivacy:
    """Options of a fit with differential privacy; the unit that is protected is a row.

    Attributes:
        epsilon: of preprocessing and training together.
        delta: by default the largest power of ten below one in the number of rows.
        domain: what is known of columns: a file or a mapping, see :mod:`visynth.tabular.domain`.
        preprocessing: share of epsilon for what is not declared.
        max_grad_norm: length to which a row's gradient is cut.
        accountant: ``"rdp"`` or ``"prv"``.
        physical_batch_size: rows that are held at once in training.
        noise_multiplicity: copies of a row in its batch, each with its own random numbers.
        key_file: where the key of the noise is kept, so that a fit that was killed goes on; None: nowhere.
    """

    epsilon: float
    delta: float | None = None
    domain: str | dict[str, Any] | None = None
    preprocessing: float = 0.15
    max_grad_norm: float = 1.0
    accountant: Accountant = "rdp"
    physical_batch_size: int | None = 256
    noise_multiplicity: int = 1
    key_file: str | None = None

    def __post_init__(self) -> None:
        counts = {"physical_batch_size": self.physical_batch_size, "noise_multiplicity": self.noise_multiplicity}
        problems = option_problems(self.epsilon, self.max_grad_norm, **counts)
        if not 0 < self.preprocessing < 1:
            problems.append(f"preprocessing is a share of epsilon in (0, 1), but got {self.preprocessing}")
        raise_all("privacy", problems, UsageError)


@dataclass(frozen=True)
class PrivateTable:
    """A table that is ready for a private fit.

    Attributes:
        schema: its columns, as declared or learned with noise.
        table: the real rows, bounded and with unknown categories marked.
        stand_ins: columns in place of the real ones, for everything that is fitted but the model.
        releases: what the preparation cost.
        delta: of the whole fit.
        options: as given.
        key: of all noise.
        remarks: for whoever runs the fit, not private: never stored.
    """

    schema: Schema
    table: Table
    stand_ins: Table
    releases: tuple[Release, ...]
    delta: float
    options: TablePrivacy
    key: str
    remarks: tuple[str, ...] = field(default=())


def prepare(
    frame: Any,
    options: TablePrivacy,
    target: str | None,
    kinds: Mapping[str, str] | None = None,
    purpose: str = "",
) -> PrivateTable:
    """The table's schema, rows and stand-ins.

    Args:
        frame: a pandas or polars frame.
        options: of privacy.
        target: the class column; it must be declared with its values.
        kinds: of columns that are not declared; else by their data types, which are taken as known.
        purpose: what is fitted, in words; fits of other purposes, data or options have other noise.

    Raises:
        DataError: columns that cannot be modelled privately; all problems at once.
        UsageError: a domain of other columns, a target that is not declared, a delta that is too large.
    """
    rows, library = to_pandas(frame)
    check_frame(rows)
    domain = read_domain(options.domain)
    _check_names(rows, domain, target, kinds or {})
    delta = check_delta(options.delta, len(rows))
    declared, problems = {}, []
    for name in rows.columns:
        known = domain.get(str(name))
        found = known or _by_dtype(rows[name], (kinds or {}).get(str(name)))
        if isinstance(found, str):
            problems.append(found)
        else:
            declared[str(name)] = found
    raise_all("the table, for a fit with differential privacy,", problems)
    key = key_for(
        key_of(options.key_file), *_purpose(rows, options, domain), purpose, target, sorted((kinds or {}).items())
    )
    lists = sum(not one.is_number and not one.values for one in declared.values())
    release = _release(declared, lists, options, delta)
    worker = _Preparation(release.noise, release.delta / max(lists, 1), key, target)
    columns = [worker.column(rows[name], declared[str(name)], str(name) in domain) for name in rows.columns]
    raise_all("the table", worker.problems)
    schema = Schema(tuple(columns), library)
    return PrivateTable(
        schema, worker.table, worker.stand_ins, (release,) if release.steps else (), delta, options, key,
        tuple(worker.remarks),
    )  # fmt: skip


def _purpose(rows: pd.DataFrame, options: TablePrivacy, domain: Mapping[str, Declared]) -> tuple[object, ...]:
    """What a fit's noise belongs to: the rows and the options."""
    marks = pandas().util.hash_pandas_object(rows.astype(str), index=False).to_numpy()
    said = replace(options, key_file=None, domain=None)
    columns = [(str(name), str(rows[name].dtype)) for name in rows.columns]
    return marks.tobytes().hex(), columns, said, sorted((name, repr(one)) for name, one in domain.items())


def _check_names(
    rows: pd.DataFrame, domain: Mapping[str, Declared], target: str | None, kinds: Mapping[str, str]
) -> None:
    problems = [f"the domain has {name!r}, which is no column" for name in domain if name not in rows.columns]
    problems += [f"kinds names {name!r}, which is no column" for name in kinds if name not in rows.columns]
    problems += [f"{name!r} is declared: leave it out of kinds" for name in kinds if name in domain]
    if target is not None and target not in rows.columns:
        problems.append(f"target {target!r} is no column; the columns are {choices(rows.columns)}")
    elif target is not None and not (target in domain and domain[target].values):
        problems.append(f"declare the target {target!r} with its values: which classes there are must be known")
    raise_all("the domain", problems, UsageError)


def _by_dtype(series: pd.Series, kind: str | None) -> Declared | str:
    """A column by its data type alone, or why it cannot be; its values are not looked at."""
    types = pandas().api.types
    name, dtype = series.name, series.dtype
    nullable = not types.is_integer_dtype(dtype) or types.is_extension_array_dtype(dtype)
    if kind in ("numeric", "integer", "categorical", "boolean"):
        return Declared(kind, nullable=nullable)  # type: ignore[arg-type]
    if kind is not None:
        return f"column {name!r}: a private fit has no {kind} columns; drop it"
    if types.is_bool_dtype(dtype):
        return Declared("boolean", values=(False, True), nullable=types.is_extension_array_dtype(dtype))
    if types.is_integer_dtype(dtype):
        return Declared("integer", nullable=nullable)
    if types.is_float_dtype(dtype):
        return Declared("numeric", nullable=True)
    if types.is_datetime64_any_dtype(dtype):
        return (
            f"column {name!r}: dates are not modelled privately; turn them into numbers (days, seconds), or drop them"
        )
    return Declared("categorical", nullable=True)


def _release(declared: Mapping[str, Declared], lists: int, options: TablePrivacy, delta: float) -> Release:
    """All histograms as one release; of no steps where everything is declared."""
    numbers = sum(histograms_of_number(one.bounds is not None) for one in declared.values() if one.is_number)
    own = OWN_DELTA * delta if lists else 0.0
    noise = 0.0
    if numbers + lists:
        epsilon = options.preprocessing * options.epsilon
        noise = noise_for(epsilon, delta - own, 1.0, numbers + lists, accountant=options.accountant)
    return Release("preprocessing (histograms)", noise, 1.0, numbers + lists, own)


class _Preparation:
    """Column by column: the real values, the stand-ins, and what the operator should hear."""

    def __init__(self, noise: float, own_delta: float, key: str, target: str | None) -> None:
        self.noise, self.own_delta, self.key, self.target = noise, own_delta, key, target
        self.table: Table = {}
        self.stand_ins: Table = {}
        self.remarks: list[str] = []
        self.problems: list[str] = []

    def column(self, series: pd.Series, declared: Declared, known: bool) -> Column:
        """The column of a series; whether a column that is not ``known`` can be missing is learned, too."""
        name = str(series.name)
        generator = secret_rng(self.key, f"preprocessing/{name}")
        gone = np.asarray(series.isna())
        if gone.any() and not declared.nullable and known:
            self.problems.append(
                f"column {name!r} has missing values, but is declared without (nullable: true allows them)"
            )
        if declared.is_number:
            column, values, stand_ins = self._number(series, declared, known, generator)
        else:
            column, values, stand_ins = self._category(series, declared, gone, known, generator)
        self.table[name], self.stand_ins[name] = values, stand_ins
        return column

    def _number(
        self, series: pd.Series, declared: Declared, known: bool, generator: np.random.Generator
    ) -> tuple[Column, Values, Values]:
        name = str(series.name)
        numbers = pandas().to_numeric(series, errors="coerce")
        if bool((numbers.isna() & ~series.isna()).any()):
            self.problems.append(f"column {name!r} is {declared.kind}, but has values that are no numbers")
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if declared.unit:
            values = np.round(values / declared.unit) * declared.unit
        cells = number_cells(values, declared.bounds, declared.unit, self.noise, generator)
        low, high = float(cells.lows[0]), float(cells.highs[-1]) - declared.unit
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            self.remarks.append(f"{name}: {outside} values outside of [{low:g}, {high:g}] count as the nearest end")
        decimals = 0 if declared.kind == "integer" else declared.decimals
        nullable = declared.nullable if known else bool(cells.missing > 0)
        column = Number(name, declared.kind, _dtype(series, nullable), nullable, None, decimals)
        stand_ins = cells.values(STAND_INS) if nullable else _without_gaps(cells).values(STAND_INS)
        if not nullable:
            values = np.where(np.isnan(values), stand_ins[STAND_INS // 2], values)
            self._remark_gaps(series, "count as the median")
        return column, np.clip(values, low, high), stand_ins

    def _remark_gaps(self, series: pd.Series, what: str) -> None:
        gaps = int(series.isna().sum())
        if gaps:
            self.remarks.append(f"{series.name}: {gaps} missing values, too few to be told; they {what}")

    def _category(
        self, series: pd.Series, declared: Declared, gone: Any, known: bool, generator: np.random.Generator
    ) -> tuple[Column, Values, Values]:
        name = str(series.name)
        distinct = sorted({v for v, empty in zip(series.tolist(), gone, strict=True) if not empty}, key=repr)
        place = {value: code for code, value in enumerate(distinct)}
        found = np.array([-1 if empty else place[v] for v, empty in zip(series.tolist(), gone, strict=True)], np.int64)
        missing = 0.0
        if declared.values:
            names, weights = tuple(declared.values), np.ones(len(declared.values))
        else:
            threshold = threshold_for(self.noise, self.own_delta)
            missing = float(gone.sum() + self.noise * generator.standard_normal())
            kept, weights = known_categories(found, len(distinct), self.noise, threshold, generator)
            names = tuple(distinct[code] for code in kept)
            if not names:
                self.problems.append(
                    f"column {name!r}: no category has the {threshold:.0f} rows from which it can be told; declare its values, "
                    "or drop it"
                )
                names, weights = (OTHER,), np.ones(1)
        codes = {value: code for code, value in enumerate(names)}
        unknown = sum(int((found == code).sum()) for value, code in place.items() if value not in codes)
        nullable = declared.nullable if known or declared.values else bool(missing > SURE * self.noise)
        lookup = np.array(
            [*(codes.get(value, len(names)) for value in distinct), -1 if nullable else len(names)], np.int64
        )
        if not nullable:
            self._remark_gaps(series, f"count as {OTHER!r}, which is not sampled")
        if unknown:
            what = "not among the declared values" if declared.values else "in categories that too few have to be told"
            self.remarks.append(f"{name}: {unknown} rows {what}; they count as {OTHER!r}, which is not sampled")
        if unknown and name == self.target:
            self.problems.append(
                f"target {name!r}: {unknown} rows have {choices(v for v in distinct if v not in codes)}, which are not declared"
            )
        if OTHER not in names and name != self.target and series.dtype != bool:
            names = (*names, OTHER)
        other = names[-1] == OTHER
        column = Category(name, declared.kind, _dtype(series, nullable), nullable, None, names, catch_all=other)
        shares = np.append(weights / weights.sum(), 0.0)[: len(names)]
        stand_ins = np.repeat(np.arange(len(names)), np.maximum(np.round(shares * STAND_INS), 1).astype(int))
        return column, lookup[found], np.resize(stand_ins, STAND_INS).astype(np.int64)


def _dtype(series: pd.Series, nullable: bool) -> str:
    """A data type that can hold what is drawn: the frame's own, or one with missing values."""
    types, dtype = pandas().api.types, series.dtype
    if nullable and types.is_bool_dtype(dtype):
        return "boolean"
    if nullable and types.is_integer_dtype(dtype):
        return "Int64"
    return str(dtype)


def _without_gaps(cells: Cells) -> Cells:
    return Cells(cells.lows, cells.highs, cells.shares, 0.0, cells.unit)


def check_kinds(columns: Sequence[Any], named: set[str]) -> None:
    """Refuse columns of a CSV whose kind nobody said.

    Raises:
        UsageError: all of them at once.
    """
    unnamed = [str(name) for name in columns if str(name) not in named]
    if unnamed:
        raise UsageError(
            f"the kinds of columns {choices(unnamed)} would be read off the cells of the CSV, so that one cell may change them: "
            "name them in kinds or in the domain (numeric, integer, categorical, boolean), or give a Parquet file, whose data "
            "types are taken as known."
        )


def check_private_use(network: str, fits_privately: bool, constraints: Sequence[Any], schema: Any) -> None:
    """Refuse models without a private fit, and arguments of a fit that read the rows without paying.

    Raises:
        UsageError: all problems at once.
    """
    problems = []
    if not fits_privately:
        problems.append(f"{network} has no private fit: take 'masked', 'tvae', 'diffusion', 'dp_marginals' or 'dp_aim'")
    if constraints:
        problems.append("constraints are checked on every row, which is a release without a budget: leave them out")
    if schema is not None:
        problems.append("a schema inferred from the rows has their values in it: declare a domain instead")
    raise_all("differential privacy", problems, UsageError)
