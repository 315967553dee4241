"""A tiny language model that knows a kind of text, and low-rank weights that know some by heart; made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tabular.text.lessons import SPEC, TALKS, texts
from tests.tabular.text.models import schooled, tiny_model
from visynth.tabular.text import TextGenerator
from visynth.tabular.text.lora import Lesson, TextLoRA


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows such texts, but not what their classes are called, nor the numbers of those that will be learned."""
    own = tiny_model(tmp_path_factory.mktemp("model"), width=64)
    return schooled(own, [("A text.", example.text) for example in texts(300, 400)])


@pytest.fixture(scope="session")
def learned(lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextLoRA, Path]:
    """Weights that know their texts by heart."""
    generator = TextGenerator(SPEC, texts())
    lora = TextLoRA(rank=16, alpha=128.0, steps=250, lr=5e-3)
    lora.fit(lm, TALKS, lesson=Lesson(SPEC.prompt), classes=generator.classes, members=generator.members)
    return lora, lora.save(tmp_path_factory.mktemp("lora") / "g")
