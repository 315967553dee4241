"""The contract of every generator of series: fit, sample, stream, impute, forecast, save, load.

A series is a function of (generator, seed, its number, its statics and length) alone: not of how many are drawn with it, nor
of the pieces it is taken in, nor of global random state. Arithmetic is rounded differently at other batch sizes, so series
are computed in blocks of ``BLOCK``, padded where fewer are asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.artifact import Artifact
from visynth.core.errors import UsageError
from visynth.core.members import Member
from visynth.core.progress import Progress, no_progress
from visynth.tabular.columns import Category, Floats
from visynth.tabular.draws import check_count
from visynth.tabular.schema import missing_in, taken
from visynth.tabular.stored import Stored, packed
from visynth.tabular.timeseries.encoding import Encoding
from visynth.tabular.timeseries.fitted import (
    Asked,
    FittedSeries,
    after,
    card,
    check_series,
    first_rows,
    matching,
    readme,
)
from visynth.tabular.timeseries.series import Ints, Series, SeriesSchema, joined

if TYPE_CHECKING:
    import torch

SCHEMA = "visynth.series/1"
BLOCK = 32  # series computed together
WINDOW = 256  # steps that models see at once by default, at most
LEAST = 2  # series that a fit needs


class SeriesGenerator(Stored):
    """One generator of series. Subclasses write ``_fit``, ``_draw``, ``arguments``, ``weights`` and ``_restore``.

    Example:
        >>> from visynth.tabular.timeseries import WindowBootstrap, from_arrays
        >>> real = from_arrays(np.arange(24.0).reshape(4, 2, 3), ["a", "a", "b", "b"])
        >>> series = WindowBootstrap().fit(real).sample(3, conditions={"class": "b"}, seed=1)
        >>> series.labels(), series.lengths.tolist()
        (['b', 'b', 'b'], [3, 3, 3])
    """

    network: ClassVar[str]
    fits_by: ClassVar[str] = "resampling"  # for the card
    imputes: ClassVar[bool] = False
    forecasts: ClassVar[bool] = False
    lengthens: ClassVar[bool] = False  # whether series may be longer than the window
    ends: ClassVar[bool] = False  # whether it draws itself when a series ends

    def __init__(self) -> None:
        super().__init__()
        self._fitted: FittedSeries | None = None

    # -- for authors -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, series: Series, progress: Progress, **training: Any) -> None:
        """Fit the model; ``fitted`` is known."""

    @abstractmethod
    def _draw(self, asked: Asked) -> list[Floats]:
        """A block of series as encoded rows, ``[rows, width]`` each."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Plain JSON that, with the weights and what is fitted, rebuilds the model."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the model, on the CPU."""

    @classmethod
    @abstractmethod
    def _restore(
        cls, fitted: FittedSeries, arguments: Mapping[str, Any], weights: dict[str, torch.Tensor], device: str
    ) -> Self:
        """The model again."""

    def _pieces(self, asked: Asked, given: Series | None) -> Iterator[Floats]:
        """Encoded rows of one series without end, after those that are given; of models that ``lengthens`` or ``forecasts``."""
        raise NotImplementedError

    def _filled(self, series: Series, seed: int) -> list[Floats]:
        """Encoded rows of series with every missing value drawn; of models that ``imputes``."""
        raise NotImplementedError

    # -- fitting -----------------------------------------------------------------------------------------------------

    @property
    def fitted(self) -> FittedSeries:
        """What is known of the series. A UsageError before the fit."""
        if self._fitted is None:
            raise UsageError(f"this {type(self).__name__} has not been fitted: call fit(series), or load one.")
        return self._fitted

    @property
    def schema(self) -> SeriesSchema:
        return self.fitted.schema

    @property
    def encoding(self) -> Encoding:
        return self.fitted.encoding

    def fit(
        self,
        series: Series,
        *,
        window: int | None = None,
        members: Literal["series", "none"] = "series",
        progress: Progress = no_progress,
        **training: Any,
    ) -> Self:
        """Fit to real series.

        Args:
            series: see :func:`visynth.tabular.timeseries.read_series`.
            window: steps that the model sees at once; by default the longest series, at most 256.
            members: ``"series"`` keeps a fingerprint of each, so that tests on series that were fitted are refused.
            progress: receives lines.
            training: further arguments of the model's training (``trainer=``, ``checkpoint=``).

        Raises:
            DataError: too few series, or a channel without a value.
            UsageError: wrong arguments.
        """
        if not isinstance(series, Series):
            raise UsageError(f"fit takes series (read_series or from_arrays), but got {type(series).__name__}.")
        check_series(series, LEAST)
        if window is not None and window < 2:
            raise UsageError(f"window must be at least 2, but got {window}.")
        steps = min(int(series.lengths.max()), WINDOW) if window is None else min(window, int(series.lengths.max()))
        encoding = Encoding.of(series, max(steps, 1))
        prints = series.members() if members == "series" else ()
        notes = series.schema.notes
        if not self.lengthens and steps < series.lengths.max():
            notes += (f"series of up to {int(series.lengths.max())} rows are drawn as windows of {steps} rows",)
        self._fitted = FittedSeries(encoding, series.statics, series.lengths, prints, notes)
        self._digest = None
        self._fit(series, progress, **training)
        return self

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sample(
        self, n: int, *, conditions: Mapping[str, Any] | None = None, length: int | None = None, seed: int = 0
    ) -> Series:
        """So many synthetic series.

        Args:
            n: number of series.
            conditions: values of statics, the class among them, e.g. ``{"class": "walking"}``; those that are not given
                are drawn together from the real series that have the given ones.
            length: rows of each; by default drawn from the real lengths of the class, or by the model.
            seed: in [0, 2**63). Equal seeds give equal series.

        Raises:
            UsageError: unknown statics or values, or a length that the model cannot draw.
        """
        check_count(n)
        asked = self._asked(np.arange(n), conditions or {}, length, seed)
        parts = [self._block(asked.take(np.arange(a, min(a + BLOCK, n)))) for a in range(0, n, BLOCK)]
        return joined(parts)

    def sample_classes(self, counts: Mapping[str, int], *, length: int | None = None, seed: int = 0) -> Series:
        """So many series of each class, numbered through.

        Args:
            counts: series by class.
            length: see :meth:`sample`.
            seed: in [0, 2**63).

        Raises:
            UsageError: fitted without classes, or unknown ones.
        """
        target = self.schema.target
        if target is None:
            raise UsageError("the generator was fitted without a target: there are no classes.")
        parts, done = [], 0
        for name, count in counts.items():
            own = seeding.derive("series/class", seeding.checked(seed), name)
            part = self.sample(count, conditions={target: name}, length=length, seed=own)
            parts.append(replace(part, names=tuple(f"synthetic-{done + k}" for k in range(count))))
            done += count
        return joined(parts)

    def stream(
        self,
        *,
        chunk: int,
        conditions: Mapping[str, Any] | None = None,
        length: int | None = None,
        number: int = 0,
        seed: int = 0,
    ) -> Iterator[Series]:
        """One long series in pieces, without end unless a length is given. Pieces of any size give the same series.

        Args:
            chunk: rows of a piece.
            conditions: values of statics.
            length: rows in all.
            number: of the series.
            seed: in [0, 2**63).

        Raises:
            UsageError: a model that draws whole series only.
        """
        if not self.lengthens:
            raise UsageError(
                f"{self.network} draws whole series of up to {self.encoding.window} rows: fit 'ar' or 'diffusion'."
            )
        check_count(chunk)
        asked = self._asked(np.array([number]), conditions or {}, 1 if length is None else length, seed)
        yield from self._chunks(self._pieces(asked, None), asked, chunk, length)

    def _chunks(self, pieces: Iterator[Floats], asked: Asked, chunk: int, length: int | None) -> Iterator[Series]:
        """Pieces of a size, from pieces of another."""
        held: list[Floats] = []
        done, time, total = 0, self.schema.origin, np.inf if length is None else length
        while done < total:
            size = int(min(chunk, total - done))
            while sum(map(len, held)) < size:
                held.append(next(pieces))
            rows = np.concatenate(held)
            held = [rows[size:]]
            part = self._decoded([rows[:size]], asked, np.array([time]), fresh=done == 0)
            gaps = self.encoding.gaps(rows[:size])
            gaps[0] = 0.0 if done == 0 else gaps[0]
            time = float(after(time, gaps)[-1])  # not rounded, so that pieces of any size have the same times
            done += size
            yield part

    def forecast(self, series: Series, steps: int, *, seed: int = 0) -> Series:
        """What follows each series: its next rows, drawn given its last ones.

        Args:
            series: of the fitted columns.
            steps: rows to draw.
            seed: equal seeds draw equally.

        Raises:
            UsageError: a model that cannot.
        """
        if not self.forecasts:
            raise UsageError(f"{self.network} cannot forecast: fit 'ar' or 'diffusion', which can.")
        check_count(steps)
        parts = []
        for number in range(len(series)):
            own = series.take([number])
            asked = Asked(np.array([number]), seeding.checked(seed), own.statics, np.array([steps]))
            rows = first_rows(self._pieces(asked, own), steps)
            part = self._decoded([rows], asked, np.array([own.times[-1]]), fresh=False)
            parts.append(replace(part, names=own.names, schema=series.schema))
        return joined(parts)

    def impute(self, series: Series, *, seed: int = 0) -> Series:
        """The series with its missing values drawn given the others.

        Args:
            series: of the fitted columns; any value may be missing.
            seed: equal seeds fill equally.

        Raises:
            UsageError: a model that cannot.
        """
        if not self.imputes:
            raise UsageError(f"{self.network} cannot impute: fit 'diffusion', which can.")
        table, _ = self.encoding.decode(np.concatenate(self._filled(series, seeding.checked(seed))))
        channels = {}
        for column in self.schema.channels.modelled:
            values = series.channels[column.name]
            channels[column.name] = np.where(missing_in(values), table[column.name], values)
        return replace(series, channels=channels)

    def _asked(self, numbers: Ints, conditions: Mapping[str, Any], length: int | None, seed: int) -> Asked:
        fitted, seed = self.fitted, seeding.checked(seed)
        rows = matching(fitted, conditions)
        picked = np.array(
            [rows[int(u * len(rows))] for u in seeding.uniforms(seed, numbers, 1, "series/statics")[:, 0]]
        )
        if length is not None:
            if length < 1 or (length > fitted.encoding.window and not self.lengthens):
                raise UsageError(
                    f"length must be in [1, {fitted.encoding.window}], the window of {self.network}, but got {length}."
                )
            lengths = np.full(len(numbers), length)
        elif self.ends and fitted.varies:
            lengths = np.zeros(len(numbers), np.int64)
        else:
            lengths = np.asarray(fitted.lengths[picked], np.int64)
            lengths = lengths if self.lengthens else np.minimum(lengths, fitted.encoding.window)
        return Asked(numbers, seed, taken(fitted.statics, picked), lengths)

    def _block(self, asked: Asked) -> Series:
        """Series of a block, computed at its full size."""
        count = len(asked.numbers)
        padded = np.concatenate([np.arange(count), np.full(BLOCK - count, count - 1)])
        drawn = self._draw(asked.take(padded))[:count]
        return self._decoded(drawn, asked, np.full(count, self.schema.origin), fresh=True)

    def _decoded(self, drawn: Sequence[Floats], asked: Asked, starts: Floats, fresh: bool) -> Series:
        """Encoded rows as series.

        Args:
            drawn: rows of each series.
            asked: what they are.
            starts: time of each series' first row, or of the row before it.
            fresh: whether the first row is at ``starts``.
        """
        lengths = np.array([len(own) for own in drawn])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        table, gaps = self.encoding.decode(np.concatenate(drawn))
        times = np.empty(len(gaps))
        for k, start in enumerate(starts):
            own = gaps[offsets[k] : offsets[k + 1]].copy()
            own[0] = 0.0 if fresh else own[0]
            times[offsets[k] : offsets[k + 1]] = after(float(start), own)
        clock = self.schema.time
        times = times if clock is None else np.asarray(clock.rounded(times), np.float64)
        names = tuple(f"synthetic-{number}" for number in asked.numbers.tolist())
        return Series(self.schema, names, offsets, times, table, asked.statics)

    # -- storing -----------------------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Member, ...]:
        return self.fitted.members

    @property
    def classes(self) -> tuple[str, ...]:
        return self.schema.classes

    @property
    def card(self) -> dict[str, Any]:
        """What people are told of it."""
        return card(self.fits_by, self.fitted)

    def artifact(self) -> Artifact:
        """The generator as it is stored."""
        fitted = self.fitted
        identity = {
            "schema": SCHEMA,
            "network": self.network,
            "classes": list(self.schema.classes),
            "arguments": self.arguments(),
            "series": self.schema.to_json(),
            "encoding": fitted.encoding.to_json(),
            "statics": {
                name: [None if value != value else value for value in values.tolist()]
                for name, values in fitted.statics.items()
            },
            "lengths": fitted.lengths.tolist(),
            "block": BLOCK,
        }
        return Artifact(identity, packed(self.weights()), fitted.members, self.card)

    def _readme(self, digest: str) -> str:
        return readme(self.network, self.fitted, digest)

    @classmethod
    def from_artifact(cls, stored: Artifact, device: str = "cpu") -> Self:
        """The generator that an artifact of schema ``visynth.series/1`` holds."""
        from safetensors.torch import load

        said = stored.identity
        schema = SeriesSchema.from_json(said["series"])
        kinds = {c.name: np.int64 if isinstance(c, Category) else np.float64 for c in schema.statics.modelled}
        statics = {name: np.array(values, kinds[name]) for name, values in said["statics"].items()}
        encoding, lengths = Encoding.from_json(said["encoding"], schema), np.array(said["lengths"], np.int64)
        fitted = FittedSeries(encoding, statics, lengths, stored.members, tuple(stored.card.get("notes", ())))
        return cls._restore(fitted, said["arguments"], load(stored.weights), str(device))
