"""``visynth audit`` of a table generator: the attacks of :mod:`visynth.tabular.attacks` with a positive and a negative control."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, bullets, environment, table
from visynth.privacy.audit import Attacked, Findings, attack_blocks, blind, bound_by_scores, check_sides, claim_blocks
from visynth.privacy.membership import Floats, Membership, membership
from visynth.tabular.attacks import LOSS, Privacy, attack
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category
from visynth.tabular.distances import Space
from visynth.tabular.fitted import row_hashes
from visynth.tabular.frames import to_pandas
from visynth.tabular.learners import features
from visynth.tabular.schema import Schema, Table, rows_of, stacked, taken
from visynth.tabular.shadow import NAME as SHADOWS
from visynth.tabular.shadow import NEIGHBOURS, Rows, Seen, halves, shadow_scores

MOST = 20_000  # rows a side
LEAST_SHADOWS, LEAST_SHADOWED = 4, 80  # shadow models, and rows a side for them
HEART, HEART_STEPS = 100, 600  # rows that the positive control of the loss is fitted to, and its steps


def audit_table(
    generator: Synthesizer,
    train: Any,
    holdout: Any,
    *,
    shadows: int = 0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Report:
    """Attack a generator with rows that it was fitted to and rows that it was not.

    Args:
        generator: fitted.
        train: frame of the rows that it was fitted to.
        holdout: frame of other rows of the same table.
        shadows: generators of the same kind to fit to parts of the held-out rows, which teach what a member looks like; 0: none.
        seed: of everything.
        progress: receives lines.

    Raises:
        UsageError: no holdout; one shadow model.
        DataError: rows that the generator was not fitted to, the same rows on both sides, too few of either.
    """
    check_sides(len(train), len(holdout))
    if shadows and (shadows < LEAST_SHADOWS or shadows % 2):
        raise UsageError(f"shadows must be 0, or an even number of at least {LEAST_SHADOWS}, but got {shadows}.")
    schema, train, holdout, real, held, notes = _read(generator, train, holdout)
    count = min(rows_of(real), rows_of(held), MOST)
    check_sides(count, count)
    if shadows and count < LEAST_SHADOWED:
        raise DataError(
            f"shadow models need at least {LEAST_SHADOWED} rows a side, a quarter of which each is fitted to, but there are {count}."
        )
    picked = [
        seeding.rng(seed, f"audit/{side}").permutation(n)[:count]
        for side, n in (("own", rows_of(real)), ("held", rows_of(held)))
    ]
    own, others = taken(real, picked[0]), taken(held, picked[1])
    progress(f"drawing {count} rows")
    fake = schema.table(generator.sample(count, seed=seed))
    losses = _losses(generator, [frame.iloc[rows] for frame, rows in zip((train, holdout), picked, strict=True)], seed)
    progress("attacking")
    found = attack(own, others, fake, schema, seed=seed, losses=losses)
    half = count // 2
    first, second = taken(others, np.arange(half)), taken(others, np.arange(half, 2 * half))
    # Where leaking is certain: what comes out are rows that went in.
    sure = {m.attack: m for m in attack(first, second, first, schema, seed=seed).memberships}
    if losses is not None:
        progress("fitting a model that knows its rows by heart")
        sure[LOSS] = _by_heart(generator, holdout, picked[1][: 2 * half], seed)
    x, categorical = features(stacked([own, others]), schema, [])
    none = blind(x[:count], x[count:], seed, categorical=np.array(categorical, bool))
    attacks = [
        Attacked(one, sure[one.attack], none, one.attack == LOSS) for one in found.memberships if one.attack in sure
    ]
    if shadows:
        sides = [Rows(one, frame.iloc[rows].reset_index(drop=True)) for one, frame, rows in
                 zip((own, others), (train, holdout), picked, strict=True)]  # fmt: skip
        attacks.append(_shadowed(generator, sides[0], sides[1], fake, shadows, none, seed, progress))
    privacy = dict(generator.fitted.privacy)
    bounds: dict[str, tuple[float, int, int]] = {}
    if losses is not None:
        bounds[LOSS] = bound_by_scores(-losses[0], -losses[1], privacy.get("delta", 0.0))
    if not shadows:
        notes.append("not tried: shadow models (--shadows 4)")
    elif privacy:
        notes.append("shadow models were fitted without privacy, as if they leaked more than the generator")
    return _report(generator, found, attacks, bounds, notes, count)


def _read(generator: Synthesizer, train: Any, holdout: Any) -> tuple[Schema, Any, Any, Table, Table, list[str]]:
    """Both sides as frames and under the generator's schema, checked against its fingerprints; what was left out is told."""
    schema = generator.schema
    frames, notes = [], []
    for name, side in (("training", train), ("held-out", holdout)):
        frame, _ = to_pandas(side)
        known = _known_rows(schema, frame)
        if not known.all():
            notes.append(f"{int((~known).sum())} {name} rows have values that the generator does not know: left out")
        frames.append(frame[known].reset_index(drop=True))
    real, held = (schema.table(frame) for frame in frames)
    prints = row_hashes(schema, real), row_hashes(schema, held)
    if sorted(prints[0]) == sorted(prints[1]):
        raise DataError("the training rows and the held-out rows are the same: give rows that were not fitted.")
    marks = {member.sha256 for member in generator.fitted.members}
    if not marks:
        notes.append("which rows were fitted was taken from the files: the generator has no fingerprints")
        return schema, frames[0], frames[1], real, held, notes
    ours, theirs = (np.array([h in marks for h in side]) for side in prints)
    strangers = int((~ours).sum()) + len(train) - len(frames[0])
    if strangers:
        raise DataError(
            f"{strangers} of {len(train)} training rows are none that the generator was fitted to: give the file that it was "
            "fitted to, unaltered."
        )
    if theirs.any():  # equal rows are fair draws: without them the controls would be the rare rows alone
        notes.append(f"{int(theirs.sum())} of {len(theirs)} held-out rows equal fitted ones")
    return schema, frames[0], frames[1], real, held, notes


