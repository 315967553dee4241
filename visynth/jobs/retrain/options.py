"""What a retraining job is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visynth.core.errors import UsageError
from visynth.core.files import hash_file
from visynth.jobs.retrain.downstream import Downstream

AGE = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")
SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True)
class Triggers:
    """When to retrain; without a reason nothing is trained.

    Args:
        new_images: retrain from so many new images or rows of a class in question; 0: never for that.
        drift: retrain when features or class counts moved; how often at most this happens where nothing did. 0: never.
        max_age: retrain when the champion is older, like 30d or 12h; empty: never for that.
    """

    new_images: int = 20
    drift: float = 0.05
    max_age: str = "30d"

    def __post_init__(self) -> None:
        problems = []
        if self.new_images < 0:
            problems.append(f"new_images must be at least 0, but got {self.new_images}")
        if not 0 <= self.drift < 1:
            problems.append(f"drift must be in [0, 1), but got {self.drift}")
        if self.max_age and AGE.fullmatch(self.max_age) is None:
            problems.append(f"max_age must be like 30d, 12h or 90m, but got {self.max_age!r}")
        if problems:
            raise UsageError("retrain: " + "; ".join(problems) + ".")

    @property
    def seconds(self) -> float:
        """``max_age`` in seconds; infinite where there is none."""
        return age_seconds(self.max_age) if self.max_age else float("inf")


@dataclass(frozen=True)
class Policy:
    """What a challenger must show.

    Args:
        require: "helps": a shown benefit over the best baseline in every class in question, "no harm": no shown harm (for
            generators that are used for more than training). Either way it must not be shown to be worse than the
            champion, and must pass the canary.
        require_approval: stop before the promotion; a person promotes with 'visynth registry promote'.
    """

    require: Literal["helps", "no harm"] = "helps"
    require_approval: bool = False


@dataclass(frozen=True)
class Job:
    """Everything that decides what a run makes of the same data; its hash is a part of the run's name.

    Attributes:
        generator: how it is made: ``{"compose": {...}}``, ``{"config": "file.yaml", "set": {...}}`` or
            ``{"synthesizer": "masked", "arguments": {...}}``.
        classes: in question.
        count: synthetic images of each that are judged.
        seeds: paired repetitions.
        canary: images or rows of each class that are rendered to look at.
        policy: of the gate.
        downstream: a training of the user's that is judged with the generator, and promoted or kept with it.
    """

    generator: Mapping[str, Any]
    classes: tuple[str, ...]
    count: int = 60
    seeds: int = 5
    canary: int = 16
    policy: Policy = field(default_factory=Policy)
    downstream: Downstream | None = None

    def __post_init__(self) -> None:
        kinds = {"compose", "config", "synthesizer"} & set(self.generator)
        if len(kinds) != 1:
            raise UsageError(
                "retrain: generator must be one of {compose: {...}}, {config: file.yaml, set: {...}} and {synthesizer: "
                f"masked, arguments: {{...}}}}, but got {dict(self.generator)}."
            )
        if min(self.count, self.seeds, self.canary) < 1:
            raise UsageError(
                f"retrain: count, seeds and canary must be at least 1, but got {self.count}, {self.seeds}, {self.canary}."
            )

    def _config(self) -> str:
        """Hash of the configuration's content: a file that was edited is another configuration."""
        path = Path(str(self.generator.get("config", "")))
        return hash_file(path) if path.is_file() else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "generator": dict(self.generator),
            "classes": list(self.classes),
            "count": self.count,
            "seeds": self.seeds,
            "canary": self.canary,
            "require": self.policy.require,
            "approval": self.policy.require_approval,
            "config": self._config(),
            "downstream": None if self.downstream is None else self.downstream.to_json(),
        }


def age_seconds(text: str) -> float:
    """Seconds of an age like ``30d``.

    Example:
        >>> age_seconds("12h"), age_seconds("1.5d")
        (43200.0, 129600.0)

    Raises:
        UsageError: it is none.
    """
    match = AGE.fullmatch(text)
    if match is None:
        raise UsageError(f"an age must be like 30d, 12h or 90m, but got {text!r}.")
    return float(match.group(1)) * SECONDS[match.group(2)]
