"""Numbers and sheets reach every kind of logger in its own way; what none takes is on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from visynth.callbacks.logs import log_grid, log_values

SHEET = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)


class WandbLogger:  # as Lightning's own is called; the package is not installed here
    log_dir = None

    def __init__(self) -> None:
        self.images: list = []
        self.numbers: list = []

    def log_image(self, key, images, step=None) -> None:
        self.images.append((key, images, step))

    def log_metrics(self, metrics, step) -> None:
        self.numbers.append((metrics, step))

    def save(self) -> None: ...


def trainer(loggers, root: Path) -> SimpleNamespace:
    return SimpleNamespace(loggers=loggers, is_global_zero=True, global_step=7, default_root_dir=str(root))


def test_every_logger_gets_them(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    wandb = WandbLogger()
    mlflow = MLFlowLogger(tracking_uri=(tmp_path / "mlruns").as_uri(), experiment_name="x")
    kept: list = []
    monkeypatch.setattr(type(mlflow.experiment), "log_image", lambda self, *a, **k: kept.append((a, k)))
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board"), wandb, mlflow]
    own = trainer(loggers, tmp_path)
    log_values(own, None, {"kid": 0.25}, monitor=False)
    log_grid(own, "samples", SHEET, "KIDCallback")
    assert "0.25" in (Path(loggers[0].log_dir) / "metrics.csv").read_text()
    assert (Path(loggers[0].log_dir) / "samples/00000007.png").is_file()
    assert wandb.numbers == [({"kid": 0.25}, 7)]
    ((key, images, step),) = wandb.images
    assert (key, step) == ("samples/KIDCallback", 7)
    np.testing.assert_array_equal(images[0], SHEET)
    (((run, image), named),) = kept
    assert run == mlflow.run_id
    assert named == {"artifact_file": "samples/KIDCallback/00000007.png"}
    np.testing.assert_array_equal(image, SHEET)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers[1].experiment.flush()  # it writes from a thread of its own
    board = EventAccumulator(loggers[1].log_dir)
    board.Reload()
    assert board.Tags()["images"] == ["samples/KIDCallback"]
    assert board.Scalars("kid")[0].value == 0.25
    assert mlflow.experiment.get_run(mlflow.run_id).data.metrics == {"kid": 0.25}


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    wandb = WandbLogger()
    own = trainer([wandb], tmp_path)
    own.is_global_zero = False
    log_values(own, None, {"kid": 1.0}, monitor=False)
    log_grid(own, "samples", SHEET, "KIDCallback")
    assert not wandb.numbers
    assert not wandb.images
    assert not list(tmp_path.iterdir())
