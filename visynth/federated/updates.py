"""What becomes of the sites' updates: lengths, cuts, weighted means, noise; and their form on the way: safetensors only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from visynth.core.errors import DataError, raise_all

SCHEMA, HEADER = "visynth.federated/1", "visynth"
Tensors = dict[str, Tensor]


def length(update: Mapping[str, Tensor]) -> float:
    """Euclidean length of all tensors together, in double precision.

    Example:
        >>> length({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
        5.0
    """
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


def clipped(update: Mapping[str, Tensor], bound: float | None) -> Tensors:
    """An update no longer than a bound: shortened, its direction kept (McMahan et al., "Learning differentially private
    recurrent language models", ICLR 2018, flat clipping).

    Example:
        >>> clipped({"a": torch.tensor([3.0, 4.0])}, 1.0)["a"].tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    size = length(update)
    if bound is None or size <= bound:
        return dict(update)
    return {name: (tensor.double() * (bound / size)).to(tensor.dtype) for name, tensor in update.items()}


def mean_update(updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float], total: float) -> Tensors:
    """Sum of weighted updates over ``total``, summed in double precision.

    Args:
        updates: of the sites that answered, at least one.
        weights: of each.
        total: their sum, or, where the number of answers may not be told, what it is expected to be.

    Example:
        >>> mean_update([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}], [1, 2], 3)["a"].tolist()
        [3.0]
    """
    mean = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in updates[0].items()}
    for update, weight in zip(updates, weights, strict=True):
        for name, tensor in update.items():
            mean[name] += weight * tensor.double()
    return {name: (mean[name] / total).to(like.dtype) for name, like in updates[0].items()}


def noised(update: Mapping[str, Tensor], deviation: float, rng: np.random.Generator) -> Tensors:
    """An update with Gaussian noise in every coordinate; which noise depends on the names, not on their order."""
    noise = {
        name: torch.from_numpy(rng.standard_normal(tuple(update[name].shape))) * deviation for name in sorted(update)
    }
    return {name: (tensor.double() + noise[name]).to(tensor.dtype) for name, tensor in update.items()}


def packed(tensors: Mapping[str, Tensor], **facts: Any) -> bytes:
    """A message: tensors, and plain facts in its header."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in no certain order, and equal messages are equal bytes.
    return save(whole, {HEADER: json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)})


def unpacked(message: bytes, sender: str) -> tuple[Tensors, dict[str, Any]]:
    """Tensors, by name in order (safetensors has none), and facts of a message.

    Raises:
        DataError: it is no message of this schema.
    """
    try:
        tensors, facts = load(bytes(message)), json.loads(_metadata(bytes(message)).get(HEADER, "{}"))
        schema = facts.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, here it is {SCHEMA!r}")
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{sender} sent no message of a federated training: {error}.") from None
    return {name: tensors[name] for name in sorted(tensors)}, facts


def _metadata(message: bytes) -> dict[str, str]:
    """Header of a safetensors file (a length in 8 bytes, little end first, and JSON)."""
    size = int.from_bytes(message[:8], "little")
    return dict(json.loads(message[8 : 8 + size]).get("__metadata__", {}))


def check_alike(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], sender: str) -> None:
    """Names, shapes and types as they should be, and finite numbers.

    Raises:
        DataError: what is not, all at once.
    """
    problems = [f"{name} is missing" for name in like.keys() - tensors.keys()]
    problems += [f"{name} is not known here" for name in tensors.keys() - like.keys()]
    for name in sorted(like.keys() & tensors.keys()):
        there, here = tensors[name], like[name]
        if (there.shape, there.dtype) != (here.shape, here.dtype):
            problems.append(f"{name} is {_form(there)} there, {_form(here)} here")
        elif not bool(torch.isfinite(there).all()):
            problems.append(f"{name} holds numbers that are not finite")
    raise_all(f"the message of {sender}", sorted(problems), DataError)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
