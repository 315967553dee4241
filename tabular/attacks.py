"""Privacy, measured by attacks: what whoever has the synthetic rows learns of the rows that were fitted.

Every attack is run on rows that were fitted (*members*) and on as many held-out rows of the same table (*controls*): what it
finds of controls is what the population gives away, only the rest is a leak. Distances to closest records are smoke tests:
Yao et al., "The DCR delusion" (ESORICS 2025) break generators that pass them. Nothing here is a guarantee; figures by
record are never given out, because they would be a leak themselves (Ganev and De Cristofaro, S&P 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.privacy.membership import SURE, Membership, closer_share, membership
from visynth.tabular.columns import Category, Floats, Values
from visynth.tabular.distances import SAME, Space
from visynth.tabular.learners import Boosted, features, scaled
from visynth.tabular.schema import Schema, Table, missing_in, rows_of, stacked, taken

MOST_ROWS = 3000  # members and controls that are attacked
MOST_OTHERS = 20_000  # synthetic rows and real ones that are looked at
LOSS = "the generator's own loss"  # name of the white-box attack
COMPONENTS = 8  # of the densities' projection
TOLERANCE = 0.05  # share of a number's range within which a guess is right
SECRETS = 6  # columns that are attacked
MOST_CLASSES = 30  # of a column that is guessed


@dataclass(frozen=True)
class Guess:
    """Outcome of guessing one column from the others.

    Attributes:
        column: the secret.
        attack: how it is guessed.
        members: share of members guessed right.
        controls: share of controls.
        risk: ``(members - controls) / (1 - controls)``: what membership adds.
        low: lower end of the risk's 95 % interval.
        high: upper end.
        leaks: whether the risk is more than three standard errors above nothing.
    """

    column: str
    attack: str
    members: float
    controls: float
    risk: float
    low: float
    high: float
    leaks: bool


@dataclass(frozen=True)
class Privacy:
    """All attacks on one generator.

    Attributes:
        closer: share of synthetic rows that are closer to members than to equally many controls (ties count half), with its
            95 % interval: 0.5 is chance.
        ratio: median over synthetic rows of nearest over second nearest distance, to members and to controls.
        exact: share of synthetic rows that equal a member, and a control.
        memberships: membership inferences.
        guesses: attribute inference and reconstruction.
    """

    closer: tuple[float, float, float]
    ratio: tuple[float, float]
    exact: tuple[float, float]
    memberships: tuple[Membership, ...]
    guesses: tuple[Guess, ...] = field(default=())

    @property
    def leaks(self) -> list[str]:
        """Attacks that found more than chance, in words."""
        found = [m.attack for m in self.memberships if m.leaks]
        found += [f"{g.attack} of {g.column!r}" for g in self.guesses if g.leaks]
        share, low, _ = self.closer
        if share - 0.5 > SURE * (share - low) / 1.96:
            found.insert(0, "distance to closest record")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def attack(
    members: Table,
    controls: Table,
    fake: Table,
    schema: Schema,
    *,
    seed: int = 0,
    losses: tuple[Floats, Floats] | None = None,
) -> Privacy:
    """Run all attacks.

    Args:
        members: rows that the generator was fitted to.
        controls: as many rows of the same table that it was not fitted to.
        fake: synthetic rows.
        schema: of all of them.
        seed: of the choice of rows.
        losses: the generator's own loss of each member and each control, where it has one (white-box attack).

    Raises:
        DataError: members and controls differ in number: then "closer to members" is what chance gives.
    """
    if rows_of(members) != rows_of(controls):
        raise DataError(
            f"attacks need as many controls as members, but got {rows_of(controls)} and {rows_of(members)}: take equal parts."
        )
    count = min(rows_of(members), MOST_OTHERS)
    order = [
        seeding.rng(seed, f"attack/{side}").permutation(rows_of(members))[:count] for side in ("members", "controls")
    ]
    members, controls = taken(members, order[0]), taken(controls, order[1])
    fake = taken(fake, seeding.rng(seed, "attack/fake").permutation(rows_of(fake))[:MOST_OTHERS])
    space = Space.of(schema, stacked([members, controls]))
    closer, ratio, exact = _closest(space, members, controls, taken(fake, np.arange(min(rows_of(fake), MOST_ROWS))))
    few = np.arange(min(count, MOST_ROWS))
    attacked = taken(members, few), taken(controls, few)
    near = [-space.nearest(side, fake)[0][:, 0] for side in attacked]
    memberships = [membership("distance to the nearest synthetic row", near[0], near[1], seed)]
    if count >= 40:
        memberships.append(_domias(attacked, fake, schema, seed))
    if losses is not None:
        own = [-losses[side][order[side]][few] for side in (0, 1)]
        memberships.append(membership(LOSS, own[0], own[1], seed))
    return Privacy(closer, ratio, exact, tuple(memberships), tuple(_guesses(attacked, fake, schema, space, seed)))


def _closest(
    space: Space, members: Table, controls: Table, fake: Table
) -> tuple[tuple[float, float, float], tuple[float, float], tuple[float, float]]:
    found = [space.nearest(fake, side, 2) for side in (members, controls)]
    first, second = (distances[:, 0] for distances, _ in found)
    share = closer_share((first, found[0][1][:, 0]), (second, found[1][1][:, 0]))
    ratios = [float(np.median(d[:, 0] / np.maximum(d[:, -1], 1e-12))) for d, _ in found]
    exact = float(np.mean(first <= SAME)), float(np.mean(second <= SAME))
    return share, (ratios[0], ratios[1]), exact


def _domias(attacked: tuple[Table, Table], fake: Table, schema: Schema, seed: int) -> Membership:
    """Density of synthetic over density of reference rows (van Breugel et al., "Membership inference attacks against
    synthetic data through overfitting detection", AISTATS 2023, eq. 2): half of the controls are the reference."""
    from scipy.stats import gaussian_kde
    from sklearn.decomposition import PCA

    members, controls = attacked
    half = rows_of(controls) // 2
    reference, controls = taken(controls, np.arange(half)), taken(controls, np.arange(half, rows_of(controls)))
    fake = taken(fake, np.arange(min(rows_of(fake), MOST_ROWS)))
    sides = [members, controls, reference, fake]
    x = scaled(stacked(sides), schema)
    ends = np.cumsum([rows_of(side) for side in sides])[:-1]
    # Densities need few dimensions, and as many rows as these.
    dims = int(min(COMPONENTS, x.shape[1], max(min(half, rows_of(fake)) // 10, 1)))
    own, other, ref, made = np.split(PCA(dims, random_state=seed % 2**32).fit(x).transform(x), ends)
    jitter = seeding.rng(seed, "attack/jitter")
    estimates = [gaussian_kde((side + 1e-4 * jitter.standard_normal(side.shape)).T) for side in (made, ref)]
    scores = [estimates[0].logpdf(side.T) - estimates[1].logpdf(side.T) for side in (own, other)]
    return membership("density against a reference (DOMIAS)", np.nan_to_num(scores[0]), np.nan_to_num(scores[1]), seed)


def secrets(schema: Schema, real: Table) -> list[str]:
    """Columns that are worth guessing: those with the most values that people do not share."""
    entropy = {}
    for column in schema.modelled:
        values = real[column.name]
        if isinstance(column, Category) and len(column.categories) > MOST_CLASSES:
            continue
        shares = np.unique(values[~missing_in(values)], return_counts=True)[1] / max(len(values), 1)
        entropy[column.name] = float(-(shares * np.log(shares)).sum()) if len(shares) else 0.0
    return sorted(entropy, key=lambda name: -entropy[name])[:SECRETS]


def _guesses(attacked: tuple[Table, Table], fake: Table, schema: Schema, space: Space, seed: int) -> Sequence[Guess]:
    found = []
    names = secrets(schema, attacked[0])
    train = taken(fake, np.arange(min(rows_of(fake), 2 * MOST_ROWS)))
    for name in names:
        near = [train[name][space.nearest(side, train, without=name)[1][:, 0]] for side in attacked]
        found.append(_guess(name, "reconstruction from the nearest synthetic row", near, attacked, schema, space))
        if isinstance(schema[name], Category):
            guessed = _inferred(name, attacked, train, schema, seed)
            if guessed is not None:
                found.append(_guess(name, "attribute inference", guessed, attacked, schema, space))
    return found


def _inferred(name: str, attacked: tuple[Table, Table], fake: Table, schema: Schema, seed: int) -> list[Values] | None:
    """The column as a classifier of the synthetic rows guesses it from the others."""
    if len(np.unique(fake[name])) < 2 or len(schema.modelled) < 2:
        return None
    x, categorical = features(fake, schema, [name])
    model = Boosted(categorical, seed, max_iter=60, early_stopping=False).fit(x, fake[name])
    return [model.guesses(features(side, schema, [name])[0]) for side in attacked]


def _guess(
    name: str, how: str, guessed: Sequence[Values], attacked: tuple[Table, Table], schema: Schema, space: Space
) -> Guess:
    rights = [_right(values, side[name], schema, space, name) for values, side in zip(guessed, attacked, strict=True)]
    a, b = (float(right.mean()) for right in rights)
    spread = np.sqrt(sum(right.var() / len(right) for right in rights))
    room = max(1 - b, 1e-9)
    low, high = (a - b - 1.96 * spread) / room, (a - b + 1.96 * spread) / room
    return Guess(name, how, a, b, (a - b) / room, low, high, bool(a - b > SURE * spread))


def _right(guessed: Values, truth: Values, schema: Schema, space: Space, name: str) -> NDArray[np.bool_]:
    if isinstance(schema[name], Category):
        return np.asarray(guessed == truth)
    near = np.abs(guessed - truth) <= TOLERANCE * space.ranges[name]
    return np.asarray(near | (np.isnan(guessed) & np.isnan(truth)))
