"""Noisy counts of the columns that need them most: AIM, by the library ``mbi`` (an extra).

McKenna, Mullins, Sheldon and Miklau, "AIM: an adaptive and iterative mechanism for differentially private synthetic data" (PVLDB
15(11), 2022), algorithms 1 and 2: in rounds, the table of columns that the model knows worst is chosen by the exponential
mechanism, counted with Gaussian noise, and a graphical model is fitted to all that was counted. Its rows then give the counts of
pairs that the mixture of :mod:`visynth.tabular.dp_marginals` is fitted to, from which rows under any condition are drawn.

The budget is one of zero-concentrated differential privacy (Bun and Steinke, 2016): noise of s counts costs 1 / (2 s^2), a choice
with epsilon e costs e^2 / 8, and the sum never exceeds that of one Gaussian release with the noise that is written down.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import MissingExtra, UsageError
from visynth.core.progress import Progress, no_progress
from visynth.privacy.accounting import Release, noise_for, statement
from visynth.privacy.secret import secret_rng
from visynth.tabular.columns import Floats
from visynth.tabular.dp_marginals import PrivateMarginals
from visynth.tabular.private import PrivateTable, TablePrivacy

SHARE = 0.9  # of a round's budget that goes to counting; the rest to choosing
ROUNDS = 4  # for each column, by default
ROWS = 50_000  # of the graphical model, at least, that the mixture is fitted to
HALF_NORMAL = math.sqrt(2 / math.pi)  # mean of a normal number's absolute value

Clique = tuple[int, ...]


class AIM(PrivateMarginals):
    """A mixture of products of categorical distributions, fitted to what AIM learned with noise.

    Without privacy it counts all pairs, as :class:`~visynth.tabular.dp_marginals.PrivateMarginals` does.

    Args:
        rounds: after which the budget would be spent in equal parts; None: 4 for each column (16 in the paper, which takes four
            times as long). Parts double where a round brought little, so that there are fewer.
        estimation_steps: of the graphical model in each round.
        most_megabytes: of the graphical model.
        components: of the mixture.
        steps: of its fit to the counts.
        lr: of Adam in this fit.
        most_bins: bins of a number at most.
        rare_below: rows that a category or bin needs.
        seed: of the fit of the mixture.

    Raises:
        MissingExtra: at a private fit without ``mbi``.

    Example:
        >>> AIM(most_megabytes=4.0).options["most_megabytes"]
        4.0
    """

    network = "dp_aim"
    fits_by = "noisy counts of columns chosen by AIM"

    def __init__(
        self,
        rounds: int | None = None,
        estimation_steps: int = 500,
        most_megabytes: float = 8.0,
        components: int = 1000,
        steps: int = 1000,
        lr: float = 0.1,
        most_bins: int = 24,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(components, steps, lr, most_bins, rare_below, seed)
        self.options |= {"rounds": rounds, "estimation_steps": estimation_steps, "most_megabytes": most_megabytes}
        if (rounds is not None and rounds < 1) or estimation_steps < 1 or not most_megabytes > 0:
            raise UsageError(
                f"dp_aim: rounds and estimation_steps must be at least 1 and most_megabytes above 0, but got {rounds}, "
                f"{estimation_steps}, {most_megabytes}."
            )

    def check_privacy(self, options: TablePrivacy) -> None:
        if options.accountant != "rdp":
            raise UsageError("dp_aim: its choices are counted by Renyi divergences: take accountant 'rdp'.")
        graphical_models()

    def _count(
        self, codes: NDArray[np.int32], private: PrivateTable | None, progress: Progress
    ) -> dict[str, NDArray[Any]]:
        if private is None:
            return super()._count(codes, None, progress)
        before, options = private.releases, private.options
        noise = noise_for(options.epsilon, private.delta, 1.0, 1, before=before)
        release = Release("tables chosen and counted (AIM)", noise, 1.0, 1, gaussian=False)
        learned = _Rounds(codes, self.sizes, self.workload(), 1 / (2 * noise**2), self.options, private.key, progress)
        synthetic = learned.run()
        spent = statement([*before, release], private.delta, "rdp", "row", "all rows", **learned.facts())
        self._fitted = replace(self.fitted, privacy=spent)
        return super()._count(synthetic, None, progress)

    def workload(self) -> list[Clique]:
        """Fields whose joint counts matter: all pairs, within each class where there is a target."""
        fields, target = range(len(self.sizes)), self.target_field
        if len(self.sizes) == 1:
            return [(0,)]
        if target is None:
            return list(itertools.combinations(fields, 2))
        return [tuple(sorted((a, b, target))) for a, b in itertools.combinations([f for f in fields if f != target], 2)]


def graphical_models() -> Any:
    """The library ``mbi``.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with warnings.catch_warnings():  # it asks for 64 bits, which it gets below, where it is used
            warnings.filterwarnings("ignore", module="mbi")
            warnings.filterwarnings("ignore", message="JAX ")
            import mbi
    except ImportError:
        raise MissingExtra("dp_aim needs mbi: pip install 'visynth[dp-aim]'.") from None
    return mbi


