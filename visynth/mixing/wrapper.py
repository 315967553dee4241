"""WithSynthetic: the user's own DataModule, with some training samples replaced by synthetic ones. Nothing else
changes.

The result is a DataModule built at run time on the wrapped object's own base class, so that it works with
``pytorch_lightning`` and with ``lightning.pytorch`` alike (they are different classes). It defines only the hooks that
the wrapped one overrides, because Lightning decides by what is defined, not by what is called; checkpoints keep the
wrapped one's state under its own name, so the plugin can be added to and taken from a training at any time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytorch_lightning

from visynth.core.distributed import on_main
from visynth.core.errors import UsageError
from visynth.mixing.backends import Mixed, mix_loaders
from visynth.mixing.convert import random_state_kept
from visynth.mixing.leaks import check_leaks
from visynth.mixing.options import Backend, Options
from visynth.mixing.reporting import log_info
from visynth.mixing.sources import members_of

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
HOOKS = (
    "prepare_data",
    "on_exception",
    "state_dict",
    "load_state_dict",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
WHEN = {"batches": "on_before_batch_transfer", "online": "on_after_batch_transfer"}  # rows are exchanged


class _Wrapper:
    """Behaviour of every wrapped DataModule; the Lightning base class is added at run time."""

    def _visynth_start(self, inner: Any, source: str | Path, options: Options) -> None:
        state = self.__dict__
        state["_visynth_inner"], state["_visynth_source"], state["_visynth_options"] = inner, source, options
        state["_visynth_checked"], state["_visynth_mixed"] = set(), None
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

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # isinstance(trainer.datamodule, Mine) in the user's code must hold; what is defined is asked of the type
        # itself.
        inner = self.__dict__.get("_visynth_inner")
        return type(self) if inner is None else type(inner)

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
        """The wrapped setup, then the leak guard: once for validation images and once for test images, when they can be
        had."""
        inner = self._visynth_ready()
        inner.setup(stage=stage)
        options = self._visynth_options
        if not options.leak_guard or options.off:
            return
        with random_state_kept():
            held = held_out(inner, stage, self._visynth_checked)
            on_main(lambda: check_leaks(members_of(self._visynth_source), held, options.accept_leaks))
        self._visynth_checked.update(held)

    def _visynth_ready(self) -> Any:
        """The wrapped DataModule with the trainer that its code may read."""
        inner = self._visynth_inner
        inner.trainer = self.__dict__.get("trainer")
        return inner

    def _visynth_train_dataloader(self) -> Any:
        loaders = self._visynth_ready().train_dataloader()
        options = self._visynth_options
        if options.off and not options.fields:
            return loaders
        self._visynth_stop()
        mixed = mix_loaders(loaders, self._visynth_source, options, self.__dict__.get("trainer"))
        self.__dict__["_visynth_mixed"] = mixed
        if mixed.mixers:
            self._visynth_hook(WHEN[mixed.backend])
        return mixed.loaders

    def _visynth_hook(self, name: str) -> None:
        """Define a transfer hook on this object: rows are exchanged, then the user's own hook does what it always
        did."""
        _expect_hook(self, name)
        self.__dict__[name] = functools.partial(self._visynth_transfer, name)

    def _visynth_transfer(self, name: str, batch: Any, dataloader_idx: int) -> Any:
        trainer, mixed = self.trainer, self._visynth_mixed
        if trainer.training and mixed is not None:  # False in sanity checks and in validation between training steps
            batch = mixed.join(batch, int(trainer.fit_loop.epoch_loop.batch_progress.total.ready))
        inner = self._visynth_ready()
        # Lightning asks the datamodule alone once it has this hook: the model's own must not be lost by that.
        owner = inner if _overrides(inner, name) else trainer.lightning_module
        return getattr(owner, name)(batch, dataloader_idx)

    def teardown(self, stage: str | None = None) -> None:
        self._visynth_stop()
        self._visynth_ready().teardown(stage=stage)

    def _visynth_stop(self) -> None:
        mixed: Mixed | None = self.__dict__.get("_visynth_mixed")
        if mixed is not None:
            mixed.close()
        self.__dict__["_visynth_mixed"] = None


class WithSynthetic(pytorch_lightning.LightningDataModule):
    """The given DataModule with synthetic training samples; validation, test and everything else stay as they are.

    Args:
        datamodule: of ``pytorch_lightning`` or ``lightning.pytorch``. Samples are ``(image, label)``, dicts or
            dataclasses; labels are classes, masks or torchvision's detection targets.
        source: a renders folder; or a generator folder or Generator, which makes the images during the training.
        balance: which classes receive how much, see :func:`visynth.core.balance.targets`; counts come from the training
            labels. None means "not majority" where labels can be read. A class that the training does not hold is added
            only where a dict names it.
        share: fraction of the samples that is synthetic; None means s / (n + s) for n real samples and s wanted, but at
            most a quarter; 0 is bit-identical to the datamodule alone. Where the loader draws with a sampler of its own
            (balanced, weighted, M of a class), each class keeps its count, and share is the fraction of the samples of
            the classes that receive. A schedule is ``{"start": a, "end": b, "shape": "linear" | "cosine", "until": u}``
            or ``{"steps": {0: a, 0.5: b}}``, over the part of the training that is done.
        to: fill classes up to this many.
        cap: most synthetic images per real one that a balance word asks for.
        spread: share of the synthetic slots dealt out evenly over all classes, so that "synthetic" does not spell
            "rare".
        seed: of positions and images.
        backend: "samples" exchanges samples of map-style datasets, by epochs; "batches" exchanges rows of whatever
            batches the loaders give, before the transfer; "online" does so on the device, with images that a generator
            makes there. "auto": online for a generator, else samples where that can be, else batches.
        loader: which of several training loaders to mix into, by key or place ("labelled", 0, "a.0"); by default all.
        classes: ``{class name: label}`` (or names in the order of their labels); by default the dataset's own. Several
            classes may have one label: a dict in ``balance`` says how much of each, else they share evenly.
        transform: for synthetic images (PIL, or array ``[H, W, C]``), called with the boxes or mask as well where
            labels are such; by default the dataset's own, else inferred from real samples.
        labels: the label of each training sample, where they cannot be read from the dataset.
        image_key: key or place of the image in samples (in batches, for the batch-wise backends), and
        label_key: of the label; by default the usual words, or the first two.
        finish: the last part of the training, in [0, 1], that sees real samples alone.
        is_synthetic: give every sample a flag of this name: a further key of dicts, a further entry at the end of
            tuples.
        weight: give every sample a loss weight in the same way (key "weight", after the flag): this for synthetic ones,
            1 for real.
        mixup: blend each synthetic sample with the real one whose place it takes, by Beta(mixup, mixup).
        num_classes: give labels as probabilities ``[num_classes]``.
        keep: filters of a rendered set, ``{"review": "not rejected" | "accepted" | "any", "agreement": least
            probability, "near_duplicates": False}``; by default what a reviewer rejected is left out.
        workers: processes that read rendered images for "batches"; by default 1 where the user's loader has any.
        sampler: options of the generator for "online".
        extra: values of further fields of the samples, by key or place, for synthetic ones (``{"path": "", "site":
            -1}``). What is a function of the label (its name, its one-hot vector) or the same everywhere needs none; of
            any other field a warning tells.
        autocast: "bfloat16" or "float16" for the generator in "online"; the training's own precision does not touch it.
        leak_guard: refuse when validation or test images are among those that the generator was fitted on.
        accept_leaks: held-out images that you looked at and that are fine: a CSV with the columns candidate and member,
            or such pairs.
        recipe: ``recipe.yaml`` of a trial (or its folder): the share of each class that was measured to be best, none for
            most. With a sampler of the loader's own it is that part of the class's samples; without one the class gets so
            many more, and real samples of the largest class make room. Classic augmentation that it names is yours to add.

    Raises:
        UsageError: arguments or classes that cannot be matched; loaders that a backend cannot mix into.
        IntegrityError: an unfinished, altered or foreign folder.
        DataError: no images, or held-out images among those of the generator's fit (all listed).

    Example:
        >>> WithSynthetic(pytorch_lightning.LightningDataModule(), "renders", share=1.5)
        Traceback (most recent call last):
        visynth.core.errors.UsageError: WithSynthetic: share must be in [0, 1) (the fraction of an epoch that is synthetic), None, ...
    """

    def __new__(
        cls,
        datamodule: pytorch_lightning.LightningDataModule,
        source: str | Path | Any,
        balance: str | float | dict[str, int] | None = None,
        share: float | dict[str, Any] | None = None,
        to: int | None = None,
        cap: float = 10,
        spread: float = 0.1,
        seed: int = 0,
        backend: Backend = "auto",
        loader: str | int | None = None,
        classes: dict[str, int] | list[str] | None = None,
        transform: Callable[..., Any] | None = None,
        labels: list[int] | None = None,
        image_key: str | int | None = None,
        label_key: str | int | None = None,
        finish: float = 0.0,
        is_synthetic: bool = False,
        weight: float | None = None,
        mixup: float | None = None,
        num_classes: int | None = None,
        keep: dict[str, Any] | None = None,
        workers: int | None = None,
        sampler: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        autocast: str | None = None,
        leak_guard: bool = True,
        accept_leaks: str | list[Any] | None = None,
        recipe: str | Path | dict[str, Any] | None = None,
    ) -> Any:
        given = locals()
        return wrap(datamodule, source, Options(**{field.name: given[field.name] for field in fields(Options)}))


def retyped(function: Callable[..., Any], **annotations: Any) -> Any:
    """A copy of a function with other annotations: configurations of each Lightning package check their own base
    class."""
    function_copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    function_copy.__annotations__ = {**inspect.get_annotations(function), **annotations}
    function_copy.__kwdefaults__, function_copy.__doc__ = function.__kwdefaults__, function.__doc__
    return function_copy


def wrap(inner: Any, source: str | Path, options: Options) -> Any:
    """The wrapped DataModule: an instance of a class made for it, see the module's docstring."""
    base = lightning_base(inner)
    if not _overrides(inner, "train_dataloader"):
        raise UsageError(f"{type(inner).__name__} has no train_dataloader, so there is nothing to mix into.")
    wrapper = _wrapper_class(cast(Any, type(inner)), base, tuple(n for n in (*LOADERS, *HOOKS) if _overrides(inner, n)))
    _own_hyperparameters(inner)
    wrapped = wrapper.__new__(wrapper)
    base.__init__(wrapped)
    wrapped._visynth_start(inner, source, options)
    return wrapped


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
    # What the base class has too would be found there before the wrapped one is asked (its name, for instance).
    for name in dir(inner):
        shadowed = not name.startswith("_") and name not in body and name not in vars(_Wrapper) and hasattr(base, name)
        if shadowed and getattr(inner, name) is not getattr(base, name) and not callable(getattr(inner, name)):
            body[name] = _attribute(name)
    return type(inner.__name__, (_Wrapper, base), body)


