"""Rows of batches of any layout: count them, read them, put others in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from visynth.core.errors import UsageError
from visynth.mixing.layout import Layout, keys_of
from visynth.mixing.targets import labels_in, probabilities


def count_rows(images: Any) -> int:
    if isinstance(images, (torch.Tensor, np.ndarray)) and images.ndim >= 3:
        return len(images)
    if isinstance(images, (list, tuple)) and images:
        return len(images)
    raise UsageError(
        f"a batch's images must be a tensor [B, C, H, W] or a list of images, but got {type(images).__name__} "
        f"{list(getattr(images, 'shape', []))}: name them with image_key=."
    )


def shown_labels(labels: Any, size: int) -> list[set[int]]:
    """Classes that each row's label shows."""
    labels = labels.cpu() if isinstance(labels, torch.Tensor) else labels  # once, not once a row
    return [labels_in(labels[row]) for row in range(size)]


def only_one(found: set[int]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def row_of(batch: Any, layout: Layout, row: int) -> Any:
    """One row of a batch as a sample of its own; parts that are no columns stay whole. Of a dataclass, whose own checks
    may want batches, a dict."""
    keys = [key for key in keys_of(batch) or [] if not (hasattr(batch, "_fields") and isinstance(key, int))]
    parts = {key: entry_of(layout.get(batch, key), row) for key in keys}
    return parts if dataclasses.is_dataclass(batch) else layout.put(batch, parts)


def entry_of(column: Any, row: int) -> Any:
    if isinstance(column, (torch.Tensor, np.ndarray)):
        return column[row] if column.ndim else column
    return column[row] if isinstance(column, (list, tuple)) and row < len(column) else column


def device_of(images: Any) -> torch.device:
    first = images if isinstance(images, torch.Tensor) else images[0] if len(images) else None
    if isinstance(first, Mapping):  # detection targets
        first = next((value for value in first.values() if isinstance(value, torch.Tensor)), None)
    return first.device if isinstance(first, torch.Tensor) else torch.device("cpu")


def put_rows(values: Any, synthetic: list[Any], rows: list[int], private: bool = False) -> Any:
    """Values with other rows: a tensor (the same one if it is private) or array of its own, or a list."""
    if isinstance(values, (list, tuple)):
        whole = list(values)
        for row, value in zip(rows, synthetic, strict=True):
            whole[row] = moved_to(value, device_of(values)) if isinstance(whole[row], (torch.Tensor, dict)) else value
        return type(values)(whole)
    if isinstance(values, np.ndarray):
        array = values.copy()
        for row, value in zip(rows, synthetic, strict=True):
            array[row] = np.asarray(value)
        return array
    check_row(synthetic[0], values[0])
    whole = values if private else values.clone()
    for row, value in zip(rows, synthetic, strict=True):  # one at a time: small enough that no threads have to be woken
        whole[row] = torch.as_tensor(value).as_subclass(torch.Tensor)
    return whole


def check_row(synthetic: Any, real: Any) -> None:
    if isinstance(real, torch.Tensor) and tuple(torch.as_tensor(synthetic).shape) != tuple(real.shape):
        raise UsageError(
            f"a synthetic image became {list(synthetic.shape)}, but the batch's rows are {list(real.shape)}: give "
            "transform= that ends "
            "as your batches are, or backend='samples', where your own collate_fn joins the samples."
        )


def moved_to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: moved_to(part, device) for key, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def soft_labels(labels: Any, count: int) -> torch.Tensor:
    if isinstance(labels, torch.Tensor) and labels.ndim == 2 and labels.shape[1] == count:
        return labels.to(torch.float32)
    return torch.stack([probabilities(label, count) for label in labels])
