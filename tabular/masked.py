"""The default: an any-order masked model over discretised columns.

A network predicts every column's code from any subset of the others, so that rows are drawn column by column in any order,
conditions are columns that are given from the start, and missing cells are drawn given the present ones. Trained by the
any-order likelihood: k of D columns are hidden, k uniform on 1..D, and the cross-entropy of the hidden ones is weighed by
D / k: Uria et al., "A deep and tractable density estimator" (ICML 2014), eq. 9, which is also the bound of masked diffusion
with a linear schedule: Shi et al., "Simplified and generalized masked diffusion" (NeurIPS 2024), eq. 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.tabular.columns import Floats, Values
from visynth.tabular.conditions import Conditions
from visynth.tabular.discrete import Discretizer
from visynth.tabular.draws import BLOCK, Draw
from visynth.tabular.layers import CodeEmbedding, ResidualBlocks, cross_entropies, illegal_codes, parted, pick
from visynth.tabular.schema import Table
from visynth.tabular.training import Arrays, Batch, Trained

UNKNOWN = -1  # code of a field that is hidden


class MaskedNet(nn.Module):
    """Codes of D fields, some hidden -> logits of every field's codes.

    Args:
        sizes: codes of each field.
        embedding: numbers that stand for a code.
        width: of the hidden layers.
        depth: residual blocks.
    """

    def __init__(self, sizes: list[int], embedding: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = CodeEmbedding(sizes, embedding)
        self.first = nn.Linear(len(sizes) * embedding, width)
        self.blocks = ResidualBlocks(width, depth)
        self.head = nn.Linear(width, sum(sizes))

    @property
    def sizes(self) -> list[int]:
        return self.embedding.sizes

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``[B, sum of sizes]`` of codes int64 ``[B, D]``, -1 where hidden."""
        return cast(Tensor, self.head(self.blocks(self.first(self.embedding(codes)))))

    def tables(self) -> list[Tensor]:
        """For each field, what each of its codes (the last is "hidden") adds to the first layer, ``[size + 1, width]``."""
        rows = self.embedding.rows()
        parts = parted(self.first.weight, [rows[0].shape[1]] * len(rows))
        return [row @ part.T for row, part in zip(rows, parts, strict=True)]


