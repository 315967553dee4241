"""A training of the user's as the learner of a comparison: the module, transforms and batches that will meet the line.

A file names the LightningModule and, if wanted, the LightningDataModule by ``class_path``, as ``visynth fit`` takes them:

    model: {class_path: shop.Net, init_args: {width: 32}}
    data: {class_path: shop.Images, init_args: {root: parts}}
    trainer: {max_steps: 300, accelerator: auto}

In each arm of each cell a fresh module is trained on that arm's images, for as many steps in each. Of the DataModule its
transforms, its containers, its batch size and its class numbers are used, never its images: each image of the comparison goes
through the training transform to train and through the validation transform to test. Without one, samples are
``(image float32 [3, 128, 128] in [0, 1], class number in alphabetical order)``. Arms have no validation, so that callbacks,
loggers and schedulers that wait for a validation metric rest; all arms are trained alike.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import UsageError, VisynthError, choices
from visynth.core.files import hash_file
from visynth.core.quiet import quiet_lightning
from visynth.metrics.extractor import prepare_square
from visynth.mixing.convert import random_state_kept
from visynth.mixing.samples import Samples
from visynth.verdict.learners import IMAGES, Floats, Ints, Items, Outcome

STEPS = 300  # unless the trainer of the file says otherwise
BATCH = 32  # without a DataModule
SIDE = 128
ENDS = ("max_steps", "max_epochs")
TAKEN = (*ENDS, "accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
         "deterministic", "benchmark")  # fmt: skip
LEFT = ("callbacks", "logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
        "limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps",
        "devices", "strategy", "num_nodes")  # of a trainer; nothing in an arm needs them  # fmt: skip


@dataclass(frozen=True)
class Kit:
    """How images become batches, and module outputs the classes of the comparison.

    Attributes:
        names: classes, by their numbers in the comparison.
        numbers: by class, the module's number.
        train: ``(array, class) -> sample`` as the training sees it.
        test: the same as validation sees it.
        inputs: what the module is called with, of a batch.
        batch: batch size.
        collate: makes a batch of samples; None for torch's own way.
        datamodule: the user's, for its transfer hooks.
        drop_last: whether an epoch's last batch is left out where it is not full.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]
    train: Callable[[Array, str], Any]
    test: Callable[[Array, str], Any]
    inputs: Callable[[Any], Any]
    batch: int = BATCH
    collate: Callable[[list[Any]], Any] | None = None
    drop_last: bool = False
    datamodule: Any = None


