"""What a private training does: all that its epsilon depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visynth.core.errors import UsageError
from visynth.privacy.accounting import Accountant, Release, epsilon_of, noise_for, statement


@dataclass(frozen=True)
class PrivacyPlan:
    """What a private training does: all that its epsilon depends on.

    Attributes:
        epsilon: asked for.
        delta: probability with which the promise may fail; below one in the number of units.
        unit: what one unit is; whoever stands in several has less privacy than the number says.
        units: in the data; taken as known to everybody.
        batch: units expected in a step.
        steps: of the training.
        noise: noise multiplier.
        max_grad_norm: length to which a unit's gradient is cut.
        multiplicity: rows of a unit in its batch.
        accountant: by which the noise was chosen.
        before: releases before the training (preprocessing that was paid for).
        grouping: hash of which rows are one unit; empty where each is one.
    """

    epsilon: float
    delta: float
    unit: str
    units: int
    batch: int
    steps: int
    noise: float
    max_grad_norm: float
    multiplicity: int
    accountant: Accountant
    before: tuple[Release, ...] = ()
    grouping: str = ""

    @property
    def rate(self) -> float:
        """Probability with which a unit is in a step's batch."""
        return min(1.0, self.batch / self.units)

    def spent(self, steps: int) -> dict[str, Any]:
        """Epsilon after some steps, and what it rests on: for cards and reports."""
        releases = [*self.before, Release("training (DP-SGD)", self.noise, self.rate, steps)]
        sampler = f"Poisson, {self.rate:.6g} of the {self.unit}s a step"
        return statement(
            releases, self.delta, self.accountant, self.unit, sampler,
            **{
                "noise multiplier": self.noise, "max_grad_norm": self.max_grad_norm, "steps": steps,
                "noise multiplicity": self.multiplicity,
            },
        )  # fmt: skip

    @classmethod
    def of(cls, epsilon: float, delta: float, *, most_noise: float, **values: Any) -> PrivacyPlan:
        """The plan that reaches an epsilon.

        Args:
            epsilon: asked for.
            delta: see above.
            most_noise: noise of a step over the batch and ``max_grad_norm``, above which nothing is learned.
            values: all other attributes but the noise.

        Raises:
            UsageError: so much noise; says which epsilon can be reached.
        """
        units, batch, steps = values["units"], values["batch"], values["steps"]
        accountant, before = values["accountant"], values.get("before", ())
        noise = noise_for(epsilon, delta, batch / units, steps, before=before, accountant=accountant)
        if noise / batch > most_noise:
            least = Release("training", most_noise * batch, batch / units, steps)
            reachable = epsilon_of([*before, least], delta, accountant)
            unit = values["unit"]
            raise UsageError(
                f"epsilon {epsilon:g} with {units} {unit}s, {batch} a step and {steps} steps needs noise of "
                f"{noise:.3g} times a gradient's length, {noise / batch:.2g} of it in each coordinate of the mean (at most "
                f"{most_noise:g} here): nothing would be learned. Reachable so: epsilon {reachable:.3g}. Larger batches and "
                "fewer steps need less noise; so do more data. Or fine-tune a public model, or release few statistics instead "
                "(tables: 'dp_marginals'; images: MeanEmbedding)."
            )
        return cls(epsilon, delta, noise=noise, **values)
