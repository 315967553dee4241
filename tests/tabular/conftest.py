from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from tests.tabular.tables import every_kind
from visynth.core import plugins
from visynth.tabular import Synthesizer

# Tiny forms of every registered generator.
TINY: dict[str, dict[str, Any]] = {
    "masked": {"steps": 40, "width": 64, "depth": 1, "batch_size": 128},
    "ctgan": {"steps": 15, "width": 32, "batch_size": 100, "noise_dim": 16},
    "tvae": {"steps": 40, "width": 32, "latent": 8, "batch_size": 128},
    "diffusion": {"steps": 40, "width": 48, "depth": 1, "batch_size": 128, "sampling_steps": 4},
    "copula": {},
    "marginals": {},
    "dp_aim": {"components": 60, "steps": 60},
    "dp_marginals": {"components": 60, "steps": 60},
    "oversampler": {},
}


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    return every_kind()


@pytest.fixture(scope="session")
def fitted(frame: pd.DataFrame) -> Callable[[str], Synthesizer]:
    """A tiny generator of the table of every kind, by name; fitted once a process."""
    made: dict[str, Synthesizer] = {}

    def get(name: str) -> Synthesizer:
        if name not in made:
            made[name] = plugins.load("synthesizers", name)(**TINY[name]).fit(frame, target="sex")
        return made[name]

    return get
