"""Further fields of a sample beside image, label and mask: what a synthetic sample must say there.

A field that is the same everywhere stays; one that follows from the label (its name, a one-hot vector, a flag, a class
weight) takes the value of the synthetic sample's own label; the position in the dataset stays the position. Of any
other field (path, id, weight of a sample) nothing can be known: the replaced sample's value stays, and a warning names
the field and the way to say it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from visynth.core.errors import UsageError, choices
from visynth.mixing.layout import Layout, keys_of


@dataclass
class Fields:
    """Values of further fields in synthetic samples.

    Attributes:
        told: by the user.
        by_label: ``{field: {label: value}}``, seen in real samples.
        places: fields that hold the sample's position.
        unknown: fields that keep what the replaced sample says.
        constant: fields that were the same in all samples so far, and their values.
        names: class name of each label.
    """

    told: dict[Any, Any] = field(default_factory=dict)
    by_label: dict[Any, dict[int, Any]] = field(default_factory=dict)
    places: tuple[Any, ...] = ()
    unknown: tuple[Any, ...] = ()
    constant: dict[Any, Any] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    def values(self, label: int | None, place: int | None) -> dict[Any, Any]:
        """Values of a synthetic sample of a label at a place; fields that are not among them stay as they are."""
        row = dict(self.told)
        if place is not None:
            row |= dict.fromkeys(self.places, place)
        if label is not None:
            for key, table in self.by_label.items():
                if label in table:
                    row[key] = table[label]
                elif (derived := self._derived(table, label)) is not None:
                    row[key] = derived
        return row

    def misses(self, label: int | None) -> bool:
        """Whether some field's value of this label is not known, so that the replaced sample's stays."""
        if self.unknown or label is None:
            return bool(self.unknown or self.by_label)
        return any(label not in t and self._derived(t, label) is None for t in self.by_label.values())

    def see(self, label: int | None, value_of: Callable[[Any], Any]) -> None:
        """Note what another real sample says; fields that contradict what was learned are not known after all, which is
        told once."""
        wrong = [key for key, value in self.constant.items() if not same(value, value_of(key))]
        for key, table in self.by_label.items():
            if label is not None and not same(table.setdefault(label, value := value_of(key)), value):
                wrong.append(key)
        if wrong:
            for key in wrong:
                self.constant.pop(key, None)
                self.by_label.pop(key, None)
            self.unknown = (*self.unknown, *wrong)
            _warn(wrong)

    def _derived(self, table: Mapping[int, Any], label: int) -> Any:
        """The value of a label that was not seen, where all that were seen follow one rule."""
        seen = list(table.items())
        if all(_is_number(v) and int(v) == k for k, v in seen):
            example = seen[0][1]
            return torch.full_like(example, label) if isinstance(example, torch.Tensor) else type(example)(label)
        if all(isinstance(v, str) and v == self.names.get(k) for k, v in seen):
            return self.names.get(label)
        if all(isinstance(v, (torch.Tensor, np.ndarray)) and _one_hot_of(v) == k for k, v in seen):
            value = seen[0][1] * 0
            if label < len(value):
                value[label] = 1
                return value
        return None


def learn_fields(
    layout: Layout,
    samples: Sequence[tuple[int | None, int | None, Any]],
    names: Mapping[int, str],
    told: Mapping[Any, Any] | None,
    shared: Collection[str] = (),
) -> Fields:
    """Learn further fields from real samples; a warning names those that cannot be known.

    Args:
        layout: of the samples.
        samples: (position or None, label or None, sample), several of a class where there are.
        names: class name of each label.
        told: values that the user gives.
        shared: names of classes that share a label: a field that says them does not follow from it, however few were seen.

    Raises:
        UsageError: a further field is an image or a dict, and the user gives no value for it.
    """
    given = dict(told or {})
    there = keys_of(samples[0][2]) or []
    absent = [key for key in given if key not in there]
    if absent:
        raise UsageError(f"extra= names {choices(absent)}, which samples do not have; they have {choices(there)}.")
    keys = [
        k for k in keys_of(samples[0][2]) or [] if k not in (layout.image, layout.label, layout.mask) and k not in given
    ]
    if hasattr(samples[0][2], "_fields"):  # a named tuple shows each part under its name and its place
        keys = [key for key in keys if isinstance(key, str)]
    layout.check_extras(samples[0][2], given)
    fields = Fields(given, names=names)
    places, unknown = [], []
    for key in keys:
        values = [(place, label, layout.get(sample, key)) for place, label, sample in samples]
        if all(same(value, values[0][2]) for _, _, value in values):
            fields.constant[key] = values[0][2]  # the same everywhere: it stays
            continue
        if all(place is not None and _is_number(value) and int(value) == place for place, _, value in values):
            places.append(key)
            continue
        table = _table(values)
        if table is None or any(isinstance(value, str) and value in shared for value in table.values()):
            unknown.append(key)
        else:
            fields.by_label[key] = table
    fields.places, fields.unknown = tuple(places), tuple(unknown)
    if unknown:
        _warn(unknown)
    return fields


def _warn(unknown: Sequence[Any]) -> None:
    warnings.warn(
        f"samples carry {choices(unknown)} beside image and label, which follow neither from the label nor from the "
        "position: synthetic "
        "samples keep what the sample that they replace says there. Give their values with extra={field: value}.",
        stacklevel=4,
    )


def _table(values: Sequence[tuple[int | None, int | None, Any]]) -> dict[int, Any] | None:
    """``{label: value}`` where the label decides: seen twice of at least one label, and never two values of one."""
    table: dict[int, Any] = {}
    twice = False
    for _, label, value in values:
        if label is None:
            return None
        if label in table:
            twice = True
            if not same(table[label], value):
                return None
        table.setdefault(label, value)
    return table if twice else None


def same(first: Any, second: Any) -> bool:
    """Whether two values of any kind are equal; values that cannot be compared are not."""
    try:
        if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
            a, b = torch.as_tensor(first), torch.as_tensor(second)
            return a.shape == b.shape and bool((a == b).all())
        if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
            return bool(np.array_equal(first, second))
        return bool(first == second)
    except Exception:  # values of the user's own types
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 0 and not _floating(value)
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _floating(value: Any) -> bool:
    return "float" in str(value.dtype) or "bool" in str(value.dtype)


def _one_hot_of(value: Any) -> int | None:
    flat = np.asarray(value)
    if flat.ndim != 1 or len(flat) < 2:
        return None
    hot = np.flatnonzero(flat)
    return int(hot[0]) if len(hot) == 1 and flat[hot[0]] == 1 else None