def _expect_hook(datamodule: Any, name: str) -> None:
    """Keep Lightning from saying that the model's hook is not called where both have one: it is, see
    ``_visynth_transfer``."""
    package = lightning_base(datamodule).__module__.rsplit(".core", 1)[0]
    with contextlib.suppress(ImportError, AttributeError):
        connector = importlib.import_module(f"{package}.trainer.connectors.data_connector")
        connector.warning_cache.add(
            f"You have overridden `{name}` in both `LightningModule` and `LightningDataModule`."
            " It will use the implementation from `LightningDataModule` instance."
        )


def _train(self: Any) -> Any:
    return self._visynth_train_dataloader()


def _forward(name: str) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._visynth_ready(), name)(*args, **kwargs)

    forward.__name__ = name
    return forward


def _attribute(name: str) -> property:
    return property(
        lambda self: getattr(self._visynth_inner, name), lambda self, value: setattr(self._visynth_inner, name, value)
    )


def _own_hyperparameters(inner: Any) -> None:
    """Give a wrapped DataModule its own hyperparameters back.

    LightningCLI puts the configuration of its ``data`` entry into whatever DataModule calls ``save_hyperparameters``,
    also into one that is an argument of another one: of ours.
    """
    hparams = inner.__dict__.get("_hparams")
    if not isinstance(hparams, Mapping) or "datamodule" not in hparams or "source" not in hparams:
        return
    config = hparams["datamodule"]
    while isinstance(config, Mapping) and "datamodule" in config.get("init_args", {}):
        config = config["init_args"]["datamodule"]
    if not isinstance(config, Mapping) or "class_path" not in config:
        return
    given = {**config.get("init_args", {}), **config.get("dict_kwargs", {}), "_class_path": config["class_path"]}
    given |= {name: hparams[name] for name in ("_instantiator",) if name in hparams}
    for name in ("_hparams", "_hparams_initial"):
        if name in inner.__dict__:
            inner.__dict__[name] = cast(Any, type(hparams))(given)


