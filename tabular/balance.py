"""Balancing a table: synthetic rows beside the real ones, in the words that images are balanced with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from visynth.core import balance as balancing
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category
from visynth.tabular.frames import in_library, pandas, to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.masked import Masked


def check_unmarked(columns: Iterable[str]) -> None:
    """Refuse a table that has a column 'synthetic' of its own.

    Raises:
        UsageError: it has one.
    """
    if "synthetic" in columns:
        raise UsageError("the table has a column 'synthetic', which would mark the synthetic rows: rename or drop it.")


def oversample(
    frame: Any,
    *,
    target: str,
    balance: balancing.Balance = "not majority",
    to: int | None = None,
    only: Sequence[str] | None = None,
    generator: Synthesizer | None = None,
    seed: int = 0,
    **arguments: Any,
) -> Any:
    """Real rows and synthetic ones that balance the classes, with a boolean column ``synthetic``.

    Args:
        frame: real rows, pandas or polars.
        target: the class column.
        balance: how much, in the words of :func:`visynth.core.balance.targets`.
        to: fill classes up to this many rows instead of up to the majority.
        only: classes to fill, by default all that ``balance`` names.
        generator: fitted to this table; by default :class:`Masked` is fitted, with ``arguments``.
        seed: of the fit and the sample.
        arguments: of the generator that is fitted.

    Returns:
        A frame of the same library: all real rows, then the synthetic ones.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": range(40), "y": ["a"] * 30 + ["b"] * 10})
        >>> oversample(frame, target="y", steps=2)["y"].value_counts().to_dict()
        {'a': 30, 'b': 30}
    """
    pd = pandas()
    rows, library = to_pandas(frame)
    check_unmarked(rows.columns)
    if generator is not None and generator.fitted.target != target:
        raise UsageError(f"the generator was fitted with target {generator.fitted.target!r}, not {target!r}.")
    schema = infer(rows, None, target) if generator is None else generator.schema
    column = schema[target]
    assert isinstance(column, Category)
    codes = column.parse(rows[target])
    if (codes < 0).any():
        raise DataError(f"target {target!r} has {int((codes < 0).sum())} missing values: leave these rows out.")
    counts = np.bincount(codes, minlength=len(column.categories))
    by_name = {str(value): int(n) for value, n in zip(column.categories, counts, strict=True)}
    wanted = balancing.targets(balance, by_name, to=to)
    if generator is None:  # a training takes minutes: all that can be refused has been
        generator = Masked(**{"seed": seed, **arguments}).fit(rows, target=target, schema=schema)
    own = {
        v: n
        for v, (name, n) in zip(column.categories, wanted.items(), strict=True)
        if n and (only is None or name in only)
    }
    pieces = [rows.assign(synthetic=False)]
    if own:
        drawn = generator.stream_classes(own, seed=seeding.derive("oversample", seed), real=rows)
        pieces += [to_pandas(piece)[0].assign(synthetic=True) for piece in drawn]
    return in_library(pd.concat(pieces, ignore_index=True), library)
