"""A source of white images, which show among all others: rendered, and made during the training."""

from __future__ import annotations

import pytest

from tests.mixing.kinds import CLASSES
from tests.mixing.white import White, white_set


@pytest.fixture(scope="session")
def white(tmp_path_factory):
    return white_set(tmp_path_factory.mktemp("white") / "set", {"spot": 30}, tuple(CLASSES))


@pytest.fixture
def source(white):
    return lambda backend: White() if backend == "online" else white.folder