class UserTraining:
    """A LightningModule of the user's as a learner, see the module's docstring.

    Its arms are the images as they are, a balanced sampler, classic augmentation, synthetic images at a tenth of the class's
    weight, and all real images; nothing is chosen on inner folds, since each fit is a training.

    Args:
        name: a YAML file, or the path of a LightningModule's class.

    Raises:
        UsageError: no such file or class; parts that this cannot respect.
    """

    arms = ("real", "balanced", "augment", "synthetic", "oracle")
    chooses = False
    decides = True
    pixels = True

    def __init__(self, name: str) -> None:
        self.name = name
        parts = _read(name) if name.endswith((".yaml", ".yml")) else {"model": {"class_path": name}}
        self.model: dict[str, Any] = parts["model"]
        self.data: dict[str, Any] | None = parts.get("data")
        self.trainer = {k: v for k, v in (parts.get("trainer") or {}).items() if k in TAKEN}
        if not any(self.trainer.get(end) for end in ENDS):
            self.trainer["max_steps"] = STEPS
        self.kit: Kit | None = None
        self.kind = _class_of(self.model["class_path"])
        self.lightning = _package_of(self.kind)

    @property
    def inputs(self) -> dict[str, Any]:
        """Plain JSON of what the outcomes depend on, but for the user's code."""
        return {
            "model": self.model,
            "data": self.data,
            "trainer": self.trainer,
            "file": hash_file(Path(self.name)) if Path(self.name).is_file() else None,
        }

    def check(self, names: Sequence[str], images: Sequence[Array]) -> None:
        """See that module, data and images fit, before anything takes time: one batch goes through an untrained module.

        Args:
            names: classes, by their numbers in the comparison.
            images: some of them.

        Raises:
            UsageError: what does not fit.
        """
        self.kit = self._kit(tuple(names), list(images))
        with random_state_kept():
            module = self._module(0)
            rows = np.arange(min(2, len(images)), dtype=np.int64)
            self._logits(self._trainer(), module, [functools.partial(images.__getitem__, int(row)) for row in rows])

    def fit(
        self,
        tables: Mapping[tuple[int, str], NDArray[Any]],
        items: Items,
        test: Ints,
        folds: Sequence[frozenset[str]],
        seed: int,
    ) -> Outcome:
        """Train on all items and score the test rows by the log-odds of the class.

        Raises:
            UsageError: the module fails, or returns no scores.
        """
        kit, images = self._ready(), tables[IMAGES]
        assert items.labels is not None
        own = np.flatnonzero(items.labels >= 0)
        seed = seeding.derive("training", seed, *(sorted(held) for held in folds))  # arms of a cell begin alike
        length = round(float(items.weights.sum()))
        order = Epochs(items.class_weights()[own], length, seed)
        data = _Arm([images[row] for row in items.rows[own]], [kit.names[k] for k in items.labels[own]], kit.train)
        with random_state_kept():
            module = self._module(seed)
            np.random.seed(seed % 2**32)  # transforms may draw from it; the state is given back
            trainer = self._trainer()
            self._train(trainer, module, data, order)
            logits = self._logits(trainer, module, list(images[test]))
        label = int(items.labels[items.positive][0])
        rest = np.delete(logits, label, axis=1)
        scores = logits[:, label] - np.logaddexp.reduce(rest, axis=1)
        return Outcome(scores, float("nan"), {"training": self.name}, logits)

    def _ready(self) -> Kit:
        if self.kit is None:
            raise UsageError("call check() before fit(): it says what the module's numbers mean.")
        return self.kit

    def _kit(self, names: tuple[str, ...], images: list[Array]) -> Kit:
        if self.data is None:
            numbers = {name: k for k, name in enumerate(names)}

            def sample(array: Array, name: str) -> tuple[Tensor, int]:
                return _plain(array), numbers[name]

            return Kit(names, numbers, sample, sample, lambda batch: batch[0])
        module = _instance(_class_of(self.data["class_path"]), self.data, self.lightning.LightningDataModule)
        module.prepare_data()
        module.setup("fit")
        loaders = {"train_dataloader": _only_loader(module.train_dataloader(), "train_dataloader")}
        try:
            loaders["val_dataloader"] = _only_loader(module.val_dataloader(), "val_dataloader")
        except NotImplementedError as error:
            raise UsageError(
                f"{self.data['class_path']} has no val_dataloader, and its training transform must not meet test images: "
                "give it one."
            ) from error
        train, test = (Samples(loader.dataset, names, images) for loader in loaders.values())
        if dict(train.numbers) != dict(test.numbers):
            raise UsageError(
                f"the DataModule numbers its classes {dict(train.numbers)} in training, but {dict(test.numbers)} in "
                "validation."
            )
        loader = loaders["train_dataloader"]
        layout = train.layout
        own = None if loader.collate_fn is torch.utils.data.default_collate else loader.collate_fn
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or BATCH
        return Kit(
            names, train.numbers, train, test, lambda batch: layout.get(batch, layout.image), int(size), own,
            bool(loader.drop_last), module,
        )  # fmt: skip

    def _module(self, seed: int) -> Any:
        torch.manual_seed(seed)
        arguments: dict[str, Any] = dict(self.model.get("init_args") or {})
        if self.kit is not None and "num_classes" in inspect.signature(self.kind.__init__).parameters:
            arguments.setdefault("num_classes", 1 + max(self.kit.numbers.values()))
        module = _instance(self.kind, {**self.model, "init_args": arguments}, self.lightning.LightningModule)
        # An arm has no validation: nothing is kept, stopped or slowed down by it.
        module.configure_callbacks = list
        module.configure_optimizers = functools.partial(_lenient, module.configure_optimizers)
        return module

    def _trainer(self) -> Any:
        with _quiet():
            return self.lightning.Trainer(
                **{"max_epochs": -1, **self.trainer},
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
            )

    def _given(self, loader: DataLoader[Any], name: str) -> dict[str, Any]:
        """What a trainer is given: the loader, in the user's DataModule where there is one, whose transfer hooks count."""
        own = self._ready().datamodule
        if own is None:
            return {"train_dataloaders" if name == "train_dataloader" else "dataloaders": loader}
        own.setup = own.prepare_data = own.teardown = lambda *_, **__: (
            None
        )  # they were called, and its images are not used
        setattr(own, name, lambda: loader)
        return {"datamodule": own}

    def _train(self, trainer: Any, module: Any, data: Dataset[Any], order: Epochs) -> None:
        kit = self._ready()
        loader: DataLoader[Any] = DataLoader(
            data, min(kit.batch, len(order)), sampler=order, collate_fn=kit.collate, drop_last=kit.drop_last
        )
        with _quiet(), self._blamed("training"):
            trainer.fit(module, **self._given(loader, "train_dataloader"))

    def _logits(self, trainer: Any, module: Any, images: Sequence[Callable[[], Array]]) -> Floats:
        """Log-probabilities ``[images, classes of the comparison]``."""
        kit = self._ready()
        if type(module).predict_step is self.lightning.LightningModule.predict_step:  # it would get the labels, too
            module.predict_step = lambda batch, batch_idx=0, dataloader_idx=0: module(kit.inputs(batch))
        # Any class will do, and the true one must not be seen: the first.
        data = _Arm(images, [kit.names[0]] * len(images), kit.test)
        loader: DataLoader[Any] = DataLoader(data, kit.batch, collate_fn=kit.collate)
        with _quiet(), self._blamed("scoring"):
            found = trainer.predict(module, **self._given(loader, "predict_dataloader"))
        sizes = [min(kit.batch, len(images) - start) for start in range(0, len(images), kit.batch)]
        parts = [self._checked(out, size) for out, size in zip(found or [None] * len(sizes), sizes, strict=True)]
        return _log_probabilities(torch.cat(parts).double(), kit)

    def _checked(self, out: Any, count: int) -> Tensor:
        kit = self._ready()
        name = self.model["class_path"]
        if isinstance(out, Tensor) and out.ndim == 1:
            out = out[:, None]
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != count:
            shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UsageError(
                f"{name} returns no scores: for {count} images it gave {shape}, but a tensor [{count}, classes] of logits or "
                "probabilities is needed, from forward(images) or from predict_step(batch, batch_idx)."
            )
        needed = 1 + max(kit.numbers.values())
        if out.shape[1] < needed and not (out.shape[1] == 1 and len(kit.names) == 2):
            raise UsageError(
                f"{name} gives {out.shape[1]} scores an image, but the classes are {dict(kit.numbers)}: it needs {needed}."
            )
        values = out.detach().float().cpu()
        if not torch.isfinite(values).all():
            raise UsageError(f"{name} gave scores that are not finite: its training diverged.")
        return values

    @contextmanager
    def _blamed(self, doing: str) -> Iterator[None]:
        """Errors of the user's own code, told with where they came from; the traceback stays behind them."""
        try:
            yield
        except VisynthError:
            raise
        except NotImplementedError as error:
            raise UsageError(
                f"{self.model['class_path']} lacks what {doing} needs ({_first(error)}): training_step and "
                "configure_optimizers to train, and forward(images) or predict_step(batch, batch_idx) for scores."
            ) from error
        except Exception as error:
            where = next((f" ({place})" for place in reversed(_places(error))), "")
            raise UsageError(f"{self.model['class_path']} failed in {doing}: {_first(error)}{where}") from error


