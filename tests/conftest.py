"""Fixtures: tiny sets made by code, the real sets where they are, a feature cache that lasts one run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    os.environ["VISYNTH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _whole_loaders() -> Iterator[None]:
    """torch's loaders as they were, also after a test whose own hook raises while Lightning has them wrapped."""
    yield
    if "torch.utils.data" in sys.modules:
        from visynth.mixing.loaders import unwrap_loaders

        unwrap_loaders()


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real set, or a skip that scripts/test counts."""
    root = Path(os.environ.get("VISYNTH_DATA", ROOT.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no real data: set VISYNTH_DATA to a folder with {name}")
        return root / name

    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version of the built-in set: 48 images."""
    from visynth.data.demo import write_samples

    counts = {"good": 24, "stain": 8, "spot": 8, "scratch": 8}
    return write_samples(tmp_path_factory.mktemp("samples") / "set", per_class=counts)


@pytest.fixture(scope="session")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough groups of a rare class for two folds with an oracle."""
    from visynth.data.demo import write_samples

    return write_samples(tmp_path_factory.mktemp("medium") / "set", per_class={"good": 48, "spot": 24, "scratch": 9})


@pytest.fixture(scope="session")
def sample_set(samples: Path):
    from visynth.data.reading import read_images

    return read_images(samples / "images", masks=samples / "masks", groups=samples / "groups.csv")


@pytest.fixture(scope="session")
def composition(sample_set, tmp_path_factory: pytest.TempPathFactory):
    """A composition of the small set and its folder."""
    from visynth.generators.base import load_generator
    from visynth.jobs.make import fit_compose

    folder = tmp_path_factory.mktemp("generator") / "generator"
    fit_compose(sample_set, folder)
    return load_generator(folder), folder


@pytest.fixture(scope="session")
def renders(composition, tmp_path_factory: pytest.TempPathFactory):
    """12 images of each class of the small set."""
    from visynth.render.run import make_plan, render_set

    generator, _ = composition
    return render_set(generator, make_plan(generator, per_class=12), tmp_path_factory.mktemp("renders") / "set")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random pipeline: ``pipelines("sdxl")``."""
    from tests.pipelines import write

    root = tmp_path_factory.mktemp("pipelines")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write(name, root)
        return made[name]

    return folder


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """``picture(height, width, channels, dtype, seed)``: noise that is the same every time."""

    def make(height: int = 12, width: int = 10, channels: int = 1, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
        top = np.iinfo(dtype).max
        return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)

    return make


@pytest.fixture
def class_folders(tmp_path: Path, picture) -> Callable[..., Path]:
    """``class_folders({"a": 3, "b": 2})``: PNG files in class folders."""
    from visynth.core.codec import encode_png

    def make(counts: dict[str, int], root: str = "images", **kinds) -> Path:
        for place, (name, count) in enumerate(counts.items()):
            for index in range(count):
                file = tmp_path / root / name / f"{name}_{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode_png(picture(seed=1000 * place + index, **kinds)))
        return tmp_path / root

    return make
