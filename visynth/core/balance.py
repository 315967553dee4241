"""Number of synthetic images of each class: imbalanced-learn's words, resolved to ``{class: n}``.

The words are those of imbalanced-learn's ``sampling_strategy`` (Lemaitre et al., JMLR 18, 2017): a word names
the classes to fill, and each is filled up to the majority (or to ``to``) *counting its real images*. A class of
ten images cannot support a thousand independent samples, so a word adds at most ten times the reals.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from visynth.core.errors import DataError, UsageError, choices

WORDS = ("minority", "not majority", "all")
CAP = 10  # synthetic images per real image that a word may ask for

Balance = str | float | Mapping[str, int] | Callable[[Mapping[str, int]], Mapping[str, int]]


def targets(
    balance: Balance,
    counts: Mapping[str, int],
    *,
    to: int | None = None,
    cap: float = CAP,
) -> dict[str, int]:
    """Synthetic images wanted per class.

    Args:
        balance: ``"minority"`` (the rarest class), ``"not majority"``, ``"all"``; a dict or callable that
            gives exact synthetic counts; a float r for two classes: minority becomes r times the majority.
        counts: real images per class.
        to: fill classes up to this many images instead of up to the majority.
        cap: limit of a word, in synthetic images per real image.

    Returns:
        ``{class: n}`` for every class of ``counts``, in its order; n may be 0.

    Raises:
        UsageError: unknown word or class, a negative count, a float with other than two classes.

    Example:
        >>> targets("not majority", {"good": 100, "crack": 20})
        {'good': 0, 'crack': 80}
        >>> targets("all", {"good": 100, "crack": 20}, to=150)
        {'good': 50, 'crack': 130}
        >>> targets({"crack": 7}, {"good": 100, "crack": 20})
        {'good': 0, 'crack': 7}
    """
    if not counts:
        raise DataError("balance needs at least one class with images, but there is none.")
    if callable(balance):
        return _exact(balance(counts), counts)
    if isinstance(balance, Mapping):
        return _exact(balance, counts)
    if isinstance(balance, bool) or not isinstance(balance, (str, float, int)):
        raise UsageError(
            f"balance must be one of {choices(WORDS)}, a dict, a callable or a float, but got {balance!r}."
        )

    majority = max(counts, key=lambda name: counts[name])
    minority = min(counts, key=lambda name: counts[name])
    if not isinstance(balance, str):
        if len(counts) != 2:
            raise UsageError(
                f"a float balance works for two classes only, but there are {len(counts)}: use a word or a dict."
            )
        if not 0 < balance <= 1:
            raise UsageError(f"a float balance must be in (0, 1], but got {balance}.")
        wanted = {minority: round(float(balance) * counts[majority])}
    elif balance not in WORDS:
        raise UsageError(
            f"balance must be one of {choices(WORDS)}, a dict, a callable or a float, but got {balance!r}."
        )
    else:
        top = counts[majority] if to is None else to
        if top < 1:
            raise UsageError(f"to must be at least 1, but got {to}.")
        named = {"minority": [minority], "not majority": [c for c in counts if c != majority], "all": list(counts)}
        wanted = dict.fromkeys(named[balance], top)
    return _capped({name: max(wanted.get(name, 0) - n, 0) for name, n in counts.items()}, counts, cap)


def _capped(wanted: dict[str, int], counts: Mapping[str, int], cap: float) -> dict[str, int]:
    allowed = {name: min(n, int(cap * counts[name])) for name, n in wanted.items()}
    cuts = [f"{name} {wanted[name]} -> {allowed[name]}" for name in wanted if allowed[name] < wanted[name]]
    if cuts:
        warnings.warn(
            f"balance is capped at {cap:g} synthetic images per real one ({'; '.join(cuts)}). Give exact counts to go "
            "beyond.",
            stacklevel=4,
        )
    return allowed


def _exact(wanted: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    unknown = [name for name in wanted if name not in counts]
    if unknown:
        raise UsageError(f"balance names unknown classes {choices(unknown)}; the classes are {choices(counts)}.")
    negative = {name: n for name, n in wanted.items() if int(n) < 0 or int(n) != n}
    if negative:
        raise UsageError(f"balance counts must be whole numbers of at least 0, but got {negative}.")
    return {name: int(wanted.get(name, 0)) for name in counts}
