"""visynth: synthetic images for rare classes, mixed into a Lightning training and measured per class.

The stages meet at folders: ``fit`` writes a generator, ``render`` a set of images, ``WithSynthetic`` mixes it into
your own DataModule, ``evaluate`` says per class whether it helped, and ``trial`` goes all the way in one call.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from visynth.core.loading import load_generator
    from visynth.core.manifest import read_renders
    from visynth.core.report import Report
    from visynth.data.reading import read_images
    from visynth.generators.base import Generator, Samples, Spec
    from visynth.jobs.evaluate import evaluate_renders
    from visynth.jobs.trial.flow import run_trial
    from visynth.jobs.trial.options import TrialOptions
    from visynth.mixing.dataset import SyntheticDataset
    from visynth.mixing.wrapper import WithSynthetic
    from visynth.render.run import render_set

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Report",
    "Samples",
    "Spec",
    "SyntheticDataset",
    "TrialOptions",
    "WithSynthetic",
    "evaluate_renders",
    "load_generator",
    "read_images",
    "read_renders",
    "render_set",
    "run_trial",
]

# Public names live here but load on first use: 'import visynth' and 'visynth --help' must not import torch.
_HOMES = {
    "Generator": "visynth.generators.base",
    "Report": "visynth.core.report",
    "Samples": "visynth.generators.base",
    "Spec": "visynth.generators.base",
    "SyntheticDataset": "visynth.mixing.dataset",
    "TrialOptions": "visynth.jobs.trial.options",
    "WithSynthetic": "visynth.mixing.wrapper",
    "evaluate_renders": "visynth.jobs.evaluate",
    "load_generator": "visynth.core.loading",
    "read_images": "visynth.data.reading",
    "read_renders": "visynth.core.manifest",
    "render_set": "visynth.render.run",
    "run_trial": "visynth.jobs.trial.flow",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'visynth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_ROOT = Path(__file__).resolve().parent.parent


class _SourceCheckout:
    """In a source checkout the sibling folders are subpackages: this maps exactly these three names to them.

    (Appending the root to ``__path__`` would also make ``visynth.visynth.visynth...`` importable without end.)
    """

    folders: ClassVar = {f"visynth.{name}": _ROOT / name for name in ("configs", "lightning_modules", "tabular")}

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = cls.folders.get(name)
        if folder is None:
            return None
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if (_ROOT / "pyproject.toml").is_file() and all(f.is_dir() for f in _SourceCheckout.folders.values()):
    sys.meta_path.append(_SourceCheckout)