def _known_rows(schema: Schema, frame: Any) -> NDArray[np.bool_]:
    """Rows whose every value the schema can hold, bool ``[N]``."""
    known = np.ones(len(frame), bool)
    for column in schema.modelled:
        if column.name not in frame.columns:
            continue
        gone = column.is_missing(frame[column.name])
        if isinstance(column, Category) and not column.catch_all:
            values = set(column.categories)
            known &= gone | np.array([value in values for value in frame[column.name].tolist()], bool)
        if not column.nullable and not getattr(column, "catch_all", False):
            known &= ~gone
    return known


def _by_heart(generator: Synthesizer, holdout: Any, rows: NDArray[np.int64], seed: int) -> Membership:
    """The loss attack on a model of the same kind that was fitted to a few rows alone."""
    half = len(rows) // 2
    sides = [holdout.iloc[rows[start : start + min(HEART, half)]].reset_index(drop=True) for start in (0, half)]
    options = dict(generator.arguments()["hparams"])
    options |= {"steps": min(int(options["steps"]), HEART_STEPS)} if "steps" in options else {}
    taught = type(generator)(**options).fit(
        sides[0], schema=generator.schema, target=generator.fitted.target, members="none"
    )
    lower = [taught.losses(side, seed=seed) for side in sides]
    assert lower[0] is not None
    assert lower[1] is not None
    return membership(LOSS, -lower[0], -lower[1], seed)


