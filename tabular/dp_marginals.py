"""Noisy counts of pairs of columns, and rows that have them: what serves best where epsilon is small.

All pairs of columns are counted once (within each class of the target, where there are few), with Gaussian noise. Then a
mixture of products of categorical distributions is fitted to the counts, which costs nothing more: Aydore et al.,
"Differentially private query release through adaptive projection" (ICML 2021, "RAP softmax"), and Liu, Vietri and Wu,
"Iterative methods for private synthetic data: unifying framework and new methods" (NeurIPS 2021, "GEM"). Rows under any
condition are drawn from the mixture exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.core.progress import Progress
from visynth.privacy.accounting import Release, noise_for, statement
from visynth.privacy.secret import secret_rng
from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.counting import Counting
from visynth.tabular.draws import BLOCK, Draw
from visynth.tabular.layers import illegal_codes, parted
from visynth.tabular.private import PrivateTable
from visynth.tabular.schema import Table

MOST_CLASSES = 10  # of a target within which pairs are counted
LEAST_LOG = -30.0  # logarithm of a probability that is as good as none


class PrivateMarginals(Counting):
    """A mixture of products of categorical distributions, fitted to noisy counts of pairs.

    Args:
        components: of the mixture.
        steps: of the fit to the counts.
        lr: of Adam in this fit.
        most_bins: bins of a number at most; fewer bins have larger counts under the same noise.
        rare_below: rows that a category or bin needs.
        seed: of the fit.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"x": ["a", "b"] * 60, "y": ["c", "d"] * 60})
        >>> rows = PrivateMarginals(components=20, steps=200).fit(frame).sample(100)
        >>> bool((rows["x"] == "a").eq(rows["y"] == "c").mean() > 0.9)
        True
    """

    network = "dp_marginals"
    fits_by = "noisy counts of pairs of columns"
    fits_privately = True

    def __init__(
        self,
        components: int = 1000,
        steps: int = 1000,
        lr: float = 0.1,
        most_bins: int = 24,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(most_bins, rare_below, seed)
        self.options |= {"components": components, "steps": steps, "lr": lr}

    # -- counts ----------------------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> list[int]:
        """Codes of each field."""
        return [field.size for field in self.discretizer.fields]

    @property
    def target_field(self) -> int | None:
        """The field within whose codes pairs are counted."""
        target = self.fitted.target
        if target is None:
            return None
        places = self.discretizer.places[target]
        if len(self.sizes) < 3:  # no pairs beside it: it is one of the pair
            return None
        return places[0] if len(places) == 1 and self.sizes[places[0]] <= MOST_CLASSES else None

    @property
    def tables_counted(self) -> int:
        """Tables of counts; a row adds one to one cell of each."""
        fields = len(self.sizes) - (self.target_field is not None)
        return fields * (fields - 1) // 2 + len(self.sizes)

    def _release(self, private: PrivateTable) -> Release:
        """The counts as one release, with the noise that what is left of epsilon asks for; it is noted in ``fitted``."""
        options, count = private.options, self.tables_counted
        noise = noise_for(
            options.epsilon, private.delta, 1.0, count, before=private.releases, accountant=options.accountant
        )
        release = Release("counts of pairs of columns", noise, 1.0, count)
        spent = statement([*private.releases, release], private.delta, options.accountant, "row", "all rows")
        self._fitted = replace(self.fitted, privacy=spent)
        return release

    def _count(
        self, codes: NDArray[np.int32], private: PrivateTable | None, progress: Progress
    ) -> dict[str, NDArray[Any]]:
        singles, pairs = self._counts(codes)
        if private is not None:
            noise, generator = self._release(private).noise, secret_rng(private.key, "marginals")
            singles = singles + noise * generator.standard_normal(singles.shape)
            # Each pair is one table, so the noise of its two sides is the same.
            upper = np.triu(np.ones(pairs.shape[1:], bool))
            drawn = noise * generator.standard_normal(pairs.shape)
            pairs = pairs + np.where(upper, drawn, drawn.transpose(0, 2, 1))
        rows = len(codes)
        with torch.random.fork_rng(devices=[]):
            logits = self._project(torch.from_numpy(singles / rows).float(), torch.from_numpy(pairs / rows).float())
        return {"logits": logits.numpy()}

    def _counts(self, codes: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """Counts of each code ``[S]``, and of each pair of codes ``[classes, S, S]``, within each class of the target."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        places = codes.astype(np.int64) + starts[:-1]
        size, target = int(starts[-1]), self.target_field
        groups = [np.arange(len(codes))] if target is None else [
            np.flatnonzero(codes[:, target] == code) for code in range(self.sizes[target])
        ]  # fmt: skip
        pairs = np.zeros((len(groups), size, size))
        for number, rows in enumerate(groups):
            for first in range(places.shape[1]):
                for second in range(first + 1, places.shape[1]):
                    flat = places[rows, first] * size + places[rows, second]
                    pairs[number].reshape(-1)[:] += np.bincount(flat, minlength=size * size)
        pairs += pairs.transpose(0, 2, 1)
        return np.bincount(places.reshape(-1), minlength=size).astype(np.float64), pairs

    # -- the mixture -----------------------------------------------------------------------------------------------------

    def _mask(self) -> Tensor:
        """Pairs of codes of different fields that are counted ``[S, S]``."""
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))
        mask = owner[:, None] != owner[None, :]
        if self.target_field is not None:
            mine = owner == self.target_field
            mask &= ~mine[:, None] & ~mine[None, :]
        return mask

    def _project(self, singles: Tensor, pairs: Tensor) -> Tensor:
        """Logits ``[components, S]`` whose products have these shares, by least squares."""
        options, sizes = self.options, self.sizes
        generator = torch.Generator().manual_seed(seeding.derive("marginals", options["seed"]) % 2**31)
        start = singles.clamp_min(1e-5).log()
        logits = (
            start + 0.5 * torch.randn((int(options["components"]), len(start)), generator=generator)
        ).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=float(options["lr"]), betas=(0.9, 0.99))
        mask, steps = self._mask(), int(options["steps"])
        never = torch.cat([illegal_codes(field, None, start.device)[0] for field in self.discretizer.fields])
        target = self.target_field
        at = slice(0, 0) if target is None else slice(sum(sizes[:target]), sum(sizes[: target + 1]))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = float(options["lr"]) * 0.5 * (1 + np.cos(np.pi * step / steps))
            shares = self._shares(logits.masked_fill(never, LEAST_LOG))
            weights = [torch.ones(len(shares))] if target is None else list(shares[:, at].T)
            loss = ((shares.mean(0) - singles) ** 2).sum()
            for weight, counted in zip(weights, pairs, strict=True):
                fitted = (shares * weight[:, None]).T @ shares / len(shares)
                loss = loss + (((fitted - counted) ** 2) * mask).sum() / 2
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return logits.detach().masked_fill(never, LEAST_LOG)

    def _shares(self, logits: Tensor) -> Tensor:
        """Probabilities of codes in each component ``[components, S]``."""
        return torch.cat([part.softmax(1) for part in parted(logits, self.sizes)], dim=1)

    def _tables(self) -> list[Floats]:
        """Probabilities of each field's codes ``[components, size]``."""
        logits = torch.from_numpy(self._tensors["logits"])
        return [part.double().softmax(1).numpy() for part in parted(logits, self.sizes)]

    # -- sampling --------------------------------------------------------------------------------------------------------

    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        fields, places, tables = self.discretizer.fields, self.discretizer.places, self._tables()
        count = len(draw.keys)
        codes = np.full((count, len(fields)), -1, np.int64)
        for name, (values, given) in conditions.fixed.items():
            if name in places:
                own = self.discretizer.by_column[name].encode(values)
                codes[:, list(places[name])] = np.where(given[:, None], own, -1)
        legal: dict[int, NDArray[np.bool_]] = {}
        for name, allowed in conditions.allowed.items():
            if name in places:
                masks = self.discretizer.by_column[name].within(allowed.holds, *allowed.ends)
                legal |= {place: mask for place, mask in zip(places[name], masks, strict=True) if mask.any()}
        u = draw.uniforms(2 * len(fields) + 1, "dp_marginals")
        chosen = _picked(self._component_shares(codes, legal, tables), u[:, -1])
        for number, table in enumerate(tables):
            chances: Floats = table[chosen] * legal.get(number, True)
            parent = self.discretizer.parent(number)
            if parent is not None:
                limits = np.array(fields[number].limits)[codes[:, parent]]
                chances = chances * (np.arange(fields[number].size)[None] < limits[:, None])
            chances = np.where(chances.sum(1, keepdims=True) > 0, chances, table[chosen])
            codes[:, number] = np.where(codes[:, number] < 0, _picked(chances, u[:, number]), codes[:, number])
        decoded = self.discretizer.decode(codes.astype(np.int32), u[:, len(fields) : 2 * len(fields)])
        return conditions.written_over(decoded)

    def _component_shares(
        self, codes: NDArray[np.int64], legal: Mapping[int, NDArray[np.bool_]], tables: list[Floats]
    ) -> Floats:
        """Probability of each component given what is fixed ``[N, components]``."""
        logs = np.zeros((len(codes), len(tables[0])))
        for number, table in enumerate(tables):
            given = codes[:, number] >= 0
            if given.any():
                logs[given] += np.log(np.maximum(table[:, codes[given, number]].T, 1e-300))
            if number in legal:
                logs[~given] += np.log(np.maximum((table * legal[number]).sum(1), 1e-300))
        shares = np.exp(logs - logs.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True))

    def losses(self, frame: Any, *, seed: int = 0) -> Floats | None:
        """Negative log-likelihood of each row ``[N]``, in nats, under the mixture."""
        codes = self.discretizer.encode(self.schema.table(frame)).astype(np.int64)
        tables, found = self._tables(), np.zeros(len(codes))
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK]
            logs = sum(np.log(np.maximum(table[:, block[:, n]].T, 1e-300)) for n, table in enumerate(tables))
            found[start : start + BLOCK] = -np.logaddexp.reduce(logs, axis=1) + np.log(len(tables[0]))
        return found


def _picked(shares: Floats, u: Floats) -> NDArray[np.int64]:
    """Places int64 ``[N]`` by inverting the cumulative shares ``[N, K]`` at u ``[N]``.

    Example:
        >>> _picked(np.array([[0.5, 0.0, 0.5]] * 3), np.array([0.2, 0.6, 0.999])).tolist()
        [0, 2, 2]
    """
    cumulative = np.cumsum(shares, axis=1)
    drawn = (cumulative < u[:, None] * cumulative[:, -1:]).sum(1)
    last = shares.shape[1] - 1 - (shares[:, ::-1] > 0).argmax(1)
    return np.asarray(np.minimum(drawn, last))