class Epochs(Sampler[int]):
    """Epochs of a fixed length in which each item comes in proportion to its weight, as evenly as whole numbers allow: by
    systematic sampling (Madow, 1949), one random offset an epoch. With equal weights each comes once, as in any training.

    Example:
        >>> sorted(Epochs(np.ones(4), 4, seed=0))
        [0, 1, 2, 3]
        >>> sorted(Epochs(np.array([2.0, 1.0, 1.0]), 8, seed=0))
        [0, 0, 0, 0, 1, 1, 2, 2]
    """

    def __init__(self, weights: Floats, length: int, seed: int) -> None:
        self.weights, self.length, self.seed, self.epoch = weights / weights.sum(), length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        stream = seeding.rng(seeding.derive("epoch", self.seed, self.epoch), "order")
        self.epoch += 1
        order = stream.permutation(len(self.weights))  # which item an uneven rest falls to is drawn, too
        ends = np.cumsum(self.weights[order])
        ends[-1] = 1.0
        points = (np.arange(self.length) + stream.random()) / self.length
        chosen = order[np.searchsorted(ends, points, side="right")]
        return iter(chosen[stream.permutation(self.length)].tolist())


class _Arm(Dataset[Any]):
    """An arm's images as samples of the user's training."""

    def __init__(
        self, images: Sequence[Callable[[], Array]], names: Sequence[str], made: Callable[[Array, str], Any]
    ) -> None:
        self.images, self.names, self.made = images, names, made

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.made(self.images[index](), self.names[index])


