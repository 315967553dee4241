"""WithSynthetic: the user's own DataModule, with some training samples replaced by synthetic ones. Nothing else changes.

The result is a DataModule built at run time on the wrapped object's own base class, so that it works with
``pytorch_lightning`` and with ``lightning.pytorch`` alike (they are different classes). It defines only the hooks that
the wrapped one overrides, because Lightning decides by what is defined, not by what is called; checkpoints keep the
wrapped one's state under its own name, so the plugin can be added to and taken from a training at any time.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from visynth import balance as balancing
from visynth.balance import Balance
from visynth.data.leaks import check_leaks
from visynth.data.mixed import Mix, MixedDataset, find_labels, map_classes, random_state_kept
from visynth.errors import UsageError
from visynth.manifest import Renders, read_renders

KNOWN_SAMPLERS = (RandomSampler, SequentialSampler, DistributedSampler)  # they draw every position alike
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
HOOKS = (
    "prepare_data",
    "teardown",
    "on_exception",
    "state_dict",
    "load_state_dict",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


@dataclass(frozen=True)
class Options:
    """What :class:`WithSynthetic` was told."""

    balance: Balance = "not majority"
    share: float | None = None
    to: int | None = None
    spread: float = 0.1
    seed: int = 0
    classes: Mapping[str, int] | Sequence[str] | None = None
    transform: Callable[[Any], Any] | None = None
    labels: Sequence[int] | None = None
    image_key: str | None = None
    label_key: str | None = None
    leak_guard: bool = True

    def __post_init__(self) -> None:
        if self.share is not None and not (isinstance(self.share, (int, float)) and 0 <= self.share < 1):
            raise UsageError(
                f"share must be in [0, 1) (the fraction of an epoch that is synthetic) or None, but got {self.share!r}."
            )
        if not 0 <= self.spread <= 1:
            raise UsageError(f"spread must be in [0, 1], but got {self.spread!r}.")
        if isinstance(self.balance, str) and self.balance not in balancing.WORDS:
            balancing.targets(self.balance, {"any": 1})  # raises the error that lists the words


class _Wrapper:
    """What every wrapped DataModule does; the Lightning base class is added at run time."""

    def _visynth_start(self, inner: Any, source: str | Path, options: Options) -> None:
        state = self.__dict__
        state["_visynth_inner"], state["_visynth_source"], state["_visynth_options"] = inner, source, options
        state["_visynth_checked"] = False
        for name in ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"):
            if hasattr(inner, name):
                state[name] = getattr(inner, name)

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("_visynth_inner")
        if inner is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("_visynth_inner")
        if inner is not None and name != "trainer" and hasattr(inner, name):
            setattr(inner, name, value)  # a batch-size finder sets batch_size: the wrapped one must see it
        else:
            super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return wrap, (self._visynth_inner, self._visynth_source, self._visynth_options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return wrap(copy.deepcopy(self._visynth_inner, memo), self._visynth_source, self._visynth_options)

    @property
    def hparams(self) -> Any:
        return self._visynth_inner.hparams

    @property
    def _log_hyperparams(self) -> Any:  # read by Lightning's loggers
        return self._visynth_inner._log_hyperparams

    @_log_hyperparams.setter
    def _log_hyperparams(self, value: Any) -> None:
        """The base class sets its default here; the wrapped one's own is what counts."""

    @property
    def hparams_initial(self) -> Any:
        return self._visynth_inner.hparams_initial

    def setup(self, stage: str | None = None) -> None:
        """The wrapped setup, then the leak guard: once, when training is set up."""
        inner = self._visynth_ready()
        inner.setup(stage=stage)
        options = self._visynth_options
        if options.leak_guard and options.share != 0 and stage in (None, "fit") and not self._visynth_checked:
            with random_state_kept():
                check_leaks(read_renders(self._visynth_source).members, _held_out(inner))
            self.__dict__["_visynth_checked"] = True

    def _visynth_ready(self) -> Any:
        """The wrapped DataModule with the trainer that its code may read."""
        inner = self._visynth_inner
        inner.trainer = self.__dict__.get("trainer")
        return inner

    def _visynth_train_dataloader(self) -> Any:
        loaders = self._visynth_ready().train_dataloader()
        if self._visynth_options.share == 0:
            return loaders
        return mix_loader(loaders, read_renders(self._visynth_source), self._visynth_options, self._visynth_epoch)

    def _visynth_epoch(self) -> int | None:
        trainer = self.__dict__.get("trainer")
        return None if trainer is None else int(trainer.current_epoch)


