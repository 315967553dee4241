"""Parts of a user's training: its file, its classes, made as LightningCLI makes them, and what of them can be respected."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader

from visynth.core.codec import Array
from visynth.core.errors import UsageError, VisynthError, choices
from visynth.core.files import hash_file
from visynth.jobs.configured import find_in_working_folder

BATCH = 32  # without a DataModule
ENDS = ("max_steps", "max_epochs")
TAKEN = (*ENDS, "accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches",
         "deterministic", "benchmark")  # fmt: skip
# Callbacks that only look on, or that wait for a validation, rest in an arm; any other may change the training.
RESTING = ("ModelCheckpoint", "EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "RichModelSummary",
           "RichProgressBar", "TQDMProgressBar", "Timer", "TimeLeft", "KeepLast")  # fmt: skip
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
        inputs: what the module is called with, of a batch of the validation.
        batch: batch size.
        collate: makes a batch of training samples (it may blend them); None for torch's own way.
        test_collate: the same of validation samples.
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
    test_collate: Callable[[list[Any]], Any] | None = None
    datamodule: Any = None


def read_training(name: str) -> dict[str, Any]:
    """The file of a training: ``model``, and perhaps ``data`` and ``trainer``.

    Raises:
        UsageError: there is none, it is no YAML, or it asks for what an arm of a comparison cannot respect, all of it told.
    """
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
    asked = {name: value for name, value in found.items() if value is not None}
    unknown = sorted(set(asked) - {"model", "data", "trainer", "classes", "seed_everything"})
    if unknown:
        problems.append(
            f"{choices(unknown)} cannot be respected here: let the module's __init__ and configure_optimizers do it"
        )
    given = {name: value for name, value in (asked.get("trainer") or {}).items() if value is not None}
    given = {name: value for name, value in given.items() if name not in ENDS or value > 0}  # -1 is no end
    odd = sorted(set(given) - {*TAKEN, *LEFT})
    if odd:
        problems.append(f"trainer: {choices(odd)} cannot be respected here; it takes {choices(TAKEN)}")
    called = [
        str(one.get("class_path", one) if isinstance(one, dict) else one) for one in _several(given.get("callbacks"))
    ]
    working = [path for path in called if path.rpartition(".")[2] not in RESTING]
    if working:
        problems.append(f"trainer: callbacks {choices(working)} may change the training, and cannot be respected here")
    numbers = asked.get("classes")
    if numbers is not None and not (isinstance(numbers, dict) and all(isinstance(v, int) for v in numbers.values())):
        problems.append(f"classes must be {{name: number}}, but is {numbers!r}")
    if problems:
        raise UsageError(f"learner: {name}: {'; '.join(problems)}.")
    return {**asked, "trainer": given}


def _several(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def code_of(kinds: Sequence[Any]) -> dict[str, str]:
    """Sha256 of the source files of classes, their bases and what those import from beside them; installed packages, which have
    versions, are left out."""
    names = {base.__module__ for kind in kinds for base in kind.__mro__}
    found: dict[str, str] = {}
    while names:
        name = names.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in found or file is None or "site-packages" in file or not file.endswith(".py") or _is_standard(file):
            continue
        found[name] = hash_file(Path(file))
        names |= {getattr(value, "__module__", None) or "" for value in vars(module).values()}
        names |= {value.__name__ for value in vars(module).values() if isinstance(value, ModuleType)}
        names -= {"", *found}
    return dict(sorted(found.items()))


def _is_standard(file: str) -> bool:
    return Path(file).is_relative_to(Path(os.__file__).parent)


def named_files(settings: Any) -> list[str]:
    """Files that exist among the words of some settings, such as weights."""
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return sorted({file for one in settings for file in named_files(one)})
    return [settings] if isinstance(settings, str) and Path(settings).is_file() else []


def class_of(path: str) -> Any:
    """The class of a path, ``my_package.MyModule``, from installed packages or the working folder.

    Raises:
        UsageError: it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    find_in_working_folder()
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"learner: {path} cannot be imported ({error}). Registered learners are frozen and finetune; yours is named by "
            "the path of its class, from the folder where you start visynth."
        ) from error


def package_of(kind: Any) -> Any:
    """The Lightning package whose LightningModule a class is: there are two.

    Raises:
        UsageError: it is none.
    """
    for base in getattr(kind, "__mro__", ()):
        top = base.__module__.split(".")[0]
        if base.__name__ == "LightningModule" and top in ("pytorch_lightning", "lightning"):
            return importlib.import_module("pytorch_lightning" if top == "pytorch_lightning" else "lightning.pytorch")
    raise UsageError(f"learner: {getattr(kind, '__qualname__', kind)} is no LightningModule.")


def instance(kind: Any, config: Mapping[str, Any], base: Any) -> Any:
    """An object by its class_path and init_args, checked and made as LightningCLI does.

    Raises:
        UsageError: arguments that it does not take, or a class of another kind than ``base``.
    """
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


def only_loader(loaders: Any, what: str) -> DataLoader[Any]:
    """The one DataLoader of a hook of a DataModule.

    Raises:
        UsageError: several, or one whose samples cannot be looked at one by one.
    """
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1:
        loaders = loaders[0]
    if not isinstance(loaders, DataLoader) or not hasattr(loaders.dataset, "__getitem__"):
        raise UsageError(
            f"{what} must give one DataLoader of a map-style dataset, so that its samples can be looked at, but gave "
            f"{type(loaders).__name__}."
        )
    return loaders


def lenient(configure: Callable[[], Any]) -> Any:
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
