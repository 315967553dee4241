"""File paths of a dataset's images, as far as it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visynth.core.codec import EXTENSIONS
from visynth.data.labels import per_sample


def file_paths(dataset: Any) -> list[Path] | None:
    """Paths of a dataset's images, through Subset and ConcatDataset."""
    return per_sample(dataset, _paths)


def _paths(dataset: Any) -> list[Path] | None:
    for name in (
        "samples",
        "imgs",
        "files",
        "paths",
        "image_paths",
        "img_paths",
        "filenames",
        "images",
        "items",
        "data",
    ):
        values = getattr(dataset, name, None)
        if not isinstance(values, (list, tuple)) or len(values) != len(dataset) or not len(values):
            continue
        first = [_file_of(value) for value in values]
        if all(isinstance(value, (str, Path)) and str(value).lower().endswith(EXTENSIONS) for value in first):
            paths = _existing(dataset, [Path(value) for value in first])
            if paths is not None:
                return paths
    return None


def _file_of(value: Any) -> Any:
    """The image's path in an entry of a list: the entry, its first value, or the only one of a dict (MONAI) that names
    an image file."""
    if isinstance(value, dict):
        files = [v for v in value.values() if isinstance(v, (str, Path)) and str(v).lower().endswith(EXTENSIONS)]
        return files[0] if len(files) == 1 else None
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _existing(dataset: Any, paths: list[Path]) -> list[Path] | None:
    """The paths where they exist, as they are or below one of the folders that a dataset usually names."""
    for name in (None, "root", "root_dir", "img_dir", "image_dir", "images_dir", "data_dir", "folder", "path"):
        base = Path() if name is None else getattr(dataset, name, None)
        if isinstance(base, (str, Path)):
            tried = [Path(base) / path for path in paths]
            if all(path.is_file() for path in tried):
                return tried
    return None
