"""Drawing rows by their numbers: in blocks of one size, again where a condition or a rule is broken, and once more where a
unique column would repeat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices
from visynth.tabular.conditions import NO_CONDITIONS, Conditions
from visynth.tabular.constraints import NO_KEY
from visynth.tabular.draws import BLOCK, FAR, Draw, Rows
from visynth.tabular.fitted import Fitted
from visynth.tabular.schema import Schema, Table, replaced, rows_of, stacked, taken

ATTEMPTS = 5000  # draws of a row before it is said that it cannot be had
ROUND = 8 * BLOCK  # redraws computed at a time


class RowSource(ABC):
    """What draws blocks of rows, and with them any rows."""

    network: ClassVar[str]  # registered name

    def __init__(self) -> None:
        super().__init__()
        self._fitted: Fitted | None = None

    @abstractmethod
    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        """A block of ``BLOCK`` rows of the model's columns. Conditions may be kept, or left to the redraw."""

    @property
    def fitted(self) -> Fitted:
        """What is known of the table. A UsageError before the fit."""
        if self._fitted is None:
            raise UsageError(f"this {type(self).__name__} has not been fitted: call fit(frame), or load one.")
        return self._fitted

    @property
    def schema(self) -> Schema:
        return self.fitted.schema

    def rows(
        self,
        numbers: Rows,
        seed: int,
        conditions: Conditions = NO_CONDITIONS,
        seen: list[set[bytes]] | None = None,
        insist: bool = True,
    ) -> tuple[Table, Rows]:
        """Rows by their numbers, as model values with computed columns, and the numbers.

        Args:
            numbers: int64 ``[N]``, rising.
            seed: of the sample.
            conditions: of these rows.
            seen: keys that unique columns had before these rows; new ones are added.
            insist: False lets rows break constraints that they cannot keep, for filling given rows.
        """
        seen = [set() for _ in self.fitted.rules.unique] if seen is None else seen
        groups = np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers // BLOCK)) + 1)
        blocks = [(int(numbers[places[0]]) // BLOCK, numbers[places], conditions.take(places)) for places in groups]
        table = self._complete([self._block(Draw(keys, seed, group), own) for group, keys, own in blocks])
        left = np.flatnonzero(self._bad(table, conditions))
        attempt, most = 1, ATTEMPTS if insist else ATTEMPTS // 50
        while len(left) and attempt < most:
            tries = max(ROUND // len(left), 1)
            drawn, good = self._redraw(numbers[left], np.arange(attempt, attempt + tries), seed, conditions.take(left))
            table = replaced(table, left[good], drawn)
            left, attempt = left[~good], attempt + tries
        lost = left if insist else left[conditions.take(left).broken(taken(table, left), len(left))]
        if len(lost):
            raise DataError(self._refusal(conditions, len(lost), len(numbers)))
        if self.fitted.rules.unique and insist:
            table = self._made_unique(table, numbers, seed, conditions, seen)
        return table, numbers

    def _redraw(
        self, numbers: Rows, attempts: Rows, seed: int, conditions: Conditions
    ) -> tuple[Table, NDArray[np.bool_]]:
        """The first good one of several attempts at each row, and which rows have one."""
        table, good = self._tries(numbers, attempts, seed, conditions)
        first = np.arange(len(numbers)) * len(attempts) + good.argmax(axis=1)
        done = np.asarray(good.any(axis=1))
        return taken(table, first[done]), done

    def _tries(
        self, numbers: Rows, attempts: Rows, seed: int, conditions: Conditions
    ) -> tuple[Table, NDArray[np.bool_]]:
        """All attempts at all rows, one row's after another, and which are good ``[rows, attempts]``."""
        places = np.repeat(np.arange(len(numbers)), len(attempts))
        keys = numbers[places] + np.tile(attempts, len(numbers)) * FAR
        own = conditions.take(places)
        ends = [(start, min(start + BLOCK, len(keys))) for start in range(0, len(keys), BLOCK)]
        blocks = [self._block(Draw(keys[a:b], seed, -1), own.take(np.arange(a, b))) for a, b in ends]
        table = self._complete(blocks)
        return table, ~self._bad(table, own).reshape(len(numbers), len(attempts))

    def _block(self, draw: Draw, conditions: Conditions) -> Table:
        """Rows of a block, computed at its full size."""
        count = len(draw.keys)
        padded = np.concatenate([np.arange(count), np.full(BLOCK - count, count - 1)])
        return taken(self._draw(replace(draw, keys=draw.keys[padded]), conditions.take(padded)), np.arange(count))

    def _complete(self, blocks: Sequence[Table]) -> Table:
        return self.fitted.rules.complete(stacked(blocks), self.schema)

    def _bad(self, table: Table, conditions: Conditions) -> NDArray[np.bool_]:
        """Rows that break a condition or a rule."""
        return conditions.broken(table, rows_of(table)) | self.fitted.rules.broken(table, self.schema)

    def _refusal(self, conditions: Conditions, failed: int, count: int) -> str:
        asked = f" with conditions on {choices(conditions.columns)}" if conditions.any else ""
        ruled = f" and constraints on {choices(sorted({n for c in self.fitted.rules.constraints for n in c.columns}))}"
        return (
            f"{failed} of {count} rows{asked}{ruled if self.fitted.rules.constraints else ''} could not be had in {ATTEMPTS} draws "
            f"each: {self.network} hardly ever makes such rows. Loosen the conditions"
            + ("." if self.network == "masked" else ", or fit 'masked', which draws under conditions directly.")
        )

    def _made_unique(
        self, table: Table, numbers: Rows, seed: int, conditions: Conditions, seen: list[set[bytes]]
    ) -> Table:
        """Rows whose unique columns repeat an earlier row's are drawn again, in the order of the rows."""
        rules = self.fitted.rules
        keys = [list(c.keys(table)) for c in rules.unique]
        for place in range(len(numbers)):
            if any(column[place] in before for column, before in zip(keys, seen, strict=True)):
                here = np.array([place])
                drawn = self._unseen(numbers[here], seed, conditions.take(here), seen)
                table = replaced(table, here, drawn)
                for column, constraint in zip(keys, rules.unique, strict=True):
                    column[place] = constraint.keys(drawn)[0]
            for column, before in zip(keys, seen, strict=True):
                before |= {column[place]} - {NO_KEY}
        return table

    def _unseen(self, number: Rows, seed: int, conditions: Conditions, seen: Sequence[set[bytes]]) -> Table:
        """The first attempt at a row whose unique columns are new."""
        unique = self.fitted.rules.unique
        for start in range(ATTEMPTS, 2 * ATTEMPTS, BLOCK):
            table, good = self._tries(number, np.arange(start, start + BLOCK), seed, conditions)
            keys = [c.keys(table) for c in unique]
            for place in np.flatnonzero(good[0]):
                if not any(column[place] in before for column, before in zip(keys, seen, strict=True)):
                    return taken(table, np.array([place]))
        names = choices([name for c in unique for name in c.of])
        raise DataError(
            f"row {int(number[0])}: no new combination of {names} in {ATTEMPTS} draws, so that it could not be unique. Ask for "
            "fewer rows, or declare the key column as id: ids are regenerated, each another."
        )
