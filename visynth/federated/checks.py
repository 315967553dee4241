"""What a federated training refuses: trainers, modules and layers that do not suit, and answers that are not what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from visynth.core.errors import UsageError, raise_all
from visynth.federated.options import FederatedOptions

MOST_IMAGES = 10**12  # of a site


def fact_problems(facts: Mapping[str, Any], name: str, number: int, options: FederatedOptions) -> list[str]:
    """What of a site's facts is not what was asked for, in words.

    Example:
        >>> options = FederatedOptions(sites={"a": {}, "b": {}}, weights="equal")
        >>> fact_problems({"site": "a", "round": 3, "loss": 0.5, "length": 1.0, "images": 7}, "a", 3, options)
        ["'images' was not asked for"]
    """
    expected = {"site", "round"}
    if options.privacy is None:
        expected |= {"loss", "length"}
        expected |= {"images"} if options.weights == "images" else set()
        expected |= {"counts"} if options.share_counts else set()
    problems = [f"{key!r} was not asked for" for key in sorted(facts.keys() - expected)]
    problems += [f"{key!r} is missing" for key in sorted(expected - facts.keys())]
    if facts.get("site") != name:
        problems.append(f"it was given as {facts.get('site')!r}")
    if facts.get("round") != number:
        problems.append(f"it is for round {facts.get('round')!r}, and round {number} was asked for")
    for key in sorted({"loss", "length"} & expected & facts.keys()):
        if not isinstance(facts[key], (int, float)) or not math.isfinite(facts[key]):
            problems.append(f"{key!r} must be a finite number, but is {facts[key]!r}")
    if "images" in expected & facts.keys() and not _is_count(facts["images"], 1):
        problems.append(f"'images' must be a whole number of at least 1, but is {facts['images']!r}")
    if "counts" in expected & facts.keys():
        counts = facts["counts"]
        if not isinstance(counts, Mapping) or not all(_is_count(value, 0) for value in counts.values()):
            problems.append(f"'counts' must be whole numbers by class, but is {counts!r}")
    return problems


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST_IMAGES


def check_server(trainer: Any, module: Any, options: FederatedOptions) -> None:
    """Refuse what a federated training cannot respect.

    Raises:
        UsageError: all of it at once.
    """
    name = type(module).__name__
    problems = list(module.federation_problems()) if hasattr(module, "federation_problems") else []
    if not module.automatic_optimization:
        problems.append(
            f"{name} takes its optimiser's steps itself: only automatic optimisation with one optimiser is federated (diffusion, "
            "classifiers, LoRA)"
        )
    raise_all(
        "federated training", [*_trainer_problems(trainer, options), *problems, *layer_problems(module)], UsageError
    )


def _trainer_problems(trainer: Any, options: FederatedOptions) -> list[str]:
    problems = []
    if trainer.max_steps is None or trainer.max_steps < 1:
        problems.append("name the number of rounds: trainer.max_steps")
    if trainer.accumulate_grad_batches != 1:
        problems.append(f"accumulate_grad_batches {trainer.accumulate_grad_batches}: a step is a round, take 1")
    if trainer.world_size > 1:
        problems.append(f"{trainer.world_size} processes: the server only adds up, take devices: 1")
    if options.algorithm == "fedavg" and trainer.gradient_clip_val is not None:
        problems.append(
            f"gradient_clip_val {trainer.gradient_clip_val} would cut how far the mean weights move: with fedavg the sites clip their "
            "gradients, and the server's is null"
        )
    precision = str(trainer.precision)
    if precision.startswith("16") or precision == "bf16-true":
        problems.append(f"precision {precision} loses steps, or rounds updates and noise: take bf16-mixed or 32-true")
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if name == "DifferentialPrivacy":
            problems.append(
                "DifferentialPrivacy protects the images of one training: here federated.privacy protects sites"
            )
        elif getattr(callback, "reads_real_images", False):
            problems.append(f"{name} measures against real images, which the server does not have: leave it out")
        elif "EarlyStopping" in {kind.__name__ for kind in type(callback).__mro__}:
            problems.append(f"{name} looks at validation data, which the server does not have: leave it out")
    return problems


def layer_problems(module: nn.Module) -> list[str]:
    """Layers whose statistics would have to leave the sites."""
    running = [
        key for key, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats and layer.training
    ]  # fmt: skip
    if not running:
        return []
    return [f"running statistics ({', '.join(running[:5])}) are the sites' own and never leave them: take GroupNorm"]
