"""Classic augmentation of texts, the baseline that needs no model: words swapped and left out.

Source: Wei and Zou, "EDA: easy data augmentation techniques for boosting performance on text classification tasks" (EMNLP 2019),
random swap and random deletion with its rate of 0.1; synonyms need a thesaurus, and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visynth.core import seeds as seeding

RATE = 0.1  # of the words that are swapped or left out


def augmented(texts: Sequence[str], per_text: int, seed: int = 0) -> list[str]:
    """``per_text`` variants of each text, those of one text one after the other.

    Args:
        texts: real ones.
        per_text: variants of each.
        seed: of the choices; a variant follows from (seed, text's place, copy).

    Example:
        >>> augmented(["one two three four five six"], 2, seed=1) == augmented(["one two three four five six"], 2, seed=1)
        True
    """
    return [
        variant(text, seeding.rng(seed, f"text/augment/{place}/{copy}"))
        for place, text in enumerate(texts)
        for copy in range(per_text)
    ]


def variant(text: str, generator: np.random.Generator) -> str:
    """The text with some words swapped or left out; texts of one word stay."""
    parts = text.split()
    changes = max(1, round(RATE * len(parts)))
    if len(parts) < 2:
        return text
    if generator.random() < 0.5:
        for _ in range(changes):
            first, second = generator.choice(len(parts), 2, replace=False)
            parts[first], parts[second] = parts[second], parts[first]
        return " ".join(parts)
    gone = set(generator.choice(len(parts), min(changes, len(parts) - 1), replace=False).tolist())
    return " ".join(part for place, part in enumerate(parts) if place not in gone)
