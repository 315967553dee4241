"""The leak guard: no validation or test image may be among those that the generator was fitted on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from visynth import members as members_file
from visynth.data.decode import EXTENSIONS, Array, decode
from visynth.data.items import in_threads
from visynth.data.labels import per_sample
from visynth.errors import DataError, listing
from visynth.files import hash_file
from visynth.members import Member, perceptual_hash, pixel_hash


def check_leaks(members: Sequence[Member], held_out: Mapping[str, Any]) -> None:
    """Compare held-out images with the members that the generator was fitted on.

    Images are found by their paths (``samples``, ``imgs``, ``files``, ``paths``, ... of the datasets), else as raw 8-bit pictures
    (``data``). Where a dataset shows neither, a warning says that it could not be checked.

    Args:
        members: of the rendered set.
        held_out: ``{"val": loaders, "test": loaders}``.

    Raises:
        DataError: images that meet, all listed, with how they meet.
    """
    trained = [m for m in members if m.split == "train"]
    if not trained:
        return
    problems = []
    for split, loaders in held_out.items():
        for dataset in datasets_of(loaders):
            candidates = fingerprints(dataset, split)
            if candidates is None:
                warnings.warn(
                    f"the leak guard cannot see the files behind the {split} dataset {type(dataset).__name__}: check yourself that the "
                    "generator was not fitted on them, or pass leak_guard=False to silence this.",
                    stacklevel=4,
                )
                continue
            problems += [f"{split}: {overlap}" for overlap in members_file.overlaps(candidates, trained)]
    if problems:
        raise DataError(
            f"the generator was fitted on {len(problems)} held-out images, so validation would be too good. Fit it on the training "
            f"part only (a split column, or train/ val/ test/ folders):\n{listing(problems)}"
        )


def datasets_of(loaders: Any) -> list[Any]:
    """The datasets behind a loader, or behind lists and dicts of loaders."""
    if loaders is None:
        return []
    if isinstance(loaders, DataLoader):
        chosen = getattr(loaders.sampler, "indices", None)  # a SubsetRandomSampler draws from these alone
        return [loaders.dataset if chosen is None else Subset(loaders.dataset, list(chosen))]
    if isinstance(loaders, Mapping):
        return [d for loader in loaders.values() for d in datasets_of(loader)]
    if isinstance(loaders, Iterable) and not hasattr(loaders, "dataset"):
        return [d for loader in loaders for d in datasets_of(loader)]
    return [getattr(loaders, "dataset", loaders)]


def fingerprints(dataset: Any, split: str) -> list[Member] | None:
    """Members of a dataset's images, or None where neither paths nor raw pictures can be found."""
    paths = file_paths(dataset)
    if paths is not None:
        return in_threads(lambda path: _of_file(path, split), paths)
    pictures = per_sample(dataset, _pictures)
    if pictures is None:
        return None
    return [_of_array(f"sample {place}", picture, split) for place, picture in enumerate(pictures)]


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


def _pictures(dataset: Any) -> list[Array] | None:
    """Raw 8-bit pictures held in memory: ``data`` of torchvision's small sets, or samples before any transform."""
    data = getattr(dataset, "data", None)
    if isinstance(data, torch.Tensor):
        data = data.numpy()
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim in (3, 4) and len(data) == len(dataset):
        return [picture[:, :, None] if picture.ndim == 2 else picture for picture in data]
    return None


def _of_file(path: Path, split: str) -> Member:
    try:
        return _of_array(str(path), decode(path), split, hash_file(path))
    except (DataError, OSError) as error:
        raise DataError(f"the leak guard cannot read the {split} image {path} ({error}).") from error


def _of_array(name: str, picture: Any, split: str, digest: str = "") -> Member:
    array = np.asarray(picture) if isinstance(picture, Image.Image) else picture
    array = array[:, :, None] if array.ndim == 2 else array
    return Member(name, "", "", split, digest, pixel_hash(array), perceptual_hash(array))
