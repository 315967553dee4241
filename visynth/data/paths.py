"""Where a dataset's images lie, as far as it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visynth.data.decode import EXTENSIONS
from visynth.data.labels import per_sample


def file_paths(dataset: Any) -> list[Path] | None:
    """Paths of a dataset's images, through Subset and ConcatDataset."""
    return per_sample(dataset, _paths)


def _paths(dataset: Any) -> list[Path] | None:
    for name in ("samples", "imgs", "files", "paths", "image_paths", "img_paths", "filenames", "images", "items"):
        values = getattr(dataset, name, None)
        if not isinstance(values, (list, tuple)) or len(values) != len(dataset) or not len(values):
            continue
        first = [value[0] if isinstance(value, (list, tuple)) else value for value in values]
        if all(isinstance(value, (str, Path)) and str(value).lower().endswith(EXTENSIONS) for value in first):
            found = _existing(dataset, [Path(value) for value in first])
            if found is not None:
                return found
    return None


def _existing(dataset: Any, paths: list[Path]) -> list[Path] | None:
    """The paths where they exist, as they are or below one of the folders that a dataset usually names."""
    for name in (None, "root", "root_dir", "img_dir", "image_dir", "images_dir", "data_dir", "folder", "path"):
        base = Path() if name is None else getattr(dataset, name, None)
        if isinstance(base, (str, Path)):
            tried = [Path(base) / path for path in paths]
            if all(path.is_file() for path in tried):
                return tried
    return None
