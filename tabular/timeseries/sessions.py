"""Sessions of users as series of events, and their replay as arrivals of requests at a given rate.

A session is an entity whose rows are events: a type, the time since the one before, attributes. A model with irregular times
and an end (:class:`SeriesAR`) draws whole sessions; :func:`replay` starts them at times at which requests arrive at the
asked rate, for load tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, raise_all
from visynth.tabular.columns import Category, Floats
from visynth.tabular.frames import pandas
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.series import Ints, Series

BATCH = 256  # sessions by which their number is planned
MOST_SESSIONS = 5_000_000


@dataclass(frozen=True)
class Replay:
    """Requests in the order of their arrival.

    Attributes:
        times: seconds since the start, rising, float64 ``[E]``.
        session: number of each request's session, int64 ``[E]``.
        rows: number of the request's row in ``sessions``.
        sessions: that were drawn, in the order of their numbers.
        seconds: for how long requests arrive.
    """

    times: Floats
    session: Ints
    rows: Ints
    sessions: Series
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.times) / self.seconds

    def frame(self) -> Any:
        """A row for each request: ``at`` (seconds since the start), the session, statics and channels."""
        whole = self.sessions.frame().iloc[self.rows].reset_index(drop=True)
        schema = self.sessions.schema
        clock = [schema.time.name] if schema.time is not None else []
        return pandas().concat([pandas().DataFrame({"at": np.round(self.times, 6)}), whole.drop(columns=clock)], axis=1)


def replay(
    generator: SeriesGenerator,
    rate: float,
    seconds: float,
    *,
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Replay:
    """Sessions that overlap so that requests arrive at a rate.

    Sessions start as a Poisson process, given the number of requests: start times are uniform, and sessions are added until
    as many requests as the rate asks for fall into the time. Sessions that began before it and go on after it are cut at
    its ends, so that the rate holds from the first second to the last. Times within a session are as they were drawn.

    Args:
        generator: of sessions; its times are seconds.
        rate: requests a second.
        seconds: for how long.
        conditions: values of statics, such as the kind of user.
        seed: equal seeds give equal arrivals.

    Raises:
        UsageError: a rate or a time that cannot be, or so high that the sessions would be too many.
    """
    problems = [
        f"{name} must be above 0, but got {value}"
        for name, value in (("rate", rate), ("seconds", seconds))
        if not value > 0
    ]
    raise_all("the replay", problems, UsageError)
    wanted = max(round(rate * seconds), 1)
    count = _count(generator, wanted, seconds, conditions or {}, seed)
    while True:
        drawn = generator.sample(count, conditions=conditions, seed=seed)
        times, session, rows = _inside(drawn, wanted, seconds, seed)
        if sum(map(len, times)) >= wanted:
            break
        count *= 2  # a session longer than those that were looked at first: starts are spread over more time
        _check_count(count)
    every = np.concatenate(times)
    order = np.argsort(every, kind="stable")
    return Replay(every[order], np.concatenate(session)[order], np.concatenate(rows)[order], drawn, seconds)


def _inside(drawn: Series, wanted: int, seconds: float, seed: int) -> tuple[list[Floats], list[Ints], list[Ints]]:
    """Requests of sessions that fall into the time, as many as wanted: times, sessions and rows, session by session."""
    spans = [float(own[-1] - own[0]) for own in _times(drawn)]
    starts = seeding.rng(seed, "replay/starts").uniform(-max(spans), seconds, len(drawn))
    times: list[Floats] = []
    session: list[Ints] = []
    rows: list[Ints] = []
    count = 0
    for number, own in enumerate(_times(drawn)):
        at = own - own[0] + starts[number]
        inside = np.flatnonzero((at >= 0) & (at < seconds))[: wanted - count]
        times.append(at[inside])
        session.append(np.full(len(inside), number))
        rows.append(inside + int(drawn.offsets[number]))
        count += len(inside)
        if count >= wanted:
            break
    return times, session, rows


def _times(sessions: Series) -> Iterator[Floats]:
    for number in range(len(sessions)):
        yield sessions.times[sessions.rows(number)]


def _count(generator: SeriesGenerator, wanted: int, seconds: float, conditions: Mapping[str, Any], seed: int) -> int:
    """Sessions that probably give so many requests: as many as needed were they all to fall into the time, and more for those
    that start before it."""
    few = generator.sample(BATCH, conditions=conditions, seed=seed)
    spans = np.array([own[-1] - own[0] for own in _times(few)])
    # A start is uniform over the time and the longest session before it: so much of a session falls into the time.
    share = seconds / (seconds + float(spans.max()))
    count = int(1.2 * wanted / max(float(few.lengths.mean()) * share, 1e-9)) + BATCH
    _check_count(count)
    return count


def _check_count(count: int) -> None:
    if count > MOST_SESSIONS:
        raise UsageError(
            f"{count} sessions would be needed, and {MOST_SESSIONS} are the most: lower the rate or the time."
        )


def check_sessions(real: Series, synthetic: Series) -> dict[str, float]:
    """How near synthetic sessions come to real ones.

    Returns:
        ``length``: Kolmogorov-Smirnov distance of the numbers of events; ``gap``: of the times between events;
        ``event <channel>`` and ``next <channel>``: total variation of the shares of a categorical channel's values, and of
        pairs of values that follow one another.
    """
    from scipy.stats import ks_2samp

    figures = {"length": float(ks_2samp(real.lengths, synthetic.lengths).statistic)}
    gaps = [np.diff(side.times)[side.within] for side in (real, synthetic)]
    if all(map(len, gaps)):
        figures["gap"] = float(ks_2samp(*gaps).statistic)
    for column in real.schema.channels.modelled:
        if isinstance(column, Category):
            size = len(column.categories) + 1
            ones = [np.bincount(side.channels[column.name] + 1, minlength=size) for side in (real, synthetic)]
            figures[f"event {column.name}"] = _variation(*ones)
            pairs = [_pairs(side, column.name, size) for side in (real, synthetic)]
            figures[f"next {column.name}"] = _variation(*pairs)
    return figures


def _pairs(series: Series, name: str, size: int) -> Ints:
    codes = series.channels[name] + 1
    pairs = codes[:-1] * size + codes[1:]
    return np.bincount(pairs[series.within], minlength=size * size)


def _variation(first: Any, second: Any) -> float:
    """Total variation of two counts as shares."""
    return float(0.5 * np.abs(first / max(first.sum(), 1) - second / max(second.sum(), 1)).sum())
