"""Labels, class names and attributes of the user's dataset, without loading images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from visynth.core.errors import UsageError, choices

T = TypeVar("T")

LABEL_KEYS = ("label", "target", "y", "class", "labels", "gt_label", "targets")  # of dicts, in this order


def per_sample(dataset: Any, read: Callable[[Any], list[T] | None]) -> list[T] | None:
    """What ``read`` finds for each sample of a dataset, through Subset and ConcatDataset; None where it finds nothing.

    Example:
        >>> per_sample(Subset([5, 6, 7], [2, 0]), list)
        [7, 5]
    """
    if isinstance(dataset, Subset):
        inner = per_sample(dataset.dataset, read)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [per_sample(part, read) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [value for part in parts for value in part or []]
    return read(dataset)


def find_labels(dataset: Any) -> list[int] | None:
    """Labels of a dataset without loading images, through Subset and ConcatDataset; None where it does not show them.

    Read are ``targets`` and ``labels`` (``[N]`` or ``[N, 1]`` whole numbers), ``samples``, the tensors of a
    TensorDataset, the label column of a Hugging Face dataset, and lists of dicts (``data``, as MONAI's datasets keep
    them).
    """
    return per_sample(dataset, _labels)


def _labels(dataset: Any) -> list[int] | None:
    if not hasattr(dataset, "__len__"):
        return None
    for read in (_of_attributes, _of_pairs, _of_tensors, _of_columns, _of_dicts):
        labels = read(dataset)
        if labels is not None and len(labels) == len(dataset):
            return labels
    return None


def _of_attributes(dataset: Any) -> list[int] | None:
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(dataset):
            numbers = whole_numbers(values)
            if numbers is not None:
                return numbers
    return None


def _of_pairs(dataset: Any) -> list[int] | None:
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not samples or not all(isinstance(pair, tuple) for pair in samples):
        return None
    return whole_numbers([pair[-1] for pair in samples])


def _of_tensors(dataset: Any) -> list[int] | None:
    tensors = getattr(dataset, "tensors", None)  # a TensorDataset
    if isinstance(tensors, tuple) and len(tensors) > 1 and not tensors[1].is_floating_point():
        return whole_numbers(tensors[1])
    return None


def _of_columns(dataset: Any) -> list[int] | None:
    """The label column of a Hugging Face dataset: reading a column does not decode the images in the others."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    column = next((name for name in LABEL_KEYS if name in features), None)
    if column is None:
        return None
    bare = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    return whole_numbers(list(bare[column]))


def _of_dicts(dataset: Any) -> list[int] | None:
    rows = getattr(dataset, "data", None)
    if not isinstance(rows, (list, tuple)) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    key = next((name for name in LABEL_KEYS if name in rows[0]), None)
    return None if key is None else whole_numbers([row.get(key) for row in rows])


def whole_numbers(values: Any) -> list[int] | None:
    """Values as a list of whole numbers, or None where they are anything else.

    Example:
        >>> whole_numbers(np.array([[2], [0]])), whole_numbers([0.5]), whole_numbers([[1, 0]]), whole_numbers(["a"])
        ([2, 0], None, None, None)
    """
    try:
        flat = np.asarray(values)
    except (ValueError, TypeError):  # several labels a sample, of different number
        return None
    flat = flat[:, 0] if flat.ndim == 2 and flat.shape[1] == 1 else flat
    return flat.tolist() if flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer) else None


def class_names(dataset: Any) -> dict[str, int] | None:
    """``{class name: label}`` where a dataset says so: ``class_to_idx``, ``classes``, the features of a Hugging Face
    dataset, MedMNIST's ``info``."""
    indices = find_attribute(dataset, "class_to_idx")
    if isinstance(indices, Mapping):
        return {str(name): int(place) for name, place in indices.items()}
    names = find_attribute(dataset, "classes")
    if names is None:
        features = find_attribute(dataset, "features")
        key = next((k for k in LABEL_KEYS if k in features), None) if isinstance(features, Mapping) else None
        names = None if key is None else getattr(features[key], "names", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return {name: place for place, name in enumerate(names)}
    indices = find_attribute(dataset, "info")  # MedMNIST: {"label": {"0": "normal", ...}}
    indices = indices.get("label") if isinstance(indices, Mapping) else None
    if isinstance(indices, Mapping) and indices and all(str(key).isdigit() for key in indices):
        return {str(name): int(key) for key, name in indices.items()}
    return None


def find_attribute(dataset: Any, name: str) -> Any:
    """An attribute of a dataset or of what it wraps, or None."""
    while dataset is not None:
        value = getattr(dataset, name, None)
        if value is not None:
            return value
        dataset = dataset.datasets[0] if isinstance(dataset, ConcatDataset) else getattr(dataset, "dataset", None)
    return None


def map_classes(
    dataset: Any,
    rendered: Sequence[str],
    needed: Collection[str],
    classes: Mapping[str, int] | Sequence[str] | None,
    labels: Sequence[int] | None,
    *,
    geometry: bool = False,
) -> dict[str, int]:
    """``{synthetic class: the user's label}``.

    Given ``classes`` decide; else what the dataset says (:func:`class_names`). An order is never guessed: a class that
    is called by another's number trains on wrong labels without a word.

    Args:
        dataset: the user's, or None.
        made: all classes of the generator, in its order.
        needed: those that must have a label.
        classes: given by the user.
        labels: of the training samples, where known.
        geometry: labels are masks or boxes, whose numbers often start at 1 for the background's sake: only told ones
            are taken.

    Raises:
        UsageError: a class without a label; the message lists both sides and shows the line to write.
    """
    given: dict[str, int]
    if classes is not None:
        given = dict(classes) if isinstance(classes, Mapping) else {name: place for place, name in enumerate(classes)}
    else:
        known = class_names(dataset)
        if known is None or (geometry and find_attribute(dataset, "class_to_idx") is None):
            seen = "the dataset's labels" if labels is None else f"the labels {_some(sorted(set(labels)))}"
            line = ", ".join(f"{name!r}: ..." for name in rendered)
            raise UsageError(
                f"the synthetic classes {choices(rendered)} must be matched with {seen}, and the dataset does not say "
                "which number means what "
                f"(it has neither class_to_idx nor classes). Say it: WithSynthetic(..., classes={{{line}}})."
            )
        given = known
        beyond = sorted({label for label in labels or () if label >= 0} - set(given.values()))
        if beyond and not geometry:
            raise UsageError(
                f"the dataset says that its classes are {given}, but there are also the labels {_some(beyond)}: its "
                "names and numbers do not agree. "
                "Give classes={name: label} to WithSynthetic."
            )
    missing = [name for name in rendered if name in needed and name not in given]
    if missing:
        raise UsageError(
            f"synthetic classes {choices(missing)} are not among the dataset's {choices(given)}: give classes={{name: "
            f"label}} to WithSynthetic."
        )
    return {name: given[name] for name in rendered if name in given}


def _some(values: Sequence[int], most: int = 20) -> str:
    shown = ", ".join(map(str, values[:most]))
    return f"[{shown}]" if len(values) <= most else f"[{shown}, and {len(values) - most} more]"