@dataclass
class _Rounds:
    """The adaptive loop; ``spent`` and ``budget`` are in units of zero-concentrated differential privacy (rho)."""

    codes: NDArray[np.int32]
    sizes: Sequence[int]
    workload: Sequence[Clique]
    budget: float
    options: dict[str, Any]
    key: str
    progress: Progress = no_progress
    spent: float = 0.0
    measured: list[tuple[Clique, Floats, float]] = field(default_factory=list)
    model: Any = None
    _known: dict[Clique, Floats] = field(default_factory=dict)

    def run(self) -> NDArray[np.int32]:
        """Codes of rows of the model ``[N, fields]`` that the budget affords."""
        fields = len(self.sizes)
        rounds = self.options["rounds"] or ROUNDS * fields
        noise = math.sqrt(max(rounds, fields) / (2 * SHARE * self.budget))
        epsilon = math.sqrt(8 * (1 - SHARE) * self.budget / max(rounds, fields))
        for number in range(fields):
            self._measure((number,), noise)
        rows = self._estimate()
        while self.spent < self.budget * (1 - 1e-9):
            left = self.budget - self.spent
            if left <= 2 * (_cost(noise) + epsilon**2 / 8):  # the last round takes what is left
                noise, epsilon = math.sqrt(1 / (2 * SHARE * left)), math.sqrt(8 * (1 - SHARE) * left)
            clique = self._choose(rows, noise, epsilon)
            before = self._answers(rows, clique)
            self._measure(clique, noise)
            self.progress(
                f"    dp_aim: {len(self.measured)} tables counted, {self.spent / self.budget:.0%} of the budget spent"
            )
            rows = self._estimate()
            moved = np.abs(self._answers(rows, clique) - before).sum()
            if moved <= HALF_NORMAL * noise * len(before):  # what was counted told no more than its noise
                noise, epsilon = noise / 2, 2 * epsilon
        return rows

    def facts(self) -> dict[str, Any]:
        """What was done, for the record; the choices are as private as the counts."""
        return {"tables counted": len(self.measured), "budget (zCDP)": self.budget, "budget spent": self.spent}

    def candidates(self) -> dict[Clique, float]:
        """Tables that may be counted, each with its weight: how much of the workload it is in."""
        parts = {
            part
            for one in self.workload
            for size in range(1, len(one) + 1)
            for part in itertools.combinations(one, size)
        }
        return {part: float(sum(len(set(part) & set(one)) for one in self.workload)) for part in sorted(parts)}

    @cached_property
    def _weights(self) -> dict[Clique, float]:
        """The candidates, which are the same in every round."""
        return self.candidates()

    def scores(self, rows: NDArray[np.int32], noise: float) -> tuple[list[Clique], Floats, float]:
        """Tables, how much worse than its noise the model knows each, times its weight (eq. 1 of the paper), and by how much one
        row may change that."""
        found = [
            weight * (np.abs(self._exact(c) - self._answers(rows, c)).sum() - HALF_NORMAL * noise * self._cells(c))
            for c, weight in self._weights.items()
        ]
        return list(self._weights), np.array(found), max(self._weights.values())

    def _choose(self, rows: NDArray[np.int32], noise: float, epsilon: float) -> Clique:
        """The exponential mechanism over tables with which the model stays small enough: the largest score with Gumbel noise of
        those that fit, looked for from the top, because how large a model would be takes long to know."""
        self.spent += epsilon**2 / 8
        cliques, scores, sensitivity = self.scores(rows, noise)
        gumbel = secret_rng(self.key, f"aim/choice/{len(self.measured)}").gumbel(size=len(cliques))
        order = np.argsort(-(scores * (epsilon / (2 * sensitivity)) + gumbel), kind="stable")
        return next(cliques[place] for place in order if self._fits(cliques[place]))

    def _fits(self, clique: Clique) -> bool:
        """Whether the model may grow by a table: as far as the budget is spent, so far may it be filled."""
        from mbi import junction_tree

        known = [set(own) for own, _, _ in self.measured]
        if len(clique) == 1 or any(set(clique) <= own for own in known):
            return True
        names = [self._names(own) for own, _, _ in self.measured]
        size = junction_tree.hypothetical_model_size(self._domain(), [*names, self._names(clique)])
        return bool(size <= self.options["most_megabytes"] * self.spent / self.budget)

    def _measure(self, clique: Clique, noise: float) -> None:
        self.spent += _cost(noise)
        # A stream for each table: a fit that chooses otherwise, elsewhere, never meets the same numbers on other counts.
        generator = secret_rng(self.key, f"aim/noise/{len(self.measured)}/{clique}")
        self.measured.append(
            (clique, self._exact(clique) + noise * generator.standard_normal(self._cells(clique)), noise)
        )

    def _estimate(self) -> NDArray[np.int32]:
        """Fit the graphical model to all that was counted, and draw its rows."""
        import jax
        from mbi import LinearMeasurement
        from mbi.estimation import MirrorDescent

        with jax.enable_x64(True):
            measurements = [LinearMeasurement(counts, self._names(c), noise) for c, counts, noise in self.measured]
            self.model = MirrorDescent().estimate(
                self._domain(), measurements, known_total=float(len(self.codes)), iters=self.options["estimation_steps"],
                warm_start=self.model,
            )  # fmt: skip
            state = np.random.get_state()
            # The library draws rows by numpy's global generator.
            np.random.seed(int(secret_rng(self.key, f"aim/rows/{len(self.measured)}").integers(2**31)))
            try:
                drawn = self.model.synthetic_data(max(ROWS, len(self.codes)))
            finally:
                np.random.set_state(state)
        columns = drawn.to_dict()
        return np.stack([np.asarray(columns[str(n)], np.int32) for n in range(len(self.sizes))], axis=1)

    def _exact(self, clique: Clique) -> Floats:
        if clique not in self._known:
            self._known[clique] = self._counted(self.codes, clique)
        return self._known[clique]

    def _answers(self, rows: NDArray[np.int32], clique: Clique) -> Floats:
        """What the model says of a table, in as many rows as the data have."""
        return np.asarray(self._counted(rows, clique) * (len(self.codes) / len(rows)))

    def _counted(self, codes: NDArray[np.int32], clique: Clique) -> Floats:
        flat = np.ravel_multi_index(tuple(codes[:, f] for f in clique), [self.sizes[f] for f in clique])
        return np.bincount(flat, minlength=self._cells(clique)).astype(np.float64)

    def _cells(self, clique: Clique) -> int:
        return math.prod(self.sizes[f] for f in clique)

    def _names(self, clique: Clique) -> tuple[str, ...]:
        return tuple(str(f) for f in clique)

    def _domain(self) -> Any:
        from mbi import Domain

        return Domain([str(n) for n in range(len(self.sizes))], list(self.sizes))


def _cost(noise: float) -> float:
    """Of counting a table once, in rho.

    Example:
        >>> _cost(2.0)
        0.125
    """
    return 1 / (2 * noise**2)
