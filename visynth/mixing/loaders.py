"""The user's training loaders, one or many: found, told apart, and given back over other datasets."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from visynth.core.errors import UsageError, choices
from visynth.mixing.positions import MixedDataset

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Leaf:
    """One loader, and where in the user's collection and in its batches it is."""

    path: Path
    loader: Any

    @property
    def name(self) -> str:
        return ".".join(str(part) for part in self.path if part != TRIPLE)

    @property
    def dataset(self) -> Any:
        return getattr(self.loader, "dataset", None)

    @property
    def length(self) -> int | None:
        """Training samples, where that is known: items of a dataset that gives whole batches are none."""
        whole = isinstance(self.loader, DataLoader) and self.loader.batch_sampler is None
        return len(self.dataset) if hasattr(self.dataset, "__len__") and not whole else None

    def problem(self) -> str | None:
        """Why single samples cannot be exchanged here, or None where they can."""
        if not isinstance(self.loader, DataLoader):
            return f"is a {type(self.loader).__name__}, no torch DataLoader"
        dataset = self.loader.dataset
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            return f"reads {type(dataset).__name__}, which is iterable and has no positions"
        if self.loader.batch_size is None and self.loader.batch_sampler is None:
            return "does not batch (batch_size=None): its dataset gives whole batches"
        return None


TRIPLE = "(batch of a nested CombinedLoader)"  # which gives (batch, number, loader's number)


def leaves(loaders: Any) -> list[Leaf]:
    """Every loader of a DataLoader, list, dict or CombinedLoader, nested ones too.

    Example:
        >>> [leaf.name for leaf in leaves({"a": DataLoader([1]), "b": [DataLoader([2])]})]
        ['a', 'b.0']
    """
    return _leaves(loaders, (), True)


def _leaves(loaders: Any, path: Path, top: bool) -> list[Leaf]:
    if _is_combined(loaders):
        if loaders._mode == "sequential" and len(loaders.flattened) > 1:
            return [Leaf(path, loaders)]  # its batches come from one loader after the other: one stream
        return _leaves(loaders.iterables, path if top else (*path, TRIPLE), False)
    if isinstance(loaders, Mapping):
        return [leaf for key, value in loaders.items() for leaf in _leaves(value, (*path, key), False)]
    if isinstance(loaders, (list, tuple)):
        return [leaf for key, value in enumerate(loaders) for leaf in _leaves(value, (*path, key), False)]
    return [Leaf(path, loaders)]


def chosen(loaders: Any, name: str | int | None) -> list[Leaf]:
    """The loaders to mix into: all, or the one named.

    Raises:
        UsageError: no such loader.
    """
    leaf_list = leaves(loaders)
    if not leaf_list:
        raise UsageError("train_dataloader gives no loader: there is nothing to mix into.")
    if name is None:
        return leaf_list
    named = [leaf for leaf in leaf_list if leaf.name == str(name) or leaf.name.startswith(f"{name}.")]
    if not named:
        raise UsageError(f"loader={name!r} is none of the training loaders {choices(leaf.name for leaf in leaf_list)}.")
    return named


def exchange(loaders: Any, made: Mapping[Path, Any]) -> Any:
    """The collection with other loaders at some paths; the user's own stays as it is.

    Example:
        >>> exchange({"a": 1, "b": [2]}, {("b", 0): 3})
        {'a': 1, 'b': [3]}
    """
    return _exchange(loaders, (), made, True)


