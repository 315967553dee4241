"""Reading public StyleGAN2 checkpoints without executing anything in them.

The files are pickles, which can run any code when they are loaded. Here an unpickler knows a handful of names, builds
tensors and plain containers of them, and refuses every other name; the source text that such files carry is neither
executed nor kept.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visynth.core.errors import DataError, choices
from visynth.networks.resample import TAPS
from visynth.networks.stylegan2 import channels_at

NETWORKS = ("G_ema", "G", "D")
MOST = 2000  # tensors of a network


@dataclass
class Stored:
    """A network or a part of one, as it lies in the file."""

    state: Mapping[str, Any]

    def tensors(self, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
        """Parameters and buffers by their dotted names."""
        if depth > 8:
            raise DataError("the stored network holds itself, or is nested deeper than any StyleGAN2.")
        by_name: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in self.state.get(kind, {}).items():
                if isinstance(value, Tensor):
                    by_name[prefix + name] = value.detach().float()
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Stored):
                by_name |= child.tensors(f"{prefix}{name}.", depth + 1)
                if len(by_name) > MOST:
                    raise DataError(f"the stored network has more than {MOST} tensors: no StyleGAN2 has.")
        return by_name

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of its constructor, by name."""
        return dict(self.state.get("_init_kwargs") or {})


@dataclass
class Checkpoint:
    """A generator's and a discriminator's weights under the names of :mod:`visynth.networks.stylegan2`.

    Attributes:
        arguments: of the generator network, ``size`` and ``channels`` among them.
        generator: its weights.
        discriminator: weights, or empty where the file has none.
    """

    arguments: dict[str, Any]
    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor] = field(default_factory=dict)


def read_stylegan2(path: str | Path, which: str = "G_ema") -> Checkpoint:
    """A StyleGAN2 of a ``network-snapshot-*.pkl``, class-conditional or not, of any resolution.

    Args:
        path: the pickle.
        which: "G_ema", the averaged generator, or "G".

    Raises:
        DataError: no such file, something in it that networks and plain containers do not need, or another kind of
            network.
    """
    try:
        data = Path(path).read_bytes()
        _check_size(data)
        return _checkpoint(path, _Unpickler(io.BytesIO(data)).load(), which)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from error
    except Exception as error:  # a torn or foreign pickle may raise anything
        raise DataError(
            f"{path} is not a StyleGAN2 pickle that can be read ({type(error).__name__}: {error})."
        ) from error


def _checkpoint(path: str | Path, checkpoint: Any, which: str) -> Checkpoint:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(which), Stored):
        held = choices(
            name for name in NETWORKS if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), Stored)
        )
        raise DataError(f"{path} holds no network {which!r}; it holds {held or 'none'}.")
    generator = checkpoint[which].tensors()
    arguments = _arguments(path, checkpoint[which].arguments, generator)
    critic = checkpoint["D"].tensors() if isinstance(checkpoint.get("D"), Stored) else {}
    return Checkpoint(arguments, *(_without_filters(weights) for weights in (generator, critic)))


def _without_filters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.endswith("resample_filter")}


def _arguments(path: Any, init: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes and widths out of the weights themselves."""
    if "synthesis.b4.const" not in weights or "mapping.fc0.weight" not in weights:
        raise DataError(
            f"{path} holds a network without 'synthesis.b4.const' and 'mapping.fc0.weight': only the StyleGAN2 "
            "configuration can be read, not "
            "the alias-free ones of StyleGAN3."
        )
    taps = torch.tensor(TAPS)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    filters = [value for name, value in weights.items() if name.endswith("resample_filter")]
    if any(value.shape != kernel.shape or not torch.allclose(value, kernel, atol=1e-4) for value in filters):
        raise DataError(f"{path} resamples with another filter than [1, 3, 3, 1].")
    sizes = sorted(int(name.split(".")[1][1:]) for name in weights if name.endswith("conv1.weight"))
    if any(f"synthesis.b{size}.torgb.weight" not in weights for size in sizes):
        raise DataError(f"{path} has no image at every resolution: only the 'skip' architecture can be read.")
    widths = {size: weights[f"synthesis.b{size}.conv1.weight"].shape[0] for size in sizes}
    most, base = max(widths.values()), max(size * width for size, width in widths.items())
    if any(channels_at(size, base, most) != width for size, width in widths.items()):
        raise DataError(f"{path} has widths {widths}, which are not min(base / resolution, most).")
    layers = sum(name.startswith("mapping.fc") and name.endswith("weight") for name in weights)
    embed = weights.get("mapping.embed.weight")
    w_dim = weights["mapping.fc0.weight"].shape[0]
    clamp = (init.get("synthesis_kwargs") or {}).get("conv_clamp")
    return {
        "size": sizes[-1],
        "channels": weights["synthesis.b4.torgb.weight"].shape[0],
        "classes": 0 if embed is None else embed.shape[1],
        "z_dim": weights["mapping.fc0.weight"].shape[1] - (0 if embed is None else embed.shape[0]),
        "w_dim": w_dim,
        "base": base,
        "most": most,
        "layers": layers,
        "clamp": float(clamp or 0.0),
    }


# -- the unpickler ------------------------------------------------------------------------------------------------------


class _Fixed(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise DataError(f"the pickle tries to change {cls.__name__}: it is not loaded.")


class _Dict(dict[Any, Any], metaclass=_Fixed):
    """In place of EasyDict."""

    __slots__ = ()


class _Call:
    """A function that a pickle can call and cannot change."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise DataError("the pickle tries to change a function: it is not loaded.")

    def __setstate__(self, state: Any) -> None:
        raise DataError("the pickle tries to change a function: it is not loaded.")


def _check_size(data: bytes) -> None:
    """Refuse nesting that no network has: it could exhaust the stack of the process.

    Raises:
        DataError: too many tuples, or too many operations.
    """
    tuples = 0
    for number, (operation, _, _) in enumerate(pickletools.genops(data)):
        tuples += operation.name.startswith("TUPLE")
        if tuples > 20_000 or number > 2_000_000:
            raise DataError("the pickle has more parts than any network: it is not loaded.")


def _object(meta: Any) -> Stored:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise DataError("a stored object has no state.")
    return Stored(meta["state"])


def _storage(data: Any) -> Any:
    if not isinstance(data, bytes):
        raise DataError("a stored tensor is no bytes.")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    whole = storage if isinstance(storage, torch.storage.TypedStorage) else None
    if whole is None:
        raise DataError("a stored tensor has no storage.")
    numbers = [int(offset), *map(int, size), *map(int, stride)]
    last = int(offset) + sum((int(n) - 1) * int(step) for n, step in zip(size, stride, strict=True))
    count = math.prod(map(int, size))
    held = whole._untyped_storage.nbytes() // torch.empty(0, dtype=whole.dtype).element_size()
    if min(numbers, default=0) < 0 or (count and last >= held) or count > held:
        raise DataError("a stored tensor reaches beyond its storage.")
    flat = torch.empty(0, dtype=whole.dtype).set_(whole._untyped_storage)
    return flat.as_strided(tuple(size), tuple(stride), int(offset)).clone()


def _parameter(data: Any, *_: Any) -> Any:
    return data


KNOWN: Mapping[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_object),
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch.storage", "_load_from_bytes"): _Call(_storage),
}


class _Unpickler(pickle.Unpickler):
    """Knows the names above and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise DataError(f"the pickle asks for {module}.{name}, which no network needs: it is not loaded.")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("the pickle refers to objects outside of itself: it is not loaded.")
