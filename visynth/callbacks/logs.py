"""Numbers and sheets to whatever loggers a trainer has, and always to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.pictures import write_png


def log_values(trainer: Any, pl_module: Any, values: Mapping[str, float], monitor: bool) -> None:
    """To every logger at the current step; with ``monitor`` also where ModelCheckpoint and EarlyStopping look.

    ``self.log`` alone writes only at multiples of ``log_every_n_steps``, and an evaluation that took a minute should
    not get lost.
    """
    if monitor:
        for name, value in values.items():
            pl_module.log(name, float(value), logger=False, on_step=True, on_epoch=False, batch_size=1)
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=trainer.global_step)
            logger.save()


def log_grid(trainer: Any, tag: str, sheet: NDArray[np.uint8], source: str) -> None:
    """An RGB sheet ``[H, W, 3]`` as ``<log folder>/samples/<step>.png`` and to loggers that take images
    (TensorBoard, Weights & Biases, MLflow)."""
    if not trainer.is_global_zero:
        return
    # Not trainer.log_dir: it is a broadcast, and only the main rank is here.
    folders = [folder for folder in (getattr(logger, "log_dir", None) for logger in trainer.loggers) if folder]
    folder = Path(folders[0] if folders else trainer.default_root_dir) / tag
    path = folder / f"{trainer.global_step:08d}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_png(path, sheet)
    for logger in trainer.loggers:
        _log_image(logger, f"{tag}/{source}", sheet, trainer.global_step)


def _log_image(logger: Any, name: str, sheet: NDArray[np.uint8], step: int) -> None:
    """To a logger in its own way; one that takes no images has the file on disk."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        logger.log_image(key=name, images=[sheet], step=step)
    elif kind == "MLFlowLogger":
        logger.experiment.log_image(logger.run_id, sheet, artifact_file=f"{name}/{step:08d}.png")
    else:
        add = getattr(getattr(logger, "experiment", None), "add_image", None)
        if callable(add):  # TensorBoard
            add(name, sheet, step, dataformats="HWC")