def _exchange(loaders: Any, path: Path, made: Mapping[Path, Any], top: bool) -> Any:
    if path in made:
        return made[path]
    if _is_combined(loaders) and loaders._mode != "sequential":
        inner = _exchange(loaders.iterables, path if top else (*path, TRIPLE), made, False)
        again = type(loaders)(inner, loaders._mode)
        again.limits = loaders.limits
        return again
    if isinstance(loaders, Mapping):
        return {key: _exchange(value, (*path, key), made, False) for key, value in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        parts = [_exchange(value, (*path, key), made, False) for key, value in enumerate(loaders)]
        return type(loaders)(*parts) if hasattr(loaders, "_fields") else type(loaders)(parts)
    return loaders


def within(batch: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """The batch with one part changed, where the loader at ``path`` puts it.

    Example:
        >>> within({"a": 1, "b": [2, 5]}, ("b", 0), lambda part: part + 1)
        {'a': 1, 'b': [3, 5]}
    """
    if not path:
        return change(batch)
    if batch is None:
        return None
    key, rest = (0 if path[0] == TRIPLE else path[0]), path[1:]
    if isinstance(batch, Mapping):
        return {**batch, key: within(batch[key], rest, change)}
    parts = list(batch)
    parts[key] = within(parts[key], rest, change)
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def _is_combined(loaders: Any) -> bool:
    return any(base.__name__ == "CombinedLoader" for base in type(loaders).__mro__)


# -- what Lightning leaves --------------------------------------------------------------------------------------------

PATCHED = ("__init__", "__setattr__", "__delattr__")


def unwrap_loaders() -> None:
    """Take off what Lightning left around the loaders' methods.

    It wraps the methods of DataLoader and BatchSampler, and of their subclasses, while it asks for loaders, and has no
    ``finally``: where a hook raises, they stay wrapped for the rest of the process, and the next wrapper wraps the wrapper until
    a loader cannot be made again ("multiple values for argument 'batch_size'").
    """
    for kind in {*_kinds_of(DataLoader), *_kinds_of(BatchSampler)}:
        for name in PATCHED:
            method: Any = kind.__dict__.get(name)
            inner = method
            while _is_lightnings(inner):
                inner = inner.__wrapped__
            if inner is not method:
                if inner is getattr(object, name):
                    delattr(kind, name)
                else:
                    setattr(kind, name, inner)
            if f"__old{name}" in kind.__dict__:
                delattr(kind, f"__old{name}")


def _is_lightnings(method: Any) -> bool:
    place = getattr(getattr(method, "__code__", None), "co_filename", "").replace("\\", "/")
    return hasattr(method, "__wrapped__") and place.endswith("fabric/utilities/data.py")


def _kinds_of(kind: type[Any]) -> list[type[Any]]:
    children: list[type[Any]] = kind.__subclasses__()
    return [kind, *(deeper for child in children for deeper in _kinds_of(child))]


# -- a loader over another dataset --------------------------------------------------------------------------------------


def with_dataset(loader: DataLoader[Any], dataset: MixedDataset) -> DataLoader[Any]:
    """The loader again, over another dataset: same sampler object, same collation, same workers."""
    kind = _epoch_loader(cast(Any, type(loader)))
    if type(loader) is not DataLoader:
        # A user's own subclass may take any arguments: keep the object, exchange the dataset in what Lightning recorded
        # too.
        loader_copy = copy.copy(loader)
        loader_copy.__dict__["dataset"] = dataset
        for record in ("__pl_saved_kwargs",):
            if record in loader_copy.__dict__:
                loader_copy.__dict__[record] = {
                    **loader_copy.__dict__[record],
                    **({"dataset": dataset} if "dataset" in loader_copy.__dict__[record] else {}),
                }
        if loader_copy.__dict__.get("__pl_saved_args"):
            loader_copy.__dict__["__pl_saved_args"] = tuple(
                dataset if a is loader.dataset else a for a in loader_copy.__dict__["__pl_saved_args"]
            )
        loader_copy.__class__ = kind
        return loader_copy
    plain = type(loader.batch_sampler) is BatchSampler
    batching: dict[str, Any]
    if loader.batch_sampler is None:
        batching = {"batch_size": None, "sampler": loader.sampler}
    elif plain:
        batching = {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    else:
        batching = {"batch_sampler": loader.batch_sampler}
    again: DataLoader[Any] = kind(
        dataset,
        **batching,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
        in_order=loader.in_order,
    )
    return again


@functools.cache
def _epoch_loader(base: Any) -> Any:
    """The loader class with one addition: at the start of each epoch its dataset is told which one it is."""

    def iterate(self: Any) -> Any:
        start_epoch(self.dataset)
        return base.__iter__(self)

    return type(
        base.__name__,
        (base,),
        {
            "__iter__": iterate,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        },
    )


def start_epoch(dataset: MixedDataset) -> None:
    """Set the epoch: Lightning's where there is a trainer (so that a resumed run goes on rightly), else one more each
    time."""
    epoch = dataset.epoch_of() if dataset.epoch_of else None
    dataset.begin(dataset.starts if epoch is None else epoch)
    dataset.starts += 1
    if dataset.log is not None:
        dataset.log(int(dataset.now[0]), dataset.counts())


KNOWN_SAMPLERS = (
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    DistributedSampler,
)  # they draw every position alike


def draws_its_own(leaf: Leaf) -> bool:
    """Whether a loader's sampler decides how often each class comes: balanced, weighted, M of a class."""
    if not isinstance(leaf.loader, DataLoader) or leaf.problem() is not None:
        return False
    # With a batch sampler of the user's own, the loader's own sampler is a default that nobody asks.
    return not isinstance(getattr(leaf.loader.batch_sampler, "sampler", None), KNOWN_SAMPLERS)
