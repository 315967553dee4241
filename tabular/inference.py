"""From a frame to its schema: what kind each column is, from its values, unless the user says so."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visynth.core.errors import UsageError, choices, raise_all
from visynth.tabular.columns import (
    EXACT,
    KINDS,
    MICRO,
    Category,
    Column,
    Constant,
    Date,
    Kind,
    Number,
    Text,
    parse_dates,
    to_seconds,
)
from visynth.tabular.frames import check_frame, pandas, to_pandas
from visynth.tabular.identifiers import PERSONAL_NAMES, UUID_TEXT, Identifier, alphabets, personal
from visynth.tabular.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (
    "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%Y%m%d", "%d.%m.%Y",
    "%d.%m.%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d-%m-%Y", "%m-%d-%Y",
)  # fmt: skip
ABSENT = ("", "?", "na", "n/a", "nan", "null", "none", "-", "unknown", "missing")  # lower case, of text among numbers
YEARS = (1900, 2100)  # of whole numbers that may be dates
DECIMALS = 8
MOSTLY_NUMBERS = 0.5  # share of numbers among text from which the rest needs an explanation
WORDS = 30  # characters on average from which unique text is prose
UNIQUE = 0.95  # share of distinct values above which text is no category
ROWS_FOR_IDS = 20
STYLES: tuple[Literal["fixed", "point", "plain"], ...] = ("fixed", "point", "plain")


def infer(frame: Any, kinds: Mapping[str, Kind] | None = None, target: str | None = None) -> Schema:
    """The schema of a frame.

    Args:
        frame: a pandas or polars data frame.
        kinds: of columns, where the user knows better: numeric, integer, categorical, boolean, datetime, id, text or
            constant.
        target: a column that is a class, whatever its values look like.

    Raises:
        DataError: the frame cannot be modelled, or a column does not hold what ``kinds`` says; all problems at once.
        UsageError: ``kinds`` names an unknown column or kind.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"day": [20240131, 20240201], "code": ["007", "008"]})
        >>> [(c.name, c.kind) for c in infer(frame, {"code": "categorical"}).columns]
        [('day', 'datetime'), ('code', 'categorical')]
    """
    rows, library = to_pandas(frame)
    check_frame(rows)
    wanted = dict(kinds or {})
    unknown = [f"kinds names {name!r}, which is no column" for name in wanted if name not in rows.columns]
    unknown += [
        f"kind {kind!r} of column {name!r} is none of {choices(KINDS)}"
        for name, kind in wanted.items()
        if kind not in KINDS
    ]
    if target is not None and target not in rows.columns:
        unknown.append(f"target {target!r} is no column")
    raise_all(f"the schema (columns {choices(rows.columns)})", unknown, UsageError)
    if target is not None and target not in wanted:
        wanted[target] = "categorical"
    columns, notes, problems = [], [], []
    for name in rows.columns:
        try:
            column, note = _column(rows[name], wanted.get(name))
        except ValueError as error:  # ours among them
            problems.append(str(error).rstrip("."))
            continue
        columns.append(column)
        notes += [f"{name}: {note}"] if note else []
    raise_all("the table", problems)
    return Schema(tuple(columns), library, tuple(notes))


def _column(series: pd.Series, kind: Kind | None) -> tuple[Column, str]:
    """A column and what should be said of it."""
    pd, name, dtype = pandas(), str(series.name), str(series.dtype)
    present = series.dropna()
    if kind is not None:
        return _declared(series, kind), ""
    nullable = len(present) < len(series)
    if present.empty:
        return Constant(name, "constant", dtype, nullable=True), "no value in any row"
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _category(series, "categorical"), ""
    if present.nunique() == 1 and not nullable and len(series) > 1:
        return Constant(name, "constant", dtype, value=_plain(present.iloc[0])), f"always {present.iloc[0]!r}"
    if pd.api.types.is_bool_dtype(series.dtype) or present.map(lambda v: isinstance(v, (bool, np.bool_))).all():
        return _category(series, "boolean"), ""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return _date(series, None), ""
    if pd.api.types.is_numeric_dtype(series.dtype):
        return _of_numbers(series, present)
    if not isinstance(present.iloc[0], str):
        numeric = isinstance(present.iloc[0], (int, float, np.number))
        if not numeric and not present.map(lambda v: type(v) is datetime.date).all():
            raise ValueError(
                f"column {series.name!r} holds points in time as objects: convert it with pandas.to_datetime"
            )
        return (_number(series), "") if numeric else (_date(series, None), "")
    return _of_text(series, present)


def _declared(series: pd.Series, kind: Kind) -> Column:
    makers: dict[Kind, Callable[[pd.Series], Column]] = {
        "numeric": _number,
        "integer": _number,
        "categorical": lambda s: _category(s, "categorical"),
        "boolean": lambda s: _category(s, "boolean"),
        "datetime": lambda s: _date(s, _date_format(s)[0]),
        "id": _identifier,
        "text": lambda s: Text(str(s.name), "text", str(s.dtype), bool(s.isna().any())),
        "constant": _constant,
    }
    column = makers[kind](series)
    if kind == "boolean" and len(getattr(column, "categories", ())) > 2:
        raise ValueError(f"column {series.name!r} was declared boolean, but has more than two values")
    if kind == "integer" and column.kind != "integer":
        raise ValueError(f"column {series.name!r} was declared integer, but has fractions")
    return column


def _constant(series: pd.Series) -> Constant:
    present = series.dropna()
    value = _plain(present.iloc[0]) if len(present) else None
    if present.nunique() > 1 or 0 < len(present) < len(series):
        raise ValueError(f"column {series.name!r} was declared constant, but has more than one value")
    return Constant(str(series.name), "constant", str(series.dtype), nullable=value is None, value=value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _of_numbers(series: pd.Series, present: pd.Series) -> tuple[Column, str]:
    values = present.to_numpy(dtype=np.float64)
    if not _is_float(series) and present.is_unique and len(present) > 1 and np.abs(values).max() > EXACT:
        return _identifier(series), "whole numbers that are all different and beyond 2**53: regenerated"
    column = _number(series)
    if column.kind == "integer":
        values = present.to_numpy(dtype=np.float64)
        counts_rows = _is_sequence(values) and not _is_float(series) and (np.diff(values) > 0).all()
        if counts_rows:
            return _identifier(series), "a running number: regenerated"
        if (
            present.is_unique
            and len(present) >= ROWS_FOR_IDS
            and str(series.name).lower().endswith(("id", "key", "uuid"))
        ):
            return _identifier(series), "an identifier by its name and values: regenerated"
        if YEARS[0] * 10000 <= values.min() and values.max() <= YEARS[1] * 10000:
            seconds = to_seconds(parse_dates(present, "%Y%m%d"))
            if not np.isnan(seconds).any():
                return _date(series, "%Y%m%d"), "whole numbers that are dates as YYYYMMDD"
    return column, ""


def _is_float(series: pd.Series) -> bool:
    return bool(pandas().api.types.is_float_dtype(series.dtype))


def _is_sequence(values: np.ndarray[Any, Any]) -> bool:
    return len(values) >= ROWS_FOR_IDS and len(np.unique(values)) == len(values) == values.max() - values.min() + 1


def _of_text(series: pd.Series, present: pd.Series) -> tuple[Column, str]:
    words = present.tolist()
    number = _text_number(series, present)
    if number is not None:
        return number, "numbers that are written as text" + (
            f", missing as {number.missing!r}" if number.missing is not None else ""
        )
    form, note = _date_format(series)
    if form is not None:
        return _date(series, form), note
    what = personal(words) if len(words) >= 3 else None
    if what is not None:
        return _identifier(series), f"looks like {what}: personal data are regenerated, not modelled"
    distinct = present.nunique()
    if distinct == len(words) and len(words) >= ROWS_FOR_IDS:
        if alphabets(words):
            return _identifier(series), "an identifier, different in every row: regenerated"
        if PERSONAL_NAMES.search(str(series.name)):
            return _identifier(series), "personal data by its name: regenerated, not modelled"
    if PERSONAL_NAMES.search(str(series.name)) and distinct > max(ROWS_FOR_IDS, 0.2 * len(words)):
        return _identifier(series), "personal data by its name: regenerated, not modelled"
    long = float(np.mean([len(word) for word in words])) >= WORDS
    if len(words) >= ROWS_FOR_IDS and (distinct > UNIQUE * len(words) or (long and distinct > 0.5 * len(words))):
        return (
            Text(str(series.name), "text", str(series.dtype), True),
            "free text: not modelled, and empty in samples; declare it categorical if it is a class",
        )
    return _category(series, "categorical"), ""


def _text_number(series: pd.Series, present: pd.Series) -> Number | None:
    """A column of numbers that are written as text, or None.

    Raises:
        ValueError: most are numbers, and what the others mean is not known.
    """
    pd = pandas()
    numbers = pd.to_numeric(
        present.where(~present.str.match(r"\s*[+-]?0\d|\s*\+|.*[_a-df-zA-DF-Z\s]")), errors="coerce"
    )
    share = float(numbers.notna().mean())
    if share < MOSTLY_NUMBERS or not np.isfinite(numbers.dropna()).all():
        return None
    others = present[numbers.isna()]
    spellings = others.unique().tolist()
    strange = [word for word in spellings if word.strip().lower() not in ABSENT]
    if share > 0.98 and strange and len(strange) <= 20:
        rows = [int(row) for row in others.index[others.isin(strange)][:5]]
        raise ValueError(
            f"column {series.name!r} has mixed types: {share:.1%} numbers, but {choices(strange[:3])} in rows {rows}. Mend these, "
            "or declare it categorical"
        )
    if strange or len(spellings) + bool(series.isna().any()) > 1:
        return None
    dtype, missing = str(series.dtype), spellings[0] if spellings else None
    values, texts = numbers.dropna().astype(float), present[numbers.notna()]
    nullable = len(texts) < len(series)
    if (values == np.round(values)).all() and values.abs().max() <= EXACT:
        number = Number(str(series.name), "integer", dtype, nullable, missing, 0, written=True)
        if texts.tolist() == [number.text(v) for v in values]:
            return number
    lengths = {len(text.partition(".")[2]) for text in texts}
    decimals = _decimals(values.to_numpy())
    for style in STYLES:
        digits = max(lengths) if style == "fixed" else decimals
        number = Number(str(series.name), "numeric", dtype, nullable, missing, digits, style, True)
        if texts.tolist() == [number.text(v) for v in number.rounded(values.to_numpy())]:
            return number
    return None


def _number(series: pd.Series) -> Number:
    pd, name, dtype = pandas(), str(series.name), str(series.dtype)
    present = series.dropna()
    if len(present) and isinstance(present.iloc[0], str):
        number = _text_number(series, series.dropna())
        if number is None:
            raise ValueError(f"column {name!r} was declared a number, but its text is not that of numbers")
        return number
    values = pd.to_numeric(series.dropna()).to_numpy(dtype=np.float64)
    nullable = len(values) < len(series)
    if (values == np.round(values)).all() and (not len(values) or np.abs(values).max() <= EXACT):
        return Number(name, "integer", dtype, nullable, None, 0)
    if pd.api.types.is_integer_dtype(series.dtype):
        raise ValueError(
            f"column {name!r} has whole numbers beyond 2**53, which are not exact: declare it id or categorical"
        )
    return Number(name, "numeric", dtype, nullable, None, _decimals(values))


def _decimals(values: np.ndarray[Any, Any]) -> int | None:
    """Digits after the point that all values have at most, or None where there is no such small number."""
    for digits in range(DECIMALS + 1):
        if (np.round(values, digits) == values).all():
            return digits
    return None


def _category(series: pd.Series, kind: Kind) -> Category:
    pd, dtype = pandas(), str(series.dtype)
    if isinstance(series.dtype, pd.CategoricalDtype):
        values = [_plain(v) for v in series.cat.categories]
        _check_plain(series, values)
        return Category(
            str(series.name), kind, "category", bool(series.isna().any()), None, tuple(values), bool(series.cat.ordered)
        )
    found = {_plain(value) for value in series.dropna().unique()}
    _check_plain(series, found)
    return Category(str(series.name), kind, dtype, bool(series.isna().any()), None, tuple(sorted(found, key=_order)))


def _check_plain(series: pd.Series, values: Iterable[Any]) -> None:
    strange = next((value for value in values if not isinstance(value, (str, int, float, bool))), None)
    if strange is not None:
        kind = type(strange).__name__
        raise ValueError(f"column {series.name!r} has categories of type {kind}: convert it with astype(str)")


def _order(value: Any) -> tuple[str, Any]:
    return ("number", float(value)) if isinstance(value, (int, float)) else ("text", str(value))


def _date(series: pd.Series, form: str | None) -> Date:
    seconds = to_seconds(parse_dates(series, form))
    if form is None and str(series.dtype) == "object":
        seconds = to_seconds(pandas().to_datetime(series))
    present = seconds[~np.isnan(seconds)]
    step = next((s for s in (86400.0, 60.0, 1.0) if (present % s == 0).all()), MICRO)
    return Date(str(series.name), "datetime", str(series.dtype), bool(series.isna().any()), None, form, step)


def _date_format(series: pd.Series) -> tuple[str | None, str]:
    """The format that all dates of a column are written in, and a note where two would do."""
    pd = pandas()
    if not pd.api.types.is_string_dtype(series.dtype) and not pd.api.types.is_integer_dtype(series.dtype):
        return None, ""
    words = series.dropna().astype("string")
    sample = words.iloc[:50]
    fitting = [form for form in FORMATS if _written_in(sample, form)]
    fitting = [form for form in fitting if _written_in(words, form)]
    if not fitting:
        return None, ""
    note = f"dates could be {fitting[0]} or {fitting[1]}: taken as the first" if len(fitting) > 1 else ""
    return fitting[0], note


def _written_in(words: pd.Series, form: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = parse_dates(words, form)
    return bool(len(words)) and bool(times.notna().all()) and bool((times.dt.strftime(form) == words).all())


def _identifier(series: pd.Series) -> Identifier:
    name, dtype, present = str(series.name), str(series.dtype), series.dropna()
    if present.empty:
        raise ValueError(f"column {name!r} was declared id, but is empty: declare it constant")
    if not isinstance(present.iloc[0], str):
        if not pandas().api.types.is_numeric_dtype(series.dtype):
            raise ValueError(f"column {name!r} was declared id, but holds {dtype}: ids are text or whole numbers")
        return Identifier(name, "id", dtype, style="sequence", start=int(present.max()) + 1)
    words = present.tolist()
    if all(UUID_TEXT.fullmatch(word) for word in words):
        return Identifier(name, "id", dtype, style="uuid")
    if personal(words) == "an e-mail address":
        return Identifier(name, "id", dtype, style="email")
    places = alphabets(words)
    if places:
        return Identifier(name, "id", dtype, style="pattern", alphabets=places)
    return Identifier(name, "id", dtype, style="label")
