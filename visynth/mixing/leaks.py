"""The leak guard: no validation or test image may be among those that the generator was fitted on."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from visynth.core import members as members_file
from visynth.core.codec import Array, decode
from visynth.core.errors import DataError, IntegrityError, UsageError, choices, listing
from visynth.core.files import cache_folder, hash_file, hash_json
from visynth.core.members import Member, Overlap, fine_hash, perceptual_hash, pixel_hash
from visynth.data.imageset import in_threads
from visynth.data.labels import per_sample
from visynth.data.paths import file_paths
from visynth.data.tables import read_table
from visynth.mixing.layout import Layout

Accepted = str | Path | Iterable[Any] | None
SCHEMA = 2  # of the fingerprints: another hash is another cache
logger = logging.getLogger("visynth")


def check_leaks(members: Sequence[Member], held_out: Mapping[str, Any], accept: Accepted = None) -> None:
    """Compare held-out images with the members that the generator was fitted on.

    Images are found by their paths (``samples``, ``imgs``, ``files``, ``paths``, ... of the datasets), else as raw
    8-bit images (``data``), else every sample is read once, without the dataset's transforms where they can be left
    out. A warning says where images could be seen as their transforms give them only, or not at all. Fingerprints of
    files are kept on disk.

    Args:
        members: of the rendered set.
        held_out: ``{"val": loaders, "test": loaders}``.
        accept: held-out images that were looked at and are fine, see :func:`read_accepted`.

    Raises:
        DataError: images that meet, all listed by how surely they do.
    """
    trained = [m for m in members if m.split == "train"]
    if not trained:
        return
    accepted = read_accepted(accept)
    meetings: list[tuple[str, Overlap]] = []
    for split, loaders in held_out.items():
        for dataset in datasets_of(loaders):
            candidates = fingerprints(dataset, split)
            if candidates is None:
                warnings.warn(
                    f"the leak guard cannot see the images of the {split} dataset {type(dataset).__name__}: check "
                    "yourself that the "
                    "generator was not fitted on them, or pass leak_guard=False to silence this.",
                    stacklevel=4,
                )
                continue
            meetings += [(split, overlap) for overlap in members_file.overlaps(candidates, trained)]
    leaks = [(s, o) for s, o in meetings if o.how != members_file.BLANK and not is_accepted(o, accepted)]
    blank = sum(o.how == members_file.BLANK for _, o in meetings)
    if blank:
        logger.info(
            "leak guard: %d held-out images are as blank as training images of the generator, which says nothing", blank
        )
    if leaks:
        order = (members_file.SAME_FILE, members_file.SAME_PIXELS, members_file.NEARLY)
        leaks.sort(key=lambda pair: order.index(pair[1].how))
        counts = ", ".join(f"{n} by {how}" for how in order if (n := sum(o.how == how for _, o in leaks)))
        raise DataError(
            f"the generator was fitted on {len(leaks)} held-out images ({counts}), so validation would be too good. Fit "
            "it on the training "
            "part only (a split column, or train/ val/ test/ folders). Pairs that you looked at and that are "
            "different can be accepted: "
            f"accept_leaks= takes a CSV with the columns candidate and member, or the pairs.\n"
            f"{listing([f'{split}: {overlap}' for split, overlap in leaks])}"
        )


def read_accepted(accept: Accepted) -> set[tuple[str, str]]:
    """Pairs (held-out image, member) that may meet, by their paths or names; an empty member accepts the image whatever
    it meets.

    Args:
        accept: a CSV with the columns candidate and member, or such pairs, or names of held-out images alone.

    Raises:
        DataError: a file that cannot be read or has other columns.
    """
    if accept is None:
        return set()
    if isinstance(accept, (str, Path)):
        table = read_table(Path(accept))
        if "candidate" not in table.columns:
            raise DataError(f"{accept} must have the columns candidate and member, but has {choices(table.columns)}.")
        return {(row["candidate"], row.get("member", "")) for _, row in table.rows if row["candidate"]}
    return {(pair, "") if isinstance(pair, str) else (str(pair[0]), str(pair[1])) for pair in accept}


def is_accepted(overlap: Overlap, accepted: set[tuple[str, str]]) -> bool:
    """Whether a meeting was accepted: by the whole path of the image, or by an end of it."""

    def names(said: str, path: str) -> bool:
        return path == said or path.endswith(f"/{said}")

    return any(
        names(candidate, overlap.candidate) and (not member or names(member, overlap.member.path))
        for candidate, member in accepted
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
    """Members of a dataset's images, or None where neither paths nor raw images can be found."""
    paths = file_paths(dataset)
    if paths is not None:
        return _of_files(paths, split)
    images = per_sample(dataset, _images)
    if images is not None:
        return [_of_array(f"sample {place}", image, split) for place, image in enumerate(images)]
    return _of_samples(dataset, split)


