"""Weights of one network as the start of another: what is the same is taken over, classes by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from visynth.core.errors import UsageError


def fitting(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], before: Sequence[str], now: Sequence[str]
) -> dict[str, Tensor]:
    """Select the given tensors that a network can start from.

    Embeddings of classes are taken class by class of the same name; a class that is new keeps its random start. A
    mapping without classes becomes one with them that makes the same styles at first, whatever the class; and blocks
    that do not see the class (``shared``) get a mapping of their own from that of all.

    Args:
        given: tensors of the trained network.
        own: those of the new one.
        before: classes of the trained network, in the order of its labels.
        now: classes of the new one.

    Example:
        >>> import torch
        >>> kept = fitting({"embed.weight": torch.ones(2, 3)}, {"embed.weight": torch.zeros(2, 3)}, ["cat", "dog"], ["cow", "dog"])
        >>> kept["embed.weight"][:, 0].tolist()
        [0.0, 1.0]
    """
    taken: dict[str, Tensor] = {}
    for name, value in [*given.items(), *_common(given, own)]:
        if name not in own:
            continue
        start = own[name]
        axis = _class_axis(name)
        if axis is not None and tuple(before) != tuple(now):
            if name.endswith(("weight", "original")) and value.shape[1 - axis] == start.shape[1 - axis]:
                taken |= _by_name(name, value, start, axis, before, now)
        elif value.shape == start.shape:
            taken[name] = value
        elif name.endswith("mapping.fc0.weight") and _unconditional(given) and value.shape[1] < start.shape[1]:
            taken[name] = _inputs(value, start)
    return taken


def check_depth(given: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """A mapping of another depth would be half trained and half random.

    Raises:
        UsageError: another depth.
    """
    depths = [sum(name.startswith("mapping.fc") and name.endswith("weight") for name in part) for part in (given, own)]
    if depths[0] != depths[1]:
        raise UsageError(
            f"transfer: {source} has a mapping of {depths[0]} layers, this network of {depths[1]}: give "
            f"layers={depths[0]}."
        )


def _class_axis(name: str) -> int | None:
    """Along which axis a tensor has the classes: a linear map of one-hot vectors along the second, an embedding along
    the first."""
    if "embed." not in name:
        return None
    return 1 if "mapping.embed." in name else 0


def _by_name(
    name: str, value: Tensor, start: Tensor, axis: int, before: Sequence[str], now: Sequence[str]
) -> dict[str, Tensor]:
    mixed, both = start.clone(), [label for label in now if label in before]
    for label in both:
        mixed.select(axis, now.index(label)).copy_(value.select(axis, before.index(label)))
    return {name: mixed} if both else {}


def _unconditional(given: Mapping[str, Tensor]) -> bool:
    return "mapping.embed.weight" not in given


def _inputs(value: Tensor, start: Tensor) -> Tensor:
    """The first inputs of a linear map, at its scale of ``1 / sqrt(inputs)``; further ones are 0."""
    weight = start.new_zeros(start.shape)
    count = min(value.shape[1], start.shape[1])
    weight[:, :count] = value[:, :count] * math.sqrt(start.shape[1] / value.shape[1])
    return weight


def _common(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """A mapping for the blocks that do not see the class, where the trained network has none."""
    if any(name.startswith("common.") for name in given):
        return []
    tensors = []
    for name, start in own.items():
        source = given.get(name.replace("common.", "mapping.", 1)) if name.startswith("common.") else None
        if source is not None and source.shape[0] == start.shape[0]:
            tensors.append((name, _inputs(source, start) if name.endswith("fc0.weight") else source))
    return tensors
