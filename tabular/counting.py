"""Two generators that only count: the baselines that stand beside every score.

*Independent marginals* draws every column by itself. *Gaussian copula* draws normal numbers with the correlations that the
columns' ranks have, and turns each into a value by its column's cumulative distribution: Nelsen, "An introduction to
copulas" (2006), section 2.10; given columns are conditioned on exactly, by the Schur complement. What does not beat both
has learned nothing that counting does not give.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from visynth.core.errors import UsageError
from visynth.core.progress import Progress
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.discrete import Discretizer, Field, NumberCodec
from visynth.tabular.draws import Draw
from visynth.tabular.fitted import Fitted
from visynth.tabular.private import PrivateTable
from visynth.tabular.schema import Table

EPSILON = 1e-9
RIDGE = 1e-6  # added to the correlation matrix, so that columns that follow from others do no harm


class Counting(Synthesizer):
    """A generator over discretised columns that needs no training.

    Args:
        most_bins: bins of a number at most.
        rare_below: rows that a category or bin needs.
        seed: of what is drawn in the fit.
    """

    imputes = True

    def __init__(self, most_bins: int = 100, rare_below: int = 5, seed: int = 0) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"most_bins": most_bins, "rare_below": rare_below, "seed": seed}
        self._discretizer: Discretizer | None = None
        self._tensors: dict[str, NDArray[Any]] = {}

    @property
    def discretizer(self) -> Discretizer:
        """How columns become codes. A UsageError before the fit."""
        if self._discretizer is None:
            raise UsageError(f"this {type(self).__name__} has not been fitted: call fit(frame), or load one.")
        return self._discretizer

    def _fit(self, table: Table, progress: Progress, **training: Any) -> None:
        private: PrivateTable | None = training.pop("private", None)
        if training:
            raise UsageError(f"{self.network} is not trained: fit takes no {next(iter(training))!r}.")
        options, fitted = self.options, self.fitted
        self._discretizer = Discretizer.of(
            fitted.model_schema,
            table if private is None else private.stand_ins,
            most=options["most_bins"],
            least=options["rare_below"],
            keep=fitted.kept_whole,
        )
        if private is None:
            self.add_notes(self._discretizer.notes(table))
        self._tensors = self._count(self._discretizer.encode(table), private, progress)

    @abstractmethod
    def _count(
        self, codes: NDArray[np.int32], private: PrivateTable | None, progress: Progress
    ) -> dict[str, NDArray[Any]]:
        """What is kept of the encoded table."""

    def arguments(self) -> dict[str, Any]:
        return {"hparams": dict(self.options), "encoding": {"codecs": self.discretizer.to_json()}}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in self._tensors.items()}

    @classmethod
    def _restore(
        cls, fitted: Fitted, arguments: Mapping[str, Any], weights: dict[str, torch.Tensor], device: str
    ) -> Self:
        own = cls(**arguments["hparams"])
        own._fitted, own._discretizer = fitted, Discretizer.from_json(arguments["encoding"]["codecs"])
        own._tensors = {name: tensor.numpy() for name, tensor in weights.items()}
        return own

    def _decoded(self, codes: NDArray[np.int64], u: Floats, conditions: Conditions) -> Table:
        return conditions.written_over(self.discretizer.decode(codes.astype(np.int32), u))


class IndependentMarginals(Counting):
    """Every column by itself, as often as in the data.

    Args:
        most_bins: bins of a number at most.
        rare_below: rows that a category or bin needs.
        seed: has no effect; every generator takes one.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": ["a"] * 30 + ["b"] * 10})
        >>> bool(0.6 < (IndependentMarginals().fit(frame).sample(1000)["x"] == "a").mean() < 0.9)
        True
    """

    network = "marginals"
    fits_by = "counting each column by itself"

    def _count(
        self, codes: NDArray[np.int32], private: PrivateTable | None, progress: Progress
    ) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        for number, codec in enumerate(self.discretizer.codecs):
            own = codes[:, list(self.discretizer.places[codec.name])]
            for place, field in enumerate(codec.fields):
                own = own[~np.isin(own[:, place], field.never)]
            values, counts = np.unique(own, axis=0, return_counts=True)
            tensors |= {f"values.{number}": values.astype(np.int32), f"counts.{number}": counts.astype(np.int64)}
        return tensors

    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        count = len(self.discretizer.fields)
        u = draw.uniforms(len(self.discretizer.codecs) + count, "marginals")
        parts = []
        for number, codec in enumerate(self.discretizer.codecs):
            values, counts = self._tensors[f"values.{number}"], self._tensors[f"counts.{number}"].astype(np.float64)
            if codec.name in conditions.allowed:
                allowed = conditions.allowed[codec.name]
                masks = codec.within(allowed.holds, *allowed.ends)
                legal = np.all([mask[values[:, place]] for place, mask in enumerate(masks)], axis=0)
                counts = counts * legal if legal.any() else counts
            cumulative = np.cumsum(counts)
            picked = np.searchsorted(cumulative, u[:, number] * cumulative[-1], side="right")
            parts.append(values[np.minimum(picked, np.flatnonzero(counts)[-1])])
        return self._decoded(np.concatenate(parts, axis=1), u[:, len(self.discretizer.codecs) :], conditions)


class GaussianCopula(Counting):
    """Normal numbers with the correlations of the columns' ranks.

    Args:
        most_bins: bins of a number at most.
        rare_below: rows that a category or bin needs.
        seed: of the ranks of equal values.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": np.arange(400.0), "y": np.arange(400.0) ** 2})
        >>> sample = GaussianCopula().fit(frame).sample(400)
        >>> bool(sample.corr()["x"]["y"] > 0.9)
        True
    """

    network = "copula"
    fits_by = "ranks and their correlations"

    def _count(
        self, codes: NDArray[np.int32], private: PrivateTable | None, progress: Progress
    ) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        ladders = [self._ladder(number) for number in range(len(self.discretizer.fields))]
        for number, (order, field) in enumerate(zip(ladders, self.discretizer.fields, strict=True)):
            counts = np.bincount(codes[:, number], minlength=field.size)
            tensors[f"counts.{number}"] = counts.astype(np.int64)
            tensors[f"order.{number}"] = order
        self._tensors = tensors
        u = np.random.default_rng(self.options["seed"]).random(codes.shape)
        normal = np.stack([ndtri(self._uniform(n, codes[:, n], u[:, n])) for n in range(codes.shape[1])], axis=1)
        correlation = np.corrcoef(normal, rowvar=False).reshape(codes.shape[1], codes.shape[1])
        correlation = (np.nan_to_num(correlation) + RIDGE * np.eye(len(correlation))) / (1 + RIDGE)
        np.fill_diagonal(correlation, 1.0)
        return tensors | {"correlation": correlation}

    def _ladder(self, number: int) -> NDArray[np.int64]:
        """Codes of a field in the order in which its cumulative distribution rises: missing, then numbers by value."""
        field: Field = self.discretizer.fields[number]
        codec = self.discretizer.by_column[field.column]
        if isinstance(codec, NumberCodec):
            lows, _ = codec.bins.span()
            by_value = np.argsort(lows, kind="stable") + codec.nullable
            return np.concatenate([np.arange(int(codec.nullable)), by_value]).astype(np.int64)
        return np.arange(field.size, dtype=np.int64)

    def _steps(self, number: int) -> tuple[NDArray[np.int64], Floats]:
        """A field's codes in rising order, and the upper end of each one's interval in (0, 1]."""
        order, counts = self._tensors[f"order.{number}"], self._tensors[f"counts.{number}"].astype(np.float64)
        cumulative = np.cumsum(counts[order])
        return order, cumulative / cumulative[-1]

    def _uniform(self, number: int, codes: NDArray[Any], u: Floats) -> Floats:
        """A place in each code's interval of the cumulative distribution."""
        order, ends = self._steps(number)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        high = ends[rank[codes]]
        low = np.concatenate([[0.0], ends])[rank[codes]]
        return np.asarray(np.clip(low + u * (high - low), EPSILON, 1 - EPSILON))

    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        count = len(self.discretizer.fields)
        z = draw.normals(count, "copula")
        u = draw.uniforms(2 * count, "copula/inside")
        known = np.zeros((len(draw.keys), count), bool)
        normal = np.zeros((len(draw.keys), count))
        for name, (values, given) in conditions.fixed.items():
            if name not in self.discretizer.places:
                continue
            codes = self.discretizer.by_column[name].encode(values)
            for place, field in enumerate(self.discretizer.places[name]):
                known[:, field] = given
                normal[:, field] = ndtri(self._uniform(field, codes[:, place], u[:, field]))
        normal = _given_known(z, normal, known, self._tensors["correlation"])
        codes, inside = self._codes(ndtr(normal), u[:, count:])
        return self._decoded(codes, inside, conditions)

    def _codes(self, uniform: Floats, u: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Codes of places in the cumulative distributions, and where inside each code's interval they lie."""
        codes, inside = np.empty(uniform.shape, np.int64), u.copy()
        for number, field in enumerate(self.discretizer.fields):
            order, ends = self._steps(number)
            rank = np.minimum(np.searchsorted(ends, uniform[:, number], side="right"), len(order) - 1)
            codes[:, number] = order[rank]
            low = np.concatenate([[0.0], ends])[rank]
            inside[:, number] = np.clip(
                (uniform[:, number] - low) / np.maximum(ends[rank] - low, EPSILON), EPSILON, 1 - EPSILON
            )
            parent = self.discretizer.parent(number)
            if parent is not None:
                limits = np.array(field.limits)[codes[:, parent]]
                codes[:, number] = np.minimum(codes[:, number], limits - 1)
            for never in field.never:
                codes[codes[:, number] == never, number] = int(order[-1] if order[-1] != never else order[0])
        return codes, inside


def _given_known(z: Floats, normal: Floats, known: NDArray[np.bool_], correlation: Floats) -> Floats:
    """Normal numbers ``[N, D]`` with a correlation, given some of each row's."""
    result = np.empty_like(z)
    patterns, which = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.reshape(-1) == number)
        free, held = np.flatnonzero(~pattern), np.flatnonzero(pattern)
        result[np.ix_(rows, held)] = normal[np.ix_(rows, held)]
        if not len(free):
            continue
        inner = correlation[np.ix_(free, free)]
        mean = np.zeros((len(rows), len(free)))
        if len(held):
            across = np.linalg.solve(correlation[np.ix_(held, held)], correlation[np.ix_(held, free)])
            mean = normal[np.ix_(rows, held)] @ across
            inner = inner - correlation[np.ix_(free, held)] @ across
        values, vectors = np.linalg.eigh(inner)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        result[np.ix_(rows, free)] = mean + z[np.ix_(rows, free)] @ root.T
    return result
