"""Sets that come as arrays, written once as class folders: scikit-learn's digits and MedMNIST's ``.npz`` files.

From there on they are sets like any other: every file has a name, a hash and a place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import encode_png
from visynth.core.errors import DataError, choices
from visynth.core.files import cache_folder, hash_file
from visynth.core.folders import new_folder

DIGITS = "sklearn:digits"
NAMES: Mapping[str, tuple[str, ...]] = {"pneumoniamnist": ("normal", "pneumonia")}  # the label numbers' meanings


def is_packed(data: str | Path) -> bool:
    """Whether :func:`unpack` knows what to do with it."""
    return str(data) == DIGITS or Path(data).suffix.lower() == ".npz"


def unpack(data: str | Path) -> Path:
    """The folder with the set's images, made in the cache folder when it is not there yet.

    Args:
        data: ``"sklearn:digits"`` (1,797 grey images of 8x8, values scaled from 0-16 to 0-255), or a MedMNIST file with
            arrays ``{train,val,test}_images`` (uint8 ``[N, H, W]`` or ``[N, H, W, 3]``) and
            ``{train,val,test}_labels``.

    Raises:
        DataError: no such file, or other arrays in it.
    """
    if str(data) == DIGITS:
        return _write(cache_folder() / "sets" / "digits", _digits())
    path = Path(data)
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    return _write(cache_folder() / "sets" / f"{path.stem}-{hash_file(path)[:16]}", _medmnist(path))


def _write(folder: Path, images: Iterator[tuple[str, NDArray[Any]]]) -> Path:
    if not folder.is_dir():  # it is named by its content
        with new_folder(folder) as new:
            for name, image in images:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(encode_png(image))
    return folder


def _digits() -> Iterator[tuple[str, NDArray[Any]]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        yield f"{label}/{index:04d}.png", np.rint(image * (255 / 16)).astype(np.uint8)[:, :, None]


def _medmnist(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as arrays:
        splits = [s for s in ("train", "val", "test") if f"{s}_images" in arrays and f"{s}_labels" in arrays]
        if not splits:
            raise DataError(
                f"{path} holds the arrays {choices(arrays.files)}; a MedMNIST file has train_images and train_labels "
                "(and val_, test_)."
            )
        for split in splits:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            labels = labels.reshape(len(images), -1)
            if labels.shape[1] != 1 or images.dtype != np.uint8 or images.ndim not in (3, 4):
                raise DataError(
                    f"{path}: {split} has images {images.dtype} {list(images.shape)} and {labels.shape[1]} labels an "
                    "image; "
                    "uint8 [N, H, W(, 3)] and one label are read."
                )
            names = NAMES.get(path.stem)
            for index, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
                name = names[int(label)] if names else str(int(label))
                yield f"{split}/{name}/{index:05d}.png", image[:, :, None] if image.ndim == 2 else image