def _shadowed(
    generator: Synthesizer,
    own: Rows,
    others: Rows,
    fake: Table,
    count: int,
    none: Membership,
    seed: int,
    progress: Progress,
) -> Attacked:
    """The attack that shadow models teach: half of the controls are theirs, and it is asked of the other half."""
    half = len(others) // 2
    pool, held = others.take(np.arange(half)), others.take(np.arange(half, 2 * half))
    asked = [own.take(np.arange(half)), held]
    space = Space.of(generator.schema, stacked([own.table, others.table]))
    inside = halves(half, count, seed)
    models = []
    for number, rows in enumerate(inside):
        progress(f"fitting shadow model {number + 1} of {count}")
        # As many synthetic rows for each fitted one as the attacked generator gave.
        drawn = max(len(rows) * rows_of(fake) // max(generator.fitted.rows, 1), NEIGHBOURS)
        models.append(_shadow(generator, pool.take(rows).frame, drawn, number))
    scores = shadow_scores(
        Seen(fake, lambda frame: generator.losses(frame, seed=seed)), models, inside, pool, asked, space
    )
    found = membership(SHADOWS, scores[0], scores[1], seed)
    # Where leaking is certain: all models give their rows back.
    copying = [Seen(pool.take(rows).table) for rows in inside]
    first, second = held.take(np.arange(half // 2)), held.take(np.arange(half // 2, 2 * (half // 2)))
    sure = shadow_scores(Seen(first.table), copying, inside, pool, [first, second], space)
    inside_looks = generator.losses(own.frame.iloc[:1], seed=seed) is not None
    return Attacked(found, membership(SHADOWS, sure[0], sure[1], seed), none, inside_looks)


def _shadow(generator: Synthesizer, frame: Any, count: int, seed: int) -> Seen:
    """A generator of the same kind, fitted to some rows."""
    options = dict(generator.arguments()["hparams"])
    model = type(generator)(**{**options, "seed": int(options.get("seed", 0)) + seed + 1}).fit(
        frame, schema=generator.schema, target=generator.fitted.target, members="none"
    )
    return Seen(generator.schema.table(model.sample(count, seed=seed)), lambda frame: model.losses(frame, seed=seed))


def _losses(generator: Synthesizer, frames: list[Any], seed: int) -> tuple[Floats, Floats] | None:
    """The generator's own loss of members and controls, where it has one."""
    own, others = (generator.losses(frame.reset_index(drop=True), seed=seed) for frame in frames)
    return None if own is None or others is None else (own, others)


def _report(
    generator: Synthesizer,
    found: Privacy,
    attacks: list[Attacked],
    bounds: dict[str, tuple[float, int, int]],
    notes: list[str],
    count: int,
) -> Report:
    guessed = [f"{g.attack} of {g.column!r}" for g in found.guesses if g.leaks]
    findings = Findings(attacks, bounds, generator.fitted.privacy, found.closer, guessed)
    report = Report("privacy audit", generator.network, lead=findings.lead)
    report.section("Membership inference", *attack_blocks(attacks))
    rows = []
    for g in found.guesses:
        said = f"{g.risk:.3f} [{g.low:.3f}, {g.high:.3f}]"
        finding = "leaks" if g.leaks else "nothing found"
        rows.append([g.column, g.attack, f"{g.members:.3f}", f"{g.controls:.3f}", said, finding])
    heads = ["column", "attack", "members guessed right", "controls", "risk [95 %]", "finding"]
    report.section(
        "Attribute inference and reconstruction", table(heads, rows, "Controls are what the population gives away.")
    )
    if bounds:
        report.section("Lower bounds on epsilon", *claim_blocks(findings))
    share, low, high = found.closer
    report.section(
        "Copies",
        table(
            [
                "synthetic rows closer to fitted ones than to as many others",
                "95 %",
                "equal to a fitted row",
                "to another",
            ],
            [[f"{share:.3f}", f"[{low:.3f}, {high:.3f}]", f"{found.exact[0]:.2%}", f"{found.exact[1]:.2%}"]],
        ),
    )
    report.section(
        "Not tested",
        bullets(
            [
                *notes,
                "distances of single rows are not written down: they would be a leak themselves",
            ]
        ),
    )
    report.conditions |= {
        "generator": generator.digest,
        "rows a side": count,
        "audit": {**findings.to_json(), "guesses": [asdict(g) for g in found.guesses]},
        **environment(),
    }
    return report