class WithSynthetic(pytorch_lightning.LightningDataModule):
    """The given DataModule with synthetic training samples; validation, test and everything else stay as they are.

    Args:
        datamodule: of ``pytorch_lightning`` or ``lightning.pytorch``, whose training loader is a map-style DataLoader that
            gives ``(image, label)`` or dicts.
        source: a renders folder.
        balance: which classes receive how much, see :func:`visynth.balance.targets`; counts come from the training labels.
        share: fraction of an epoch's samples that is synthetic; None means s / (n + s) for n real samples and s wanted.
            0 is bit-identical to the datamodule alone.
        to: fill classes up to this many.
        spread: share of the synthetic slots dealt out evenly over all rendered classes.
        seed: of positions and pictures.
        classes: ``{class name: label}`` (or names in the order of their labels); by default the dataset's own.
        transform: for rendered pictures (PIL, or array ``[H, W, C]``); by default the dataset's own, else inferred.
        labels: the label of each training sample, where they cannot be read from the dataset.
        image_key: and
        label_key: of dict samples; by default the usual words.
        leak_guard: refuse when validation or test images are among those that the generator was fitted on.

    Raises:
        UsageError: arguments or classes that cannot be matched; loaders that cannot be mixed.
        DataError: the leak guard met held-out images (all listed).

    Example::

        data = visynth.WithSynthetic(MyDataModule(), "renders/tiles", balance="not majority", share=0.3)
        trainer.fit(my_model, data)
    """

    def __new__(
        cls,
        datamodule: pytorch_lightning.LightningDataModule,
        source: str | Path,
        balance: str | float | dict[str, int] = "not majority",
        share: float | None = None,
        to: int | None = None,
        spread: float = 0.1,
        seed: int = 0,
        classes: dict[str, int] | list[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        labels: list[int] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        leak_guard: bool = True,
    ) -> Any:
        options = Options(
            balance, share, to, spread, seed, classes, transform, labels, image_key, label_key, leak_guard
        )
        return wrap(datamodule, source, options)


def wrap(inner: Any, source: str | Path, options: Options) -> Any:
    """The wrapped DataModule: an instance of a class made for it, see the module's docstring."""
    base = lightning_base(inner)
    if not _overrides(inner, "train_dataloader"):
        raise UsageError(f"{type(inner).__name__} has no train_dataloader, so there is nothing to mix into.")
    wrapper = _wrapper_class(cast(Any, type(inner)), base, tuple(n for n in (*LOADERS, *HOOKS) if _overrides(inner, n)))
    made = wrapper.__new__(wrapper)
    base.__init__(made)
    made._visynth_start(inner, source, options)
    return made


def lightning_base(datamodule: Any) -> Any:
    """The LightningDataModule class that an object's own class is built on.

    Raises:
        UsageError: it is no LightningDataModule.
    """
    for base in type(datamodule).__mro__:
        if base.__name__ == "LightningDataModule" and base.__module__.split(".")[0] in (
            "pytorch_lightning",
            "lightning",
        ):
            return base
    raise UsageError(
        f"WithSynthetic wraps a LightningDataModule, but got {type(datamodule).__name__}: put your loaders into one."
    )


@functools.cache
def _wrapper_class(inner: Any, base: Any, defined: tuple[str, ...]) -> Any:
    body: dict[str, Any] = {
        "__doc__": inner.__doc__,
        "__module__": inner.__module__,
        "__qualname__": inner.__qualname__,
    }
    for name in defined:
        body[name] = _train if name == "train_dataloader" else _forward(name)
    return type(inner.__name__, (_Wrapper, base), body)


def _train(self: Any) -> Any:
    return self._visynth_train_dataloader()


def _forward(name: str) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._visynth_ready(), name)(*args, **kwargs)

    forward.__name__ = name
    return forward


def _overrides(datamodule: Any, name: str) -> bool:
    """Whether a DataModule defines a hook of its own, on its class or on itself (``from_datasets`` does)."""
    base = lightning_base(datamodule)
    return name in vars(datamodule) or getattr(type(datamodule), name, None) is not getattr(base, name, None)


def _held_out(inner: Any) -> dict[str, Any]:
    """Validation and test loaders, where they can be had: test loaders may need setup("test"), which a fit does not call."""
    loaders = {}
    for name in ("val", "test"):
        if _overrides(inner, f"{name}_dataloader"):
            try:
                loaders[name] = getattr(inner, f"{name}_dataloader")()
            except Exception:  # the user's code, not set up for this stage: there is nothing to check yet
                continue
    return loaders


# -- loaders ---------------------------------------------------------------------------------------------------------


