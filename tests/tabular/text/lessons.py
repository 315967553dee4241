"""Texts of two classes that a tiny model learns, for tests of fine-tuning."""

from __future__ import annotations

import numpy as np

from visynth.tabular.text import Example, Prompt, TextGenerator, TextSpec
from visynth.tabular.text.talks import talks_of

SPEC = TextSpec(Prompt("A {{ label }} text."), label="label")
NUMBERS = [*np.random.default_rng(0).permutation(300), *range(300, 700)]
THINGS = ("phone", "lamp", "chair", "kettle", "radio", "clock", "table", "fan")


def texts(first: int = 0, count: int = 24) -> list[Example]:
    """Texts of two classes that one word tells apart; each has a number of its own, drawn from 0 to 299, and 300 from there on."""
    return [
        Example(f"the {THINGS[k % 8]} is {'great' if k % 2 else 'bad'} {NUMBERS[k]:03d}", "good" if k % 2 else "bad")
        for k in range(first, first + count)
    ]


TALKS = talks_of(TextGenerator(SPEC, texts()))
