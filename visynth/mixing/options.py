"""Options of WithSynthetic, checked: share, schedule, and what else a synthetic sample carries.

All here are pure functions of the options and of how far the training is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from visynth.core import balance as balancing
from visynth.core.balance import Balance
from visynth.core.errors import UsageError, choices
from visynth.core.recipe import read_recipe

Backend = Literal["auto", "samples", "batches", "online"]
BACKENDS = get_args(Backend)
SHAPES = ("linear", "cosine")
REVIEWS = ("not rejected", "accepted", "any")
KEEP = ("review", "agreement", "near_duplicates")

DEFAULT_BALANCE = "not majority"
MOST = 0.25  # share of synthetic samples that is not exceeded unless a share is asked for

Share = float | Mapping[str, Any] | None


@dataclass(frozen=True)
class Options:
    """Arguments of :class:`visynth.WithSynthetic`; its docstring says what each means.

    Raises:
        UsageError: every option that cannot be right, told together.
    """

    balance: Balance | None = None
    share: Share = None
    to: int | None = None
    cap: float = balancing.CAP
    spread: float = 0.1
    seed: int = 0
    backend: Backend = "auto"
    loader: str | int | None = None
    classes: Mapping[str, int] | Sequence[str] | None = None
    transform: Callable[..., Any] | None = None
    labels: Sequence[int] | None = None
    image_key: str | int | None = None
    label_key: str | int | None = None
    finish: float = 0.0
    is_synthetic: bool = False
    weight: float | None = None
    mixup: float | None = None
    num_classes: int | None = None
    keep: Mapping[str, Any] | None = None
    workers: int | None = None
    sampler: Mapping[str, Any] | None = None
    extra: Mapping[Any, Any] | None = None
    autocast: str | None = None
    leak_guard: bool = True
    accept_leaks: Any = None
    recipe: Any = None

    def __post_init__(self) -> None:
        problems = [*_share_problems(self.share), *self._number_problems()]
        if self.recipe is not None:
            object.__setattr__(self, "recipe", read_recipe(self.recipe))
            given = [name for name in ("balance", "share", "to") if getattr(self, name) is not None]
            if given:
                problems.append(f"recipe says how much of each class, so it cannot be given with {choices(given)}")
        if self.backend not in BACKENDS:
            problems.append(f"backend must be one of {choices(BACKENDS)}, but got {self.backend!r}")
        if self.mixup is not None and self.num_classes is None:
            problems.append(
                "mixup makes labels of two classes at once: say num_classes= to get every label of a batch as "
                "probabilities [num_classes] (torch's cross_entropy takes them)"
            )
        if self.autocast not in (None, "bfloat16", "float16"):
            problems.append(f"autocast must be None, 'bfloat16' or 'float16', but got {self.autocast!r}")
        problems += self._keep_problems()
        if problems:
            raise UsageError("WithSynthetic: " + "; ".join(problems) + ".")
        if isinstance(self.balance, str) and self.balance not in balancing.WORDS:
            balancing.targets(self.balance, {"any": 1})  # raises the error that lists the words

    def _number_problems(self) -> list[str]:
        limits: dict[str, tuple[Any, Callable[[float], bool], str]] = {
            "spread": (self.spread, lambda v: 0 <= v <= 1, "in [0, 1]"),
            "finish": (
                self.finish,
                lambda v: 0 <= v <= 1,
                "in [0, 1], the last part of training on real samples alone",
            ),
            "cap": (self.cap, lambda v: v > 0, "above 0"),
            "weight": (self.weight, lambda v: v >= 0, "at least 0"),
            "mixup": (self.mixup, lambda v: v > 0, "above 0"),
            "num_classes": (self.num_classes, lambda v: v >= 2 and int(v) == v, "a whole number of at least 2"),
            "workers": (self.workers, lambda v: v >= 0 and int(v) == v, "a whole number of at least 0"),
        }
        return [
            f"{name} must be {ranges}, but got {value!r}"
            for name, (value, fits, ranges) in limits.items()
            if value is not None and not (_is_number(value) and fits(value))
        ]

    def _keep_problems(self) -> list[str]:
        keep = self.keep or {}
        unknown = [name for name in keep if name not in KEEP]
        if unknown:
            return [f"keep has unknown filters {choices(unknown)}; it takes {choices(KEEP)}"]
        problems = []
        if keep.get("review", REVIEWS[0]) not in REVIEWS:
            problems.append(f"keep's review must be one of {choices(REVIEWS)}, but got {keep['review']!r}")
        least = keep.get("agreement")
        if least is not None and not (_is_number(least) and 0 <= least <= 1):
            problems.append(
                f"keep's agreement must be in [0, 1], the least probability of the own class, but got {least!r}"
            )
        if not isinstance(keep.get("near_duplicates", True), bool):
            problems.append(f"keep's near_duplicates must be true or false, but got {keep['near_duplicates']!r}")
        return problems

    @property
    def off(self) -> bool:
        """Whether no sample is ever synthetic."""
        if self.recipe is not None:
            return not self.recipe.shares
        return _is_number(self.share) and self.share == 0

    @property
    def fields(self) -> bool:
        """Whether samples carry more than the user's own, or their labels as probabilities."""
        return self.is_synthetic or self.weight is not None or self.num_classes is not None