def mix_loader(loader: Any, renders: Renders, options: Options, epoch: Callable[[], int | None]) -> Any:
    """A loader like the given one whose dataset is mixed.

    Raises:
        UsageError: not a map-style DataLoader.
    """
    if not isinstance(loader, DataLoader):
        raise UsageError(
            f"train_dataloader gives a {type(loader).__name__}, but WithSynthetic mixes into one torch DataLoader: "
            "wrap the DataModule that makes that loader, or return a DataLoader."
        )
    if (
        isinstance(loader.dataset, IterableDataset)
        or not hasattr(loader.dataset, "__getitem__")
        or not hasattr(loader.dataset, "__len__")
    ):
        raise UsageError(
            f"the training dataset {type(loader.dataset).__name__} is iterable; WithSynthetic replaces positions and needs a map-style dataset."
        )
    labels = list(options.labels) if options.labels is not None else find_labels(loader.dataset)
    if labels is not None and len(labels) != len(loader.dataset):
        raise UsageError(f"labels has {len(labels)} entries, the training dataset {len(loader.dataset)} samples.")
    if renders.plan.get("purpose", "training") != "training":
        raise UsageError(
            f"{renders.folder} is for looking at: no class of it was shown to help. Render a set of your own with 'visynth "
            "render' if you want to train on it all the same."
        )
    if not isinstance(loader.sampler, KNOWN_SAMPLERS):
        warnings.warn(
            f"the loader draws with {type(loader.sampler).__name__}: synthetic samples replace positions of the dataset, so "
            "their share of what is drawn follows that sampler's weights. Without class weights in the sampler it is share.",
            stacklevel=3,
        )
    mix, indices = plan_mix(loader.dataset, renders, options, labels)
    if not mix.slots:
        return loader
    with random_state_kept():  # one real sample is read to see what samples look like
        dataset = MixedDataset(
            loader.dataset, renders, labels, indices, mix, options.transform, options.image_key, options.label_key
        )
    dataset.epoch_of = epoch
    return _with_dataset(loader, dataset)


def plan_mix(
    dataset: Any, renders: Renders, options: Options, labels: Sequence[int] | None
) -> tuple[Mix, dict[str, int]]:
    """How many slots, weighted how, and which label each rendered class has."""
    indices = map_classes(dataset, renders, options.classes, labels)
    if labels is None:
        counts = dict.fromkeys(indices, 0)
        if isinstance(options.balance, Mapping):
            wanted = balancing.targets(options.balance, counts)
        elif options.share is None:
            raise UsageError(
                "the training labels cannot be read without loading images: give share=, a balance dict, or labels=."
            )
        else:
            wanted = renders.counts()
    else:
        numbers = np.bincount(np.asarray(labels), minlength=max(indices.values()) + 1)
        names = {place: name for name, place in indices.items()}
        counts = {names.get(place, f"label {place}"): int(n) for place, n in enumerate(numbers) if n or place in names}
        wanted = balancing.targets(options.balance, counts, to=options.to)
    wanted = {name: n for name, n in wanted.items() if name in indices}
    total = sum(wanted.values())
    length = len(dataset)
    share = options.share if options.share is not None else total / (length + total) if total else 0.0
    if not total:
        warnings.warn(
            "no class needs synthetic samples under this balance: training runs on real samples alone.", stacklevel=2
        )
        return Mix(wanted, 0, options.spread, options.seed), indices
    return Mix(wanted, round(share * length), options.spread, options.seed), indices


def _with_dataset(loader: DataLoader[Any], dataset: MixedDataset) -> DataLoader[Any]:
    """The loader again, over another dataset: same sampler object, same collation, same workers."""
    kind = _epoch_loader(cast(Any, type(loader)))
    if type(loader) is not DataLoader:
        # A user's own subclass may take any arguments: keep the object, exchange the dataset in what Lightning recorded too.
        made = copy.copy(loader)
        made.__dict__["dataset"] = dataset
        for record in ("__pl_saved_kwargs",):
            if record in made.__dict__:
                made.__dict__[record] = {
                    **made.__dict__[record],
                    **({"dataset": dataset} if "dataset" in made.__dict__[record] else {}),
                }
        if made.__dict__.get("__pl_saved_args"):
            made.__dict__["__pl_saved_args"] = tuple(
                dataset if a is loader.dataset else a for a in made.__dict__["__pl_saved_args"]
            )
        made.__class__ = kind
        return made
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
    """Set the epoch: Lightning's where there is a trainer (so that a resumed run goes on rightly), else one more each time."""
    told = dataset.epoch_of() if dataset.epoch_of else None
    dataset.epoch.fill_(dataset.starts if told is None else told)
    dataset.starts += 1