class Masked(Trained):
    """The any-order masked model.

    Args:
        steps: optimiser steps.
        batch_size: rows of a step, over all processes.
        lr: peak learning rate.
        width: of the hidden layers.
        depth: residual blocks.
        embedding: numbers that stand for a code.
        ema: share of the old average that a step keeps.
        most_bins: bins of a number at most.
        rare_below: rows that a category or bin needs.
        seed: of weights, batches and masks.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": ["a", "b"] * 30, "y": [1.5, None] * 30})
        >>> model = Masked(steps=3).fit(frame)
        >>> model.sample(4, seed=7).equals(model.sample(4, seed=7)), model.sample(3, conditions={"x": "b"})["x"].tolist()
        (True, ['b', 'b', 'b'])
    """

    network = "masked"
    imputes = True
    fits_by = "any-order masked likelihood"

    def __init__(
        self,
        steps: int = 2000,
        batch_size: int = 1024,
        lr: float = 2e-3,
        width: int = 256,
        depth: int = 3,
        embedding: int = 16,
        ema: float = 0.995,
        most_bins: int = 100,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._discretizer: Discretizer | None = None

    @property
    def discretizer(self) -> Discretizer:
        """How columns become codes. A UsageError before the fit."""
        if self._discretizer is None:
            raise UsageError("this Masked has not been fitted: call fit(frame), or load one.")
        return self._discretizer

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit_encoding(self, table: Table) -> list[str]:
        fitted, args = self.fitted, self.args
        self._discretizer = Discretizer.of(
            fitted.model_schema, table, most=args.most_bins, least=args.rare_below, keep=fitted.kept_whole
        )
        return self.discretizer.notes(table)

    def encode(self, table: Table) -> Arrays:
        return {"codes": self.discretizer.encode(table)}

    def encoding_json(self) -> dict[str, Any]:
        return {"codecs": self.discretizer.to_json()}

    def restore_encoding(self, said: Mapping[str, Any]) -> None:
        self._discretizer = Discretizer.from_json(said["codecs"])

    def build(self) -> nn.Module:
        args = self.args
        return MaskedNet([field.size for field in self.discretizer.fields], args.embedding, args.width, args.depth)

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        fields = len(self.discretizer.fields)
        hidden = generator.integers(1, fields + 1, size=(count, 1))
        rank = generator.random((count, fields)).argsort(axis=1)
        return {"hidden": rank < hidden}

    def loss(self, batch: Batch) -> Tensor:
        codes, hidden = batch["codes"].long(), batch["hidden"]
        logits = self.net(codes.masked_fill(hidden, UNKNOWN))
        weight = hidden.float() * (hidden.shape[1] / hidden.sum(1, keepdim=True))
        losses = cross_entropies(logits, codes, cast(MaskedNet, self.net).sizes)
        return (losses * weight).sum(1).mean() / hidden.shape[1]

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        fields, places = self.discretizer.fields, self.discretizer.places
        codes = np.full((len(draw.keys), len(fields)), UNKNOWN, np.int64)
        legal: dict[int, NDArray[np.bool_]] = {}
        for name, (values, given) in conditions.fixed.items():
            if name in places:
                codes[:, list(places[name])] = self._given(name, values, given)
        for name, allowed in conditions.allowed.items():
            if name in places:
                masks = self.discretizer.by_column[name].within(allowed.holds, *allowed.ends)
                legal |= {place: mask for place, mask in zip(places[name], masks, strict=True) if not mask.all()}
        u = draw.uniforms(2 * len(fields), "masked")
        drawn = self._fill(codes, legal, u[:, : len(fields)], self._order(draw.shared("masked/order"), list(legal)))
        return conditions.written_over(self.discretizer.decode(drawn.astype(np.int32), u[:, len(fields) :]))

    def _given(self, name: str, values: Values, given: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Codes of a column where it is given, ``UNKNOWN`` elsewhere ``[N, fields of the column]``."""
        codes = self.discretizer.by_column[name].encode(values)
        return np.where(given[:, None], codes, UNKNOWN)

    def _order(self, generator: np.random.Generator, first: list[int]) -> list[int]:
        """Order in which fields are drawn: restricted ones first, a field's parent before it, otherwise by chance."""
        count = len(self.discretizer.fields)
        chance = generator.permutation(count)
        wanted = [*sorted(first), *(int(f) for f in chance if int(f) not in first)]
        order: list[int] = []
        for number in wanted:
            parent = self.discretizer.parent(number)
            order += [f for f in (parent, number) if f is not None and f not in order]
        return order

    @torch.no_grad()
    def _fill(
        self,
        codes: NDArray[np.int64],
        legal: Mapping[int, NDArray[np.bool_]],
        u: Floats,
        order: list[int],
    ) -> NDArray[np.int64]:
        """Draw every hidden field given the others."""
        net = cast(MaskedNet, self.average)
        device, tables = net.head.weight.device, net.tables()
        known = torch.from_numpy(codes).to(device)
        chances = torch.from_numpy(u).to(device)
        masks = net.sizes
        x = net.first.bias.expand(len(codes), -1)
        for number, table in enumerate(tables):
            x = x + table[torch.where(known[:, number] < 0, masks[number], known[:, number])]
        starts = np.concatenate([[0], np.cumsum(net.sizes)])
        for number in order:
            hidden = known[:, number] < 0
            if not bool(hidden.any()):
                continue
            part = slice(int(starts[number]), int(starts[number + 1]))
            logits = functional.linear(net.blocks(x), net.head.weight[part], net.head.bias[part])
            illegal = self._illegal(number, known, legal, device)
            drawn = pick(logits.masked_fill(illegal, -torch.inf), chances[:, number])
            new = torch.where(hidden, drawn, known[:, number])
            before = torch.where(hidden, masks[number], known[:, number])
            x = x + (tables[number][new] - tables[number][before])
            known[:, number] = new
        return known.cpu().numpy()

    def _illegal(
        self, number: int, known: Tensor, legal: Mapping[int, NDArray[np.bool_]], device: torch.device
    ) -> Tensor:
        """Codes of a field that must not be drawn, bool ``[B or 1, size]``."""
        parent = self.discretizer.parent(number)
        illegal = illegal_codes(self.discretizer.fields[number], None if parent is None else known[:, parent], device)
        if number in legal:
            asked = illegal | torch.from_numpy(~legal[number]).to(device)[None]
            illegal = torch.where(asked.all(1, keepdim=True), illegal, asked)  # nothing left: the redraw decides
        return illegal

    # -- likelihood --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_likelihood(self, frame: Any, *, orders: int = 4, seed: int = 0) -> Floats:
        """Log-likelihood of rows in nats ``[N]``, averaged over random orders of the columns.

        Args:
            frame: rows of the fitted table.
            orders: orders; more are nearer to the likelihood's bound and take longer.
            seed: of the orders.
        """
        table = self.schema.table(frame)
        codes = torch.from_numpy(self.discretizer.encode(table).astype(np.int64))
        net = cast(MaskedNet, self.average)
        device = net.head.weight.device
        total = np.zeros(len(codes))
        drawn = [self._order(seeding.rng(seed, f"masked/likelihood/{number}"), []) for number in range(orders)]
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK].to(device)
            for order in drawn:
                known = torch.full_like(block, UNKNOWN)
                for place in order:
                    logits = parted(net(known), net.sizes)[place]
                    own = functional.cross_entropy(logits, block[:, place], reduction="none")
                    total[start : start + BLOCK] -= own.double().cpu().numpy() / orders
                    known[:, place] = block[:, place]
        return total

    def losses(self, frame: Any, *, seed: int = 0) -> Floats | None:
        """Negative log-likelihood of each row ``[N]``, in nats."""
        return -self.log_likelihood(frame, seed=seed)
