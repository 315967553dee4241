"""The leak guard: no validation or test image may be among those that the generator was fitted on."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from visynth import members as members_file
from visynth.data.decode import Array, decode
from visynth.data.form import Form
from visynth.data.items import in_threads
from visynth.data.labels import per_sample
from visynth.data.paths import file_paths
from visynth.errors import DataError, UsageError, listing
from visynth.files import hash_file
from visynth.members import Member, perceptual_hash, pixel_hash


def check_leaks(members: Sequence[Member], held_out: Mapping[str, Any]) -> None:
    """Compare held-out images with the members that the generator was fitted on.

    Images are found by their paths (``samples``, ``imgs``, ``files``, ``paths``, ... of the datasets), else as raw 8-bit pictures
    (``data``), else every sample is read once, without the dataset's transforms where they can be left out. A warning says
    where pictures could be seen as their transforms give them only, or not at all.

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
                    f"the leak guard cannot see the pictures of the {split} dataset {type(dataset).__name__}: check yourself that the "
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
    if pictures is not None:
        return [_of_array(f"sample {place}", picture, split) for place, picture in enumerate(pictures)]
    return _of_samples(dataset, split)


def _pictures(dataset: Any) -> list[Array] | None:
    """Raw 8-bit pictures held in memory: ``data`` of torchvision's small sets, or samples before any transform."""
    data = getattr(dataset, "data", None)
    if isinstance(data, torch.Tensor):
        data = data.numpy()
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim in (3, 4) and len(data) == len(dataset):
        return [picture[:, :, None] if picture.ndim == 2 else picture for picture in data]
    return None


# -- datasets that show neither files nor arrays: their samples are read --------------------------------------------------


def _of_samples(dataset: Any, split: str) -> list[Member] | None:
    """Members of the pictures that a dataset gives, or None where its samples hold none."""
    places = per_sample(dataset, lambda part: [(part, i) for i in range(len(part))] if _has_places(part) else None)
    if not places:
        return None
    readers: dict[int, Callable[[int], Any] | None] = {}
    members = []
    for place, (part, index) in enumerate(places):
        if id(part) not in readers:
            readers[id(part)] = _reader(part, index, split)
        read = readers[id(part)]
        picture = None if read is None else _picture(read(index))
        if picture is None:
            return None
        members.append(_of_array(f"sample {place}", picture, split))
    return members


def _has_places(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _reader(dataset: Any, index: int, split: str) -> Callable[[int], Any] | None:
    """How to read samples: without transforms if that gives an 8-bit picture, else as they are, with a warning."""
    bare = copy.copy(dataset)
    for name in ("transform", "transforms"):
        if getattr(bare, name, None) is not None:
            with contextlib.suppress(AttributeError):  # a property without a setter
                setattr(bare, name, None)
    for way in (bare, dataset):
        try:
            picture = _picture(way[index])
        except Exception:  # the user's code: some need their transforms
            continue
        if picture is None:
            continue
        if picture.dtype != np.uint8:
            warnings.warn(
                f"the leak guard sees the pictures of the {split} dataset {type(dataset).__name__} only as its transforms give them: a "
                "copy that they crop or turn goes unseen.",
                stacklevel=8,
            )
        return way.__getitem__  # type: ignore[no-any-return]
    return None


def _picture(sample: Any) -> Array | None:
    """The picture of a sample as ``[H, W, C]``; tensors are ``[C, H, W]``, of any range."""
    try:
        form = Form.of(sample)
        image = form.get(sample, form.image)
    except UsageError:
        image = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
    if isinstance(image, Image.Image):
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    array = np.asarray(image) if isinstance(image, (Image.Image, np.ndarray)) else None
    if (
        array is None
        or array.ndim not in (2, 3)
        or min(array.shape[:2]) < 8
        or (array.ndim == 3 and array.shape[2] > 4)
    ):
        return None
    return array[:, :, None] if array.ndim == 2 else np.ascontiguousarray(array)


def _of_file(path: Path, split: str) -> Member:
    try:
        return _of_array(str(path), decode(path), split, hash_file(path))
    except (DataError, OSError) as error:
        raise DataError(f"the leak guard cannot read the {split} image {path} ({error}).") from error


def _of_array(name: str, picture: Any, split: str, digest: str = "") -> Member:
    array = np.asarray(picture) if isinstance(picture, Image.Image) else picture
    array = array[:, :, None] if array.ndim == 2 else array
    return Member(name, "", "", split, digest, pixel_hash(array), perceptual_hash(array))
