"""A training's configuration, by LightningCLI in subclass mode, as a trainer, a module and data."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from visynth.core.errors import UsageError, VisynthError

CLIP = 1.0  # of gradients, for modules with one optimiser
FEDERATED = "train over sites whose images stay where they are: options, or a YAML file of them"


def find_in_working_folder() -> None:
    """A class_path may be of a file beside the configuration: the working folder is looked in last, so that nothing is hidden by
    it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def configured(words: Sequence[str], logger: bool = True) -> Any:
    """The instantiated LightningCLI; its own errors are told as ours."""
    import pytorch_lightning
    from pytorch_lightning.cli import LightningCLI

    from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
    from visynth.callbacks.progress import TimeLeft
    from visynth.federated.options import FederatedOptions

    find_in_working_folder()

    class FitCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(KeepLast, "checkpoint")
            parser.add_lightning_class_args(TimeLeft, "progress")
            parser.add_argument(
                "--federated", type=FederatedOptions | None, default=None, enable_path=True, help=FEDERATED
            )

        def _add_instantiators(self) -> None:  # instances are rebuilt from config.yaml, not from checkpoints
            return

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            config = self.config["trainer"]
            chosen = config.get("logger")
            loggers = _loggers(config["default_root_dir"]) if chosen in (None, True) else chosen
            if not logger:  # nobody wants a test of ours in the log of the training
                loggers = False
            more: dict[str, Any] = {}
            if not self.model.automatic_optimization and config.get("gradient_clip_val") == CLIP:
                more["gradient_clip_val"] = (
                    None  # our default; such modules step by themselves, and Lightning refuses it
                )
            return super().instantiate_trainer(logger=loggers or False, plugins=[AtomicCheckpointIO()], **more)

    defaults = {
        "default_root_dir": "run",
        "max_epochs": -1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "gradient_clip_val": CLIP,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        try:
            return FitCLI(
                pytorch_lightning.LightningModule,
                pytorch_lightning.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                trainer_defaults=defaults,
                seed_everything_default=False,
                run=False,
                args=list(words),
                parser_kwargs={"prog": "visynth fit", "exit_on_error": False},
            )
        except VisynthError:
            raise
        except Exception as error:
            reason = _told(error)
            if reason is error:  # of a module or datamodule that is not ours: its author needs the traceback
                raise
            raise reason from error


def _told(error: Exception) -> Exception:
    """A VisynthError inside another library's error; a usage error where the command line or a configuration is wrong;
    else the error."""
    from argparse import ArgumentError

    from lightning_fabric.utilities.exceptions import MisconfigurationException

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, VisynthError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, (ArgumentError, MisconfigurationException)):
        return UsageError(f"{error}\nSee 'visynth fit --help', and configs/ for complete examples.")
    return error


def _loggers(root: str) -> list[Any]:
    """A CSV file always; TensorBoard where it is installed."""
    from importlib.util import find_spec

    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    all_loggers: list[Any] = [CSVLogger(root, name="log")]
    if find_spec("tensorboard") is not None:
        all_loggers.append(TensorBoardLogger(root, name="log", version=f"version_{all_loggers[0].version}"))
    return all_loggers


def connect(cli: Any) -> None:
    """Trainer, model and data know each other and the data are read, without a fit."""
    cli.datamodule.setup("fit")
    cli.model._trainer = cli.trainer
    cli.trainer._data_connector.attach_datamodule(cli.model, cli.datamodule)
