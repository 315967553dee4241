"""Log what is mixed in, once, from the first rank."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from visynth.core import distributed
from visynth.mixing.convert import Converter
from visynth.mixing.loaders import Leaf
from visynth.mixing.plan import Mix


def log_info(trainer: Any, words: str, *values: Any) -> None:
    """A line on the first rank by a child of Lightning's own logger, so that it shows where Lightning's lines show."""
    if not distributed.rank():
        package = "visynth" if trainer is None else f"{type(trainer).__module__.split('.trainer')[0]}.visynth"
        logging.getLogger(package).info(words, *values)


def log_counts(trainer: Any, epoch: int, counts: Mapping[str, int]) -> None:
    """A line an epoch: how many synthetic samples of which class."""
    if counts:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        log_info(trainer, "synthetic samples in epoch %d: %s", epoch, listed)


def tell(trainer: Any, backend: str, leaf: Leaf, mix: Mix, convert: Converter, within: bool) -> None:
    """One line at the start of a training: what is mixed in, and how."""
    classes = ", ".join(name for name, count in mix.counts.items() if count)
    of = f"share {mix.share:.3g} " + ("of the samples of each class that receives" if within else "of all samples")
    where = f" into loader {leaf.name!r}" if leaf.name else ""
    words = "mixing synthetic images%s: backend %s, %s, of %s; images by %s"
    log_info(trainer, words, where, backend, of, classes, convert.name)