def _log_probabilities(values: Tensor, kit: Kit) -> Floats:
    """Of the comparison's classes, from logits or probabilities by the module's numbers."""
    if values.shape[1] == 1:  # one logit, or one probability, of class number 1
        odds = values[:, 0]
        if bool(((odds >= 0) & (odds <= 1)).all()):
            odds = torch.logit(odds, eps=1e-7)
        both = torch.stack([-odds, odds], dim=1)
        logs = torch.nn.functional.logsigmoid(both)
    elif bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all()):
        logs = values.clamp(min=1e-12).log()
    else:
        logs = values.log_softmax(dim=1)
    return logs[:, [kit.numbers[name] for name in kit.names]].numpy()


def _lenient(configure: Callable[[], Any]) -> Any:
    """What configure_optimizers gives, with schedulers that wait for a validation metric left waiting."""

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("scheduler"), torch.optim.lr_scheduler.ReduceLROnPlateau):
                part["strict"] = False
            for value in part.values():
                walk(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                walk(value)

    given = configure()
    if isinstance(given, dict) and isinstance(given.get("lr_scheduler"), torch.optim.lr_scheduler.ReduceLROnPlateau):
        given["lr_scheduler"] = {"scheduler": given["lr_scheduler"], "monitor": given.get("monitor", "val_loss")}
    walk(given)
    return given


def _plain(array: Array) -> Tensor:
    values = prepare_square(array, SIDE)
    channels = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"learner: there is no configuration {name}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"learner: {name} is no YAML: {error}") from error
    problems = []
    if not isinstance(found, dict):
        raise UsageError(f"learner: {name} must hold model, and perhaps data and trainer.")
    for part in ("model", "data"):
        if (part == "model" or part in found) and "class_path" not in (found.get(part) or {}):
            problems.append(f"{part} has no class_path")
    unknown = sorted(set(found) - {"model", "data", "trainer", "seed_everything", "ckpt_path"})
    if unknown:
        problems.append(f"{choices(unknown)} cannot be respected here: let the module's configure_optimizers do it")
    given = found.get("trainer") or {}
    odd = sorted(set(given) - {*TAKEN, *LEFT})
    if odd:
        problems.append(f"trainer: {choices(odd)} cannot be respected here; it takes {choices(TAKEN)}")
    if problems:
        raise UsageError(f"learner: {name}: {'; '.join(problems)}.")
    return found


def _class_of(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:  # last, so that nothing is hidden: a class of a file beside the configuration
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"learner: {path} cannot be imported ({error}). Registered learners are frozen and finetune; yours is named by "
            "the path of its class, from the folder where you start visynth."
        ) from error


def _package_of(kind: Any) -> Any:
    """The Lightning package whose LightningModule a class is: there are two."""
    for base in getattr(kind, "__mro__", ()):
        top = base.__module__.split(".")[0]
        if base.__name__ == "LightningModule" and top in ("pytorch_lightning", "lightning"):
            return importlib.import_module("pytorch_lightning" if top == "pytorch_lightning" else "lightning.pytorch")
    raise UsageError(f"learner: {getattr(kind, '__qualname__', kind)} is no LightningModule.")


def _instance(kind: Any, config: Mapping[str, Any], base: Any) -> Any:
    """An object by its class_path and init_args, checked and made as LightningCLI does."""
    from jsonargparse import ArgumentParser

    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UsageError(f"learner: {config['class_path']} is no {base.__module__.split('.')[0]} {base.__name__}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part", required=True)
    given = {name: value for name, value in config.items() if name in ("class_path", "init_args", "dict_kwargs")}
    try:
        return parser.instantiate_classes(parser.parse_object({"part": given})).part
    except VisynthError:
        raise
    except Exception as error:
        raise UsageError(f"learner: {config['class_path']} could not be made: {error}") from error


def _only_loader(loaders: Any, what: str) -> DataLoader[Any]:
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1:
        loaders = loaders[0]
    if not isinstance(loaders, DataLoader) or not hasattr(loaders.dataset, "__getitem__"):
        raise UsageError(
            f"{what} must give one DataLoader of a map-style dataset, so that its samples can be looked at, but gave "
            f"{type(loaders).__name__}."
        )
    return loaders


@contextmanager
def _quiet() -> Iterator[None]:
    with quiet_lightning(logging.ERROR), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=".*val_dataloader|.*validation_step|.*log_every_n_steps|.*GPU|.*predict returned None|.*ReduceLROnPlateau cond",
        )
        yield


def _places(error: BaseException) -> list[str]:
    """Lines of the user's own code that an error came through."""
    here = str(Path(__file__).resolve().parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{f.filename}:{f.lineno}" for f in frames if "site-packages" not in f.filename and here not in f.filename]


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
