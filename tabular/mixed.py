"""A table as codes and real numbers: what networks with continuous outputs see.

A category column becomes one or two fields, as in :mod:`visynth.tabular.discrete`. A number or date column becomes a *state*
field (missing, one of its spikes, or one of its modes) and, unless all its values are spikes, a real number that says where
in the mode the value lies. Modes are those of a Gaussian mixture: "mode-specific normalisation", Xu et al., "Modeling
tabular data using conditional GAN" (NeurIPS 2019), section 4.2; or there is one mode, the quantiles turned normal.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from visynth.core import seeds as seeding
from visynth.tabular.columns import Category, Codes, Column, Floats, Values
from visynth.tabular.discrete import CategoryCodec, Discretizer, Field, OfFields, unit_of
from visynth.tabular.schema import Schema, Table

Scaling = Literal["modes", "quantiles"]
SPIKE = 0.05  # share of a column's rows with one value from which it is a state of its own
FEW = 20  # distinct values up to which all are states
MODES = 10  # of a mixture at most (Xu et al., section 4.2)
MODE_WEIGHT = 0.005  # of a mode that is kept
MODE_SPAN = 4.0  # standard deviations that become 1
MIXTURE_ROWS = 10_000
NORMAL_EDGE = 1e-3


@dataclass(frozen=True)
class MixedNumber:
    """A number or date column.

    Attributes:
        name: of the column.
        nullable: whether values can be missing.
        spikes: values that are states.
        modes: (mean, standard deviation) of each mode; or one, unused, with ``quantiles``; empty where all are spikes.
        quantiles: of the values that are no spikes; empty with Gaussian modes.
        span: lowest and highest value of samples.
        unit: smallest step between two values; 0 for any real number.
    """

    name: str
    nullable: bool
    spikes: tuple[float, ...]
    modes: tuple[tuple[float, float], ...]
    quantiles: tuple[float, ...]
    span: tuple[float, float]
    unit: float

    @property
    def fields(self) -> tuple[Field, ...]:
        return (Field(self.name, self.nullable + len(self.spikes) + len(self.modes)),)

    @property
    def first(self) -> int:
        """State of the first mode."""
        return self.nullable + len(self.spikes)

    def encode(self, values: Floats, generator: np.random.Generator) -> tuple[Codes, NDArray[np.float32]]:
        """States ``[N]`` and places ``[N]``; a value between two modes goes to either by its probability."""
        gone = np.isnan(values)
        states, places = np.zeros(len(values), np.int64), np.zeros(len(values), np.float32)
        spikes = np.array(self.spikes)
        rank = np.searchsorted(spikes, values)
        is_spike = np.zeros(len(values), bool)
        if len(spikes):
            is_spike = (spikes[np.minimum(rank, len(spikes) - 1)] == values) & ~gone
            states[is_spike] = rank[is_spike] + self.nullable
        rest = ~gone & ~is_spike
        if not self.modes:  # a value that is none of the spikes: the nearest
            states[rest] = np.abs(values[rest][:, None] - spikes[None]).argmin(1) + self.nullable
        elif self.quantiles:
            states[rest] = self.first
            places[rest] = ndtri(np.clip(self._share(values[rest]), NORMAL_EDGE, 1 - NORMAL_EDGE))
        elif rest.any():
            mean, spread = np.array(self.modes).T
            scores = -0.5 * ((values[rest][:, None] - mean) / spread) ** 2 - np.log(spread)
            picked = (scores + generator.gumbel(size=scores.shape)).argmax(1)
            states[rest] = picked + self.first
            places[rest] = np.clip((values[rest] - mean[picked]) / (MODE_SPAN * spread[picked]), -0.99, 0.99)
        return states, places

    def _share(self, values: Floats) -> Floats:
        return np.interp(values, self.quantiles, np.linspace(0, 1, len(self.quantiles)))

    def decode(self, states: Codes, places: Floats) -> Floats:
        """Values of states and places."""
        lookup = np.concatenate([[np.nan] * self.nullable, self.spikes, [0.0] * len(self.modes)])
        values = lookup[states]
        inside = states >= self.first
        if self.quantiles:
            own = np.interp(ndtr(places), np.linspace(0, 1, len(self.quantiles)), self.quantiles)
        elif self.modes:
            mean, spread = np.array(self.modes).T
            picked = np.maximum(states - self.first, 0)
            own = mean[picked] + MODE_SPAN * spread[picked] * places
        else:
            return values
        if self.unit:
            own = np.round(np.round(own / self.unit) * self.unit, 9)
        return np.where(inside, np.clip(own, *self.span), values)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "modes": [list(mode) for mode in self.modes]}

    @classmethod
    def of(cls, column: Column, values: Floats, scaling: Scaling, least: int, seed: int) -> MixedNumber:
        """Fitted to a column's values."""
        present = np.sort(values[~np.isnan(values)])
        distinct, counts = np.unique(present, return_counts=True)
        enough = counts >= (least if len(distinct) <= FEW else max(SPIKE * len(present), least))
        spikes = distinct[enough]
        rest = present[~np.isin(present, spikes)]
        own = cls(column.name, column.nullable, tuple(map(float, spikes)), (), (), (0.0, 0.0), unit_of(column))
        if len(rest) < least and len(spikes):  # too few for a mode: they go to the nearest spike
            return own
        if not len(rest):
            return replace(own, spikes=(0.0,))
        drawn_in = least if len(rest) >= 20 * least else 1
        span = float(rest[drawn_in - 1]), float(rest[-drawn_in])
        if scaling == "quantiles":
            knots = np.quantile(rest, np.linspace(0, 1, max(min(len(rest) // 30, 1000), 10)))
            return replace(own, modes=((0.0, 1.0),), quantiles=tuple(map(float, knots)), span=span)
        return replace(own, modes=_mixture(rest, seed), span=span)


def _mixture(values: Floats, seed: int) -> tuple[tuple[float, float], ...]:
    """(mean, standard deviation) of a variational Gaussian mixture's modes that carry weight."""
    from sklearn.mixture import BayesianGaussianMixture

    if len(np.unique(values)) < 3:
        return ((float(values.mean()), float(values.std()) or 1.0),)
    if len(values) > MIXTURE_ROWS:
        values = values[seeding.rng(seed, "tabular/mixture").permutation(len(values))[:MIXTURE_ROWS]]
    center, scale = float(values.mean()), float(values.std()) or 1.0
    model = BayesianGaussianMixture(
        n_components=min(MODES, len(np.unique(values))),
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=0.001,
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: near enough for a scale
        model.fit(((values - center) / scale)[:, None])
    spreads = np.sqrt(model.covariances_.reshape(-1))
    kept = model.weights_ > MODE_WEIGHT
    pairs = zip(model.means_.reshape(-1)[kept], spreads[kept], strict=True)
    return tuple((float(center + scale * mean), float(scale * max(spread, 1e-3))) for mean, spread in pairs)


@dataclass(frozen=True)
class Mixed(OfFields):
    """All modelled columns of a table as codes and places.

    Example:
        >>> import pandas
        >>> from visynth.tabular.inference import infer
        >>> frame = pandas.DataFrame({"x": [k / 7 for k in range(200)], "c": ["a", "b"] * 100})
        >>> schema = infer(frame)
        >>> mixed = Mixed.of(schema, schema.table(frame), "quantiles")
        >>> codes, places = mixed.encode(schema.table(frame))
        >>> [field.size for field in mixed.fields], places.shape, mixed.numbers
        ([1, 2], (200, 1), [0])
    """

    codecs: tuple[MixedNumber | CategoryCodec, ...]

    @classmethod
    def of(
        cls, schema: Schema, table: Table, scaling: Scaling, *, least: int = 5, keep: Sequence[str] = (), seed: int = 0
    ) -> Mixed:
        """Fitted to a table; see :meth:`Discretizer.of` for the arguments and errors."""
        words = Discretizer.of(
            schema.only([c.name for c in schema.modelled if isinstance(c, Category)]), table, least=least, keep=keep
        ).by_column
        codecs = []
        for column in schema.modelled:
            codec = words.get(column.name)
            codecs.append(
                codec
                if isinstance(codec, CategoryCodec)
                else MixedNumber.of(column, table[column.name], scaling, least, seed)
            )
        return cls(tuple(codecs))

    @cached_property
    def numbers(self) -> list[int]:
        """Fields whose codes go with a place, in the order of the places."""
        return [self.places[c.name][0] for c in self.codecs if isinstance(c, MixedNumber) and c.modes]

    @cached_property
    def words(self) -> list[int]:
        """Fields of category columns that conditions can name: the first of each column."""
        return [self.places[c.name][0] for c in self.codecs if isinstance(c, CategoryCodec)]

    def encode(self, table: Mapping[str, Values], seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Codes int32 ``[N, fields]`` and places float32 ``[N, numbers]``."""
        codes, places = [], []
        for codec in self.codecs:
            if isinstance(codec, CategoryCodec):
                codes.append(codec.encode(table[codec.name]))
                continue
            generator = seeding.rng(seed, f"tabular/modes/{codec.name}")
            states, place = codec.encode(table[codec.name], generator)
            codes.append(states[:, None])
            places += [place] if codec.modes else []
        rows = len(codes[0])
        joined = np.stack(places, axis=1) if places else np.zeros((rows, 0), np.float32)
        return np.concatenate(codes, axis=1).astype(np.int32), joined

    def decode(self, codes: NDArray[np.int64], places: Floats) -> Table:
        """Values of codes and places."""
        table: Table = {}
        for codec in self.codecs:
            own = codes[:, list(self.places[codec.name])]
            if isinstance(codec, CategoryCodec):
                table[codec.name] = codec.decode(own, np.zeros(own.shape))
            else:
                column = self.numbers.index(self.places[codec.name][0]) if codec.modes else None
                inside = np.zeros(len(own)) if column is None else places[:, column]
                table[codec.name] = codec.decode(own[:, 0], inside)
        return table

    def legal(self, codes: NDArray[np.int64], field: int) -> NDArray[np.int64]:
        """A field's codes, with those beyond what its parent's code allows drawn in."""
        parent = self.parent(field)
        if parent is None:
            return codes[:, field]
        return np.asarray(np.minimum(codes[:, field], np.array(self.fields[field].limits)[codes[:, parent]] - 1))

    def notes(self, table: Table) -> list[str]:
        """Rows whose category is not modelled, counted."""
        return Discretizer(tuple(c for c in self.codecs if isinstance(c, CategoryCodec))).notes(table)

    def to_json(self) -> list[dict[str, Any]]:
        parts = []
        for codec in self.codecs:
            if isinstance(codec, CategoryCodec):
                parts.append({"kind": "words", "codec": Discretizer((codec,)).to_json()[0]})
            else:
                parts.append({"kind": "number", "codec": codec.to_json()})
        return parts

    @classmethod
    def from_json(cls, said: Sequence[Mapping[str, Any]]) -> Mixed:
        codecs: list[MixedNumber | CategoryCodec] = []
        for one in said:
            own = one["codec"]
            if one["kind"] == "words":
                codec = Discretizer.from_json([own]).codecs[0]
                assert isinstance(codec, CategoryCodec)
                codecs.append(codec)
            else:
                tuples = {name: tuple(own[name]) for name in ("spikes", "quantiles", "span")}
                codecs.append(MixedNumber(**{**own, **tuples, "modes": tuple(tuple(m) for m in own["modes"])}))
        return cls(tuple(codecs))
