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
import inspect
import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import UsageError, VisynthError
from visynth.core.files import hash_file
from visynth.core.progress import NowAndThen, Progress, no_progress
from visynth.core.quiet import quiet_lightning
from visynth.jobs.epochs import Epochs
from visynth.jobs.user_parts import (
    BATCH,
    ENDS,
    TAKEN,
    Kit,
    class_of,
    code_of,
    instance,
    lenient,
    named_files,
    only_loader,
    package_of,
    read_training,
)
from visynth.metrics.extractor import prepare_square
from visynth.mixing.convert import random_state_kept
from visynth.mixing.loaders import unwrap_loaders
from visynth.mixing.samples import Samples
from visynth.verdict.learners import IMAGES, Floats, Ints, Items, Outcome, Predictions

STEPS = 300  # unless the trainer of the file says otherwise
SIDE = 128


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
        parts: dict[str, Any] = (
            read_training(name) if name.endswith((".yaml", ".yml")) else {"model": {"class_path": name}}
        )
        self.model: dict[str, Any] = parts["model"]
        self.data: dict[str, Any] | None = parts.get("data")
        self.trainer = {k: v for k, v in (parts.get("trainer") or {}).items() if k in TAKEN}
        if not any(self.trainer.get(end) for end in ENDS):  # read_training leaves out what is no end
            self.trainer["max_steps"] = STEPS
        self.given_numbers: dict[str, int] | None = parts.get("classes")
        self.kit: Kit | None = None
        self.progress: Progress = no_progress
        self.done = 0
        self.kind = class_of(self.model["class_path"])
        self.lightning = package_of(self.kind)

    @property
    def words(self) -> str:
        """What a cell takes, for those who wait for it."""
        ends = ", ".join(f"{self.trainer[end]} {end.removeprefix('max_')}" for end in ENDS if end in self.trainer)
        return f"learner {self.name}: a training of {ends} in each of the {len(self.arms)} arms of a cell"

    @property
    def inputs(self) -> dict[str, Any]:
        """Plain JSON of what the outcomes depend on: settings, the user's own code, and files that the settings name."""
        kinds = [self.kind] if self.data is None else [self.kind, class_of(self.data["class_path"])]
        return {
            "model": self.model,
            "data": self.data,
            "trainer": self.trainer,
            "classes": self.given_numbers,
            "code": code_of(kinds),
            "files": {path: hash_file(Path(path)) for path in named_files([self.model, self.data])},
            "lightning": self.lightning.__version__,
        }

    def check(self, names: Sequence[str], images: Sequence[Array], progress: Progress = no_progress) -> None:
        """See that module, data and images fit, before anything takes time: one batch goes through an untrained module.

        Args:
            names: classes, by their numbers in the comparison.
            images: some of them.
            progress: told what a cell takes, and now and then how many trainings were done.

        Raises:
            UsageError: what does not fit.
        """
        self.kit = self._kit(tuple(names), list(images))
        with random_state_kept():
            module = self._module(0)
            rows = np.arange(min(2, len(images)), dtype=np.int64)
            self._logits(self._trainer(), module, [functools.partial(images.__getitem__, int(row)) for row in rows])
        progress(self.words)
        self.progress = NowAndThen(progress)

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
        if length % kit.batch == 1 and length > 1 and not kit.drop_last:
            length -= 1  # a last batch of one image is more than batch norms can bear
        order = Epochs(items.class_weights()[own], length, seed)
        data = _Arm([images[row] for row in items.rows[own]], [kit.names[k] for k in items.labels[own]], kit.train)
        with random_state_kept():
            module = self._module(seed)
            np.random.seed(seed % 2**32)  # transforms may draw from these; the states are given back
            random.seed(seed)
            loader: DataLoader[Any] = DataLoader(
                data, min(kit.batch, len(order)), sampler=order, collate_fn=kit.collate, drop_last=kit.drop_last
            )
            trainer = self._trainer(len(loader))
            with _quiet(), self._blamed("training"):
                trainer.fit(module, **self._given(loader, "train_dataloader"))
            logits = self._logits(trainer, module, list(images[test]))
        self.done += 1
        self.progress(f"    {self.done} trainings of {self.name}")
        label = int(items.labels[items.positive][0])
        rest = np.delete(logits, label, axis=1)
        scores = logits[:, label] - np.logaddexp.reduce(rest, axis=1)
        return Outcome(Predictions(scores, logits), float("nan"), {"training": self.name})

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
        module = instance(class_of(self.data["class_path"]), self.data, self.lightning.LightningDataModule)
        module.prepare_data()
        module.setup("fit")
        loaders = {"train_dataloader": only_loader(module.train_dataloader(), "train_dataloader")}
        try:
            loaders["val_dataloader"] = only_loader(module.val_dataloader(), "val_dataloader")
        except NotImplementedError as error:
            raise UsageError(
                f"{self.data['class_path']} has no val_dataloader, and its training transform must not meet test images: "
                "give it one."
            ) from error
        train, test = (Samples(loader.dataset, names, images, self.given_numbers) for loader in loaders.values())
        if dict(train.numbers) != dict(test.numbers):
            raise UsageError(
                f"the DataModule numbers its classes {dict(train.numbers)} in training, but {dict(test.numbers)} in "
                "validation."
            )
        loader = loaders["train_dataloader"]
        layout = test.layout
        own, theirs = (
            None if one.collate_fn is torch.utils.data.default_collate else one.collate_fn for one in loaders.values()
        )
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or BATCH
        return Kit(
            names, train.numbers, train, test, lambda batch: layout.get(batch, layout.image), int(size), own,
            bool(loader.drop_last), theirs, module,
        )  # fmt: skip

    def _module(self, seed: int) -> Any:
        torch.manual_seed(seed)
        arguments: dict[str, Any] = dict(self.model.get("init_args") or {})
        if self.kit is not None and "num_classes" in inspect.signature(self.kind.__init__).parameters:
            arguments.setdefault("num_classes", 1 + max(self.kit.numbers.values()))
        module = instance(self.kind, {**self.model, "init_args": arguments}, self.lightning.LightningModule)
        # An arm has no validation: nothing is kept, stopped or slowed down by it.
        module.configure_callbacks = list
        module.configure_optimizers = functools.partial(lenient, module.configure_optimizers)
        return module

    def _trainer(self, batches: int = 1) -> Any:
        """A trainer whose epochs are counted, too: schedulers may ask it for them."""
        ends = dict(self.trainer)
        if "max_epochs" not in ends:
            steps = max(batches // int(ends.get("accumulate_grad_batches") or 1), 1)
            ends["max_epochs"] = -(-int(ends["max_steps"]) // steps)
        with _quiet():
            return self.lightning.Trainer(
                **ends,
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

    def _logits(self, trainer: Any, module: Any, images: Sequence[Callable[[], Array]]) -> Floats:
        """Log-probabilities ``[images, classes of the comparison]``."""
        kit = self._ready()
        if type(module).predict_step is self.lightning.LightningModule.predict_step:  # it would get the labels, too
            module.predict_step = lambda batch, batch_idx=0, dataloader_idx=0: module(kit.inputs(batch))
        # Any class will do, and the true one must not be seen: the first.
        data = _Arm(images, [kit.names[0]] * len(images), kit.test)
        loader: DataLoader[Any] = DataLoader(data, kit.batch, collate_fn=kit.test_collate)
        with _quiet(), self._blamed("scoring"):
            found = trainer.predict(module, **self._given(loader, "predict_dataloader"))
        sizes = [min(kit.batch, len(images) - start) for start in range(0, len(images), kit.batch)]
        parts = [self._checked(out, size) for out, size in zip(found or [None] * len(sizes), sizes, strict=True)]
        own = "predict_step" not in vars(module)
        return _log_probabilities(torch.cat(parts).double(), kit, own)

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
        if not out.is_floating_point():
            raise UsageError(
                f"{name} gives decisions ({out.dtype}), which rank nothing: let predict_step return logits or probabilities."
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
        finally:
            unwrap_loaders()  # Lightning leaves them wrapped where a hook raised


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


def _log_probabilities(values: Tensor, kit: Kit, predicted: bool = False) -> Floats:
    """Of the comparison's classes, from logits or probabilities by the module's numbers.

    Args:
        values: ``[images, module's classes]``, or one a row of class number 1: a logit where ``forward`` gave it, and a
            probability where the user's own ``predict_step`` gave numbers in [0, 1].
        kit: with the numbers.
        predicted: whether that was a ``predict_step``.
    """
    if values.shape[1] == 1:
        odds = values[:, 0]
        if predicted and bool(((odds >= 0) & (odds <= 1)).all()):
            odds = torch.logit(odds, eps=1e-7)
        both = torch.stack([-odds, odds], dim=1)
        logs = torch.nn.functional.logsigmoid(both)
    elif bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all()):
        logs = values.clamp(min=1e-12).log()
    else:
        logs = values.log_softmax(dim=1)
    return logs[:, [kit.numbers[name] for name in kit.names]].numpy()


def _plain(array: Array) -> Tensor:
    values = prepare_square(array, SIDE)
    channels = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))


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