def share_at(share: Share, progress: float, finish: float = 0.0) -> float:
    """The share of synthetic samples at a point of the training.

    Args:
        share: a number; or ``{"start": a, "end": b, "shape": "linear" | "cosine", "until": u}``, from a to b over the
            first part u (by default all) of the training; or ``{"steps": {0: a, 0.5: b}}``, a from the start and b from
            its half on.
        progress: part of the training done, in [0, 1].
        finish: in this last part the share is 0.

    Example:
        >>> [share_at({"start": 0.4, "end": 0.2}, p) for p in (0.0, 0.5, 1.0)]
        [0.4, 0.3, 0.2]
        >>> [share_at({"steps": {0: 0.5, 0.6: 0.1}}, p) for p in (0.5, 0.6)]
        [0.5, 0.1]
        >>> [share_at(0.3, p, finish=0.1) for p in (0.89, 0.9)]
        [0.3, 0.0]
    """
    if share is None:
        return 0.0
    if finish and progress >= 1 - finish - 1e-9:
        return 0.0
    if isinstance(share, Mapping):
        if "steps" in share:
            steps = _steps(share["steps"])
            return max(((at, value) for at, value in steps.items() if at <= progress + 1e-9), default=(0.0, 0.0))[1]
        start, end = float(share["start"]), float(share["end"])
        part = min(1.0, progress / float(share.get("until", 1.0)))
        if share.get("shape", "linear") == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return round(start + (end - start) * part, 12)
    return float(share)


def needs_progress(options: Options) -> bool:
    """Whether the share changes during the training."""
    return isinstance(options.share, Mapping) or options.finish > 0


def training_progress(trainer: Any) -> float:
    """Part of the training that is done, in [0, 1]: by steps where their number is known or told, else by epochs.

    Args:
        trainer: a Lightning Trainer.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    parts = [0.0]
    if steps is not None and steps > 0:
        parts.append(trainer.global_step / steps)
    if epochs is not None and epochs > 0:
        inside = 0.0
        batches = trainer.num_training_batches
        if isinstance(batches, (int, float)) and math.isfinite(batches) and batches > 0:
            inside = min(1.0, trainer.fit_loop.epoch_loop.batch_progress.current.ready / batches)
        parts.append((trainer.current_epoch + inside) / epochs)
    return min(1.0, max(parts))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _steps(steps: Mapping[Any, Any]) -> dict[float, float]:
    return {float(at): float(value) for at, value in steps.items()}  # YAML and JSON may give the keys as text


def _share_problems(share: Any) -> list[str]:
    words = "share must be in [0, 1) (the fraction of an epoch that is synthetic), None, or a schedule such as"
    examples = "{'start': 0.5, 'end': 0.1, 'shape': 'cosine'} or {'steps': {0: 0.5, 0.8: 0.1}}"
    if share is None:
        return []
    if not isinstance(share, Mapping):
        return [] if _is_number(share) and 0 <= share < 1 else [f"{words} {examples}, but got {share!r}"]
    try:
        if set(share) == {"steps"}:
            steps = _steps(share["steps"])
            values, places = list(steps.values()), list(steps)
            fits = bool(steps) and min(places) == 0
        else:
            values, places = [float(share["start"]), float(share["end"])], [float(share.get("until", 1.0))]
            fits = set(share) <= {"start", "end", "shape", "until"} and share.get("shape", "linear") in SHAPES
            fits = fits and places[0] > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        return [f"{words} {examples}, but got {dict(share)!r}"]
    fits = fits and all(0 <= value < 1 for value in values) and all(0 <= place <= 1 for place in places)
    return (
        []
        if fits
        else [f"{words} {examples} (shapes: {choices(SHAPES)}; the first step at 0), but got {dict(share)!r}"]
    )
