"""The contract of every table generator: fit, sample, impute, save, load.

A row is a function of (generator, seed, row number, conditions) alone: not of the chunk it is drawn in, nor of global
random state. Arithmetic is rounded differently at other batch sizes, so rows are always computed in blocks of ``BLOCK``,
padded where fewer are asked for. A row that breaks a condition or a rule is drawn again, with the next attempt's numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from visynth.core.artifact import PRIVACY, Artifact
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.progress import Progress, no_progress
from visynth.tabular.columns import Category, Floats, Kind
from visynth.tabular.conditions import Conditions, present, read_conditions
from visynth.tabular.constraints import Constraint, Rules, read_constraint
from visynth.tabular.drawing import RowSource
from visynth.tabular.draws import BLOCK, check_count
from visynth.tabular.fitted import Fitted, card, fingerprints, holes, readme, unseen_codes
from visynth.tabular.frames import check_frame, in_library, to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.private import PrivateTable, TablePrivacy, check_private_use, prepare
from visynth.tabular.schema import Schema, Table, rows_of
from visynth.tabular.stored import Stored, packed

if TYPE_CHECKING:
    import torch

SCHEMA = "visynth.table/1"
CHUNK = 64 * BLOCK  # rows held together while streaming
LEAST_ROWS = 10
MOST_MEMBERS = 200_000  # rows whose fingerprints are kept


class Synthesizer(Stored, RowSource):
    """One table generator. Subclasses write ``_fit``, ``_draw``, ``arguments``, ``weights`` and ``_restore``.

    Example:
        >>> import pandas
        >>> from visynth.tabular import GaussianCopula
        >>> frame = pandas.DataFrame({"x": range(40), "c": ["a", "b"] * 20})
        >>> sample = GaussianCopula().fit(frame).sample(5, conditions={"c": "b"}, seed=1)
        >>> sample["c"].tolist()
        ['b', 'b', 'b', 'b', 'b']
    """

    fits_by: ClassVar[str] = "counting"  # for the card
    fits_privately: ClassVar[bool] = False  # whether there is a fit with differential privacy
    imputes: ClassVar[bool] = False  # whether rows can be drawn under any set of given cells

    def __init__(self) -> None:
        super().__init__()

    # -- for authors -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, table: Table, progress: Progress, **training: Any) -> None:
        """Fit the model to a table of ``fitted.model_schema``; models with a private fit get ``private=``, of which
        everything but the model itself is fitted to the stand-ins."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Plain JSON that, with the weights and what is fitted, rebuilds the model."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors of the model, on the CPU."""

    @classmethod
    @abstractmethod
    def _restore(
        cls, fitted: Fitted, arguments: Mapping[str, Any], weights: dict[str, torch.Tensor], device: str
    ) -> Self:
        """The model again."""

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        frame: Any,
        *,
        target: str | None = None,
        kinds: Mapping[str, Kind] | None = None,
        schema: Schema | None = None,
        constraints: Sequence[Constraint | Mapping[str, Any]] = (),
        members: Literal["rows", "none"] = "rows",
        privacy: TablePrivacy | None = None,
        progress: Progress = no_progress,
        **training: Any,
    ) -> Self:
        """Fit to a table.

        Args:
            frame: a pandas or polars frame.
            target: the class column; all its values are modelled, however rare.
            kinds: of columns where the data mislead; see :func:`visynth.tabular.inference.infer`.
            schema: instead of one inferred from the frame.
            constraints: rules between columns, checked on the frame first.
            members: ``"rows"`` keeps a fingerprint of every row, so that tests on rows that were fitted are refused;
                whoever has them can check whether a row that they guess was there. ``"none"`` keeps none, and so does a
                private fit.
            privacy: fit with differential privacy: the model hardly depends on any one row.
            progress: receives lines.
            training: further arguments of the model's training (``trainer=``, ``checkpoint=``).

        Raises:
            DataError: the frame cannot be modelled; all problems at once.
            UsageError: wrong arguments.
        """
        if privacy is not None:
            check_private_use(self.network, self.fits_privately, constraints, schema)
            self.check_privacy(privacy)
            options = getattr(self, "options", None) or getattr(self, "hparams", {})
            purpose = f"{self.network} {sorted(options.items())}"
            return self._fit_privately(prepare(frame, privacy, target, kinds, purpose), target, progress, **training)
        rows, _ = to_pandas(frame)
        check_frame(rows, least=LEAST_ROWS)
        schema = infer(frame, kinds, target) if schema is None else schema
        if target is not None and not isinstance(schema[target], Category):
            raise UsageError(f"target {target!r} is {schema[target].kind}: a class column has categories.")
        return self.fit_table(schema, schema.table(rows), target, constraints, members, progress, **training)

    def check_privacy(self, options: TablePrivacy) -> None:
        """Refuse options of a private fit that this generator cannot have, before any row is looked at."""

    def fit_table(
        self,
        schema: Schema,
        table: Table,
        target: str | None = None,
        constraints: Sequence[Constraint | Mapping[str, Any]] = (),
        members: Literal["rows", "none"] = "rows",
        progress: Progress = no_progress,
        **training: Any,
    ) -> Self:
        """Fit to model values; see :meth:`fit`."""
        rules = Rules.of(constraints, schema, table)
        if target in rules.computed:
            raise UsageError(f"target {target!r} is computed by a constraint: drop the constraint.")
        count = rows_of(table)
        kept = members == "rows" and count <= MOST_MEMBERS
        prints = fingerprints(schema, table, target) if kept else ()
        notes = list(schema.notes)
        if members == "rows" and not kept:
            notes.append(f"no fingerprints of rows are kept: there are more than {MOST_MEMBERS}")
        self._fitted = Fitted(schema, rules, target, count, prints, tuple(notes), unseen_codes(schema, table))
        self._digest = None
        if not self.fitted.model_schema.columns:
            raise DataError("the table has no column to model: all are identifiers, text or constant.")
        self._fit({c.name: table[c.name] for c in self.fitted.model_schema.columns}, progress, **training)
        return self

    def _fit_privately(self, private: PrivateTable, target: str | None, progress: Progress, **training: Any) -> Self:
        """Fit to a prepared table; what is not private is told to the operator alone."""
        for remark in private.remarks:
            progress(f"    for you alone, not private and not stored: {remark}")
        self._fitted = Fitted(private.schema, target=target, rows=rows_of(private.table))
        self._digest = None
        self._fit(private.table, progress, private=private, **training)
        return self

    def add_notes(self, notes: Sequence[str]) -> None:
        """Further things that people should know of the fit."""
        self._fitted = replace(self.fitted, notes=(*self.fitted.notes, *notes))

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, n: int, *, conditions: Any = None, seed: int = 0) -> Any:
        """A frame of ``n`` synthetic rows, of the fitted frame's library, columns and data types.

        Args:
            n: number of rows.
            conditions: see :func:`visynth.tabular.conditions.read_conditions`; every returned row satisfies them.
            seed: in [0, 2**63). Equal seeds give equal frames.

        Raises:
            UsageError: conditions that no data can satisfy.
            DataError: too few rows that satisfy the conditions or constraints can be drawn.
        """
        check_count(n)
        return next(self._stream(n, read_conditions(self.schema, conditions, n), seed, n, None))

    def stream(self, n: int, *, conditions: Any = None, seed: int = 0, chunk: int = CHUNK) -> Iterator[Any]:
        """The frame of :meth:`sample` in pieces of at most ``chunk`` rows, so that memory stays flat."""
        check_count(n)
        yield from self._stream(n, read_conditions(self.schema, conditions, n), seed, chunk, None)

    def stream_classes(
        self, counts: Mapping[Any, int], *, seed: int = 0, chunk: int = CHUNK, real: Any = None
    ) -> Iterator[Any]:
        """So many rows of each class, one class after the other, in pieces; rows are numbered through, so that identifiers
        and unique columns are unique over all classes.

        Args:
            counts: rows by value of the target.
            seed: in [0, 2**63).
            chunk: rows of a piece at most.
            real: a frame whose unique columns must not be repeated either.

        Raises:
            UsageError: fitted without a target, or a value that it does not have.
        """
        target = self.fitted.target
        if target is None:
            raise UsageError("the generator was fitted without a target: there are no classes.")
        column = self.schema[target]
        assert isinstance(column, Category)
        codes = {value: column.code(value) for value in counts}
        unknown = [value for value, code in codes.items() if code is None]
        if unknown:
            raise UsageError(f"column {target!r} has no value {choices(unknown)}; it has {choices(column.categories)}.")
        wanted = np.repeat(np.array(list(codes.values()), np.int64), list(counts.values()))
        check_count(len(wanted))
        given = Conditions({target: (wanted, np.ones(len(wanted), bool))}, {})
        seen = None
        if real is not None and self.fitted.rules.unique:
            table = self.schema.table(real)
            seen = [{key for key in c.keys(table) if key} for c in self.fitted.rules.unique]
        yield from self._stream(len(wanted), given, seed, chunk, seen)

    def _stream(self, n: int, given: Conditions, seed: int, chunk: int, seen: list[set[bytes]] | None) -> Iterator[Any]:
        self.fitted.check_seen(given)
        seen = [set() for _ in self.fitted.rules.unique] if seen is None else seen
        for start in range(0, n, chunk):
            numbers = np.arange(start, min(start + chunk, n))
            table, rows = self.rows(numbers, seed, given.take(numbers), seen)
            yield self.schema.frame(table, rows, seed)

    def impute(self, frame: Any, *, seed: int = 0) -> Any:
        """The frame with its missing cells drawn given the others; identifiers and text stay as they are.

        Constraints are kept where the given cells and some draws allow it.

        Args:
            frame: rows with the fitted table's columns; any cell may be missing.
            seed: equal seeds fill equally.

        Raises:
            UsageError: a model that cannot.
            DataError: unknown categories and the like; all problems at once.
        """
        if not self.imputes:
            raise UsageError(f"{self.network} cannot impute: fit 'masked' or 'copula', which can.")
        schema = self.schema
        table, given = holes(schema, frame)
        own = self.fitted.model_schema.columns
        conditions = Conditions(
            {c.name: (table[c.name], given[c.name]) for c in own}, {c.name: present(c) for c in own}
        )
        filled, _ = self.rows(np.arange(rows_of(table)), seed, conditions, insist=False)
        result, library = to_pandas(frame)
        result = frame.copy() if library == "pandas" else result
        for column in schema.modelled:
            gaps = ~given[column.name]
            if gaps.any():
                whole = column.format(np.where(gaps, filled[column.name], table[column.name]))
                result[column.name] = whole.set_axis(result.index)
        return in_library(result, library)

    def losses(self, frame: Any, *, seed: int = 0) -> Floats | None:
        """The model's own loss of each row ``[N]``, for white-box attacks; None where a model has none."""
        return None

    # -- storing -----------------------------------------------------------------------------------------------------

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
            "classes": list(fitted.classes),
            "arguments": self.arguments(),
            "table": fitted.schema.to_json(),
            "constraints": fitted.rules.to_json(),
            "target": fitted.target,
            "block": BLOCK,
            "unseen": {name: list(codes) for name, codes in fitted.unseen.items()},
        }
        return Artifact(identity, packed(self.weights()), fitted.members, self.card)

    def _readme(self, digest: str) -> str:
        return readme(self.network, self.fitted, digest)

    @classmethod
    def from_artifact(cls, stored: Artifact, device: str = "cpu") -> Self:
        """The generator that an artifact of schema ``visynth.table/1`` holds."""
        from safetensors.torch import load

        said = stored.identity
        rules = Rules(tuple(read_constraint(c) for c in said["constraints"]))
        rows, notes = int(stored.card.get("rows fitted", 0)), tuple(stored.card.get("notes", ()))
        unseen = {name: tuple(codes) for name, codes in said["unseen"].items()}
        spent = stored.card.get(PRIVACY, {})
        fitted = Fitted(
            Schema.from_json(said["table"]), rules, said["target"], rows, stored.members, notes, unseen, spent
        )
        return cls._restore(fitted, said["arguments"], load(stored.weights), str(device))
