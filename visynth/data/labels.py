"""What the user's dataset tells without loading images: labels, class names, attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from visynth.errors import UsageError, choices

T = TypeVar("T")


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
    """Labels of a dataset without loading images: ``targets``, ``labels`` or ``samples``, through Subset and ConcatDataset."""
    return per_sample(dataset, _labels)


def _labels(dataset: Any) -> list[int] | None:
    if not hasattr(dataset, "__len__"):
        return None
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(dataset):
            try:
                flat = np.asarray(values)
            except ValueError:  # several labels a sample, of different number
                continue
            if flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer):
                return [int(v) for v in flat]
    samples = getattr(dataset, "samples", None)
    if (
        isinstance(samples, list)
        and samples
        and isinstance(samples[0], tuple)
        and isinstance(samples[0][-1], (int, np.integer))
    ):
        return [int(sample[-1]) for sample in samples]
    tensors = getattr(dataset, "tensors", None)  # a TensorDataset
    if isinstance(tensors, tuple) and len(tensors) > 1 and tensors[1].ndim == 1 and not tensors[1].is_floating_point():
        return [int(v) for v in tensors[1]]
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
    made: Sequence[str],
    needed: Collection[str],
    classes: Mapping[str, int] | Sequence[str] | None,
    labels: Sequence[int] | None,
    *,
    geometry: bool = False,
) -> dict[str, int]:
    """``{synthetic class: the user's label}``.

    Given ``classes`` decide; else the dataset's ``class_to_idx`` or ``classes``; else the generator's order where the counts agree.

    Args:
        dataset: the user's, or None.
        made: all classes of the generator, in its order.
        needed: those that must have a label.
        classes: given by the user.
        labels: of the training samples, where known.
        geometry: labels are masks or boxes, whose numbers often start at 1 for the background's sake: only told ones are taken.

    Raises:
        UsageError: a class without a label; the message lists both sides.
    """
    told: dict[str, int]
    if classes is not None:
        told = dict(classes) if isinstance(classes, Mapping) else {name: place for place, name in enumerate(classes)}
    elif find_attribute(dataset, "class_to_idx") is not None:
        told = {str(name): int(place) for name, place in find_attribute(dataset, "class_to_idx").items()}
    elif find_attribute(dataset, "classes") is not None and not geometry:
        told = {str(name): place for place, name in enumerate(find_attribute(dataset, "classes"))}
    elif labels is not None and not geometry and len(set(labels)) == len(made):
        told = {name: place for place, name in enumerate(made)}
    else:
        seen = "the dataset's labels" if labels is None else f"the labels {sorted(set(labels))}"
        raise UsageError(
            f"the synthetic classes {choices(made)} must be matched with {seen}: give classes={{name: label}} to WithSynthetic."
        )
    missing = [name for name in made if name in needed and name not in told]
    if missing:
        raise UsageError(
            f"synthetic classes {choices(missing)} are not among the dataset's {choices(told)}: give classes={{name: label}} to WithSynthetic."
        )
    return {name: told[name] for name in made if name in told}