def _images(dataset: Any) -> list[Array] | None:
    """Raw 8-bit images held in memory: ``data`` of torchvision's small sets, or samples before any transform."""
    data = getattr(dataset, "data", None)
    if isinstance(data, torch.Tensor):
        data = data.numpy()
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim in (3, 4) and len(data) == len(dataset):
        return [image[:, :, None] if image.ndim == 2 else image for image in data]
    return None


# -- datasets that show neither files nor arrays: their samples are read --------------------------------------------------


def _of_samples(dataset: Any, split: str) -> list[Member] | None:
    """Members of the images that a dataset gives, or None where its samples hold none."""
    places = per_sample(dataset, lambda part: [(part, i) for i in range(len(part))] if _has_places(part) else None)
    if not places:
        return None
    readers: dict[int, Callable[[int], Any] | None] = {}
    members = []
    for place, (part, index) in enumerate(places):
        if id(part) not in readers:
            readers[id(part)] = _reader(part, index, split)
        read = readers[id(part)]
        image = None if read is None else _image(read(index))
        if image is None:
            return None
        members.append(_of_array(f"sample {place}", image, split))
    return members


def _has_places(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _reader(dataset: Any, index: int, split: str) -> Callable[[int], Any] | None:
    """Choose how to read samples: without transforms if that gives an 8-bit image, else as they are, with a warning."""
    bare = copy.copy(dataset)
    for name in ("transform", "transforms"):
        if getattr(bare, name, None) is not None:
            with contextlib.suppress(AttributeError):  # a property without a setter
                setattr(bare, name, None)
    for way in (bare, dataset):
        try:
            image = _image(way[index])
        except Exception:  # the user's code: some need their transforms
            continue
        if image is None:
            continue
        if image.dtype != np.uint8:
            warnings.warn(
                f"the leak guard sees the images of the {split} dataset {type(dataset).__name__} only as its "
                "transforms give them: a "
                "copy that they crop or turn goes unseen.",
                stacklevel=8,
            )
        return way.__getitem__  # type: ignore[no-any-return]
    return None


def _image(sample: Any) -> Array | None:
    """The image of a sample as ``[H, W, C]``; tensors are ``[C, H, W]``, of any range."""
    try:
        layout = Layout.of(sample)
        image = layout.get(sample, layout.image)
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


def _of_files(paths: Sequence[Path], split: str) -> list[Member]:
    """Members of files; those that were seen before, at the same size and time of change, are read from the cache."""
    stats = [path.stat() for path in paths]
    keys = [f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}" for path, stat in zip(paths, stats, strict=True)]
    file = cache_folder() / "fingerprints" / f"{hash_json([SCHEMA, sorted(keys)])}.jsonl"
    try:
        known = {member.path: member for member in members_file.read(file)}
    except (OSError, IntegrityError):
        known = {}
    if not known.keys() >= {str(path) for path in paths}:
        members = in_threads(lambda path: _of_file(path, split), paths)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            members_file.write(file, members)
        return members
    return [replace(known[str(path)], split=split) for path in paths]


def _of_file(path: Path, split: str) -> Member:
    try:
        return _of_array(str(path), decode(path), split, hash_file(path))
    except (DataError, OSError) as error:
        raise DataError(f"the leak guard cannot read the {split} image {path} ({error}).") from error


def _of_array(name: str, image: Any, split: str, digest: str = "") -> Member:
    array = np.asarray(image) if isinstance(image, Image.Image) else image
    array = array[:, :, None] if array.ndim == 2 else array
    return Member(name, "", "", split, digest, pixel_hash(array), perceptual_hash(array), fine_hash(array))
