"""A LightningDataModule over a table, in which synthetic rows of training are mixed with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.tabular.columns import Category, Floats, Kind
from visynth.tabular.fitted import row_hashes
from visynth.tabular.frames import read_table, to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema, Table, rows_of, stacked, taken


@dataclass(frozen=True)
class Scaling:
    """Means and deviations of number columns, from real training rows."""

    schema: Schema
    target: str
    means: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: Schema, target: str, table: Table) -> Scaling:
        means, deviations = {}, {}
        for column in schema.modelled:
            if not isinstance(column, Category):
                values = table[column.name][~np.isnan(table[column.name])]
                means[column.name] = float(values.mean()) if len(values) else 0.0
                deviations[column.name] = (float(values.std()) if len(values) else 0.0) or 1.0
        return cls(schema, target, means, deviations)

    def tensors(self, table: Table) -> dict[str, Tensor]:
        """``numbers`` float32 ``[N, 2 P]`` (standardised, then whether missing), ``categories`` int64 ``[N, Q]`` (0 is
        missing) and ``target`` int64 ``[N]``."""
        rows = rows_of(table)
        numbers: list[Floats] = []
        gaps: list[Floats] = []
        for name, mean in self.means.items():
            gone = np.isnan(table[name])
            numbers.append(np.where(gone, 0.0, (table[name] - mean) / self.deviations[name]))
            gaps.append(gone.astype(np.float64))
        words = [table[c.name] + 1 for c in self.schema.modelled if isinstance(c, Category) and c.name != self.target]
        return {
            "numbers": torch.tensor(
                np.stack([*numbers, *gaps], 1) if numbers else np.zeros((rows, 0)), dtype=torch.float32
            ),
            "categories": torch.from_numpy(np.stack(words, 1) if words else np.zeros((rows, 0), np.int64)),
            "target": torch.from_numpy(table[self.target]),
        }


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tensors by name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["target"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.tensors.items()}


class TableData(pytorch_lightning.LightningDataModule):
    """Real rows with synthetic ones among those of training; validation and test rows are real.

    Each item is a dict with ``numbers``, ``categories``, ``target`` and ``synthetic`` (bool). An epoch has as many items as
    there are real training rows; ``share`` of them are synthetic. ``share=0`` is an ordinary shuffled epoch.

    Args:
        data: a frame or a CSV or Parquet file.
        target: the class column.
        synthetic: rows to mix in: a frame or file of the same columns, or None.
        share: of an epoch's items that are synthetic; None takes synthetic / (synthetic + real).
        val: share of the rows for validation.
        test: share of the rows for testing.
        batch_size: items of a batch.
        kinds: of columns where the data mislead.
        groups: column of what belongs together: rows of one group are in one part. It is no input.
        seed: of the parts and the order.

    Raises:
        DataError: a synthetic row equals a validation or test row beyond what real training rows do, or the columns differ.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": [k / 3 for k in range(60)], "y": ["a", "b"] * 30})
        >>> data = TableData(frame, "y", synthetic=frame.head(0), share=0, batch_size=8)
        >>> data.setup()
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["numbers"].shape, batch["target"].dtype, bool(batch["synthetic"].any())
        (torch.Size([8, 2]), torch.int64, False)
    """

    def __init__(
        self,
        data: Any,
        target: str,
        synthetic: Any = None,
        share: float | None = None,
        val: float = 0.15,
        test: float = 0.15,
        batch_size: int = 256,
        kinds: dict[str, Kind] | None = None,
        groups: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if share is not None and not 0 <= share < 1:
            raise UsageError(f"share must be in [0, 1), but got {share}.")
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise UsageError(f"val and test must be at least 0 and less than 1 together, but got {val} and {test}.")
        self.data, self.target, self.synthetic, self.share = data, target, synthetic, share
        self.val, self.test, self.batch_size, self.kinds = val, test, batch_size, kinds
        self.groups, self.seed = groups, seed
        self.parts: dict[str, Rows] = {}
        self.sizes: tuple[int, int] = (0, 0)

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        rows = read_table(self.data) if isinstance(self.data, str) else to_pandas(self.data)[0]
        groups = None if self.groups is None else rows[self.groups].astype(str).tolist()
        rows = rows if self.groups is None else rows.drop(columns=[self.groups])
        schema = infer(rows, self.kinds, self.target)
        table = schema.table(rows)
        if (table[self.target] < 0).any():
            raise DataError(f"target {self.target!r} has missing values: leave these rows out.")
        split = _split(rows_of(table), groups, self.val, self.test, self.seed)
        real = {name: taken(table, own) for name, own in split.items()}
        fake = self._fake(schema, real)
        scaling = Scaling.of(schema, self.target, real["train"])
        self.sizes = rows_of(real["train"]), rows_of(fake) if fake else 0
        mixed = stacked([real["train"], fake]) if fake and self.sizes[1] else real["train"]
        for name, part in {**real, "train": mixed}.items():
            tensors = scaling.tensors(part)
            marks = torch.arange(len(tensors["target"])) >= (
                self.sizes[0] if name == "train" else len(tensors["target"])
            )
            self.parts[name] = Rows({**tensors, "synthetic": marks})

    def _fake(self, schema: Schema, real: dict[str, Table]) -> Table | None:
        """Synthetic rows, after a look for held-out ones among them."""
        if self.synthetic is None:
            return None
        fake = read_table(self.synthetic) if isinstance(self.synthetic, str) else to_pandas(self.synthetic)[0]
        table = schema.table(fake)
        hashes = {name: set(row_hashes(schema, part)) for name, part in real.items()}
        held = (hashes["val"] | hashes["test"]) - hashes["train"]
        own = row_hashes(schema, table)
        leaked = [number for number, mark in enumerate(own) if mark in held]
        if len(leaked) > max(5, 0.01 * len(own)):
            raise DataError(
                f"{len(leaked)} of {len(own)} synthetic rows equal validation or test rows (the first: {leaked[:5]}): the generator "
                "was fitted to them. Fit it to the training rows alone."
            )
        return table

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        real, fake = self.sizes
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        share = (fake / (fake + real) if fake else 0.0) if self.share is None else self.share
        if not fake or share == 0:
            own: Dataset[dict[str, Tensor]] = torch.utils.data.Subset(self.parts["train"], range(real))
            return DataLoader(own, self.batch_size, shuffle=True, generator=generator)
        weights = torch.cat([torch.full((real,), (1 - share) / real), torch.full((fake,), share / fake)]).double()
        sampler = WeightedRandomSampler(weights.tolist(), real, generator=generator)
        return DataLoader(self.parts["train"], self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.parts["test"], self.batch_size)


def _split(count: int, groups: Sequence[str] | None, val: float, test: float, seed: int) -> dict[str, Any]:
    """Rows of each part."""
    generator = seeding.rng(seed, "tabular/parts")
    names = list(range(count)) if groups is None else groups
    keys = sorted(set(names), key=str)
    order = generator.permutation(len(keys))
    ends = np.round(np.cumsum([1 - val - test, val]) * len(keys)).astype(int)
    parts = {}
    for name, places in zip(("train", "val", "test"), np.split(order, ends), strict=True):
        own = {keys[place] for place in places}
        parts[name] = np.array([row for row, key in enumerate(names) if key in own], np.int64)
    return parts