def _overrides(datamodule: Any, name: str) -> bool:
    """Whether a DataModule defines a hook of its own, on its class or on itself (``from_datasets`` does)."""
    base = lightning_base(datamodule)
    return name in vars(datamodule) or getattr(type(datamodule), name, None) is not getattr(base, name, None)


def held_out(inner: Any, stage: str | None, checked: set[str]) -> dict[str, Any]:
    """Validation and test loaders that were not looked at yet.

    A test set may be made in ``setup("test")``, which a fit does not call: then it is looked at when that is called.
    What a loader raises is logged; where Lightning asks for the same loader, its user sees it there.
    """
    wanted = {"val": (None, "fit", "validate"), "test": (None, "test")}
    loaders = {}
    for split, stages in wanted.items():
        name = f"{split}_dataloader"
        if split in checked or not _overrides(inner, name):
            continue
        if stage in stages or (split == "test" and stage == "fit"):
            try:
                loaders[split] = getattr(inner, name)()
            except Exception as error:  # where Lightning asks for it too, it raises there, as without us
                later = "; it is checked in setup('test')" if split == "test" and stage == "fit" else ""
                words = "leak guard: %s() gives nothing to look at yet (%s: %s)%s"
                log_info(inner.trainer, words, name, type(error).__name__, error, later)
    return loaders
